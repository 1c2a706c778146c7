#include "cuda/register.h"
#include "cuda/stem.h"

SLOWFAST_CUDA_LIBRARY_IMPL(m) {
    m.impl("_stem_run_cuda", TORCH_BOX(&slowfast::cuda::stem_run_cuda));
}
