// Types and annotations that kernels share between nvcc and the host compiler; part of primitives.cuh.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef SLOWFAST_EMULATE
#define SF_KERNEL
#define SF_DEVICE inline
#define SF_HOST_DEVICE inline
#define SF_LAUNCH_BOUNDS(threads, min_blocks)
#define SF_UNROLL
#define SF_NO_UNROLL
#else
#define SF_KERNEL __global__
#define SF_DEVICE __device__ __forceinline__
#define SF_HOST_DEVICE __host__ __device__ __forceinline__
#define SF_LAUNCH_BOUNDS(threads, min_blocks) __launch_bounds__(threads, min_blocks)
#define SF_UNROLL _Pragma("unroll")
#define SF_NO_UNROLL _Pragma("unroll 1")
#endif

// Where a helper made of collective primitives was called, for the emulator's messages: the helper takes
// SF_CALLER as its last parameter and hands SF_SITE on, neither with a comma before it.
#ifdef SLOWFAST_EMULATE
#define SF_CALLER , ::slowfast::emulator::Site site = ::slowfast::emulator::Site::here()
#define SF_SITE , site
#else
#define SF_CALLER
#define SF_SITE
#endif

namespace slowfast::cuda {

// Blocks of a grid, threads of a block. What does not fit in 32 bits becomes too large for any launch.
struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
    Dim3() = default;
    constexpr Dim3(int64_t x, int64_t y = 1, int64_t z = 1) : x(clamp(x)), y(clamp(y)), z(clamp(z)) {}
    constexpr uint64_t count() const { return uint64_t(x) * y * z; }

  private:
    static constexpr unsigned clamp(int64_t n) {
        return n < 0 || n > 0xffffffff ? 0xffffffffu : static_cast<unsigned>(n);
    }
};

// 16-bit floating-point numbers as they lie in memory. Arithmetic is in float: to_float, from_float.
struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

// N values that move as one access of 1 to 16 bytes: load<N>(p), store(p, v).
template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
    static_assert((sizeof(T) * N & (sizeof(T) * N - 1)) == 0, "sizes of vectors are powers of two");
    T data[N];
    SF_HOST_DEVICE constexpr T& operator[](int i) { return data[i]; }
    SF_HOST_DEVICE constexpr const T& operator[](int i) const { return data[i]; }
};

template <class To, class From>
SF_HOST_DEVICE To bit_cast(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
    To to;
    memcpy(&to, &from, sizeof(To));
    return to;
}

template <class T>
SF_HOST_DEVICE constexpr T ceil_div(T a, T b) {
    return (a + b - 1) / b;
}
template <class T>
SF_HOST_DEVICE constexpr T round_up(T a, T b) {
    return ceil_div(a, b) * b;
}

constexpr int kWarp = 32;
constexpr uint32_t kFullWarp = 0xffffffffu;

}  // namespace slowfast::cuda
