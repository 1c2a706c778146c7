// Winograd convolution in float32: F(4, 3) along time for 3x1x1 kernels, F(4x4, 3x3) for 1x3x3 kernels.
//
// Three stages. The input transform turns each tile of 6 (6 x 6) inputs into 6 (36) planes of rows; per plane
// one GEMM over the input channels; the output transform turns 6 (36) sums back into 4 (4 x 4) outputs and
// finishes them with shift, residual and ReLU. Interpolation points 0, 1, -1, 2, -2 and infinity (Lavin and
// Gray 2015).

#include "cpu/isa/tile.h"
#include "cpu/isa/entry.h"

namespace slowfast::SLOWFAST_ISA {

namespace {

SF_INLINE V scaled(float s, V a, V b) {
    return fma(set1(s), a, b);
}  // s * a + b

// One axis of the input transform: 6 values -> 6.
SF_INLINE void transform_input(const V d[6], V out[6]) {
    V a = scaled(-4.0f, d[2], d[4]), b = scaled(-4.0f, d[1], d[3]);
    V c = sub(d[4], d[2]), e = mul(set1(2.0f), sub(d[3], d[1]));
    out[0] = scaled(4.0f, d[0], scaled(-5.0f, d[2], d[4]));
    out[1] = add(a, b);
    out[2] = sub(a, b);
    out[3] = add(c, e);
    out[4] = sub(c, e);
    out[5] = scaled(4.0f, d[1], scaled(-5.0f, d[3], d[5]));
}

// One axis of the output transform: 6 sums -> 4 outputs.
SF_INLINE void transform_output(const V m[6], V out[4]) {
    V p = add(m[1], m[2]), q = sub(m[1], m[2]), r = add(m[3], m[4]), s = sub(m[3], m[4]);
    out[0] = add(add(m[0], p), r);
    out[1] = scaled(2.0f, s, q);
    out[2] = scaled(4.0f, r, p);
    out[3] = add(scaled(8.0f, s, q), m[5]);
}

struct Tile {  // where a row's tile stands
    int64_t n, t, h, w;
};

Tile tile_of(const WinogradParams& a, int64_t row) {
    if (a.spatial) {
        const int64_t tw = row % a.tiles_w, rest = row / a.tiles_w;
        const int64_t th = rest % a.tiles_h, frame = rest / a.tiles_h;
        return {frame / a.t, frame % a.t, th * 4, tw * 4};
    }
    const int64_t pixels = a.h * a.w, pixel = row % pixels, rest = row / pixels;
    return {rest / a.tiles_t, rest % a.tiles_t * 4, pixel / a.w, pixel % a.w};
}

SF_INLINE V load_or_zero(const float* p, int n) {
    return p ? load_any(p, n) : zero();
}

void input_temporal(const WinogradParams& a, int64_t row) {
    const Tile tile = tile_of(a, row);
    const float* in[6];
    for (int i = 0; i < 6; ++i) {
        const int64_t t = tile.t + i - 1;
        in[i] = t < 0 || t >= a.t
                    ? nullptr
                    : reinterpret_cast<const float*>(a.x + tile.n * a.x_stride[0] + t * a.x_stride[1] +
                                                     tile.h * a.x_stride[2] + tile.w * a.x_stride[3]);
    }
    float* out = a.v + row * a.cin;
    for (int64_t c = 0; c < a.cin; c += kLanes) {
        const int n = static_cast<int>(a.cin - c);
        V d[6], v[6];
        for (int i = 0; i < 6; ++i) d[i] = load_or_zero(in[i] ? in[i] + c : nullptr, n);
        transform_input(d, v);
        for (int i = 0; i < 6; ++i) store_any(out + i * a.v_plane + c, v[i], n);
    }
}

void input_spatial(const WinogradParams& a, int64_t row) {
    const Tile tile = tile_of(a, row);
    const char* frame = a.x + tile.n * a.x_stride[0] + tile.t * a.x_stride[1];
    const float* in[36];
    for (int i = 0; i < 6; ++i)
        for (int j = 0; j < 6; ++j) {
            const int64_t h = tile.h + i - 1, w = tile.w + j - 1;
            const bool inside = h >= 0 && h < a.h && w >= 0 && w < a.w;
            in[i * 6 + j] =
                inside ? reinterpret_cast<const float*>(frame + h * a.x_stride[2] + w * a.x_stride[3])
                       : nullptr;
        }
    float* out = a.v + row * a.cin;
    for (int64_t c = 0; c < a.cin; c += kLanes) {
        const int n = static_cast<int>(a.cin - c);
        V half[36];
        for (int j = 0; j < 6; ++j) {
            V d[6], v[6];
            for (int i = 0; i < 6; ++i) d[i] = load_or_zero(in[i * 6 + j] ? in[i * 6 + j] + c : nullptr, n);
            transform_input(d, v);
            for (int i = 0; i < 6; ++i) half[i * 6 + j] = v[i];
        }
        for (int i = 0; i < 6; ++i) {
            V v[6];
            transform_input(half + i * 6, v);
            for (int j = 0; j < 6; ++j) store_any(out + (i * 6 + j) * a.v_plane + c, v[j], n);
        }
    }
}

SF_INLINE void finish_pixel(const WinogradParams& a, int64_t n, int64_t t, int64_t h, int64_t w, int64_t c,
                            int left, V v) {
    const int64_t pixel = ((n * a.t + t) * a.h + h) * a.w + w;
    if (a.shift) v = add(v, load_any(a.shift + c, left));
    if (a.residual)
        v = add(v,
                load_any(reinterpret_cast<const float*>(a.residual + pixel * a.residual_stride) + c, left));
    if (a.relu) v = relu(v);
    store_any(reinterpret_cast<float*>(a.out + pixel * a.out_stride) + c, v, left);
}

// Sums of one row of a panel, m[plane] at `plane_stride` floats, into its outputs.
void output_row(const WinogradParams& a, int64_t row, const float* m, int64_t plane_stride, int64_t c0,
                int channels) {
    const Tile tile = tile_of(a, row);
    for (int c = 0; c < channels; c += kLanes) {
        const int left = channels - c;
        if (!a.spatial) {
            V s[6], y[4];
            for (int i = 0; i < 6; ++i) s[i] = load(m + i * plane_stride + c);
            transform_output(s, y);
            for (int k = 0; k < 4; ++k)
                if (tile.t + k < a.t) finish_pixel(a, tile.n, tile.t + k, tile.h, tile.w, c0 + c, left, y[k]);
            continue;
        }
        V half[24];
        for (int j = 0; j < 6; ++j) {
            V s[6], y[4];
            for (int i = 0; i < 6; ++i) s[i] = load(m + (i * 6 + j) * plane_stride + c);
            transform_output(s, y);
            for (int k = 0; k < 4; ++k) half[k * 6 + j] = y[k];
        }
        for (int k = 0; k < 4 && tile.h + k < a.h; ++k) {
            V y[4];
            transform_output(half + k * 6, y);
            for (int l = 0; l < 4 && tile.w + l < a.w; ++l)
                finish_pixel(a, tile.n, tile.t, tile.h + k, tile.w + l, c0 + c, left, y[l]);
        }
    }
}

}  // namespace

void winograd_input_item(const WinogradParams& a, int64_t r0, int64_t r1) {
    for (int64_t row = r0; row < r1; ++row) a.spatial ? input_spatial(a, row) : input_temporal(a, row);
}

void winograd_gemm_item(const WinogradParams& a, int64_t r0, int64_t r1, int64_t panel, char* scratch) {
    constexpr int64_t kStepsPerPass =
        1024;  // as in conv.cpp: the weights of a pass stay in the level-2 cache
    const PanelShape p = panel_shape(a.cout, panel);
    const int planes = a.spatial ? 36 : 6;
    const int64_t rows = r1 - r0, plane_stride = rows * p.lanes;
    const int64_t plane_bytes = panel_tap_bytes(p, a.cin, 4);
    const char* b = a.packed + panel * planes * panel_tap_bytes(panel_shape(kPanelChannels, 0), a.cin, 4);
    float* sums = reinterpret_cast<float*>(scratch);
    for (int i = 0; i < planes; ++i) {
        for (int64_t k = 0; k < a.cin; k += kStepsPerPass) {
            const int64_t k_end = k + kStepsPerPass < a.cin ? k + kStepsPerPass : a.cin;
            StridedRows r{reinterpret_cast<const char*>(a.v + i * a.v_plane + r0 * a.cin), nullptr,
                          static_cast<ptrdiff_t>(a.cin * 4)};
            Run<StridedRows> run{r, 0, 1, static_cast<ptrdiff_t>(k * 4), k_end - k};
            Finish f{};
            f.partial_in = k ? sums + i * plane_stride : nullptr;
            f.partial_out = sums + i * plane_stride;
            f.partial_ld = p.lanes;
            panel_strip<float, StridedRows, StridedRows>(run, nullptr, p.lanes, false,
                                                         b + i * plane_bytes + k * p.lanes * 4, f, rows);
        }
    }
    for (int64_t row = r0; row < r1; ++row)
        output_row(a, row, sums + (row - r0) * p.lanes, plane_stride, panel * kPanelChannels, p.channels);
}

}  // namespace slowfast::SLOWFAST_ISA
