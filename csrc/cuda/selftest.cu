// Ops that no network calls. The smallest of the library shows that the CUDA path is whole (build, registration,
// launch); two others show how fast what the kernels are made of is: products of the tensor cores, and copies from
// the level-2 cache. Their results say whether all of the work was done.

#include "cuda/ops.h"
#include "cuda/tensor.h"

namespace slowfast::cuda {

namespace {

template <class T>
SF_KERNEL SF_LAUNCH_BOUNDS(128, 4) void scale_kernel(const T* x, float s, T* y, int64_t n) {
    const int64_t i = int64_t(block_x()) * block_dim_x() + thread_x();
    if (i < n) y[i] = from_float<T>(to_float(x[i]) * s);
}

constexpr int kRateThreads = 256;
constexpr int kSums = 8;  // of a warp: enough that none waits for the product before

// Products of ones, kSums * steps of each warp.
template <int Depth>
SF_KERNEL SF_LAUNCH_BOUNDS(kRateThreads, 1) void products_kernel(int steps, float* out) {
    constexpr uint32_t kOnes = 0x3f803f80;  // two of bf16
    const uint32_t a[4] = {kOnes, kOnes, kOnes, kOnes}, b[2] = {kOnes, kOnes};
    float d[kSums][4] = {};
    SF_NO_UNROLL
    for (int step = 0; step < steps; ++step) {
        SF_UNROLL
        for (int i = 0; i < kSums; ++i) {
            if constexpr (Depth == 16) {
                mma_m16n8k16<bf16>(d[i], a, b);
            } else {
                mma_m16n8k8<bf16>(d[i], a, b);
            }
        }
    }
    float sum = 0;
    SF_UNROLL
    for (int i = 0; i < kSums; ++i) sum += d[i][0] + d[i][1] + d[i][2] + d[i][3];
    out[block_x() * kRateThreads + thread_x()] = sum;
}

constexpr int kCopies = 4;                               // of a thread, in a group
constexpr int kGroupWords = kCopies * kRateThreads * 4;  // 32 bits each

// Every block adds up all of x, each from another place on, as operands come: by asynchronous copies, which pass the
// level-1 cache by. Two groups of copies are under way, or one.
SF_KERNEL SF_LAUNCH_BOUNDS(kRateThreads, 1) void read_kernel(const uint32_t* x, int groups, uint32_t* out) {
    using Words = Vec<uint32_t, 4>;
    SF_SHARED(Words, slots, 2 * kCopies * kRateThreads);
    int next = static_cast<int>(int64_t(block_x()) * groups / grid_dim_x());
    const auto slot = [&](int buffer, int copy) {
        return &slots[(buffer * kCopies + copy) * kRateThreads + thread_x()];
    };
    const auto fetch = [&](int buffer) {
        const uint32_t* from = x + int64_t(next) * kGroupWords + thread_x() * 4;
        SF_UNROLL
        for (int i = 0; i < kCopies; ++i) cp_async16(slot(buffer, i), from + i * kRateThreads * 4);
        cp_async_commit();
        next = next + 1 == groups ? 0 : next + 1;
    };
    uint32_t sum = 0;
    fetch(0);
    SF_NO_UNROLL
    for (int group = 0; group < groups; ++group) {
        if (group + 1 < groups) {
            fetch((group + 1) % 2);
            cp_async_wait<1>();
        } else {
            cp_async_wait<0>();
        }
        SF_UNROLL
        for (int i = 0; i < kCopies; ++i) {  // what this very thread has fetched: nobody to wait for
            const auto v = load<4>(slot(group % 2, i)->data);
            sum += v[0] + v[1] + v[2] + v[3];
        }
    }
    out[block_x() * kRateThreads + thread_x()] = sum;
}

// Blocks that fill `out`, a value for each of their threads.
int64_t rate_blocks(const Tensor& out) {
    STD_TORCH_CHECK(out.is_contiguous() && out.numel() % kRateThreads == 0, "out: expected ", kRateThreads,
                    " values for each block, contiguous");
    return out.numel() / kRateThreads;
}

}  // namespace

Tensor selftest_cuda(Tensor x, double s) {
    STD_TORCH_CHECK(x.is_contiguous(), "x: expected contiguous memory");
    Tensor y = torch::stable::empty_like(x);
    const OnDevice device(x);
    with_dtype(x, "x", [&](auto zero) {
        using T = decltype(zero);
        SF_LAUNCH((scale_kernel<T>), Dim3(ceil_div<int64_t>(x.numel(), 128)), Dim3(128), 0, device.stream(),
                  data_of<T>(x, "x"), static_cast<float>(s), data_of<T>(y, "y"), x.numel());
    });
    return y;
}

void selftest_products_cuda(int64_t depth, int64_t steps, Tensor out) {
    STD_TORCH_CHECK(depth == 8 || depth == 16, "depth: expected 8 or 16, got ", depth);
    const OnDevice device(out);
    const Dim3 blocks(rate_blocks(out)), threads(kRateThreads);
    const int n = as_int(steps, "steps");
    float* sums = data_of<float>(out, "out");
    if (depth == 16) {
        SF_LAUNCH((products_kernel<16>), blocks, threads, 0, device.stream(), n, sums);
    } else {
        SF_LAUNCH((products_kernel<8>), blocks, threads, 0, device.stream(), n, sums);
    }
}

void selftest_read_cuda(Tensor x, Tensor out) {
    const OnDevice device(x);
    STD_TORCH_CHECK(x.is_contiguous() && x.numel() > 0 && x.numel() % kGroupWords == 0,
                    "x: expected a multiple of ", kGroupWords, " contiguous values");
    SF_LAUNCH(read_kernel, Dim3(rate_blocks(out)), Dim3(kRateThreads), 0, device.stream(),
              reinterpret_cast<const uint32_t*>(data_of<int>(x, "x")), as_int(x.numel() / kGroupWords, "x"),
              reinterpret_cast<uint32_t*>(data_of<int>(out, "out")));
}

}  // namespace slowfast::cuda
