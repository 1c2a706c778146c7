// The stem as csrc/bindings/cuda_stem.cpp registers it.
#pragma once

#include "cuda/torch.h"

namespace slowfast::cuda {

// Convolution of three channels with a kernel_t x 7 x 7 kernel and stride (1, 2, 2), shift, ReLU and max-pool
// (stem.cuh). weights: packed, see ops/stem3d/cuda.py. segment: frames of a block of threads.
void stem_run_cuda(Tensor x, Tensor weights, std::optional<Tensor> shift, int64_t kernel_t, bool relu,
                   int64_t segment, Tensor out);

}  // namespace slowfast::cuda
