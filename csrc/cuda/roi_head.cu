// Host side of roi_head_pool.

#include "cuda/ops.h"
#include "cuda/roi.h"
#include "cuda/roi_head.cuh"

namespace slowfast::cuda {

namespace {

// Dynamic shared memory that a block may ask for beside its tables, with two blocks to a processor.
constexpr int64_t kHeadShared = 48 << 10, kHeadMapShared = 64 << 10;
// Blocks of kHeadWideSlice channels from which on a large GPU has enough of them.
constexpr int64_t kHeadWideBlocks = 216;

template <class T>
HeadPathway<T> pathway_of(const Tensor& x, const Rois& rois, int64_t clips, int first, int first_mapped) {
    STD_TORCH_CHECK(x.dim() == 5 && x.size(0) == clips && x.size(1) >= 1 && x.size(2) >= 1 &&
                        x.size(3) == rois.extent[1] && x.size(4) == rois.extent[2],
                    "expected pathways of one number of clips, height and width, with at least a frame and a "
                    "channel");
    HeadPathway<T> p{};
    p.x = data_of<T>(x, "pathway");
    p.pitch = x.numel() ? pixel_pitch(x, "pathway") : 0;
    p.channels = static_cast<int>(x.size(1));
    p.frames = static_cast<int>(x.size(2));
    p.first = first;
    p.first_mapped = first_mapped;
    return p;
}

Rois boxes_of(const Tensor& rois, const Tensor& x, const Ints& size, double spatial_scale, int64_t ratio,
              bool aligned) {
    STD_TORCH_CHECK(size.size() == 2, "output_size: expected two values");
    STD_TORCH_CHECK(x.dim() == 5, "expected maps of 5 dimensions (N, C, T, H, W), got ", x.dim());
    STD_TORCH_CHECK(rois.dim() == 2, "rois: expected [K, 5]");
    return rois_of(rois, 5, x.size(0), spatial_scale, 1.0, ratio, aligned, {0, size[0], size[1]},
                   {0, x.size(3), x.size(4)});
}

// Rows of `columns` values of type U, one after another or a slice of wider ones.
template <class U>
U* rows_of(const Tensor& x, int64_t count, int64_t columns, const char* what) {
    STD_TORCH_CHECK(x.dim() == 2 && x.size(0) == count && x.size(1) == columns &&
                        (count * columns == 0 || columns == 1 || x.stride(1) == 1),
                    what, ": expected [", count, ", ", columns, "] in rows");
    return data_of<U>(x, what);
}

template <class T>
RoiHeadParams<T> with_slices(RoiHeadParams<T> a, int slice) {
    a.path[1].first_slice = ceil_div(a.path[0].channels, slice);
    a.slices = a.path[1].first_slice + ceil_div(a.path[1].channels, slice);
    return a;
}

template <class T, int V, int kSlice, bool Large>
void launch_roi_max(const RoiHeadParams<T>& params, int64_t shared, Stream stream) {
    const RoiHeadParams<T> a = with_slices(params, kSlice);
    SF_LAUNCH((roi_max_kernel<T, V, kSlice, Large>), grid_of(a.count, 1, a.slices), Dim3(kHeadThreads),
              static_cast<size_t>(shared), stream, a);
}

template <class T, int V>
void launch_roi_head(const RoiHeadParams<T>& params, int64_t clips, int64_t shared, Stream stream) {
    if (!params.maps) return launch_roi_max<T, V, kHeadSlice, false>(params, shared, stream);  // of few cells
    const RoiHeadParams<T> a = with_slices(params, kHeadWideSlice);
    const int64_t tiles =
        ceil_div(a.rois.extent[1], kHeadTileH) * int64_t(ceil_div(a.rois.extent[2], kHeadTileW));
    SF_LAUNCH((roi_reduce_kernel<T, V>), grid_of(clips, tiles, a.slices), Dim3(kHeadThreads), 0, stream, a);
    if (a.rois.extent[1] > AxisTable::kWeights || a.rois.extent[2] > AxisTable::kWeights) {
        launch_roi_max<T, 0, kHeadSlice, true>(a, 0, stream);
    } else if (int64_t(a.count) * a.slices < kHeadWideBlocks) {
        launch_roi_max<T, 0, kHeadSlice, false>(a, 0, stream);
    } else {
        launch_roi_max<T, 0, kHeadWideSlice, false>(a, 0, stream);
    }
}

template <class T, int V>
void launch_roi_head_bwd(const RoiHeadBwdParams<T>& a, int64_t clips, Stream stream) {
    const int64_t tiles =
        ceil_div(a.rois.extent[1], a.tile_h) * int64_t(ceil_div(a.rois.extent[2], a.tile_w));
    SF_LAUNCH((roi_head_bwd_kernel<T, V>), grid_of(clips, tiles, a.slices), Dim3(kHeadThreads),
              sizeof(float) * kHeadBwdSlice * a.tile_h * a.tile_w, stream, a);
}

}  // namespace

void roi_head_cuda(Tensor slow, std::optional<Tensor> fast, Tensor rois, Ints output_size,
                   double spatial_scale, int64_t sampling_ratio, bool aligned, bool max,
                   std::optional<Tensor> maps, Tensor out, Tensor arg) {
    const OnDevice device(slow);
    with_dtype(slow, "slow", [&](auto zero) {
        using T = decltype(zero);
        constexpr int kVector = 16 / sizeof(T);
        RoiHeadParams<T> a{};
        a.rois = boxes_of(rois, slow, output_size, spatial_scale, sampling_ratio, aligned);
        a.count = static_cast<int>(rois.size(0));
        a.path[0] = pathway_of<T>(slow, a.rois, slow.size(0), 0, 0);
        a.channels = a.path[0].channels;
        a.mapped = ceil_div(a.channels, kHeadWideSlice);
        bool fits = fits_vectors(a.path[0].x, a.path[0].pitch) && a.channels % kVector == 0;
        if (fast) {
            a.path[1] = pathway_of<T>(*fast, a.rois, slow.size(0), a.channels, a.mapped);
            const HeadPathway<T>& p = a.path[1];
            a.channels += p.channels;
            a.mapped += ceil_div(p.channels, kHeadWideSlice);
            fits = fits && fits_vectors(p.x, p.pitch) && p.channels % kVector == 0;
        }
        a.max = max;
        a.out = rows_of<T>(out, a.count, a.channels, "out");
        a.arg = rows_of<int>(arg, a.count, a.channels, "arg");
        STD_TORCH_CHECK(out.is_contiguous() && arg.is_contiguous(), "out, arg: expected contiguous memory");
        const int64_t cells = int64_t(a.rois.extent[1]) * a.rois.extent[2];
        const int64_t shared = cells * kHeadSlice * static_cast<int64_t>(sizeof(float));
        if (maps) {
            const int64_t values = slow.size(0) * cells * a.mapped * kHeadWideSlice;
            STD_TORCH_CHECK(maps->is_contiguous() && maps->numel() == values, "maps: expected ", values,
                            " values, got ", maps->numel());
            a.maps = data_of<float>(*maps, "maps");
        } else {
            STD_TORCH_CHECK(shared <= kHeadMapShared, "maps: expected a tensor, ", cells,
                            " cells are too many for a block");
        }
        if (out.numel() == 0) return;
        fits ? launch_roi_head<T, kVector>(a, slow.size(0), shared, device.stream())
             : launch_roi_head<T, 1>(a, slow.size(0), shared, device.stream());
    });
}

void roi_head_bwd_cuda(Tensor grad, Tensor arg, Tensor rois, std::optional<Tensor> features, Ints output_size,
                       double spatial_scale, int64_t sampling_ratio, bool aligned, bool max, Tensor dx) {
    const OnDevice device(dx);
    with_dtype(dx, "dx", [&](auto zero) {
        using T = decltype(zero);
        constexpr int kVector = 16 / sizeof(T);
        RoiHeadBwdParams<T> a{};
        a.rois = boxes_of(rois, dx, output_size, spatial_scale, sampling_ratio, aligned);
        a.count = static_cast<int>(rois.size(0));
        a.channels = static_cast<int>(dx.size(1));
        a.frames = static_cast<int>(dx.size(2));
        a.grad = rows_of<T>(grad, a.count, a.channels, "grad");
        a.arg = rows_of<int>(arg, a.count, a.channels, "arg");
        a.grad_pitch = grad.stride(0);
        a.arg_pitch = arg.stride(0);
        if (dx.numel() == 0) return;
        STD_TORCH_CHECK(pixel_pitch(dx, "dx") == a.channels, "dx: expected dense channels_last_3d memory");
        a.dx = data_of<T>(dx, "dx");
        bool fits = fits_vectors(a.dx, a.channels);
        if (max) {
            STD_TORCH_CHECK(features && features->dim() == 5, "features: expected the maps of the forward");
            for (int d = 0; d < 5; ++d)
                STD_TORCH_CHECK(features->size(d) == dx.size(d), "features: expected the gradient's shape");
            a.features = data_of<T>(*features, "features");
            a.pitch = pixel_pitch(*features, "features");
            fits = fits && fits_vectors(a.features, a.pitch);
        }
        // Whole rows if one fits, else parts of one.
        constexpr int64_t kCells = kHeadShared / (kHeadBwdSlice * sizeof(float));
        const int64_t height = a.rois.extent[1], width = a.rois.extent[2];
        a.tile_w = static_cast<int>(width < kCells ? width : kCells);
        a.tile_h = static_cast<int>(kCells / a.tile_w < height ? kCells / a.tile_w : height);
        a.slices = ceil_div(a.channels, kHeadBwdSlice);
        fits ? launch_roi_head_bwd<T, kVector>(a, dx.size(0), device.stream())
             : launch_roi_head_bwd<T, 1>(a, dx.size(0), device.stream());
    });
}

}  // namespace slowfast::cuda
