// The launch under way, and what its threads are doing.
#pragma once

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "emulator/fiber.h"
#include "emulator/scheduler.h"

namespace slowfast::emulator {

constexpr int kBarriers = 16;
constexpr size_t kMaxStatic = 48 * 1024, kMaxShared = 227 * 1024;  // bytes a block: static, all (sm_90)
constexpr int kPoison = 0xff;                                      // NaN in every floating-point type

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

inline Launch& the_launch() {
    static Launch launch;
    return launch;
}

}  // namespace slowfast::emulator
