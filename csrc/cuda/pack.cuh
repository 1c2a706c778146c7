// Decoded frames to the normalised clips of both pathways: every byte is read once.
//
// Colour: both clips hold a frame's values in the order of the frame, so that a thread takes a run of them,
// whatever their channels: as many as it stores at once, for two stores would each write half of every
// sector. It takes that run of some frames, whose bytes are on their way together. One channel (gray,
// differences in time): a thread keeps its pixels and walks the frames, with the gray of the frame before in
// registers. A grid is blocks of runs x groups of frames x clips: nothing is divided but a crop's runs by rows.
#pragma once

#include "cuda/primitives.cuh"

namespace slowfast::cuda {

constexpr int kPackThreads = 256, kPackPixels = 4;
constexpr int kPackFrames = 4;  // of a thread: colour
template <class T>
constexpr int kPackRun = 16 / static_cast<int>(sizeof(T));

// Quotients of 0 <= i < 2^30 by one number: a product.
struct Quotient {
    uint32_t factor;
    int shift;
    SF_DEVICE int of(int i) const { return static_cast<int>(uint64_t(i) * factor >> shift); }
};
inline Quotient quotient_by(int n) {
    int shift = 30;
    while ((int64_t(1) << (shift - 30)) < n) ++shift;
    return {static_cast<uint32_t>((uint64_t(1) << shift) / n + 1), shift};
}

template <class T>
struct PackParams {
    const uint8_t* x;
    int64_t stride_n, stride_t, stride_h, stride_w, stride_c;
    T *slow, *fast;
    const int64_t* index;  // [count]: the frames of the Slow clip
    int frames, count;
    int64_t clips;
    int groups_once, clips_once;  // that the grid covers: all, but of very many
    int rows;                     // rows that follow each other are one row
    int64_t pixels;               // of a row
    int runs;                     // of a row: of kPackRun<T> values, one channel: of kPackPixels pixels
    Quotient row_of;              // of a run among all rows
    int part;                     // frames that a thread walks, one channel only
    float scale[3], shift[3];     // of red, green and blue
    float gray_scale, gray_shift, diff_shift;  // of luma in 1/255000
    bool reverse, diff;
    bool wide_x, wide_y;  // runs may be read, written as vectors
};

SF_DEVICE float pack_nan() {
    return bit_cast<float>(0x7fc00000u);
}

SF_DEVICE float pick(const float (&v)[3], int i) {
    return i == 0 ? v[0] : i == 1 ? v[1] : v[2];
}

// The first `left` of N values, in vectors where they all are there and memory allows.
template <class T, int N>
SF_DEVICE void store_floats(T* to, const float* v, int64_t left, bool wide) {
    constexpr int kMost = 16 / static_cast<int>(sizeof(T)), kVector = N % kMost == 0 ? kMost : kPackPixels;
    static_assert(N % kVector == 0, "runs are whole vectors");
    if (wide && left >= N) {
        SF_UNROLL
        for (int i = 0; i < N; i += kVector) {
            Vec<float, kVector> f;
            SF_UNROLL
            for (int j = 0; j < kVector; ++j) f[j] = v[i + j];
            store(to + i, from_float<T>(f));
        }
        return;
    }
    SF_UNROLL
    for (int i = 0; i < N; ++i)
        if (i < left) to[i] = from_float<T>(v[i]);
}

// Frames t0 to t0 + Frames - 1 to every place of the Slow clip that takes one: put(to, u) stores frame t0 + u's
// values, u < 0 NaN, for a number that names no frame makes its place NaN: the host cannot check numbers that
// a captured stream will read. All lanes take part, each with one of the numbers.
template <int Frames, class T, class F>
SF_DEVICE void store_slow(const PackParams<T>& a, int64_t n, int t0, int64_t size, int64_t at, F put) {
    for (int s0 = 0; s0 < a.count; s0 += kWarp) {
        const bool has = s0 + lane() < a.count;
        const int64_t wanted = has ? load_readonly<1>(a.index + s0 + lane())[0] : 0;
        const bool none = t0 == 0 && (wanted < 0 || wanted >= a.frames);
        const bool takes = wanted >= t0 && wanted < t0 + Frames && wanted < a.frames;
        const int mine = none ? -1 : static_cast<int>(wanted - t0);
        T* to = a.slow + (n * a.count + s0) * size + at;
        uint32_t left = ballot_sync(has && (takes || none));
        for (int s = 0; left != 0; ++s, left >>= 1, to += size)
            if (left & 1) put(to, shfl_sync(mine, s));
    }
}

// N bytes as they follow one another, times scale plus shift of value 0, 1, 2, 0, ...
template <class T, int N>
SF_DEVICE Vec<T, N> scaled(const Vec<uint8_t, N>& bytes, const float (&scale)[3], const float (&shift)[3]) {
    Vec<float, N> v;
    SF_UNROLL
    for (int j = 0; j < N; ++j) v[j] = static_cast<float>(bytes[j]) * scale[j % 3] + shift[j % 3];
    return from_float<T>(v);
}

template <class T, int N>
SF_DEVICE void store_run(T* to, const Vec<T, N>& v, int64_t left, bool wide) {
    if (wide && left >= N) {
        store(to, v);
        return;
    }
    SF_UNROLL
    for (int i = 0; i < N; ++i)
        if (i < left) to[i] = v[i];
}

// Wide: runs may be read as vectors, and then those of several frames at a time are.
template <class T, bool Wide>
SF_KERNEL SF_LAUNCH_BOUNDS(kPackThreads, 3) void pack_colour_kernel(PackParams<T> a) {
    constexpr int kRun = kPackRun<T>, kOnce = Wide ? kPackFrames : 1;
    const int i = block_x() * kPackThreads + thread_x();
    const int row = a.rows == 1 ? 0 : a.row_of.of(i), k = i - row * a.runs;
    const int first = kRun % 3 * k % 3;  // channel of the run's first value
    const int64_t e = int64_t(k) * kRun, left = i < a.rows * a.runs ? a.pixels * 3 - e : 0;
    const int64_t size = a.rows * a.pixels * 3, at = row * a.pixels * 3 + e;

    float scale[3], shift[3];  // of the run's values 0, 1, 2, 0, ...
    int source[3];
    SF_UNROLL
    for (int c = 0; c < 3; ++c) {
        const int channel = first + c < 3 ? first + c : first + c - 3;
        source[c] = a.reverse ? 2 - channel : channel;
        scale[c] = pick(a.scale, source[c]);
        shift[c] = pick(a.shift, source[c]);
    }
    const int64_t pixel = kRun / 3 * int64_t(k) + kRun % 3 * k / 3;
    const auto load_bytes = [&](const uint8_t* from) {
        Vec<uint8_t, kRun> bytes;
        SF_UNROLL
        for (int j = 0; j < kRun; ++j) {
            const int64_t byte =
                Wide ? e + j
                     : (pixel + j / 3 + (first + j % 3 >= 3)) * a.stride_w + source[j % 3] * a.stride_c;
            bytes[j] = j < left ? from[byte] : 0;
        }
        return bytes;
    };
    for (int64_t n = block_z(); n < a.clips; n += a.clips_once) {
        for (int t0 = block_y() * kPackFrames; t0 < a.frames; t0 += a.groups_once * kPackFrames) {
            SF_NO_UNROLL
            for (int t = t0; t < t0 + kPackFrames && t < a.frames; t += kOnce) {
                const uint8_t* from = a.x + n * a.stride_n + t * a.stride_t + row * a.stride_h;
                Vec<uint8_t, kRun> bytes[kOnce] = {};
                if (Wide && left >= kRun) {
                    SF_UNROLL
                    for (int u = 0; u < kOnce; ++u)
                        if (t + u < a.frames) bytes[u] = load_readonly<kRun>(from + u * a.stride_t + e);
                } else {
                    SF_UNROLL
                    for (int u = 0; u < kOnce; ++u)
                        if (t + u < a.frames) bytes[u] = load_bytes(from + u * a.stride_t);
                }
                Vec<T, kRun> v[kOnce];
                T* fast = a.fast + (n * a.frames + t) * size + at;
                SF_UNROLL
                for (int u = 0; u < kOnce; ++u) {
                    v[u] = scaled<T>(bytes[u], scale, shift);
                    if (t + u < a.frames) store_run(fast + u * size, v[u], left, a.wide_y);
                }
                store_slow<kOnce>(a, n, t, size, at, [&](T* to, int u) {
                    Vec<float, kRun> nan;
                    SF_UNROLL
                    for (int j = 0; j < kRun; ++j) nan[j] = pack_nan();
                    Vec<T, kRun> value = from_float<T>(nan);
                    SF_UNROLL
                    for (int f = 0; f < kOnce; ++f)
                        if (u == f) value = v[f];
                    store_run(to, value, left, a.wide_y);
                });
            }
        }
    }
}

// Red, green and blue of kPackPixels pixels, `left` of which are there.
SF_DEVICE void load_pixels(int (&rgb)[3 * kPackPixels], const uint8_t* from, int64_t stride_w,
                           int64_t stride_c, int64_t left, bool wide) {
    if (wide && left >= kPackPixels) {
        SF_UNROLL
        for (int i = 0; i < 3; ++i) {
            const Vec<uint8_t, kPackPixels> bytes = load_readonly<kPackPixels>(from + i * kPackPixels);
            SF_UNROLL
            for (int j = 0; j < kPackPixels; ++j) rgb[i * kPackPixels + j] = bytes[j];
        }
        return;
    }
    SF_UNROLL
    for (int i = 0; i < kPackPixels; ++i) {
        SF_UNROLL
        for (int c = 0; c < 3; ++c) rgb[3 * i + c] = i < left ? from[i * stride_w + c * stride_c] : 0;
    }
}

// A whole number of 1/255000: differences are exact.
SF_DEVICE int luma(const int* rgb) {
    return 299 * rgb[0] + 587 * rgb[1] + 114 * rgb[2];
}

template <class T>
SF_KERNEL SF_LAUNCH_BOUNDS(kPackThreads, 4) void pack_gray_kernel(PackParams<T> a) {
    const int i = block_x() * kPackThreads + thread_x(), row = a.rows == 1 ? 0 : a.row_of.of(i);
    const int64_t pixel = int64_t(i - row * a.runs) * kPackPixels;
    const int64_t left = i < a.rows * a.runs ? a.pixels - pixel : 0;
    const int64_t size = a.rows * a.pixels, at = row * a.pixels + pixel;

    // Frames [t0, t1) of clip n.
    const auto pack = [&](int64_t n, int t0, int t1) {
        const uint8_t* from = a.x + n * a.stride_n + row * a.stride_h + pixel * a.stride_w;
        int rgb[3 * kPackPixels], before[kPackPixels] = {};
        if (a.diff && t0 > 0) {
            load_pixels(rgb, from + (t0 - 1) * a.stride_t, a.stride_w, a.stride_c, left, a.wide_x);
            SF_UNROLL
            for (int j = 0; j < kPackPixels; ++j) before[j] = luma(rgb + 3 * j);
        }
        for (int t = t0; t < t1; ++t) {
            load_pixels(rgb, from + t * a.stride_t, a.stride_w, a.stride_c, left, a.wide_x);
            float v[kPackPixels], colour[3 * kPackPixels];
            SF_UNROLL
            for (int j = 0; j < kPackPixels; ++j) {
                const int gray = luma(rgb + 3 * j);
                if (a.diff) {
                    v[j] = t == 0 ? 0.0f : static_cast<float>(gray - before[j]) * a.gray_scale + a.diff_shift;
                    before[j] = gray;
                } else {
                    v[j] = static_cast<float>(gray) * a.gray_scale + a.gray_shift;
                }
                SF_UNROLL
                for (int c = 0; c < 3; ++c) {
                    const float value = static_cast<float>(rgb[3 * j + c]) * a.scale[c] + a.shift[c];
                    // The place is known when compiling but for the order.
                    if (c == 1) {
                        colour[3 * j + 1] = value;
                    } else if (a.reverse) {
                        colour[3 * j + 2 - c] = value;
                    } else {
                        colour[3 * j + c] = value;
                    }
                }
            }
            store_floats<T, kPackPixels>(a.fast + (n * a.frames + t) * size + at, v, left, a.wide_y);
            store_slow<1>(a, n, t, 3 * size, 3 * at, [&](T* to, int u) {
                float value[3 * kPackPixels];
                SF_UNROLL
                for (int j = 0; j < 3 * kPackPixels; ++j) value[j] = u < 0 ? pack_nan() : colour[j];
                store_floats<T, 3 * kPackPixels>(to, value, 3 * left, a.wide_y);
            });
        }
    };
    for (int64_t n = block_z(); n < a.clips; n += a.clips_once) {
        for (int t0 = block_y() * a.part; t0 < a.frames; t0 += a.groups_once * a.part) {
            pack(n, t0, t0 + a.part < a.frames ? t0 + a.part : a.frames);
        }
    }
}

}  // namespace slowfast::cuda
