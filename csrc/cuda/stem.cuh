// The stem of a pathway in one kernel: kt x 7 x 7 convolution of three channels with stride (1, 2, 2), shift,
// ReLU, 1 x 3 x 3 max-pool of stride 2.
//
// A block of threads owns 8 x 8 pooled pixels of one clip, which need 17 x 17 of the convolution's, and
// marches through a segment of the frames. Each input frame is read once: its products with all kt temporal
// taps go to kt sets of sums, which move on by one frame from one input frame to the next.
//
// Under one row of the kernel lie 7 x 3 = 21 values that follow one another in memory. With the value before
// them, for the alignment, and two behind they are 24 products, 16 + 8 of tensor-core instructions; what is
// too much is cut off in the registers, for a NaN there does not belong to the window.
#pragma once

#include "cuda/primitives.cuh"

namespace slowfast::cuda {

template <class T>
struct StemParams {
    const T* x;
    T* out;
    const T* weights;            // packed
    const float* shift;          // of every channel
    int64_t sn, sc, st, sh, sw;  // x's strides, elements
    int64_t out_pitch;           // elements from pixel to pixel
    int frames, height, width, conv_height, conv_width, out_height, out_width;
    int cout, segment;  // segment: frames
    bool relu, rows_in_vectors;
};

struct StemTile {
    static constexpr int kPoolH = 7, kPoolW = 8;                            // pooled pixels
    static constexpr int kConvH = 2 * kPoolH + 1, kConvW = 2 * kPoolW + 1;  // the convolution's
    static constexpr int kPixels = kConvH * kConvW;
    static constexpr int kRows = round_up(kPixels, 16);    // in whole tensor-core tiles
    static constexpr int kInput = 2 * kConvH + 5;          // rows of the input
    static constexpr int kValues = 6 * (kConvW - 1) + 24;  // of one; whole 16 bytes
    static constexpr int kFrame = kInput * kValues;
    static constexpr int kWarps = 4, kThreads = kWarps * kWarp;
};

// Kt: temporal taps. N: tiles of eight channels. M: tensor-core tiles of pixels that a warp has at a time.
template <int Kt, int N, int M>
struct StemShape {
    static constexpr int kPasses = StemTile::kRows / (16 * StemTile::kWarps * M);
    static_assert(StemTile::kRows % (16 * StemTile::kWarps * M) == 0, "warps have the same work");
    static_assert(Kt == 1 || kPasses == 1, "sums that wait for more frames stay in registers");
    // Registers of a lane's weights for one row of the kernel, in fours.
    static constexpr int kVectors = (3 * Kt * N + 3) / 4;
    static constexpr int kWeights = 7 * kVectors * 32 * 8;  // elements
    static constexpr int kJoined = N < 4 ? N : 4;
    static constexpr int kPitch = ((N | 1)) * 8;  // of the convolution's result; odd: no bank conflicts
    static constexpr int kResult = StemTile::kRows * kPitch;
    // With two results the pool of one frame runs beside the
    // convolution of the next; one must do if it is large.
    static constexpr int kResults = N < 4 ? 2 : 1;
    static constexpr int kShared =
        (2 * StemTile::kFrame + kWeights + kResults * kResult) * 2 + 4 * (8 * N + StemTile::kRows);
    static constexpr int kResident = N < 4 ? 3 : 2;

    // Place of a pixel of the convolution's result. The pool reads every second one at a time: where a pixel
    // is 16 bytes, those of each next eight are swapped with their neighbours, into the other banks.
    static SF_DEVICE int place(int pixel) { return (N == 1 ? pixel ^ (pixel / 8 % 2) : pixel) * kPitch; }
};

template <class T, int Kt, int N, int M>
SF_KERNEL SF_LAUNCH_BOUNDS(StemTile::kThreads,
                           (StemShape<Kt, N, M>::kResident)) void stem_kernel(const StemParams<T> p) {
    using Tile = StemTile;
    using Shape = StemShape<Kt, N, M>;
    constexpr int kReach = Kt / 2, kThreads = Tile::kThreads;
    T* input = dynamic_shared<T>();  // two frames
    T* weights = input + 2 * Tile::kFrame;
    T* results = weights + Shape::kWeights;
    float* shift = reinterpret_cast<float*>(results + Shape::kResults * Shape::kResult);
    int* windows = reinterpret_cast<int*>(shift + 8 * N);

    // --- Which tile
    const int tiles_w = ceil_div(p.out_width, Tile::kPoolW), tiles_h = ceil_div(p.out_height, Tile::kPoolH);
    const int segments = ceil_div(p.frames, p.segment);
    int block = block_x();
    const int out_x = block % tiles_w * Tile::kPoolW;
    block /= tiles_w;
    const int out_y = block % tiles_h * Tile::kPoolH;
    block /= tiles_h;
    const int first = block % segments * p.segment;
    const int clip = block / segments;
    const int last = first + p.segment < p.frames ? first + p.segment : p.frames;
    const int conv_x = 2 * out_x - 1, conv_y = 2 * out_y - 1;
    const int input_y = 2 * conv_y - 3, value0 = 3 * (2 * conv_x - 3) - 1;  // value0: a multiple of 8

    for (int i = thread_x(); i < Shape::kWeights / 8; i += kThreads) {
        cp_async16(weights + 8 * i, p.weights + 8 * i);
    }
    for (int i = thread_x(); i < 8 * N; i += kThreads) {
        shift[i] = p.shift != nullptr && i < p.cout ? p.shift[i] : 0.0f;
    }
    const int values = 3 * p.width;
    auto fetch = [&](int frame) {
        T* to = input + frame % 2 * Tile::kFrame;
        const T* from = p.x + clip * p.sn + frame * p.st;
        if (p.rows_in_vectors) {
            constexpr int kUnits = Tile::kValues / 8;
            SF_NO_UNROLL
            for (int i = thread_x(); i < Tile::kInput * kUnits; i += kThreads) {
                const int row = i / kUnits, value = value0 + i % kUnits * 8, y = input_y + row;
                const int left = values - value;
                const bool valid = y >= 0 && y < p.height && value >= 0 && left > 0;
                cp_async_bytes<16>(to + 8 * i, valid ? from + y * p.sh + value : p.x,
                                   !valid     ? 0
                                   : left < 8 ? 2 * left
                                              : 16);
            }
        } else {
            SF_NO_UNROLL
            for (int i = thread_x(); i < Tile::kFrame; i += kThreads) {
                const int row = i / Tile::kValues, value = value0 + i % Tile::kValues, y = input_y + row;
                const bool valid = y >= 0 && y < p.height && value >= 0 && value < values;
                to[i] = valid ? from[y * p.sh + value / 3 * p.sw + value % 3 * p.sc] : T{0};
            }
        }
    };

    // --- Where the window of every pixel of the convolution begins in a frame; a bit says that it does not
    // exist. In shared memory, because the sums take most registers.
    constexpr int kAbsent = 1 << 30;
    for (int i = thread_x(); i < Tile::kRows; i += kThreads) {
        const int y = i / Tile::kConvW, v = i % Tile::kConvW;
        const bool in = i < Tile::kPixels && conv_y + y >= 0 && conv_y + y < p.conv_height &&
                        conv_x + v >= 0 && conv_x + v < p.conv_width;
        windows[i] = (i < Tile::kPixels ? 2 * y * Tile::kValues + 6 * v : 0) | (in ? 0 : kAbsent);
    }
    const int group = reversed_row(lane() / 4), quarter = lane() % 4;
    auto pixel_of = [&](int pass, int m, int half) {
        return 16 * ((pass * M + m) * Tile::kWarps + warp()) + 8 * half + group;
    };
    const uint32_t before =
        quarter == 0 ? 0xffff0000u : 0xffffffffu;             // the window begins at its second value
    const uint32_t behind = quarter == 3 ? 0u : 0xffffffffu;  // and ends before its last two

    float acc[Kt][M][N][4];
    auto clear = [&](int tap) {
        SF_UNROLL
        for (int m = 0; m < M; ++m) {
            SF_UNROLL
            for (int n = 0; n < N; ++n) {
                SF_UNROLL
                for (int i = 0; i < 4; ++i) acc[tap][m][n][i] = 0.0f;
            }
        }
    };
    auto word = [](const T* at) { return load<1>(reinterpret_cast<const uint32_t*>(at))[0]; };
    // acc[tap] += frame times tap.
    auto accumulate = [&](const T* frame, int pass) {
        int at[M][2];
        SF_UNROLL
        for (int m = 0; m < M; ++m) {
            SF_UNROLL
            for (int half = 0; half < 2; ++half) {
                at[m][half] = (windows[pixel_of(pass, m, half)] & (kAbsent - 1)) + 2 * quarter;
            }
        }
        SF_NO_UNROLL
        for (int dy = 0; dy < 7; ++dy) {
            uint32_t b[Shape::kVectors * 4];
            SF_UNROLL
            for (int v = 0; v < Shape::kVectors; ++v) {
                const auto four = load<4>(reinterpret_cast<const uint32_t*>(weights) +
                                          ((dy * Shape::kVectors + v) * kWarp + lane()) * 4);
                SF_UNROLL
                for (int i = 0; i < 4; ++i) b[4 * v + i] = four[i];
            }
            SF_UNROLL
            for (int m = 0; m < M; ++m) {
                const T* low = frame + dy * Tile::kValues + at[m][0];
                const T* high = frame + dy * Tile::kValues + at[m][1];
                const uint32_t a[4] = {word(low) & before, word(high) & before, word(low + 8),
                                       word(high + 8)};
                const uint32_t rest[2] = {word(low + 16) & behind, word(high + 16) & behind};
                SF_UNROLL
                for (int tap = 0; tap < Kt; ++tap) {
                    SF_UNROLL
                    for (int n = 0; n < N; ++n) {
                        mma_m16n8k16<T>(acc[tap][m][n], a, b + 3 * (tap * N + n));
                        mma_m16n8k8<T>(acc[tap][m][n], rest, b + 3 * (tap * N + n) + 2);
                    }
                }
            }
        }
    };
    // Shift and ReLU of the sums that are complete, into shared memory; minus infinity outside the map.
    auto finish = [&](T* result, int pass) {
        const uint32_t nothing = pack2<T>(bit_cast<float>(0xff800000u), bit_cast<float>(0xff800000u));
        SF_UNROLL
        for (int n = 0; n < N; n += Shape::kJoined) {
            const int channel = 8 * n + 2 * Shape::kJoined * quarter;
            const auto shifts = load_run<2 * Shape::kJoined>(shift + channel);
            SF_UNROLL
            for (int m = 0; m < M; ++m) {
                SF_UNROLL
                for (int half = 0; half < 2; ++half) {
                    const int pixel = pixel_of(pass, m, half);
                    if (pixel < Tile::kPixels) {
                        const bool in = windows[pixel] < kAbsent;
                        Vec<uint32_t, Shape::kJoined> pairs;
                        SF_UNROLL
                        for (int i = 0; i < Shape::kJoined; ++i) {
                            const float* sums = acc[Kt - 1][m][n + i] + 2 * half;
                            const float low = sums[0] + shifts[2 * i], high = sums[1] + shifts[2 * i + 1];
                            const uint32_t pair = p.relu ? pack2_relu<T>(low, high) : pack2<T>(low, high);
                            pairs[i] = in ? pair : nothing;
                        }
                        store(result + Shape::place(pixel) + channel,
                              bit_cast<Vec<T, 2 * Shape::kJoined>>(pairs));
                    }
                }
            }
        }
    };
    auto pool = [&](const T* result, int frame) {
        T* out_frame = p.out + (int64_t(clip) * p.frames + frame) * p.out_height * p.out_width * p.out_pitch;
        SF_NO_UNROLL
        for (int i = thread_x(); i < Tile::kPoolH * Tile::kPoolW * N; i += kThreads) {
            const int channel = i % N * 8, v = i / N % Tile::kPoolW, y = i / N / Tile::kPoolW;
            if (out_y + y >= p.out_height || out_x + v >= p.out_width || channel >= p.cout) continue;
            const int corner = 2 * y * Tile::kConvW + 2 * v;
            auto values = [&](int at) {
                const int pixel = corner + at / 3 * Tile::kConvW + at % 3;
                return bit_cast<Vec<uint32_t, 4>>(load<8>(result + Shape::place(pixel) + channel));
            };
            auto best = values(0);
            SF_UNROLL
            for (int at = 1; at < 9; ++at) {
                const auto other = values(at);
                SF_UNROLL
                for (int k = 0; k < 4; ++k) best[k] = max2<T>(best[k], other[k]);
            }
            const int64_t pixel = int64_t(out_y + y) * p.out_width + out_x + v;
            store_result(out_frame + pixel * p.out_pitch + channel, bit_cast<Vec<T, 8>>(best));
        }
    };

    SF_UNROLL
    for (int tap = 0; tap < Kt; ++tap) clear(tap);
    int pending = -1;  // a result that waits for its pool
    const int begin = first - kReach, end = last + kReach;
    if (begin >= 0) fetch(begin);
    cp_async_commit();
    for (int frame = begin; frame < end; ++frame) {
        cp_async_wait<0>();
        syncthreads();
        if (frame + 1 >= 0 && frame + 1 < p.frames && frame + 1 < end) fetch(frame + 1);
        cp_async_commit();
        if (pending >= 0) {
            pool(results + pending % 2 * Shape::kResult, pending);
            pending = -1;
        }
        const T* source = input + (frame + 2) % 2 * Tile::kFrame;
        const int done = frame - kReach;  // the frame of the result whose sums are complete after this one
        if constexpr (Kt == 1) {
            SF_NO_UNROLL
            for (int pass = 0; pass < Shape::kPasses; ++pass) {
                accumulate(source, pass);
                finish(results, pass);
                clear(0);
            }
            syncthreads();
            pool(results, frame);
        } else {
            // Sums of frames that belong to other segments grow as well, and are thrown away.
            if (frame >= 0 && frame < p.frames) accumulate(source, 0);
            if (done >= first) {
                finish(results + done % 2 * Shape::kResult, 0);
                pending = done;
            }
            SF_UNROLL
            for (int tap = Kt - 1; tap > 0; --tap) {
                SF_UNROLL
                for (int m = 0; m < M; ++m) {
                    SF_UNROLL
                    for (int n = 0; n < N; ++n) {
                        SF_UNROLL
                        for (int i = 0; i < 4; ++i) acc[tap][m][n][i] = acc[tap - 1][m][n][i];
                    }
                }
            }
            clear(0);
        }
    }
    if (pending >= 0) {
        syncthreads();
        pool(results + pending % 2 * Shape::kResult, pending);
    }
}

}  // namespace slowfast::cuda
