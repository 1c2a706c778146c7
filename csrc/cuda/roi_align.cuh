// RoIAlign over channels-last maps: a frame's box, a box per frame (tube) or a box in time as well (volume).
#pragma once

#include "cuda/roi_taps.cuh"

namespace slowfast::cuda {

enum class RoiMode { frame, tube, volume };

template <class T>
struct RoiAlignParams {
    Rois rois;
    RoiMode mode;
    int count;       // boxes, or tubes
    T* x;            // the maps, channels last; written by the backward
    int64_t pitch;   // elements from cell to cell of x
    T* y;            // [count][frames_out][bins y][bins x][channels]; read by the backward
    int frames_out;  // time bins of a volume, else the maps' frames
    int channels;
    int lanes_log2;    // threads side by side on channels, each with a vector of them
    int slices;        // of the channels
    int frames_block;  // frames of one block, for mode frame only
};

constexpr int kRoiThreads = 256;
constexpr int kRoiTimeWeights = 512;  // frames that one time bin may have in a table

// One block: some bins at a time of one box, one slice of the channels, `frames_block` frames.
// Large: for maps on which a bin may have more cells than a table.
template <class T, int V, bool Large>
SF_KERNEL SF_LAUNCH_BOUNDS(kRoiThreads, 2) void roi_align_kernel(RoiAlignParams<T> a) {
    SF_SHARED(float, weights_y, AxisTable::kWeights);
    SF_SHARED(float, weights_x, AxisTable::kWeights);
    SF_SHARED(float, weights_t, kRoiTimeWeights);
    SF_SHARED(CellRange, ranges, 2 * AxisTable::kBins + 1);

    const int lanes = 1 << a.lanes_log2, slots = kRoiThreads >> a.lanes_log2;
    const int slot = thread_x() >> a.lanes_log2;
    const int blocks_t = ceil_div(a.frames_out, a.frames_block);
    const int slice = block_x() % a.slices, item = block_x() / a.slices;
    const int roi = item / blocks_t, t0 = item % blocks_t * a.frames_block;
    const int t1 = t0 + a.frames_block < a.frames_out ? t0 + a.frames_block : a.frames_out;
    const int c = (slice * lanes + (thread_x() & (lanes - 1))) * V;
    const bool active = c < a.channels;
    const int bh = a.rois.bins[1], bw = a.rois.bins[2];
    const int frames = a.rois.extent[0], height = a.rois.extent[1], width = a.rois.extent[2];

    const int64_t box = a.mode == RoiMode::tube ? int64_t(roi) * frames + t0 : roi;
    const float* row = a.rois.rows + box * a.rois.columns;
    T* out = a.y + (int64_t(roi) * a.frames_out + t0) * bh * bw * a.channels + c;
    const int clip = roi_valid_clip(a.rois, row);
    if (clip < 0) {
        float nan[V];
        fill_nan<V>(nan);
        const Vec<T, V> value = from_float<T>(bit_cast<Vec<float, V>>(nan));
        for (int64_t b = slot; active && b < int64_t(t1 - t0) * bh * bw; b += slots)
            store(out + b * a.channels, value);
        return;
    }

    const RoiAxis y_axis = roi_axis_of<1>(a.rois, row), x_axis = roi_axis_of<2>(a.rois, row);
    RoiAxis t_axis{};
    int stride_t = 0;
    if (a.mode == RoiMode::volume) {
        t_axis = roi_axis_of<0>(a.rois, row);
        stride_t = roi_span(t_axis, frames);
    }
    const AxisTable ys{weights_y, ranges, roi_span(y_axis, height)};
    const AxisTable xs{weights_x, ranges + AxisTable::kBins, roi_span(x_axis, width)};
    const bool tables = !Large || (ys.most(bh) > 0 && xs.most(bw) > 0 && stride_t <= kRoiTimeWeights);
    const int ny = tables ? ys.most(bh) : bh, nx = tables ? xs.most(bw) : bw;
    const int64_t frame_size = int64_t(height) * width * a.pitch;
    const T* maps = a.x + clip * frames * frame_size + c;

    for (int y0 = 0; y0 < bh; y0 += ny) {
        for (int x0 = 0; x0 < bw; x0 += nx) {
            const int my = ny < bh - y0 ? ny : bh - y0, mx = nx < bw - x0 ? nx : bw - x0;
            if (tables) {
                syncthreads();  // the tables of before are no longer read
                for (int i = thread_x(); i < my + mx + 1; i += kRoiThreads) {
                    const bool is_y = i < my, is_x = !is_y && i < my + mx;
                    if (!is_y && !is_x && a.mode != RoiMode::volume) continue;
                    const RoiAxis axis = is_y ? y_axis : is_x ? x_axis : t_axis;
                    const AxisTable table =
                        is_y   ? ys
                        : is_x ? xs
                               : AxisTable{weights_t, ranges + 2 * AxisTable::kBins, stride_t};
                    table.fill(axis,
                               is_y   ? y0 + i
                               : is_x ? x0 + i - my
                                      : t0,
                               is_y   ? i
                               : is_x ? i - my
                                      : 0,
                               is_y   ? height
                               : is_x ? width
                                      : frames);
                }
                syncthreads();
            }
            if (!active) continue;
            for (int t = t0; t < t1; ++t) {
                for (int b = slot; b < my * mx; b += slots) {
                    const int y = b / mx, x = b % mx;
                    float acc[V] = {};
                    const auto add = [&](int frame, float factor) {
                        const T* from = maps + frame * frame_size;
                        if (!Large || tables) {
                            add_bin<T, V>(acc, from, a.pitch, width, ys, y, xs, x, factor);
                        } else {
                            add_bin_by_samples<T, V>(acc, from, a.pitch, width, y_axis, y0 + y, height,
                                                     x_axis, x0 + x, factor);
                        }
                    };
                    if (!Large || tables) {
                        const bool volume = a.mode == RoiMode::volume;
                        const CellRange range = volume ? ranges[2 * AxisTable::kBins] : CellRange{t, 1};
                        SF_NO_UNROLL
                        for (int i = 0; i < range.count; ++i) {
                            const float factor = volume ? weights_t[i] : 1.0f;
                            if (factor >= 0.0f) add(range.lo + i, factor);
                        }
                    } else if (a.mode == RoiMode::volume) {
                        const float samples = static_cast<float>(t_axis.grid);
                        roi_taps(t_axis, t, frames,
                                 [&](int frame, float w) { add(frame, div_rn(w, samples)); });
                    } else {
                        add(t, 1.0f);
                    }
                    const int64_t at = (int64_t(t - t0) * bh + y0 + y) * bw + x0 + x;
                    store_result(out + at * a.channels, from_float<T>(bit_cast<Vec<float, V>>(acc)));
                }
            }
        }
    }
}

// --- Backward ----------------------------------------------------------------------------------------------

// Cells of one block, boxes whose tables are made together, bins per axis in a table.
constexpr int kRoiTileH = 4, kRoiTileW = 8, kRoiGroup = 8, kRoiChunk = 32;
constexpr int kRoiTile = 1 + kRoiTileH + kRoiTileW;  // cells of the three axes: a frame, rows, columns

// One block: the gradient of a tile of one frame, one slice of the channels. It walks the boxes in order and
// every sum is one thread's: the same bits every time.
template <class T, int V>
SF_KERNEL SF_LAUNCH_BOUNDS(kRoiThreads, 2) void roi_align_bwd_kernel(RoiAlignParams<T> a) {
    constexpr int kBox = kRoiTile * kRoiChunk;  // weights of a box: [cell of an axis][bin]
    SF_SHARED(float, weights, kRoiGroup* kBox);
    SF_SHARED(CellRange, touching, kRoiGroup * kRoiTile);  // bins of the chunk that touch a cell of an axis
    SF_SHARED(int, list, kRoiThreads);
    SF_SHARED(uint32_t, warps, kRoiThreads / kWarp);
    constexpr int kCells = 4;  // of one thread

    const int lanes = 1 << a.lanes_log2, slots = kRoiThreads >> a.lanes_log2;
    const int slot = thread_x() >> a.lanes_log2;
    const int frames = a.rois.extent[0], height = a.rois.extent[1], width = a.rois.extent[2];
    const int tiles_w = ceil_div(width, kRoiTileW), tiles_h = ceil_div(height, kRoiTileH);
    int item = block_x();
    const int c = (item % a.slices * lanes + (thread_x() & (lanes - 1))) * V;
    item /= a.slices;
    const int x0 = item % tiles_w * kRoiTileW;
    item /= tiles_w;
    const int y0 = item % tiles_h * kRoiTileH;
    item /= tiles_h;  // clip and frame
    const int frame = item % frames, clip = item / frames;
    const bool active = c < a.channels;
    const int bt = a.mode == RoiMode::volume ? a.rois.bins[0] : 1, bh = a.rois.bins[1], bw = a.rois.bins[2];
    const int chunks_t = ceil_div(bt, kRoiChunk), chunks_y = ceil_div(bh, kRoiChunk),
              chunks_x = ceil_div(bw, kRoiChunk);

    float acc[kCells][V] = {};
    const auto row_of = [&](int k) {
        const int64_t box = a.mode == RoiMode::tube ? int64_t(k) * frames + frame : k;
        return a.rois.rows + box * a.rois.columns;
    };

    for (int64_t k0 = 0; k0 < a.count; k0 += kRoiThreads) {
        const int64_t k = k0 + thread_x();
        bool hit = false;
        if (k < a.count) {
            const float* row = row_of(static_cast<int>(k));
            hit =
                roi_valid_clip(a.rois, row) == clip &&
                roi_reaches(roi_axis_of<1>(a.rois, row), bh, y0, y0 + kRoiTileH) &&
                roi_reaches(roi_axis_of<2>(a.rois, row), bw, x0, x0 + kRoiTileW) &&
                (a.mode != RoiMode::volume || roi_reaches(roi_axis_of<0>(a.rois, row), bt, frame, frame + 1));
        }
        const int hits = list_hits(hit, static_cast<int>(k), warps, list);
        for (int g0 = 0; g0 < hits; g0 += kRoiGroup) {
            const int group = kRoiGroup < hits - g0 ? kRoiGroup : hits - g0;
            for (int chunk = 0; chunk < chunks_t * chunks_y * chunks_x; ++chunk) {
                const int bx0 = chunk % chunks_x * kRoiChunk, by0 = chunk / chunks_x % chunks_y * kRoiChunk;
                const int bt0 = chunk / chunks_x / chunks_y * kRoiChunk;
                const int nx = kRoiChunk < bw - bx0 ? kRoiChunk : bw - bx0;
                const int ny = kRoiChunk < bh - by0 ? kRoiChunk : bh - by0;
                const int nt = kRoiChunk < bt - bt0 ? kRoiChunk : bt - bt0;
                const int each = nt + ny + nx;
                for (int i = thread_x(); i < group * each; i += kRoiThreads) {
                    const int g = i / each, j = i % each;
                    const float* row = row_of(list[g0 + g]);
                    float* of_box = weights + g * kBox;
                    if (j < nt) {
                        if (a.mode == RoiMode::volume) {
                            roi_weights(roi_axis_of<0>(a.rois, row), bt0 + j, frames, frame, 1, of_box + j,
                                        kRoiChunk);
                        } else {
                            of_box[j] = 1.0f;
                        }
                    } else if (j < nt + ny) {
                        roi_weights(roi_axis_of<1>(a.rois, row), by0 + j - nt, height, y0, kRoiTileH,
                                    of_box + kRoiChunk + j - nt, kRoiChunk);
                    } else {
                        roi_weights(roi_axis_of<2>(a.rois, row), bx0 + j - nt - ny, width, x0, kRoiTileW,
                                    of_box + (1 + kRoiTileH) * kRoiChunk + j - nt - ny, kRoiChunk);
                    }
                }
                syncthreads();
                for (int i = thread_x(); i < group * kRoiTile; i += kRoiThreads) {
                    const int cell = i % kRoiTile;
                    const int n = cell == 0 ? nt : cell <= kRoiTileH ? ny : nx;
                    const float* w = weights + i * kRoiChunk;
                    int first = 0, last = n;
                    while (first < n && w[first] < 0.0f) ++first;
                    while (last > first && w[last - 1] < 0.0f) --last;
                    touching[i] = {first, last - first};
                }
                syncthreads();
                for (int g = 0; active && g < group; ++g) {
                    const float* of_box = weights + g * kBox;
                    const CellRange* of_cells = touching + g * kRoiTile;
                    const CellRange in_t = of_cells[0];
                    const int64_t out = int64_t(list[g0 + g]) * a.frames_out;
                    SF_UNROLL
                    for (int r = 0; r < kCells; ++r) {
                        const int cell = slot + r * slots;
                        if (cell >= kRoiTileH * kRoiTileW) break;
                        const int cell_y = 1 + cell / kRoiTileW, cell_x = 1 + kRoiTileH + cell % kRoiTileW;
                        const CellRange in_y = of_cells[cell_y], in_x = of_cells[cell_x];
                        const float* wy = of_box + cell_y * kRoiChunk;
                        const float* wx = of_box + cell_x * kRoiChunk;
                        for (int s = in_t.lo; s < in_t.lo + in_t.count; ++s) {
                            if (of_box[s] < 0.0f) continue;
                            const int64_t at = out + (a.mode == RoiMode::volume ? bt0 + s : frame);
                            for (int y = in_y.lo; y < in_y.lo + in_y.count; ++y) {
                                if (wy[y] < 0.0f) continue;
                                const float w = of_box[s] * wy[y];
                                const T* grad = a.y + ((at * bh + by0 + y) * bw + bx0) * a.channels + c;
                                for (int x = in_x.lo; x < in_x.lo + in_x.count; ++x)
                                    if (wx[x] >= 0.0f)
                                        add_scaled(acc[r], load_readonly<V>(grad + int64_t(x) * a.channels),
                                                   w * wx[x]);
                            }
                        }
                    }
                }
                syncthreads();  // the tables are no longer read
            }
        }
    }
    if (!active) return;
    SF_UNROLL
    for (int r = 0; r < kCells; ++r) {
        const int cell = slot + r * slots;
        const int y = y0 + cell / kRoiTileW, x = x0 + cell % kRoiTileW;
        if (cell < kRoiTileH * kRoiTileW && y < height && x < width) {
            const int64_t at = ((int64_t(clip) * frames + frame) * height + y) * width + x;
            store_result(a.x + at * a.pitch + c, from_float<T>(bit_cast<Vec<float, V>>(acc[r])));
        }
    }
}

}  // namespace slowfast::cuda
