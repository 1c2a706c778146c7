// What the launchers of every CUDA op share: stable-ABI tensors, checks, the device and stream of a call.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "common/layout.h"
#include "cuda/primitives.cuh"

namespace slowfast::cuda {

// The device of a tensor while the object lives, and that device's current stream. Emulated, it is nothing.
class OnDevice {
  public:
#ifdef SLOWFAST_EMULATE
    explicit OnDevice(const Tensor& x) {
        STD_TORCH_CHECK(x.is_cpu(), "the emulated CUDA kernels take tensors on the CPU");
    }
#else
    explicit OnDevice(const Tensor& x) : guard_(x.get_device_index()) {
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream_));
    }
#endif
    Stream stream() const { return stream_; }

  private:
#ifndef SLOWFAST_EMULATE
    torch::stable::accelerator::DeviceGuard guard_;
#endif
    Stream stream_ = nullptr;
};

// The element type as a value of that type: with_dtype(x, "x", [&](auto zero) { using T = decltype(zero); ...
// }).
template <class F>
void with_dtype(const Tensor& x, const char* what, F f) {
    switch (x.scalar_type()) {
        case ScalarType::Float:
            return f(float{});
        case ScalarType::BFloat16:
            return f(bf16{});
        case ScalarType::Half:
            return f(f16{});
        default:
            STD_TORCH_CHECK(false, what, ": expected float32, bfloat16 or float16");
    }
}
// The same for the types that the tensor cores multiply two by two.
template <class F>
void with_half_dtype(const Tensor& x, const char* what, F f) {
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::BFloat16 || x.scalar_type() == ScalarType::Half, what,
                    ": expected bfloat16 or float16");
    return x.scalar_type() == ScalarType::BFloat16 ? f(bf16{}) : f(f16{});
}

template <class T>
constexpr ScalarType scalar_type_of();
template <>
constexpr ScalarType scalar_type_of<float>() {
    return ScalarType::Float;
}
template <>
constexpr ScalarType scalar_type_of<bf16>() {
    return ScalarType::BFloat16;
}
template <>
constexpr ScalarType scalar_type_of<f16>() {
    return ScalarType::Half;
}
template <>
constexpr ScalarType scalar_type_of<int>() {
    return ScalarType::Int;
}
template <>
constexpr ScalarType scalar_type_of<uint8_t>() {
    return ScalarType::Byte;
}
template <>
constexpr ScalarType scalar_type_of<int64_t>() {
    return ScalarType::Long;
}

// Memory of a tensor on the device that OnDevice made current: a kernel cannot read any other.
template <class T>
T* data_of(const Tensor& x, const char* what) {
    STD_TORCH_CHECK(x.scalar_type() == scalar_type_of<T>(), what, ": expected another element type");
#ifdef SLOWFAST_EMULATE
    STD_TORCH_CHECK(x.is_cpu(), what, ": expected a tensor on the CPU");
#else
    STD_TORCH_CHECK(
        x.is_cuda() && x.get_device_index() == torch::stable::accelerator::getCurrentDeviceIndex(), what,
        ": expected a tensor on the GPU of the call's first argument");
#endif
    return static_cast<T*>(const_cast<void*>(x.const_data_ptr()));
}

inline const float* floats_or_null(const std::optional<Tensor>& x, int64_t n, const char* what) {
    if (!x) return nullptr;
    STD_TORCH_CHECK(x->is_contiguous() && x->numel() == n, what, ": expected ", n,
                    " contiguous float32 values, got ", x->numel());
    return data_of<float>(*x, what);
}

// What kernels count in 32 bits.
inline int as_int(int64_t v, const char* what) {
    STD_TORCH_CHECK(v >= 0 && v <= INT32_MAX, what, ": expected less than 2^31, got ", v);
    return static_cast<int>(v);
}

// Whether vectors of 16 bytes fit memory that starts at p, at a distance of a multiple of `pitch` elements.
template <class T>
bool fits_vectors(const T* p, int64_t pitch) {
    return pitch * sizeof(T) % 16 == 0 && reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

}  // namespace slowfast::cuda
