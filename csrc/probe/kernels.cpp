// Loops that do nothing but keep one unit of the processor busy.

#include "probe/kernels.h"

#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace slowfast::probe {
namespace {

#if defined(__x86_64__)

// Enough independent accumulators to cover latency times throughput (8 to 16 on today's cores) and few enough
// to stay in registers with two operands beside them: 12 of 16 registers, 24 of 32. They are variables with
// names: GCC keeps an array in memory even when the loop over it is unrolled.
constexpr int kFew = 12;
constexpr int kMany = 24;
#define SF_12(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define SF_24(X) SF_12(X) X(12) X(13) X(14) X(15) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23)

#define SF_TARGET(isa) __attribute__((target(isa), noinline))

// The operands come from memory the compiler may not look through; sums stay small: x * 0.5 + 0.25.
volatile float kHalf = 0.5f;
volatile float kQuarter = 0.25f;
volatile int kOnes = 0x01010101;
volatile int kTiny = 0x0d800d80;  // two bf16 of 2^-100: their products vanish in the sums

// The empty statement hides that all start with the same value: equal accumulators would be merged into one.
#define SF_DECLARE(i)  \
    auto r##i = start; \
    __asm__("" : "+v"(r##i));
#define SF_STEP(i) r##i = STEP(r##i);
#define SF_SUM(i) sum = SUM(sum, r##i);
#define SF_LOOP(EACH)                          \
    EACH(SF_DECLARE)                           \
    for (int64_t i = 0; i < iterations; ++i) { \
        EACH(SF_STEP)                          \
    }                                          \
    auto sum = start;                          \
    EACH(SF_SUM)

SF_TARGET("sse2") float fp32_sse2(int64_t iterations) {
    const __m128 m = _mm_set1_ps(kHalf), start = _mm_set1_ps(kQuarter);
#define STEP(x) _mm_add_ps(_mm_mul_ps(x, m), start)
#define SUM _mm_add_ps
    SF_LOOP(SF_12)
#undef STEP
#undef SUM
    return _mm_cvtss_f32(sum);
}

SF_TARGET("avx2,fma") float fp32_avx2(int64_t iterations) {
    const __m256 m = _mm256_set1_ps(kHalf), start = _mm256_set1_ps(kQuarter);
#define STEP(x) _mm256_fmadd_ps(x, m, start)
#define SUM _mm256_add_ps
    SF_LOOP(SF_12)
#undef STEP
#undef SUM
    return _mm256_cvtss_f32(sum);
}

SF_TARGET("avx512f") float fp32_avx512(int64_t iterations) {
    const __m512 m = _mm512_set1_ps(kHalf), start = _mm512_set1_ps(kQuarter);
#define STEP(x) _mm512_fmadd_ps(x, m, start)
#define SUM _mm512_add_ps
    SF_LOOP(SF_24)
#undef STEP
#undef SUM
    return _mm512_cvtss_f32(sum);
}

SF_TARGET("avx512f,avx512bw,avx512vl,avx512bf16") float bf16_avx512(int64_t iterations) {
    const auto m = reinterpret_cast<__m512bh>(_mm512_set1_epi32(kTiny));
    const __m512 start = _mm512_set1_ps(kQuarter);
#define STEP(x) _mm512_dpbf16_ps(x, m, m)
#define SUM _mm512_add_ps
    SF_LOOP(SF_24)
#undef STEP
#undef SUM
    return _mm512_cvtss_f32(sum);
}

SF_TARGET("avx512f,avx512bw,avx512vl,avx512vnni") float int8_avx512(int64_t iterations) {
    const __m512i m = _mm512_set1_epi32(kOnes), start = _mm512_setzero_si512();
#define STEP(x) _mm512_dpbusd_epi32(x, m, m)
#define SUM _mm512_add_epi32
    SF_LOOP(SF_24)
#undef STEP
#undef SUM
    return _mm512_cvtss_f32(_mm512_castsi512_ps(sum));
}

SF_TARGET("avx2,avxvnni") float int8_avx_vnni(int64_t iterations) {
    const __m256i m = _mm256_set1_epi32(kOnes), start = _mm256_setzero_si256();
#define STEP(x) _mm256_dpbusd_avx_epi32(x, m, m)
#define SUM _mm256_add_epi32
    SF_LOOP(SF_12)
#undef STEP
#undef SUM
    return _mm256_cvtss_f32(_mm256_castsi256_ps(sum));
}

// Four vectors a step: enough loads in flight for the memory system, no tail (n is a multiple of 64 floats).
#define SF_MEMORY_LOOPS(NAME, ISA, VEC, LANES, LOAD, STORE, STREAM, ADD, MADD, ZERO, FIRST)       \
    SF_TARGET(ISA) float read_##NAME(const float* a, const float*, float*, size_t n) {            \
        VEC s[4] = {ZERO(), ZERO(), ZERO(), ZERO()};                                              \
        for (size_t i = 0; i < n; i += 4 * LANES) {                                               \
            for (int j = 0; j < 4; ++j) s[j] = ADD(s[j], LOAD(a + i + j * LANES));                \
        }                                                                                         \
        return FIRST(ADD(ADD(s[0], s[1]), ADD(s[2], s[3])));                                      \
    }                                                                                             \
    SF_TARGET(ISA) float copy_##NAME(const float* a, const float*, float* c, size_t n) {          \
        for (size_t i = 0; i < n; i += 4 * LANES) {                                               \
            for (int j = 0; j < 4; ++j) STORE(c + i + j * LANES, LOAD(a + i + j * LANES));        \
        }                                                                                         \
        return c[0];                                                                              \
    }                                                                                             \
    SF_TARGET(ISA) float copy_stream_##NAME(const float* a, const float*, float* c, size_t n) {   \
        for (size_t i = 0; i < n; i += 4 * LANES) {                                               \
            for (int j = 0; j < 4; ++j) STREAM(c + i + j * LANES, LOAD(a + i + j * LANES));       \
        }                                                                                         \
        _mm_sfence();                                                                             \
        return c[0];                                                                              \
    }                                                                                             \
    SF_TARGET(ISA) float triad_##NAME(const float* a, const float* b, float* c, size_t n) {       \
        for (size_t i = 0; i < n; i += 4 * LANES) {                                               \
            for (int j = 0; j < 4; ++j) {                                                         \
                STORE(c + i + j * LANES, MADD(LOAD(b + i + j * LANES), LOAD(a + i + j * LANES))); \
            }                                                                                     \
        }                                                                                         \
        return c[0];                                                                              \
    }

#define SF_MADD_SSE2(x, y) _mm_add_ps(_mm_mul_ps(x, _mm_set1_ps(0.5f)), y)
#define SF_MADD_AVX2(x, y) _mm256_fmadd_ps(x, _mm256_set1_ps(0.5f), y)
#define SF_MADD_AVX512(x, y) _mm512_fmadd_ps(x, _mm512_set1_ps(0.5f), y)

SF_MEMORY_LOOPS(sse2, "sse2", __m128, 4, _mm_load_ps, _mm_store_ps, _mm_stream_ps, _mm_add_ps, SF_MADD_SSE2,
                _mm_setzero_ps, _mm_cvtss_f32)
SF_MEMORY_LOOPS(avx2, "avx2,fma", __m256, 8, _mm256_load_ps, _mm256_store_ps, _mm256_stream_ps, _mm256_add_ps,
                SF_MADD_AVX2, _mm256_setzero_ps, _mm256_cvtss_f32)
SF_MEMORY_LOOPS(avx512, "avx512f", __m512, 16, _mm512_load_ps, _mm512_store_ps, _mm512_stream_ps,
                _mm512_add_ps, SF_MADD_AVX512, _mm512_setzero_ps, _mm512_cvtss_f32)

struct Cpu {
    bool avx2, avx512, bf16, vnni, avx_vnni;
};

Cpu detect() {
    __builtin_cpu_init();
    Cpu cpu{};
    cpu.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    cpu.avx512 = cpu.avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl");
    cpu.bf16 = cpu.avx512 && __builtin_cpu_supports("avx512bf16");
    cpu.vnni = cpu.avx512 && __builtin_cpu_supports("avx512vnni");
    // GCC 12 does not know "avxvnni" in __builtin_cpu_supports: CPUID leaf 7, sub-leaf 1, EAX bit 4. The
    // registers are the 256-bit ones, which AVX2 above has checked with the operating system.
    unsigned eax = 7, ebx, ecx = 1, edx;
    unsigned top = 0, ignored_b, ignored_c = 0, ignored_d;
    __asm__ volatile("cpuid" : "+a"(top), "=b"(ignored_b), "+c"(ignored_c), "=d"(ignored_d));
    if (top >= 7) {
        __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
        cpu.avx_vnni = cpu.avx2 && (eax >> 4 & 1);
    }
    return cpu;
}

const Cpu& cpu() {
    static const Cpu found = detect();
    return found;
}

#endif

}  // namespace

const Table<Arithmetic>& arithmetic() {
    static const Table<Arithmetic> table = [] {
        Table<Arithmetic> t{};
#if defined(__x86_64__)
        t.add({"fp32", "sse2", "mulps + addps", 2.0 * 4 * kFew, fp32_sse2});
        if (cpu().avx2) t.add({"fp32", "avx2", "vfmadd ymm", 2.0 * 8 * kFew, fp32_avx2});
        if (cpu().avx512) t.add({"fp32", "avx512", "vfmadd zmm", 2.0 * 16 * kMany, fp32_avx512});
        if (cpu().bf16) t.add({"bf16", "avx512_bf16", "vdpbf16ps zmm", 2.0 * 32 * kMany, bf16_avx512});
        if (cpu().avx_vnni) t.add({"int8", "avx_vnni", "vpdpbusd ymm", 2.0 * 32 * kFew, int8_avx_vnni});
        if (cpu().vnni) t.add({"int8", "avx512_vnni", "vpdpbusd zmm", 2.0 * 64 * kMany, int8_avx512});
#endif
        return t;
    }();
    return table;
}

const Table<Memory>& memory() {
    static const Table<Memory> table = [] {
        Table<Memory> t{};
#if defined(__x86_64__)
#define SF_MEMORY_ROWS(ISA)                                \
    t.add({"read", #ISA, 1, 0, read_##ISA});               \
    t.add({"copy", #ISA, 1, 1, copy_##ISA});               \
    t.add({"copy_stream", #ISA, 1, 1, copy_stream_##ISA}); \
    t.add({"triad", #ISA, 2, 1, triad_##ISA});
        SF_MEMORY_ROWS(sse2)
        if (cpu().avx2) {
            SF_MEMORY_ROWS(avx2)
        }
        if (cpu().avx512) {
            SF_MEMORY_ROWS(avx512)
        }
#endif
        return t;
    }();
    return table;
}

const char* features() {
    static char names[80] = "";
#if defined(__x86_64__)
    static const bool filled = [] {
        std::strcat(names, "sse2");
        if (cpu().avx2) std::strcat(names, " avx2");
        if (cpu().avx_vnni) std::strcat(names, " avx_vnni");
        if (cpu().avx512) std::strcat(names, " avx512");
        if (cpu().bf16) std::strcat(names, " avx512_bf16");
        if (cpu().vnni) std::strcat(names, " avx512_vnni");
        return true;
    }();
    (void)filled;
#endif
    return names;
}

}  // namespace slowfast::probe
