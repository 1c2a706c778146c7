// The CPU ops as the dispatcher sees them; csrc/bindings/cpu.cpp registers them under their schemas.
#pragma once

#include "cpu/tensor.h"

namespace slowfast {

// Weights (times scale) into panels; a second weight is packed behind the first as a second source.
Tensor conv_pack_cpu(Tensor weight, std::optional<Tensor> scale, std::optional<Tensor> weight2,
                     std::optional<Tensor> scale2, bool bf16);

// out = [relu](conv(x) + conv1x1x1(x2, stride2) + shift + residual),
// out a channels-last tensor or channel slice.
void conv_run_cpu(Tensor x, Tensor packed, std::optional<Tensor> shift, std::optional<Tensor> residual,
                  std::optional<Tensor> x2, Ints kernel, Ints stride, Ints padding, Ints dilation,
                  Ints stride2, bool relu, Tensor out);

// out = [relu](conv(x) + shift + residual) for 1x3x3 (`spatial`) or 3x1x1 kernels of stride 1 by Winograd;
// `packed` holds the transformed weights as 36 or 6 taps, `workspace` the transformed input.
void winograd_run_cpu(Tensor x, Tensor packed, std::optional<Tensor> shift, std::optional<Tensor> residual,
                      bool spatial, bool relu, Tensor workspace, Tensor out);

// out = [relu](lateral convolution of 2 alpha - 1 frames, stride alpha +
// shift), float32; the packed weights are those of the phases' sums, and of
// the first and second output frame's differences with the middle tap behind.
void lateral_run_cpu(Tensor x, Tensor packed_sum, Tensor packed_first, Tensor packed_second,
                     std::optional<Tensor> shift, int64_t alpha, bool relu, Tensor out);

// A residual block with packed weights in one pass; packed_c holds the shortcut as second source if
// `shortcut`.
void block_run_cpu(Tensor x, Tensor packed_a, Tensor shift_a, Tensor packed_b, Tensor shift_b,
                   Tensor packed_c, Tensor shift_c, int64_t kernel_t, int64_t stride, int64_t dilation,
                   bool shortcut, Tensor out);

// Stem convolution + shift + ReLU (+ max-pool); `padded` is workspace for the padded clip. `planar`: pixels
// as vector lanes, for few output channels (the weights are packed differently).
void stem_run_cpu(Tensor x, Tensor packed, std::optional<Tensor> shift, Ints kernel, Ints stride, bool relu,
                  bool pool, bool planar, Tensor padded, Tensor out);

// uint8 frames [N, T, H, W, 3] of any strides into both clips; fast_input 0 rgb, 1 gray, 2 time_diff.
void pack_run_cpu(Tensor frames, Tensor slow_index, std::vector<double> mean, std::vector<double> std,
                  int64_t fast_input, bool reverse_channels, Tensor slow, Tensor fast);

// out[N, classes] = the head's scores in float32; pool_h = pool_w = 0
// averages the whole map; activation 0 none, 1 softmax, 2 sigmoid, at every
// position or on the mean of the logits. workspace: null to allocate one.
void pool_head_run_cpu(Tensor slow, std::optional<Tensor> fast, Tensor weight, std::optional<Tensor> bias,
                       int64_t pool_h, int64_t pool_w, bool fast_first, int64_t activation, bool per_position,
                       std::optional<Tensor> workspace, Tensor out);

// RoIAlign: out[K, C, T', h, w] of rois [K, 5] (mode 0, frame), [K, T, 5] (1, tube) or [K, 7] (2, volume) in
// float32; bins as out has them. The gradient goes from grad, laid out as out, to every element of x.
void roi_align_cpu(Tensor x, Tensor rois, double spatial_scale, double temporal_scale, int64_t sampling_ratio,
                   bool aligned, int64_t mode, Tensor out);
void roi_align_bwd_cpu(Tensor grad, Tensor rois, double spatial_scale, double temporal_scale,
                       int64_t sampling_ratio, bool aligned, int64_t mode, Tensor x);

// Mean (or max) over time, RoIAlign, max over the bins: out[K, Cs + Cf] and the int32 bins of the maxima. The
// gradient of one pathway goes from grad[K, C] and arg[K, C] to x; x_forward is needed for the max over time.
void roi_head_cpu(Tensor slow, std::optional<Tensor> fast, Tensor rois, Ints output_size,
                  double spatial_scale, int64_t sampling_ratio, bool aligned, bool max, Tensor out,
                  Tensor arg);
void roi_head_bwd_cpu(Tensor grad, Tensor arg, Tensor rois, std::optional<Tensor> x_forward, Ints output_size,
                      double spatial_scale, int64_t sampling_ratio, bool aligned, bool max, Tensor x);

}  // namespace slowfast
