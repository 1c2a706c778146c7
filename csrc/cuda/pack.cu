// Host side of pack_pathways.

#include "cuda/ops.h"
#include "cuda/pack.cuh"
#include "cuda/tensor.h"

namespace slowfast::cuda {

namespace {

constexpr int64_t kMostBlocks = 65535;

template <class T>
T* clip_data(const Tensor& x, const char* what, int64_t n, int64_t c, int64_t t, int64_t h, int64_t w) {
    STD_TORCH_CHECK(x.dim() == 5 && x.size(0) == n && x.size(1) == c && x.size(2) == t && x.size(3) == h &&
                        x.size(4) == w,
                    what, ": expected shape [", n, ", ", c, ", ", t, ", ", h, ", ", w, "]");
    STD_TORCH_CHECK(x.numel() == 0 || pixel_pitch(x, what) == c, what,
                    ": expected dense channels_last_3d memory");
    return data_of<T>(x, what);
}

}  // namespace

void pack_cuda(Tensor frames, Tensor slow_index, std::vector<double> mean, std::vector<double> std,
               int64_t fast_input, bool reverse_channels, Tensor slow, Tensor fast) {
    STD_TORCH_CHECK(frames.dim() == 5 && frames.size(4) == 3, "frames: expected uint8 [N, T, H, W, 3]");
    STD_TORCH_CHECK(mean.size() == 3 && std.size() == 3, "mean, std: expected three values each");
    STD_TORCH_CHECK(fast_input >= 0 && fast_input <= 2,
                    "fast_input: expected 0 (rgb), 1 (gray) or 2 (time_diff)");
    STD_TORCH_CHECK(slow_index.dim() == 1 && slow_index.is_contiguous(),
                    "slow_index: expected contiguous int64 [S]");
    const OnDevice device(frames);
    const int64_t n = frames.size(0), t = frames.size(1), h = frames.size(2), w = frames.size(3);
    const bool colour = fast_input == 0;
    with_dtype(fast, "fast", [&](auto zero) {
        using T = decltype(zero);
        PackParams<T> a{};
        a.x = data_of<uint8_t>(frames, "frames");
        a.index = data_of<int64_t>(slow_index, "slow_index");
        a.slow = clip_data<T>(slow, "slow", n, 3, slow_index.size(0), h, w);
        a.fast = clip_data<T>(fast, "fast", n, colour ? 3 : 1, t, h, w);
        if (fast.numel() == 0) return;
        a.stride_n = frames.stride(0);
        a.stride_t = frames.stride(1);
        a.stride_h = frames.stride(2);
        a.stride_w = frames.stride(3);
        a.stride_c = frames.stride(4);
        const bool one_row = h == 1 || a.stride_h == w * a.stride_w;
        const int64_t rows = one_row ? 1 : h;
        a.pixels = one_row ? h * w : w;
        const int64_t runs =
            colour ? ceil_div<int64_t>(3 * a.pixels, kPackRun<T>) : ceil_div<int64_t>(a.pixels, kPackPixels);
        STD_TORCH_CHECK(rows * runs < (int64_t(1) << 30) && t < (1 << 30) && slow_index.size(0) < (1 << 30),
                        "expected frames of fewer than 2^", sizeof(T) == 4 ? 32 : 33, " values");
        a.rows = static_cast<int>(rows);
        a.runs = static_cast<int>(runs);
        a.frames = static_cast<int>(t);
        a.count = static_cast<int>(slow_index.size(0));
        for (int c = 0; c < 3; ++c) {
            a.scale[c] = static_cast<float>(1 / (255 * std[c]));
            a.shift[c] = static_cast<float>(-mean[c] / std[c]);
        }
        const double mean_gray = (mean[0] + mean[1] + mean[2]) / 3, std_gray = (std[0] + std[1] + std[2]) / 3;
        a.gray_scale = static_cast<float>(1 / (255000 * std_gray));
        a.gray_shift = static_cast<float>(-mean_gray / std_gray);
        a.diff_shift = static_cast<float>((mean_gray - mean_gray) / std_gray);
        a.reverse = reverse_channels;
        a.diff = fast_input == 2;

        // A run starts at a multiple of its size from the row's start.
        const auto aligned = [](const void* p, int64_t bytes) {
            return reinterpret_cast<uintptr_t>(p) % bytes == 0;
        };
        const int64_t in = colour ? kPackRun<T> : kPackPixels;
        a.wide_x = a.stride_c == 1 && a.stride_w == 3 && aligned(a.x, in) &&
                   (n == 1 || a.stride_n % in == 0) && (t == 1 || a.stride_t % in == 0) &&
                   (a.rows == 1 || a.stride_h % in == 0) && !(colour && a.reverse);
        const int64_t row = a.pixels * (colour ? 3 : 1), out = colour ? 16 / sizeof(T) : kPackPixels;
        a.wide_y = aligned(a.fast, 16) && aligned(a.slow, 16) && (a.rows == 1 || row % out == 0) &&
                   a.rows * row % out == 0;
        const int64_t blocks = ceil_div<int64_t>(rows * runs, kPackThreads);
        // A part of the frames reads the frame before it again: long ones, where there is enough work.
        a.part = static_cast<int>(n * blocks * t >= 8 * 2048 ? 8 : n * blocks * t >= 4 * 2048 ? 4 : 2);
        a.row_of = quotient_by(a.runs);
        a.clips = n;
        // Of a grid's second and third extent there are fewer than 2^16.
        const int64_t groups = ceil_div<int64_t>(t, colour ? kPackFrames : a.part);
        a.groups_once = static_cast<int>(groups < kMostBlocks ? groups : kMostBlocks);
        a.clips_once = static_cast<int>(n < kMostBlocks ? n : kMostBlocks);
        const Dim3 grid(blocks, a.groups_once, a.clips_once);
        if (colour && a.wide_x) {
            SF_LAUNCH((pack_colour_kernel<T, true>), grid, Dim3(kPackThreads), 0, device.stream(), a);
        } else if (colour) {
            SF_LAUNCH((pack_colour_kernel<T, false>), grid, Dim3(kPackThreads), 0, device.stream(), a);
        } else {
            SF_LAUNCH((pack_gray_kernel<T>), grid, Dim3(kPackThreads), 0, device.stream(), a);
        }
    });
}

}  // namespace slowfast::cuda
