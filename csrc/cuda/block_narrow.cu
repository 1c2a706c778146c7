// Host side of narrow blocks.

#include "cuda/block_launch.h"
#include "cuda/block_narrow.cuh"

namespace slowfast::cuda {

namespace {

template <class T, int C, bool Rolling>
void launch_block_narrow(const BlockNarrowParams<T>& p, bool shortcut, int64_t blocks, int64_t shared_bytes,
                         Stream stream) {
    const Dim3 grid(blocks), threads(block_narrow_threads(C));
    if (shortcut) {
        SF_LAUNCH((block_narrow_kernel<T, C, true, Rolling>), grid, threads, shared_bytes, stream, p);
    } else {
        SF_LAUNCH((block_narrow_kernel<T, C, false, Rolling>), grid, threads, shared_bytes, stream, p);
    }
}

}  // namespace

void block_narrow_run_cuda(Tensor x, Tensor weights, Tensor shifts, int64_t inner, int64_t kernel_t,
                           int64_t stride, int64_t dilation, bool shortcut, Ints tile, Tensor out) {
    const OnDevice device(x);
    STD_TORCH_CHECK(inner == 8 || inner == 16 || inner == 32, "inner: expected 8, 16 or 32 channels, got ",
                    inner);
    STD_TORCH_CHECK(tile.size() == 3 && tile[0] > 0 && tile[1] > 0 && tile[2] > 0,
                    "tile: expected height, width and frames");
    with_half_dtype(x, "x", [&](auto zero) {
        using T = decltype(zero);
        BlockNarrowParams<T> p;
        set_maps(p, x, weights, out);
        set_tile(p, x, out, stride, dilation, shortcut, tile);
        p.frames = as_int(x.size(2), "frames");
        p.out_height = as_int(out.size(3), "height");
        p.out_width = as_int(out.size(4), "width");
        p.x_frame = int64_t(p.height) * p.width * p.x_pitch;
        p.out_frame = int64_t(p.out_height) * p.out_width * p.out_pitch;
        p.kernel_t = static_cast<int>(kernel_t);
        p.stride = static_cast<int>(stride);
        p.segment = static_cast<int>(tile[2]);
        p.shared = block_narrow_shared(static_cast<int>(inner), p.cin, p.cout, shortcut, p.kernel_t, p.stride,
                                       p.dilation, p.tile_h, p.tile_w);
        const BlockNarrowShared& s = p.shared;
        STD_TORCH_CHECK(weights.numel() == s.weight_elements, "weights: expected ", s.weight_elements,
                        " packed elements, got ", weights.numel());
        p.shifts = floats_or_null(shifts, 2 * inner + s.wide, "shifts");
        const int64_t blocks = x.size(0) * ceil_div(p.frames, p.segment) * ceil_div(p.out_height, p.tile_h) *
                               ceil_div(p.out_width, p.tile_w);
        as_int(blocks, "blocks of threads");
        const bool rolling = p.kernel_t == kNarrowTaps && s.halo <= kNarrowRolling;
        auto launch = [&](auto channels) {
            constexpr int kChannels = decltype(channels)::value;
            auto run =
                rolling ? launch_block_narrow<T, kChannels, true> : launch_block_narrow<T, kChannels, false>;
            run(p, shortcut, blocks, s.bytes, device.stream());
        };
        switch (inner) {
            case 8:
                return launch(std::integral_constant<int, 8>{});
            case 16:
                return launch(std::integral_constant<int, 16>{});
            default:
                return launch(std::integral_constant<int, 32>{});
        }
    });
}

}  // namespace slowfast::cuda
