// The lateral connection: a convolution in time only, as a product of matrices.
//
// A row of the left matrix is an output pixel, its k_size = taps * channels values lie in `taps` frames, a
// constant distance apart: nothing is unfolded in memory. With stride alpha above half the taps hardly a
// frame belongs to two outputs, so that blocks march over pixels, not over time.
#pragma once

#include "cuda/primitives.cuh"

namespace slowfast::cuda {

template <class T>
struct LateralArgs {
    const T* x;                  // [N][frames][frame_pixels] pixels, x_pitch elements apart
    const T* w;                  // [outputs][taps][channels]
    const float *scale, *shift;  // [outputs] or null
    T* y;                        // [N][frames_out][frame_pixels] pixels, y_pitch elements apart
    int64_t x_pitch, y_pitch;
    int64_t pixels;  // of y
    int64_t frame_pixels;
    int frames, frames_out, alpha, taps, channels, outputs;
    bool relu;
    bool wide;  // y takes vectors of 16 bytes
};

// How a warp multiplies its 32 rows of a with all BN rows of b. Rows lie `pitch` elements apart, k in order;
// d is written as [row][column] of a tile of floats or T.
template <class T, int BN>
struct HalfMath {  // bf16, f16
    static constexpr int kPad = 8;
    float d[2][BN / 8][4] = {};

    SF_DEVICE void step(const T* a, const T* b, int pitch, int k_count) {
        SF_UNROLL
        for (int k = 0; k < k_count; k += 16) {
            uint32_t fa[2][4];
            SF_UNROLL
            for (int i = 0; i < 2; ++i)
                ldmatrix_x4(fa[i], a + (16 * i + lane() % 16) * pitch + k + lane() / 16 * 8);
            SF_UNROLL
            for (int j = 0; j < BN / 16; ++j) {
                uint32_t fb[4];  // columns 16 j .. + 8: k, k + 8; + 8 .. + 16: k, k + 8
                ldmatrix_x4(fb, b + (16 * j + lane() / 16 * 8 + lane() % 8) * pitch + k + lane() / 8 % 2 * 8);
                SF_UNROLL
                for (int i = 0; i < 2; ++i) {
                    mma_m16n8k16<T>(d[i][2 * j], fa[i], fb);
                    mma_m16n8k16<T>(d[i][2 * j + 1], fa[i], fb + 2);
                }
            }
        }
    }
    template <class F>
    SF_DEVICE void each(F f) const {
        SF_UNROLL
        for (int i = 0; i < 2; ++i) {
            SF_UNROLL
            for (int j = 0; j < BN / 8; ++j) {
                SF_UNROLL
                for (int r = 0; r < 4; ++r)
                    f(16 * i + lane() / 4 + r / 2 * 8, 8 * j + lane() % 4 * 2 + r % 2, d[i][j][r]);
            }
        }
    }
};

template <class T, int BN>
struct Tf32Math {
    static constexpr int kPad = 4;
    float d[2][BN / 8][4] = {};

    SF_DEVICE void step(const float* a, const float* b, int pitch, int k_count) {
        const int g = lane() / 4, t = lane() % 4;
        SF_UNROLL
        for (int k = 0; k < k_count; k += 8) {
            uint32_t fa[2][4];
            SF_UNROLL
            for (int i = 0; i < 2; ++i) {
                SF_UNROLL
                for (int r = 0; r < 4; ++r)
                    fa[i][r] = to_tf32(a[(16 * i + g + r % 2 * 8) * pitch + k + t + r / 2 * 4]);
            }
            SF_UNROLL
            for (int j = 0; j < BN / 8; ++j) {
                const float* from = b + (8 * j + g) * pitch + k + t;
                const uint32_t fb[2] = {to_tf32(from[0]), to_tf32(from[4])};
                SF_UNROLL
                for (int i = 0; i < 2; ++i) mma_m16n8k8_tf32(d[i][j], fa[i], fb);
            }
        }
    }
    template <class F>
    SF_DEVICE void each(F f) const {
        SF_UNROLL
        for (int i = 0; i < 2; ++i) {
            SF_UNROLL
            for (int j = 0; j < BN / 8; ++j) {
                SF_UNROLL
                for (int r = 0; r < 4; ++r)
                    f(16 * i + lane() / 4 + r / 2 * 8, 8 * j + lane() % 4 * 2 + r % 2, d[i][j][r]);
            }
        }
    }
};

template <class T, int BN>
struct ExactMath {  // float32 on the ordinary cores
    static constexpr int kPad = 4;
    float d[8][BN / 8] = {};

    SF_DEVICE void step(const float* a, const float* b, int pitch, int k_count) {
        const float* rows = a + lane() / 8 * pitch;
        const float* columns = b + lane() % 8 * pitch;
        SF_UNROLL
        for (int k = 0; k < k_count; ++k) {
            float fb[BN / 8];
            SF_UNROLL
            for (int j = 0; j < BN / 8; ++j) fb[j] = columns[8 * j * pitch + k];
            SF_UNROLL
            for (int i = 0; i < 8; ++i) {
                const float fa = rows[4 * i * pitch + k];
                SF_UNROLL
                for (int j = 0; j < BN / 8; ++j) d[i][j] += fa * fb[j];
            }
        }
    }
    template <class F>
    SF_DEVICE void each(F f) const {
        SF_UNROLL
        for (int i = 0; i < 8; ++i) {
            SF_UNROLL
            for (int j = 0; j < BN / 8; ++j) f(4 * i + lane() / 8, 8 * j + lane() % 8, d[i][j]);
        }
    }
};

// A tile of 128 pixels and BN outputs. Async: 16-byte copies, for channels and addresses that allow them.
template <class T, template <class, int> class Math, int BN, bool Async>
struct Lateral {
    static constexpr int kThreads = 128, kM = 128, kStages = 3;
    static constexpr int kVector = 16 / sizeof(T), kK = 4 * kVector, kPitch = kK + Math<T, BN>::kPad;
    static constexpr int kStage = (kM + BN) * kPitch;
    // The ring, and after it the result on its way out.
    static constexpr int kOutPitch = BN + kVector;
    static constexpr int kElements = kStages * kStage > kM* kOutPitch ? kStages * kStage : kM * kOutPitch;
    static constexpr int kSharedBytes = kElements * static_cast<int>(sizeof(T));
    static constexpr int kRows = kM * 4 / kThreads;                      // of a that a thread copies from
    static constexpr int kColumns = (BN * 4 + kThreads - 1) / kThreads;  // of b

    const LateralArgs<T>& p;
    T* ring;
    int64_t m0;
    int n0;
    int64_t from[kRows];  // offset of a row's first frame, which may lie before the clip
    int first[kRows];     // that frame; far outside for a row beyond the last pixel

    SF_DEVICE void locate() {
        SF_UNROLL
        for (int i = 0; i < kRows; ++i) {
            const int64_t m = m0 + thread_x() / 4 + i * (kThreads / 4);
            const int64_t frame = m / p.frame_pixels, pixel = m % p.frame_pixels;
            first[i] = static_cast<int>(frame % p.frames_out) * p.alpha - p.taps / 2;
            from[i] = ((frame / p.frames_out * p.frames + first[i]) * p.frame_pixels + pixel) * p.x_pitch;
            if (m >= p.pixels) first[i] = -(1 << 30);
        }
    }

    SF_DEVICE T* tile_a(int step) const { return ring + step % kStages * kStage; }
    SF_DEVICE T* tile_b(int step) const { return tile_a(step) + kM * kPitch; }

    SF_DEVICE void fill(int step) const {
        const int k = step * kK + thread_x() % 4 * kVector, k_size = p.taps * p.channels;
        const int64_t frame_size = p.frame_pixels * p.x_pitch;
        T* a = tile_a(step) + thread_x() / 4 * kPitch + thread_x() % 4 * kVector;
        T* b = tile_b(step) + thread_x() / 4 * kPitch + thread_x() % 4 * kVector;
        if constexpr (Async) {  // a vector lies within one tap
            const int tap = k / p.channels;
            const int64_t at = tap * frame_size + (k - tap * p.channels);
            SF_UNROLL
            for (int i = 0; i < kRows; ++i) {
                const int frame = first[i] + tap;
                const bool valid = k < k_size && frame >= 0 && frame < p.frames;
                cp_async16(a + i * (kThreads / 4) * kPitch, valid ? p.x + from[i] + at : p.x, valid);
            }
            SF_UNROLL
            for (int i = 0; i < kColumns; ++i) {
                const int row = thread_x() / 4 + i * (kThreads / 4);
                if (row >= BN) break;
                const bool valid = k < k_size && n0 + row < p.outputs;
                cp_async16(b + i * (kThreads / 4) * kPitch,
                           valid ? p.w + int64_t(n0 + row) * k_size + k : p.w, valid);
            }
        } else {
            SF_NO_UNROLL
            for (int j = 0; j < kVector; ++j) {
                const int tap = (k + j) / p.channels;
                const int64_t at = tap * frame_size + (k + j - tap * p.channels);
                SF_UNROLL
                for (int i = 0; i < kRows; ++i) {
                    const int frame = first[i] + tap;
                    const bool valid = k + j < k_size && frame >= 0 && frame < p.frames;
                    a[i * (kThreads / 4) * kPitch + j] = valid ? p.x[from[i] + at] : T{};
                }
                SF_UNROLL
                for (int i = 0; i < kColumns; ++i) {
                    const int row = thread_x() / 4 + i * (kThreads / 4);
                    if (row >= BN) break;
                    const bool valid = k + j < k_size && n0 + row < p.outputs;
                    b[i * (kThreads / 4) * kPitch + j] =
                        valid ? p.w[int64_t(n0 + row) * k_size + k + j] : T{};
                }
            }
        }
    }

    SF_DEVICE void run() {
        locate();
        const int steps = ceil_div(p.taps * p.channels, kK);
        Math<T, BN> math;
        for (int step = 0; step < kStages - 1; ++step) {
            if (step < steps) fill(step);
            cp_async_commit();
        }
        for (int step = 0; step < steps; ++step) {
            cp_async_wait<kStages - 2>();
            syncthreads();  // the step's tiles are there, and nobody reads those of the step before
            if (step + kStages - 1 < steps) fill(step + kStages - 1);
            cp_async_commit();
            math.step(tile_a(step) + warp() * 32 * kPitch, tile_b(step), kPitch, kK);
        }
        cp_async_wait<0>();
        syncthreads();

        // Each warp's rows through its part of shared memory, so that whole vectors leave.
        T* tile = ring + warp() * 32 * kOutPitch;
        math.each([&](int row, int column, float v) {
            const int n = n0 + column;
            if (n < p.outputs) {
                if (p.scale) v *= p.scale[n];
                if (p.shift) v += p.shift[n];
            }
            if (p.relu && v < 0.0f) v = 0.0f;  // NaN passes
            tile[row * kOutPitch + column] = from_float<T>(v);
        });
        syncwarp();
        constexpr int kAcross = BN / kVector;
        for (int i = lane(); i < 32 * kAcross; i += kWarp) {
            const int row = i / kAcross, column = i % kAcross * kVector;
            const int64_t m = m0 + warp() * 32 + row;
            if (m >= p.pixels || n0 + column >= p.outputs) continue;
            const T* source = tile + row * kOutPitch + column;
            T* to = p.y + m * p.y_pitch + n0 + column;
            if (p.wide && n0 + column + kVector <= p.outputs) {
                store(to, load<kVector>(source));
            } else {
                for (int j = 0; j < kVector && n0 + column + j < p.outputs; ++j) to[j] = source[j];
            }
        }
    }
};

template <class T, template <class, int> class Math, int BN, bool Async>
SF_KERNEL SF_LAUNCH_BOUNDS(128, 3) void lateral_kernel(LateralArgs<T> p) {
    const int across = ceil_div(p.outputs, BN);
    Lateral<T, Math, BN, Async> block{
        p, dynamic_shared<T>(), int64_t(block_x() / across) * 128, block_x() % across * BN, {}, {}};
    block.run();
}

// --- Kinds without a convolution, and the Slow channels' way into the buffer
// ----------------------------------------------------------------

template <class T>
struct GatherArgs {
    const T *x, *base;
    T* y;
    int64_t x_pitch, base_pitch, y_pitch;
    int64_t pixels, frame_pixels;  // of y
    int alpha, channels, total;
};

// Channel a * channels + c of y's frame t = channel c of x's frame t * alpha + a, plus base's channel if any.
template <class T, int V>
SF_KERNEL SF_LAUNCH_BOUNDS(256, 4) void gather_kernel(GatherArgs<T> p) {
    const int across = p.total / V;
    const int64_t step = int64_t(grid_dim_x()) * block_dim_x();
    for (int64_t i = int64_t(block_x()) * block_dim_x() + thread_x(); i < p.pixels * across; i += step) {
        const int64_t m = i / across;
        const int channel = static_cast<int>(i - m * across) * V;
        const int64_t t = m / p.frame_pixels;
        const int64_t from = (t * p.alpha + channel / p.channels) * p.frame_pixels + (m - t * p.frame_pixels);
        Vec<T, V> v = load_readonly<V>(p.x + from * p.x_pitch + channel % p.channels);
        if (p.base) {
            Vec<float, V> sum = to_float(v);
            const Vec<float, V> other = to_float(load<V>(p.base + m * p.base_pitch + channel));
            SF_UNROLL
            for (int j = 0; j < V; ++j) sum[j] = other[j] + sum[j];
            v = from_float<T>(sum);
        }
        store(p.y + m * p.y_pitch + channel, v);
    }
}

}  // namespace slowfast::cuda
