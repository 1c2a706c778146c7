// Decoded frames to the normalised clips of both pathways: every byte is read once.
//
// Colour: both clips hold a frame's values in the order of the frame, so that a thread takes a run of them,
// whatever their channels: as many as it stores at once, for two stores would each write half of every
// sector. One channel (gray, differences in time): a thread keeps its pixels and walks the
// frames, with the gray of the frame before in registers.
#pragma once

#include "cuda/primitives.cuh"

namespace slowfast::cuda {

constexpr int kPackThreads = 256, kPackPixels = 4;
template <class T>
constexpr int kPackRun = 16 / static_cast<int>(sizeof(T));

template <class T>
struct PackParams {
    const uint8_t* x;
    int64_t stride_n, stride_t, stride_h, stride_w, stride_c;
    T *slow, *fast;
    const int64_t* index;  // [count]: the frames of the Slow clip
    int frames, count;
    int rows;                  // rows that follow each other are one row
    int64_t pixels;            // of a row
    int runs;                  // of a row: of kPackRun<T> values, one channel: of kPackPixels pixels
    int part;                  // frames that a thread walks, one channel only
    float scale[3], shift[3];  // of red, green and blue
    float gray_scale, gray_shift, diff_shift;  // of luma in 1/255000
    bool reverse, diff;
    bool wide_x, wide_y;  // runs may be read, written as vectors
};

SF_DEVICE float pick(const float (&v)[3], int i) {
    return i == 0 ? v[0] : i == 1 ? v[1] : v[2];
}

// The first `left` of N values, in vectors where they all are there and memory allows.
template <class T, int N>
SF_DEVICE void store_run(T* to, const float* v, int64_t left, bool wide) {
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

// N values of frame t to every place of the Slow clip that takes it. A number that names no frame makes its
// place NaN: the host cannot check numbers that a captured stream will read. All lanes take part, each with
// one of the numbers; `left` is 0 in those that have no values.
template <class T, int N>
SF_DEVICE void store_slow(const PackParams<T>& a, int64_t n, int t, int64_t size, int64_t at, const float* v,
                          int64_t left) {
    for (int s0 = 0; s0 < a.count; s0 += kWarp) {
        const bool has = s0 + lane() < a.count;
        const int64_t wanted = has ? load_readonly<1>(a.index + s0 + lane())[0] : 0;
        uint32_t takes = ballot_sync(has && wanted == t);
        uint32_t none = t == 0 ? ballot_sync(has && (wanted < 0 || wanted >= a.frames)) : 0;
        T* to = a.slow + (n * a.count + s0) * size + at;
        for (; (takes | none) != 0; takes >>= 1, none >>= 1, to += size) {
            if (takes & 1) store_run<T, N>(to, v, left, a.wide_y);
            if (none & 1) {
                float nan[N];
                SF_UNROLL
                for (int i = 0; i < N; ++i) nan[i] = bit_cast<float>(0x7fc00000u);
                store_run<T, N>(to, nan, left, a.wide_y);
            }
        }
    }
}

template <class T>
SF_KERNEL SF_LAUNCH_BOUNDS(kPackThreads, 3) void pack_colour_kernel(PackParams<T> a) {
    constexpr int kRun = kPackRun<T>;
    const int blocks = ceil_div(a.rows * a.runs, kPackThreads);
    const int i = block_x() % blocks * kPackThreads + thread_x(), frame = block_x() / blocks;
    const int row = i / a.runs, k = i % a.runs, t = frame % a.frames;
    const int64_t n = frame / a.frames;
    // The run's first pixel, and its channel there.
    const int64_t e = int64_t(k) * kRun, pixel = kRun / 3 * int64_t(k) + kRun % 3 * k / 3;
    const int first = kRun % 3 * k % 3;
    const int64_t left = i < a.rows * a.runs ? a.pixels * 3 - e : 0;
    const uint8_t* from = a.x + n * a.stride_n + t * a.stride_t + row * a.stride_h;

    float scale[3], shift[3];  // of the run's values 0, 1, 2, 0, ...
    int source[3];
    SF_UNROLL
    for (int c = 0; c < 3; ++c) {
        const int channel = first + c < 3 ? first + c : first + c - 3;
        source[c] = a.reverse ? 2 - channel : channel;
        scale[c] = pick(a.scale, source[c]);
        shift[c] = pick(a.shift, source[c]);
    }
    float v[kRun];
    if (a.wide_x && left >= kRun) {
        const Vec<uint8_t, kRun> bytes = load_readonly<kRun>(from + e);
        SF_UNROLL
        for (int j = 0; j < kRun; ++j) v[j] = static_cast<float>(bytes[j]);
    } else {
        SF_UNROLL
        for (int j = 0; j < kRun; ++j) {
            const int64_t at =
                (pixel + j / 3 + (first + j % 3 >= 3)) * a.stride_w + source[j % 3] * a.stride_c;
            v[j] = j < left ? static_cast<float>(from[at]) : 0.0f;
        }
    }
    SF_UNROLL
    for (int j = 0; j < kRun; ++j) v[j] = v[j] * scale[j % 3] + shift[j % 3];
    const int64_t size = a.rows * a.pixels * 3, at = row * a.pixels * 3 + e;
    store_run<T, kRun>(a.fast + frame * size + at, v, left, a.wide_y);
    store_slow<T, kRun>(a, n, t, size, at, v, left);
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
    const int blocks = ceil_div(a.rows * a.runs, kPackThreads), parts = ceil_div(a.frames, a.part);
    const int i = block_x() % blocks * kPackThreads + thread_x(), item = block_x() / blocks;
    const int row = i / a.runs, t0 = item % parts * a.part;
    const int t1 = t0 + a.part < a.frames ? t0 + a.part : a.frames;
    const int64_t n = item / parts, pixel = int64_t(i % a.runs) * kPackPixels;
    const int64_t left = i < a.rows * a.runs ? a.pixels - pixel : 0;
    const uint8_t* from = a.x + n * a.stride_n + row * a.stride_h + pixel * a.stride_w;
    const int64_t size = a.rows * a.pixels, at = row * a.pixels + pixel;

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
        store_run<T, kPackPixels>(a.fast + (n * a.frames + t) * size + at, v, left, a.wide_y);
        store_slow<T, 3 * kPackPixels>(a, n, t, 3 * size, 3 * at, colour, 3 * left);
    }
}

}  // namespace slowfast::cuda
