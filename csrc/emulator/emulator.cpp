#include "emulator/emulator.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "emulator/fiber.h"
#include "emulator/profile.h"

namespace slowfast::emulator {

Thread* current = nullptr;
Dim3 grid_dim, block_dim;
int block_index[3];

namespace {

constexpr int kWarp = 32, kMaxThreads = 1024, kMaxWarps = kMaxThreads / kWarp, kBarriers = 16;
constexpr size_t kMaxStatic = 48 * 1024, kMaxShared = 227 * 1024;  // bytes a block: static, all (sm_90)
constexpr int kPoison = 0xff;                                      // NaN in every floating-point type

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

std::string format_text(const char* format, va_list arguments) {
    char text[1024];
    std::vsnprintf(text, sizeof(text), format, arguments);
    return text;
}
std::string text_of(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string text_of(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::string text = format_text(format, arguments);
    va_end(arguments);
    return text;
}
std::string text_of(Site site) {
    const char* slash = std::strrchr(site.file, '/');
    return text_of("%s:%d", slash ? slash + 1 : site.file, site.line);
}
bool same(Site a, Site b) {
    return a.line == b.line && std::strcmp(a.file, b.file) == 0;
}

// --- Who runs next -----------------------------------------------------------------------------------
struct Order {
    enum Kind { random, reversed, ahead, mixed } kind = mixed;
    uint64_t number = 0;  // seed, or the warp that goes ahead

    static Order from_environment() {
        const char* text = std::getenv("SLOWFAST_EMULATE_ORDER");
        if (!text || !*text) return {};
        const std::string all = text, name = all.substr(0, all.find(':'));
        const char* const names[] = {"random", "reversed", "ahead", "mixed"};
        Order order;
        for (int kind = 0; kind < 4; ++kind) {
            if (name != names[kind]) continue;
            order.kind = static_cast<Kind>(kind);
            if (name.size() < all.size()) order.number = std::strtoull(text + name.size() + 1, nullptr, 10);
            return order;
        }
        throw std::runtime_error(
            "SLOWFAST_EMULATE_ORDER: expected random[:seed], reversed, ahead[:warp] or mixed, got " + all);
    }

    // For one block of the grid: mixed takes turns.
    Order of_block(uint64_t block) const {
        Order order = *this;
        if (kind == mixed) {
            order.kind = static_cast<Kind>(block % 3);
            order.number = block / 3;
        } else if (kind == random) {
            order.number += block * 0x9e3779b97f4a7c15u;
        }
        return order;
    }

    std::string name() const {
        return kind == reversed ? "reversed"
                                : text_of("%s:%llu", kind == random ? "random" : "ahead",
                                          static_cast<unsigned long long>(number));
    }
};

// First set bit from `start` on, around the end.
int bit_from(uint32_t mask, unsigned start) {
    const uint32_t rotated = mask >> start | (start ? mask << (32 - start) : 0);
    return static_cast<int>((static_cast<unsigned>(__builtin_ctz(rotated)) + start) % 32);
}
int last_bit(uint32_t mask) {
    return 31 - __builtin_clz(mask);
}

// Threads by warp: which can run, which wait.
struct ThreadSet {
    uint32_t warps = 0, lanes[kMaxWarps] = {};

    void add(int warp, uint32_t mask) {
        lanes[warp] |= mask;
        warps |= 1u << warp;
    }
    void remove(int warp, int lane) {
        lanes[warp] &= ~(1u << lane);
        if (!lanes[warp]) warps &= ~(1u << warp);
    }
    void add_all(ThreadSet& from) {
        for (uint32_t left = from.warps; left; left &= left - 1) {
            const int warp = __builtin_ctz(left);
            add(warp, from.lanes[warp]);
            from.lanes[warp] = 0;
        }
        from.warps = 0;
    }
};

class Scheduler {
  public:
    void start(Order order) {
        order_ = order;
        random_ = order.number * 0x9e3779b97f4a7c15u + 0x2545f4914f6cdd1du;
        ready = {};
    }
    ThreadSet ready;

    // Linear index of the thread to run now, no longer ready; -1 when none is.
    int pick() {
        if (!ready.warps) return -1;
        int warp, lane;
        if (order_.kind == Order::reversed) {
            warp = last_bit(ready.warps);
            lane = last_bit(ready.lanes[warp]);
        } else if (order_.kind == Order::ahead) {
            warp = bit_from(ready.warps, order_.number % kMaxWarps);
            lane = __builtin_ctz(ready.lanes[warp]);
        } else {
            random_ ^= random_ << 13;
            random_ ^= random_ >> 7;
            random_ ^= random_ << 17;
            warp = bit_from(ready.warps, random_ >> 20 & 31);
            lane = bit_from(ready.lanes[warp], random_ >> 40 & 31);
        }
        ready.remove(warp, lane);
        return warp * kWarp + lane;
    }

  private:
    Order order_;
    uint64_t random_ = 1;
};

// --- Shared memory -----------------------------------------------------------------------------------

// One array. Each is an allocation of its own with guards around it: AddressSanitizer's, or bytes that are
// compared when the block ends.
class SharedArray {
  public:
    SharedArray(const void* key, size_t bytes, std::string name)
        : key_(key), bytes_(bytes), name_(std::move(name)) {
        const size_t all = SLOWFAST_ASAN ? std::max<size_t>(bytes, 1) : bytes + 2 * kGuard;
        void* p = nullptr;
        if (posix_memalign(&p, kGuard, all) != 0) throw std::bad_alloc();
        allocation_.reset(static_cast<char*>(p));
        data_ = allocation_.get() + (SLOWFAST_ASAN ? 0 : kGuard);
        reset();
    }

    void reset() {
        if (!SLOWFAST_ASAN) {
            std::memset(data_ - kGuard, kGuardByte, kGuard);
            std::memset(data_ + bytes_, kGuardByte, kGuard);
        }
        std::memset(data_, kPoison, bytes_);
    }
    bool contains(const char* p, size_t bytes) const {
        return p >= data_ && p <= data_ + bytes_ && bytes <= static_cast<size_t>(data_ + bytes_ - p);
    }
    void check_guards() const {
        if (SLOWFAST_ASAN) return;
        for (size_t i = 0; i < kGuard; ++i) {
            if (byte_at(data_ + bytes_ + i) != kGuardByte) {
                throw Error(text_of("wrote byte %zu of the shared array %s, which has %zu bytes", bytes_ + i,
                                    name_.c_str(), bytes_));
            }
            if (byte_at(data_ - kGuard + i) != kGuardByte) {
                throw Error(text_of("wrote %zu bytes before the shared array %s", kGuard - i, name_.c_str()));
            }
        }
    }

    const void* key() const { return key_; }
    char* data() const { return data_; }
    size_t bytes() const { return bytes_; }
    const char* name() const { return name_.c_str(); }

  private:
    static constexpr size_t kGuard = 128;  // also the alignment
    static constexpr int kGuardByte = 0xa5;
    static int byte_at(const char* p) { return static_cast<unsigned char>(*p); }
    struct Free {
        void operator()(char* p) const { std::free(p); }
    };

    const void* key_;
    size_t bytes_;
    std::string name_;
    std::unique_ptr<char, Free> allocation_;
    char* data_;
};

// --- Threads -----------------------------------------------------------------------------------------
struct Copy {
    void* shared;
    const void* global;
    int size, bytes;
    int group;
};

struct EmulatedThread : Thread {
    Fiber fiber;
    bool done;
    const char* waits_at;  // what and where, while it waits
    Site site;
    // Asynchronous copies under way, oldest first from `landed` on.
    std::vector<Copy> copies;
    size_t landed;
    int groups;  // committed
};

// Lanes that wait for each other.
struct Meeting {
    uint32_t mask, arrived;
    Work work;
    const char* what;
    Site site;
    void* arguments[kWarp];
};

struct WarpMeetings {
    uint32_t open = 0;  // slots in use
    Meeting slots[kWarp];
};

struct Barrier {
    int arrived = 0, expected = 0;
    Site site;
    ThreadSet waiting;
};

// The launch under way. One at a time: the emulated kernels see it through globals.
class Launch {
  public:
    void run(const char* kernel, Dim3 grid, Dim3 block, size_t shared_bytes, void (*body)(void*),
             void* closure);

    EmulatedThread& self() { return static_cast<EmulatedThread&>(*current); }
    void meet(const char* what, uint32_t mask, Work work, void* arguments, Site site);
    void arrive(const char* what, int id, int threads, Site site);
    void* static_shared(const void* key, size_t bytes, const char* name);
    void* dynamic_shared() { return arrays_[0]->data(); }
    void check_shared(const void* p, size_t bytes, size_t alignment, const char* what, Site site);
    bool in_shared(const void* p) const;
    std::string where() const;

  private:
    void check_limits() const;
    void run_block(uint64_t index);
    static void thread_entry();
    void wait(const char* what, Site site);
    void lanes_met(int warp, uint32_t mask);
    void run_next(EmulatedThread& leaving);
    Meeting& meeting_of(uint32_t mask, const char* what, Work work, Site site);
    std::string who_waits_where() const;

    std::string kernel_;
    Dim3 grid_, block_;
    size_t shared_bytes_ = 0;
    int count_ = 0;  // threads of a block
    void (*body_)(void*) = nullptr;
    void* closure_ = nullptr;

    Order order_;
    Scheduler scheduler_;
    Fiber host_;
    std::vector<std::unique_ptr<EmulatedThread>> threads_;  // with their stacks, kept for the next launch
    int done_ = 0;
    std::string error_;
    WarpMeetings meetings_[kMaxWarps];
    Barrier barriers_[kBarriers];
    std::vector<std::unique_ptr<SharedArray>> arrays_;  // the first is the dynamic one
};

Launch& the_launch() {
    static Launch launch;
    return launch;
}

std::string Launch::where() const {
    return text_of("%s, block (%d, %d, %d), order %s", kernel_.c_str(), block_index[0], block_index[1],
                   block_index[2], order_.name().c_str());
}

void Launch::check_limits() const {
    const auto expect = [&](bool good, const char* limit, uint64_t got) {
        if (!good) {
            throw std::runtime_error(text_of("CUDA emulator: %s: expected %s, got %llu", kernel_.c_str(),
                                             limit, static_cast<unsigned long long>(got)));
        }
    };
    expect(grid_.x <= 0x7fffffffu, "at most 2147483647 blocks along x", grid_.x);
    expect(grid_.y <= 65535, "at most 65535 blocks along y", grid_.y);
    expect(grid_.z <= 65535, "at most 65535 blocks along z", grid_.z);
    expect(block_.count() >= 1 && block_.count() <= kMaxThreads, "1 to 1024 threads a block", block_.count());
    expect(block_.z <= 64, "at most 64 threads along z", block_.z);
    expect(shared_bytes_ <= kMaxShared, "at most 232448 bytes of shared memory", shared_bytes_);
}

void Launch::run(const char* kernel, Dim3 grid, Dim3 block, size_t shared_bytes, void (*body)(void*),
                 void* closure) {
    kernel_ = kernel;
    if (kernel_.front() == '(' && kernel_.back() == ')') kernel_ = kernel_.substr(1, kernel_.size() - 2);
    grid_ = grid_dim = grid;
    block_ = block_dim = block;
    shared_bytes_ = shared_bytes;
    body_ = body;
    closure_ = closure;
    if (grid.count() == 0) return;
    check_limits();
    const Order asked = Order::from_environment();

    count_ = static_cast<int>(block.count());
    while (threads_.size() < static_cast<size_t>(count_)) {
        threads_.push_back(std::make_unique<EmulatedThread>());
    }
    for (int i = 0; i < count_; ++i) {
        EmulatedThread& t = *threads_[static_cast<size_t>(i)];
        t.id = i;
        t.lane = i % kWarp;
        t.warp = i / kWarp;
        t.x = i % static_cast<int>(block.x);
        t.y = i / static_cast<int>(block.x) % static_cast<int>(block.y);
        t.z = i / static_cast<int>(block.x * block.y);
    }
    const profile::Counting counting(kernel_.c_str(), grid, block, shared_bytes);
    arrays_.clear();
    arrays_.push_back(std::make_unique<SharedArray>(nullptr, shared_bytes, "dynamic_shared"));
    for (uint64_t i = 0; i < grid.count(); ++i) {
        order_ = asked.of_block(i);
        run_block(i);
        if (profiling) profile::block_ended();
    }
    counting.write();
}

void Launch::run_block(uint64_t index) {
    block_index[0] = static_cast<int>(index % grid_.x);
    block_index[1] = static_cast<int>(index / grid_.x % grid_.y);
    block_index[2] = static_cast<int>(index / grid_.x / grid_.y);
    for (auto& array : arrays_) array->reset();
    for (int warp = 0; warp < cuda::ceil_div(count_, kWarp); ++warp) {
        meetings_[warp].open = 0;
    }
    for (Barrier& b : barriers_) b = {};
    scheduler_.start(order_);
    done_ = 0;
    error_.clear();
    for (int i = 0; i < count_; ++i) {
        EmulatedThread& t = *threads_[static_cast<size_t>(i)];
        t.done = false;
        t.waits_at = nullptr;
        t.copies.clear();
        t.landed = 0;
        t.groups = 0;
        t.fiber.prepare(thread_entry);
        scheduler_.ready.add(t.warp, 1u << t.lane);
    }
    EmulatedThread& first = *threads_[static_cast<size_t>(scheduler_.pick())];
    current = &first;
    host_.switch_to(first.fiber);
    current = nullptr;
    try {
        if (!error_.empty()) throw Error(error_);
        for (auto& array : arrays_) array->check_guards();
    } catch (const Error& error) {
        throw std::runtime_error("CUDA emulator: " + where() + ": " + error.what());
    }
}

void Launch::thread_entry() {
    Launch& launch = the_launch();
    Fiber::entered(launch.host_);
    EmulatedThread& self = launch.self();
    try {
        launch.body_(launch.closure_);
    } catch (const std::exception& error) {
        launch.error_ = text_of("thread %d: ", self.id) + error.what();
    } catch (...) {
        launch.error_ = text_of("thread %d: an exception that is not a std::exception", self.id);
    }
    // Outside the handler, which would otherwise never end. What the other threads were doing is dropped.
    if (!launch.error_.empty()) self.fiber.switch_to(launch.host_);
    self.done = true;
    ++launch.done_;
    launch.run_next(self);  // never comes back
}

void Launch::lanes_met(int warp, uint32_t mask) {
    const int lanes = std::min(kWarp, count_ - warp * kWarp);
    if (mask == 0xffffffffu >> (kWarp - lanes)) profile::warp_met(warp);
}

void Launch::run_next(EmulatedThread& leaving) {
    const int next = scheduler_.pick();
    if (next < 0) {
        if (done_ < count_) error_ = "deadlock: " + who_waits_where();
        leaving.fiber.switch_to(host_);
        return;
    }
    EmulatedThread& other = *threads_[static_cast<size_t>(next)];
    if (&other == &leaving) return;
    current = &other;
    leaving.fiber.switch_to(other.fiber);
}

void Launch::wait(const char* what, Site site) {
    EmulatedThread& t = self();
    t.waits_at = what;
    t.site = site;
    run_next(t);
}

std::string Launch::who_waits_where() const {
    std::vector<std::pair<std::string, std::string>> groups;  // place, thread ranges
    for (int i = 0; i < count_;) {
        const auto place = [&](int thread) {
            const EmulatedThread& t = *threads_[static_cast<size_t>(thread)];
            return t.done ? std::string("have returned")
                          : text_of("wait at %s (%s)", t.waits_at, text_of(t.site).c_str());
        };
        const std::string here = place(i);
        const int first = i;
        while (i < count_ && place(i) == here) ++i;
        const std::string range = i - first > 1 ? text_of("%d-%d", first, i - 1) : text_of("%d", first);
        auto group = std::find_if(groups.begin(), groups.end(), [&](auto& g) { return g.first == here; });
        if (group == groups.end()) {
            groups.emplace_back(here, range);
        } else {
            group->second += ", " + range;
        }
    }
    std::string text;
    for (const auto& [place, threads] : groups) {
        text += (text.empty() ? "threads " : "; threads ") + threads + " " + place;
    }
    return text;
}

Meeting& Launch::meeting_of(uint32_t mask, const char* what, Work work, Site site) {
    const EmulatedThread& t = self();
    if ((mask >> t.lane & 1) == 0) {
        fail_at(what, site, "lane %d is not in its mask 0x%08x", t.lane, mask);
    }
    WarpMeetings& meetings = meetings_[t.warp];
    for (uint32_t left = meetings.open; left; left &= left - 1) {
        Meeting& m = meetings.slots[__builtin_ctz(left)];
        if (m.mask != mask) continue;
        if (m.work != work || !same(m.site, site)) {
            fail("divergent warp: lanes 0x%08x wait at %s (%s), lane %d comes to %s (%s)", m.arrived, m.what,
                 text_of(m.site).c_str(), t.lane, what, text_of(site).c_str());
        }
        return m;
    }
    // Every open meeting has a lane that waits there, so one of 32 is free.
    Meeting& m = meetings.slots[__builtin_ctz(~meetings.open)];
    meetings.open |= ~meetings.open & (meetings.open + 1);
    m.mask = mask;
    m.arrived = 0;
    m.work = work;
    m.what = what;
    m.site = site;
    return m;
}

void Launch::meet(const char* what, uint32_t mask, Work work, void* arguments, Site site) {
    EmulatedThread& t = self();
    Meeting& m = meeting_of(mask, what, work, site);
    m.arguments[t.lane] = arguments;
    m.arrived |= 1u << t.lane;
    if (m.arrived == m.mask) {
        work(m.arguments, mask);
        if (__builtin_expect(profiling, false)) lanes_met(t.warp, mask);
        meetings_[t.warp].open &= ~(1u << (&m - meetings_[t.warp].slots));
        scheduler_.ready.add(t.warp, mask);
    }
    wait(what, site);
}

void Launch::arrive(const char* what, int id, int threads, Site site) {
    EmulatedThread& t = self();
    if (id < 0 || id >= kBarriers || threads < 1 || threads > count_ ||
        (threads % kWarp != 0 && threads != count_)) {
        fail_at(what, site,
                "expected barriers 0 to 15 of whole warps of %d threads, got barrier %d of %d threads",
                count_, id, threads);
    }
    Barrier& b = barriers_[id];
    if (b.arrived == 0) {
        b.expected = threads;
        b.site = site;
    } else if (b.expected != threads) {
        fail_at(what, site, "barrier %d is waited for by %d threads (%s), got %d", id, b.expected,
                text_of(b.site).c_str(), threads);
    } else if (id == 0 && !same(b.site, site)) {
        fail("divergent barrier: %d threads wait at syncthreads (%s), thread %d comes to syncthreads (%s)",
             b.arrived, text_of(b.site).c_str(), t.id, text_of(site).c_str());
    }
    b.waiting.add(t.warp, 1u << t.lane);
    if (++b.arrived == b.expected) {
        if (__builtin_expect(profiling, false)) {
            profile::barrier_opened();
            for (uint32_t left = b.waiting.warps; left; left &= left - 1) {
                const int warp = __builtin_ctz(left);
                lanes_met(warp, b.waiting.lanes[warp]);
            }
        }
        scheduler_.ready.add_all(b.waiting);
        b.arrived = 0;
    }
    wait(what, site);
}

void* Launch::static_shared(const void* key, size_t bytes, const char* name) {
    size_t all = bytes;
    for (size_t i = 1; i < arrays_.size(); ++i) {
        if (arrays_[i]->key() == key) return arrays_[i]->data();
        all += arrays_[i]->bytes();
    }
    if (all > kMaxStatic)
        fail("expected at most %zu bytes of static shared memory, got %zu", kMaxStatic, all);
    if (all + shared_bytes_ > kMaxShared) {
        fail("expected at most %zu bytes of shared memory, got %zu", kMaxShared, all + shared_bytes_);
    }
    arrays_.push_back(std::make_unique<SharedArray>(key, bytes, name));
    return arrays_.back()->data();
}

void Launch::check_shared(const void* p, size_t bytes, size_t alignment, const char* what, Site site) {
    check_aligned(p, alignment, what, site);
    const char* address = static_cast<const char*>(p);
    const SharedArray* nearest = nullptr;
    ptrdiff_t least = 0;
    for (const auto& array : arrays_) {
        if (array->contains(address, bytes)) return;
        const ptrdiff_t from = address - array->data();
        const ptrdiff_t away = from < 0 ? -from : from;
        if (!nearest || away < least) {
            nearest = array.get();
            least = away;
        }
    }
    fail_at(what, site, "%zu bytes from byte %td of the shared array %s, which has %zu bytes", bytes,
            address - nearest->data(), nearest->name(), nearest->bytes());
}

bool Launch::in_shared(const void* p) const {
    const char* address = static_cast<const char*>(p);
    return std::any_of(arrays_.begin(), arrays_.end(), [=](auto& a) { return a->contains(address, 1); });
}

std::mutex& launch_mutex() {
    static std::mutex mutex;
    return mutex;
}

}  // namespace

void run(const char* kernel, Dim3 grid, Dim3 block, size_t shared_bytes, void (*body)(void*), void* closure) {
    const std::lock_guard<std::mutex> lock(launch_mutex());
    the_launch().run(kernel, grid, block, shared_bytes, body, closure);
}

void fail(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::string text = format_text(format, arguments);
    va_end(arguments);
    throw Error(text);
}

void fail_at(const char* what, Site site, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::string text = format_text(format, arguments);
    va_end(arguments);
    throw Error(text_of("%s (%s): ", what, text_of(site).c_str()) + text);
}

void meet(const char* what, uint32_t mask, Work work, void* arguments, Site site) {
    the_launch().meet(what, mask, work, arguments, site);
}

void barrier(const char* what, int id, int threads, Site site) {
    the_launch().arrive(what, id, threads, site);
}

void* dynamic_shared() {
    return the_launch().dynamic_shared();
}

void* static_shared(const void* key, size_t bytes, const char* name) {
    return the_launch().static_shared(key, bytes, name);
}

void check_shared(const void* p, size_t bytes, size_t alignment, const char* what, Site site) {
    the_launch().check_shared(p, bytes, alignment, what, site);
}

bool in_shared(const void* p) {
    return the_launch().in_shared(p);
}

void check_aligned(const void* p, size_t alignment, const char* what, Site site) {
    if (reinterpret_cast<uintptr_t>(p) % alignment != 0) {
        fail_at(what, site, "expected an address that is a multiple of %zu, got %p", alignment, p);
    }
}

void copy_async(void* shared, const void* global, int size, int bytes, Site site) {
    check_shared(shared, static_cast<size_t>(size), static_cast<size_t>(size), "cp_async", site);
    if (bytes < 0 || bytes > size) {
        fail_at("cp_async", site, "expected 0 to %d bytes, got %d", size, bytes);
    }
    if (bytes > 0) check_aligned(global, static_cast<size_t>(size), "cp_async", site);
    if (__builtin_expect(profiling, false)) {
        count_access(Access::copy, shared, size, size, true, site);
        if (bytes > 0) count_access(Access::copy, global, bytes, size, false, site);
    }
    EmulatedThread& t = the_launch().self();
    t.copies.push_back({shared, global, size, bytes, t.groups});
    std::memset(shared, kPoison, static_cast<size_t>(size));
}

void copy_commit() {
    ++the_launch().self().groups;
}

void copy_wait(int groups) {
    EmulatedThread& t = the_launch().self();
    for (; t.landed < t.copies.size() && t.copies[t.landed].group < t.groups - groups; ++t.landed) {
        const Copy& c = t.copies[t.landed];
        if (c.bytes) std::memcpy(c.shared, c.global, static_cast<size_t>(c.bytes));
        std::memset(static_cast<char*>(c.shared) + c.bytes, 0, static_cast<size_t>(c.size - c.bytes));
    }
    if (t.landed == t.copies.size()) {
        t.copies.clear();
        t.landed = 0;
    }
}

}  // namespace slowfast::emulator
