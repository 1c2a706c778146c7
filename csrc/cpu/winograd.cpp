// Host side of the Winograd convolutions.

#include "cpu/ops.h"
#include "cpu/panel.h"

namespace slowfast {

void winograd_run_cpu(Tensor x, Tensor packed, std::optional<Tensor> shift, std::optional<Tensor> residual,
                      bool spatial, bool relu, Tensor workspace, Tensor out) {
    WinogradParams a{};
    STD_TORCH_CHECK(dtype_of(x, "x") == DType::f32 && dtype_of(out, "out") == DType::f32,
                    "Winograd convolution: expected float32");
    a.spatial = spatial;
    a.n = x.size(0);
    a.cin = x.size(1);
    a.t = x.size(2);
    a.h = x.size(3);
    a.w = x.size(4);
    a.cout = out.size(1);
    STD_TORCH_CHECK(a.cout % 16 == 0, "Winograd convolution: expected a multiple of 16 output channels, got ",
                    a.cout);
    for (int d : {0, 2, 3, 4}) STD_TORCH_CHECK(out.size(d) == x.size(d), "out: expected the extent of x");
    if (out.numel() == 0) return;
    a.tiles_t = (a.t + 3) / 4;
    a.tiles_h = (a.h + 3) / 4;
    a.tiles_w = (a.w + 3) / 4;
    const int64_t rows = spatial ? a.n * a.t * a.tiles_h * a.tiles_w : a.n * a.tiles_t * a.h * a.w;
    const int64_t planes = spatial ? 36 : 6;
    const int64_t px = pixel_stride(x, "x");
    const int64_t xs[4] = {px * a.w * a.h * a.t, px * a.w * a.h, px * a.w, px};
    for (int d = 0; d < 4; ++d) a.x_stride[d] = xs[d];
    a.x = data_of(x);
    // Planes one cache line apart from a multiple of the page: their rows would share cache sets otherwise.
    a.v_plane = rows * a.cin + 16;
    STD_TORCH_CHECK(workspace.scalar_type() == ScalarType::Float && workspace.is_contiguous() &&
                        workspace.numel() >= planes * a.v_plane,
                    "workspace: expected ", planes * a.v_plane, " contiguous float32 values, got ",
                    workspace.numel());
    a.v = reinterpret_cast<float*>(data_of(workspace));
    a.packed = packed_of(packed, panels_bytes(a.cout, planes, a.cin, 4), "packed");
    a.shift = floats_or_null(shift, a.cout, "shift");
    a.relu = relu;
    a.out = data_of(out);
    a.out_stride = pixel_stride(out, "out");
    if (residual) {
        for (int d = 0; d < 5; ++d)
            STD_TORCH_CHECK(residual->size(d) == out.size(d), "residual: expected the shape of the output");
        STD_TORCH_CHECK(dtype_of(*residual, "residual") == DType::f32, "residual: expected float32");
        a.residual = data_of(*residual);
        a.residual_stride = pixel_stride(*residual, "residual");
    }
    const KernelTable& k = kernels();
    const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
    const int64_t slices = rows < 64 * threads ? threads : rows / 32;
    for_each_item(slices,
                  [&](int64_t i) { k.winograd_input_item(a, rows * i / slices, rows * (i + 1) / slices); });

    // Rows of an item: as many as reuse the weights well, as few as leave every thread several items.
    const int64_t panels = panel_count(a.cout), most = spatial ? 48 : 192;
    int64_t chunks = (rows + most - 1) / most;
    while (chunks * panels < 6 * threads && rows / (chunks + 1) >= 12) ++chunks;
    const int64_t chunk = ((rows + chunks - 1) / chunks + 5) / 6 * 6;
    chunks = (rows + chunk - 1) / chunk;
    const int64_t scratch = planes * chunk * kPanelChannels * 4;
    for_each_item(chunks * panels, [&](int64_t item) {
        const int64_t r0 = item / panels * chunk, r1 = r0 + chunk < rows ? r0 + chunk : rows;
        k.winograd_gemm_item(a, r0, r1, item % panels, thread_scratch(scratch));
    });
}

}  // namespace slowfast
