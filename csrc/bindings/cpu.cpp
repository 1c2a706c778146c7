// Registers the CPU ops. The schemas are in Python, beside each op's fake and autograd
// (slowfast_kernels/ops). Stable-ABI kernels are boxed: a C++ type that differs from the schema's is not
// noticed, so the contract test perturbs every argument.

#include "cpu/ops.h"

STABLE_TORCH_LIBRARY_IMPL(slowfast, CPU, m) {
    m.impl("_conv_pack_cpu", TORCH_BOX(&slowfast::conv_pack_cpu));
    m.impl("_conv_run_cpu", TORCH_BOX(&slowfast::conv_run_cpu));
    m.impl("_winograd_run_cpu", TORCH_BOX(&slowfast::winograd_run_cpu));
    m.impl("_lateral_run_cpu", TORCH_BOX(&slowfast::lateral_run_cpu));
    m.impl("_block_run_cpu", TORCH_BOX(&slowfast::block_run_cpu));
    m.impl("_stem_run_cpu", TORCH_BOX(&slowfast::stem_run_cpu));
    m.impl("_pack_run_cpu", TORCH_BOX(&slowfast::pack_run_cpu));
    m.impl("_pool_head_run_cpu", TORCH_BOX(&slowfast::pool_head_run_cpu));
    m.impl("_roi_align_cpu", TORCH_BOX(&slowfast::roi_align_cpu));
    m.impl("_roi_align_bwd_cpu", TORCH_BOX(&slowfast::roi_align_bwd_cpu));
    m.impl("_roi_head_cpu", TORCH_BOX(&slowfast::roi_head_cpu));
    m.impl("_roi_head_bwd_cpu", TORCH_BOX(&slowfast::roi_head_bwd_cpu));
}
