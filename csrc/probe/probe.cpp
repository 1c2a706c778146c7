// libslowfast_probe: measured ceilings of this machine. C functions, called through ctypes (bench/probe.py),
// which checks the arguments: the library depends on no version of Python.

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "probe/kernels.h"

#define SLOWFAST_EXPORT extern "C" __attribute__((visibility("default")))

namespace slowfast::probe {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

// What the loops return ends here, so that the compiler must compute it.
std::atomic<float> sink{0.0f};

// Every thread calls prepare(i), then all start together and call work(i) again and again for `seconds`;
// work returns the units it did. Result: units per second, summed over the threads; NaN without the memory or
// the threads for it.
template <class Prepare, class Work>
double rate(int threads, double seconds, const Prepare& prepare, const Work& work) {
    std::vector<double> rates(threads, 0.0);
    std::atomic<int> ready{0};
    std::atomic<bool> failed{false};
    auto body = [&](int i) {
        auto state = prepare(i);
        if (!state) failed = true;
        ready.fetch_add(1);
        while (ready.load() < threads) std::this_thread::yield();
        if (failed) return;
        double done = 0.0;
        auto start = Clock::now();
        double elapsed;
        do {
            done += work(state);
            elapsed = seconds_since(start);
        } while (elapsed < seconds);
        rates[i] = done / elapsed;
    };
    std::vector<std::thread> others;
    try {
        for (int i = 1; i < threads; ++i) others.emplace_back(body, i);
    } catch (const std::exception&) {
        failed = true;
        ready.fetch_add(threads);  // who waits already need not wait for the others
    }
    body(0);
    for (auto& t : others) t.join();
    if (failed) return std::nan("");
    double total = 0.0;
    for (double r : rates) total += r;
    return total;
}

struct Arrays {
    float *a, *b, *c;
};

// What the loops read and write, in one block of memory that ends with it; null where there is not enough.
std::shared_ptr<Arrays> arrays(const Memory& row, size_t n) {
    const int count = row.reads + row.writes;
    // A page apart from each other's alignment, so that the arrays do not compete for the same cache sets.
    const size_t stride = n * sizeof(float) + 4096 + 256;
    char* block = static_cast<char*>(std::aligned_alloc(64, (count * stride + 63) / 64 * 64));
    if (!block) return nullptr;
    float* p[3];
    for (int i = 0; i < 3; ++i) p[i] = reinterpret_cast<float*>(block + std::min(i, count - 1) * stride);
    for (int i = 0; i < count; ++i) std::fill(p[i], p[i] + n, 1.0f);  // each thread touches its own pages
    return {new Arrays{p[0], row.reads == 2 ? p[1] : p[0], p[count - 1]}, [block](Arrays* found) {
                std::free(block);
                delete found;
            }};
}

}  // namespace
}  // namespace slowfast::probe

using namespace slowfast::probe;

// Instruction sets of this processor that the probe has loops for, with spaces between.
SLOWFAST_EXPORT const char* slowfast_probe_features() {
    return features();
}

// Name and instruction set of a loop, "fp32" and "avx512"; null behind the last. Weakest instruction set
// first.
SLOWFAST_EXPORT const char* slowfast_probe_arithmetic(int row, const char** isa, const char** instruction) {
    if (row < 0 || row >= arithmetic().count) return nullptr;
    *isa = arithmetic().rows[row].isa;
    *instruction = arithmetic().rows[row].instruction;
    return arithmetic().rows[row].kind;
}
SLOWFAST_EXPORT const char* slowfast_probe_memory(int row, const char** isa) {
    if (row < 0 || row >= memory().count) return nullptr;
    *isa = memory().rows[row].isa;
    return memory().rows[row].kind;
}

// Operations per second (a multiply and an add are two) of an arithmetic loop, summed over the threads.
SLOWFAST_EXPORT double slowfast_probe_operations(int row, int threads, double seconds) {
    const Arithmetic& loop = arithmetic().rows[row];
    constexpr int64_t kIterations = 20000;  // tens of microseconds between looks at the clock
    return rate(
        threads, seconds, [](int) { return std::make_shared<char>(); },
        [&](const std::shared_ptr<char>&) {
            sink = loop.run(kIterations);
            return loop.ops * static_cast<double>(kIterations);
        });
}

// Bytes per second that a memory loop reads plus writes, summed over the threads, in arrays of `bytes`
// together for each thread. Lines the hardware fetches before writing them are not counted.
SLOWFAST_EXPORT double slowfast_probe_bandwidth(int row, int64_t bytes, int threads, double seconds) {
    const Memory& loop = memory().rows[row];
    const int count = loop.reads + loop.writes;
    const size_t n = static_cast<size_t>(bytes) / count / sizeof(float) / 64 * 64;
    const double pass = static_cast<double>(count) * n * sizeof(float);
    const int passes = static_cast<int>(std::max(1.0, 4e6 / pass));
    const auto prepare = [&](int) {
        auto found = arrays(loop, n);
        if (found) sink = loop.run(found->a, found->b, found->c, n);
        return found;
    };
    return rate(threads, seconds, prepare, [&](const std::shared_ptr<Arrays>& s) {
        for (int i = 0; i < passes; ++i) sink = loop.run(s->a, s->b, s->c, n);
        return pass * passes;
    });
}

// Bytes of one core's data cache of this level (1 to 3), 0 where the system does not tell.
SLOWFAST_EXPORT int64_t slowfast_probe_cache(int level) {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
    const int names[] = {_SC_LEVEL1_DCACHE_SIZE, _SC_LEVEL2_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE};
    return level < 1 || level > 3 ? 0 : std::max<int64_t>(sysconf(names[level - 1]), 0);
#else
    return 0;
#endif
}
