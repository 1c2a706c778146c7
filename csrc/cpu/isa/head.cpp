// Head: sums over sliding windows of a channels-last map, and rows of them times the classifier's weights.

#include "cpu/isa/entry.h"
#include "cpu/isa/vec.h"

namespace slowfast::SLOWFAST_ISA {

namespace {

// Sum over the frames of row h, channels [c0, c1), into sums[w][c1 - c0].
template <class T>
void sum_frames(const HeadPoolParams& a, int64_t n, int64_t h, int64_t c0, int64_t c1, float* sums) {
    constexpr int kUnroll = 4;
    const int64_t frame = a.h * a.w * a.pixel, width = c1 - c0;
    for (int64_t w = 0; w < a.w; ++w, sums += width) {
        const char* x =
            a.x + n * a.t * frame + (h * a.w + w) * a.pixel + c0 * static_cast<int64_t>(sizeof(T));
        int64_t c = 0;
        for (; c + kUnroll * kLanes <= width; c += kUnroll * kLanes) {
            V s[kUnroll];
            for (int i = 0; i < kUnroll; ++i) s[i] = zero();
            for (int64_t t = 0; t < a.t; ++t)
                for (int i = 0; i < kUnroll; ++i)
                    s[i] = add(s[i], load(reinterpret_cast<const T*>(x + t * frame) + c + i * kLanes));
            for (int i = 0; i < kUnroll; ++i) store(sums + c + i * kLanes, s[i]);
        }
        for (; c < width; c += kLanes) {
            const int lanes = static_cast<int>(width - c < kLanes ? width - c : kLanes);
            V s = zero();
            for (int64_t t = 0; t < a.t; ++t)
                s = add(s, load_any(reinterpret_cast<const T*>(x + t * frame) + c, lanes));
            store_any(sums + c, s, lanes);
        }
    }
}

template <class T>
void pool_channels(const HeadPoolParams& a, int64_t n, int64_t c0, int64_t c1, float* sums) {
    const int64_t rows = a.h - a.window_h + 1, cols = a.w - a.window_w + 1, width = c1 - c0;
    const int64_t positions = a.merge ? 1 : rows * cols;
    float* out = a.out + n * positions * a.out_stride + c0;
    for (int64_t p = 0; p < positions; ++p)
        memset(out + p * a.out_stride, 0, static_cast<size_t>(width) * sizeof(float));
    for (int64_t h = 0; h < a.h; ++h) {
        sum_frames<T>(a, n, h, c0, c1, sums);
        const int64_t first = h - a.window_h + 1 < 0 ? 0 : h - a.window_h + 1, last = h < rows ? h : rows - 1;
        for (int64_t col = 0; col < cols; ++col)
            for (int64_t c = 0; c < width; c += kLanes) {
                const int lanes = static_cast<int>(width - c < kLanes ? width - c : kLanes);
                V s = zero();
                for (int64_t w = col; w < col + a.window_w; ++w)
                    s = add(s, load_any(sums + w * width + c, lanes));
                for (int64_t row = first; row <= last; ++row) {
                    float* o = out + (a.merge ? 0 : row * cols + col) * a.out_stride + c;
                    store_any(o, add(load_any(o, lanes), s), lanes);
                }
            }
    }
    const int64_t count = a.t * a.window_h * a.window_w * (a.merge ? rows * cols : 1);
    const V divisor = set1(static_cast<float>(count));
    for (int64_t p = 0; p < positions; ++p)
        for (int64_t c = 0; c < width; c += kLanes) {
            const int lanes = static_cast<int>(width - c < kLanes ? width - c : kLanes);
            float* o = out + p * a.out_stride + c;
            store_any(o, div(load_any(o, lanes), divisor), lanes);
        }
}

// out[r][j] for R rows and J classes: dot products along the channels.
template <class T, int R, int J>
void dot_tile(const HeadLinearParams& a, int64_t row, int64_t j0) {
    V acc[R][J];
    for (int r = 0; r < R; ++r)
        for (int j = 0; j < J; ++j) acc[r][j] = zero();
    const float* x = a.x + row * a.channels;
    const char* w = a.weight + j0 * a.weight_stride;
    const auto step = [&](int64_t c, int lanes) __attribute__((always_inline)) {
        V wv[J];
        for (int j = 0; j < J; ++j)
            wv[j] = load_any(reinterpret_cast<const T*>(w + j * a.weight_stride) + c, lanes);
        for (int r = 0; r < R; ++r) {
            const V xv = load_any(x + r * a.channels + c, lanes);
            for (int j = 0; j < J; ++j) acc[r][j] = fma(xv, wv[j], acc[r][j]);
        }
    };
    int64_t c = 0;
    for (; c + kLanes <= a.channels; c += kLanes) step(c, kLanes);
    if (c < a.channels) step(c, static_cast<int>(a.channels - c));
    for (int r = 0; r < R; ++r)
        for (int j = 0; j < J; ++j)
            a.out[(row + r) * a.classes + j0 + j] = sum(acc[r][j]) + (a.bias ? a.bias[j0 + j] : 0.0f);
}

#if defined(__AVX512F__)
constexpr int kRows = 4, kClasses = 4;
#else
constexpr int kRows = 2, kClasses = 2;  // 16 registers of half a vector
#endif

template <class T, int J>
void dot_rows(const HeadLinearParams& a, int64_t r0, int64_t r1, int64_t j) {
    for (; r0 + kRows <= r1; r0 += kRows) dot_tile<T, kRows, J>(a, r0, j);
    for (; r0 < r1; ++r0) dot_tile<T, 1, J>(a, r0, j);
}

template <class T>
void linear(const HeadLinearParams& a, int64_t r0, int64_t r1, int64_t j0, int64_t j1) {
    for (; j0 + kClasses <= j1; j0 += kClasses) dot_rows<T, kClasses>(a, r0, r1, j0);
    for (; j0 < j1; ++j0) dot_rows<T, 1>(a, r0, r1, j0);
}

}  // namespace

void head_pool_item(const HeadPoolParams& a, int64_t n, int64_t c0, int64_t c1, char* scratch) {
    float* sums = reinterpret_cast<float*>(scratch);
    with_dtype<float, bf16, f16>(a.dtype,
                                 [&](auto zero) { pool_channels<decltype(zero)>(a, n, c0, c1, sums); });
}

void head_linear_item(const HeadLinearParams& a, int64_t r0, int64_t r1, int64_t j0, int64_t j1) {
    with_dtype<float, bf16, f16>(a.dtype, [&](auto zero) { linear<decltype(zero)>(a, r0, r1, j0, j1); });
}

}  // namespace slowfast::SLOWFAST_ISA
