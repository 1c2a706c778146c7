// Convolution of channels-last tensors as a GEMM over row addresses: no im2col buffer for any kernel shape.

#include "cpu/isa/tile.h"
#include "cpu/isa/entry.h"

namespace slowfast::SLOWFAST_ISA {

namespace {

// Steps of K whose weights one pass keeps in the level-2 cache: 1024 steps of a 64-wide panel are 256 KiB.
constexpr int64_t kStepsPerPass = 1024;

// Address of the input pixel under every (tap, output pixel), `zeros` outside the input.
void fill_table(const ConvParams& a, const ConvSource& s, int64_t m0, int64_t m1, const char** table) {
    const int64_t rows = m1 - m0;
    int64_t w0 = m0 % a.w, rest = m0 / a.w;
    int64_t h0 = rest % a.h;
    rest /= a.h;
    int64_t t0 = rest % a.t, n0 = rest / a.t;
    int64_t tap = 0;
    for (int64_t kt = 0; kt < s.kernel[0]; ++kt)
        for (int64_t kh = 0; kh < s.kernel[1]; ++kh)
            for (int64_t kw = 0; kw < s.kernel[2]; ++kw, ++tap) {
                const char** out = table + tap * rows;
                int64_t w = w0, h = h0, t = t0, n = n0;
                const int64_t x_first = kw * s.dilation[2] - s.padding[2];
                for (int64_t i = 0; i < rows;) {
                    const int64_t run = rows - i < a.w - w ? rows - i : a.w - w;
                    const int64_t y = h * s.stride[1] + kh * s.dilation[1] - s.padding[1];
                    const int64_t z = t * s.stride[0] + kt * s.dilation[0] - s.padding[0];
                    if (y < 0 || y >= s.h || z < 0 || z >= s.t) {
                        for (int64_t j = 0; j < run; ++j) out[i + j] = a.zeros;
                    } else {
                        const char* line = s.data + n * s.stride_n + z * s.stride_t + y * s.stride_h;
                        int64_t x = w * s.stride[2] + x_first;
                        for (int64_t j = 0; j < run; ++j, x += s.stride[2])
                            out[i + j] = x < 0 || x >= s.w ? a.zeros : line + x * s.stride_w;
                    }
                    i += run;
                    w = 0;
                    if (++h == a.h) {
                        h = 0;
                        if (++t == a.t) {
                            t = 0;
                            ++n;
                        }
                    }
                }
            }
}

// A 1 x 1 x 1 convolution without stride over a dense input needs no table.
bool is_pointwise(const ConvSource& s) {
    for (int d = 0; d < 3; ++d)
        if (s.kernel[d] != 1 || s.stride[d] != 1 || s.padding[d] != 0) return false;
    return s.stride_h == s.w * s.stride_w && s.stride_t == s.h * s.stride_h && s.stride_n == s.t * s.stride_t;
}

template <class T>
void run_panel(const ConvParams& a, const TableRows* rows, const bool* pointwise, int64_t m0, int64_t m1,
               int64_t panel, const char* b, float* partial) {
    const PanelShape p = panel_shape(a.channels, panel);
    const int64_t c0 = panel * kPanelChannels;
    Finish f{};
    f.partial_ld = p.lanes;
    f.channels = p.channels;
    int64_t last_source = a.sources - 1;
    bool first = true;
    for (int s = 0; s < a.sources; ++s) {
        const ConvSource& src = a.source[s];
        const int taps = static_cast<int>(src.kernel[0] * src.kernel[1] * src.kernel[2]);
        const int64_t tap_bytes = panel_tap_bytes(p, src.channels, sizeof(T));
        const int64_t tap_steps = panel_steps(src.channels, sizeof(T), p.pair);
        const int64_t per_step = (4 / static_cast<int64_t>(sizeof(T))) * (p.pair ? 2 : 1);
        const int group = tap_steps >= kStepsPerPass ? 1 : static_cast<int>(kStepsPerPass / tap_steps);
        const int64_t k_pass = tap_steps > kStepsPerPass ? kStepsPerPass * per_step : src.channels;
        for (int tap = 0; tap < taps; tap += group) {
            const int tap_end = tap + group < taps ? tap + group : taps;
            for (int64_t k = 0; k < src.channels; k += k_pass) {
                const int64_t k_end = k + k_pass < src.channels ? k + k_pass : src.channels;
                const bool last = s == last_source && tap_end == taps && k_end == src.channels;
                const char* bp = b + tap * tap_bytes + k / per_step * p.lanes * 4;
                f.partial_in = first ? nullptr : partial;
                f.partial_out = last ? nullptr : partial;
                if (last) {
                    f.shift = a.shift ? a.shift + c0 : nullptr;
                    f.relu = a.relu;
                    f.residual_stride = a.residual_stride;
                    f.residual = a.residual ? a.residual + m0 * a.residual_stride + c0 * sizeof(T) : nullptr;
                    f.out_stride = a.out_stride;
                    f.out = a.out + m0 * a.out_stride + c0 * sizeof(T);
                }
                if (pointwise[s]) {
                    StridedRows r{src.data + m0 * src.stride_w, nullptr,
                                  static_cast<ptrdiff_t>(src.stride_w)};
                    Run<StridedRows> run{r, tap, tap_end, static_cast<ptrdiff_t>(k * sizeof(T)), k_end - k};
                    panel_strip<T, StridedRows, StridedRows>(run, nullptr, p.lanes, p.pair, bp, f, m1 - m0);
                } else {
                    Run<TableRows> run{rows[s], tap, tap_end, static_cast<ptrdiff_t>(k * sizeof(T)),
                                       k_end - k};
                    panel_strip<T, TableRows, TableRows>(run, nullptr, p.lanes, p.pair, bp, f, m1 - m0);
                }
                first = false;
            }
        }
        b += taps * tap_bytes;
    }
}

int64_t panel_bytes(const ConvParams& a, const PanelShape& p, int bytes) {
    int64_t total = 0;
    for (int s = 0; s < a.sources; ++s) {
        const ConvSource& src = a.source[s];
        total += src.kernel[0] * src.kernel[1] * src.kernel[2] * panel_tap_bytes(p, src.channels, bytes);
    }
    return total;
}

template <class T>
void conv_item_typed(const ConvParams& a, int64_t m0, int64_t m1, int64_t p0, int64_t p1, char* scratch) {
    const int64_t rows = m1 - m0;
    float* partial = reinterpret_cast<float*>(scratch);
    const char** table = reinterpret_cast<const char**>(scratch + rows * kPanelChannels * sizeof(float));
    TableRows table_rows[2];
    bool pointwise[2] = {false, false};
    for (int s = 0; s < a.sources; ++s) {
        const ConvSource& src = a.source[s];
        pointwise[s] = is_pointwise(src);
        if (pointwise[s]) continue;
        fill_table(a, src, m0, m1, table);
        table_rows[s] = {table, static_cast<ptrdiff_t>(rows), a.zeros};
        table += rows * src.kernel[0] * src.kernel[1] * src.kernel[2];
    }
    for (int i = 0; i < kTableSlack; ++i) table[i] = a.zeros;
    const int64_t full = panel_bytes(a, PanelShape{kPanelChannels, false, kPanelChannels}, sizeof(T));
    for (int64_t p = p0; p < p1; ++p)
        run_panel<T>(a, table_rows, pointwise, m0, m1, p, a.packed + p * full, partial);
}

}  // namespace

void conv_item(const ConvParams& a, int64_t m0, int64_t m1, int64_t p0, int64_t p1, char* scratch) {
    with_dtype<bf16, float>(a.dtype,
                            [&](auto zero) { conv_item_typed<decltype(zero)>(a, m0, m1, p0, p1, scratch); });
}

}  // namespace slowfast::SLOWFAST_ISA
