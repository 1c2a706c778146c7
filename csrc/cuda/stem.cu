// Host side of stem3d.

#include "cuda/ops.h"
#include "cuda/stem.cuh"
#include "cuda/tensor.h"

namespace slowfast::cuda {

namespace {

template <class T, int Kt, int N, int M>
void launch_stem(const StemParams<T>& p, int64_t blocks, int64_t weights, Stream stream) {
    using Shape = StemShape<Kt, N, M>;
    STD_TORCH_CHECK(weights == Shape::kWeights, "weights: expected ", Shape::kWeights,
                    " packed elements, got ", weights);
    SF_LAUNCH((stem_kernel<T, Kt, N, M>), Dim3(blocks), Dim3(StemTile::kThreads), Shape::kShared, stream, p);
}

}  // namespace

void stem_run_cuda(Tensor x, Tensor weights, std::optional<Tensor> shift, int64_t kernel_t, bool relu,
                   int64_t segment, Tensor out) {
    const OnDevice device(x);
    STD_TORCH_CHECK(x.dim() == 5 && x.size(1) == 3, "x: expected a clip of 3 channels");
    STD_TORCH_CHECK(kernel_t == 1 || kernel_t == 5, "kernel_t: expected 1 or 5, got ", kernel_t);
    STD_TORCH_CHECK(segment > 0, "segment: expected at least one frame, got ", segment);
    with_half_dtype(x, "x", [&](auto zero) {
        using T = decltype(zero);
        StemParams<T> p;
        p.x = data_of<T>(x, "x");
        p.out = data_of<T>(out, "out");
        p.weights = data_of<T>(weights, "weights");
        p.sn = x.stride(0);
        p.sc = x.stride(1);
        p.st = x.stride(2);
        p.sh = x.stride(3);
        p.sw = x.stride(4);
        p.out_pitch = pixel_pitch(out, "out");
        p.frames = as_int(x.size(2), "frames");
        p.height = as_int(x.size(3), "height");
        p.width = as_int(3 * x.size(4), "values of a row") / 3;
        p.conv_height = (p.height - 1) / 2 + 1;
        p.conv_width = (p.width - 1) / 2 + 1;
        p.out_height = (p.conv_height - 1) / 2 + 1;
        p.out_width = (p.conv_width - 1) / 2 + 1;
        p.cout = as_int(out.size(1), "channels");
        p.segment = as_int(segment, "segment");
        p.relu = relu;
        p.shift = shift ? floats_or_null(shift, p.cout, "shift") : nullptr;
        STD_TORCH_CHECK(
            p.cout % 8 == 0 && p.cout <= (kernel_t == 5 ? 8 : 64),
            "out: expected a multiple of 8 channels, at most 64, or 8 with a 5 x 7 x 7 kernel, got ", p.cout);
        STD_TORCH_CHECK(out.size(0) == x.size(0) && out.size(2) == x.size(2) && out.size(3) == p.out_height &&
                            out.size(4) == p.out_width,
                        "out: expected the stem's result of x");
        STD_TORCH_CHECK(fits_vectors(p.out, p.out_pitch), "out: expected pixels at 16-byte boundaries");
        p.rows_in_vectors =
            p.sc == 1 && p.sw == 3 && p.st % 8 == 0 && p.sn % 8 == 0 && fits_vectors(p.x, p.sh);
        const int64_t blocks = x.size(0) * ceil_div(p.frames, p.segment) *
                               ceil_div(p.out_height, StemTile::kPoolH) *
                               ceil_div(p.out_width, StemTile::kPoolW);
        as_int(blocks, "blocks of threads");
        if (kernel_t == 5) {
            launch_stem<T, 5, 1, 4>(p, blocks, weights.numel(), device.stream());
        } else if (p.cout <= 8) {
            launch_stem<T, 1, 1, 4>(p, blocks, weights.numel(), device.stream());
        } else {
            launch_stem<T, 1, 8, 4>(p, blocks, weights.numel(), device.stream());
        }
    });
}

}  // namespace slowfast::cuda
