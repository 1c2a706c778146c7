// Host side of the polyphase lateral convolution.

#include "cpu/ops.h"
#include "cpu/panel.h"

namespace slowfast {

namespace {

// Bytes of differences that a unit holds: with its frames, the next
// unit's and the weights, half of a level-2 cache.
constexpr int64_t kUnitBytes = 80 * 1024;
constexpr int64_t kTileRows = 6;  // of a register tile with AVX-512

}  // namespace

void lateral_run_cpu(Tensor x, Tensor packed_sum, Tensor packed_first, Tensor packed_second,
                     std::optional<Tensor> shift, int64_t alpha, bool relu, Tensor out) {
    STD_TORCH_CHECK(dtype_of(x, "x") == DType::f32 && dtype_of(out, "out") == DType::f32,
                    "polyphase lateral convolution: expected float32");
    STD_TORCH_CHECK(alpha >= 2 && alpha <= 64, "alpha: expected 2 to 64, got ", alpha);
    LateralParams a{};
    a.cin = x.size(1);
    a.cout = out.size(1);
    a.t_out = out.size(2);
    a.alpha = alpha;
    const int64_t pixels = x.size(3) * x.size(4);
    STD_TORCH_CHECK(x.size(0) == out.size(0) && x.size(2) == alpha * a.t_out && x.size(3) == out.size(3) &&
                        x.size(4) == out.size(4),
                    "out: expected the clips, height and width of x and x's frames over alpha = ", alpha);
    a.packed_sum = packed_of(packed_sum, panels_bytes(a.cout, alpha - 1, a.cin, 4), "packed_sum");
    a.packed_first = packed_of(packed_first, panels_bytes(a.cout, alpha, a.cin, 4), "packed_first");
    a.packed_second = packed_of(packed_second, panels_bytes(a.cout, alpha, a.cin, 4), "packed_second");
    a.shift = floats_or_null(shift, a.cout, "shift");
    if (out.numel() == 0) return;
    a.x = data_of(x);
    a.stride_w = pixel_stride(x, "x");
    a.stride_t = a.stride_w * pixels;
    a.stride_n = a.stride_t * x.size(2);
    a.out = data_of(out);
    a.out_stride = pixel_stride(out, "out");
    a.out_stride_t = a.out_stride * pixels;
    a.relu = relu;

    // A unit is a pair of output frames of a chunk of pixels; its frames are fetched while the unit before is
    // computed. So every thread takes one long run of units.
    const int64_t pairs = (a.t_out + 1) / 2;
    const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
    const int64_t fitting = (pixels * 2 * (alpha - 1) * a.cin * 4 + kUnitBytes - 1) / kUnitBytes;
    // Near the number that fits: the one whose units share out
    // evenly among the threads, in whole tiles of rows.
    int64_t chunks = fitting, least = INT64_MAX;
    for (int64_t c = fitting > 1 ? fitting - 1 : 1; c <= fitting + 2; ++c) {
        const int64_t tiles = ((pixels + c - 1) / c + kTileRows - 1) / kTileRows;
        const int64_t time = (x.size(0) * c * pairs + threads - 1) / threads * tiles;
        if (time < least) {
            least = time;
            chunks = c;
        }
    }
    const int64_t rows = (pixels + chunks - 1) / chunks;
    chunks = (pixels + rows - 1) / rows;
    const int64_t units = x.size(0) * chunks * pairs;
    const int64_t items = units < threads ? units : threads;
    const KernelTable& k = kernels();
    const int64_t scratch = k.lateral_scratch(a, rows);
    const auto unit = [&](int64_t u) {
        const int64_t m0 = u / pairs % chunks * rows;
        return LateralUnit{u / pairs / chunks, u % pairs, m0, m0 + rows < pixels ? m0 + rows : pixels};
    };
    for_each_item(items, [&](int64_t item) {
        const int64_t end = units * (item + 1) / items;
        for (int64_t u = units * item / items; u < end; ++u) {
            const LateralUnit next = unit(u + 1 < end ? u + 1 : u);
            k.lateral_unit(a, unit(u), u + 1 < end ? &next : nullptr, thread_scratch(scratch));
        }
    });
}

}  // namespace slowfast
