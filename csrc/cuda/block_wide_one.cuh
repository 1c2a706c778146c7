// A wide residual block of inner width 64 (Slow pathway's res2) in one kernel.
//
// Blocks of threads stay: each keeps the weights of all convolutions in shared memory and walks over tiles of
// output pixels, each of one frame. The block's input comes in chunks of 32 channels through a ring of
// stages, the next tile's first chunks while this tile is finished. conv_a's result lies in shared memory
// with the tile's halo, zero outside of the image; conv_b's stays in registers, as the first operand of
// conv_c. A warp owns 32 pixels of the halo tile, then 32 output pixels.
//
// A shortcut's convolution is more products of conv_c. Its operand is the input in the ring, which has to
// hold all of it, so that nothing is fetched ahead.
#pragma once

#include "cuda/block_mma.cuh"

namespace slowfast::cuda {

template <class T>
struct BlockWideOneParams {
    const T* x;
    T* out;
    const T* weights_a;    // packed
    const T* weights;      // packed: b, then for every 64 channels c and the shortcut's
    const float* shift_a;  // of conv_a
    const float* shifts;   // of b, and of c with the shortcut's
    int64_t x_pitch, out_pitch;
    int height, width, cin, cout, dilation;
    int tile_h, tile_w, tiles;
};

constexpr int kWideOneInner = 64, kWideOneThreads = 256, kWideOneRows = 256;  // rows: pixels of a halo tile
constexpr int kWideOneChunk = 32, kWideOneStages = 3;                         // channels of a stage
constexpr int kWideOneColumns = 64;                                           // of conv_c at a time
constexpr int kWideOneStep = tile::step_elements(kWideOneColumns);            // packed weights of 16 products
constexpr int kWideOneStepsB = 9 * kWideOneInner / 16, kWideOneStepsC = kWideOneInner / 16;

struct BlockWideOneShared {
    int halo_w, halo, rows;            // pixels of the halo tile, and that in whole 32s
    int steps_a, steps_n;              // steps of 16 products: of conv_a, of 64 channels of the result
    int at_b, at_c, at_maps, at_ring;  // bytes
    int64_t bytes;
};
SF_HOST_DEVICE BlockWideOneShared block_wide_one_shared(int cin, int cout, bool shortcut, int dilation,
                                                        int tile_h, int tile_w) {
    BlockWideOneShared s;
    s.halo_w = tile_w + 2 * dilation;
    s.halo = s.halo_w * (tile_h + 2 * dilation);
    s.rows = round_up(s.halo, 32);
    s.steps_a = ceil_div(cin, 16);
    s.steps_n = kWideOneStepsC + (shortcut ? s.steps_a : 0);
    s.at_b = s.steps_a * kWideOneStep * 2;
    s.at_c = s.at_b + kWideOneStepsB * kWideOneStep * 2;
    s.at_maps = s.at_c + ceil_div(cout, kWideOneColumns) * s.steps_n * kWideOneStep * 2;
    s.at_ring = s.at_maps + s.halo * tile::row_pitch(kWideOneInner) * 2;
    s.bytes = int64_t(s.at_ring) + kWideOneStages * s.rows * kWideOneChunk * 2;
    return s;
}

// 16-byte unit `unit` of a row of a stage: swapped such that the eight rows of an ldmatrix tile fall into
// different banks.
SF_DEVICE int wide_one_unit(int row, int unit) {
    return row * kWideOneChunk + 8 * (unit ^ (row / 2 % 4));
}

template <class T, bool Shortcut>
SF_KERNEL SF_LAUNCH_BOUNDS(kWideOneThreads, 1) void block_wide_one_kernel(const BlockWideOneParams<T> p) {
    constexpr int kPitch = tile::row_pitch(kWideOneInner), kTiles = kWideOneInner / 8;
    constexpr int kUnits = kWideOneChunk / 8, kRowsOnce = kWideOneThreads / kUnits;
    constexpr int kRowsEach = kWideOneRows / kRowsOnce;
    const BlockWideOneShared s =
        block_wide_one_shared(p.cin, p.cout, Shortcut, p.dilation, p.tile_h, p.tile_w);
    unsigned char* shared = dynamic_shared<unsigned char>();
    T* weights_a = reinterpret_cast<T*>(shared);
    T* weights_b = reinterpret_cast<T*>(shared + s.at_b);
    T* weights_c = reinterpret_cast<T*>(shared + s.at_c);
    T* maps = reinterpret_cast<T*>(shared + s.at_maps);
    T* ring = reinterpret_cast<T*>(shared + s.at_ring);
    const int stage = s.rows * kWideOneChunk;  // elements

    const int tiles_w = ceil_div(p.width, p.tile_w), tiles_h = ceil_div(p.height, p.tile_h);
    const int chunks = ceil_div(p.cin, kWideOneChunk);

    // What this thread fetches: its rows of tile `to_fetch`, chunk by chunk.
    const int unit = thread_x() % kUnits, fetch_row = thread_x() / kUnits;
    int to_fetch = block_x(), chunk_to_fetch = 0, fetched = 0;
    const T* fetch_from = p.x;
    int fetch_at[kRowsEach];
    auto fetch = [&] {
        if (to_fetch < p.tiles) {
            if (chunk_to_fetch == 0) {
                const int y0 = to_fetch / tiles_w % tiles_h * p.tile_h - p.dilation;
                const int v0 = to_fetch % tiles_w * p.tile_w - p.dilation;
                fetch_from =
                    p.x + int64_t(to_fetch / tiles_w / tiles_h) * p.height * p.width * p.x_pitch + 8 * unit;
                SF_UNROLL
                for (int i = 0; i < kRowsEach; ++i) {
                    const int row = fetch_row + i * kRowsOnce;
                    const int y = y0 + row / s.halo_w, v = v0 + row % s.halo_w;
                    const bool inside = row < s.halo && y >= 0 && y < p.height && v >= 0 && v < p.width;
                    fetch_at[i] = inside ? y * p.width + v : -1;
                }
            }
            const int channel = chunk_to_fetch * kWideOneChunk;
            const bool has = channel + 8 * unit < p.cin;
            T* to = ring + fetched % kWideOneStages * stage;
            SF_UNROLL
            for (int i = 0; i < kRowsEach; ++i) {
                const int row = fetch_row + i * kRowsOnce;
                const bool valid = has && fetch_at[i] >= 0;
                if (row < s.rows) {
                    cp_async16(to + wide_one_unit(row, unit),
                               valid ? fetch_from + fetch_at[i] * p.x_pitch + channel : p.x, valid);
                }
            }
            if (++chunk_to_fetch == chunks) {
                chunk_to_fetch = 0;
                to_fetch += grid_dim_x();
            }
        }
        ++fetched;
        cp_async_commit();
    };

    // Weights: of conv_c and the shortcut only the steps that hold products.
    auto bring = [&](T* to, const T* from, int elements) {
        for (int i = 8 * thread_x(); i < elements; i += 8 * kWideOneThreads) cp_async16(to + i, from + i);
    };
    bring(weights_a, p.weights_a, s.steps_a * kWideOneStep);
    bring(weights_b, p.weights, kWideOneStepsB * kWideOneStep);
    {
        const int packed = Shortcut ? kWideOneStepsC + round_up(s.steps_a, kWideOneStepsC) : kWideOneStepsC;
        const T* from = p.weights + kWideOneStepsB * kWideOneStep;
        for (int n = 0; n < ceil_div(p.cout, kWideOneColumns); ++n) {
            bring(weights_c + n * s.steps_n * kWideOneStep, from + int64_t(n) * packed * kWideOneStep,
                  s.steps_n * kWideOneStep);
        }
    }
    cp_async_commit();
    if constexpr (!Shortcut) {
        SF_UNROLL
        for (int i = 0; i < kWideOneStages - 1; ++i) fetch();
    }

    // Rows that stand for no pixel read what the one before them reads.
    const int line = tile::line_rows(p.tile_h, p.tile_w, kWideOneRows);
    const int warp_row = 32 * warp(), group = lane() / 4, quarter = lane() % 4;
    const int load_row = lane() / 8 % 2 * 8 + reversed_row(lane() % 8);  // of 16 pixels of the halo tile
    const bool has_halo = warp_row < s.halo, has_output = warp_row < line * p.tile_h;
    int window[2];  // first pixel, in the halo tile, of the window of ldmatrix's row
    SF_UNROLL
    for (int m = 0; m < 2; ++m) {
        const int row = warp_row + 16 * m + lane() % 16, y = row / line, v = row % line;
        window[m] = y < p.tile_h ? y * s.halo_w + (v < p.tile_w ? v : p.tile_w - 1) : 0;
    }
    const int centre = p.dilation * (s.halo_w + 1);

    int used = 0;  // chunks
    for (int tile_id = block_x(); tile_id < p.tiles; tile_id += grid_dim_x()) {
        const int64_t frame = tile_id / tiles_w / tiles_h;
        const int out_y = tile_id / tiles_w % tiles_h * p.tile_h, out_x = tile_id % tiles_w * p.tile_w;
        if constexpr (Shortcut) {
            syncthreads();  // the tile before is done with the ring
            for (int i = 0; i < chunks; ++i) fetch();
            used = fetched - chunks;
            cp_async_wait<0>();
            syncthreads();
        }
        {  // conv_a
            float acc[2][kTiles][4];
            tile::clear(acc);
            for (int chunk = 0; chunk < chunks; ++chunk, ++used) {
                if constexpr (!Shortcut) {
                    cp_async_wait<kWideOneStages - 2>();
                    syncthreads();
                    fetch();
                }
                if (has_halo) {
                    const T* from = ring + used % kWideOneStages * stage;
                    SF_UNROLL
                    for (int k = 0; k < kWideOneChunk / 16; ++k) {
                        const int step = chunk * (kWideOneChunk / 16) + k;
                        if (step < s.steps_a) {
                            const T* rows[2];
                            SF_UNROLL
                            for (int m = 0; m < 2; ++m) {
                                rows[m] =
                                    from + wide_one_unit(warp_row + 16 * m + load_row, 2 * k + lane() / 16);
                            }
                            tile::multiply16<T, 2, kTiles>(acc, rows, weights_a + step * kWideOneStep);
                        }
                    }
                }
            }
            Vec<float, 8> shift[2];
            SF_UNROLL
            for (int q = 0; q < 2; ++q) shift[q] = load_run<8>(p.shift_a + 32 * q + 8 * quarter);
            SF_UNROLL
            for (int i = 0; i < 4; ++i) {
                const int row = warp_row + 8 * i + reversed_row(group);
                if (row < s.halo) {
                    const int y = out_y - p.dilation + row / s.halo_w;
                    const int v = out_x - p.dilation + row % s.halo_w;
                    const bool inside = y >= 0 && y < p.height && v >= 0 && v < p.width;
                    SF_UNROLL
                    for (int q = 0; q < 2; ++q) {
                        const auto v8 =
                            tile::finished<T>(tile::row_of<4>(acc[i / 2], i % 2, 4 * q), shift[q]);
                        store(maps + row * kPitch + 32 * q + 8 * quarter, inside ? v8 : Vec<T, 8>{});
                    }
                }
            }
        }
        syncthreads();
        if (!has_output) continue;  // meets the others at the next tile's first barrier
        uint32_t middle[kWideOneStepsC][2][4];
        {  // conv_b
            float acc[2][kTiles][4];
            tile::clear(acc);
            const T* rows[2] = {maps + window[0] * kPitch + lane() / 16 * 8,
                                maps + window[1] * kPitch + lane() / 16 * 8};
            const T* weights = weights_b;
            for (int tap = 0; tap < 9; ++tap, weights += kWideOneStepsC * kWideOneStep) {
                const int tap_at = (tap / 3 * s.halo_w + tap % 3) * p.dilation * kPitch;
                SF_UNROLL
                for (int k = 0; k < kWideOneStepsC; ++k) {
                    const T* shifted[2] = {rows[0] + tap_at + 16 * k, rows[1] + tap_at + 16 * k};
                    tile::multiply16<T, 2, kTiles>(acc, shifted, weights + k * kWideOneStep);
                }
            }
            tile::to_operand<T>(middle, acc, p.shifts);
        }
        // conv_c
        int pixel[4];  // of the frame, or -1
        SF_UNROLL
        for (int i = 0; i < 4; ++i) {
            const int row = warp_row + 8 * i + group, y = row / line, v = row % line;
            const bool in_tile = y < p.tile_h && v < p.tile_w;
            const bool inside = in_tile && out_y + y < p.height && out_x + v < p.width;
            pixel[i] = inside ? (out_y + y) * p.width + out_x + v : -1;
        }
        const int64_t frame_at = frame * p.height * p.width;
        const T* x = p.x + frame_at * p.x_pitch;
        T* out = p.out + frame_at * p.out_pitch;
        const T* weights = weights_c;
        for (int n = 0; n < p.cout; n += kWideOneColumns) {
            Vec<T, 8> residual[4][2];
            if constexpr (!Shortcut) {  // on its way while the products are formed
                SF_UNROLL
                for (int i = 0; i < 4; ++i) {
                    SF_UNROLL
                    for (int q = 0; q < 2; ++q) {
                        const int channel = n + 32 * q + 8 * quarter;
                        const bool valid = pixel[i] >= 0 && channel < p.cout;
                        residual[i][q] =
                            valid ? load_readonly<8>(x + pixel[i] * p.x_pitch + channel) : Vec<T, 8>{};
                    }
                }
            }
            float acc[2][8][4];
            tile::clear(acc);
            SF_UNROLL
            for (int k = 0; k < kWideOneStepsC; ++k, weights += kWideOneStep) {
                tile::multiply_operand<T>(acc, middle[k], weights);
            }
            if constexpr (Shortcut) {
                const int first = used - chunks;
                for (int step = 0; step < s.steps_a; ++step, weights += kWideOneStep) {
                    const T* from = ring + (first + step / 2) % kWideOneStages * stage;
                    const T* rows[2] = {
                        from + wide_one_unit(window[0] + centre, 2 * (step % 2) + lane() / 16),
                        from + wide_one_unit(window[1] + centre, 2 * (step % 2) + lane() / 16)};
                    tile::multiply16<T, 2, 8>(acc, rows, weights);
                }
            }
            SF_UNROLL
            for (int q = 0; q < 2; ++q) {
                const int channel = n + 32 * q + 8 * quarter;
                if (channel >= p.cout) continue;
                const auto shift = load_run<8>(p.shifts + kWideOneInner + channel);
                SF_UNROLL
                for (int i = 0; i < 4; ++i) {
                    if (pixel[i] < 0) continue;
                    const auto sum = tile::row_of<4>(acc[i / 2], i % 2, 4 * q);
                    T* to = out + pixel[i] * p.out_pitch + channel;
                    if constexpr (Shortcut) {
                        store_result(to, tile::finished<T>(sum, shift));
                    } else {
                        store_result(to, tile::finished<T>(sum, shift, residual[i][q]));
                    }
                }
            }
        }
    }
}

}  // namespace slowfast::cuda
