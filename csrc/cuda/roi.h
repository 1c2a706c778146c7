// What the launchers of roi_align3d and roi_head_pool share.
#pragma once

#include "cuda/roi_taps.cuh"
#include "cuda/tensor.h"

namespace slowfast::cuda {

constexpr int64_t kRoiMaxRatio = 4096, kRoiMaxBins = 4096;
constexpr int64_t kRoiMaxClips = 1 << 24;  // a box names its clip in float32

// Blocks that fill a large GPU several times over.
constexpr int64_t kRoiBlocks = 2048;

inline Rois rois_of(const Tensor& rois, int64_t columns, int64_t clips, double spatial_scale,
                    double temporal_scale, int64_t ratio, bool aligned, const int64_t (&bins)[3],
                    const int64_t (&extent)[3]) {
    STD_TORCH_CHECK(ratio >= 0 && ratio <= kRoiMaxRatio, "sampling_ratio: expected 0 to ", kRoiMaxRatio,
                    ", got ", ratio);
    STD_TORCH_CHECK(rois.scalar_type() == ScalarType::Float && rois.is_contiguous() &&
                        rois.size(rois.dim() - 1) == columns,
                    "rois: expected contiguous float32 rows of ", columns, " values");
    STD_TORCH_CHECK(rois.numel() / columns <= INT32_MAX && clips <= kRoiMaxClips,
                    "expected fewer than 2^31 boxes and at most 2^24 clips");
    Rois r{};
    r.rows = data_of<float>(rois, "rois");
    r.columns = static_cast<int>(columns);
    r.clips = static_cast<float>(clips);
    r.spatial_scale = static_cast<float>(spatial_scale);
    r.temporal_scale = static_cast<float>(temporal_scale);
    r.ratio = static_cast<int>(ratio);
    r.aligned = aligned;
    for (int d = 0; d < 3; ++d) {
        STD_TORCH_CHECK(
            bins[d] >= (d > 0) && bins[d] <= kRoiMaxBins && extent[d] >= 0 && extent[d] < (int64_t(1) << 30),
            "expected 1 to ", kRoiMaxBins, " bins and maps below 2^30 cells along every axis");
        r.bins[d] = static_cast<int>(bins[d]);
        r.extent[d] = static_cast<int>(extent[d]);
    }
    return r;
}

// A grid along one axis, which kernels take apart.
inline Dim3 grid_of(int64_t a, int64_t b, int64_t c) {
    return Dim3(as_int(as_int(a * b, "blocks of threads") * c, "blocks of threads"));
}

}  // namespace slowfast::cuda
