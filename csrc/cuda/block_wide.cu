// Host side of wide blocks: conv_a, and the rest.

#include "cuda/block_launch.h"
#include "cuda/block_wide.cuh"

namespace slowfast::cuda {

namespace {

template <class T, int C, int M, bool Shortcut>
void launch_block_wide_rest(const BlockWideRestParams<T>& p, int64_t blocks, int64_t bytes, Stream stream) {
    const Dim3 grid(blocks), threads(kWideRestThreads);
    if (p.following != nullptr) {
        SF_LAUNCH((block_wide_rest_kernel<T, C, M, Shortcut, true>), grid, threads, bytes, stream, p);
    } else {
        SF_LAUNCH((block_wide_rest_kernel<T, C, M, Shortcut, false>), grid, threads, bytes, stream, p);
    }
}

template <class T, int C>
void launch_block_wide_rest(const BlockWideRestParams<T>& p, int rows, bool shortcut, int64_t blocks,
                            int64_t bytes, Stream stream) {
    if (shortcut) {
        return rows == 64 ? launch_block_wide_rest<T, C, 1, true>(p, blocks, bytes, stream)
                          : launch_block_wide_rest<T, C, 2, true>(p, blocks, bytes, stream);
    }
    return rows == 64 ? launch_block_wide_rest<T, C, 1, false>(p, blocks, bytes, stream)
                      : launch_block_wide_rest<T, C, 2, false>(p, blocks, bytes, stream);
}

}  // namespace

void block_wide_a_run_cuda(Tensor x, Tensor weights, Tensor shift, int64_t kernel_t, Tensor out) {
    const OnDevice device(x);
    with_half_dtype(x, "x", [&](auto zero) {
        using T = decltype(zero);
        BlockWideAParams<T> p;
        set_maps(p, x, weights, out);
        p.frames = as_int(x.size(2), "frames");
        p.frame_pixels = as_int(x.size(3) * x.size(4), "pixels of a frame");
        p.pixels = x.size(0) * x.size(2) * x.size(3) * x.size(4);
        p.kernel_t = static_cast<int>(kernel_t);
        STD_TORCH_CHECK(p.cout % kWideAColumns == 0 && out.numel() == p.pixels * p.cout,
                        "out: expected x's pixels and a multiple of 64 channels");
        STD_TORCH_CHECK(weights.numel() == kernel_t * round_up(p.cin, 16) * p.cout,
                        "weights: expected packed weights of these channels, got ", weights.numel(),
                        " elements");
        p.shift = floats_or_null(shift, p.cout, "shift");
        const int64_t blocks = ceil_div<int64_t>(p.pixels, kWideARows) * (p.cout / kWideAColumns);
        as_int(blocks, "blocks of threads");
        SF_LAUNCH((block_wide_a_kernel<T>), Dim3(blocks), Dim3(kWideAThreads), kWideAShared, device.stream(),
                  p);
    });
}

void block_wide_rest_run_cuda(Tensor inner, Tensor x, Tensor weights, Tensor shifts, int64_t stride,
                              int64_t dilation, bool shortcut, Ints tile, Tensor out,
                              std::optional<Tensor> following) {
    const OnDevice device(x);
    STD_TORCH_CHECK(tile.size() == 2 && tile[0] > 0 && tile[1] > 0 && tile[0] * tile[1] <= 128,
                    "tile: expected height and width of at most 128 pixels");
    const int channels = as_int(inner.size(1), "inner");
    STD_TORCH_CHECK(channels == 64 || channels == 128, "inner: expected 64 or 128 channels, got ", channels);
    with_half_dtype(x, "x", [&](auto zero) {
        using T = decltype(zero);
        BlockWideRestParams<T> p;
        p.inner = data_of<T>(inner, "inner");
        set_maps(p, x, weights, out);
        set_tile(p, x, out, stride, dilation, shortcut, tile);
        p.inner_pitch = pixel_pitch(inner, "inner");
        check_vectors(p.inner, inner.size(1), p.inner_pitch, "inner");
        p.out_height = as_int(out.size(3), "height");
        p.out_width = as_int(out.size(4), "width");
        p.stride = static_cast<int>(stride);
        STD_TORCH_CHECK(inner.numel() == x.size(0) * x.size(2) * x.size(3) * x.size(4) * channels,
                        "inner: expected conv_a's result of x");
        const bool chained = following.has_value();
        p.following = nullptr;
        p.following_pitch = 0;
        if (chained) {
            const Tensor& to = *following;
            p.following = data_of<T>(to, "following");
            p.following_pitch = pixel_pitch(to, "following");
            check_vectors(p.following, to.size(1), p.following_pitch, "following");
            STD_TORCH_CHECK(to.size(0) == out.size(0) && to.size(1) == channels &&
                                to.size(2) == out.size(2) && to.size(3) == out.size(3) &&
                                to.size(4) == out.size(4),
                            "following: expected out's pixels and ", channels, " channels");
            // Other blocks of threads still read inner around their tiles.
            STD_TORCH_CHECK(p.following != p.inner || to.numel() == 0,
                            "following: expected other memory than inner's");
        }
        const int64_t stages = wide_rest_stages(channels, p.cin, p.cout, shortcut, chained);
        STD_TORCH_CHECK(weights.numel() == stages * wide_rest_stage(channels),
                        "weights: expected packed weights of these channels, got ", weights.numel(),
                        " elements");
        p.shifts = floats_or_null(
            shifts, channels + round_up(p.cout, kWideRestColumns) + (chained ? channels : 0), "shifts");
        const int rows = tile[0] * tile[1] <= 64 ? 64 : 128;
        const int64_t bytes = block_wide_rest_shared(channels, p.cin, shortcut, chained, rows, p.stride,
                                                     p.dilation, p.tile_h, p.tile_w)
                                  .bytes;
        const int64_t blocks =
            x.size(0) * x.size(2) * ceil_div(p.out_height, p.tile_h) * ceil_div(p.out_width, p.tile_w);
        as_int(blocks, "blocks of threads");
        return channels == 64
                   ? launch_block_wide_rest<T, 64>(p, rows, shortcut, blocks, bytes, device.stream())
                   : launch_block_wide_rest<T, 128>(p, rows, shortcut, blocks, bytes, device.stream());
    });
}

}  // namespace slowfast::cuda
