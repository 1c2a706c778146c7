// Where the bindings register: on the GPU's dispatch key, or emulated on the CPU's.
#pragma once

#ifdef SLOWFAST_EMULATE
#define SLOWFAST_CUDA_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(slowfast, CPU, m)
#else
#define SLOWFAST_CUDA_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(slowfast, CUDA, m)
#endif
