// Boxes on the GPU: which cells the bins of a box touch along an axis, and with what weight.
//
// What a block needs of a box it computes itself, into shared memory: a launch of its own would cost more.
// As on the CPU (cpu/roi.h), a cell that a sample touches with weight 0 counts, a cell between two far
// samples does not: the latter has the weight kUntouched.
#pragma once

#include "common/bilinear.h"
#include "cuda/primitives.cuh"

namespace slowfast::cuda {

constexpr float kUntouched = -1.0f;

// The boxes of a call. Axes: 0 time (0 bins: no axis of the boxes), 1 y, 2 x.
struct Rois {
    const float* rows;  // batch index, x1, y1, x2, y2 (, t1, t2)
    int columns;
    float clips;
    float spatial_scale, temporal_scale;
    int ratio;
    bool aligned;
    int extent[3], bins[3];
};

// Clip of a box; -1 for a batch index that names none. The host refuses those where it may read them.
SF_DEVICE int roi_clip(const Rois& r, const float* row) {
    const float clip = row[0];
    return clip >= 0.0f && clip < r.clips && floorf(clip) == clip ? static_cast<int>(clip) : -1;
}

template <int D>
SF_DEVICE RoiAxis roi_axis_of(const Rois& r, const float* row) {
    constexpr int kLow = D == 0 ? 5 : D == 1 ? 2 : 1, kHigh = D == 0 ? 6 : kLow + 2;
    return roi_axis(row[kLow], row[kHigh], D == 0 ? r.temporal_scale : r.spatial_scale, r.aligned, r.bins[D],
                    r.ratio);
}

// Clip of a box whose coordinates are numbers, else -1.
SF_DEVICE int roi_valid_clip(const Rois& r, const float* row) {
    const bool finite = roi_axis_of<1>(r, row).finite && roi_axis_of<2>(r, row).finite &&
                        (r.bins[0] == 0 || roi_axis_of<0>(r, row).finite);
    return finite ? roi_clip(r, row) : -1;
}

// At least as many cells as lie between the first and the last that one bin touches; the four more allow for
// rounded positions.
SF_DEVICE int roi_span(const RoiAxis& a, int extent) {
    const float bin = ceilf(fabsf(a.bin)) + 4.0f;
    return bin < static_cast<float>(extent) ? static_cast<int>(bin) : extent;
}

// Calls f(cell, weight) for both taps of every sample of a bin that lies on the map. The weights are those of
// the samples: the mean's division by a.grid is the caller's.
template <class F>
SF_DEVICE void roi_taps(const RoiAxis& a, int bin, int extent, F f) {
    int64_t first = 0, last = 0;
    roi_inside(a, bin, extent, &first, &last);
    SF_NO_UNROLL
    for (int64_t i = first; i < last; ++i) {
        const BilinearTaps t = bilinear_taps(roi_position(a, bin, i), extent);
        f(static_cast<int>(t.low), t.w_low);
        f(static_cast<int>(t.high), t.w_high);
    }
}

// weights[i * step] = weight of cell lo + i, 0 <= i < count.
SF_DEVICE void roi_weights(const RoiAxis& a, int bin, int extent, int lo, int count, float* weights,
                           int step) {
    SF_NO_UNROLL
    for (int i = 0; i < count; ++i) weights[i * step] = kUntouched;
    roi_taps(a, bin, extent, [=](int cell, float weight) {
        const int i = cell - lo;
        if (i < 0 || i >= count) return;
        const float before = weights[i * step];
        weights[i * step] = (before < 0.0f ? 0.0f : before) + weight;
    });
    const float samples = static_cast<float>(a.grid);
    SF_NO_UNROLL
    for (int i = 0; i < count; ++i)
        if (weights[i * step] >= 0.0f) weights[i * step] = div_rn(weights[i * step], samples);
}

struct CellRange {
    int lo, count;
};

// Cells from the first to the last that a bin touches, at most `most`.
SF_DEVICE CellRange roi_range(const RoiAxis& a, int bin, int extent, int most) {
    int64_t first = 0, last = 0;
    roi_inside(a, bin, extent, &first, &last);
    if (first >= last) return {0, 0};
    const BilinearTaps p = bilinear_taps(roi_position(a, bin, first), extent);
    const BilinearTaps q = bilinear_taps(roi_position(a, bin, last - 1), extent);
    const int lo = static_cast<int>(p.low < q.low ? p.low : q.low);
    const int count = static_cast<int>(p.high > q.high ? p.high : q.high) + 1 - lo;
    return {lo, count < most ? count : most};
}

// Whether a box may touch cells [lo, hi) of an axis; true for some that do not.
SF_DEVICE bool roi_reaches(const RoiAxis& a, int bins, int lo, int hi) {
    const float end = add_rn(a.start, mul_rn(a.bin, static_cast<float>(bins)));
    const float from = a.start < end ? a.start : end, to = a.start < end ? end : a.start;
    // Half a unit in the last place of `end`, twice, and the border that is repeated.
    const float slack = 2.0f + (fabsf(a.start) + fabsf(end)) * 2e-7f;
    return from - slack <= static_cast<float>(hi) && to + slack >= static_cast<float>(lo);
}

// --- Tables of some bins in shared memory: forward passes --------------------------------------------------

// Weights of up to kBins bins of one axis, each from its own first cell on.
struct AxisTable {
    static constexpr int kBins = 64, kWeights = 2048;

    float* weights;     // [bin][stride]
    CellRange* ranges;  // [bin]
    int stride;         // cells a bin may have

    // Bins that fit into a table at once; 0: not even one does.
    SF_DEVICE int most(int bins) const {
        const int fit = stride > 0 ? kWeights / stride : kBins;
        const int at_once = fit < kBins ? fit : kBins;
        return at_once < bins ? at_once : bins;
    }
    // One thread fills one bin.
    SF_DEVICE void fill(const RoiAxis& a, int bin, int at, int extent) const {
        const CellRange range = roi_range(a, bin, extent, stride);
        ranges[at] = range;
        roi_weights(a, bin, extent, range.lo, range.count, weights + at * stride, 1);
    }
};

// acc += weight * p[0 .. V)
template <class T, int V>
SF_DEVICE void add_scaled(float* acc, const Vec<T, V>& v, float weight) {
    const Vec<float, V> f = to_float(v);
    SF_UNROLL
    for (int i = 0; i < V; ++i) acc[i] += weight * f[i];
}

// acc += one bin of one frame, times `factor`; bins by their place in the tables.
//   frame:  the thread's first channel of the frame's first cell
//   pitch:  elements from cell to cell, width: cells from row to row
template <class T, int V>
SF_DEVICE void add_bin(float* acc, const T* frame, int64_t pitch, int64_t width, const AxisTable& ys, int y,
                       const AxisTable& xs, int x, float factor) {
    const CellRange yr = ys.ranges[y], xr = xs.ranges[x];
    const float *wy = ys.weights + y * ys.stride, *wx = xs.weights + x * xs.stride;
    constexpr int kAtOnce = 4;  // loads under way
    SF_NO_UNROLL
    for (int j = 0; j < yr.count; ++j) {
        if (wy[j] < 0.0f) continue;
        const float w = factor * wy[j];
        const T* row = frame + ((yr.lo + j) * width + xr.lo) * pitch;
        SF_NO_UNROLL
        for (int i = 0; i < xr.count; i += kAtOnce) {
            Vec<T, V> v[kAtOnce];
            float weight[kAtOnce];
            SF_UNROLL
            for (int u = 0; u < kAtOnce; ++u) {
                weight[u] = i + u < xr.count ? wx[i + u] : kUntouched;
                v[u] = {};
                if (weight[u] >= 0.0f) v[u] = load<V>(row + (i + u) * pitch);
            }
            SF_UNROLL
            for (int u = 0; u < kAtOnce; ++u)
                if (weight[u] >= 0.0f) add_scaled(acc, v[u], w * weight[u]);
        }
    }
}

// The same sample by sample, for bins that no table holds.
template <class T, int V>
SF_DEVICE void add_bin_by_samples(float* acc, const T* frame, int64_t pitch, int64_t width,
                                  const RoiAxis& y_axis, int y, int height, const RoiAxis& x_axis, int x,
                                  float factor) {
    const float samples_y = static_cast<float>(y_axis.grid), samples_x = static_cast<float>(x_axis.grid);
    roi_taps(y_axis, y, height, [&](int row, float wy) {
        const float w = factor * div_rn(wy, samples_y);
        roi_taps(x_axis, x, static_cast<int>(width), [&](int column, float wx) {
            add_scaled(acc, load<V>(frame + (row * width + column) * pitch), w * div_rn(wx, samples_x));
        });
    });
}

template <int V>
SF_DEVICE void fill_nan(float* acc) {
    SF_UNROLL
    for (int i = 0; i < V; ++i) acc[i] = bit_cast<float>(0x7fc00000u);
}

// Bits that are set.
SF_DEVICE int count_bits(uint32_t v) {
    v -= v >> 1 & 0x55555555u;
    v = (v & 0x33333333u) + (v >> 2 & 0x33333333u);
    return static_cast<int>(((v + (v >> 4)) & 0x0f0f0f0fu) * 0x01010101u >> 24);
}

// Those of the next blockDim boxes for which `hit` is true in their thread, in order: list[0 .. result).
// warps: one word per warp. All threads take part; they have met when it returns.
SF_DEVICE int list_hits(bool hit, int mine, uint32_t* warps, int* list) {
    const uint32_t mask = ballot_sync(hit);
    syncthreads();  // the list of before is no longer read
    if (lane() == 0) warps[warp()] = mask;
    syncthreads();
    const int count = block_dim_x() / kWarp;
    int before = 0, all = 0;
    for (int i = 0; i < count; ++i) {
        const int n = count_bits(warps[i]);
        if (i < warp()) before += n;
        all += n;
    }
    if (hit) list[before + count_bits(mask & ((1u << lane()) - 1))] = mine;
    syncthreads();
    return all;
}

}  // namespace slowfast::cuda
