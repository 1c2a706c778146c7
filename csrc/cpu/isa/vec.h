// 16 float lanes, the same operations for every instruction set.
//
// Included only by files of csrc/cpu/isa, which CMake compiles once per instruction set with SLOWFAST_ISA
// set. Everything here is in a namespace of that name: a template shared between the builds could be merged
// by the linker into its AVX-512 form and then run on a machine without it. For the same reason these files
// include no C++ standard header with inline functions.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

namespace slowfast::SLOWFAST_ISA {

#define SF_INLINE static inline __attribute__((always_inline))

constexpr int kLanes = 16;

struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

#if defined(__AVX512F__)

struct V {
    __m512 v;
};
using Mask = __mmask16;

SF_INLINE Mask mask_n(int n) {
    return static_cast<Mask>((1u << n) - 1u);
}  // first n lanes, n <= 16
SF_INLINE V zero() {
    return {_mm512_setzero_ps()};
}
SF_INLINE V set1(float x) {
    return {_mm512_set1_ps(x)};
}
SF_INLINE V load(const float* p) {
    return {_mm512_loadu_ps(p)};
}
SF_INLINE V load_n(const float* p, int n) {
    return {_mm512_maskz_loadu_ps(mask_n(n), p)};
}
SF_INLINE void store(float* p, V a) {
    _mm512_storeu_ps(p, a.v);
}
SF_INLINE void store_n(float* p, V a, int n) {
    _mm512_mask_storeu_ps(p, mask_n(n), a.v);
}
SF_INLINE V add(V a, V b) {
    return {_mm512_add_ps(a.v, b.v)};
}
SF_INLINE V sub(V a, V b) {
    return {_mm512_sub_ps(a.v, b.v)};
}
SF_INLINE V mul(V a, V b) {
    return {_mm512_mul_ps(a.v, b.v)};
}
SF_INLINE V div(V a, V b) {
    return {_mm512_div_ps(a.v, b.v)};
}
SF_INLINE V fma(V a, V b, V c) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
SF_INLINE V fnma(V a, V b, V c) {
    return {_mm512_fnmadd_ps(a.v, b.v, c.v)};
}  // c - a*b
// maxps returns its second operand when either is NaN, so NaN passes and only numbers are clamped.
SF_INLINE V relu(V a) {
    return {_mm512_max_ps(_mm512_setzero_ps(), a.v)};
}
// Maximum that keeps a NaN of either side, as PyTorch's max-pool does.
SF_INLINE V max_nan(V a, V b) {
    __m512 m = _mm512_max_ps(a.v, b.v);
    return {_mm512_mask_mov_ps(m, _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), a.v)};
}
SF_INLINE V bcast32(const void* p) {
    float x;
    memcpy(&x, p, 4);
    return {_mm512_set1_ps(x)};
}
SF_INLINE V bcast64(const void* p) {
    double x;
    memcpy(&x, p, 8);
    return {_mm512_castpd_ps(_mm512_set1_pd(x))};
}
SF_INLINE V bcast64_bits(uint64_t x) {
    return {_mm512_castsi512_ps(_mm512_set1_epi64(static_cast<long long>(x)))};
}
SF_INLINE V bcast32_bits(uint32_t x) {
    return {_mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(x)))};
}

SF_INLINE V widen(__m256i h) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))};
}
SF_INLINE V load(const bf16* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
SF_INLINE V load_n(const bf16* p, int n) {
    return widen(_mm256_maskz_loadu_epi16(mask_n(n), p));
}
SF_INLINE __m256i narrow(V a) {
#if defined(__AVX512BF16__)
    return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a.v));
#else
    __m512i u = _mm512_castps_si512(a.v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_set1_epi32(r, nan, 0x7fc0));
#endif
}
SF_INLINE void store(bf16* p, V a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(a));
}
SF_INLINE void store_n(bf16* p, V a, int n) {
    _mm256_mask_storeu_epi16(p, mask_n(n), narrow(a));
}

SF_INLINE V load(const f16* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
SF_INLINE V load_n(const f16* p, int n) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask_n(n), p))};
}
SF_INLINE void store(f16* p, V a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
SF_INLINE void store_n(f16* p, V a, int n) {
    _mm256_mask_storeu_epi16(p, mask_n(n), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}

// acc + a*b where lanes hold one float (T = float) or two bf16 (T = bf16).
template <class T>
inline V dot(V acc, V a, V b);
template <>
inline __attribute__((always_inline)) V dot<float>(V acc, V a, V b) {
    return fma(a, b, acc);
}
template <>
inline __attribute__((always_inline)) V dot<bf16>(V acc, V a, V b) {
#if defined(__AVX512BF16__)
    return {_mm512_dpbf16_ps(acc.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
#else
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    __m512i ai = _mm512_castps_si512(a.v), bi = _mm512_castps_si512(b.v);
    __m512 lo = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(ai, 16)),
                                _mm512_castsi512_ps(_mm512_slli_epi32(bi, 16)), acc.v);
    return {_mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(ai, high)),
                            _mm512_castsi512_ps(_mm512_and_si512(bi, high)), lo)};
#endif
}
// The lower 16 bits of every lane, the upper ones zero.
SF_INLINE V low_halves(V a) {
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32(0xffff)))};
}
// Even and odd elements of the 32 values a, b.
SF_INLINE V evens(V a, V b) {
    const __m512i i = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return {_mm512_permutex2var_ps(a.v, i, b.v)};
}
SF_INLINE V odds(V a, V b) {
    const __m512i i = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return {_mm512_permutex2var_ps(a.v, i, b.v)};
}
// Lanes 2j and 2j+1 added into lane j, j < 8; the upper half is undefined.
SF_INLINE V fold_pairs(V a) {
    __m512 s = _mm512_add_ps(a.v, _mm512_permute_ps(a.v, 0xb1));
    return {_mm512_maskz_compress_ps(0x5555, s)};
}
SF_INLINE float sum(V a) {
    return _mm512_reduce_add_ps(a.v);
}

#else  // AVX2 and FMA

struct V {
    __m256 lo, hi;
};

SF_INLINE __m256i mask8(int n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane);
}
SF_INLINE V zero() {
    return {_mm256_setzero_ps(), _mm256_setzero_ps()};
}
SF_INLINE V set1(float x) {
    return {_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
SF_INLINE V load(const float* p) {
    return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
SF_INLINE V load_n(const float* p, int n) {
    return {_mm256_maskload_ps(p, mask8(n)), _mm256_maskload_ps(p + 8, mask8(n - 8))};
}
SF_INLINE void store(float* p, V a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
SF_INLINE void store_n(float* p, V a, int n) {
    _mm256_maskstore_ps(p, mask8(n), a.lo);
    _mm256_maskstore_ps(p + 8, mask8(n - 8), a.hi);
}
SF_INLINE V add(V a, V b) {
    return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
SF_INLINE V sub(V a, V b) {
    return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
SF_INLINE V mul(V a, V b) {
    return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
SF_INLINE V div(V a, V b) {
    return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
SF_INLINE V fma(V a, V b, V c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
SF_INLINE V fnma(V a, V b, V c) {
    return {_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi)};
}
SF_INLINE V relu(V a) {
    return {_mm256_max_ps(_mm256_setzero_ps(), a.lo), _mm256_max_ps(_mm256_setzero_ps(), a.hi)};
}
SF_INLINE __m256 max_nan8(__m256 a, __m256 b) {
    return _mm256_blendv_ps(_mm256_max_ps(a, b), a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}
SF_INLINE V max_nan(V a, V b) {
    return {max_nan8(a.lo, b.lo), max_nan8(a.hi, b.hi)};
}
SF_INLINE V bcast32(const void* p) {
    float x;
    memcpy(&x, p, 4);
    return set1(x);
}
SF_INLINE V bcast64(const void* p) {
    double x;
    memcpy(&x, p, 8);
    __m256 v = _mm256_castpd_ps(_mm256_set1_pd(x));
    return {v, v};
}
SF_INLINE V bcast64_bits(uint64_t x) {
    return bcast64(&x);
}
SF_INLINE V bcast32_bits(uint32_t x) {
    return bcast32(&x);
}

SF_INLINE __m256 widen8(__m128i h) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
SF_INLINE V load(const bf16* p) {
    const __m128i* q = reinterpret_cast<const __m128i*>(p);
    return {widen8(_mm_loadu_si128(q)), widen8(_mm_loadu_si128(q + 1))};
}
template <class T>
SF_INLINE V load_n_through(const T* p, int n) {  // no 16-bit masked loads here: go through a small buffer
    T tmp[16] = {};
    memcpy(tmp, p, sizeof(T) * static_cast<size_t>(n));
    return load(tmp);
}
SF_INLINE V load_n(const bf16* p, int n) {
    return load_n_through(p, n);
}
SF_INLINE __m128i narrow8(__m256 a) {
    __m256i u = _mm256_castps_si256(a);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    r = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc0), nan);
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08);
    return _mm256_castsi256_si128(packed);
}
SF_INLINE void store(bf16* p, V a) {
    __m128i* q = reinterpret_cast<__m128i*>(p);
    _mm_storeu_si128(q, narrow8(a.lo));
    _mm_storeu_si128(q + 1, narrow8(a.hi));
}
template <class T>
SF_INLINE void store_n_through(T* p, V a, int n) {
    T tmp[16];
    store(tmp, a);
    memcpy(p, tmp, sizeof(T) * static_cast<size_t>(n));
}
SF_INLINE void store_n(bf16* p, V a, int n) {
    store_n_through(p, a, n);
}

SF_INLINE V load(const f16* p) {
    const __m128i* q = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
SF_INLINE V load_n(const f16* p, int n) {
    return load_n_through(p, n);
}
SF_INLINE void store(f16* p, V a) {
    __m128i* q = reinterpret_cast<__m128i*>(p);
    _mm_storeu_si128(q, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(q + 1, _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}
SF_INLINE void store_n(f16* p, V a, int n) {
    store_n_through(p, a, n);
}

template <class T>
inline V dot(V acc, V a, V b);
template <>
inline __attribute__((always_inline)) V dot<float>(V acc, V a, V b) {
    return fma(a, b, acc);
}
SF_INLINE __m256 dot8(__m256 acc, __m256 a, __m256 b) {
    const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    __m256i ai = _mm256_castps_si256(a), bi = _mm256_castps_si256(b);
    acc = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(ai, 16)),
                          _mm256_castsi256_ps(_mm256_slli_epi32(bi, 16)), acc);
    return _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(ai, high)),
                           _mm256_castsi256_ps(_mm256_and_si256(bi, high)), acc);
}
template <>
inline __attribute__((always_inline)) V dot<bf16>(V acc, V a, V b) {
    return {dot8(acc.lo, a.lo, b.lo), dot8(acc.hi, a.hi, b.hi)};
}
SF_INLINE V low_halves(V a) {
    const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0xffff));
    return {_mm256_and_ps(a.lo, mask), _mm256_and_ps(a.hi, mask)};
}
template <int PICK>
SF_INLINE __m256 pick8(__m256 a, __m256 b) {
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_shuffle_ps(a, b, PICK)), 0xd8));
}
SF_INLINE V evens(V a, V b) {
    return {pick8<0x88>(a.lo, a.hi), pick8<0x88>(b.lo, b.hi)};
}
SF_INLINE V odds(V a, V b) {
    return {pick8<0xdd>(a.lo, a.hi), pick8<0xdd>(b.lo, b.hi)};
}
SF_INLINE V fold_pairs(V a) {
    __m256 h = _mm256_hadd_ps(a.lo, a.hi);
    h = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(h), 0xd8));
    return {h, h};
}
SF_INLINE float sum(V a) {
    __m256 s = _mm256_add_ps(a.lo, a.hi);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}

#endif

SF_INLINE V load_any(const float* p, int n) {
    return n >= kLanes ? load(p) : load_n(p, n);
}
SF_INLINE V load_any(const bf16* p, int n) {
    return n >= kLanes ? load(p) : load_n(p, n);
}
SF_INLINE V load_any(const f16* p, int n) {
    return n >= kLanes ? load(p) : load_n(p, n);
}
template <class T>
SF_INLINE void store_any(T* p, V a, int n) {
    if (n >= kLanes)
        store(p, a);
    else
        store_n(p, a, n);
}

}  // namespace slowfast::SLOWFAST_ISA
