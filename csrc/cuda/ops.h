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

}  // namespace slowfast::cuda
