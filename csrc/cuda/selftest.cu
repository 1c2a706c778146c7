// The smallest op of this library, by which tests see that the CUDA
// path is whole: build, registration, launch.

#include "cuda/ops.h"
#include "cuda/tensor.h"

namespace slowfast::cuda {

namespace {

template <class T>
SF_KERNEL SF_LAUNCH_BOUNDS(128, 4) void scale_kernel(const T* x, float s, T* y, int64_t n) {
    const int64_t i = int64_t(block_x()) * block_dim_x() + thread_x();
    if (i < n) y[i] = from_float<T>(to_float(x[i]) * s);
}

}  // namespace

Tensor selftest_cuda(Tensor x, double s) {
    STD_TORCH_CHECK(x.is_contiguous(), "x: expected contiguous memory");
    Tensor y = torch::stable::empty_like(x);
    const OnDevice device(x);
    with_dtype(x, "x", [&](auto zero) {
        using T = decltype(zero);
        SF_LAUNCH((scale_kernel<T>), Dim3(ceil_div<int64_t>(x.numel(), 128)), Dim3(128), 0, device.stream(),
                  data_of<T>(x, "x"), static_cast<float>(s), data_of<T>(y, "y"), x.numel());
    });
    return y;
}

}  // namespace slowfast::cuda
