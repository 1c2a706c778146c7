// What the files of one instruction set's kernels share: the kernels by name, and a kernel's element type.
#pragma once

#include "cpu/isa/vec.h"
#include "cpu/kernels.h"

namespace slowfast::SLOWFAST_ISA {

#define SLOWFAST_KERNEL(result, name, arguments) result name arguments;
#include "cpu/kernels.inc"

template <class T>
constexpr DType kDType = DType::f32;
template <>
constexpr DType kDType<bf16> = DType::bf16;
template <>
constexpr DType kDType<f16> = DType::f16;

// f(T{}), where T is the type of these that dtype names; the last if none of the others.
template <class T, class... Others, class F>
inline auto with_dtype(DType dtype, const F& f) {
    if constexpr (sizeof...(Others) == 0) {
        return f(T{});
    } else {
        return dtype == kDType<T> ? f(T{}) : with_dtype<Others...>(dtype, f);
    }
}

}  // namespace slowfast::SLOWFAST_ISA
