// Memory layout of maps [N, C, T, H, W], the rule of every native op; ops/_memory.py has it for Python.
#pragma once

#include "common/torch.h"

namespace slowfast {

// Elements from one pixel to the next of a channels-last tensor or a channel slice of one; the whole N, T, H,
// W range is then one run of pixels.
inline int64_t pixel_pitch(const Tensor& x, const char* what) {
    STD_TORCH_CHECK(x.dim() == 5, what, ": expected 5 dimensions (N, C, T, H, W), got ", x.dim());
    const int64_t p = x.size(4) > 1   ? x.stride(4)
                      : x.size(3) > 1 ? x.stride(3)
                      : x.size(2) > 1 ? x.stride(2)
                      : x.size(0) > 1 ? x.stride(0)
                                      : x.size(1);
    int64_t step = p;
    bool dense = x.size(1) <= 1 || x.stride(1) == 1;
    for (int d : {4, 3, 2, 0}) {
        dense = dense && (x.size(d) <= 1 || x.stride(d) == step);
        step *= x.size(d);
    }
    STD_TORCH_CHECK(x.numel() == 0 || (dense && p >= x.size(1)), what,
                    ": expected channels_last_3d memory or a channel slice of it");
    return p;
}

}  // namespace slowfast
