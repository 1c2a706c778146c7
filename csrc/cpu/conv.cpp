// Host side of the convolution: weights into panels, shapes into
// arguments, pixels and panels into work items.

#include <algorithm>
#include <cstring>
#include <mutex>

#include "cpu/panel.h"
#include "cpu/ops.h"

namespace slowfast {

namespace {

uint16_t to_bf16(float x) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

// weight [cout][cin][taps] (any strides), times scale[cout], into every panel at `offset` bytes.
struct PackSource {
    const Tensor* weight;
    const float* scale;
    int64_t cin, taps;
};

float element(const float* p) {
    return *p;
}

float element(const uint16_t* p) {
    const uint32_t u = static_cast<uint32_t>(*p) << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}

void store(float v, float* o) {
    *o = v;
}

void store(float v, uint16_t* o) {
    *o = to_bf16(v);
}

// Input channels of a block: its taps and output channels stay in the cache, so that a row of the
// weight is read as it lies in memory, all taps of a channel at once.
constexpr int64_t kPackBlock = 16;

template <typename From, typename To>
void pack_panel(const PackSource& s, int64_t cout, int64_t panel, char* out) {
    const PanelShape p = panel_shape(cout, panel);
    const Tensor& w = *s.weight;
    const From* base = reinterpret_cast<const From*>(data_of(w));
    const int64_t kh = w.size(3), kw = w.size(4);
    const int64_t per_unit = 4 / sizeof(To), units = p.pair ? 2 : 1, per_step = per_unit * units;
    const int64_t tap_size = panel_steps(s.cin, sizeof(To), p.pair) * p.lanes * per_unit;
    std::memset(out, 0, static_cast<size_t>(s.taps * tap_size) * sizeof(To));
    std::vector<int64_t> at(static_cast<size_t>(s.taps));
    for (int64_t tap = 0; tap < s.taps; ++tap)
        at[tap] = tap / (kh * kw) * w.stride(2) + tap / kw % kh * w.stride(3) + tap % kw * w.stride(4);
    for (int64_t k0 = 0; k0 < s.cin; k0 += kPackBlock) {
        const int64_t k1 = std::min(s.cin, k0 + kPackBlock);
        for (int64_t c = 0; c < p.channels; ++c) {
            const int64_t co = panel * kPanelChannels + c;
            const float scale = s.scale ? s.scale[co] : 1.0f;
            for (int64_t k = k0; k < k1; ++k) {
                const From* in = base + co * w.stride(0) + k * w.stride(1);
                const int64_t in_step = k % per_step, lane = units * c + in_step / per_unit;
                To* o = reinterpret_cast<To*>(out) + (k / per_step * p.lanes + lane) * per_unit +
                        in_step % per_unit;
                for (int64_t tap = 0; tap < s.taps; ++tap)
                    store(element(in + at[tap]) * scale, o + tap * tap_size);
            }
        }
    }
}

PackSource pack_source(const Tensor& w, const std::optional<Tensor>& scale) {
    STD_TORCH_CHECK(w.dim() == 5, "weight: expected [Cout, Cin, kt, kh, kw], got ", w.dim(), " dimensions");
    STD_TORCH_CHECK(dtype_of(w, "weight") != DType::f16, "weight: expected float32 or bfloat16");
    return {&w, floats_or_null(scale, w.size(0), "scale"), w.size(1), w.size(2) * w.size(3) * w.size(4)};
}

int64_t packed_bytes(const std::vector<PackSource>& sources, int64_t cout, int bytes, int64_t panels) {
    int64_t total = 0;
    for (int64_t p = 0; p < panels; ++p)
        for (const PackSource& s : sources)
            total += s.taps * panel_tap_bytes(panel_shape(cout, p), s.cin, bytes);
    return total;
}

// Pixels of an item: enough to reuse the weights of a pass, few
// enough to share out and to keep the rows cached.
constexpr int64_t kItemRows = 192;

}  // namespace

const char* zeros(int64_t bytes) {
    // Kept for the life of the process: kernels of other threads may still read an outgrown one.
    static std::mutex mutex;
    static std::vector<char*> blocks;
    static int64_t size = 0;
    std::lock_guard<std::mutex> lock(mutex);
    if (bytes > size) {
        const int64_t wanted = bytes < 65536 ? 65536 : bytes;
        char* block = static_cast<char*>(std::calloc(static_cast<size_t>(wanted), 1));
        STD_TORCH_CHECK(block != nullptr, "out of memory for ", wanted, " bytes of zeros");
        blocks.push_back(block);
        size = wanted;
    }
    return blocks.back();
}

Tensor conv_pack_cpu(Tensor weight, std::optional<Tensor> scale, std::optional<Tensor> weight2,
                     std::optional<Tensor> scale2, bool bf16) {
    std::vector<PackSource> sources{pack_source(weight, scale)};
    if (weight2) sources.push_back(pack_source(*weight2, scale2));
    const int64_t cout = weight.size(0);
    STD_TORCH_CHECK(!weight2 || weight2->size(0) == cout, "weight2: expected ", cout,
                    " output channels, got ", weight2->size(0));
    const int bytes = bf16 ? 2 : 4;
    const int64_t panels = panel_count(cout);
    Tensor out = torch::stable::empty({packed_bytes(sources, cout, bytes, panels)}, ScalarType::Byte);
    char* base = data_of(out);
    for_each_item(panels, [&](int64_t p) {
        char* o = base + packed_bytes(sources, cout, bytes, p);
        for (const PackSource& s : sources) {
            const bool from_f32 = dtype_of(*s.weight, "weight") == DType::f32;
            auto* pack = bf16 ? (from_f32 ? pack_panel<float, uint16_t> : pack_panel<uint16_t, uint16_t>)
                              : (from_f32 ? pack_panel<float, float> : pack_panel<uint16_t, float>);
            pack(s, cout, p, o);
            o += s.taps * panel_tap_bytes(panel_shape(cout, p), s.cin, bytes);
        }
    });
    return out;
}

namespace {

ConvSource conv_source(const Tensor& x, const int64_t* kernel, const int64_t* stride, const int64_t* padding,
                       const int64_t* dilation, const char* what) {
    const int64_t pixel = pixel_stride(x, what);
    ConvSource s{};
    s.data = data_of(x);
    s.stride_w = pixel;
    s.stride_h = pixel * x.size(4);
    s.stride_t = s.stride_h * x.size(3);
    s.stride_n = s.stride_t * x.size(2);
    s.t = x.size(2);
    s.h = x.size(3);
    s.w = x.size(4);
    s.channels = x.size(1);
    for (int d = 0; d < 3; ++d) {
        s.kernel[d] = kernel[d];
        s.stride[d] = stride[d];
        s.padding[d] = padding[d];
        s.dilation[d] = dilation[d];
    }
    return s;
}

}  // namespace

void conv_run_cpu(Tensor x, Tensor packed, std::optional<Tensor> shift, std::optional<Tensor> residual,
                  std::optional<Tensor> x2, Ints kernel, Ints stride, Ints padding, Ints dilation,
                  Ints stride2, bool relu, Tensor out) {
    STD_TORCH_CHECK(kernel.size() == 3 && stride.size() == 3 && padding.size() == 3 && dilation.size() == 3,
                    "expected three values each for kernel, stride, padding and dilation");
    ConvParams a{};
    a.dtype = dtype_of(x, "x");
    STD_TORCH_CHECK(a.dtype != DType::f16, "x: expected float32 or bfloat16");
    STD_TORCH_CHECK(dtype_of(out, "out") == a.dtype, "out: expected the dtype of x");
    const int bytes = static_cast<int>(bytes_of(a.dtype));
    a.sources = 1;
    a.source[0] = conv_source(x, kernel.data(), stride.data(), padding.data(), dilation.data(), "x");
    if (x2) {
        static constexpr int64_t one[3] = {1, 1, 1}, none[3] = {0, 0, 0};
        STD_TORCH_CHECK(stride2.size() == 3, "stride2: expected three values");
        STD_TORCH_CHECK(dtype_of(*x2, "x2") == a.dtype, "x2: expected the dtype of x");
        a.source[1] = conv_source(*x2, one, stride2.data(), none, one, "x2");
        a.sources = 2;
    }
    a.n = out.size(0);
    a.channels = out.size(1);
    a.t = out.size(2);
    a.h = out.size(3);
    a.w = out.size(4);
    const int64_t extent[3] = {a.t, a.h, a.w};
    for (int s = 0; s < a.sources; ++s) {
        const ConvSource& src = a.source[s];
        const int64_t in[3] = {src.t, src.h, src.w};
        STD_TORCH_CHECK((s ? x2->size(0) : x.size(0)) == a.n, "out: batch differs from the input's");
        for (int d = 0; d < 3; ++d) {
            const int64_t span = in[d] + 2 * src.padding[d] - src.dilation[d] * (src.kernel[d] - 1) - 1;
            STD_TORCH_CHECK(src.stride[d] > 0 && span >= 0 && span / src.stride[d] + 1 == extent[d],
                            "out: extent ", extent[d], " of axis ", d, " does not follow from the input's ",
                            in[d]);
        }
    }
    int64_t need = 0;
    for (int s = 0; s < a.sources; ++s) {
        const ConvSource& src = a.source[s];
        need += panels_bytes(a.channels, src.kernel[0] * src.kernel[1] * src.kernel[2], src.channels, bytes);
    }
    a.packed = packed_of(packed, need, "packed");
    if (out.numel() == 0) return;
    a.shift = floats_or_null(shift, a.channels, "shift");
    a.out = data_of(out);
    a.out_stride = pixel_stride(out, "out");
    if (residual) {
        STD_TORCH_CHECK(dtype_of(*residual, "residual") == a.dtype, "residual: expected the dtype of x");
        for (int d = 0; d < 5; ++d)
            STD_TORCH_CHECK(residual->size(d) == out.size(d), "residual: expected the shape of the output");
        a.residual = data_of(*residual);
        a.residual_stride = pixel_stride(*residual, "residual");
    }
    a.relu = relu;
    int64_t widest = 0, taps = 0;
    for (int s = 0; s < a.sources; ++s) {
        const ConvSource& src = a.source[s];
        widest = src.channels > widest ? src.channels : widest;
        taps += src.kernel[0] * src.kernel[1] * src.kernel[2];
    }
    a.zeros = zeros(widest * bytes + 64);

    const int64_t pixels = a.n * a.t * a.h * a.w, panels = panel_count(a.channels);
    const int64_t rows = pixels < kItemRows ? pixels : kItemRows;
    const int64_t strips = (pixels + rows - 1) / rows;
    // Few pixels: cut along the panels too, so that every thread has several items to balance with.
    const int64_t wanted = 8 * static_cast<int64_t>(torch::stable::get_num_threads());
    int64_t groups = strips >= wanted ? 1 : (wanted + strips - 1) / strips;
    groups = groups > panels ? panels : groups;
    const int64_t scratch = rows * (kPanelChannels * 4 + taps * static_cast<int64_t>(sizeof(char*))) +
                            kTableSlack * static_cast<int64_t>(sizeof(char*));
    const KernelTable& k = kernels();
    for_each_item(strips * groups, [&](int64_t item) {
        const int64_t m0 = item / groups * rows, m1 = m0 + rows < pixels ? m0 + rows : pixels;
        const int64_t g = item % groups;
        k.conv_item(a, m0, m1, panels * g / groups, panels * (g + 1) / groups, thread_scratch(scratch));
    });
}

}  // namespace slowfast
