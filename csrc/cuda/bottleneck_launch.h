// What the launchers of the bottleneck kernels share: checks, and the arguments that every kernel has.
#pragma once

#include <limits>

#include "cuda/bottleneck.h"
#include "cuda/tensor.h"

namespace slowfast::cuda {

inline int checked_int(int64_t v, const char* what) {
    STD_TORCH_CHECK(v >= 0 && v <= std::numeric_limits<int>::max(), what, ": expected less than 2^31, got ",
                    v);
    return static_cast<int>(v);
}

// Channels move 16 bytes at a time.
inline void check_vectors(const void* p, int64_t channels, int64_t pitch, const char* what) {
    STD_TORCH_CHECK(channels % 8 == 0 && pitch % 8 == 0 && reinterpret_cast<uintptr_t>(p) % 16 == 0, what,
                    ": expected a multiple of 8 channels at 16-byte boundaries, got ", channels, " every ",
                    pitch, " elements");
}

// What the arguments of every kernel have: input, result, weights, how far pixels lie apart, channels.
template <class T, template <class> class Arguments>
void set_maps(Arguments<T>& p, const Tensor& x, const Tensor& weights, const Tensor& out) {
    p.x = data_of<T>(x, "x");
    p.out = data_of<T>(out, "out");
    p.weights = data_of<T>(weights, "weights");
    p.x_pitch = pixel_stride(x, "x");
    p.out_pitch = pixel_stride(out, "out");
    check_vectors(p.x, x.size(1), p.x_pitch, "x");
    check_vectors(p.out, out.size(1), p.out_pitch, "out");
    p.cin = checked_int(x.size(1), "channels");
    p.cout = checked_int(out.size(1), "channels");
    checked_int(x.size(3) * x.size(4), "pixels of a frame");
}

}  // namespace slowfast::cuda
