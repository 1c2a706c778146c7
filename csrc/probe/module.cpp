// slowfast_kernels._lib._probe: measured ceilings of this machine (pybind11; the ops need none of it).

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "probe/kernels.h"

namespace py = pybind11;

namespace slowfast::probe {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

// What the loops return ends here, so that the compiler must compute it.
std::atomic<float> sink{0.0f};

// Every thread calls prepare(i), then all start together and call work(i) again and again for `seconds`;
// work returns the units it did. Result: units per second, summed over the threads.
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
    for (int i = 1; i < threads; ++i) others.emplace_back(body, i);
    body(0);
    for (auto& t : others) t.join();
    if (failed) throw std::bad_alloc();
    double total = 0.0;
    for (double r : rates) total += r;
    return total;
}

void check(int threads, double seconds) {
    if (threads < 1 || threads > 4096) {
        throw py::value_error("threads: expected 1 to 4096, got " + std::to_string(threads));
    }
    if (!(seconds > 0.0 && seconds <= 60.0)) {
        throw py::value_error("seconds: expected more than 0 and at most 60, got " + std::to_string(seconds));
    }
}

template <class Row>
const Row& find(const std::vector<Row>& table, const std::string& kind, const std::string& isa) {
    std::string known;
    for (const auto& row : table) {
        if (row.kind == kind && row.isa == isa) return row;
        known += (known.empty() ? "" : ", ") + std::string(row.kind) + "/" + row.isa;
    }
    throw py::value_error("expected one of [" + known + "] on this processor, got " + kind + "/" + isa);
}

double operations(const std::string& kind, const std::string& isa, int threads, double seconds) {
    check(threads, seconds);
    const Arithmetic& row = find(arithmetic(), kind, isa);
    py::gil_scoped_release release;
    constexpr int64_t kIterations = 20000;  // tens of microseconds between looks at the clock
    return rate(
        threads, seconds, [&](int) { return std::make_shared<char>(); },
        [&](const std::shared_ptr<char>&) {
            sink = row.run(kIterations);
            return row.ops * static_cast<double>(kIterations);
        });
}

double bandwidth(const std::string& kind, const std::string& isa, int64_t bytes, int threads,
                 double seconds) {
    check(threads, seconds);
    const Memory& row = find(memory(), kind, isa);
    const int arrays = row.reads + row.writes;
    const size_t n = static_cast<size_t>(std::max<int64_t>(bytes, 0)) / arrays / sizeof(float) / 64 * 64;
    if (n == 0) throw py::value_error("bytes: expected at least 768, got " + std::to_string(bytes));
    py::gil_scoped_release release;
    struct Arrays {
        float *a, *b, *c;
    };
    auto prepare = [&](int) -> std::shared_ptr<Arrays> {
        // A page apart from each other's alignment, so that the arrays do not compete for the same cache
        // sets.
        const size_t stride = n * sizeof(float) + 4096 + 256;
        char* block = static_cast<char*>(std::aligned_alloc(64, (arrays * stride + 63) / 64 * 64));
        if (!block) return nullptr;
        float* p[3];
        for (int i = 0; i < 3; ++i) p[i] = reinterpret_cast<float*>(block + std::min(i, arrays - 1) * stride);
        for (int i = 0; i < arrays; ++i)
            std::fill(p[i], p[i] + n, 1.0f);  // each thread touches its own pages
        auto state = std::shared_ptr<Arrays>(new Arrays{p[0], row.reads == 2 ? p[1] : p[0], p[arrays - 1]},
                                             [block](Arrays* s) {
                                                 std::free(block);
                                                 delete s;
                                             });
        sink = row.run(state->a, state->b, state->c, n);
        return state;
    };
    const double pass = static_cast<double>(arrays) * n * sizeof(float);
    const int passes = static_cast<int>(std::max(1.0, 4e6 / pass));
    return rate(threads, seconds, prepare, [&](const std::shared_ptr<Arrays>& s) {
        for (int i = 0; i < passes; ++i) sink = row.run(s->a, s->b, s->c, n);
        return pass * passes;
    });
}

py::dict caches() {
    py::dict d;
    auto put = [&](const char* name, int what) {
        long bytes = sysconf(what);
        if (bytes > 0) d[name] = bytes;
    };
#if defined(_SC_LEVEL1_DCACHE_SIZE)
    put("l1", _SC_LEVEL1_DCACHE_SIZE);
    put("l2", _SC_LEVEL2_CACHE_SIZE);
    put("l3", _SC_LEVEL3_CACHE_SIZE);
#endif
    return d;
}

}  // namespace

PYBIND11_MODULE(_probe, m) {
    m.doc() = "Measured ceilings: register-only arithmetic and memory bandwidth, per instruction set.";
    m.def("features", &features, "Instruction sets of this processor that the probe has loops for.");
    m.def(
        "arithmetic",
        [] {
            py::list rows;
            for (const auto& r : arithmetic()) {
                py::dict d;
                d["kind"] = r.kind;
                d["isa"] = r.isa;
                d["instruction"] = r.instruction;
                rows.append(d);
            }
            return rows;
        },
        "The arithmetic loops this processor can run, weakest instruction set first.");
    m.def(
        "memory",
        [] {
            py::list rows;
            for (const auto& r : memory()) {
                py::dict d;
                d["kind"] = r.kind;
                d["isa"] = r.isa;
                rows.append(d);
            }
            return rows;
        },
        "The memory loops this processor can run, weakest instruction set first.");
    m.def("operations", &operations, py::arg("kind"), py::arg("isa"), py::arg("threads") = 1,
          py::arg("seconds") = 0.05,
          "Operations per second (a multiply and an add are two), summed over the threads.");
    m.def(
        "bandwidth", &bandwidth, py::arg("kind"), py::arg("isa"), py::arg("bytes"), py::arg("threads") = 1,
        py::arg("seconds") = 0.05,
        "Bytes per second that the program reads plus writes, summed over the threads, in arrays of `bytes` "
        "together for each thread. Lines the hardware fetches before writing them are not counted.");
    m.def("caches", &caches, "Sizes in bytes of one core's data caches, as far as the system tells.");
}

}  // namespace slowfast::probe
