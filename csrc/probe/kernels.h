// The loops that the probe times, one table per instruction set. Each loop is compiled with a function target
// attribute and reached through its table, so the library loads and runs on any x86-64.
#pragma once

#include <cstddef>
#include <cstdint>

namespace slowfast::probe {

// Runs `iterations` steps of independent multiply-adds held in registers; returns a value that depends on all
// of them, so that no step can be dropped.
using ArithmeticLoop = float (*)(int64_t iterations);

struct Arithmetic {
    const char* kind;         // "fp32", "bf16" or "int8"
    const char* isa;          // "sse2", "avx2", "avx_vnni", "avx512", "avx512_bf16", "avx512_vnni"
    const char* instruction;  // what is issued
    double ops;               // multiplies and adds of one iteration, both counted
    ArithmeticLoop run;
};

// One pass over arrays of n floats (n a multiple of 64, 64-byte aligned).
using MemoryLoop = float (*)(const float* a, const float* b, float* c, size_t n);

struct Memory {
    const char* kind;  // "read", "copy", "copy_stream" (stores that bypass the caches) or "triad"
    const char* isa;
    int reads, writes;  // arrays the program reads and writes in a pass
    MemoryLoop run;
};

// Loops that this processor can run, weakest instruction set first.
template <class Row>
struct Table {
    Row rows[12];
    int count;
    void add(const Row& row) { rows[count++] = row; }
};
const Table<Arithmetic>& arithmetic();
const Table<Memory>& memory();

// Instruction sets of this processor among those of the tables, with spaces between.
const char* features();

}  // namespace slowfast::probe
