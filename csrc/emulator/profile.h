// What a profiler of the machine would say about a kernel's use of memory, counted instead of measured.
//
// SLOWFAST_EMULATE_PROFILE=FILE appends one line of JSON for every launch:
//   kernel, grid, block, shared_bytes (dynamic), warps (all blocks'), barriers (times that one opened),
//   mma {shape: instructions of a warp},
//   sites [{site "file:line", access, space, width (bytes of a lane), requests, lanes, bytes,
//           passes, least}]
// access: load, store, copy (cp.async, once for each of its sides), matrix (ldmatrix).
//
// A request is what a warp asks for at once: its lanes' n-th execution of a line since all of them last met
// at a barrier or warp primitive (or began). So a line of a loop that some lanes leave out in some rounds
// forms other requests than the machine would, until they meet again.
//
// passes, for shared memory: wavefronts. 32 banks of 4 bytes; a request of up to 4 bytes a lane is served
// whole, one of 8 bytes by half warps, one of 16 bytes (and ldmatrix, tile by tile) by eight lanes. Each of
// these takes as many wavefronts as one bank has different words asked of it. (The machine joins halves and
// quarters in some patterns of equal addresses, which is not counted.) least: bytes of all lanes / 128.
// passes, for global memory: 32-byte sectors touched. least: different bytes of the request / 32.
//
// Seen is what goes through load, load_readonly, store, cp_async and ldmatrix. Not seen: arrays dereferenced
// as p[i], atomics, registers that the compiler spills.
#pragma once

#include <cstddef>

#include "emulator/emulator.h"

namespace slowfast::emulator::profile {

// Counts while it lives, if the environment asks for it; write() appends the line.
class Counting {
  public:
    Counting(const char* kernel, Dim3 grid, Dim3 block, size_t shared_bytes);
    ~Counting();
    void write() const;
};

// The rest while a Counting lives that counts.

// All lanes of a warp have met: no request spans this moment.
void warp_met(int warp);
void barrier_opened();
void block_ended();

}  // namespace slowfast::emulator::profile
