// Registers the CUDA ops of lateral_fusion; see cuda.cpp.

#include "cuda/ops.h"
#include "cuda/register.h"

SLOWFAST_CUDA_LIBRARY_IMPL(m) {
    m.impl("_lateral_cuda", TORCH_BOX(&slowfast::cuda::lateral_cuda));
    m.impl("_lateral_gather_cuda", TORCH_BOX(&slowfast::cuda::lateral_gather_cuda));
}
