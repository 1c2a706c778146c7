// The CUDA ops as the dispatcher sees them; csrc/bindings/cuda.cpp registers them under their schemas.
#pragma once

#include "cuda/torch.h"

namespace slowfast::cuda {

// x times s, element by element.
Tensor selftest_cuda(Tensor x, double s);

// Boxes: slowfast_kernels/ops/roi_align3d, roi_head_pool. rois are float32; mode 0 frame, 1 tube, 2 volume.
void roi_align_cuda(Tensor x, Tensor rois, double spatial_scale, double temporal_scale,
                    int64_t sampling_ratio, bool aligned, int64_t mode, Tensor out);
void roi_align_bwd_cuda(Tensor grad, Tensor rois, double spatial_scale, double temporal_scale,
                        int64_t sampling_ratio, bool aligned, int64_t mode, Tensor x);
// maps: float32 [N, H * W, 32-channel slices], or none for few boxes on small maps.
void roi_head_cuda(Tensor slow, std::optional<Tensor> fast, Tensor rois, Ints output_size,
                   double spatial_scale, int64_t sampling_ratio, bool aligned, bool max,
                   std::optional<Tensor> maps, Tensor out, Tensor arg);
void roi_head_bwd_cuda(Tensor grad, Tensor arg, Tensor rois, std::optional<Tensor> features, Ints output_size,
                       double spatial_scale, int64_t sampling_ratio, bool aligned, bool max, Tensor dx);

// slowfast_kernels/ops/lateral_fusion; out is a channel slice of the fused buffer, weight [Cl, taps, Cf].
void lateral_cuda(Tensor fast, Tensor weight, std::optional<Tensor> scale, std::optional<Tensor> shift,
                  int64_t alpha, bool relu, bool tf32, Tensor out);
// Frames t * alpha + (0 ... groups - 1) of x side by side, plus base.
void lateral_gather_cuda(Tensor x, std::optional<Tensor> base, int64_t alpha, int64_t groups, Tensor out);

// slowfast_kernels/ops/pack_pathways; fast_input 0 rgb, 1 gray, 2 time_diff.
void pack_cuda(Tensor frames, Tensor slow_index, std::vector<double> mean, std::vector<double> std,
               int64_t fast_input, bool reverse_channels, Tensor slow, Tensor fast);

}  // namespace slowfast::cuda
