// Host side of pack_pathways.

#include "cpu/ops.h"

namespace slowfast {

namespace {

// ITU-R BT.601 luma of red, green and blue.
constexpr double kLuma[3] = {0.299, 0.587, 0.114};

// Items of a call, at least: frames are cut into bands of rows until there are so many.
constexpr int64_t kItems = 64;

char* clip_data(const Tensor& x, int64_t n, int64_t c, int64_t t, int64_t h, int64_t w, DType dtype,
                const char* what) {
    STD_TORCH_CHECK(x.dim() == 5 && x.size(0) == n && x.size(1) == c && x.size(2) == t && x.size(3) == h &&
                        x.size(4) == w,
                    what, ": expected shape [", n, ", ", c, ", ", t, ", ", h, ", ", w, "]");
    STD_TORCH_CHECK(dtype_of(x, what) == dtype, what, ": expected the dtype of fast");
    STD_TORCH_CHECK(x.numel() == 0 || pixel_stride(x, what) == c * bytes_of(dtype), what,
                    ": expected dense channels_last_3d memory");
    return data_of(x);
}

}  // namespace

void pack_run_cpu(Tensor frames, Tensor slow_index, std::vector<double> mean, std::vector<double> std,
                  int64_t fast_input, bool reverse_channels, Tensor slow, Tensor fast) {
    STD_TORCH_CHECK(frames.dim() == 5 && frames.size(4) == 3 && frames.scalar_type() == ScalarType::Byte,
                    "frames: expected uint8 [N, T, H, W, 3]");
    STD_TORCH_CHECK(mean.size() == 3 && std.size() == 3, "mean, std: expected three values each");
    STD_TORCH_CHECK(fast_input >= 0 && fast_input <= 2,
                    "fast_input: expected 0 (rgb), 1 (gray) or 2 (time_diff)");
    STD_TORCH_CHECK(
        slow_index.dim() == 1 && slow_index.scalar_type() == ScalarType::Long && slow_index.is_contiguous(),
        "slow_index: expected contiguous int64 [S]");
    PackParams a{};
    a.dtype = dtype_of(fast, "fast");
    a.fast_input = static_cast<FastInput>(fast_input);
    a.frames = reinterpret_cast<const uint8_t*>(data_of(frames));
    for (int d = 0; d < 5; ++d) a.stride[d] = frames.stride(d);
    const int64_t n = frames.size(0);
    a.t = frames.size(1);
    a.h = frames.size(2);
    a.w = frames.size(3);
    a.slow_t = slow_index.size(0);
    a.slow = clip_data(slow, n, 3, a.slow_t, a.h, a.w, a.dtype, "slow");
    a.fast = clip_data(fast, n, a.fast_input == FastInput::rgb ? 3 : 1, a.t, a.h, a.w, a.dtype, "fast");

    const double mean_gray = (mean[0] + mean[1] + mean[2]) / 3, std_gray = (std[0] + std[1] + std[2]) / 3;
    for (int c = 0; c < 3; ++c) {
        const int from = reverse_channels ? 2 - c : c;
        a.scale[c] = static_cast<float>(1 / (255 * std[from]));
        a.shift[c] = static_cast<float>(-mean[from] / std[from]);
        a.gray_scale[c] = static_cast<float>(kLuma[c] / (255 * std_gray));
    }
    a.gray_shift = a.fast_input == FastInput::gray ? static_cast<float>(-mean_gray / std_gray) : 0.0f;
    a.reverse = reverse_channels;

    // Frame -> the positions it takes in the Slow clip, as a chain.
    const int64_t* index = reinterpret_cast<const int64_t*>(data_of(slow_index));
    Ints first(static_cast<size_t>(a.t), -1), next(static_cast<size_t>(a.slow_t), -1);
    for (int64_t i = a.slow_t - 1; i >= 0; --i) {
        STD_TORCH_CHECK(index[i] >= 0 && index[i] < a.t, "slow_index: expected frames in [0, ", a.t,
                        "), got ", index[i]);
        next[i] = first[index[i]];
        first[index[i]] = i;
    }
    a.slow_first = first.data();
    a.slow_next = next.data();

    const int64_t images = n * a.t;
    if (images * a.h * a.w == 0) return;
    int64_t bands = (kItems + images - 1) / images;
    bands = bands < a.h ? bands : a.h;
    const KernelTable& k = kernels();
    for_each_item(images * bands, [&](int64_t item) {
        const int64_t image = item / bands, band = item % bands;
        k.pack_item(a, image / a.t, image % a.t, a.h * band / bands, a.h * (band + 1) / bands);
    });
}

}  // namespace slowfast
