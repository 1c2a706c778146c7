// The lateral connection: a convolution in time only, as a product of matrices.
//
// A row of the left matrix is an output pixel, its k_size = taps * channels values lie in `taps` frames, a
// constant distance apart: nothing is unfolded in memory. With stride alpha above half the taps hardly a
// frame belongs to two outputs, so that blocks march over pixels, not over time.
#pragma once

#include "cuda/primitives.cuh"

namespace slowfast::cuda {

template <class T>
struct LateralParams {
    const T* x;                  // [N][frames][frame_pixels] pixels, x_pitch elements apart
    const T* weights;            // [outputs][taps][channels]
    const float *scale, *shift;  // [outputs] or null
    T* out;                      // [N][frames_out][frame_pixels] pixels, out_pitch elements apart
    int64_t x_pitch, out_pitch;
    int64_t pixels;  // of out
    int64_t frame_pixels;
    int frames, frames_out, alpha, taps, channels, outputs;
    bool relu;
    bool wide;  // out takes vectors of 16 bytes
};

// Where 16-byte unit `unit` of a row lies in a tile whose rows have `Units` of them and no gaps between them:
// swapped such that one unit of eight rows that follow each other is in eight different banks, and the units
// of one row, or of all rows that share 128 bytes, are as well.
template <int Units>
SF_HOST_DEVICE constexpr int lateral_unit(int row, int unit) {
    constexpr int kRows = Units < 8 ? 8 / Units : 1;
    return row * Units + (unit ^ (row / kRows % (Units < 8 ? Units : 8)));
}
constexpr int kLateralUnits = 4;  // of a row of a and b: a step's values

// How a warp multiplies its 32 rows of a with all BN rows of b, for one step; each() hands its results on, as
// vectors of neighbouring columns, all rows of some columns before the next ones.
template <class T, int BN>
struct HalfMath {  // bf16, f16
    float d[2][BN / 8][4] = {};

    SF_DEVICE void step(const T* a, const T* b) {
        SF_UNROLL
        for (int u = 0; u < kLateralUnits; u += 2) {
            uint32_t fa[2][4];
            SF_UNROLL
            for (int i = 0; i < 2; ++i)
                ldmatrix_x4(fa[i],
                            a + 8 * lateral_unit<kLateralUnits>(16 * i + lane() % 16, u + lane() / 16));
            SF_UNROLL
            for (int j = 0; j < BN / 16; ++j) {
                uint32_t fb[4];  // columns 16 j .. + 8: both units; + 8 .. + 16: both units
                ldmatrix_x4(fb, b + 8 * lateral_unit<kLateralUnits>(16 * j + lane() / 16 * 8 + lane() % 8,
                                                                    u + lane() / 8 % 2));
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
        for (int j = 0; j < BN / 8; ++j) {
            SF_UNROLL
            for (int i = 0; i < 4; ++i) {
                f(i == 0, 8 * i + lane() / 4, 8 * j + lane() % 4 * 2,
                  Vec<float, 2>{d[i / 2][j][i % 2 * 2], d[i / 2][j][i % 2 * 2 + 1]});
            }
        }
    }
};

template <class T, int BN>
struct Tf32Math {
    float d[2][BN / 8][4] = {};

    // A lane's four values of a row serve two instructions: any order of k is as good that a and b share.
    SF_DEVICE void step(const float* a, const float* b) {
        const int g = lane() / 4, t = lane() % 4;
        const auto values = [=](const float* from, int row) {
            const auto four = load<4>(from + 4 * lateral_unit<kLateralUnits>(row, t));
            Vec<uint32_t, 4> v;
            SF_UNROLL
            for (int i = 0; i < 4; ++i) v[i] = to_tf32(four[i]);
            return v;
        };
        Vec<uint32_t, 4> fa[2][2];
        SF_UNROLL
        for (int i = 0; i < 4; ++i) fa[i / 2][i % 2] = values(a, 8 * i + g);
        SF_UNROLL
        for (int j = 0; j < BN / 8; ++j) {
            const auto fb = values(b, 8 * j + g);
            SF_UNROLL
            for (int k = 0; k < 4; k += 2) {
                SF_UNROLL
                for (int i = 0; i < 2; ++i) {
                    const uint32_t four[4] = {fa[i][0][k], fa[i][1][k], fa[i][0][k + 1], fa[i][1][k + 1]};
                    const uint32_t two[2] = {fb[k], fb[k + 1]};
                    mma_m16n8k8_tf32(d[i][j], four, two);
                }
            }
        }
    }
    template <class F>
    SF_DEVICE void each(F f) const {
        SF_UNROLL
        for (int j = 0; j < BN / 8; ++j) {
            SF_UNROLL
            for (int i = 0; i < 4; ++i) {
                f(i == 0, 8 * i + lane() / 4, 8 * j + lane() % 4 * 2,
                  Vec<float, 2>{d[i / 2][j][i % 2 * 2], d[i / 2][j][i % 2 * 2 + 1]});
            }
        }
    }
};

template <class T, int BN>
struct ExactMath {  // float32 on the ordinary cores
    float d[8][BN / 8] = {};

    SF_DEVICE void step(const float* a, const float* b) {
        SF_NO_UNROLL
        for (int u = 0; u < kLateralUnits; ++u) {
            // Units of rows eight apart are swapped alike.
            const float* columns = b + 4 * lateral_unit<kLateralUnits>(lane() % 8, u);
            const float* even = a + 4 * lateral_unit<kLateralUnits>(lane() / 8, u);
            const float* odd = a + 4 * lateral_unit<kLateralUnits>(4 + lane() / 8, u);
            SF_UNROLL
            for (int k = 0; k < 4; ++k) {  // value by value: vectors take too many registers
                float fb[BN / 8];
                SF_UNROLL
                for (int j = 0; j < BN / 8; ++j) fb[j] = load<1>(columns + 32 * j * kLateralUnits + k)[0];
                SF_UNROLL
                for (int i = 0; i < 8; ++i) {
                    const float fa = load<1>((i % 2 ? odd : even) + 32 * (i / 2) * kLateralUnits + k)[0];
                    SF_UNROLL
                    for (int j = 0; j < BN / 8; ++j) d[i][j] += fa * fb[j];
                }
            }
        }
    }
    template <class F>
    SF_DEVICE void each(F f) const {
        SF_UNROLL
        for (int j = 0; j < BN / 8; ++j) {
            SF_UNROLL
            for (int i = 0; i < 8; ++i)
                f(i == 0, 4 * i + lane() / 8, 8 * j + lane() % 8, Vec<float, 1>{d[i][j]});
        }
    }
};

// A tile of 128 pixels and BN outputs. Async: 16-byte copies, for channels and addresses that allow them.
template <class T, template <class, int> class Math, int BN, bool Async>
struct Lateral {
    static constexpr int kThreads = 128, kM = 128, kStages = 3;
    static constexpr int kVector = 16 / sizeof(T), kK = kLateralUnits * kVector;
    static constexpr int kStage = (kM + BN) * kK;
    // The ring, and after it the result on its way out.
    static constexpr int kElements = kStages * kStage > kM* BN ? kStages * kStage : kM * BN;
    static constexpr int kSharedBytes = kElements * static_cast<int>(sizeof(T));
    static constexpr int kRows = kM * 4 / kThreads;                      // of a that a thread copies from
    static constexpr int kColumns = (BN * 4 + kThreads - 1) / kThreads;  // of b

    const LateralParams<T>& p;
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
    SF_DEVICE T* tile_b(int step) const { return tile_a(step) + kM * kK; }

    SF_DEVICE void fill(int step) const {
        const int k = step * kK + thread_x() % 4 * kVector, k_size = p.taps * p.channels;
        const int64_t frame_size = p.frame_pixels * p.x_pitch;
        const int to = kVector * lateral_unit<kLateralUnits>(thread_x() / 4, thread_x() % 4);
        T *a = tile_a(step) + to, *b = tile_b(step) + to;
        if constexpr (Async) {  // a vector lies within one tap
            const int tap = k / p.channels;
            const int64_t at = tap * frame_size + (k - tap * p.channels);
            SF_UNROLL
            for (int i = 0; i < kRows; ++i) {
                const int frame = first[i] + tap;
                const bool valid = k < k_size && frame >= 0 && frame < p.frames;
                cp_async16(a + i * (kThreads / 4) * kK, valid ? p.x + from[i] + at : p.x, valid);
            }
            SF_UNROLL
            for (int i = 0; i < kColumns; ++i) {
                const int row = thread_x() / 4 + i * (kThreads / 4);
                if (row >= BN) break;
                const bool valid = k < k_size && n0 + row < p.outputs;
                cp_async16(b + i * (kThreads / 4) * kK,
                           valid ? p.weights + int64_t(n0 + row) * k_size + k : p.weights, valid);
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
                    a[i * (kThreads / 4) * kK + j] = valid ? p.x[from[i] + at] : T{};
                }
                SF_UNROLL
                for (int i = 0; i < kColumns; ++i) {
                    const int row = thread_x() / 4 + i * (kThreads / 4);
                    if (row >= BN) break;
                    const bool valid = k + j < k_size && n0 + row < p.outputs;
                    b[i * (kThreads / 4) * kK + j] =
                        valid ? p.weights[int64_t(n0 + row) * k_size + k + j] : T{};
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
            math.step(tile_a(step) + warp() * 32 * kK, tile_b(step));
        }
        cp_async_wait<0>();
        syncthreads();

        // Each warp's rows through its part of shared memory, so that whole vectors leave.
        T* tile = ring + warp() * 32 * BN;
        constexpr int kAcross = BN / kVector;
        float scale[2] = {1.0f, 1.0f}, shift[2] = {};  // of the columns at hand
        math.each([&](bool new_columns, int row, int column, auto v) {
            constexpr int kSome = static_cast<int>(sizeof(v) / sizeof(float));
            SF_UNROLL
            for (int i = 0; i < kSome; ++i) {
                const int n = n0 + column + i;
                if (new_columns && n < p.outputs) {
                    if (p.scale) scale[i] = p.scale[n];
                    if (p.shift) shift[i] = p.shift[n];
                }
                v[i] = v[i] * scale[i] + shift[i];
                if (p.relu && v[i] < 0.0f) v[i] = 0.0f;  // NaN passes
            }
            store(tile + kVector * lateral_unit<kAcross>(row, column / kVector) + column % kVector,
                  from_float<T>(v));
        });
        syncwarp();
        for (int i = lane(); i < 32 * kAcross; i += kWarp) {
            const int row = i / kAcross, unit = i % kAcross, column = unit * kVector;
            const int64_t m = m0 + warp() * 32 + row;
            if (m >= p.pixels || n0 + column >= p.outputs) continue;
            const T* source = tile + kVector * lateral_unit<kAcross>(row, unit);
            T* to = p.out + m * p.out_pitch + n0 + column;
            if (p.wide && n0 + column + kVector <= p.outputs) {
                store_result(to, load<kVector>(source));
            } else {
                for (int j = 0; j < kVector && n0 + column + j < p.outputs; ++j) to[j] = source[j];
            }
        }
    }
};

template <class T, template <class, int> class Math, int BN, bool Async>
SF_KERNEL SF_LAUNCH_BOUNDS(128, 3) void lateral_kernel(LateralParams<T> p) {
    const int across = ceil_div(p.outputs, BN);
    Lateral<T, Math, BN, Async> block{
        p, dynamic_shared<T>(), int64_t(block_x() / across) * 128, block_x() % across * BN, {}, {}};
    block.run();
}

// --- Kinds without a convolution, and the Slow channels' way into the buffer -------------------------------

template <class T>
struct GatherParams {
    const T *x, *base;
    T* out;
    int64_t x_pitch, base_pitch, out_pitch;
    int64_t pixels, frame_pixels;  // of out
    int alpha, channels, total;
};

// Channel a * channels + c of out's frame t = channel c of x's frame t * alpha + a, plus base's channel if any.
template <class T, int V>
SF_KERNEL SF_LAUNCH_BOUNDS(256, 4) void gather_kernel(GatherParams<T> p) {
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
        store(p.out + m * p.out_pitch + channel, v);
    }
}

}  // namespace slowfast::cuda
