// The lateral connection: a convolution in time only, as a product of matrices.
//
// A row of the left matrix is an output pixel, its k_size = taps * channels values lie in `taps` frames, a
// constant distance apart: nothing is unfolded in memory. With stride alpha above half the taps hardly a
// frame belongs to two outputs, so that blocks march over pixels, not over time: those whose weights fit into
// shared memory over one tile of pixels after the other, the next tile's values on their way while this one
// is finished; the others compute one tile, and the weights come with the values.
#pragma once

#include "cuda/primitives.cuh"

namespace slowfast::cuda {

// A pixel of the result, or the distance between two.
struct LateralPlace {
    int pixel, frame, clip;
};

template <class T>
struct LateralParams {
    const T* x;                  // [N][frames][frame_pixels] pixels, x_pitch elements apart
    const T* weights;            // [outputs][taps][channels]
    const float *scale, *shift;  // [outputs] or null
    T* out;                      // [N][frames_out][frame_pixels] pixels, out_pitch elements apart
    int64_t x_pitch, out_pitch;
    int64_t pixels;  // of out
    int frame_pixels, frames, frames_out, alpha, taps, channels, outputs;
    int step_taps, step_channels;  // that the values of two steps are apart
    LateralPlace distance;         // between the tiles of a block
    int tiles, walkers;  // of kLateralRows pixels; blocks of threads that share them, for each set of columns
    bool relu;
    bool wide;  // out takes vectors of 16 bytes
};

template <class T>
SF_HOST_DEVICE LateralPlace lateral_place(const LateralParams<T>& p, int64_t pixel) {
    const int64_t frame = pixel / p.frame_pixels;
    return {static_cast<int>(pixel - frame * p.frame_pixels), static_cast<int>(frame % p.frames_out),
            static_cast<int>(frame / p.frames_out)};
}

constexpr int kLateralRows = 128;
constexpr int kLateralUnits = 4;  // 16-byte units of a row of a and b: a step's values

// Where a unit of a row lies in a tile whose rows have no gaps between them: swapped such that one unit of eight
// rows that follow each other is in eight different banks, and the units of the two rows that share 128 bytes
// are as well.
SF_HOST_DEVICE constexpr int lateral_unit(int row, int unit) {
    return row * kLateralUnits + (unit ^ (row / 2 % kLateralUnits));
}

// Column that a row of b stands for on the tensor cores, of which a lane has two neighbours of every eight: such
// that it has four of every sixteen.
SF_HOST_DEVICE constexpr int lateral_column(int row) {
    return row / 16 * 16 + row % 8 / 2 * 4 + row / 8 % 2 * 2 + row % 2;
}

// How a warp multiplies its 32 rows of a with W rows of b, for one step; each() hands its results on, as vectors
// of kSome neighbouring columns, all rows of some columns before the next ones. Row r of b holds the weights of
// column(r), chosen such that no result has to go through shared memory on its way out.
template <class T, int W>
struct HalfMath {  // bf16, f16
    float d[2][W / 8][4] = {};

    static constexpr int kSome = 4;
    static SF_DEVICE int column(int row) { return lateral_column(row); }

    SF_DEVICE void step(const T* a, const T* b) {
        SF_UNROLL
        for (int u = 0; u < kLateralUnits; u += 2) {
            uint32_t fa[2][4];
            SF_UNROLL
            for (int i = 0; i < 2; ++i)
                ldmatrix_x4(fa[i], a + 8 * lateral_unit(16 * i + lane() % 16, u + lane() / 16));
            SF_UNROLL
            for (int j = 0; j < W / 16; ++j) {
                uint32_t fb[4];  // columns 16 j .. + 8: both units; + 8 .. + 16: both units
                ldmatrix_x4(fb,
                            b + 8 * lateral_unit(16 * j + lane() / 16 * 8 + lane() % 8, u + lane() / 8 % 2));
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
        for (int j = 0; j < W / 8; j += 2) {
            SF_UNROLL
            for (int i = 0; i < 4; ++i) {
                Vec<float, kSome> v;
                SF_UNROLL
                for (int k = 0; k < kSome; ++k) v[k] = d[i / 2][j + k / 2][i % 2 * 2 + k % 2];
                f(i == 0, 8 * i + lane() / 4, 8 * j + lane() % 4 * kSome, v);
            }
        }
    }
};

template <class T, int W>
struct Tf32Math {
    float d[2][W / 8][4] = {};

    static constexpr int kSome = 4;
    static SF_DEVICE int column(int row) { return lateral_column(row); }

    // A lane's four values of a row serve two instructions: any order of k is as good that a and b share.
    SF_DEVICE void step(const float* a, const float* b) {
        const int g = lane() / 4, t = lane() % 4;
        const auto values = [=](const float* from, int row) {
            const auto four = load<4>(from + 4 * lateral_unit(row, t));
            Vec<uint32_t, 4> v;
            SF_UNROLL
            for (int i = 0; i < 4; ++i) v[i] = to_tf32(four[i]);
            return v;
        };
        Vec<uint32_t, 4> fa[2][2];
        SF_UNROLL
        for (int i = 0; i < 4; ++i) fa[i / 2][i % 2] = values(a, 8 * i + g);
        SF_UNROLL
        for (int j = 0; j < W / 8; ++j) {
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
        for (int j = 0; j < W / 8; j += 2) {
            SF_UNROLL
            for (int i = 0; i < 4; ++i) {
                Vec<float, kSome> v;
                SF_UNROLL
                for (int k = 0; k < kSome; ++k) v[k] = d[i / 2][j + k / 2][i % 2 * 2 + k % 2];
                f(i == 0, 8 * i + lane() / 4, 8 * j + lane() % 4 * kSome, v);
            }
        }
    }
};

template <class T, int W>
struct ExactMath {  // float32 on the ordinary cores
    float d[8][W / 8] = {};

    static constexpr int kSome = W / 8 < 4 ? W / 8 : 4;
    static SF_DEVICE int column(int row) {
        const int tile = row / 8;
        return (tile / kSome * 8 + row % 8) * kSome + tile % kSome;
    }

    SF_DEVICE void step(const float* a, const float* b) {
        SF_NO_UNROLL
        for (int u = 0; u < kLateralUnits; ++u) {
            // Units of rows eight apart are swapped alike.
            const float* columns = b + 4 * lateral_unit(lane() % 8, u);
            const float* even = a + 4 * lateral_unit(lane() / 8, u);
            const float* odd = a + 4 * lateral_unit(4 + lane() / 8, u);
            SF_UNROLL
            for (int k = 0; k < 4; ++k) {  // value by value: vectors take too many registers
                float fb[W / 8];
                SF_UNROLL
                for (int j = 0; j < W / 8; ++j) fb[j] = load<1>(columns + 32 * j * kLateralUnits + k)[0];
                SF_UNROLL
                for (int i = 0; i < 8; ++i) {
                    const float fa = load<1>((i % 2 ? odd : even) + 32 * (i / 2) * kLateralUnits + k)[0];
                    SF_UNROLL
                    for (int j = 0; j < W / 8; ++j) d[i][j] += fa * fb[j];
                }
            }
        }
    }
    template <class F>
    SF_DEVICE void each(F f) const {
        SF_UNROLL
        for (int j = 0; j < W / 8; j += kSome) {
            SF_UNROLL
            for (int i = 0; i < 8; ++i) {
                Vec<float, kSome> v;
                SF_UNROLL
                for (int k = 0; k < kSome; ++k) v[k] = d[i][j + k];
                f(i == 0, 4 * i + lane() / 8, 8 * j + lane() % 8 * kSome, v);
            }
        }
    }
};

// Tiles of 128 pixels and `Columns` outputs; a warp has 32 pixels of up to 64 of these.
// Async: 16-byte copies, for channels and addresses that allow them.
// Resident: all weights of the columns stay in shared memory.
template <class T, template <class, int> class MathOf, int Columns, bool Async, bool Resident>
struct Lateral {
    static constexpr int kWarpColumns = Columns < 64 ? Columns : 64;
    static constexpr int kThreads = kLateralRows * (Columns / kWarpColumns);
    static constexpr int kStages = Resident ? 4 : 3;
    static constexpr int kVector = 16 / sizeof(T), kK = kLateralUnits * kVector;
    static constexpr int kStageA = kLateralRows * kK, kStageB = Columns * kK;
    static constexpr int kStage = kStageA + (Resident ? 0 : kStageB);
    static constexpr int kAffine = 2 * Columns;                 // scale, then shift
    static constexpr int kRowsOnce = kThreads / kLateralUnits;  // rows that the threads copy at a time
    static constexpr int kRowsEach = kLateralRows / kRowsOnce;
    using Math = MathOf<T, kWarpColumns>;

    static int64_t shared_bytes(int k_size) {
        const int64_t resident = Resident ? int64_t(ceil_div(k_size, kK)) * kStageB : 0;
        return (resident + kStages * kStage) * static_cast<int64_t>(sizeof(T)) + kAffine * 4;
    }

    const LateralParams<T>& p;
    const int n0, k_size, steps;
    float* affine;
    T *weights, *ring;
    // What comes next: a step of a tile, of which this thread copies unit thread_x() % kLateralUnits of some rows.
    int tile, step = 0, filled = 0;
    LateralPlace next;        // the tile's first pixel
    int tap, channel;         // of the step's values
    int64_t from[kRowsEach];  // offset of a row's first frame, which may lie before the clip
    int first[kRowsEach];     // that frame; far outside for a row beyond the last pixel

    SF_DEVICE Lateral(const LateralParams<T>& params, float* shared, int column0, int first_tile)
        : p(params), n0(column0), k_size(params.taps * params.channels), steps(ceil_div(k_size, kK)) {
        affine = shared;
        weights = reinterpret_cast<T*>(shared + kAffine);
        ring = weights + (Resident ? steps * kStageB : 0);
        tile = first_tile;
        next = lateral_place(p, int64_t(first_tile) * kLateralRows);
    }

    SF_DEVICE void advance() {
        next.pixel += p.distance.pixel;
        next.frame += p.distance.frame;
        next.clip += p.distance.clip;
        if (next.pixel >= p.frame_pixels) next.pixel -= p.frame_pixels, ++next.frame;
        if (next.frame >= p.frames_out) next.frame -= p.frames_out, ++next.clip;
    }

    SF_DEVICE void locate() {
        SF_UNROLL
        for (int i = 0; i < kRowsEach; ++i) {
            const int row = thread_x() / kLateralUnits + i * kRowsOnce;
            int pixel = next.pixel + row, frame = next.frame, clip = next.clip;
            if (pixel >= p.frame_pixels) {  // rarely: division takes long
                frame += pixel / p.frame_pixels;
                pixel %= p.frame_pixels;
                clip += frame / p.frames_out;
                frame %= p.frames_out;
            }
            first[i] = frame * p.alpha - p.taps / 2;
            from[i] = ((int64_t(clip) * p.frames + first[i]) * p.frame_pixels + pixel) * p.x_pitch;
            if (int64_t(tile) * kLateralRows + row >= p.pixels) first[i] = -(1 << 30);
        }
        tap = thread_x() % kLateralUnits * kVector / p.channels;
        channel = thread_x() % kLateralUnits * kVector - tap * p.channels;
    }

    // Row `row` of a step's b: the output it belongs to, or -1.
    SF_DEVICE int output_of(int row) const {
        const int n = n0 + row / kWarpColumns * kWarpColumns + Math::column(row % kWarpColumns);
        return n < p.outputs ? n : -1;
    }

    // A step of all b into `to`, by all threads.
    SF_DEVICE void fill_weights(T* to, int at_step) const {
        const int k = at_step * kK + thread_x() % kLateralUnits * kVector;
        SF_UNROLL
        for (int i = 0; i < ceil_div(Columns, kRowsOnce); ++i) {
            const int row = thread_x() / kLateralUnits + i * kRowsOnce;
            if (row >= Columns) break;
            const int n = output_of(row);
            T* b = to + kVector * lateral_unit(row, thread_x() % kLateralUnits);
            const T* source = p.weights + int64_t(n) * k_size + k;
            if constexpr (Async) {
                const bool valid = n >= 0 && k < k_size;
                cp_async16(b, valid ? source : p.weights, valid);
            } else {
                SF_NO_UNROLL
                for (int j = 0; j < kVector; ++j) b[j] = n >= 0 && k + j < k_size ? source[j] : T{};
            }
        }
    }

    SF_DEVICE void fill_values(T* to) const {
        const int64_t frame_size = p.frame_pixels * p.x_pitch;
        T* a = to + kVector * lateral_unit(thread_x() / kLateralUnits, thread_x() % kLateralUnits);
        int at_tap = tap, at_channel = channel;
        // A vector lies within one tap, where there are vectors.
        SF_NO_UNROLL
        for (int j = 0; j < (Async ? 1 : kVector); ++j) {
            const int64_t at = at_tap * frame_size + at_channel;
            SF_UNROLL
            for (int i = 0; i < kRowsEach; ++i) {
                const int frame = first[i] + at_tap;
                const bool valid = at_tap < p.taps && frame >= 0 && frame < p.frames;
                T* place = a + i * kRowsOnce * kK + j;
                if constexpr (Async) {
                    cp_async16(place, valid ? p.x + from[i] + at : p.x, valid);
                } else {
                    *place = valid ? p.x[from[i] + at] : T{};
                }
            }
            if (++at_channel == p.channels) at_channel = 0, ++at_tap;
        }
    }

    // The next step on its way.
    SF_DEVICE void fill() {
        if (Resident ? tile < p.tiles : step < steps) {
            if (Resident && step == 0) locate();
            T* to = ring + filled % kStages * kStage;
            fill_values(to);
            if constexpr (!Resident) fill_weights(to + kStageA, step);
            tap += p.step_taps;
            channel += p.step_channels;
            if (channel >= p.channels) channel -= p.channels, ++tap;
            if (++step == steps && Resident) {
                step = 0;
                tile += p.walkers;
                advance();
            }
        }
        ++filled;
        cp_async_commit();
    }

    SF_DEVICE void store_tile(const Math& math, int of_tile) const {
        const int64_t m0 = int64_t(of_tile) * kLateralRows + warp() % 4 * 32;
        const int warp_column = warp() / 4 * kWarpColumns;
        Vec<float, Math::kSome> scale, shift;  // of the columns at hand
        math.each([&](bool new_columns, int row, int column, Vec<float, Math::kSome> v) {
            constexpr int kSome = Math::kSome;
            const int n = n0 + warp_column + column;
            if (new_columns) {
                syncwarp();  // else the compiler brings those of all columns first, into registers it lacks
                scale = load_run<kSome>(affine + warp_column + column);
                shift = load_run<kSome>(affine + Columns + warp_column + column);
            }
            SF_UNROLL
            for (int i = 0; i < kSome; ++i) {
                v[i] = v[i] * scale[i] + shift[i];
                if (p.relu && v[i] < 0.0f) v[i] = 0.0f;  // NaN passes
            }
            if (m0 + row >= p.pixels || n >= p.outputs) return;
            T* to = p.out + (m0 + row) * p.out_pitch + n;
            const auto result = from_float<T>(v);
            if (p.wide && n + kSome <= p.outputs) {
                store_result(to, result);
            } else {
                SF_UNROLL
                for (int i = 0; i < kSome; ++i)
                    if (n + i < p.outputs) to[i] = result[i];
            }
        });
    }

    SF_DEVICE void run() {
        if constexpr (Resident) {  // with the first step's group
            for (int i = 0; i < steps; ++i) fill_weights(weights + i * kStageB, i);
        } else {
            locate();
        }
        for (int i = thread_x(); i < Columns; i += kThreads) {
            const bool valid = n0 + i < p.outputs;
            affine[i] = valid && p.scale ? p.scale[n0 + i] : 1.0f;
            affine[Columns + i] = valid && p.shift ? p.shift[n0 + i] : 0.0f;
        }
        const int tile0 = tile;
        SF_NO_UNROLL
        for (int i = 0; i < kStages - 1; ++i) fill();
        SF_NO_UNROLL
        for (int at = tile0; at < p.tiles; at += p.walkers) {
            Math math;
            SF_NO_UNROLL
            for (int i = 0; i < steps; ++i) {
                cp_async_wait<kStages - 2>();
                syncthreads();  // the step's tiles are there, and nobody reads those of the step before
                const T* a = ring + (filled + 1) % kStages * kStage;
                fill();
                const T* b = Resident ? weights + i * kStageB : a + kStageA;
                math.step(a + warp() % 4 * 32 * kK, b + warp() / 4 * kWarpColumns * kK);
            }
            store_tile(math, at);
        }
    }
};

template <class T, template <class, int> class MathOf, int Columns, bool Async, bool Resident>
SF_KERNEL SF_LAUNCH_BOUNDS((Lateral<T, MathOf, Columns, Async, Resident>::kThreads),
                           Columns <= 64 ? 3 : 4 / sizeof(T)) void lateral_kernel(LateralParams<T> p) {
    const int across = ceil_div(p.outputs, Columns);
    Lateral<T, MathOf, Columns, Async, Resident> block(p, dynamic_shared<float>(),
                                                       block_x() % across * Columns, block_x() / across);
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
