// Stacks with a guard page, and the switch from one to another.

#include "emulator/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>

#if SLOWFAST_OWN_SWITCH
// Saves what the System V calling convention lets a callee rely on, on the stack that is left.
extern "C" __attribute__((visibility("hidden"))) void slowfast_switch_stack(void** from, void* to);
asm(R"(
    .text
    .hidden slowfast_switch_stack
    .globl  slowfast_switch_stack
    .type   slowfast_switch_stack, @function
slowfast_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq  %rsp, (%rdi)
    movq  %rsi, %rsp
    popq  %r15
    popq  %r14
    popq  %r13
    popq  %r12
    popq  %rbx
    popq  %rbp
    ret
    .size   slowfast_switch_stack, .-slowfast_switch_stack
)");
#endif

namespace slowfast::emulator {

namespace {
// Kernels keep accumulators on the stack, and sanitizers put redzones between them.
constexpr size_t kStackBytes = SLOWFAST_ASAN ? 256 * 1024 : 64 * 1024;
}  // namespace

Fiber::~Fiber() {
    if (mapping_) munmap(mapping_, static_cast<size_t>(getpagesize()) + kStackBytes);
}

void Fiber::prepare(void (*entry)()) {
    if (!mapping_) {
        const size_t page = static_cast<size_t>(getpagesize());
        void* p = mmap(nullptr, page + kStackBytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) throw std::runtime_error("CUDA emulator: no memory for a thread's stack");
        mprotect(p, page, PROT_NONE);  // an overflow is a segmentation fault, not a corrupted neighbour
        mapping_ = p;
        stack_ = static_cast<char*>(p) + page;
        stack_bytes_ = kStackBytes;
    }
#if SLOWFAST_ASAN
    __asan_unpoison_memory_region(stack_, stack_bytes_);
    fake_stack_ = nullptr;
#endif
#if SLOWFAST_OWN_SWITCH
    // As if entry() had just been called from address 0, with six registers saved by the switch.
    // (A return address stands 8 bytes off a multiple of 16.)
    void** top = reinterpret_cast<void**>(static_cast<char*>(stack_) + stack_bytes_) - 1;
    *top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    top_ = top;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_;
    context_.uc_stack.ss_size = stack_bytes_;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
#endif
}

void Fiber::change(Fiber& other) {
#if SLOWFAST_OWN_SWITCH
    slowfast_switch_stack(&top_, other.top_);
#else
    swapcontext(&context_, &other.context_);
#endif
}

}  // namespace slowfast::emulator
