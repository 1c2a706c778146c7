// The table of one instruction set's kernels.

#include "cpu/isa/entry.h"

#define SF_STRING2(x) #x
#define SF_STRING(x) SF_STRING2(x)

namespace slowfast::SLOWFAST_ISA {

extern const KernelTable kTable;
const KernelTable kTable = {
    SF_STRING(SLOWFAST_ISA),
#define SLOWFAST_KERNEL(result, name, arguments) name,
#include "cpu/kernels.inc"
};

}  // namespace slowfast::SLOWFAST_ISA
