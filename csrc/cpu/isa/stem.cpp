// The stem: convolution of a 3-channel clip, shift, ReLU and 1x3x3/2 max-pool in one pass over the rows.
//
// In channels-last memory the kw * 3 values under a kernel row are contiguous, so each (kt, kh) is one tap of
// kw * 3 channels and no channel is padded. Three rows of the convolution live in a ring; a pooled row is
// written as soon as its last row is there.

#include "cpu/isa/tile.h"
#include "cpu/isa/entry.h"

namespace slowfast::SLOWFAST_ISA {

namespace {

constexpr int64_t round_up(int64_t x, int64_t to) {
    return (x + to - 1) / to * to;
}

template <class T>
int64_t row_bytes(const StemParams& a) {
    return round_up(a.wc * a.channels * static_cast<int64_t>(sizeof(T)), 64);
}

template <class T>
void conv_row(const StemParams& a, int64_t n, int64_t t, int64_t h, char* out, int64_t out_stride) {
    const int64_t e = sizeof(T);
    const int64_t line = a.wp * a.cin * e, image = a.hp * line, clip = a.t * image;
    const int taps_t = static_cast<int>(a.kernel[0]), taps_h = static_cast<int>(a.kernel[1]);
    ptrdiff_t offset[256];
    const int64_t t_first = t * a.stride[0] - a.pad_t;
    int kt0 = 0, kt1 = taps_t;
    while (kt0 < taps_t && t_first + kt0 < 0) ++kt0;
    while (kt1 > kt0 && t_first + kt1 > a.t) --kt1;
    for (int kt = kt0; kt < kt1; ++kt)
        for (int kh = 0; kh < taps_h; ++kh)
            offset[kt * taps_h + kh] = (t_first + kt) * image + (h * a.stride[1] + kh) * line;
    const int64_t k = a.kernel[2] * a.cin;
    Run<StridedRows> run{{a.padded + n * clip, offset, static_cast<ptrdiff_t>(a.stride[2] * a.cin * e)},
                         kt0 * taps_h,
                         kt1 * taps_h,
                         0,
                         k};
    const char* packed = a.packed;
    const int64_t panels = panel_count(a.channels);
    for (int64_t p = 0; p < panels; ++p) {
        const PanelShape ps = panel_shape(a.channels, p);
        const int64_t tap_bytes = panel_tap_bytes(ps, k, sizeof(T));
        Finish f{};
        f.channels = ps.channels;
        f.shift = a.shift ? a.shift + p * kPanelChannels : nullptr;
        f.relu = a.relu;
        f.out = out + p * kPanelChannels * e;
        f.out_stride = out_stride;
        panel_strip<T, StridedRows, StridedRows>(run, nullptr, ps.lanes, ps.pair,
                                                 packed + run.tap0 * tap_bytes, f, a.wc);
        packed += static_cast<int64_t>(taps_t) * taps_h * tap_bytes;
    }
}

template <class T>
void pool_row(const StemParams& a, const char* const* rows, int count, char* out) {
    const int64_t channels = a.channels;
    for (int64_t w = 0; w < a.wo; ++w) {
        const int64_t x0 = w * 2 - 1 < 0 ? 0 : w * 2 - 1, x1 = w * 2 + 2 > a.wc ? a.wc : w * 2 + 2;
        T* o = reinterpret_cast<T*>(out + w * a.out_stride);
        for (int64_t c = 0; c < channels; c += kLanes) {
            const int n = static_cast<int>(channels - c);
            V m = load_any(reinterpret_cast<const T*>(rows[0]) + x0 * channels + c, n);
            for (int r = 0; r < count; ++r)
                for (int64_t x = x0; x < x1; ++x)
                    m = max_nan(load_any(reinterpret_cast<const T*>(rows[r]) + x * channels + c, n), m);
            store_any(o + c, m, n);
        }
    }
}

template <class T>
void stem_item_typed(const StemParams& a, int64_t n, int64_t t, int64_t h0, int64_t h1, char* scratch) {
    char* frame = a.out + (n * a.to + t) * a.ho * a.wo * a.out_stride;
    if (!a.pool) {
        for (int64_t h = h0; h < h1; ++h)
            conv_row<T>(a, n, t, h, frame + h * a.wo * a.out_stride, a.out_stride);
        return;
    }
    const int64_t bytes = row_bytes<T>(a), pixel = a.channels * static_cast<int64_t>(sizeof(T));
    int64_t ready = h0 * 2 - 1 < 0 ? 0 : h0 * 2 - 1;
    for (int64_t h = h0; h < h1; ++h) {
        const int64_t y0 = h * 2 - 1 < 0 ? 0 : h * 2 - 1, y1 = h * 2 + 2 > a.hc ? a.hc : h * 2 + 2;
        for (; ready < y1; ++ready) conv_row<T>(a, n, t, ready, scratch + ready % 3 * bytes, pixel);
        const char* rows[3];
        for (int64_t y = y0; y < y1; ++y) rows[y - y0] = scratch + y % 3 * bytes;
        pool_row<T>(a, rows, static_cast<int>(y1 - y0), frame + h * a.wo * a.out_stride);
    }
}

template <class From, class To>
void pad_frame(const PadParams& a, int64_t n, int64_t t) {
    To* out = reinterpret_cast<To*>(a.out) + (n * a.t + t) * a.hp * a.wp * a.c;
    const char* x = a.x + n * a.x_stride[0] + t * a.x_stride[2];
    const int64_t line = a.wp * a.c;
    const int64_t es = sizeof(From);
    for (int64_t h = 0; h < a.hp; ++h, out += line) {
        const int64_t y = h - a.pad_h;
        if (y < 0 || y >= a.h) {
            memset(out, 0, static_cast<size_t>(line) * sizeof(To));
            continue;
        }
        memset(out, 0, static_cast<size_t>(a.pad_w * a.c) * sizeof(To));
        const int64_t tail = (a.pad_w + a.w) * a.c;
        memset(out + tail, 0, static_cast<size_t>(line - tail) * sizeof(To));
        const char* row = x + y * a.x_stride[3];
        To* o = out + a.pad_w * a.c;
        if (a.x_stride[1] == es && a.x_stride[4] == a.c * es) {  // channels-last already: one run
            const From* src = reinterpret_cast<const From*>(row);
            const int64_t total = a.w * a.c;
            for (int64_t i = 0; i < total; i += kLanes) {
                const int m = static_cast<int>(total - i < kLanes ? total - i : kLanes);
                store_any(o + i, load_any(src + i, m), m);
            }
            continue;
        }
        for (int64_t w = 0; w < a.w; ++w)
            for (int64_t c = 0; c < a.c; ++c) {
                const From* p = reinterpret_cast<const From*>(row + c * a.x_stride[1] + w * a.x_stride[4]);
                if constexpr (sizeof(From) == sizeof(To))
                    memcpy(o + w * a.c + c, p, sizeof(To));
                else
                    store_n(o + w * a.c + c, load_n(p, 1), 1);
            }
    }
}

}  // namespace

int64_t stem_scratch(const StemParams& a) {
    return 3 * (a.dtype == DType::bf16 ? row_bytes<bf16>(a) : row_bytes<float>(a));
}

void stem_item(const StemParams& a, int64_t n, int64_t t, int64_t h0, int64_t h1, char* scratch) {
    with_dtype<bf16, float>(a.dtype,
                            [&](auto zero) { stem_item_typed<decltype(zero)>(a, n, t, h0, h1, scratch); });
}

void pad_item(const PadParams& a, int64_t n, int64_t t) {
    if (a.from == DType::f32 && a.to == DType::f32) return pad_frame<float, float>(a, n, t);
    if (a.from == DType::f32 && a.to == DType::bf16) return pad_frame<float, bf16>(a, n, t);
    if (a.from == DType::bf16 && a.to == DType::bf16) return pad_frame<bf16, bf16>(a, n, t);
    pad_frame<bf16, float>(a, n, t);
}

}  // namespace slowfast::SLOWFAST_ISA
