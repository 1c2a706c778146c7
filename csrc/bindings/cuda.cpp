// Registers the CUDA ops; emulated, the same ops on the CPU's dispatch key. As for the CPU ops (cpu.cpp), the
// schemas are in Python and a C++ type that differs from the schema's is not noticed.

#include "cuda/ops.h"

#ifdef SLOWFAST_EMULATE
STABLE_TORCH_LIBRARY_IMPL(slowfast, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(slowfast, CUDA, m) {
#endif
    m.impl("_selftest_cuda", TORCH_BOX(&slowfast::cuda::selftest_cuda));
    m.impl("_selftest_products_cuda", TORCH_BOX(&slowfast::cuda::selftest_products_cuda));
    m.impl("_selftest_read_cuda", TORCH_BOX(&slowfast::cuda::selftest_read_cuda));
    m.impl("_block_narrow_run_cuda", TORCH_BOX(&slowfast::cuda::block_narrow_run_cuda));
    m.impl("_block_wide_a_run_cuda", TORCH_BOX(&slowfast::cuda::block_wide_a_run_cuda));
    m.impl("_block_wide_rest_run_cuda", TORCH_BOX(&slowfast::cuda::block_wide_rest_run_cuda));
    m.impl("_block_wide_one_run_cuda", TORCH_BOX(&slowfast::cuda::block_wide_one_run_cuda));
    m.impl("_stem_run_cuda", TORCH_BOX(&slowfast::cuda::stem_run_cuda));
    m.impl("_lateral_cuda", TORCH_BOX(&slowfast::cuda::lateral_cuda));
    m.impl("_lateral_gather_cuda", TORCH_BOX(&slowfast::cuda::lateral_gather_cuda));
    m.impl("_pack_cuda", TORCH_BOX(&slowfast::cuda::pack_cuda));
    m.impl("_roi_align_cuda", TORCH_BOX(&slowfast::cuda::roi_align_cuda));
    m.impl("_roi_align_bwd_cuda", TORCH_BOX(&slowfast::cuda::roi_align_bwd_cuda));
    m.impl("_roi_head_cuda", TORCH_BOX(&slowfast::cuda::roi_head_cuda));
    m.impl("_roi_head_bwd_cuda", TORCH_BOX(&slowfast::cuda::roi_head_bwd_cuda));
}
