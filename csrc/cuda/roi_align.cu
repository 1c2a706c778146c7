// Host side of roi_align3d.

#include "cuda/ops.h"
#include "cuda/roi.h"
#include "cuda/roi_align.cuh"

namespace slowfast::cuda {

namespace {

// Threads side by side on `channels` channels in vectors of v: a power of two, at most a warp.
int lanes_log2_of(int64_t channels, int v) {
    int log2 = 0;
    while (log2 < 5 && (int64_t(v) << log2) < channels) ++log2;
    return log2;
}

// x: the maps, y: [K, C, T', h, w].
template <class T>
RoiAlignParams<T> params_of(const Tensor& x, const Tensor& rois, const Tensor& y, double spatial_scale,
                            double temporal_scale, int64_t ratio, bool aligned, int64_t mode) {
    STD_TORCH_CHECK(x.dim() == 5 && y.dim() == 5, "expected maps and bins of 5 dimensions");
    STD_TORCH_CHECK(mode >= 0 && mode <= 2, "mode: expected 0 (frame), 1 (tube) or 2 (volume), got ", mode);
    RoiAlignParams<T> a{};
    a.mode = static_cast<RoiMode>(mode);
    const bool tube = a.mode == RoiMode::tube, volume = a.mode == RoiMode::volume;
    const int64_t k = y.size(0), t = x.size(2);
    STD_TORCH_CHECK(y.size(1) == x.size(1) && (volume || y.size(2) == t), "bins: expected ", x.size(1),
                    " channels and, but for volumes, ", t, " frames");
    STD_TORCH_CHECK(rois.dim() == (tube ? 3 : 2) && rois.size(0) == k && (!tube || rois.size(1) == t),
                    "rois: expected ", k, " boxes", tube ? " per frame" : "");
    a.rois = rois_of(rois, volume ? 7 : 5, x.size(0), spatial_scale, temporal_scale, ratio, aligned,
                     {volume ? y.size(2) : 0, y.size(3), y.size(4)}, {t, x.size(3), x.size(4)});
    STD_TORCH_CHECK(y.numel() == 0 || pixel_pitch(y, "bins") == y.size(1),
                    "bins: expected dense channels_last_3d memory");
    a.count = static_cast<int>(k);
    a.x = data_of<T>(x, "x");
    a.pitch = x.numel() ? pixel_pitch(x, "x") : 0;
    a.y = data_of<T>(y, "bins");
    a.frames_out = static_cast<int>(y.size(2));
    a.channels = static_cast<int>(x.size(1));
    return a;
}

// Cuts the channels into slices for threads that take v of them at once.
template <class T>
void slice(RoiAlignParams<T>& a, int v) {
    a.lanes_log2 = lanes_log2_of(a.channels, v);
    a.slices = ceil_div(a.channels, v << a.lanes_log2);
}

template <class T>
bool takes_vectors(const RoiAlignParams<T>& a) {
    return fits_vectors(a.x, a.pitch) && fits_vectors(a.y, a.channels);
}

template <class T, int V, bool Large>
void launch_roi_align(RoiAlignParams<T> a, Stream stream) {
    slice(a, V);
    // Frames that share a box share its tables, where there is enough work without them.
    const int64_t at_once = int64_t(a.count) * a.frames_out * a.slices / kRoiBlocks;
    a.frames_block = static_cast<int>(a.mode != RoiMode::frame || at_once < 1 ? 1
                                      : at_once < a.frames_out                ? at_once
                                                                              : a.frames_out);
    SF_LAUNCH((roi_align_kernel<T, V, Large>),
              grid_of(a.count, ceil_div(a.frames_out, a.frames_block), a.slices), Dim3(kRoiThreads), 0,
              stream, a);
}

template <class T, int V>
void launch_roi_align_bwd(RoiAlignParams<T> a, int64_t clips, Stream stream) {
    slice(a, V);
    const int64_t tiles =
        ceil_div(a.rois.extent[1], kRoiTileH) * int64_t(ceil_div(a.rois.extent[2], kRoiTileW));
    SF_LAUNCH((roi_align_bwd_kernel<T, V>), grid_of(clips * a.rois.extent[0], tiles, a.slices),
              Dim3(kRoiThreads), 0, stream, a);
}

}  // namespace

void roi_align_cuda(Tensor x, Tensor rois, double spatial_scale, double temporal_scale,
                    int64_t sampling_ratio, bool aligned, int64_t mode, Tensor out) {
    const OnDevice device(x);
    with_dtype(x, "x", [&](auto zero) {
        using T = decltype(zero);
        auto a = params_of<T>(x, rois, out, spatial_scale, temporal_scale, sampling_ratio, aligned, mode);
        if (out.numel() == 0) return;
        const bool large = a.rois.extent[1] > AxisTable::kWeights || a.rois.extent[2] > AxisTable::kWeights ||
                           (a.mode == RoiMode::volume && a.rois.extent[0] > kRoiTimeWeights);
        if (large) return launch_roi_align<T, 1, true>(a, device.stream());
        takes_vectors(a) ? launch_roi_align<T, 16 / sizeof(T), false>(a, device.stream())
                         : launch_roi_align<T, 1, false>(a, device.stream());
    });
}

void roi_align_bwd_cuda(Tensor grad, Tensor rois, double spatial_scale, double temporal_scale,
                        int64_t sampling_ratio, bool aligned, int64_t mode, Tensor x) {
    const OnDevice device(x);
    with_dtype(x, "x", [&](auto zero) {
        using T = decltype(zero);
        auto a = params_of<T>(x, rois, grad, spatial_scale, temporal_scale, sampling_ratio, aligned, mode);
        if (x.numel() == 0) return;
        takes_vectors(a) ? launch_roi_align_bwd<T, 16 / sizeof(T)>(a, x.size(0), device.stream())
                         : launch_roi_align_bwd<T, 1>(a, x.size(0), device.stream());
    });
}

}  // namespace slowfast::cuda
