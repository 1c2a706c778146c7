// The CUDA ops as the dispatcher sees them; csrc/bindings/cuda.cpp registers them under their schemas.
#pragma once

#include "common/torch.h"

namespace slowfast::cuda {

// x times s, element by element.
Tensor selftest_cuda(Tensor x, double s);

// How fast the machine is at what the kernels are made of; 256 values of `out` for each block of threads.
// 8 * steps products m16n8k<depth> of ones by every warp, depth 8 or 16: out becomes 32 * depth * steps.
void selftest_products_cuda(int64_t depth, int64_t steps, Tensor out);
// Every block reads all of x (int32, a multiple of 4096 values) past the level-1 cache: the sum of its values of out is
// that of x.
void selftest_read_cuda(Tensor x, Tensor out);

// A bottleneck block; weights, shifts: packed, see ops/bottleneck3d/cuda_pack.py. A narrow block in one kernel
// (block_narrow.cuh). tile: output height and width of a block of threads, and its frames.
void block_narrow_run_cuda(Tensor x, Tensor weights, Tensor shifts, int64_t inner, int64_t kernel_t,
                           int64_t stride, int64_t dilation, bool shortcut, Ints tile, Tensor out);

// A wide block (block_wide.cuh). conv_a, a kernel_t x 1 x 1 convolution with shift and ReLU:
void block_wide_a_run_cuda(Tensor x, Tensor weights, Tensor shift, int64_t kernel_t, Tensor out);
// and the rest, from conv_a's result. tile: output height and width of a block of threads, at most 128
// pixels. following: where the next block's conv_a goes, whose weights and shift the packed ones then hold.
void block_wide_rest_run_cuda(Tensor inner, Tensor x, Tensor weights, Tensor shifts, int64_t stride,
                              int64_t dilation, bool shortcut, Ints tile, Tensor out,
                              std::optional<Tensor> following);

// A wide block of inner width 64 in one kernel (block_wide_one.cuh). tile: output height and width, at most
// 256 pixels with their halo. blocks: of threads, which share the tiles.
void block_wide_one_run_cuda(Tensor x, Tensor weights_a, Tensor shift_a, Tensor weights, Tensor shifts,
                             int64_t dilation, bool shortcut, Ints tile, int64_t blocks, Tensor out);

// Convolution of three channels with a kernel_t x 7 x 7 kernel and stride (1, 2, 2), shift, ReLU and max-pool
// (stem.cuh). weights: packed, see ops/stem3d/cuda.py. segment: frames of a block of threads.
void stem_run_cuda(Tensor x, Tensor weights, std::optional<Tensor> shift, int64_t kernel_t, bool relu,
                   int64_t segment, Tensor out);

// Boxes: slowfast_kernels/ops/roi_align3d, roi_head_pool. rois are float32; mode 0 frame, 1 tube, 2 volume.
void roi_align_cuda(Tensor x, Tensor rois, double spatial_scale, double temporal_scale,
                    int64_t sampling_ratio, bool aligned, int64_t mode, Tensor out);
void roi_align_bwd_cuda(Tensor grad, Tensor rois, double spatial_scale, double temporal_scale,
                        int64_t sampling_ratio, bool aligned, int64_t mode, Tensor x);
// maps: float32 [N, H * W, 128-channel slices], or none for few boxes on small maps.
void roi_head_cuda(Tensor slow, std::optional<Tensor> fast, Tensor rois, Ints output_size,
                   double spatial_scale, int64_t sampling_ratio, bool aligned, bool max,
                   std::optional<Tensor> maps, Tensor out, Tensor arg);
void roi_head_bwd_cuda(Tensor grad, Tensor arg, Tensor rois, std::optional<Tensor> features, Ints output_size,
                       double spatial_scale, int64_t sampling_ratio, bool aligned, bool max, Tensor dx);

// slowfast_kernels/ops/lateral_fusion; out is a channel slice of the fused buffer, weight [Cl, taps, Cf].
// columns: output channels of a block of threads, 16, 64 or 128. walkers: blocks that share the pixels of one
// such set and keep its weights in shared memory; 0: a block for every 128 pixels, which keeps none. Both only
// where vectors fit.
void lateral_cuda(Tensor fast, Tensor weight, std::optional<Tensor> scale, std::optional<Tensor> shift,
                  int64_t alpha, bool relu, bool tf32, int64_t columns, int64_t walkers, Tensor out);
// Frames t * alpha + (0 ... groups - 1) of x side by side, plus base.
void lateral_gather_cuda(Tensor x, std::optional<Tensor> base, int64_t alpha, int64_t groups, Tensor out);

// slowfast_kernels/ops/pack_pathways; fast_input 0 rgb, 1 gray, 2 time_diff.
void pack_cuda(Tensor frames, Tensor slow_index, std::vector<double> mean, std::vector<double> std,
               int64_t fast_input, bool reverse_channels, Tensor slow, Tensor fast);

}  // namespace slowfast::cuda
