#include "cpu/isa.h"

#include <atomic>

#include "cpu/kernels.h"

namespace slowfast {

#if defined(__x86_64__)
namespace avx2 {
extern const KernelTable kTable;
}
namespace avx512 {
extern const KernelTable kTable;
}
namespace avx512_bf16 {
extern const KernelTable kTable;
}
#endif

Isa isa_found() {
#if defined(__x86_64__)
    static const Isa found = [] {
        __builtin_cpu_init();
        if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("f16c")))
            return Isa::none;
        if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")))
            return Isa::avx2;
        return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni") ? Isa::avx512_bf16
                                                                                            : Isa::avx512;
    }();
    return found;
#else
    return Isa::none;
#endif
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
    if (isa == Isa::none || static_cast<int>(isa) > static_cast<int>(isa_found())) return false;
    current().store(static_cast<int>(isa), std::memory_order_relaxed);
    return true;
}

const KernelTable& kernels() {
#if defined(__x86_64__)
    switch (isa_current()) {
        case Isa::avx512_bf16:
            return avx512_bf16::kTable;
        case Isa::avx512:
            return avx512::kTable;
        default:
            return avx2::kTable;
    }
#else
    static const KernelTable none{};
    return none;
#endif
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
