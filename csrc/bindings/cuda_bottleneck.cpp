#include "cuda/bottleneck.h"
#include "cuda/register.h"

SLOWFAST_CUDA_LIBRARY_IMPL(m) {
    m.impl("_fast_block_run_cuda", TORCH_BOX(&slowfast::cuda::fast_block_run_cuda));
    m.impl("_point_run_cuda", TORCH_BOX(&slowfast::cuda::point_run_cuda));
    m.impl("_block_tail_run_cuda", TORCH_BOX(&slowfast::cuda::block_tail_run_cuda));
    m.impl("_whole_block_run_cuda", TORCH_BOX(&slowfast::cuda::whole_block_run_cuda));
}
