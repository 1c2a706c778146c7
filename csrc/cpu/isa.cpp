// Which instruction sets this processor and this build have, and the one in use.

#include "cpu/isa.h"

#include <atomic>

#include "cpu/kernels.h"

namespace slowfast {

#if defined(SLOWFAST_HAS_AVX2)
namespace avx2 {
extern const KernelTable kTable;
}
#endif
#if defined(SLOWFAST_HAS_AVX512)
namespace avx512 {
extern const KernelTable kTable;
}
#endif
#if defined(SLOWFAST_HAS_AVX512_BF16)
namespace avx512_bf16 {
extern const KernelTable kTable;
}
#endif

namespace {

// Kernels of an instruction set; null where this build has none.
const KernelTable* table(Isa isa) {
    switch (isa) {
#if defined(SLOWFAST_HAS_AVX2)
        case Isa::avx2:
            return &avx2::kTable;
#endif
#if defined(SLOWFAST_HAS_AVX512)
        case Isa::avx512:
            return &avx512::kTable;
#endif
#if defined(SLOWFAST_HAS_AVX512_BF16)
        case Isa::avx512_bf16:
            return &avx512_bf16::kTable;
#endif
        default:
            return nullptr;
    }
}

}  // namespace

Isa isa_of_processor() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")))
        return Isa::none;
    if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")))
        return Isa::avx2;
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni") ? Isa::avx512_bf16
                                                                                        : Isa::avx512;
#else
    return Isa::none;
#endif
}

Isa isa_found() {
    static const Isa found = [] {
        int isa = static_cast<int>(isa_of_processor());
        while (isa > 0 && !table(static_cast<Isa>(isa))) --isa;
        return static_cast<Isa>(isa);
    }();
    return found;
}

namespace {
std::atomic<int>& current() {
    static std::atomic<int> value{static_cast<int>(isa_found())};
    return value;
}
}  // namespace

Isa isa_current() {
    return static_cast<Isa>(current().load(std::memory_order_relaxed));
}

bool set_isa(Isa isa) {
    if (!table(isa) || static_cast<int>(isa) > static_cast<int>(isa_found())) return false;
    current().store(static_cast<int>(isa), std::memory_order_relaxed);
    return true;
}

const KernelTable& kernels() {
    static const KernelTable none{};
    const KernelTable* found = table(isa_current());
    return found ? *found : none;
}

}  // namespace slowfast

#define SLOWFAST_EXPORT extern "C" __attribute__((visibility("default")))

SLOWFAST_EXPORT int slowfast_cpu_isa_found() {
    return static_cast<int>(slowfast::isa_found());
}
SLOWFAST_EXPORT int slowfast_cpu_isa() {
    return static_cast<int>(slowfast::isa_current());
}
SLOWFAST_EXPORT int slowfast_cpu_set_isa(int isa) {
    return slowfast::set_isa(static_cast<slowfast::Isa>(isa)) ? 0 : 1;
}
