// Host side of pool_concat_head: shapes into arguments, activations.

#include <cmath>

#include "cpu/ops.h"

namespace slowfast {

namespace {

enum class Activation : int64_t { none = 0, softmax = 1, sigmoid = 2 };

constexpr int64_t kChannelBlock = 128;  // channels of a pooling item
// Classes and rows of a classifier item: the weights and the features of an item stay cached.
constexpr int64_t kClassBlock = 32, kRowBlock = 32;

// In place over one row of logits.
void activate(float* x, int64_t n, Activation activation) {
    if (activation == Activation::sigmoid)
        for (int64_t i = 0; i < n; ++i) x[i] = 1.0f / (1.0f + std::exp(-x[i]));
    if (activation != Activation::softmax) return;
    float top = -INFINITY;
    for (int64_t i = 0; i < n; ++i) top = x[i] > top || std::isnan(x[i]) ? x[i] : top;
    double total = 0;
    for (int64_t i = 0; i < n; ++i) total += x[i] = std::exp(x[i] - top);
    for (int64_t i = 0; i < n; ++i) x[i] = static_cast<float>(x[i] / total);
}

HeadPoolParams pool_args(const Tensor& x, int64_t pool_h, int64_t pool_w, bool merge, const char* what) {
    HeadPoolParams a{};
    a.dtype = dtype_of(x, what);
    a.pixel = pixel_stride(x, what);
    a.x = data_of(x);
    a.channels = x.size(1);
    a.t = x.size(2);
    a.h = x.size(3);
    a.w = x.size(4);
    a.window_h = pool_h ? pool_h : a.h;
    a.window_w = pool_w ? pool_w : a.w;
    STD_TORCH_CHECK(a.t > 0 && a.window_h > 0 && a.window_w > 0 && a.window_h <= a.h && a.window_w <= a.w,
                    what, ": expected at least one frame of ", a.window_h, "x", a.window_w, " cells, got ",
                    a.t, " of ", a.h, "x", a.w);
    a.merge = merge;
    return a;
}

int64_t positions_of(const HeadPoolParams& a) {
    return (a.h - a.window_h + 1) * (a.w - a.window_w + 1);
}

}  // namespace

void pool_head_run_cpu(Tensor slow, std::optional<Tensor> fast, Tensor weight, std::optional<Tensor> bias,
                       int64_t pool_h, int64_t pool_w, bool fast_first, int64_t activation, bool per_position,
                       std::optional<Tensor> workspace, Tensor out) {
    STD_TORCH_CHECK(activation >= 0 && activation <= 2,
                    "activation: expected 0 (none), 1 (softmax) or 2 (sigmoid)");
    STD_TORCH_CHECK(slow.dim() == 5 && (!fast || fast->dim() == 5), "slow, fast: expected [N, C, T, H, W]");
    const Activation act = static_cast<Activation>(activation);
    const int64_t n = slow.size(0), classes = weight.size(0);
    int64_t positions = 1;
    if (pool_h || pool_w) positions = positions_of(pool_args(slow, pool_h, pool_w, false, "slow"));
    // Averaging over the positions commutes with the linear map (except that an infinite weight may give an
    // infinity for a NaN), so only an activation in between needs them all.
    const bool merge = positions == 1 || !per_position || act == Activation::none;
    HeadPoolParams paths[2] = {pool_args(slow, pool_h, pool_w, merge, "slow"), {}};
    int count = 1;
    if (fast) {
        paths[1] = pool_args(*fast, pool_h, pool_w, merge, "fast");
        STD_TORCH_CHECK(fast->size(0) == n, "fast: expected a batch of ", n, ", as slow has, got ",
                        fast->size(0));
        STD_TORCH_CHECK(!(pool_h || pool_w) || (paths[1].h == paths[0].h && paths[1].w == paths[0].w),
                        "fast: expected the height and width of slow");
        count = 2;
    }
    const int64_t channels = paths[0].channels + (count == 2 ? paths[1].channels : 0);

    HeadLinearParams l{};
    l.dtype = dtype_of(weight, "weight");
    STD_TORCH_CHECK(
        weight.dim() == 2 && weight.size(1) == channels && (channels <= 1 || weight.stride(1) == 1),
        "weight: expected [classes, ", channels, "] with contiguous rows");
    l.channels = channels;
    l.classes = classes;
    l.weight = data_of(weight);
    l.weight_stride = weight.stride(0) * bytes_of(l.dtype);
    l.bias = floats_or_null(bias, classes, "bias");
    STD_TORCH_CHECK(out.dim() == 2 && out.size(0) == n && out.size(1) == classes && out.is_contiguous() &&
                        out.scalar_type() == ScalarType::Float,
                    "out: expected contiguous float32 [", n, ", ", classes, "]");
    if (out.numel() == 0) return;
    const int64_t rows = merge ? n : n * positions;
    const int64_t need = rows * channels + (merge ? 0 : rows * classes);
    if (!workspace) workspace = torch::stable::empty({need}, ScalarType::Float);
    STD_TORCH_CHECK(workspace->is_contiguous() && workspace->scalar_type() == ScalarType::Float &&
                        workspace->numel() >= need,
                    "workspace: expected ", need, " contiguous float32 values, got ", workspace->numel());
    float* pooled = reinterpret_cast<float*>(data_of(*workspace));
    float* result = reinterpret_cast<float*>(data_of(out));
    l.x = pooled;
    l.out = merge ? result : pooled + rows * channels;

    const int first = fast_first && count == 2 ? 1 : 0;
    paths[first].out = pooled;
    if (count == 2) paths[1 - first].out = pooled + paths[first].channels;
    int64_t blocks[2] = {0, 0}, scratch = 0;
    for (int i = 0; i < count; ++i) {
        paths[i].out_stride = channels;
        blocks[i] = (paths[i].channels + kChannelBlock - 1) / kChannelBlock;
        const int64_t bytes = paths[i].w * kChannelBlock * static_cast<int64_t>(sizeof(float));
        scratch = bytes > scratch ? bytes : scratch;
    }
    const KernelTable& k = kernels();
    for_each_item(n * (blocks[0] + blocks[1]), [&](int64_t item) {
        const int64_t clip = item / (blocks[0] + blocks[1]), b = item % (blocks[0] + blocks[1]);
        const HeadPoolParams& p = paths[b < blocks[0] ? 0 : 1];
        const int64_t c0 = (b < blocks[0] ? b : b - blocks[0]) * kChannelBlock;
        const int64_t c1 = c0 + kChannelBlock < p.channels ? c0 + kChannelBlock : p.channels;
        k.head_pool_item(p, clip, c0, c1, thread_scratch(scratch));
    });

    const int64_t class_blocks = (classes + kClassBlock - 1) / kClassBlock;
    const int64_t row_blocks = (rows + kRowBlock - 1) / kRowBlock;
    for_each_item(class_blocks * row_blocks, [&](int64_t item) {
        const int64_t r0 = item / class_blocks * kRowBlock, j0 = item % class_blocks * kClassBlock;
        k.head_linear_item(l, r0, r0 + kRowBlock < rows ? r0 + kRowBlock : rows, j0,
                           j0 + kClassBlock < classes ? j0 + kClassBlock : classes);
    });

    if (merge && act == Activation::none) return;
    for_each_item(n, [&](int64_t clip) {
        float* o = result + clip * classes;
        if (merge) return activate(o, classes, act);
        float* logits = l.out + clip * positions * classes;
        for (int64_t p = 0; p < positions; ++p) {
            activate(logits + p * classes, classes, act);
            for (int64_t j = 0; j < classes; ++j) o[j] = (p ? o[j] : 0.0f) + logits[p * classes + j];
        }
        for (int64_t j = 0; j < classes; ++j) o[j] /= static_cast<float>(positions);
    });
}

}  // namespace slowfast
