// What the launchers of the block kernels share: checks, and the parameters that every kernel has.
#pragma once

#include "cuda/ops.h"
#include "cuda/tensor.h"

namespace slowfast::cuda {

// Channels move 16 bytes at a time.
template <class T>
void check_vectors(const T* p, int64_t channels, int64_t pitch, const char* what) {
    STD_TORCH_CHECK(channels % 8 == 0 && fits_vectors(p, pitch), what,
                    ": expected a multiple of 8 channels at 16-byte boundaries, got ", channels, " every ",
                    pitch, " elements");
}

// Of every kernel: input, result, weights, how far pixels lie apart, channels.
template <class T, template <class> class Params>
void set_maps(Params<T>& p, const Tensor& x, const Tensor& weights, const Tensor& out) {
    p.x = data_of<T>(x, "x");
    p.out = data_of<T>(out, "out");
    p.weights = data_of<T>(weights, "weights");
    p.x_pitch = pixel_pitch(x, "x");
    p.out_pitch = pixel_pitch(out, "out");
    check_vectors(p.x, x.size(1), p.x_pitch, "x");
    check_vectors(p.out, out.size(1), p.out_pitch, "out");
    p.cin = as_int(x.size(1), "channels");
    p.cout = as_int(out.size(1), "channels");
    as_int(x.size(3) * x.size(4), "pixels of a frame");
}

// Of the kernels with a tile of output pixels, after set_maps; tile: height, width.
template <class T, template <class> class Params>
void set_tile(Params<T>& p, const Tensor& x, const Tensor& out, int64_t stride, int64_t dilation,
              bool shortcut, const Ints& tile) {
    p.height = as_int(x.size(3), "height");
    p.width = as_int(x.size(4), "width");
    p.dilation = static_cast<int>(dilation);
    p.tile_h = static_cast<int>(tile[0]);
    p.tile_w = static_cast<int>(tile[1]);
    STD_TORCH_CHECK(out.size(0) == x.size(0) && out.size(2) == x.size(2) &&
                        out.size(3) == (x.size(3) - 1) / stride + 1 &&
                        out.size(4) == (x.size(4) - 1) / stride + 1 && (shortcut || p.cin == p.cout),
                    "out: expected the block's result of x");
}

}  // namespace slowfast::cuda
