// Host side of lateral_fusion.

#include "cuda/lateral.cuh"
#include "cuda/ops.h"
#include "cuda/tensor.h"

namespace slowfast::cuda {

namespace {

template <class T>
bool takes_vectors(const T* p, int64_t pitch) {
    return pitch * sizeof(T) % 16 == 0 && reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

void check_frames(const Tensor& x, const Tensor& y, int64_t alpha) {
    STD_TORCH_CHECK(x.dim() == 5 && y.dim() == 5 && alpha >= 1 && x.size(0) == y.size(0) &&
                        x.size(2) == alpha * y.size(2) && x.size(3) == y.size(3) && x.size(4) == y.size(4),
                    "expected maps of one number of clips, height and width, and ", alpha,
                    " frames for one of the result");
    STD_TORCH_CHECK(x.size(1) <= (1 << 20) && y.size(1) <= (1 << 20) && x.size(2) < (1 << 24),
                    "expected at most 2^20 channels and fewer than 2^24 frames");
}

template <class T, template <class, int> class Math, int BN, bool Async>
void start(const LateralArgs<T>& p, Stream stream) {
    using L = Lateral<T, Math, BN, Async>;
    const int64_t blocks = ceil_div<int64_t>(p.pixels, L::kM) * ceil_div(p.outputs, BN);
    STD_TORCH_CHECK(blocks < (int64_t(1) << 31), "expected fewer than 2^31 blocks, got ", blocks);
    SF_LAUNCH((lateral_kernel<T, Math, BN, Async>), Dim3(blocks), Dim3(L::kThreads), L::kSharedBytes, stream,
              p);
}

template <class T, template <class, int> class Math>
void start_any(const LateralArgs<T>& p, Stream stream) {
    const bool async = takes_vectors(p.x, p.x_pitch) && takes_vectors(p.w, p.channels);
    if (!async) return start<T, Math, 64, false>(p, stream);
    return p.outputs <= 16 ? start<T, Math, 16, true>(p, stream) : start<T, Math, 64, true>(p, stream);
}

}  // namespace

void lateral_cuda(Tensor fast, Tensor weight, std::optional<Tensor> scale, std::optional<Tensor> shift,
                  int64_t alpha, bool relu, bool tf32, Tensor out) {
    const OnDevice device(fast);
    check_frames(fast, out, alpha);
    STD_TORCH_CHECK(weight.dim() == 3 && weight.is_contiguous() && weight.size(0) == out.size(1) &&
                        weight.size(1) >= 1 && weight.size(1) < (1 << 10) && weight.size(2) == fast.size(1),
                    "weight: expected contiguous [", out.size(1), ", taps, ", fast.size(1), "]");
    with_dtype(fast, "fast", [&](auto zero) {
        using T = decltype(zero);
        LateralArgs<T> p{};
        p.x = data_of<T>(fast, "fast");
        p.w = data_of<T>(weight, "weight");
        p.y = data_of<T>(out, "out");
        p.outputs = static_cast<int>(out.size(1));
        p.scale = floats_or_null(scale, p.outputs, "scale");
        p.shift = floats_or_null(shift, p.outputs, "shift");
        if (out.numel() == 0) return;
        p.x_pitch = fast.numel() ? pixel_stride(fast, "fast") : 0;
        p.y_pitch = pixel_stride(out, "out");
        p.frame_pixels = out.size(3) * out.size(4);
        p.frames_out = static_cast<int>(out.size(2));
        p.frames = static_cast<int>(fast.size(2));
        p.pixels = out.size(0) * out.size(2) * p.frame_pixels;
        p.alpha = static_cast<int>(alpha);
        p.taps = static_cast<int>(weight.size(1));
        p.channels = static_cast<int>(fast.size(1));
        p.relu = relu;
        p.wide = takes_vectors(p.y, p.y_pitch);
        if constexpr (sizeof(T) == 4) {
            tf32 ? start_any<T, Tf32Math>(p, device.stream()) : start_any<T, ExactMath>(p, device.stream());
        } else {
            start_any<T, HalfMath>(p, device.stream());
        }
    });
}

void lateral_gather_cuda(Tensor x, std::optional<Tensor> base, int64_t alpha, int64_t groups, Tensor out) {
    const OnDevice device(x);
    check_frames(x, out, alpha);
    STD_TORCH_CHECK(groups >= 1 && groups <= alpha && out.size(1) == groups * x.size(1), "out: expected ",
                    groups, " times ", x.size(1), " channels, got ", out.size(1));
    with_dtype(x, "x", [&](auto zero) {
        using T = decltype(zero);
        GatherArgs<T> p{};
        p.x = data_of<T>(x, "x");
        p.y = data_of<T>(out, "out");
        if (base) {
            for (int d = 0; d < 5; ++d)
                STD_TORCH_CHECK(base->dim() == 5 && base->size(d) == out.size(d),
                                "base: expected the result's shape");
            p.base = data_of<T>(*base, "base");
        }
        if (out.numel() == 0) return;
        p.x_pitch = pixel_stride(x, "x");
        p.y_pitch = pixel_stride(out, "out");
        p.base_pitch = base ? pixel_stride(*base, "base") : 0;
        p.frame_pixels = out.size(3) * out.size(4);
        p.pixels = out.size(0) * out.size(2) * p.frame_pixels;
        p.alpha = static_cast<int>(alpha);
        p.channels = static_cast<int>(x.size(1));
        p.total = static_cast<int>(out.size(1));
        constexpr int kVector = 16 / sizeof(T);
        const bool vectors = takes_vectors(p.x, p.x_pitch) && takes_vectors(p.y, p.y_pitch) &&
                             p.channels % kVector == 0 && (!base || takes_vectors(p.base, p.base_pitch));
        const int64_t blocks = ceil_div<int64_t>(p.pixels * (p.total / (vectors ? kVector : 1)), 256);
        const Dim3 grid(blocks < (1 << 20) ? blocks : 1 << 20);
        if (vectors) {
            SF_LAUNCH((gather_kernel<T, kVector>), grid, Dim3(256), 0, device.stream(), p);
        } else {
            SF_LAUNCH((gather_kernel<T, 1>), grid, Dim3(256), 0, device.stream(), p);
        }
    });
}

}  // namespace slowfast::cuda
