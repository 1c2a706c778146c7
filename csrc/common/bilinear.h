// RoIAlign's sampling grid along one axis of a box, and the two bilinear taps of a sample.
//
// Plain C++ for the host compiler and nvcc. RoIAlign is separable: a sample counts if it lies on the map
// along every axis, and its weight is the product of its weights along the axes. So one axis is all there is
// to define.
#pragma once

#include <math.h>
#include <stdint.h>

#if defined(__CUDACC__)
#define SF_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SF_HOST_DEVICE inline
#endif

namespace slowfast {

// Products and sums rounded one by one: a fused multiply-add would move samples between host and device, and
// a sample at the edge of the map counts or does not.
static SF_HOST_DEVICE float mul_rn(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}
static SF_HOST_DEVICE float add_rn(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fadd_rn(a, b);
#else
    return a + b;
#endif
}
static SF_HOST_DEVICE float div_rn(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fdiv_rn(a, b);
#else
    return a / b;
#endif
}
static SF_HOST_DEVICE bool is_finite(float a) {
    return a - a == 0.0f;
}

// float32 counts cells exactly up to here. A larger box has no adaptive samples: the share of them that lies
// on a map is negligible, and their positions are no longer distinct.
constexpr float kRoiMaxSize = 16777216.0f;

struct RoiAxis {
    float start, bin;  // in cells of the map
    int64_t grid;      // samples per bin; 0: the box is empty
    bool finite;       // false: the coordinates say nothing, the result is NaN
};

// One axis of a box from `low` to `high`, cut into `bins`; ratio 0 = one sample per started cell of a bin.
static SF_HOST_DEVICE RoiAxis roi_axis(float low, float high, float scale, bool aligned, int64_t bins,
                                       int64_t ratio) {
    const float offset = aligned ? -0.5f : 0.0f;
    RoiAxis a;
    a.start = add_rn(mul_rn(low, scale), offset);
    float size = add_rn(add_rn(mul_rn(high, scale), offset), -a.start);
    a.finite = is_finite(a.start) && is_finite(size);
    if (!aligned && size < 1.0f) size = 1.0f;
    a.bin = div_rn(size, static_cast<float>(bins));
    a.grid = 0;
    if (a.finite && ratio > 0) a.grid = ratio;
    if (a.finite && ratio <= 0 && size > 0.0f && size <= kRoiMaxSize)
        a.grid = static_cast<int64_t>(ceilf(a.bin));
    return a;
}

// Where sample i of a bin lies; never decreasing in i, or never
// increasing for a box whose end precedes its start.
static SF_HOST_DEVICE float roi_position(const RoiAxis& a, int64_t bin, int64_t i) {
    const float within =
        div_rn(mul_rn(add_rn(static_cast<float>(i), 0.5f), a.bin), static_cast<float>(a.grid));
    return add_rn(add_rn(a.start, mul_rn(static_cast<float>(bin), a.bin)), within);
}

// Samples [first, last) of a bin that lie on a map of `extent` cells (between -1 and extent), found by
// bisection: what a box costs is bounded by the map, however far the box reaches beyond it.
static SF_HOST_DEVICE void roi_inside(const RoiAxis& a, int64_t bin, int64_t extent, int64_t* first,
                                      int64_t* last) {
    const bool rising = a.bin >= 0.0f;
    const float end = static_cast<float>(extent);
    for (int side = 0; side < 2; ++side) {
        int64_t lo = 0,
                hi = extent > 0 ? a.grid : 0;  // first sample that has entered (side 0) or left (side 1)
        while (lo < hi) {
            const int64_t mid = lo + (hi - lo) / 2;
            const float p = roi_position(a, bin, mid);
            const bool reached =
                rising ? (side == 0 ? p >= -1.0f : p > end) : (side == 0 ? p <= end : p < -1.0f);
            if (reached)
                hi = mid;
            else
                lo = mid + 1;
        }
        *(side == 0 ? first : last) = lo;
    }
}

struct BilinearTaps {
    int64_t low, high;
    float w_low, w_high;
};

// Taps of a sample that lies on the map; outside the first and last cell's centre the border is repeated.
static SF_HOST_DEVICE BilinearTaps bilinear_taps(float position, int64_t extent) {
    const float p = position > 0.0f ? position : 0.0f;
    BilinearTaps t;
    t.low = static_cast<int64_t>(p);
    if (t.low >= extent - 1) {
        t.low = t.high = extent - 1;
        t.w_high = 0.0f;
    } else {
        t.high = t.low + 1;
        t.w_high = add_rn(p, -static_cast<float>(t.low));
    }
    t.w_low = add_rn(1.0f, -t.w_high);
    return t;
}

}  // namespace slowfast
