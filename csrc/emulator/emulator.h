// Runs CUDA grids on the host: every thread of a block is a fiber of one host thread, blocks run one after
// another, and what the threads do to each other is checked.
//
// Reported, as std::runtime_error from the launch, with the kernel, the block and the source line:
//   - a barrier or warp primitive that not all of its threads reach, or that they reach at different lines;
//   - shared addresses outside their array or misaligned, where a primitive takes one;
//   - bytes beside a shared array that were written (found when the block ends);
//   - misaligned vectors and copies; launches beyond the hardware's limits.
// Shown, as NaN or as a result that moves with the order of the threads:
//   - shared memory read before it is written: it starts as 0xFF bytes in every block;
//   - an asynchronous copy read before its wait: it lands there, and its target is 0xFF bytes until then;
//   - missing barriers. SLOWFAST_EMULATE_ORDER chooses who runs when several threads can:
//       random[:seed]    anybody
//       reversed         the last thread
//       ahead[:warp]     one warp as far as it can go, then the next
//       mixed            each of these in turn, by block; the default
// Built with AddressSanitizer, any access beside a shared array is reported where it happens.
// Counted, where SLOWFAST_EMULATE_PROFILE names a file: bank conflicts, sectors, tensor-core instructions
// (emulator/profile.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/types.h"

namespace slowfast::emulator {

using cuda::Dim3;

// A place in the source: default arguments take the caller's.
struct Site {
    const char* file;
    int line;
    static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }
};

// What a thread asks about itself.
struct Thread {
    int x, y, z;
    int id, lane, warp;  // id is the linear index in the block
};

extern Thread* current;  // the running thread
extern Dim3 grid_dim, block_dim;
extern int block_index[3];

// Calls body(closure) in every thread of the grid.
void run(const char* kernel, Dim3 grid, Dim3 block, size_t shared_bytes, void (*body)(void*), void* closure);

// Ends the launch with an error that names the kernel, block and thread.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
// The same, about a primitive and its line.
[[noreturn]] void fail_at(const char* what, Site site, const char* format, ...)
    __attribute__((format(printf, 3, 4)));

// --- Meeting -----------------------------------------------------------------------------------------

// Waits for the lanes of `mask`; the last to come does work(arguments of all lanes, mask) for all.
using Work = void (*)(void* const* lanes, uint32_t mask);
void meet(const char* what, uint32_t mask, Work work, void* arguments, Site site);
// Waits until `threads` threads have come to the barrier `id`.
void barrier(const char* what, int id, int threads, Site site);

// --- Shared memory and asynchronous copies -----------------------------------------------------------
void* dynamic_shared();
// The block's array that is declared at `key`, made by the first thread that comes by.
void* static_shared(const void* key, size_t bytes, const char* name);
// Fails unless the bytes lie in one shared array and p is aligned.
void check_shared(const void* p, size_t bytes, size_t alignment, const char* what, Site site);
void check_aligned(const void* p, size_t alignment, const char* what, Site site);

// --- Profile (emulator/profile.h) -----------------------------------------------------------------------
extern bool profiling;  // the launch under way is counted; nothing below may be called unless it is

enum class Access { load, store, copy, matrix };
// One lane's access of `width` bytes, of which the first `bytes` are moved.
void count_access(Access access, const void* p, int bytes, int width, bool shared, Site site);
void count_mma(const char* shape);
bool in_shared(const void* p);

inline void seen(Access access, const void* p, size_t bytes, Site site) {
    if (__builtin_expect(profiling, false)) {
        count_access(access, p, static_cast<int>(bytes), static_cast<int>(bytes), in_shared(p), site);
    }
}

void copy_async(void* shared, const void* global, int size, int bytes, Site site);
void copy_commit();
void copy_wait(int groups);

}  // namespace slowfast::emulator
