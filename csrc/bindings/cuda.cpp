// Registers the CUDA ops, or the same ops emulated on the CPU. As for the CPU ops (cpu.cpp), the schemas are
// in Python and a C++ type that differs from the schema's is not noticed.

#include "cuda/ops.h"
#include "cuda/register.h"

SLOWFAST_CUDA_LIBRARY_IMPL(m) {
    m.impl("_selftest_cuda", TORCH_BOX(&slowfast::cuda::selftest_cuda));
}
