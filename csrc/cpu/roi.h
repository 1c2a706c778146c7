// What the RoI kernels take. Plain structs, compiled for every instruction set.
//
// The host lists, for every bin of every axis of every box, the cells its samples touch with their weights
// (the mean over the bin's samples is in the weights). Bin b of a box is then the sum over the product of its
// axes' taps. A cell that a sample touches with weight 0 is listed: its NaN counts; a cell between two far
// samples is not.
#pragma once

#include "cpu/kernels.h"

namespace slowfast {

struct RoiTap {
    int32_t index;  // frame, row or column of the map
    float weight;
};

// Taps of all boxes: bin i of box b is taps[first[b * bins + i]] up to taps[first[b * bins + i + 1]], the
// bins of a box in the order time (volume only), y, x.
struct RoiTaps {
    const int64_t* first;
    const RoiTap* taps;
    int64_t bins;
};

struct RoiAlignParams {
    DType dtype;
    char* x;              // the maps; written by the backward
    int64_t x_stride[4];  // n, t, h, w in bytes
    int64_t t, h, w, channels;
    char* y;             // [roi][bt][bh][bw][channels], contiguous; read by the backward
    int64_t bt, bh, bw;  // bins; frame and tube have one per frame
    bool tube;           // box of (roi, frame) = roi * t + frame, else box = roi
    bool volume;         // time has taps
    RoiTaps boxes;
    const int64_t* clip;           // of every box
    const unsigned char* invalid;  // of every box: 1 = not finite, all NaN
    // Backward: boxes of group g (clip, or clip * t + frame for tubes), in order: order[group[g]..group[g +
    // 1]).
    const int64_t *group, *order;
};

constexpr int kRoiSlice = 64;  // channels of one slice of a reduced map

struct RoiPathway {
    char* x;              // the maps of one clip (backward: their gradient)
    int64_t x_stride[3];  // t, h, w in bytes
    int64_t channels, frames;
    float* map;      // [slice][h * w][kRoiSlice]: the clip reduced over time (backward: its gradient)
    int64_t offset;  // first channel of this pathway in y
};

// One clip of roi_head_pool.
struct RoiHeadParams {
    DType dtype;
    RoiPathway path[2];
    int64_t h, w, bh, bw;
    bool max;  // over time; else mean
    RoiTaps boxes;
    const unsigned char* invalid;
    const int64_t* order;  // boxes of this clip
    int64_t count;
    char* y;       // [roi][y_channels] (backward: its gradient)
    int32_t* arg;  // [roi][y_channels]: bin of the maximum, -1 where the box is not finite
    int64_t y_channels;
    const char* features;  // backward of max over time: the clip's maps, strided as path[0].x
    int64_t features_stride[3];
};

}  // namespace slowfast
