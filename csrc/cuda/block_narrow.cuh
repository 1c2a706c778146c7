// A narrow residual block (Fast pathway) in one kernel: relu(c(relu(b(relu(a(x))))) + shortcut(x)).
//
// A block of threads owns a tile of output pixels of one clip and marches through a segment of its frames.
// Shared memory holds a ring of input frames with the tile's halo, two frames of conv_a's result over the
// halo, and all weights. In phase u, between two barriers, some warps compute conv_a of frame u + 1 while
// others compute conv_b and conv_c of frame u, and the next frame of the ring is on its way. conv_b's result
// stays in registers: it is the first operand of conv_c. The residual, or the operand of the shortcut's
// convolution, is still in the ring.
//
// A rolling conv_a of three taps reads each input frame once: its products with all taps go to three sets of
// sums, which move on by one frame from one input frame to the next and stay in the registers of the warp that
// owns the pixels. Other temporal kernels, and halos of more pixels than the registers have room for, are summed
// tap by tap from the ring.
//
// The ring of a rolling block has four frames, not three, because of the residual: while frame u + 2 is added to
// the sums and frame u + 3 is on its way, frame u is still added to conv_c's result and frame u + 1 waits for
// that. A ring of three would need a second barrier in each phase, behind which the next frame sets out.
#pragma once

#include "cuda/block_mma.cuh"

namespace slowfast::cuda {

// Where things lie in shared memory, in bytes from its start (multiples of 16), and what else is the same for all
// threads. The host counts it: what the kernel finds among its parameters takes no registers.
struct BlockNarrowShared {
    int halo_h, halo_w, halo, rows;  // pixels of the halo; output pixels rounded up
    int ring, x_pitch, x_frame;      // frames; elements
    int a_frame;                     // elements
    int wide;                        // cout rounded up to 32
    // Elements of the weights: of a tap of conv_a, where those of the others begin, and of all.
    int weights_tap, weights_b, weights_c, weights_shortcut, weight_elements;
    int b_tiles, centre;  // tensor-core tiles of output pixels; centre of a window, pixels from its first
    // 16-byte units of an input pixel, and steps from one that a thread fetches to its next.
    int units, row_step, unit_step;
    tile::Swizzle x_swizzle, a_swizzle;
    int at_ring, at_a, at_weights, at_shifts, at_inside, at_window, at_out;
    int64_t bytes;
};

constexpr int kNarrowRows = 32;      // that a warp has of conv_b and conv_c at a time: two tensor-core tiles
constexpr int kNarrowTaps = 3;       // of a rolling conv_a
constexpr int kNarrowRolling = 256;  // pixels of the largest halo of one

SF_HOST_DEVICE constexpr int block_narrow_threads(int inner) {
    return inner >= 16 ? 256 : 128;
}
SF_HOST_DEVICE constexpr int block_narrow_resident(int inner) {
    return inner >= 32 ? 1 : inner >= 16 ? 2 : 4;
}

inline BlockNarrowShared block_narrow_shared(int inner, int cin, int cout, bool shortcut, int kernel_t,
                                             int stride, int dilation, int tile_h, int tile_w) {
    BlockNarrowShared s;
    s.halo_h = (tile_h - 1) * stride + 2 * dilation + 1;
    s.halo_w = (tile_w - 1) * stride + 2 * dilation + 1;
    s.halo = s.halo_h * s.halo_w;
    s.rows = round_up(tile_h * tile_w, kNarrowRows);
    s.b_tiles = ceil_div(tile::line_rows(tile_h, tile_w, s.rows) * tile_h, 16);
    s.centre = dilation * (s.halo_w + 1);
    s.units = cin / 8;
    s.row_step = block_narrow_threads(inner) / s.units;
    s.unit_step = block_narrow_threads(inner) % s.units;
    // The frames that a phase reads, and the one on its way.
    s.ring = (kernel_t > 2 ? kernel_t : 2) + 1;
    s.x_pitch = tile::pixel_pitch(cin);
    s.x_frame = s.halo * s.x_pitch;
    // The windows' pixels are `stride` apart.
    s.x_swizzle = tile::pixel_swizzle(cin, stride);
    s.a_swizzle = tile::pixel_swizzle(inner, stride);
    s.a_frame = s.halo * tile::row_pitch(inner);
    s.wide = round_up(cout, 32);
    const int x_steps = ceil_div(cin, 16);
    s.weights_tap = x_steps * tile::step_elements(inner);
    s.weights_b = kernel_t * s.weights_tap;
    s.weights_c = s.weights_b + ceil_div(9 * inner, 16) * tile::step_elements(inner);
    s.weights_shortcut = s.weights_c + ceil_div(inner, 16) * tile::step_elements(s.wide);
    s.weight_elements = s.weights_shortcut + (shortcut ? x_steps * tile::step_elements(s.wide) : 0);
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

template <class T>
struct BlockNarrowParams {
    const T* x;
    T* out;
    const T* weights;            // packed: a, b, c and the shortcut's
    const float* shifts;         // of a, b, and c with the shortcut's
    int64_t x_pitch, out_pitch;  // elements from pixel to pixel
    int64_t x_frame, out_frame;  // and from frame to frame
    int frames, height, width, out_height, out_width;
    int cin, cout, kernel_t, stride, dilation;
    int tile_h, tile_w, segment;  // output pixels, frames
    BlockNarrowShared shared;
};

template <class T, int C, bool Shortcut, bool Rolling>
SF_KERNEL SF_LAUNCH_BOUNDS(block_narrow_threads(C),
                           block_narrow_resident(C)) void block_narrow_kernel(const BlockNarrowParams<T> p) {
    constexpr int kThreads = block_narrow_threads(C), kWarps = kThreads / kWarp;
    constexpr int kTiles = C / 8, kPitch = tile::row_pitch(C), kStep = tile::step_elements(C);
    constexpr int kTaps = Rolling ? kNarrowTaps : 1;
    // Tiles of 16 pixels of the halo whose sums a warp holds, and how many of them follow one another: with many
    // channels two, which share the weights that are loaded, even if another warp then has none.
    constexpr int kHeld = kNarrowRolling / 16 / kWarps, kTogether = C >= 16 ? 2 : 1;
    const BlockNarrowShared& s = p.shared;
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
    const T* x = p.x + clip * p.frames * p.x_frame;
    T* out = p.out + clip * p.frames * p.out_frame;

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

    int first_row = thread_x() / s.units, first_unit = thread_x() % s.units;
    if (s.units == 4) {  // eight lanes bring half of four rows, two apart, which are in different banks
        first_row = 8 * warp() + lane() / 2 % 4 * 2 + lane() / 8 % 2;
        first_unit = lane() / 16 * 2 + lane() % 2;
    }
    auto fetch = [&](int frame, int place) {
        T* to = ring + place * s.x_frame;
        const T* from = x + frame * p.x_frame;
        int unit = first_unit;
        for (int row = first_row; row < s.halo; row += s.row_step) {
            const int pixel = inside[row];
            cp_async16(to + row * s.x_pitch + 8 * (unit ^ s.x_swizzle(row)),
                       pixel < 0 ? x : from + pixel * p.x_pitch + 8 * unit, pixel >= 0);
            unit += s.unit_step;
            if (unit >= s.units) {
                unit -= s.units;
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

    // Where this thread stands in its block, said anew in each phase: what follows from it is then computed where it
    // is used, instead of waiting in registers, which the sums need.
    uint32_t thread = thread_x();
    auto of_warp = [&] { return static_cast<int>(thread / kWarp); };
    auto of_lane = [&] { return static_cast<int>(thread % kWarp); };
    auto group = [&] { return reversed_row(of_lane() / 4); };
    auto quarter = [&] { return of_lane() % 4; };
    auto load_row = [&] { return of_lane() / 8 % 2 * 8 + reversed_row(of_lane() % 8); };  // of a tile of 16

    // Of conv_a. Where it rolls, sums[i] is of frame + reach - i, `frame` being the one that was added last.
    float sums[kTaps][kHeld][kTiles][4] = {};
    // First pixel of this warp's i-th tile of the halo.
    auto tile_row = [&](int i) {
        return 16 * ((i / kTogether * kWarps + of_warp()) * kTogether + i % kTogether);
    };
    // How many there are from the i-th on, kHeld at most.
    auto held_from = [&](int i) {
        int n = 0;
        while (n < kHeld && tile_row(i + n) < s.halo) ++n;
        return n;
    };
    auto begin_a = [&](float (&acc)[kHeld][kTiles][4]) {
        constexpr int kJoined = tile::joined(C);
        tile::begin(acc, load_run<2 * kJoined>(shifts + 2 * kJoined * quarter()));
    };
    // A frame's products for this warp's tiles from `from` on, with the taps at `tap_weights`, to the sums.
    auto add_to_a = [&](auto count, int from, const T* x_frame, const T* tap_weights, auto live) {
        constexpr int kM = decltype(count)::value;
        int rows[kM], swizzle[kM];
        SF_UNROLL
        for (int m = 0; m < kM; ++m) {
            const int row = tile_row(from + m) + load_row();
            rows[m] = (row < s.halo ? row : s.halo - 1) * s.x_pitch;
            swizzle[m] = s.x_swizzle(load_row());
        }
        tile::multiply_channels<T, kM>(sums, x_frame, rows, swizzle, p.cin, tap_weights, kStep, s.weights_tap,
                                       live);
    };
    // Of those tiles, for frame u, whose sums are complete.
    auto store_a = [&](int from, int u) {
        constexpr int kJoined = tile::joined(C);
        T* result = a_result + u % 2 * s.a_frame;
        SF_UNROLL
        for (int m = 0; m < kHeld; ++m) {
            SF_UNROLL
            for (int half = 0; half < 2; ++half) {
                const int row = tile_row(from + m) + 8 * half + group();
                if (row >= s.halo) continue;
                // The padding of conv_b is zero, whatever conv_a makes of pixels outside.
                const bool in = inside[row] >= 0;
                const auto v = relu_from_float<T>(tile::row_of<kJoined>(sums[kTaps - 1][m], half));
                const int channel = 2 * kJoined * quarter() ^ 8 * s.a_swizzle(8 * half);
                store(result + row * kPitch + channel, in ? v : Vec<T, 2 * kJoined>{});
            }
        }
    };
    // conv_a of frame u. place: of the first frame that it reads, in the ring.
    auto conv_a = [&](int u, int place) {
        if constexpr (Rolling) {
            // Of the first frame of the segment there are no sums yet.
            for (int i = u == first ? 0 : kTaps - 1; i < kTaps; ++i) {
                SF_UNROLL
                for (int tap = kTaps - 1; tap > 0; --tap) tile::copy(sums[tap], sums[tap - 1]);
                begin_a(sums[0]);
                const int frame = u - reach + i;
                if (frame < 0 || frame >= p.frames) continue;
                const T* x_frame = ring + onward(place, i) * s.x_frame;
                tile::with_count<kHeld>(held_from(0), [&](auto count) {
                    if (frame > first && frame + 1 < last) {
                        add_to_a(count, 0, x_frame, weights, [](int) { return true; });
                    } else {
                        // Sums of frames of other segments are left alone.
                        add_to_a(count, 0, x_frame, weights, [&](int tap) {
                            return frame + reach - tap >= first && frame + reach - tap < last;
                        });
                    }
                });
            }
            store_a(0, u);
        } else {
            for (int from = 0; tile_row(from) < s.halo; from += kHeld) {
                begin_a(sums[0]);
                for (int tap = 0; tap < p.kernel_t; ++tap) {
                    const int frame = u - reach + tap;
                    if (frame < 0 || frame >= p.frames) continue;
                    const T* x_frame = ring + onward(place, tap) * s.x_frame;
                    tile::with_count<kHeld>(held_from(from), [&](auto count) {
                        add_to_a(count, from, x_frame, weights + tap * s.weights_tap,
                                 [](int) { return true; });
                    });
                }
                store_a(from, u);
            }
        }
    };
    // Of kM tiles of 16 output pixels of frame u, from row0 on. middle: conv_b's result.
    auto conv_b = [&](auto& middle, int row0, int u) {
        constexpr int kM = sizeof(middle[0]) / sizeof(middle[0][0]);
        const T* a_frame = a_result + u % 2 * s.a_frame;
        float acc[kM][kTiles][4];
        tile::clear(acc);
        int pixels[kM];
        const T* rows[kM];
        SF_UNROLL
        for (int m = 0; m < kM; ++m) {
            pixels[m] = window[row0 + 16 * m + load_row()];
            rows[m] = a_frame + pixels[m] * kPitch;
        }
        const int step_y = p.dilation * s.halo_w, step_x = p.dilation;
        if constexpr (C == 8) {
            // Two taps are 16 products.
            SF_UNROLL
            for (int pair = 0; pair < 4; ++pair) {
                const int even = 2 * pair, odd = even + 1;
                const int tap_at = of_lane() < 16 ? even / 3 * step_y + even % 3 * step_x
                                                  : odd / 3 * step_y + odd % 3 * step_x;
                const T* shifted[kM];
                SF_UNROLL
                for (int m = 0; m < kM; ++m) shifted[m] = rows[m] + tap_at * kPitch;
                tile::multiply16<T, kM, kTiles>(acc, shifted, weights + s.weights_b + pair * kStep);
            }
            SF_UNROLL
            for (int m = 0; m < kM; ++m) rows[m] += (2 * step_y + 2 * step_x) * kPitch;
            tile::multiply8<T, kM, kTiles>(acc, rows, weights + s.weights_b + 4 * kStep);
        } else {
            SF_UNROLL
            for (int tap = 0; tap < 9; ++tap) {
                const int tap_at = tap / 3 * step_y + tap % 3 * step_x;  // pixels
                int unit[kM];
                SF_UNROLL
                for (int m = 0; m < kM; ++m) {
                    unit[m] = of_lane() / 16;
                    // Without a convolution in the shortcut there is no stride.
                    if constexpr (Shortcut) unit[m] ^= s.a_swizzle(pixels[m] + tap_at);
                }
                SF_UNROLL
                for (int c = 0; c < C / 16; ++c) {
                    const T* shifted[kM];
                    SF_UNROLL
                    for (int m = 0; m < kM; ++m) {
                        shifted[m] = rows[m] + tap_at * kPitch + 8 * unit[m] + 16 * c;
                    }
                    tile::multiply16<T, kM, kTiles>(acc, shifted,
                                                    weights + s.weights_b + (tap * (C / 16) + c) * kStep);
                }
            }
        }
        tile::to_operand<T>(middle, acc, shifts + C);
    };
    // The same pixels of the result.
    auto conv_c = [&](const auto& middle, int row0, const T* x_frame, T* out_frame) {
        constexpr int kM = sizeof(middle[0]) / sizeof(middle[0][0]);
        for (int n = 0; n < s.wide; n += 32) {
            const int channel = n + 8 * quarter();
            float acc[1][kM][4][4];
            tile::begin(acc[0], load_run<8>(shifts + 2 * C + channel));
            SF_UNROLL
            for (int k = 0; k < ceil_div(C, 16); ++k) {
                tile::multiply_operand<T, C == 8 ? 8 : 16>(acc[0], middle[k],
                                                           weights + s.weights_c + 16 * (k * s.wide + n));
            }
            if constexpr (Shortcut) {
                int rows[kM], swizzle[kM];
                SF_UNROLL
                for (int m = 0; m < kM; ++m) {
                    const int pixel = window[row0 + 16 * m + load_row()] + s.centre;
                    rows[m] = pixel * s.x_pitch;
                    swizzle[m] = s.x_swizzle(pixel);
                }
                tile::multiply_channels<T, kM>(acc, x_frame, rows, swizzle, p.cin,
                                               weights + s.weights_shortcut + 16 * n, 16 * s.wide, 0,
                                               [](int) { return true; });
            }
            if (channel >= p.cout) continue;
            SF_UNROLL
            for (int m = 0; m < kM; ++m) {
                SF_UNROLL
                for (int half = 0; half < 2; ++half) {
                    const int row = row0 + 16 * m + 8 * half + group();
                    const int at = out_at[row];
                    if (at < 0) continue;
                    const auto v = tile::row_of<4>(acc[0][m], half);
                    T* to = out_frame + at * p.out_pitch + channel;
                    if constexpr (Shortcut) {
                        store_result(to, relu_from_float<T>(v));
                    } else {
                        const int pixel = window[row] + s.centre;
                        const int unit = channel / 8 ^ s.x_swizzle(pixel);
                        store_result(to,
                                     tile::finished<T>(v, load<8>(x_frame + pixel * s.x_pitch + 8 * unit)));
                    }
                }
            }
        }
    };

    for (int u = first - 1; u < last; ++u, place = onward(place, 1)) {
        cp_async_wait<0>();
        syncthreads();
        thread = fresh(thread);
        if (u + 2 < last && u + 2 + reach < p.frames) fetch(u + 2 + reach, onward(place, p.kernel_t));
        cp_async_commit();

        if (u + 1 < last) conv_a(u + 1, place);
        if (u < first) continue;
        const T* x_frame = ring + onward(place, reach > 0 ? reach - 1 : s.ring - 1) * s.x_frame;
        T* out_frame = out + u * p.out_frame;
        // The last warp comes first: it has the least of conv_a.
        constexpr int kM = kNarrowRows / 16, kSteps = ceil_div(C, 16);
        for (int b = (kWarps - 1 - of_warp()) * kM; b < s.b_tiles; b += kWarps * kM) {
            tile::with_count<kM>(b + kM <= s.b_tiles ? kM : s.b_tiles - b, [&](auto count) {
                constexpr int kCount = decltype(count)::value;
                uint32_t middle[kSteps][kCount][4];
                conv_b(middle, 16 * b, u);
                conv_c(middle, 16 * b, x_frame, out_frame);
            });
        }
    }
}

}  // namespace slowfast::cuda
