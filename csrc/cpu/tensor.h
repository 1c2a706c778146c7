// What the host side of every CPU op shares: stable-ABI tensors, checks, scratch memory, work distribution.
#pragma once

#include <atomic>
#include <cstdlib>

#include "common/layout.h"
#include "cpu/kernels.h"

namespace slowfast {

inline DType dtype_of(const Tensor& x, const char* what) {
    switch (x.scalar_type()) {
        case ScalarType::Float:
            return DType::f32;
        case ScalarType::BFloat16:
            return DType::bf16;
        case ScalarType::Half:
            return DType::f16;
        default:
            STD_TORCH_CHECK(false, what, ": expected float32, bfloat16 or float16");
    }
}
inline int64_t bytes_of(DType d) {
    return d == DType::f32 ? 4 : 2;
}

inline char* data_of(const Tensor& x) {
    return static_cast<char*>(const_cast<void*>(x.const_data_ptr()));
}

inline const float* floats_or_null(const std::optional<Tensor>& x, int64_t n, const char* what) {
    if (!x) return nullptr;
    STD_TORCH_CHECK(x->scalar_type() == ScalarType::Float && x->is_contiguous() && x->numel() == n, what,
                    ": expected ", n, " contiguous float32 values, got ", x->numel());
    return reinterpret_cast<const float*>(data_of(*x));
}

// Packed weights of exactly the bytes that the kernel will read.
inline const char* packed_of(const Tensor& packed, int64_t bytes, const char* what) {
    STD_TORCH_CHECK(
        packed.is_contiguous() && packed.numel() * static_cast<int64_t>(packed.element_size()) == bytes, what,
        ": expected ", bytes, " contiguous bytes, got ",
        packed.numel() * static_cast<int64_t>(packed.element_size()));
    return data_of(packed);
}

// Bytes from one pixel to the next.
inline int64_t pixel_stride(const Tensor& x, const char* what) {
    return pixel_pitch(x, what) * static_cast<int64_t>(x.element_size());
}

// Grow-only scratch of the calling thread, 64-byte aligned. One per purpose, bounded by the largest call.
class Scratch {
  public:
    ~Scratch() { std::free(p_); }
    char* get(int64_t bytes) {
        if (bytes > size_) {
            std::free(p_);
            size_ = (bytes + 4095) / 4096 * 4096;
            p_ = static_cast<char*>(std::aligned_alloc(4096, static_cast<size_t>(size_)));
            STD_TORCH_CHECK(p_ != nullptr, "out of memory for ", size_, " bytes of scratch");
        }
        return p_;
    }

  private:
    char* p_ = nullptr;
    int64_t size_ = 0;
};

inline char* thread_scratch(int64_t bytes) {
    static thread_local Scratch scratch;
    return scratch.get(bytes);
}

// Runs f(item) for every item on torch's threads. Threads take the next item when they are free, so an item
// must not depend on who runs it.
template <class F>
void for_each_item(int64_t items, const F& f) {
    const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
    if (items <= 1 || threads <= 1) {
        for (int64_t i = 0; i < items; ++i) f(i);
        return;
    }
    std::atomic<int64_t> next{0};
    torch::stable::parallel_for(0, threads < items ? threads : items, 1, [&](int64_t, int64_t) {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < items;) f(i);
    });
}

// Enough zeros for a pixel of any input the kernels read as padding.
const char* zeros(int64_t bytes);

}  // namespace slowfast
