// A wide residual block (Slow pathway's res2 and res3, Fast's res5) in two kernels: conv_a by itself, then
// the rest, conv_b + conv_c + shortcut + ReLU.
//
// block_wide_a_kernel: kt x 1 x 1 convolution, a product of matrices whose rows are pixels; operands through
// a ring of stages in shared memory. block_wide_rest_kernel: a block of threads owns a tile of output pixels
// of one frame. conv_a's result lies in shared memory with the tile's halo; the weights stream through a ring
// of stages, all of one size, in the order in which they are used. conv_b's result stays in registers: it is
// the first operand of conv_c. The block's result can be the first operand of the next block's conv_a in
// turn, as it lies in the registers it is stored from; only the products of that conv_a's weights have to be
// in their order.
#pragma once

#include "cuda/block_mma.cuh"

namespace slowfast::cuda {

// --- conv_a ------------------------------------------------------------------------------------------------

template <class T>
struct BlockWideAParams {
    const T* x;
    T* out;
    const T* weights;    // packed
    const float* shift;  // of every channel
    int64_t x_pitch, out_pitch, pixels;
    int frames, frame_pixels;
    int cin, cout, kernel_t;
};

constexpr int kWideARows = 128, kWideAColumns = 64, kWideASteps = 4, kWideAStages = 3;
constexpr int kWideAPitch = 16 * kWideASteps + 8;
constexpr int kWideAThreads = 128;
// Elements of a stage: pixels, then weights.
constexpr int kWideAStage = kWideARows * kWideAPitch + kWideASteps * 16 * kWideAColumns;
constexpr int kWideAShared = kWideAStages * kWideAStage * 2;

template <class T>
SF_KERNEL SF_LAUNCH_BOUNDS(kWideAThreads, 2) void block_wide_a_kernel(const BlockWideAParams<T> p) {
    constexpr int kUnits = 2 * kWideASteps;            // of 16 bytes in a row of a stage
    constexpr int kRowsOnce = kWideAThreads / kUnits;  // rows that the threads bring at a time
    constexpr int kRowsEach = kWideARows / kRowsOnce;  // rows that a thread brings
    T* ring = dynamic_shared<T>();
    const int across = p.cout / kWideAColumns;
    const int column0 = block_x() % across * kWideAColumns;
    const int64_t pixel0 = int64_t(block_x() / across) * kWideARows;
    const int tap_steps = ceil_div(p.cin, 16), steps = tap_steps * p.kernel_t;
    const int chunks = ceil_div(steps, kWideASteps), reach = p.kernel_t / 2;

    const int unit = thread_x() % kUnits, row0 = thread_x() / kUnits;
    int frame[kRowsEach];  // of every row that this thread brings
    SF_UNROLL
    for (int i = 0; i < kRowsEach; ++i) {
        const int64_t pixel = pixel0 + row0 + i * kRowsOnce;
        frame[i] = pixel < p.pixels ? static_cast<int>(pixel / p.frame_pixels % p.frames) : -p.frames - reach;
    }
    auto fetch = [&](int chunk) {
        if (chunk < chunks) {
            T* to = ring + chunk % kWideAStages * kWideAStage;
            const int step = chunk * kWideASteps + unit / 2;
            const int tap = step / tap_steps, channel = (step - tap * tap_steps) * 16 + unit % 2 * 8;
            const bool has = step < steps && channel < p.cin;
            const T* from =
                p.x + (pixel0 + row0 + int64_t(tap - reach) * p.frame_pixels) * p.x_pitch + channel;
            SF_UNROLL
            for (int i = 0; i < kRowsEach; ++i) {
                const int f = frame[i] + tap - reach;
                const bool valid = has && f >= 0 && f < p.frames;
                cp_async16(to + (row0 + i * kRowsOnce) * kWideAPitch + 8 * unit,
                           valid ? from + i * kRowsOnce * p.x_pitch : p.x, valid);
            }
            T* weights = to + kWideARows * kWideAPitch;
            constexpr int kStepUnits = 16 * kWideAColumns / 8;
            SF_UNROLL
            for (int i = 0; i < kWideASteps * kStepUnits / kWideAThreads; ++i) {
                const int at = thread_x() + i * kWideAThreads;
                const int s = chunk * kWideASteps + at / kStepUnits;
                const bool valid = s < steps;
                cp_async16(weights + 8 * at,
                           valid ? p.weights + 16 * (int64_t(s) * p.cout + column0) + 8 * (at % kStepUnits)
                                 : p.weights,
                           valid);
            }
        }
        cp_async_commit();
    };
    SF_UNROLL
    for (int i = 0; i < kWideAStages - 1; ++i) fetch(i);

    float acc[2][8][4];
    tile::clear(acc);
    const int row = 32 * warp() + lane() % 16;
    for (int chunk = 0; chunk < chunks; ++chunk) {
        cp_async_wait<kWideAStages - 2>();
        syncthreads();
        fetch(chunk + kWideAStages - 1);
        const T* stage = ring + chunk % kWideAStages * kWideAStage;
        const T* rows[2] = {stage + row * kWideAPitch + lane() / 16 * 8,
                            stage + (row + 16) * kWideAPitch + lane() / 16 * 8};
        SF_UNROLL
        for (int s = 0; s < kWideASteps; ++s) {
            tile::multiply16<T, 2, 8>(acc, rows, stage + kWideARows * kWideAPitch + s * 16 * kWideAColumns);
            rows[0] += 16;
            rows[1] += 16;
        }
    }
    const int channel0 = column0 + lane() % 4 * 8;
    const Vec<float, 8> shift[2] = {load_run<8>(p.shift + channel0), load_run<8>(p.shift + channel0 + 32)};
    SF_UNROLL
    for (int m = 0; m < 2; ++m) {
        SF_UNROLL
        for (int half = 0; half < 2; ++half) {
            const int64_t pixel = pixel0 + 32 * warp() + 16 * m + 8 * half + lane() / 4;
            if (pixel < p.pixels) {
                SF_UNROLL
                for (int q = 0; q < 2; ++q) {
                    store_result(p.out + pixel * p.out_pitch + channel0 + 32 * q,
                                 tile::finished<T>(tile::row_of<4>(acc[m], half, 4 * q), shift[q]));
                }
            }
        }
    }
}

// --- conv_b, conv_c ----------------------------------------------------------------------------------------

template <class T>
struct BlockWideRestParams {
    const T* inner;  // conv_a's result
    const T* x;      // the block's input
    T* out;
    T* following;         // the next block's conv_a, if it is chained
    const T* weights;     // packed: b, then for every 64 channels c, the shortcut's and the next conv_a's
    const float* shifts;  // of b, of c with the shortcut's, of the next conv_a
    int64_t inner_pitch, x_pitch, out_pitch, following_pitch;
    int height, width, out_height, out_width;
    int cin, cout, stride, dilation;
    int tile_h, tile_w;
};

constexpr int kWideRestThreads = 128, kWideRestStages = 3, kWideRestColumns = 64;

// Stages of the shortcut's weights for 64 channels of the result.
SF_HOST_DEVICE constexpr int wide_rest_shortcut_stages(int inner, int cin) {
    return ceil_div(ceil_div(cin, 16), inner / 16);
}
// Elements of a stage: four steps of conv_b or of the next conv_a, or 64 channels of conv_c.
SF_HOST_DEVICE constexpr int wide_rest_stage(int inner) {
    return 64 * inner;
}
SF_HOST_DEVICE int wide_rest_stages(int inner, int cin, int cout, bool shortcut, bool chained) {
    const int each = 1 + (shortcut ? wide_rest_shortcut_stages(inner, cin) : 0) + (chained ? 1 : 0);
    return 9 * inner / 64 + ceil_div(cout, kWideRestColumns) * each;
}
// Whether conv_b's result waits in shared memory, because the next conv_a's sums take its registers.
SF_HOST_DEVICE constexpr bool wide_rest_keeps(int inner, int rows, bool chained) {
    return chained && inner == 128 && rows == 128;
}

struct BlockWideRestShared {
    int halo_h, halo_w, halo, x_pitch;
    int at_maps, at_middle, at_window, at_out;  // bytes; the ring of stages comes first
    int64_t bytes;
};
// rows: output pixels of a block of threads, 64 or 128.
SF_HOST_DEVICE BlockWideRestShared block_wide_rest_shared(int inner, int cin, bool shortcut, bool chained,
                                                          int rows, int stride, int dilation, int tile_h,
                                                          int tile_w) {
    BlockWideRestShared s;
    s.halo_h = (tile_h - 1) * stride + 2 * dilation + 1;
    s.halo_w = (tile_w - 1) * stride + 2 * dilation + 1;
    s.halo = s.halo_h * s.halo_w;
    s.x_pitch = tile::row_pitch(round_up(cin, 16));
    // The shortcut's operand, or 64 channels of the residual, and conv_c's operand take the place of conv_a's
    // result when conv_b is done.
    const int64_t maps = int64_t(s.halo) * tile::row_pitch(inner) * 2;
    const int64_t operand = int64_t(rows) * (shortcut ? s.x_pitch : kWideRestColumns) * 2;
    const int64_t operands =
        operand + (wide_rest_keeps(inner, rows, chained) ? int64_t(rows) * inner * 2 : 0);
    int64_t at = int64_t(kWideRestStages) * wide_rest_stage(inner) * 2;
    s.at_maps = static_cast<int>(at);
    s.at_middle = static_cast<int>(at + operand);
    at += maps > operands ? maps : operands;
    s.at_window = static_cast<int>(at);
    at += 4 * rows;
    s.at_out = static_cast<int>(at);
    s.bytes = at + 4 * rows;
    return s;
}

// M: tensor-core tiles of 16 output pixels of each of the four warps. Chained: with the next block's conv_a.
template <class T, int C, int M, bool Shortcut, bool Chained>
SF_KERNEL SF_LAUNCH_BOUNDS(kWideRestThreads,
                           C == 64 && !(Chained && M == 2)
                               ? 3
                               : 2) void block_wide_rest_kernel(const BlockWideRestParams<T> p) {
    constexpr int kRows = 64 * M, kTiles = C / 8, kPitch = tile::row_pitch(C), kStage = wide_rest_stage(C);
    constexpr int kSteps = C / 16;                     // of a stage of conv_c
    constexpr int kNextSteps = kWideRestColumns / 16;  // of a stage of the next conv_a
    constexpr bool kKeeps = wide_rest_keeps(C, kRows, Chained);
    const BlockWideRestShared s =
        block_wide_rest_shared(C, p.cin, Shortcut, Chained, kRows, p.stride, p.dilation, p.tile_h, p.tile_w);
    unsigned char* shared = dynamic_shared<unsigned char>();
    T* ring = reinterpret_cast<T*>(shared);
    T* maps = reinterpret_cast<T*>(shared + s.at_maps);
    int* window = reinterpret_cast<int*>(shared + s.at_window);  // output pixel -> first pixel of its window
    int* out_at = reinterpret_cast<int*>(shared + s.at_out);     // output pixel -> index in the frame, or -1

    const int tiles_w = ceil_div(p.out_width, p.tile_w), tiles_h = ceil_div(p.out_height, p.tile_h);
    int block = block_x();
    const int out_x = block % tiles_w * p.tile_w;
    block /= tiles_w;
    const int out_y = block % tiles_h * p.tile_h;
    const int64_t frame = block / tiles_h;  // of all clips
    const T* inner = p.inner + frame * p.height * p.width * p.inner_pitch;
    const T* x = p.x + frame * p.height * p.width * p.x_pitch;
    T* out = p.out + frame * p.out_height * p.out_width * p.out_pitch;

    const int stages = wide_rest_stages(C, p.cin, p.cout, Shortcut, Chained);
    auto fetch = [&](int stage) {
        if (stage < stages) {
            T* to = ring + stage % kWideRestStages * kStage;
            const T* from = p.weights + int64_t(stage) * kStage;
            SF_UNROLL
            for (int i = 0; i < kStage / 8 / kWideRestThreads; ++i) {
                const int at = 8 * (thread_x() + i * kWideRestThreads);
                cp_async16(to + at, from + at);
            }
        }
        cp_async_commit();
    };
    for (int i = thread_x(); i < s.halo * (C / 8); i += kWideRestThreads) {
        const int pixel = i / (C / 8), channel = i % (C / 8) * 8;
        const int y = out_y * p.stride - p.dilation + pixel / s.halo_w;
        const int v = out_x * p.stride - p.dilation + pixel % s.halo_w;
        const bool valid = y >= 0 && y < p.height && v >= 0 && v < p.width;
        cp_async16(maps + pixel * kPitch + channel,
                   valid ? inner + (int64_t(y) * p.width + v) * p.inner_pitch + channel : inner, valid);
    }
    tile::place<kWideRestThreads>(window, out_at, kRows, s.halo_w, out_y, out_x, p);
    SF_UNROLL
    for (int i = 0; i < kWideRestStages - 1; ++i) fetch(i);  // the first group holds the maps as well
    syncthreads();

    const int row0 = 16 * M * warp();
    int stage = 0;
    // Makes the next stage readable and the one after the next on its way.
    auto next_stage = [&]() -> const T* {
        cp_async_wait<kWideRestStages - 2>();
        syncthreads();
        fetch(stage + kWideRestStages - 1);
        return ring + stage++ % kWideRestStages * kStage;
    };

    // conv_b's result: in registers, or every lane's own vectors of it in shared memory.
    uint32_t middle[kSteps][M][4];
    uint32_t* kept =
        reinterpret_cast<uint32_t*>(shared + s.at_middle) + 4 * (warp() * M * kSteps * 32 + lane());
    {
        float acc[M][kTiles][4];
        tile::clear(acc);
        const T* rows[M];
        SF_UNROLL
        for (int m = 0; m < M; ++m) {
            rows[m] = maps + window[row0 + 16 * m + lane() % 16] * kPitch + lane() / 16 * 8;
        }
        for (int tap = 0; tap < 9; ++tap) {
            const int tap_at = (tap / 3 * s.halo_w + tap % 3) * p.dilation * kPitch;
            SF_NO_UNROLL
            for (int c = 0; c < C; c += 64) {
                const T* weights = next_stage();
                SF_UNROLL
                for (int k = 0; k < 4; ++k) {
                    const T* shifted[M];
                    SF_UNROLL
                    for (int m = 0; m < M; ++m) shifted[m] = rows[m] + tap_at + c + 16 * k;
                    tile::multiply16<T, M, kTiles>(acc, shifted, weights + k * 16 * C);
                }
            }
        }
        tile::to_operand<T>(middle, acc, p.shifts);
    }
    syncthreads();  // conv_b is done with the maps
    if constexpr (kKeeps) {
        SF_UNROLL
        for (int m = 0; m < M; ++m) {
            SF_UNROLL
            for (int k = 0; k < kSteps; ++k) {
                store(kept + (m * kSteps + k) * 32 * 4, bit_cast<Vec<uint32_t, 4>>(middle[k][m]));
            }
        }
    }
    if constexpr (Shortcut) {
        const int units = s.x_pitch / 8;
        for (int i = thread_x(); i < kRows * units; i += kWideRestThreads) {
            const int row = i / units, channel = i % units * 8, pixel = out_at[row];
            const bool valid = pixel >= 0 && channel < p.cin;
            const int64_t from =
                (int64_t(pixel / p.out_width) * p.stride * p.width + pixel % p.out_width * p.stride) *
                p.x_pitch;
            cp_async16(maps + row * s.x_pitch + channel, valid ? x + from + channel : x, valid);
        }
        // With the group that the next call of next_stage() waits for last.
        cp_async_commit();
        cp_async_wait<0>();
    }
    const int group = lane() / 4, quarter = lane() % 4;
    // The residual: every lane's own vectors of it, on their way while the products are formed. In shared memory, for
    // beside the sums there are no registers for it.
    T* residual = maps + 8 * (4 * M * 32 * warp() + lane());
    auto fetch_residual = [&](int at, int64_t pixel, int channel) {
        if (pixel >= 0 && channel < p.cout) {
            cp_async16(residual + at * 32 * 8, x + pixel * p.x_pitch + channel);
        }
    };
    if constexpr (!Shortcut) {
        SF_UNROLL
        for (int i = 0; i < 4 * M; ++i) {
            const int row = row0 + 8 * (i / 2) + group;
            fetch_residual(i, out_at[row], 32 * (i % 2) + 8 * quarter);
        }
    }
    float following[Chained ? M : 1][Chained ? kTiles : 1][4];
    if constexpr (Chained) tile::clear(following);
    for (int n = 0; n < p.cout; n += kWideRestColumns) {
        float acc[M][8][4];
        tile::clear(acc);
        const T* weights = next_stage();
        SF_UNROLL
        for (int k = 0; k < kSteps; ++k) {
            if constexpr (kKeeps) {
                SF_UNROLL
                for (int m = 0; m < M; ++m) {
                    const auto v = load<4>(kept + (m * kSteps + k) * 32 * 4);
                    SF_UNROLL
                    for (int i = 0; i < 4; ++i) middle[k][m][i] = v[i];
                }
            }
            tile::multiply_operand<T>(acc, middle[k], weights + k * 16 * kWideRestColumns);
        }
        if constexpr (Shortcut) {
            const T* rows[M];
            SF_UNROLL
            for (int m = 0; m < M; ++m) {
                rows[m] = maps + (row0 + 16 * m + lane() % 16) * s.x_pitch + lane() / 16 * 8;
            }
            const int x_steps = ceil_div(p.cin, 16);
            for (int done = 0; done < x_steps; done += kSteps) {
                weights = next_stage();
                const int some = x_steps - done < kSteps ? x_steps - done : kSteps;
                for (int k = 0; k < some; ++k) {
                    tile::multiply16<T, M, 8>(acc, rows, weights + k * 16 * kWideRestColumns);
                    SF_UNROLL
                    for (int m = 0; m < M; ++m) rows[m] += 16;
                }
            }
        }
        // The values stored are the next conv_a's products: of step 2 q + i the
        // first operand's are values 4 i to 4 i + 3. Zeros where nothing is
        // stored: the channels behind the last would be NaN for infinite ones.
        uint32_t operand[kNextSteps][M][4];
        Vec<float, 8> shift[2];
        SF_UNROLL
        for (int q = 0; q < 2; ++q) shift[q] = load_run<8>(p.shifts + C + n + 32 * q + 8 * quarter);
        if constexpr (!Shortcut) cp_async_wait<0>();
        SF_UNROLL
        for (int m = 0; m < M; ++m) {
            SF_UNROLL
            for (int half = 0; half < 2; ++half) {
                const int64_t pixel = out_at[row0 + 16 * m + 8 * half + group];
                SF_UNROLL
                for (int q = 0; q < 2; ++q) {
                    const int channel = n + 32 * q + 8 * quarter, at = 4 * m + 2 * half + q;
                    Vec<uint32_t, 4> words = {};
                    if (pixel >= 0 && channel < p.cout) {
                        const auto sum = tile::row_of<4>(acc[m], half, 4 * q);
                        Vec<T, 8> v;
                        if constexpr (Shortcut) {
                            v = tile::finished<T>(sum, shift[q]);
                        } else {
                            v = tile::finished<T>(sum, shift[q], load<8>(residual + at * 32 * 8));
                        }
                        store_result(out + pixel * p.out_pitch + channel, v);
                        words = bit_cast<Vec<uint32_t, 4>>(v);
                        if constexpr (!Shortcut) fetch_residual(at, pixel, channel + kWideRestColumns);
                    }
                    if constexpr (Chained) {
                        SF_UNROLL
                        for (int i = 0; i < 4; ++i) operand[2 * q + i / 2][m][i % 2 * 2 + half] = words[i];
                    }
                }
            }
        }
        if constexpr (Chained) {
            weights = next_stage();
            SF_UNROLL
            for (int k = 0; k < kNextSteps; ++k) {
                tile::multiply_operand<T>(following, operand[k], weights + k * 16 * C);
            }
        }
    }
    if constexpr (Chained) {
        T* to = p.following + frame * p.out_height * p.out_width * p.following_pitch;
        const float* shifts = p.shifts + C + round_up(p.cout, kWideRestColumns) + 8 * quarter;
        SF_UNROLL
        for (int q = 0; q < C / 32; ++q) {
            const auto shift = load_run<8>(shifts + 32 * q);
            SF_UNROLL
            for (int m = 0; m < M; ++m) {
                SF_UNROLL
                for (int half = 0; half < 2; ++half) {
                    const int64_t pixel = out_at[row0 + 16 * m + 8 * half + group];
                    if (pixel >= 0) {
                        store_result(to + pixel * p.following_pitch + 32 * q + 8 * quarter,
                                     tile::finished<T>(tile::row_of<4>(following[m], half, 4 * q), shift));
                    }
                }
            }
        }
    }
}

}  // namespace slowfast::cuda
