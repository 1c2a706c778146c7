// Registers the CUDA ops on boxes; see cuda.cpp.

#include "cuda/ops.h"
#include "cuda/register.h"

SLOWFAST_CUDA_LIBRARY_IMPL(m) {
    m.impl("_roi_align_cuda", TORCH_BOX(&slowfast::cuda::roi_align_cuda));
    m.impl("_roi_align_bwd_cuda", TORCH_BOX(&slowfast::cuda::roi_align_bwd_cuda));
    m.impl("_roi_head_cuda", TORCH_BOX(&slowfast::cuda::roi_head_cuda));
    m.impl("_roi_head_bwd_cuda", TORCH_BOX(&slowfast::cuda::roi_head_bwd_cuda));
}
