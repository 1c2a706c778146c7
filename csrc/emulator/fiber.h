// A stack and the registers to leave and enter it; AddressSanitizer is told of every switch.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define SLOWFAST_ASAN 1
#else
#define SLOWFAST_ASAN 0
#endif

// A switch of our own takes some ten nanoseconds; ucontext, for other processors, asks the kernel each time.
#if defined(__x86_64__) && !defined(SLOWFAST_EMULATE_UCONTEXT)
#define SLOWFAST_OWN_SWITCH 1
#else
#define SLOWFAST_OWN_SWITCH 0
#include <ucontext.h>
#endif

namespace slowfast::emulator {

class Fiber {
  public:
    Fiber() = default;  // the host's own stack
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;
    ~Fiber();

    // Gives the fiber a stack (once) that starts at entry() when it is next switched to. What ran on it
    // before is forgotten.
    void prepare(void (*entry)());

    // Leaves this fiber, which is running, for another; returns when somebody switches back.
    void switch_to(Fiber& other) {
#if SLOWFAST_ASAN
        __sanitizer_start_switch_fiber(&fake_stack_, other.stack_, other.stack_bytes_);
        change(other);
        // Whoever came back knows the host's stack from here on.
        __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
#else
        change(other);
#endif
    }

    // First thing on a prepared fiber: `host` is the fiber without a stack of its own.
    static void entered(Fiber& host) {
#if SLOWFAST_ASAN
        const void* bottom;
        size_t bytes;
        __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
        if (host.stack_bytes_ == 0) {
            host.stack_ = const_cast<void*>(bottom);
            host.stack_bytes_ = bytes;
        }
#else
        (void)host;
#endif
    }

  private:
    void change(Fiber& other);

    void* stack_ = nullptr;  // usable part, above the guard page
    size_t stack_bytes_ = 0;
    void* mapping_ = nullptr;
#if SLOWFAST_ASAN
    void* fake_stack_ = nullptr;
#endif
#if SLOWFAST_OWN_SWITCH
    void* top_ = nullptr;  // where the registers are saved
#else
    ucontext_t context_;
#endif
};

}  // namespace slowfast::emulator
