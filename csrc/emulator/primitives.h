// The emulator's side of cuda/primitives.cuh.
#pragma once

#include <cmath>
#include <type_traits>

#include "cuda/types.h"
#include "emulator/emulator.h"

namespace slowfast::cuda {

using emulator::Site;
using Stream = void*;  // ignored: a launch has finished when it returns

// --- Where am I --------------------------------------------------------------------------------------
inline int thread_x() {
    return emulator::current->x;
}
inline int thread_y() {
    return emulator::current->y;
}
inline int thread_z() {
    return emulator::current->z;
}
inline int block_x() {
    return emulator::block_index[0];
}
inline int block_y() {
    return emulator::block_index[1];
}
inline int block_z() {
    return emulator::block_index[2];
}
inline int block_dim_x() {
    return static_cast<int>(emulator::block_dim.x);
}
inline int block_dim_y() {
    return static_cast<int>(emulator::block_dim.y);
}
inline int block_dim_z() {
    return static_cast<int>(emulator::block_dim.z);
}
inline int grid_dim_x() {
    return static_cast<int>(emulator::grid_dim.x);
}
inline int grid_dim_y() {
    return static_cast<int>(emulator::grid_dim.y);
}
inline int grid_dim_z() {
    return static_cast<int>(emulator::grid_dim.z);
}
inline int thread_id() {
    return emulator::current->id;
}
inline int lane() {
    return emulator::current->lane;
}
inline int warp() {
    return emulator::current->warp;
}
inline uint32_t fresh(uint32_t v) {
    return v;
}

// --- Meeting -----------------------------------------------------------------------------------------
inline void syncthreads(Site site = Site::here()) {
    emulator::barrier("syncthreads", 0, static_cast<int>(emulator::block_dim.count()), site);
}
inline void named_barrier(int id, int threads, Site site = Site::here()) {
    emulator::barrier("named_barrier", id, threads, site);
}
inline void syncwarp(uint32_t mask = kFullWarp, Site site = Site::here()) {
    emulator::meet("syncwarp", mask, [](void* const*, uint32_t) {}, nullptr, site);
}
inline void threadfence() {}

namespace detail {

struct Shuffle {
    uint64_t mine, theirs;
    int from;
};
void shuffle_work(void* const* lanes, uint32_t mask);

template <class T>
T shuffle(const char* what, T v, int from, uint32_t mask, Site site) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    if ((mask >> from & 1) == 0) {
        emulator::fail_at(what, site, "reads lane %d, which is not in its mask 0x%08x", from, mask);
    }
    Shuffle s{0, 0, from};
    std::memcpy(&s.mine, &v, sizeof(T));
    emulator::meet(what, mask, shuffle_work, &s, site);
    std::memcpy(&v, &s.theirs, sizeof(T));
    return v;
}

struct Ballot {
    bool mine;
    uint32_t all;
};
void ballot_work(void* const* lanes, uint32_t mask);

}  // namespace detail

template <class T>
T shfl_sync(T v, int from, uint32_t mask = kFullWarp, Site site = Site::here()) {
    return detail::shuffle("shfl_sync", v, from & (kWarp - 1), mask, site);
}
template <class T>
T shfl_xor_sync(T v, int lanes, uint32_t mask = kFullWarp, Site site = Site::here()) {
    return detail::shuffle("shfl_xor_sync", v, (lane() ^ lanes) & (kWarp - 1), mask, site);
}
template <class T>
T shfl_down_sync(T v, int by, uint32_t mask = kFullWarp, Site site = Site::here()) {
    const int from = lane() + by;
    return detail::shuffle("shfl_down_sync", v, from < kWarp ? from : lane(), mask, site);
}
template <class T>
T shfl_up_sync(T v, int by, uint32_t mask = kFullWarp, Site site = Site::here()) {
    const int from = lane() - by;
    return detail::shuffle("shfl_up_sync", v, from >= 0 ? from : lane(), mask, site);
}
inline uint32_t ballot_sync(bool p, uint32_t mask = kFullWarp, Site site = Site::here()) {
    detail::Ballot b{p, 0};
    emulator::meet("ballot_sync", mask, detail::ballot_work, &b, site);
    return b.all;
}

// --- Memory ------------------------------------------------------------------------------------------
#define SF_SHARED(T, name, n)         \
    static char name##_declared_here; \
    T(&name)                          \
    [n] = *reinterpret_cast<T(*)[n]>( \
        ::slowfast::emulator::static_shared(&name##_declared_here, sizeof(T) * (n), #name))

template <class T>
T* dynamic_shared() {
    return static_cast<T*>(emulator::dynamic_shared());
}

template <int N, class T>
Vec<T, N> load(const T* p, Site site = Site::here()) {
    emulator::check_aligned(p, sizeof(Vec<T, N>), "load", site);
    emulator::seen(emulator::Access::load, p, sizeof(Vec<T, N>), site);
    Vec<T, N> v;
    std::memcpy(&v, p, sizeof(v));
    return v;
}
template <int N, class T>
Vec<T, N> load_readonly(const T* p, Site site = Site::here()) {
    emulator::check_aligned(p, sizeof(Vec<T, N>), "load_readonly", site);
    emulator::seen(emulator::Access::load, p, sizeof(Vec<T, N>), site);
    Vec<T, N> v;
    std::memcpy(&v, p, sizeof(v));
    return v;
}
template <int N, class T>
void store(T* p, const Vec<T, N>& v, Site site = Site::here()) {
    emulator::check_aligned(p, sizeof(Vec<T, N>), "store", site);
    emulator::seen(emulator::Access::store, p, sizeof(Vec<T, N>), site);
    std::memcpy(p, &v, sizeof(v));
}
template <int N, class T>
void store_result(T* p, const Vec<T, N>& v, Site site = Site::here()) {
    store(p, v, site);
}

template <int N>
void cp_async_bytes(void* shared, const void* global, int bytes, Site site = Site::here()) {
    static_assert(N == 4 || N == 8 || N == 16, "asynchronous copies are of 4, 8 or 16 bytes");
    emulator::copy_async(shared, global, N, bytes, site);
}
inline void cp_async16(void* shared, const void* global, bool valid = true, Site site = Site::here()) {
    emulator::copy_async(shared, global, 16, valid ? 16 : 0, site);
}
inline void cp_async8(void* shared, const void* global, bool valid = true, Site site = Site::here()) {
    emulator::copy_async(shared, global, 8, valid ? 8 : 0, site);
}
inline void cp_async4(void* shared, const void* global, bool valid = true, Site site = Site::here()) {
    emulator::copy_async(shared, global, 4, valid ? 4 : 0, site);
}
inline void cp_async_commit() {
    emulator::copy_commit();
}
template <int N>
void cp_async_wait() {
    emulator::copy_wait(N);
}

inline int atomic_add(int* p, int v) {
    const int old = *p;
    *p = old + v;
    return old;
}
inline int atomic_max(int* p, int v) {
    const int old = *p;
    *p = v > old ? v : old;
    return old;
}

// --- Tensor cores ------------------------------------------------------------------------------------
namespace detail {
void ldmatrix(int tiles, bool trans, uint32_t* r, const void* row, Site site);
void mma_bf16_k16(float* d, const uint32_t* a, const uint32_t* b, Site site);
void mma_bf16_k8(float* d, const uint32_t* a, const uint32_t* b, Site site);
void mma_f16_k16(float* d, const uint32_t* a, const uint32_t* b, Site site);
void mma_f16_k8(float* d, const uint32_t* a, const uint32_t* b, Site site);
void mma_tf32_k8(float* d, const uint32_t* a, const uint32_t* b, Site site);

template <class T>
inline constexpr bool is_half = std::is_same_v<T, bf16> || std::is_same_v<T, f16>;
}  // namespace detail

inline void ldmatrix_x1(uint32_t* r, const void* row, Site site = Site::here()) {
    detail::ldmatrix(1, false, r, row, site);
}
inline void ldmatrix_x2(uint32_t* r, const void* row, Site site = Site::here()) {
    detail::ldmatrix(2, false, r, row, site);
}
inline void ldmatrix_x4(uint32_t* r, const void* row, Site site = Site::here()) {
    detail::ldmatrix(4, false, r, row, site);
}
inline void ldmatrix_x1_trans(uint32_t* r, const void* row, Site site = Site::here()) {
    detail::ldmatrix(1, true, r, row, site);
}
inline void ldmatrix_x2_trans(uint32_t* r, const void* row, Site site = Site::here()) {
    detail::ldmatrix(2, true, r, row, site);
}
inline void ldmatrix_x4_trans(uint32_t* r, const void* row, Site site = Site::here()) {
    detail::ldmatrix(4, true, r, row, site);
}

template <class T>
void mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b, Site site = Site::here()) {
    static_assert(detail::is_half<T>, "mma_m16n8k16 multiplies bf16 or f16");
    (std::is_same_v<T, bf16> ? detail::mma_bf16_k16 : detail::mma_f16_k16)(d, a, b, site);
}
template <class T>
void mma_m16n8k8(float* d, const uint32_t* a, const uint32_t* b, Site site = Site::here()) {
    static_assert(detail::is_half<T>, "mma_m16n8k8 multiplies bf16 or f16");
    (std::is_same_v<T, bf16> ? detail::mma_bf16_k8 : detail::mma_f16_k8)(d, a, b, site);
}
inline void mma_m16n8k8_tf32(float* d, const uint32_t* a, const uint32_t* b, Site site = Site::here()) {
    detail::mma_tf32_k8(d, a, b, site);
}

// --- Numbers -----------------------------------------------------------------------------------------
inline float to_float(float v) {
    return v;
}
inline float to_float(bf16 v) {
    return bit_cast<float>(static_cast<uint32_t>(v.bits) << 16);
}
inline float to_float(f16 v) {
    // The exponent is rebiased by a multiplication, which takes subnormal numbers along.
    float f = bit_cast<float>((v.bits & 0x7fffu) << 13) * 0x1p112f;
    uint32_t bits = bit_cast<uint32_t>(f);
    if (f >= 65536.0f) bits |= 0x7f800000u;  // infinity and NaN
    return bit_cast<float>(bits | (v.bits & 0x8000u) << 16);
}
template <class T>
T from_float(float v) {
    if constexpr (std::is_same_v<T, float>) {
        return v;
    } else {
        static_assert(detail::is_half<T>, "from_float makes float, bf16 or f16");
        const uint32_t bits = bit_cast<uint32_t>(v), magnitude = bits & 0x7fffffffu;
        if (magnitude > 0x7f800000u) return T{0x7fff};  // the NaN that the machine's conversions give
        if constexpr (std::is_same_v<T, bf16>) {
            return T{static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
        } else {
            uint32_t h;
            if (magnitude >= 0x477ff000u) {  // 65520 and more round to infinity
                h = 0x7c00u;
            } else if (magnitude < 0x38800000u) {  // below 2^-14: 0.5 has the spacing of subnormal numbers
                h = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
            } else {
                h = (magnitude + 0xfffu + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
            }
            return T{static_cast<uint16_t>(h | (bits >> 16 & 0x8000u))};
        }
    }
}
template <class T>
uint32_t pack2(float low, float high) {
    return from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
}
template <class T>
uint32_t pack2_relu(float low, float high) {
    return pack2<T>(low < 0.0f ? 0.0f : low, high < 0.0f ? 0.0f : high);
}
template <class T>
uint32_t max2(uint32_t a, uint32_t b) {
    static_assert(detail::is_half<T>, "max2 compares bf16 or f16");
    uint32_t r = 0;
    for (int shift = 0; shift < 32; shift += 16) {
        const T v{static_cast<uint16_t>(a >> shift)}, w{static_cast<uint16_t>(b >> shift)};
        const float x = to_float(v), y = to_float(w);
        const uint16_t bits = x != x || y != y                          ? 0x7fff
                              : x > y || (x == y && (w.bits & 0x8000u)) ? v.bits
                                                                        : w.bits;
        r |= uint32_t(bits) << shift;
    }
    return r;
}
inline uint32_t to_tf32(float v) {
    const uint32_t bits = bit_cast<uint32_t>(v);
    return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & ~0x1fffu;
}

// --- Launch ------------------------------------------------------------------------------------------
template <class... Params>
void launch(const char* name, void (*kernel)(Params...), Dim3 grid, Dim3 block, size_t shared_bytes, Stream,
            std::common_type_t<Params>... args) {
    auto body = [&] { kernel(args...); };
    emulator::run(
        name, grid, block, shared_bytes, [](void* closure) { (*static_cast<decltype(body)*>(closure))(); },
        &body);
}

}  // namespace slowfast::cuda
