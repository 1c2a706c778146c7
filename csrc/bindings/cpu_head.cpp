// Registers the ops at the two ends of a model: frames to clips, features to scores.

#include "cpu/ops.h"

STABLE_TORCH_LIBRARY_IMPL(slowfast, CPU, m) {
    m.impl("_pack_run_cpu", TORCH_BOX(&slowfast::pack_run_cpu));
    m.impl("_pool_head_run_cpu", TORCH_BOX(&slowfast::pool_head_run_cpu));
}
