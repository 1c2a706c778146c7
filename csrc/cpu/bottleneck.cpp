// Host side of the fused residual block.

#include "cpu/ops.h"
#include "cpu/panel.h"

namespace slowfast {

void block_run_cpu(Tensor x, Tensor packed_a, Tensor shift_a, Tensor packed_b, Tensor shift_b,
                   Tensor packed_c, Tensor shift_c, int64_t kernel_t, int64_t stride, int64_t dilation,
                   bool shortcut, Tensor out) {
    BlockParams a{};
    a.dtype = dtype_of(x, "x");
    STD_TORCH_CHECK(a.dtype != DType::f16 && dtype_of(out, "out") == a.dtype,
                    "expected x and out both float32 or both bfloat16");
    const int bytes = static_cast<int>(bytes_of(a.dtype));
    a.n = x.size(0);
    a.cin = x.size(1);
    a.t = x.size(2);
    a.h = x.size(3);
    a.w = x.size(4);
    a.cmid = shift_a.numel();
    a.cout = out.size(1);
    a.ho = out.size(3);
    a.wo = out.size(4);
    STD_TORCH_CHECK(stride >= 1 && dilation >= 1 && kernel_t % 2 == 1 && kernel_t < 64,
                    "expected stride and dilation of at least 1 and an odd temporal kernel below 64");
    STD_TORCH_CHECK(out.size(0) == a.n && out.size(2) == a.t && a.ho == (a.h - 1) / stride + 1 &&
                        a.wo == (a.w - 1) / stride + 1,
                    "out: extent does not follow from the input's");
    STD_TORCH_CHECK(shortcut || (stride == 1 && a.cin == a.cout), "identity shortcut: expected stride 1 and ",
                    a.cout, " input channels, got stride ", stride, " and ", a.cin);
    a.x = data_of(x);
    a.out = data_of(out);
    const int64_t px = pixel_stride(x, "x"), po = pixel_stride(out, "out");
    const int64_t xs[4] = {px * a.w * a.h * a.t, px * a.w * a.h, px * a.w, px};
    const int64_t os[4] = {po * a.wo * a.ho * a.t, po * a.wo * a.ho, po * a.wo, po};
    for (int d = 0; d < 4; ++d) {
        a.x_stride[d] = xs[d];
        a.out_stride[d] = os[d];
    }
    a.kernel_t = kernel_t;
    a.stride = stride;
    a.dilation = dilation;
    // A shortcut's weights lie behind conv_c's in every panel.
    const int64_t bytes_c =
        panels_bytes(a.cout, 1, a.cmid, bytes) + (shortcut ? panels_bytes(a.cout, 1, a.cin, bytes) : 0);
    a.packed_a = packed_of(packed_a, panels_bytes(a.cmid, kernel_t, a.cin, bytes), "packed_a");
    a.packed_b = packed_of(packed_b, panels_bytes(a.cmid, 9, a.cmid, bytes), "packed_b");
    a.packed_c = packed_of(packed_c, bytes_c, "packed_c");
    a.shift_a = floats_or_null(shift_a, a.cmid, "shift_a");
    a.shift_b = floats_or_null(shift_b, a.cmid, "shift_b");
    a.shift_c = floats_or_null(shift_c, a.cout, "shift_c");
    a.shortcut = shortcut;
    if (out.numel() == 0) return;

    const KernelTable& k = kernels();
    const int64_t scratch = k.block_scratch(a);
    // One item a frame; with few frames, cut rows as well (each cut computes conv_a's halo rows once more).
    const int64_t frames = a.n * a.t, wanted = 4 * static_cast<int64_t>(torch::stable::get_num_threads());
    int64_t cuts = frames >= wanted ? 1 : (wanted + frames - 1) / frames;
    cuts = cuts > a.ho ? a.ho : cuts;
    for_each_item(frames * cuts, [&](int64_t item) {
        const int64_t frame = item / cuts, cut = item % cuts;
        k.block_item(a, frame / a.t, frame % a.t, a.ho * cut / cuts, a.ho * (cut + 1) / cuts,
                     thread_scratch(scratch));
    });
}

}  // namespace slowfast
