// Host side of lateral_fusion.

#include "cuda/lateral.cuh"
#include "cuda/ops.h"
#include "cuda/tensor.h"

namespace slowfast::cuda {

namespace {

// The products of a sum, taps times channels, are counted in 32 bits; so are frames, which have to stay away
// from the -2^30 that stands for none (lateral.cuh).
constexpr int64_t kMaxChannels = 1 << 20, kMaxTaps = 1 << 10, kMaxFrames = 1 << 24;
constexpr int64_t kMaxFramePixels = 1 << 30;  // two are added
// Far more than a GPU runs at a time; each thread walks on by as many vectors as there are threads.
constexpr int64_t kGatherBlocks = 1 << 20;

void check_frames(const Tensor& x, const Tensor& out, int64_t alpha) {
    STD_TORCH_CHECK(x.dim() == 5 && out.dim() == 5 && alpha >= 1 && x.size(0) == out.size(0) &&
                        x.size(2) == alpha * out.size(2) && x.size(3) == out.size(3) &&
                        x.size(4) == out.size(4),
                    "expected maps of one number of clips, height and width, and ", alpha,
                    " frames for one of the result");
    STD_TORCH_CHECK(x.size(1) <= kMaxChannels && out.size(1) <= kMaxChannels && x.size(2) < kMaxFrames,
                    "expected at most ", kMaxChannels, " channels and fewer than ", kMaxFrames, " frames");
}

template <class T, template <class, int> class Math, int Columns, bool Async, bool Resident>
void launch_lateral(LateralParams<T> p, int64_t walkers, Stream stream) {
    using L = Lateral<T, Math, Columns, Async, Resident>;
    p.walkers = Resident && walkers < p.tiles ? static_cast<int>(walkers) : p.tiles;
    p.step_taps = L::kK / p.channels;
    p.step_channels = L::kK % p.channels;
    p.distance = lateral_place(p, int64_t(p.walkers) * kLateralRows);
    const int64_t blocks = int64_t(p.walkers) * ceil_div(p.outputs, Columns);
    as_int(blocks, "blocks of threads");
    SF_LAUNCH((lateral_kernel<T, Math, Columns, Async, Resident>), Dim3(blocks), Dim3(L::kThreads),
              L::shared_bytes(p.taps * p.channels), stream, p);
}

template <class T, template <class, int> class Math>
void launch_lateral(const LateralParams<T>& p, int64_t columns, int64_t walkers, Stream stream) {
    const bool async = fits_vectors(p.x, p.x_pitch) && fits_vectors(p.weights, p.channels);
    if (!async) return launch_lateral<T, Math, 64, false, false>(p, 0, stream);
    const bool resident = walkers > 0;
    switch (columns) {
        case 16:
            STD_TORCH_CHECK(resident, "walkers: expected at least one for 16 columns");
            return launch_lateral<T, Math, 16, true, true>(p, walkers, stream);
        case 64:
            return resident ? launch_lateral<T, Math, 64, true, true>(p, walkers, stream)
                            : launch_lateral<T, Math, 64, true, false>(p, walkers, stream);
        case 128:
            return resident ? launch_lateral<T, Math, 128, true, true>(p, walkers, stream)
                            : launch_lateral<T, Math, 128, true, false>(p, walkers, stream);
        default:
            STD_TORCH_CHECK(false, "columns: expected 16, 64 or 128, got ", columns);
    }
}

}  // namespace

void lateral_cuda(Tensor fast, Tensor weight, std::optional<Tensor> scale, std::optional<Tensor> shift,
                  int64_t alpha, bool relu, bool tf32, int64_t columns, int64_t walkers, Tensor out) {
    const OnDevice device(fast);
    check_frames(fast, out, alpha);
    STD_TORCH_CHECK(weight.dim() == 3 && weight.is_contiguous() && weight.size(0) == out.size(1) &&
                        weight.size(1) >= 1 && weight.size(1) < kMaxTaps && weight.size(2) >= 1 &&
                        weight.size(2) == fast.size(1),
                    "weight: expected contiguous [", out.size(1), ", taps, ", fast.size(1), "]");
    STD_TORCH_CHECK(walkers >= 0, "walkers: expected at least one, or none, got ", walkers);
    with_dtype(fast, "fast", [&](auto zero) {
        using T = decltype(zero);
        LateralParams<T> p{};
        p.x = data_of<T>(fast, "fast");
        p.weights = data_of<T>(weight, "weight");
        p.out = data_of<T>(out, "out");
        p.outputs = static_cast<int>(out.size(1));
        p.scale = floats_or_null(scale, p.outputs, "scale");
        p.shift = floats_or_null(shift, p.outputs, "shift");
        if (out.numel() == 0) return;
        p.x_pitch = fast.numel() ? pixel_pitch(fast, "fast") : 0;
        p.out_pitch = pixel_pitch(out, "out");
        STD_TORCH_CHECK(out.size(3) * out.size(4) < kMaxFramePixels,
                        "expected frames of fewer than 2^30 pixels");
        p.frame_pixels = static_cast<int>(out.size(3) * out.size(4));
        p.frames_out = static_cast<int>(out.size(2));
        p.frames = static_cast<int>(fast.size(2));
        p.pixels = out.size(0) * out.size(2) * p.frame_pixels;
        p.tiles = as_int(ceil_div<int64_t>(p.pixels, kLateralRows), "tiles");
        p.alpha = static_cast<int>(alpha);
        p.taps = static_cast<int>(weight.size(1));
        p.channels = static_cast<int>(fast.size(1));
        p.relu = relu;
        p.wide = fits_vectors(p.out, p.out_pitch);
        if constexpr (sizeof(T) == 4) {
            tf32 ? launch_lateral<T, Tf32Math>(p, columns, walkers, device.stream())
                 : launch_lateral<T, ExactMath>(p, columns, walkers, device.stream());
        } else {
            launch_lateral<T, HalfMath>(p, columns, walkers, device.stream());
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
        GatherParams<T> p{};
        p.x = data_of<T>(x, "x");
        p.out = data_of<T>(out, "out");
        if (base) {
            for (int d = 0; d < 5; ++d)
                STD_TORCH_CHECK(base->dim() == 5 && base->size(d) == out.size(d),
                                "base: expected the result's shape");
            p.base = data_of<T>(*base, "base");
        }
        if (out.numel() == 0) return;
        p.x_pitch = pixel_pitch(x, "x");
        p.out_pitch = pixel_pitch(out, "out");
        p.base_pitch = base ? pixel_pitch(*base, "base") : 0;
        p.frame_pixels = out.size(3) * out.size(4);
        p.pixels = out.size(0) * out.size(2) * p.frame_pixels;
        p.alpha = static_cast<int>(alpha);
        p.channels = static_cast<int>(x.size(1));
        p.total = static_cast<int>(out.size(1));
        constexpr int kVector = 16 / sizeof(T);
        const bool vectors = fits_vectors(p.x, p.x_pitch) && fits_vectors(p.out, p.out_pitch) &&
                             p.channels % kVector == 0 && (!base || fits_vectors(p.base, p.base_pitch));
        const int64_t blocks = ceil_div<int64_t>(p.pixels * (p.total / (vectors ? kVector : 1)), 256);
        const Dim3 grid(blocks < kGatherBlocks ? blocks : kGatherBlocks);
        if (vectors) {
            SF_LAUNCH((gather_kernel<T, kVector>), grid, Dim3(256), 0, device.stream(), p);
        } else {
            SF_LAUNCH((gather_kernel<T, 1>), grid, Dim3(256), 0, device.stream(), p);
        }
    });
}

}  // namespace slowfast::cuda
