// A narrow residual block (Fast pathway) in one kernel: relu(c(relu(b(relu(a(x))))) + shortcut(x)).
//
// A block of threads owns a tile of output pixels of one clip and marches through a segment of its frames.
// Shared memory holds a ring of input frames with the tile's halo, two frames of conv_a's result over the
// halo, and all weights. In phase u, between two barriers, some warps compute conv_a of frame u + 1 while
// others compute conv_b and conv_c of frame u, and the next frame of the ring is on its way. conv_b's result
// stays in registers: it is the first operand of conv_c. The residual, or the operand of the shortcut's
// convolution, is still in the ring.
#pragma once

#include "cuda/block_mma.cuh"

namespace slowfast::cuda {

template <class T>
struct BlockNarrowParams {
    const T* x;
    T* out;
    const T* weights;            // packed: a, b, c and the shortcut's
    const float* shifts;         // of a, b, and c with the shortcut's
    int64_t x_pitch, out_pitch;  // elements from pixel to pixel
    int frames, height, width, out_height, out_width;
    int cin, cout, kernel_t, stride, dilation;
    int tile_h, tile_w, segment;  // output pixels, frames
};

// Where things lie in shared memory, in bytes from its start; multiples of 16.
struct BlockNarrowShared {
    int halo_h, halo_w, halo, rows;  // pixels of the halo; output pixels rounded up to whole tasks
    int ring, x_pitch, x_frame;      // frames; elements
    int a_frame;                     // elements
    int weight_elements, wide;       // wide: cout rounded up to 32
    int at_ring, at_a, at_weights, at_shifts, at_inside, at_window, at_out;
    int64_t bytes;
};

constexpr int kNarrowRows = 32;  // of a task: two tensor-core tiles

SF_HOST_DEVICE BlockNarrowShared block_narrow_shared(int inner, int cin, int cout, bool shortcut,
                                                     int kernel_t, int stride, int dilation, int tile_h,
                                                     int tile_w) {
    BlockNarrowShared s;
    s.halo_h = (tile_h - 1) * stride + 2 * dilation + 1;
    s.halo_w = (tile_w - 1) * stride + 2 * dilation + 1;
    s.halo = s.halo_h * s.halo_w;
    s.rows = round_up(tile_h * tile_w, kNarrowRows);
    // The frames that a phase reads, and the one on its way.
    s.ring = (kernel_t > 2 ? kernel_t : 2) + 1;
    s.x_pitch = tile::row_pitch(cin);
    s.x_frame = s.halo * s.x_pitch;
    s.a_frame = s.halo * tile::row_pitch(inner);
    s.wide = round_up(cout, 32);
    const int x_steps = ceil_div(cin, 16);
    s.weight_elements = 16 * (kernel_t * x_steps * inner + ceil_div(9 * inner, 16) * inner +
                              (ceil_div(inner, 16) + (shortcut ? x_steps : 0)) * s.wide);
    s.at_ring = 0;
    int64_t at = int64_t(s.ring) * s.x_frame * 2;
    s.at_a = static_cast<int>(at);
    at += int64_t(2) * s.a_frame * 2;
    s.at_weights = static_cast<int>(at);
    at += int64_t(s.weight_elements) * 2;
    s.at_shifts = static_cast<int>(at);
    at += 4 * (2 * inner + s.wide);
    s.at_window = static_cast<int>(at);
    at += 4 * s.rows;
    s.at_out = static_cast<int>(at);
    at += 4 * s.rows;
    s.at_inside = static_cast<int>(at);
    at += round_up(4 * s.halo, 16);
    s.bytes = at;
    return s;
}

SF_HOST_DEVICE constexpr int block_narrow_threads(int inner) {
    return inner >= 32 ? 256 : 128;
}
SF_HOST_DEVICE constexpr int block_narrow_resident(int inner) {
    return inner >= 32 ? 1 : inner >= 16 ? 3 : 4;
}

template <class T, int C, bool Shortcut>
SF_KERNEL SF_LAUNCH_BOUNDS(block_narrow_threads(C),
                           block_narrow_resident(C)) void block_narrow_kernel(const BlockNarrowParams<T> p) {
    constexpr int kThreads = block_narrow_threads(C), kWarps = kThreads / kWarp;
    constexpr int kTiles = C / 8, kPitch = tile::row_pitch(C), kStep = tile::step_elements(C);
    constexpr int kM = kNarrowRows / 16;
    const BlockNarrowShared s =
        block_narrow_shared(C, p.cin, p.cout, Shortcut, p.kernel_t, p.stride, p.dilation, p.tile_h, p.tile_w);
    unsigned char* shared = dynamic_shared<unsigned char>();
    T* ring = reinterpret_cast<T*>(shared + s.at_ring);
    T* a_result = reinterpret_cast<T*>(shared + s.at_a);
    T* weights = reinterpret_cast<T*>(shared + s.at_weights);
    float* shifts = reinterpret_cast<float*>(shared + s.at_shifts);
    int* window = reinterpret_cast<int*>(shared + s.at_window);  // output pixel -> first pixel of its window
    int* out_at = reinterpret_cast<int*>(shared + s.at_out);     // output pixel -> index in the frame, or -1
    int* inside = reinterpret_cast<int*>(shared + s.at_inside);  // halo pixel -> index in the frame, or -1

    // --- Which tile
    const int tiles_w = ceil_div(p.out_width, p.tile_w), tiles_h = ceil_div(p.out_height, p.tile_h);
    const int segments = ceil_div(p.frames, p.segment);
    int block = block_x();
    const int out_x = block % tiles_w * p.tile_w;
    block /= tiles_w;
    const int out_y = block % tiles_h * p.tile_h;
    block /= tiles_h;
    const int first = block % segments * p.segment;
    const int64_t clip = block / segments;
    const int last = first + p.segment < p.frames ? first + p.segment : p.frames;
    const int reach = p.kernel_t / 2;
    const T* x = p.x + clip * p.frames * p.height * p.width * p.x_pitch;
    T* out = p.out + clip * p.frames * p.out_height * p.out_width * p.out_pitch;

    for (int i = thread_x(); i < s.halo; i += kThreads) {
        const int y = out_y * p.stride - p.dilation + i / s.halo_w;
        const int v = out_x * p.stride - p.dilation + i % s.halo_w;
        inside[i] = y >= 0 && y < p.height && v >= 0 && v < p.width ? y * p.width + v : -1;
    }
    tile::place<kThreads>(window, out_at, s.rows, s.halo_w, out_y, out_x, p);
    for (int i = thread_x(); i < s.weight_elements / 8; i += kThreads) {
        cp_async16(weights + 8 * i, p.weights + 8 * i);
    }
    for (int i = thread_x(); i < 2 * C + s.wide; i += kThreads) shifts[i] = p.shifts[i];
    syncthreads();

    const int units = p.cin / 8;
    int first_row = thread_x() / units, first_unit = thread_x() % units;
    if (units == 4) {  // eight lanes bring half of four rows, two apart, which are in different banks
        first_row = 8 * warp() + lane() / 2 % 4 * 2 + lane() / 8 % 2;
        first_unit = lane() / 16 * 2 + lane() % 2;
    }
    const int row_step = kThreads / units, unit_step = kThreads % units;
    auto fetch = [&](int frame, int place) {
        T* to = ring + place * s.x_frame;
        const T* from = x + int64_t(frame) * p.height * p.width * p.x_pitch;
        int unit = first_unit;
        for (int row = first_row; row < s.halo; row += row_step) {
            const int pixel = inside[row];
            cp_async16(to + row * s.x_pitch + 8 * unit, pixel < 0 ? x : from + pixel * p.x_pitch + 8 * unit,
                       pixel >= 0);
            unit += unit_step;
            if (unit >= units) {
                unit -= units;
                ++row;
            }
        }
    };
    // Place of a frame in the ring, counted on from one that is known: no division in the loop.
    auto onward = [&](int place, int frames) {
        place += frames;
        return place >= s.ring ? place - s.ring : place;
    };
    int place = (first - reach + s.ring * reach) % s.ring;  // of the first frame that conv_a reads, below
    for (int i = 0; i <= 2 * reach; ++i) {
        const int frame = first - reach + i;
        if (frame >= 0 && frame < p.frames) fetch(frame, onward(place, i));
    }
    cp_async_commit();

    const int x_steps = ceil_div(p.cin, 16);
    const T* weights_b = weights + p.kernel_t * x_steps * kStep;
    const T* weights_c = weights_b + ceil_div(9 * C, 16) * kStep;
    const T* weights_s = weights_c + ceil_div(C, 16) * 16 * s.wide;
    const int a_tasks = ceil_div(s.halo, kNarrowRows), b_tasks = s.rows / kNarrowRows;
    const int group = reversed_row(lane() / 4), quarter = lane() % 4;
    const int load_row = lane() / 8 % 2 * 8 + reversed_row(lane() % 8);  // of a tile of 16

    // Of 32 pixels of the halo, for frame u + 1. place: of the first frame that it reads, in the ring.
    auto conv_a = [&](int row0, int u, int place) {
        constexpr int kJoined = tile::joined(C);
        T* result = a_result + (u + 1) % 2 * s.a_frame;
        int at[kM];
        SF_UNROLL
        for (int m = 0; m < kM; ++m) {
            const int row = row0 + 16 * m + load_row;
            at[m] = (row < s.halo ? row : s.halo - 1) * s.x_pitch;
        }
        float acc[kM][kTiles][4];
        tile::begin(acc, load_run<2 * kJoined>(shifts + 2 * kJoined * quarter));
        for (int tap = 0; tap < p.kernel_t; ++tap) {
            const int frame = u + 1 + tap - reach;
            if (frame < 0 || frame >= p.frames) continue;
            const T* x_frame = ring + onward(place, tap) * s.x_frame;
            const T* rows[kM];
            SF_UNROLL
            for (int m = 0; m < kM; ++m) rows[m] = x_frame + at[m];
            tile::multiply_channels<T, kM, kTiles>(acc, rows, p.cin, weights + tap * x_steps * kStep, kStep);
        }
        SF_UNROLL
        for (int m = 0; m < kM; ++m) {
            SF_UNROLL
            for (int half = 0; half < 2; ++half) {
                const int row = row0 + 16 * m + 8 * half + group;
                if (row >= s.halo) continue;
                // The padding of conv_b is zero, whatever conv_a makes of pixels outside.
                const bool in = inside[row] >= 0;
                const auto v = relu_from_float<T>(tile::row_of<kJoined>(acc[m], half));
                store(result + row * kPitch + 2 * kJoined * quarter, in ? v : Vec<T, 2 * kJoined>{});
            }
        }
    };
    // Of 32 output pixels of frame u.
    using Middle = uint32_t[(kTiles + 1) / 2][kM][4];  // conv_b's result
    auto conv_b = [&](Middle& middle, int row0, int u) {
        const T* a_frame = a_result + (u + 2) % 2 * s.a_frame;
        float acc[kM][kTiles][4];
        tile::clear(acc);
        const T* rows[kM];
        SF_UNROLL
        for (int m = 0; m < kM; ++m) rows[m] = a_frame + window[row0 + 16 * m + load_row] * kPitch;
        const int step_y = p.dilation * s.halo_w * kPitch, step_x = p.dilation * kPitch;
        if constexpr (C == 8) {
            // Two taps are 16 products.
            SF_UNROLL
            for (int pair = 0; pair < 4; ++pair) {
                const int even = 2 * pair, odd = even + 1;
                const int tap_at =
                    lane() < 16 ? even / 3 * step_y + even % 3 * step_x : odd / 3 * step_y + odd % 3 * step_x;
                const T* shifted[kM];
                SF_UNROLL
                for (int m = 0; m < kM; ++m) shifted[m] = rows[m] + tap_at;
                tile::multiply16<T, kM, kTiles>(acc, shifted, weights_b + pair * kStep);
            }
            SF_UNROLL
            for (int m = 0; m < kM; ++m) rows[m] += 2 * step_y + 2 * step_x;
            tile::multiply8<T, kM, kTiles>(acc, rows, weights_b + 4 * kStep);
        } else {
            SF_UNROLL
            for (int m = 0; m < kM; ++m) rows[m] += lane() / 16 * 8;
            SF_UNROLL
            for (int tap = 0; tap < 9; ++tap) {
                SF_UNROLL
                for (int c = 0; c < C / 16; ++c) {
                    const T* shifted[kM];
                    SF_UNROLL
                    for (int m = 0; m < kM; ++m) {
                        shifted[m] = rows[m] + tap / 3 * step_y + tap % 3 * step_x + 16 * c;
                    }
                    tile::multiply16<T, kM, kTiles>(acc, shifted, weights_b + (tap * (C / 16) + c) * kStep);
                }
            }
        }
        tile::to_operand<T>(middle, acc, shifts + C);
    };
    // x_frame: centres of the windows.
    auto conv_c = [&](const Middle& middle, int row0, const T* x_frame, T* out_frame) {
        for (int n = 0; n < s.wide; n += 32) {
            const int channel = n + 8 * quarter;
            float acc[kM][4][4];
            tile::begin(acc, load_run<8>(shifts + 2 * C + channel));
            SF_UNROLL
            for (int k = 0; k < ceil_div(C, 16); ++k) {
                tile::multiply_operand<T, C == 8 ? 8 : 16>(acc, middle[k], weights_c + 16 * (k * s.wide + n));
            }
            if constexpr (Shortcut) {
                const T* rows[kM];
                SF_UNROLL
                for (int m = 0; m < kM; ++m) {
                    rows[m] = x_frame + window[row0 + 16 * m + load_row] * s.x_pitch;
                }
                tile::multiply_channels<T, kM, 4>(acc, rows, p.cin, weights_s + 16 * n, 16 * s.wide);
            }
            if (channel >= p.cout) continue;
            SF_UNROLL
            for (int m = 0; m < kM; ++m) {
                SF_UNROLL
                for (int half = 0; half < 2; ++half) {
                    const int row = row0 + 16 * m + 8 * half + group;
                    const int pixel = out_at[row];
                    if (pixel < 0) continue;
                    const auto v = tile::row_of<4>(acc[m], half);
                    T* to = out_frame + pixel * p.out_pitch + channel;
                    if constexpr (Shortcut) {
                        store_result(to, relu_from_float<T>(v));
                    } else {
                        store_result(
                            to, tile::finished<T>(v, load<8>(x_frame + window[row] * s.x_pitch + channel)));
                    }
                }
            }
        }
    };

    for (int u = first - 1; u < last; ++u, place = onward(place, 1)) {
        cp_async_wait<0>();
        syncthreads();
        const bool more = u + 1 < last;  // conv_a of the next frame
        if (u + 2 < last && u + 2 + reach < p.frames) fetch(u + 2 + reach, onward(place, p.kernel_t));
        cp_async_commit();

        const int a_count = more ? a_tasks : 0;
        const int count = a_count + (u >= first ? b_tasks : 0);
        for (int task = warp(); task < count; task += kWarps) {
            if (task < a_count) {
                conv_a(task * kNarrowRows, u, place);
                continue;
            }
            const int row0 = (task - a_count) * kNarrowRows;
            Middle middle;
            conv_b(middle, row0, u);
            const T* x_frame = ring + onward(place, reach > 0 ? reach - 1 : s.ring - 1) * s.x_frame +
                               p.dilation * (s.halo_w + 1) * s.x_pitch;
            T* out_frame = out + int64_t(u) * p.out_height * p.out_width * p.out_pitch;
            conv_c(middle, row0, x_frame, out_frame);
        }
    }
}

}  // namespace slowfast::cuda
