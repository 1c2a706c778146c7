#include "cuda/bottleneck_whole.cuh"

#include "cuda/bottleneck_launch.h"

namespace slowfast::cuda {

void whole_block_run_cuda(Tensor x, Tensor weights_a, Tensor shift_a, Tensor weights, Tensor shifts,
                          int64_t dilation, bool shortcut, Ints tile, int64_t blocks, Tensor out) {
    const OnDevice device(x);
    STD_TORCH_CHECK(tile.size() == 2 && tile[0] > 0 && tile[1] > 0 && dilation > 0 &&
                        (tile[0] + 2 * dilation) * (tile[1] + 2 * dilation) <= kWholeRows,
                    "tile: expected height and width of at most ", kWholeRows, " pixels with their halo");
    STD_TORCH_CHECK(blocks > 0, "blocks: expected at least one, got ", blocks);
    with_half_dtype(x, "x", [&](auto zero) {
        using T = decltype(zero);
        WholeBlock<T> p;
        set_maps(p, x, weights, out);
        p.weights_a = data_of<T>(weights_a, "weights_a");
        p.height = checked_int(x.size(3), "height");
        p.width = checked_int(x.size(4), "width");
        p.dilation = static_cast<int>(dilation);
        p.tile_h = static_cast<int>(tile[0]);
        p.tile_w = static_cast<int>(tile[1]);
        STD_TORCH_CHECK(out.size(0) == x.size(0) && out.size(2) == x.size(2) && out.size(3) == x.size(3) &&
                            out.size(4) == x.size(4) && (shortcut || p.cin == p.cout),
                        "out: expected the block's result of x");
        STD_TORCH_CHECK(!shortcut || p.cin <= kWholeStages * kWholeChunk, "x: expected at most ",
                        kWholeStages * kWholeChunk, " channels with a shortcut, got ", p.cin);
        const int steps = ceil_div(p.cin, 16), columns = ceil_div(p.cout, kWholeColumns);
        const int64_t packed =
            kWholeStepsB + int64_t(columns) * (kWholeStepsC + (shortcut ? round_up(steps, kWholeStepsC) : 0));
        STD_TORCH_CHECK(
            weights_a.numel() == int64_t(steps) * kWholeStep && weights.numel() == packed * kWholeStep,
            "weights: expected packed weights of these channels, got ", weights_a.numel(), " and ",
            weights.numel(), " elements");
        p.shift_a = floats_or_null(shift_a, kWholeInner, "shift_a");
        p.shifts = floats_or_null(shifts, kWholeInner + columns * kWholeColumns, "shifts");
        p.tiles = checked_int(
            x.size(0) * x.size(2) * ceil_div(p.height, p.tile_h) * ceil_div(p.width, p.tile_w), "tiles");
        const int64_t bytes = whole_shared(p.cin, p.cout, shortcut, p.dilation, p.tile_h, p.tile_w).bytes;
        const Dim3 grid(blocks < p.tiles ? blocks : p.tiles), threads(kWholeThreads);
        if (shortcut) {
            SF_LAUNCH((whole_kernel<T, true>), grid, threads, bytes, device.stream(), p);
        } else {
            SF_LAUNCH((whole_kernel<T, false>), grid, threads, bytes, device.stream(), p);
        }
    });
}

}  // namespace slowfast::cuda
