// The bottleneck ops as csrc/bindings/cuda_bottleneck.cpp registers them.
#pragma once

#include "cuda/torch.h"

namespace slowfast::cuda {

// The whole narrow block (bottleneck.cuh). weights, shifts: packed, see ops/bottleneck3d/cuda.py.
// tile: output height and width of a block of threads, and its frames.
void fast_block_run_cuda(Tensor x, Tensor weights, Tensor shifts, int64_t inner, int64_t kernel_t,
                         int64_t stride, int64_t dilation, bool shortcut, Ints tile, Tensor out);

// A wide block (bottleneck_bc.cuh). conv_a, a kernel_t x 1 x 1 convolution with shift and ReLU:
void point_run_cuda(Tensor x, Tensor weights, Tensor shift, int64_t kernel_t, Tensor out);
// and the rest, from conv_a's result. tile: output height and width of a block of threads, at most 128
// pixels. following: where the next block's conv_a goes, whose weights and shift the packed ones then hold.
void block_tail_run_cuda(Tensor inner, Tensor x, Tensor weights, Tensor shifts, int64_t stride,
                         int64_t dilation, bool shortcut, Ints tile, Tensor out,
                         std::optional<Tensor> following);

// A block of inner width 64 in one kernel (bottleneck_whole.cuh), weights as above. tile: output height and
// width, at most 256 pixels with their halo. blocks: of threads, which share the tiles.
void whole_block_run_cuda(Tensor x, Tensor weights_a, Tensor shift_a, Tensor weights, Tensor shifts,
                          int64_t dilation, bool shortcut, Ints tile, int64_t blocks, Tensor out);

}  // namespace slowfast::cuda
