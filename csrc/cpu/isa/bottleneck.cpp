// A whole residual block in one pass over the rows of a frame.
//
// conv_a's rows live in a ring just tall enough for conv_b's window, conv_b's
// row in a line buffer: both stay in the level-1 cache for the Fast pathway's
// 8 to 32 channels, and the input is read and the output written once.

#include "cpu/isa/tile.h"
#include "cpu/isa/entry.h"

namespace slowfast::SLOWFAST_ISA {

namespace {

constexpr int64_t round_up(int64_t x, int64_t to) {
    return (x + to - 1) / to * to;
}

struct Shape {
    int64_t ring_rows, ring_row_bytes, line_bytes, pixel;
};

template <class T>
Shape scratch_shape(const BlockParams& a) {
    Shape s;
    s.pixel = a.cmid * static_cast<int64_t>(sizeof(T));
    s.ring_rows = 2 * a.dilation + 1;
    s.ring_row_bytes = round_up((a.w + 2 * a.dilation) * s.pixel, 64);
    s.line_bytes = round_up(a.wo * s.pixel, 64);
    return s;
}

template <class T>
void all_panels(const Run<StridedRows>& run, const Run<StridedRows>* second, int64_t cout, const char* packed,
                int64_t taps, Finish f, int64_t n) {
    const int64_t panels = panel_count(cout);
    char* out = f.out;
    const char* residual = f.residual;
    const float* shift = f.shift;
    for (int64_t p = 0; p < panels; ++p) {
        const PanelShape ps = panel_shape(cout, p);
        const int64_t c0 = p * kPanelChannels;
        const int64_t tap_bytes = panel_tap_bytes(ps, run.k, sizeof(T));
        f.channels = ps.channels;
        f.out = out + c0 * sizeof(T);
        f.residual = residual ? residual + c0 * sizeof(T) : nullptr;
        f.shift = shift ? shift + c0 : nullptr;
        panel_strip<T>(run, second, ps.lanes, ps.pair, packed + run.tap0 * tap_bytes, f, n);
        packed += taps * tap_bytes + (second ? panel_tap_bytes(ps, second->k, sizeof(T)) : 0);
    }
}

template <class T>
void block_item_typed(const BlockParams& a, int64_t n, int64_t t, int64_t h0, int64_t h1, char* scratch) {
    const Shape s = scratch_shape<T>(a);
    char* ring = scratch;
    char* line = scratch + s.ring_rows * s.ring_row_bytes;
    // Zero borders left and right of every ring row; conv_a never writes them.
    for (int64_t r = 0; r < s.ring_rows; ++r) {
        memset(ring + r * s.ring_row_bytes, 0, static_cast<size_t>(a.dilation * s.pixel));
        memset(ring + r * s.ring_row_bytes + (a.dilation + a.w) * s.pixel, 0,
               static_cast<size_t>(a.dilation * s.pixel));
    }
    const char* frame = a.x + n * a.x_stride[0];
    const int64_t half = a.kernel_t / 2;
    ptrdiff_t offset_a[64];
    int tap0 = static_cast<int>(half > t ? half - t : 0);
    int tap1 = static_cast<int>(t + a.kernel_t - half > a.t ? a.t - t + half : a.kernel_t);
    for (int64_t k = 0; k < a.kernel_t; ++k) offset_a[k] = (t + k - half) * a.x_stride[1];

    int64_t ready = h0 * a.stride - a.dilation;  // next input row the ring lacks
    for (int64_t h = h0; h < h1; ++h) {
        for (; ready <= h * a.stride + a.dilation; ++ready) {
            const int64_t slot = (ready % s.ring_rows + s.ring_rows) % s.ring_rows;
            char* row = ring + slot * s.ring_row_bytes + a.dilation * s.pixel;
            if (ready < 0 || ready >= a.h) {  // conv_b pads conv_a's output, after its ReLU, with zeros
                memset(row, 0, static_cast<size_t>(a.w * s.pixel));
                continue;
            }
            // The next row of the newest frame: no row of it was read before.
            const char* next = frame + offset_a[tap1 - 1] + (ready + 1) * a.x_stride[2];
            if (ready + 1 < a.h)
                for (int64_t at = 0; at < a.w * a.x_stride[3]; at += 64) __builtin_prefetch(next + at, 0, 2);
            Run<StridedRows> run{
                {frame + ready * a.x_stride[2], offset_a, static_cast<ptrdiff_t>(a.x_stride[3])},
                tap0,
                tap1,
                0,
                a.cin};
            Finish f{};
            f.shift = a.shift_a;
            f.relu = true;
            f.out = row;
            f.out_stride = s.pixel;
            all_panels<T>(run, nullptr, a.cmid, a.packed_a, a.kernel_t, f, a.w);
        }
        ptrdiff_t offset_b[9];
        for (int64_t kh = 0; kh < 3; ++kh) {
            const int64_t y = h * a.stride + (kh - 1) * a.dilation;
            const int64_t slot = (y % s.ring_rows + s.ring_rows) % s.ring_rows;
            for (int64_t kw = 0; kw < 3; ++kw)
                offset_b[kh * 3 + kw] = slot * s.ring_row_bytes + kw * a.dilation * s.pixel;
        }
        Run<StridedRows> run_b{{ring, offset_b, static_cast<ptrdiff_t>(a.stride * s.pixel)}, 0, 9, 0, a.cmid};
        Finish fb{};
        fb.shift = a.shift_b;
        fb.relu = true;
        fb.out = line;
        fb.out_stride = s.pixel;
        all_panels<T>(run_b, nullptr, a.cmid, a.packed_b, 9, fb, a.wo);

        const char* x_row = frame + t * a.x_stride[1] + h * a.stride * a.x_stride[2];
        Run<StridedRows> run_c{{line, nullptr, static_cast<ptrdiff_t>(s.pixel)}, 0, 1, 0, a.cmid};
        Run<StridedRows> run_s{
            {x_row, nullptr, static_cast<ptrdiff_t>(a.stride * a.x_stride[3])}, 0, 1, 0, a.cin};
        Finish fc{};
        fc.shift = a.shift_c;
        fc.relu = true;
        fc.residual = a.shortcut ? nullptr : x_row;
        fc.residual_stride = a.x_stride[3];
        fc.out = a.out + n * a.out_stride[0] + t * a.out_stride[1] + h * a.out_stride[2];
        fc.out_stride = a.out_stride[3];
        all_panels<T>(run_c, a.shortcut ? &run_s : nullptr, a.cout, a.packed_c, 1, fc, a.wo);
    }
}

}  // namespace

int64_t block_scratch(const BlockParams& a) {
    const Shape s =
        with_dtype<bf16, float>(a.dtype, [&](auto zero) { return scratch_shape<decltype(zero)>(a); });
    return s.ring_rows * s.ring_row_bytes + s.line_bytes;
}

void block_item(const BlockParams& a, int64_t n, int64_t t, int64_t h0, int64_t h1, char* scratch) {
    with_dtype<bf16, float>(a.dtype,
                            [&](auto zero) { block_item_typed<decltype(zero)>(a, n, t, h0, h1, scratch); });
}

}  // namespace slowfast::SLOWFAST_ISA
