// Registers the CPU ops on boxes; see cpu.cpp.

#include "cpu/ops.h"

STABLE_TORCH_LIBRARY_IMPL(slowfast, CPU, m) {
    m.impl("_roi_align_cpu", TORCH_BOX(&slowfast::roi_align_cpu));
    m.impl("_roi_align_bwd_cpu", TORCH_BOX(&slowfast::roi_align_bwd_cpu));
    m.impl("_roi_head_cpu", TORCH_BOX(&slowfast::roi_head_cpu));
    m.impl("_roi_head_bwd_cpu", TORCH_BOX(&slowfast::roi_head_bwd_cpu));
}
