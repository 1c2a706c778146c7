// Registers the CUDA op of pack_pathways; see cuda.cpp.

#include "cuda/ops.h"
#include "cuda/register.h"

SLOWFAST_CUDA_LIBRARY_IMPL(m) {
    m.impl("_pack_cuda", TORCH_BOX(&slowfast::cuda::pack_cuda));
}
