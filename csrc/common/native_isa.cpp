// Prints the best instruction set of this machine that there are kernels for, or nothing:
// SLOWFAST_ISAS=native. It is the library's own code that asks.

#include <cstdio>

#include "cpu/isa.cpp"

int main() {
    const char* names[] = {"", "avx2", "avx512", "avx512_bf16"};
    std::printf("%s", names[static_cast<int>(slowfast::isa_of_processor())]);
}
