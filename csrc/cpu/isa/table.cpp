// The table of one instruction set's kernels.

#include "cpu/isa/entry.h"

#define SF_STRING2(x) #x
#define SF_STRING(x) SF_STRING2(x)

namespace slowfast::SLOWFAST_ISA {

extern const KernelTable kTable;
const KernelTable kTable = {
    SF_STRING(SLOWFAST_ISA),
    conv_item,
    block_item,
    block_scratch,
    stem_item,
    stem_scratch,
    pad_item,
    stem_planar_item,
    stem_planar_scratch,
    stem_planar_layout,
    winograd_input_item,
    winograd_gemm_item,
    pack_item,
    head_pool_item,
    head_linear_item,
    roi_align_item,
    roi_align_bwd_item,
    roi_reduce_item,
    roi_max_item,
    roi_scatter_item,
    roi_spread_item,
    lateral_unit,
    lateral_scratch,
};

}  // namespace slowfast::SLOWFAST_ISA
