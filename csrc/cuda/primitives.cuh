// What kernels may use of the machine, and their only way to it.
//
// A kernel written on this header compiles twice: by nvcc for the GPU (sm_80 is the baseline), and with
// SLOWFAST_EMULATE by the host compiler, where csrc/emulator runs it thread by thread and checks it. The
// machine's side is below, the emulator's in emulator/primitives.h; the signatures agree, except that the
// emulator's take the caller's source line as a last, defaulted argument.
//
//   template <class T>
//   SF_KERNEL SF_LAUNCH_BOUNDS(128, 4) void scale_kernel(const T* x, float s, T* y, int64_t n) {
//       SF_SHARED(float, row, 128);           // static shared memory: an array of 128 floats
//       T* tile = dynamic_shared<T>();        // dynamic shared memory: as many bytes as the launch says
//       ...
//   }
//   SF_LAUNCH((scale_kernel<bf16>), Dim3(blocks), Dim3(128), shared_bytes, stream, x, s, y, n);
//
// (A kernel with template arguments stands in parentheses.) SF_LAUNCH throws std::runtime_error when the
// launch fails; a launch of no blocks does nothing.
//
// Index
//   thread_x() block_x() block_dim_x() grid_dim_x() and _y, _z    as int
//   thread_id() lane() warp()                                     linear thread of the block, % 32, / 32
//   syncthreads()  named_barrier(id, threads)  syncwarp(mask)  threadfence()
//   shfl_sync(v, lane) shfl_xor_sync(v, lanes) shfl_down_sync(v, n) shfl_up_sync(v, n)   4- and 8-byte values
//   ballot_sync(p) any_sync(p) all_sync(p)  warp_sum(v) warp_max(v)
//       Last argument of each: mask, all lanes by default. Every lane of the mask has to arrive.
//   load<N>(p) load_readonly<N>(p) store(p, v)     Vec<T, N> of 1 to 16 bytes, aligned to its size
//   store_result(p, v)                             into global memory that this kernel does not read
//   fresh(v)                                       uint32_t v, of which the compiler forgets what it knew
//   reversed_row(row)                              pixel of a row of a tensor-core tile: banks apart
//   load_run<N>(p)                                 N floats, aligned to 16 bytes or their size
//   cp_async16 cp_async8 cp_async4 (shared, global, valid = true)   zeros when not valid (global is not read)
//   cp_async_bytes<N>(shared, global, bytes)                        bytes from global, zeros behind them
//   cp_async_commit() cp_async_wait<N>()    until at most N of this thread's groups are under way
//   ldmatrix_x1 _x2 _x4 (registers, row)  ldmatrix_x1_trans ...     8x8 tiles of 16-bit values
//   mma_m16n8k16<bf16|f16>(d, a, b)  mma_m16n8k8<bf16|f16>(d, a, b)  mma_m16n8k8_tf32(d, a, b)     d += a * b
//   to_float(v) from_float<T>(v)     T: float, bf16, f16, or Vec of them
//   pack2<T>(low, high) unpack2<T>(bits)   two 16-bit values in a register    to_tf32(v)
//   pack2_relu<T>(low, high) relu_from_float<T>(v)   the same of max(v, 0), NaN where v is, in one instruction
//   max2<T>(a, b)     the larger of two pairs of 16-bit values, NaN where either is
//   atomic_add(p, v) atomic_max(p, v)   int; returns the old value
//
// Fragments (g = lane / 4, t = lane % 4; PTX ISA 9.7.14, low half of a register first)
//   m16n8k16  a[0] = A[g][2t, 2t+1]  a[1] = A[g+8][..]  a[2] = A[g][2t+8, 2t+9]  a[3] = A[g+8][2t+8, ..]
//             b[0] = B[2t, 2t+1][g]  b[1] = B[2t+8, 2t+9][g]
//   m16n8k8   a[0] = A[g][2t, 2t+1]  a[1] = A[g+8][2t, 2t+1]     b[0] = B[2t, 2t+1][g]
//   tf32      a[0] = A[g][t]  a[1] = A[g+8][t]  a[2] = A[g][t+4]  a[3] = A[g+8][t+4]
//             b[0] = B[t][g]  b[1] = B[t+4][g]
//   all       d[0] = D[g][2t]  d[1] = D[g][2t+1]  d[2] = D[g+8][2t]  d[3] = D[g+8][2t+1]
//   ldmatrix  lane 8i + r gives the address of row r of tile i; register i then holds tile i's [g][2t, 2t+1],
//             with _trans [2t, 2t+1][g]
#pragma once

#include "cuda/types.h"

#ifdef SLOWFAST_EMULATE

#include "emulator/primitives.h"

#else

#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

namespace slowfast::cuda {

using Stream = void*;  // a cudaStream_t

// --- Where am I --------------------------------------------------------------------------------------
SF_DEVICE int thread_x() {
    return static_cast<int>(threadIdx.x);
}
SF_DEVICE int thread_y() {
    return static_cast<int>(threadIdx.y);
}
SF_DEVICE int thread_z() {
    return static_cast<int>(threadIdx.z);
}
SF_DEVICE int block_x() {
    return static_cast<int>(blockIdx.x);
}
SF_DEVICE int block_y() {
    return static_cast<int>(blockIdx.y);
}
SF_DEVICE int block_z() {
    return static_cast<int>(blockIdx.z);
}
SF_DEVICE int block_dim_x() {
    return static_cast<int>(blockDim.x);
}
SF_DEVICE int block_dim_y() {
    return static_cast<int>(blockDim.y);
}
SF_DEVICE int block_dim_z() {
    return static_cast<int>(blockDim.z);
}
SF_DEVICE int grid_dim_x() {
    return static_cast<int>(gridDim.x);
}
SF_DEVICE int grid_dim_y() {
    return static_cast<int>(gridDim.y);
}
SF_DEVICE int grid_dim_z() {
    return static_cast<int>(gridDim.z);
}
SF_DEVICE int thread_id() {
    return thread_x() + block_dim_x() * (thread_y() + block_dim_y() * thread_z());
}
SF_DEVICE int lane() {
    return thread_id() % kWarp;
}
SF_DEVICE int warp() {
    return thread_id() / kWarp;
}

// What is computed from the result is computed where it is used, instead of once before a loop, at the price of
// registers all through it.
SF_DEVICE uint32_t fresh(uint32_t v) {
    asm volatile("" : "+r"(v));
    return v;
}

// --- Meeting -----------------------------------------------------------------------------------------
SF_DEVICE void syncthreads() {
    __syncthreads();
}
// Barrier `id` (1 to 15) of `threads` threads, whole warps.
SF_DEVICE void named_barrier(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
SF_DEVICE void syncwarp(uint32_t mask = kFullWarp) {
    __syncwarp(mask);
}
SF_DEVICE void threadfence() {
    __threadfence();
}

namespace detail {
template <class T, class F>
SF_DEVICE T shuffle(T v, F f) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    if constexpr (sizeof(T) == 4) {
        return bit_cast<T>(f(bit_cast<uint32_t>(v)));
    } else {
        Vec<uint32_t, 2> two = bit_cast<Vec<uint32_t, 2>>(v);
        two[0] = f(two[0]);
        two[1] = f(two[1]);
        return bit_cast<T>(two);
    }
}
}  // namespace detail

template <class T>
SF_DEVICE T shfl_sync(T v, int from, uint32_t mask = kFullWarp) {
    return detail::shuffle(v, [=](uint32_t bits) { return __shfl_sync(mask, bits, from); });
}
template <class T>
SF_DEVICE T shfl_xor_sync(T v, int lanes, uint32_t mask = kFullWarp) {
    return detail::shuffle(v, [=](uint32_t bits) { return __shfl_xor_sync(mask, bits, lanes); });
}
template <class T>
SF_DEVICE T shfl_down_sync(T v, int by, uint32_t mask = kFullWarp) {
    return detail::shuffle(v, [=](uint32_t bits) { return __shfl_down_sync(mask, bits, by); });
}
template <class T>
SF_DEVICE T shfl_up_sync(T v, int by, uint32_t mask = kFullWarp) {
    return detail::shuffle(v, [=](uint32_t bits) { return __shfl_up_sync(mask, bits, by); });
}
SF_DEVICE uint32_t ballot_sync(bool p, uint32_t mask = kFullWarp) {
    return __ballot_sync(mask, p);
}

// --- Memory ------------------------------------------------------------------------------------------
#define SF_SHARED(T, name, n) __shared__ __align__(128) T name[n]

template <class T>
SF_DEVICE T* dynamic_shared() {
    extern __shared__ __align__(128) unsigned char slowfast_dynamic_shared[];
    return reinterpret_cast<T*>(slowfast_dynamic_shared);
}

namespace detail {
template <int Bytes>
struct Raw;
template <>
struct Raw<1> {
    using type = unsigned char;
};
template <>
struct Raw<2> {
    using type = unsigned short;
};
template <>
struct Raw<4> {
    using type = unsigned int;
};
template <>
struct Raw<8> {
    using type = uint2;
};
template <>
struct Raw<16> {
    using type = uint4;
};
SF_DEVICE uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
}  // namespace detail

template <int N, class T>
SF_DEVICE Vec<T, N> load(const T* p) {
    using Raw = typename detail::Raw<sizeof(Vec<T, N>)>::type;
    // By value: memcpy from where it lies would forget the alignment, and load byte by byte.
    const Raw raw = *reinterpret_cast<const Raw*>(p);
    return bit_cast<Vec<T, N>>(raw);
}
// From global memory that nothing writes while the kernel runs.
template <int N, class T>
SF_DEVICE Vec<T, N> load_readonly(const T* p) {
    using Raw = typename detail::Raw<sizeof(Vec<T, N>)>::type;
    return bit_cast<Vec<T, N>>(__ldg(reinterpret_cast<const Raw*>(p)));
}
template <int N, class T>
SF_DEVICE void store(T* p, const Vec<T, N>& v) {
    using Raw = typename detail::Raw<sizeof(Vec<T, N>)>::type;
    *reinterpret_cast<Raw*>(p) = bit_cast<Raw>(v);
}

template <int N, class T>
SF_DEVICE void store_result(T* p, const Vec<T, N>& v) {
    // Spelled out, because the compiler takes a vector apart whose address it chose on the way.
    if constexpr (sizeof(Vec<T, N>) == 16) {
        const auto w = bit_cast<Vec<uint32_t, 4>>(v);
        asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(w[0]), "r"(w[1]), "r"(w[2]),
                     "r"(w[3]));
    } else {
        store(p, v);
    }
}

template <int N>
SF_DEVICE void cp_async_bytes(void* shared, const void* global, int bytes) {
    static_assert(N == 4 || N == 8 || N == 16, "asynchronous copies are of 4, 8 or 16 bytes");
    if constexpr (N == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(detail::shared_address(shared)),
                     "l"(global), "r"(bytes)
                     : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(detail::shared_address(shared)),
                     "l"(global), "n"(N), "r"(bytes)
                     : "memory");
    }
}
SF_DEVICE void cp_async16(void* shared, const void* global, bool valid = true) {
    cp_async_bytes<16>(shared, global, valid ? 16 : 0);
}
SF_DEVICE void cp_async8(void* shared, const void* global, bool valid = true) {
    cp_async_bytes<8>(shared, global, valid ? 8 : 0);
}
SF_DEVICE void cp_async4(void* shared, const void* global, bool valid = true) {
    cp_async_bytes<4>(shared, global, valid ? 4 : 0);
}
SF_DEVICE void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int N>
SF_DEVICE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

SF_DEVICE int atomic_add(int* p, int v) {
    return atomicAdd(p, v);
}
SF_DEVICE int atomic_max(int* p, int v) {
    return atomicMax(p, v);
}

// --- Tensor cores ------------------------------------------------------------------------------------
#define SLOWFAST_LDMATRIX(suffix, trans)                                                         \
    SF_DEVICE void ldmatrix_x1##suffix(uint32_t* r, const void* row) {                           \
        asm volatile("ldmatrix.sync.aligned.m8n8.x1" trans ".shared.b16 {%0}, [%1];"             \
                     : "=r"(r[0])                                                                \
                     : "r"(detail::shared_address(row))                                          \
                     : "memory");                                                                \
    }                                                                                            \
    SF_DEVICE void ldmatrix_x2##suffix(uint32_t* r, const void* row) {                           \
        asm volatile("ldmatrix.sync.aligned.m8n8.x2" trans ".shared.b16 {%0, %1}, [%2];"         \
                     : "=r"(r[0]), "=r"(r[1])                                                    \
                     : "r"(detail::shared_address(row))                                          \
                     : "memory");                                                                \
    }                                                                                            \
    SF_DEVICE void ldmatrix_x4##suffix(uint32_t* r, const void* row) {                           \
        asm volatile("ldmatrix.sync.aligned.m8n8.x4" trans ".shared.b16 {%0, %1, %2, %3}, [%4];" \
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                            \
                     : "r"(detail::shared_address(row))                                          \
                     : "memory");                                                                \
    }
SLOWFAST_LDMATRIX(, "")
SLOWFAST_LDMATRIX(_trans, ".trans")
#undef SLOWFAST_LDMATRIX

namespace detail {
template <class T>
inline constexpr bool is_half = std::is_same_v<T, bf16> || std::is_same_v<T, f16>;
}

#define SLOWFAST_MMA_K16(type)                                                          \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                 \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                       \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#define SLOWFAST_MMA_K8(type)                                               \
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32." type "." type      \
                 ".f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};" \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])           \
                 : "r"(a[0]), "r"(a[1]), "r"(b[0]))
template <class T>
SF_DEVICE void mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b) {
    static_assert(detail::is_half<T>, "mma_m16n8k16 multiplies bf16 or f16");
    if constexpr (std::is_same_v<T, bf16>) {
        SLOWFAST_MMA_K16("bf16");
    } else {
        SLOWFAST_MMA_K16("f16");
    }
}
template <class T>
SF_DEVICE void mma_m16n8k8(float* d, const uint32_t* a, const uint32_t* b) {
    static_assert(detail::is_half<T>, "mma_m16n8k8 multiplies bf16 or f16");
    if constexpr (std::is_same_v<T, bf16>) {
        SLOWFAST_MMA_K8("bf16");
    } else {
        SLOWFAST_MMA_K8("f16");
    }
}
SF_DEVICE void mma_m16n8k8_tf32(float* d, const uint32_t* a, const uint32_t* b) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#undef SLOWFAST_MMA_K16
#undef SLOWFAST_MMA_K8

// --- Numbers -----------------------------------------------------------------------------------------
SF_DEVICE float to_float(float v) {
    return v;
}
SF_DEVICE float to_float(bf16 v) {
    return __uint_as_float(static_cast<uint32_t>(v.bits) << 16);
}
SF_DEVICE float to_float(f16 v) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
    return f;
}
template <class T>
SF_DEVICE T from_float(float v) {
    if constexpr (std::is_same_v<T, float>) {
        return v;
    } else {
        static_assert(detail::is_half<T>, "from_float makes float, bf16 or f16");
        T r;
        if constexpr (std::is_same_v<T, bf16>) {
            asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r.bits) : "f"(v));
        } else {
            asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r.bits) : "f"(v));
        }
        return r;
    }
}
template <class T>
SF_DEVICE uint32_t pack2(float low, float high) {
    static_assert(detail::is_half<T>, "pack2 packs bf16 or f16");
    uint32_t r;
    if constexpr (std::is_same_v<T, bf16>) {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    } else {
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    }
    return r;
}
template <class T>
SF_DEVICE uint32_t pack2_relu(float low, float high) {
    static_assert(detail::is_half<T>, "pack2_relu packs bf16 or f16");
    uint32_t r;
    if constexpr (std::is_same_v<T, bf16>) {
        asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    } else {
        asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    }
    return r;
}
template <class T>
SF_DEVICE uint32_t max2(uint32_t a, uint32_t b) {
    static_assert(detail::is_half<T>, "max2 compares bf16 or f16");
    uint32_t r;
    if constexpr (std::is_same_v<T, bf16>) {
        asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    } else {
        asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    }
    return r;
}
SF_DEVICE uint32_t to_tf32(float v) {
    uint32_t r;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(v));
    return r;
}

// --- Launch ------------------------------------------------------------------------------------------
namespace detail {
inline void check(cudaError_t error, const char* kernel, const char* step) {
    if (error != cudaSuccess) {
        // The runtime keeps it for whoever asks next; this is whom it concerns.
        static_cast<void>(cudaGetLastError());
        throw std::runtime_error(std::string(kernel) + ": " + step + ": " + cudaGetErrorString(error));
    }
}
// Dynamic shared memory that every device gives without being asked: 48 KiB less what a kernel's static
// arrays take, for which two thirds are set aside.
constexpr size_t kSharedUnasked = 16 * 1024;

// Asks for so much dynamic shared memory, once for each kernel, device and larger amount: never for less than
// another thread just asked for.
inline void ask_shared(const char* name, const void* function, size_t bytes) {
    static std::mutex mutex;
    static std::map<std::pair<const void*, int>, size_t> asked;
    int device = 0;
    check(cudaGetDevice(&device), name, "finding the device");
    std::lock_guard<std::mutex> lock(mutex);
    size_t& most = asked[{function, device}];
    if (bytes <= most) return;
    check(
        cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        name, "asking for shared memory");
    most = bytes;
}
}  // namespace detail

template <class... Params>
void launch(const char* name, void (*kernel)(Params...), Dim3 grid, Dim3 block, size_t shared_bytes,
            Stream stream, std::common_type_t<Params>... args) {
    if (grid.count() == 0) return;
    const void* function = reinterpret_cast<const void*>(kernel);
    if (shared_bytes > detail::kSharedUnasked) detail::ask_shared(name, function, shared_bytes);
    void* pointers[] = {static_cast<void*>(&args)..., nullptr};
    detail::check(cudaLaunchKernel(function, dim3(grid.x, grid.y, grid.z), dim3(block.x, block.y, block.z),
                                   pointers, shared_bytes, static_cast<cudaStream_t>(stream)),
                  name, "launching");
}

}  // namespace slowfast::cuda

#endif  // SLOWFAST_EMULATE

#define SF_LAUNCH(kernel, ...) ::slowfast::cuda::launch(#kernel, kernel, __VA_ARGS__)

// --- Made of the above: the same code on both sides --------------------------------------------------
namespace slowfast::cuda {

template <class T>
SF_DEVICE Vec<float, 2> unpack2(uint32_t bits) {
    Vec<float, 2> v;
    v[0] = to_float(T{static_cast<uint16_t>(bits)});
    v[1] = to_float(T{static_cast<uint16_t>(bits >> 16)});
    return v;
}

template <class T, int N>
SF_DEVICE Vec<float, N> to_float(const Vec<T, N>& v) {
    Vec<float, N> r;
    SF_UNROLL
    for (int i = 0; i < N; ++i) r[i] = to_float(v[i]);
    return r;
}

template <class T, int N>
SF_DEVICE Vec<T, N> from_float(const Vec<float, N>& v) {
    if constexpr (sizeof(T) == 2 && N % 2 == 0) {
        Vec<uint32_t, N / 2> r;
        SF_UNROLL
        for (int i = 0; i < N / 2; ++i) r[i] = pack2<T>(v[2 * i], v[2 * i + 1]);
        return bit_cast<Vec<T, N>>(r);
    } else {
        Vec<T, N> r;
        SF_UNROLL
        for (int i = 0; i < N; ++i) r[i] = from_float<T>(v[i]);
        return r;
    }
}

// Pixel, of eight that follow one another, that a row of a tensor-core tile stands for: the reversed bits.
// The two or four rows that are loaded or stored at once are then four or two pixels apart, which with rows
// of an odd number of 16-byte units are different banks; neighbours would share some.
SF_DEVICE int reversed_row(int row) {
    return row % 2 * 4 + row / 2 % 2 * 2 + row / 4;
}

// N neighbouring floats in vectors of at most four. For what is used often: read it once. What is stored in
// between might, for all the compiler knows, change it.
template <int N>
SF_DEVICE Vec<float, N> load_run(const float* p) {
    constexpr int kVector = N < 4 ? N : 4;
    Vec<float, N> v;
    SF_UNROLL
    for (int i = 0; i < N; i += kVector) {
        const auto some = load<kVector>(p + i);
        SF_UNROLL
        for (int j = 0; j < kVector; ++j) v[i + j] = some[j];
    }
    return v;
}

// T: bf16 or f16; N is even.
template <class T, int N>
SF_DEVICE Vec<T, N> relu_from_float(const Vec<float, N>& v) {
    Vec<uint32_t, N / 2> r;
    SF_UNROLL
    for (int i = 0; i < N / 2; ++i) r[i] = pack2_relu<T>(v[2 * i], v[2 * i + 1]);
    return bit_cast<Vec<T, N>>(r);
}

SF_DEVICE bool any_sync(bool p, uint32_t mask = kFullWarp SF_CALLER) {
    return ballot_sync(p, mask SF_SITE) != 0;
}
SF_DEVICE bool all_sync(bool p, uint32_t mask = kFullWarp SF_CALLER) {
    return ballot_sync(p, mask SF_SITE) == mask;
}

// Over all 32 lanes, the same in every lane.
template <class T>
SF_DEVICE T warp_sum(T v SF_CALLER) {
    SF_UNROLL
    for (int step = kWarp / 2; step > 0; step /= 2) v += shfl_xor_sync(v, step, kFullWarp SF_SITE);
    return v;
}
template <class T>
SF_DEVICE T warp_max(T v SF_CALLER) {
    SF_UNROLL
    for (int step = kWarp / 2; step > 0; step /= 2) {
        const T other = shfl_xor_sync(v, step, kFullWarp SF_SITE);
        v = other > v ? other : v;
    }
    return v;
}

}  // namespace slowfast::cuda
