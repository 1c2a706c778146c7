// The stem for few output channels (the Fast pathway's 8): output pixels are the vector lanes.
//
// The clip is first laid out in planes, one line of pixels per channel, so that the inputs of 16 neighbouring
// output pixels are contiguous: with a stride of 2 in width, float32 lines are split into even and odd
// columns; bfloat16 lines stay whole, and a lane takes two neighbouring columns at a time. Every weight is
// then one broadcast used for up to 48 pixels, and no lane idles however few the channels are.

#include "cpu/isa/vec.h"
#include "cpu/isa/entry.h"

namespace slowfast::SLOWFAST_ISA {

namespace {

#if defined(__AVX512F__)
constexpr int kVectors = 3, kChannels = 8;  // 24 sums in registers
#else
constexpr int kVectors = 1, kChannels = 4;
#endif
constexpr int kGroup = 8;  // channels of a weight group in memory

int64_t groups(const StemParams& a) {
    return (a.channels + kGroup - 1) / kGroup;
}
int64_t ring_width(const StemParams& a) {
    return (a.wc + kLanes - 1) / kLanes * kLanes + 2 * kLanes;
}

template <class T>
constexpr int columns_per_unit() {
    return 4 / static_cast<int>(sizeof(T));
}

// The next line's pixels: the hardware does not foresee the jump from line to line.
template <class T, int NV>
SF_INLINE void prefetch_line(const char* line, int64_t phase) {
#pragma GCC unroll 4
    for (int v = 0; v <= NV; ++v) {
        __builtin_prefetch(line + v * 64);
        if (sizeof(T) == 4) __builtin_prefetch(line + phase + v * 64);
    }
}

// Output pixels [w0, w0 + NV * 16) of one row for channels [c0, c0 + kChannels) of a group.
template <class T, int NV>
SF_INLINE void pixels(const StemParams& a, const char* const* lines, int64_t count, const char* weights,
                      int64_t w0, int c0, int64_t first_channel, float* row, int64_t row_stride) {
    constexpr int kColumns = columns_per_unit<T>();
    const int units = static_cast<int>((a.kernel[2] + kColumns - 1) / kColumns);
    const bool half = kColumns == 2 && a.kernel[2] % 2;  // the last unit's second column is a neighbour's
    const int64_t unit_bytes = groups(a) * kGroup * 4;
    V acc[kChannels][NV];
#pragma GCC unroll 8
    for (int c = 0; c < kChannels; ++c)
#pragma GCC unroll 3
        for (int v = 0; v < NV; ++v) acc[c][v] = zero();
    const char* w = weights + c0 * 4;
    for (int64_t i = 0; i < count; ++i) {
        const char* line = lines[i] + w0 * 4;
        if (i + 1 < count) prefetch_line<T, NV>(lines[i + 1] + w0 * 4, a.wp * 4);
        for (int u = 0; u < units; ++u, w += unit_bytes) {
            const char* p = kColumns == 2 ? line + u * 4 : line + (u & 1) * a.wp * 4 + (u >> 1) * 4;
            V x[NV];
#pragma GCC unroll 3
            for (int v = 0; v < NV; ++v) x[v] = load(reinterpret_cast<const float*>(p) + v * kLanes);
            if (half && u == units - 1)
#pragma GCC unroll 3
                for (int v = 0; v < NV; ++v) x[v] = low_halves(x[v]);
#pragma GCC unroll 8
            for (int c = 0; c < kChannels; ++c) {
                const V b = bcast32(w + c * 4);
#pragma GCC unroll 3
                for (int v = 0; v < NV; ++v) acc[c][v] = dot<T>(acc[c][v], x[v], b);
            }
        }
    }
#pragma GCC unroll 8
    for (int c = 0; c < kChannels; ++c) {
        const int64_t channel = first_channel + c0 + c;
        const V shift = set1(a.shift && channel < a.channels ? a.shift[channel] : 0.0f);
#pragma GCC unroll 3
        for (int v = 0; v < NV; ++v) {
            V y = add(acc[c][v], shift);
            if (a.relu) y = relu(y);
            store(row + (first_channel + c0 + c) * row_stride + w0 + v * kLanes, y);
        }
    }
}

// One row of the convolution, every channel: row[channel][pixel], pixels rounded up to whole vectors.
template <class T>
void conv_row(const StemParams& a, int64_t n, int64_t t, int64_t h, float* row) {
    const int64_t line = a.wp * 2 * static_cast<int64_t>(sizeof(T));  // even and odd columns
    const int64_t t_first = t * a.stride[0] - a.pad_t;
    int64_t kt0 = 0, kt1 = a.kernel[0];
    while (kt0 < kt1 && t_first + kt0 < 0) ++kt0;
    while (kt1 > kt0 && t_first + kt1 > a.t) --kt1;
    const char* lines[1024];
    int64_t count = 0;
    for (int64_t kt = kt0; kt < kt1; ++kt)
        for (int64_t kh = 0; kh < a.kernel[1]; ++kh)
            for (int64_t c = 0; c < a.cin; ++c)
                lines[count++] =
                    a.padded +
                    ((((n * a.t + t_first + kt) * a.hp + h * a.stride[1] + kh) * a.cin) + c) * line;
    const int64_t units = (a.kernel[2] + columns_per_unit<T>() - 1) / columns_per_unit<T>();
    const char* weights = a.packed + kt0 * a.kernel[1] * a.cin * units * groups(a) * kGroup * 4;
    const int64_t vectors = (a.wc + kLanes - 1) / kLanes, width = ring_width(a);
    for (int64_t g = 0; g < groups(a); ++g)
        for (int c0 = 0; c0 < kGroup; c0 += kChannels)
            for (int64_t v = 0; v < vectors;) {
                const char* w = weights + g * kGroup * 4;
                const int64_t left = vectors - v;
                // 4 vectors left are two pairs: a single one would leave the registers idle
                const int nv = left < kVectors              ? static_cast<int>(left)
                               : left == 4 && kVectors == 3 ? 2
                                                            : kVectors;
                if (nv == 3)
                    pixels<T, (kVectors < 3 ? 1 : 3)>(a, lines, count, w, v * kLanes, c0, g * kGroup, row,
                                                      width);
                else if (nv == 2)
                    pixels<T, (kVectors < 2 ? 1 : 2)>(a, lines, count, w, v * kLanes, c0, g * kGroup, row,
                                                      width);
                else
                    pixels<T, 1>(a, lines, count, w, v * kLanes, c0, g * kGroup, row, width);
                v += nv;
            }
}

// Planes to channels-last pixels: out[w][c] = in[c][w].
template <class T>
void interleave(const StemParams& a, const float* in, int64_t in_stride, int64_t count, char* out) {
    for (int64_t w = 0; w < count; ++w) {
        float pixel[64];
        T* o = reinterpret_cast<T*>(out + w * a.out_stride);
        for (int64_t c = 0; c < a.channels; ++c) pixel[c] = in[c * in_stride + w];
        for (int64_t c = 0; c < a.channels; c += kLanes) {
            const int n = static_cast<int>(a.channels - c);
            store_any(o + c, load_any(pixel + c, n), n);
        }
    }
}

template <class T>
void item(const StemParams& a, int64_t n, int64_t t, int64_t h0, int64_t h1, char* scratch) {
    const int64_t width = ring_width(a), plane = groups(a) * kGroup * width;
    float* ring = reinterpret_cast<float*>(scratch) + kLanes;  // room left of the first pixel
    float* pooled = ring + 3 * plane;
    char* frame = a.out + (n * a.to + t) * a.ho * a.wo * a.out_stride;
    if (!a.pool) {
        for (int64_t h = h0; h < h1; ++h) {
            conv_row<T>(a, n, t, h, ring);
            interleave<T>(a, ring, width, a.wc, frame + h * a.wo * a.out_stride);
        }
        return;
    }
    const float lowest = -__builtin_inff();
    int64_t ready = h0 * 2 - 1 < 0 ? 0 : h0 * 2 - 1;
    for (int64_t h = h0; h < h1; ++h) {
        const int64_t y0 = h * 2 - 1 < 0 ? 0 : h * 2 - 1, y1 = h * 2 + 2 > a.hc ? a.hc : h * 2 + 2;
        for (; ready < y1; ++ready) conv_row<T>(a, n, t, ready, ring + ready % 3 * plane);
        for (int64_t c = 0; c < a.channels; ++c) {
            float* tall = pooled + c * width;
            for (int64_t w = 0; w < a.wc; w += kLanes) {
                V m = load(ring + y0 % 3 * plane + c * width + w);
                for (int64_t y = y0 + 1; y < y1; ++y)
                    m = max_nan(load(ring + y % 3 * plane + c * width + w), m);
                store(tall + w, m);
            }
            tall[-1] = tall[a.wc] = lowest;               // outside the row
            for (int64_t w = 0; w < a.wo; w += kLanes) {  // in place: later pixels read further right only
                const float* p = tall + 2 * w - 1;
                const V left = load(p), right = load(p + kLanes);
                const V next = evens(load(p + 2), load(p + 2 + kLanes));
                store(tall + w, max_nan(next, max_nan(odds(left, right), evens(left, right))));
            }
        }
        interleave<T>(a, pooled, width, a.wo, frame + h * a.wo * a.out_stride);
    }
}

template <class From>
SF_INLINE float read(const char* p) {
    if constexpr (sizeof(From) == 4) {
        float f;
        memcpy(&f, p, 4);
        return f;
    } else {
        uint16_t h;
        memcpy(&h, p, 2);
        const uint32_t u = static_cast<uint32_t>(h) << 16;
        float f;
        memcpy(&f, &u, 4);
        return f;
    }
}

template <class From, class To>
void layout(const PadParams& a, int64_t n, int64_t t) {
    const int64_t columns = a.wp * 2;
    To* out = reinterpret_cast<To*>(a.out) + (n * a.t + t) * a.hp * a.c * columns;
    for (int64_t h = 0; h < a.hp; ++h)
        for (int64_t c = 0; c < a.c; ++c, out += columns) {
            memset(out, 0, static_cast<size_t>(columns) * sizeof(To));
            const int64_t y = h - a.pad_h;
            if (y < 0 || y >= a.h) continue;
            const char* row =
                a.x + n * a.x_stride[0] + c * a.x_stride[1] + t * a.x_stride[2] + y * a.x_stride[3];
            if constexpr (sizeof(To) == 4) {
                const int64_t first = a.pad_w, second = a.pad_w + 1;  // columns that w = 0 and w = 1 go to
                To* even = out + (first & 1) * a.wp + (first >> 1);
                To* odd = out + (second & 1) * a.wp + (second >> 1);
                int64_t w = 0;
                if (a.x_stride[4] == static_cast<int64_t>(sizeof(From))) {
                    const From* src = reinterpret_cast<const From*>(row);
                    for (; w + 2 * kLanes <= a.w; w += 2 * kLanes) {
                        const V lo = load(src + w), hi = load(src + w + kLanes);
                        store(even + w / 2, evens(lo, hi));
                        store(odd + w / 2, odds(lo, hi));
                    }
                }
                for (; w < a.w; ++w) {
                    To* line = w & 1 ? odd : even;  // a variable: GCC 12's UBSan miscompiles (a ? b : c)[i]
                    line[w / 2] = read<From>(row + w * a.x_stride[4]);
                }
            } else if (a.x_stride[4] == static_cast<int64_t>(sizeof(From))) {
                const From* src = reinterpret_cast<const From*>(row);
                for (int64_t w = 0; w < a.w; w += kLanes) {
                    const int m = static_cast<int>(a.w - w);
                    store_any(out + a.pad_w + w, load_any(src + w, m), m);
                }
            } else {
                for (int64_t w = 0; w < a.w; ++w)
                    store_n(out + a.pad_w + w, set1(read<From>(row + w * a.x_stride[4])), 1);
            }
        }
}

}  // namespace

int64_t stem_planar_scratch(const StemParams& a) {
    return (4 * groups(a) * kGroup * ring_width(a) + 2 * kLanes) * static_cast<int64_t>(sizeof(float));
}

void stem_planar_item(const StemParams& a, int64_t n, int64_t t, int64_t h0, int64_t h1, char* scratch) {
    with_dtype<bf16, float>(a.dtype, [&](auto zero) { item<decltype(zero)>(a, n, t, h0, h1, scratch); });
}

void stem_planar_layout(const PadParams& a, int64_t n, int64_t t) {
    if (a.from == DType::f32 && a.to == DType::f32) return layout<float, float>(a, n, t);
    if (a.from == DType::f32 && a.to == DType::bf16) return layout<float, bf16>(a, n, t);
    if (a.from == DType::bf16 && a.to == DType::bf16) return layout<bf16, bf16>(a, n, t);
    layout<bf16, float>(a, n, t);
}

}  // namespace slowfast::SLOWFAST_ISA
