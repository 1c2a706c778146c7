// Host side of wide blocks in one kernel.

#include "cuda/block_launch.h"
#include "cuda/block_wide_one.cuh"

namespace slowfast::cuda {

void block_wide_one_run_cuda(Tensor x, Tensor weights_a, Tensor shift_a, Tensor weights, Tensor shifts,
                             int64_t dilation, bool shortcut, Ints tile, int64_t blocks, Tensor out) {
    const OnDevice device(x);
    STD_TORCH_CHECK(tile.size() == 2 && tile[0] > 0 && tile[1] > 0 && dilation > 0 &&
                        (tile[0] + 2 * dilation) * (tile[1] + 2 * dilation) <= kWideOneRows,
                    "tile: expected height and width of at most ", kWideOneRows, " pixels with their halo");
    STD_TORCH_CHECK(blocks > 0, "blocks: expected at least one, got ", blocks);
    with_half_dtype(x, "x", [&](auto zero) {
        using T = decltype(zero);
        BlockWideOneParams<T> p;
        set_maps(p, x, weights, out);
        p.weights_a = data_of<T>(weights_a, "weights_a");
        set_tile(p, x, out, 1, dilation, shortcut, tile);
        STD_TORCH_CHECK(!shortcut || p.cin <= kWideOneStages * kWideOneChunk, "x: expected at most ",
                        kWideOneStages * kWideOneChunk, " channels with a shortcut, got ", p.cin);
        const int steps = ceil_div(p.cin, 16), columns = ceil_div(p.cout, kWideOneColumns);
        const int64_t packed =
            kWideOneStepsB +
            int64_t(columns) * (kWideOneStepsC + (shortcut ? round_up(steps, kWideOneStepsC) : 0));
        STD_TORCH_CHECK(
            weights_a.numel() == int64_t(steps) * kWideOneStep && weights.numel() == packed * kWideOneStep,
            "weights: expected packed weights of these channels, got ", weights_a.numel(), " and ",
            weights.numel(), " elements");
        p.shift_a = floats_or_null(shift_a, kWideOneInner, "shift_a");
        p.shifts = floats_or_null(shifts, kWideOneInner + columns * kWideOneColumns, "shifts");
        p.tiles = as_int(x.size(0) * x.size(2) * ceil_div(p.height, p.tile_h) * ceil_div(p.width, p.tile_w),
                         "tiles");
        const int64_t bytes =
            block_wide_one_shared(p.cin, p.cout, shortcut, p.dilation, p.tile_h, p.tile_w).bytes;
        const Dim3 grid(blocks < p.tiles ? blocks : p.tiles), threads(kWideOneThreads);
        if (shortcut) {
            SF_LAUNCH((block_wide_one_kernel<T, true>), grid, threads, bytes, device.stream(), p);
        } else {
            SF_LAUNCH((block_wide_one_kernel<T, false>), grid, threads, bytes, device.stream(), p);
        }
    });
}

}  // namespace slowfast::cuda
