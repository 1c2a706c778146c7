// Host side of the stem.

#include "cpu/ops.h"
#include "cpu/panel.h"

namespace slowfast {

void stem_run_cpu(Tensor x, Tensor packed, std::optional<Tensor> shift, Ints kernel, Ints stride, bool relu,
                  bool pool, bool planar, Tensor padded, Tensor out) {
    STD_TORCH_CHECK(x.dim() == 5 && out.dim() == 5, "x, out: expected 5 dimensions (N, C, T, H, W)");
    STD_TORCH_CHECK(kernel.size() == 3 && stride.size() == 3,
                    "expected three values each for kernel and stride");
    StemParams a{};
    a.dtype = dtype_of(out, "out");
    const DType from = dtype_of(x, "x");
    STD_TORCH_CHECK(a.dtype != DType::f16 && from != DType::f16, "x, out: expected float32 or bfloat16");
    const int64_t e = bytes_of(a.dtype);
    a.n = x.size(0);
    a.cin = x.size(1);
    a.t = x.size(2);
    const int64_t h = x.size(3), w = x.size(4);
    for (int d = 0; d < 3; ++d) {
        a.kernel[d] = kernel[d];
        a.stride[d] = stride[d];
        STD_TORCH_CHECK(kernel[d] % 2 == 1 && stride[d] >= 1,
                        "expected odd kernels and strides of at least 1");
    }
    STD_TORCH_CHECK(kernel[0] * kernel[1] <= 256, "kernel: expected at most 256 (kt, kh) taps");
    a.pad_t = kernel[0] / 2;
    a.hp = h + kernel[1] - 1;
    a.wp = w + kernel[2] - 1;
    a.to = (a.t - 1) / stride[0] + 1;
    a.hc = (h - 1) / stride[1] + 1;
    a.wc = (w - 1) / stride[2] + 1;
    a.channels = out.size(1);
    a.ho = pool ? (a.hc - 1) / 2 + 1 : a.hc;
    a.wo = pool ? (a.wc - 1) / 2 + 1 : a.wc;
    STD_TORCH_CHECK(out.size(0) == a.n && out.size(2) == a.to && out.size(3) == a.ho && out.size(4) == a.wo,
                    "out: extent does not follow from the input's");
    int64_t need = 0, columns = a.wp;
    if (planar) {
        STD_TORCH_CHECK(stride[2] == 2 && a.channels <= 32 && kernel[0] * kernel[1] * a.cin <= 1024,
                        "planar stem: expected a stride of 2 in width, at most 32 channels and 1024 lines");
        const int64_t units = (kernel[2] * e + 3) / 4;
        a.wp = (a.wc + 15) / 16 * 16 + kernel[2] / 2 + 1;
        columns = a.wp * 2;
        need = kernel[0] * kernel[1] * a.cin * units * ((a.channels + 7) / 8) * 32;
    } else {
        need = panels_bytes(a.channels, kernel[0] * kernel[1], kernel[2] * a.cin, static_cast<int>(e));
    }
    a.packed = packed_of(packed, need, "packed");
    const int64_t padded_bytes = a.n * a.t * a.hp * columns * a.cin * e;
    STD_TORCH_CHECK(padded.numel() * static_cast<int64_t>(padded.element_size()) >= padded_bytes &&
                        padded.is_contiguous(),
                    "padded: expected ", padded_bytes, " contiguous bytes of workspace");
    if (out.numel() == 0) return;
    a.padded = data_of(padded);
    a.shift = floats_or_null(shift, a.channels, "shift");
    a.relu = relu;
    a.pool = pool;
    a.out = data_of(out);
    a.out_stride = pixel_stride(out, "out");

    PadParams p{};
    p.from = from;
    p.to = a.dtype;
    p.x = data_of(x);
    for (int d = 0; d < 5; ++d) p.x_stride[d] = x.stride(d) * bytes_of(from);
    p.n = a.n;
    p.c = a.cin;
    p.t = a.t;
    p.h = h;
    p.w = w;
    p.pad_h = kernel[1] / 2;
    p.pad_w = kernel[2] / 2;
    p.hp = a.hp;
    p.wp = a.wp;
    p.out = data_of(padded);
    const KernelTable& k = kernels();
    const auto lay_out = planar ? k.stem_planar_layout : k.pad_item;
    const auto run = planar ? k.stem_planar_item : k.stem_item;
    for_each_item(a.n * a.t, [&](int64_t i) { lay_out(p, i / a.t, i % a.t); });

    const int64_t scratch = planar ? k.stem_planar_scratch(a) : k.stem_scratch(a);
    const int64_t frames = a.n * a.to;
    // Rows are cut in four: a cut computes one convolution row again, four of them keep the threads level.
    const int64_t cuts = a.ho < 4 ? 1 : 4;
    for_each_item(frames * cuts, [&](int64_t item) {
        const int64_t frame = item / cuts, cut = item % cuts;
        run(a, frame / a.to, frame % a.to, a.ho * cut / cuts, a.ho * (cut + 1) / cuts,
            thread_scratch(scratch));
    });
}

}  // namespace slowfast
