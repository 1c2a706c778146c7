// The detection head up to its classifier: a clip reduced over time, RoIAlign, the maximum over the bins.
//
// The reduction comes first, once per cell: for few boxes by the block of the box itself, into shared memory;
// for many by a kernel of its own, into maps that the blocks of the boxes read.
#pragma once

#include "cuda/roi_taps.cuh"

namespace slowfast::cuda {

constexpr int kHeadThreads = 256;
// Channels of one block: few where it reduces for itself, into shared memory, or where blocks are few; else four
// channels a lane, for every block makes the tables of its box again.
constexpr int kHeadSlice = 32, kHeadWideSlice = 128;
constexpr int kHeadTileH = 4, kHeadTileW = 4;

template <class T>
struct HeadPathway {
    const T* x;     // channels last
    int64_t pitch;  // elements from cell to cell
    int channels, frames;
    int first;         // of its channels in the result
    int first_mapped;  // of its slices in the reduced maps
    int first_slice;   // of its slices
};

template <class T>
struct RoiHeadParams {
    Rois rois;
    int count;
    HeadPathway<T> path[2];
    bool max;      // over time; else the mean
    int slices;    // of all pathways
    float* maps;   // [clip][cell][mapped][kHeadWideSlice]; null: every block reduces for itself
    int mapped;    // slices of kHeadWideSlice channels
    T* out;        // [count][channels]
    int* arg;      // [count][channels]: bin of the maximum, -1 where the box is not finite
    int channels;  // of all pathways
};

template <class T>
SF_DEVICE HeadPathway<T> head_pathway(const RoiHeadParams<T>& a, int slice) {
    return slice < a.path[1].first_slice ? a.path[0] : a.path[1];
}

// Whether `value`, of frame or bin `i`, comes before `best`, of `where` (-1: none yet). NaN is the greatest,
// of equals the first.
SF_DEVICE bool comes_before(float value, int i, float best, int where) {
    if (where < 0) return true;
    if (value != value) return best == best || i < where;
    return best == best && (value > best || (value == best && i < where));
}

// acc = mean or maximum over the frames of V channels of one cell; x: its first frame, size: frame to frame.
template <class T, int V>
SF_DEVICE void reduce_time(float* acc, const T* x, int64_t size, int frames, bool max) {
    constexpr int kAtOnce = 4;  // loads under way
    for (int t = 0; t < frames; t += kAtOnce) {
        Vec<T, V> v[kAtOnce];
        SF_UNROLL
        for (int u = 0; u < kAtOnce; ++u) {
            v[u] = {};
            if (t + u < frames) v[u] = load_readonly<V>(x + (t + u) * size);
        }
        SF_UNROLL
        for (int u = 0; u < kAtOnce; ++u) {
            if (t + u >= frames) break;
            const Vec<float, V> f = to_float(v[u]);
            SF_UNROLL
            for (int i = 0; i < V; ++i) {
                if (!max) {
                    acc[i] = t + u == 0 ? f[i] : acc[i] + f[i];
                } else if (comes_before(f[i], t + u, acc[i], t + u - 1)) {
                    acc[i] = f[i];
                }
            }
        }
    }
    if (max) return;
    const float scale = div_rn(1.0f, static_cast<float>(frames));
    SF_UNROLL
    for (int i = 0; i < V; ++i) acc[i] *= scale;
}

// V channels of one cell of the reduced maps, as vectors: the compiler, which does not know that they are
// aligned, would store them one by one.
template <int V>
SF_DEVICE void store_reduced(float* to, const float* acc) {
    constexpr int kVector = V < 4 ? V : 4;
    SF_UNROLL
    for (int i = 0; i < V; i += kVector) {
        Vec<float, kVector> v;
        SF_UNROLL
        for (int k = 0; k < kVector; ++k) v[k] = acc[i + k];
        store(to + i, v);
    }
}

// One block: a tile of one clip's cells, one slice of the channels, if some box reaches the tile.
template <class T, int V>
SF_KERNEL SF_LAUNCH_BOUNDS(kHeadThreads, 3) void roi_reduce_kernel(RoiHeadParams<T> a) {
    constexpr int kLanes = kHeadWideSlice / V, kSlots = kHeadThreads / kLanes;
    SF_SHARED(int, reached, 1);
    const int height = a.rois.extent[1], width = a.rois.extent[2];
    const int tiles_w = ceil_div(width, kHeadTileW), tiles_h = ceil_div(height, kHeadTileH);
    const int slice = block_x() % a.slices;
    int item = block_x() / a.slices;
    const int x0 = item % tiles_w * kHeadTileW;
    item /= tiles_w;
    const int y0 = item % tiles_h * kHeadTileH, clip = item / tiles_h;

    if (thread_x() == 0) reached[0] = 0;
    syncthreads();
    for (int64_t k = thread_x(); k < a.count; k += kHeadThreads) {
        const float* row = a.rois.rows + k * a.rois.columns;
        if (roi_valid_clip(a.rois, row) == clip &&
            roi_reaches(roi_axis_of<1>(a.rois, row), a.rois.bins[1], y0, y0 + kHeadTileH) &&
            roi_reaches(roi_axis_of<2>(a.rois, row), a.rois.bins[2], x0, x0 + kHeadTileW)) {
            reached[0] = 1;
            break;
        }
    }
    syncthreads();
    if (reached[0] == 0) return;

    const HeadPathway<T> p = head_pathway(a, slice);
    const int c = thread_x() % kLanes * V, from = (slice - p.first_slice) * kHeadWideSlice + c;
    if (from >= p.channels) return;
    const int64_t cells = int64_t(height) * width;
    for (int cell = thread_x() / kLanes; cell < kHeadTileH * kHeadTileW; cell += kSlots) {
        const int y = y0 + cell / kHeadTileW, x = x0 + cell % kHeadTileW;
        if (y >= height || x >= width) continue;
        const int64_t at = int64_t(y) * width + x;
        float acc[V] = {};
        reduce_time<T, V>(acc, p.x + (clip * p.frames * cells + at) * p.pitch + from, cells * p.pitch,
                          p.frames, a.max);
        store_reduced<V>(a.maps + ((clip * cells + at) * a.mapped + slice) * kHeadWideSlice + c, acc);
    }
}

// One block: one box, one slice of kSlice channels. V: channels of a vector of the pathways, which it reduces into
// dynamic shared memory; 0: reduced maps are there.
// Large: for maps on which a bin may have more cells than a table.
template <class T, int V, int kSlice, bool Large>
SF_KERNEL SF_LAUNCH_BOUNDS(kHeadThreads, Large ? 2 : 3) void roi_max_kernel(RoiHeadParams<T> a) {
    constexpr int kVector = 4, kLanes = kSlice / kVector, kSlots = kHeadThreads / kLanes;
    constexpr int kWarps = kHeadThreads / kWarp;
    SF_SHARED(float, weights_y, AxisTable::kWeights);
    SF_SHARED(float, weights_x, AxisTable::kWeights);
    SF_SHARED(CellRange, ranges, 2 * AxisTable::kBins);
    SF_SHARED(float, best_of, kWarps* kSlice);
    SF_SHARED(int, where_of, kWarps* kSlice);
    SF_SHARED(int, extremes, 4);  // of the cells under the box: -first and end, y and x

    const int slice = block_x() % a.slices, roi = block_x() / a.slices;
    const HeadPathway<T> p = head_pathway(a, slice);
    const int first = (slice - p.first_slice) * kSlice;
    const int bh = a.rois.bins[1], bw = a.rois.bins[2];
    const int height = a.rois.extent[1], width = a.rois.extent[2];
    const int64_t cells = int64_t(height) * width;
    const int lane_c = thread_x() % kLanes * kVector, slot = thread_x() / kLanes;
    const bool active = first + lane_c < p.channels;
    const float* row = a.rois.rows + int64_t(roi) * a.rois.columns;
    const int clip = roi_valid_clip(a.rois, row);

    float best[kVector] = {};
    int where[kVector];
    SF_UNROLL
    for (int i = 0; i < kVector; ++i) where[i] = -1;

    if (clip >= 0) {
        const RoiAxis y_axis = roi_axis_of<1>(a.rois, row), x_axis = roi_axis_of<2>(a.rois, row);
        const AxisTable ys{weights_y, ranges, roi_span(y_axis, height)};
        const AxisTable xs{weights_x, ranges + AxisTable::kBins, roi_span(x_axis, width)};
        const bool tables = !Large || (ys.most(bh) > 0 && xs.most(bw) > 0);
        const int ny = tables ? ys.most(bh) : bh, nx = tables ? xs.most(bw) : bw;

        const float* map = a.maps + (clip * cells * a.mapped + p.first_mapped) * kHeadWideSlice + first;
        int64_t pitch = int64_t(a.mapped) * kHeadWideSlice, map_width = width;
        int map_y = 0, map_x = 0;  // of the map's first cell
        if constexpr (V > 0) {
            if (thread_x() < 4) extremes[thread_x()] = thread_x() % 2 == 0 ? -(1 << 30) : 0;
            syncthreads();
            for (int i = thread_x(); i < bh + bw; i += kHeadThreads) {
                const bool is_y = i < bh;
                const CellRange r =
                    is_y ? roi_range(y_axis, i, height, height) : roi_range(x_axis, i - bh, width, width);
                if (r.count == 0) continue;
                atomic_max(extremes + (is_y ? 0 : 2), -r.lo);
                atomic_max(extremes + (is_y ? 1 : 3), r.lo + r.count);
            }
            syncthreads();
            map_y = -extremes[0];
            map_x = -extremes[2];
            const int rows = extremes[1] - map_y, columns = extremes[3] - map_x;
            const int under = rows > 0 && columns > 0 ? rows * columns : 0;
            float* shared = dynamic_shared<float>();
            constexpr int kReduceLanes = kSlice / V;
            const int c = thread_x() % kReduceLanes * V;
            for (int cell = thread_x() / kReduceLanes; cell < under; cell += kHeadThreads / kReduceLanes) {
                float acc[V] = {};
                if (first + c < p.channels) {
                    const int64_t at = int64_t(map_y + cell / columns) * width + map_x + cell % columns;
                    reduce_time<T, V>(acc, p.x + (clip * p.frames * cells + at) * p.pitch + first + c,
                                      cells * p.pitch, p.frames, a.max);
                }
                store_reduced<V>(shared + cell * kSlice + c, acc);
            }
            map = shared;
            pitch = kSlice;
            map_width = columns;
        }
        map += lane_c;

        for (int y0 = 0; y0 < bh; y0 += ny) {
            for (int x0 = 0; x0 < bw; x0 += nx) {
                const int my = ny < bh - y0 ? ny : bh - y0, mx = nx < bw - x0 ? nx : bw - x0;
                if (tables) {
                    syncthreads();  // the tables of before are no longer read
                    for (int i = thread_x(); i < my + mx; i += kHeadThreads) {
                        // Not by a reference to either axis, which would have to be in memory for that.
                        if (i < my) {
                            ys.fill(y_axis, y0 + i, i, height);
                            ys.ranges[i].lo -= map_y;
                        } else {
                            xs.fill(x_axis, x0 + i - my, i - my, width);
                            xs.ranges[i - my].lo -= map_x;
                        }
                    }
                    syncthreads();
                }
                const int bins = active ? my * mx : 0;
                for (int b = slot; b < bins; b += kSlots) {
                    const int y = b / mx, x = b % mx, bin = (y0 + y) * bw + x0 + x;
                    float acc[kVector] = {};
                    if (!Large || tables) {
                        add_bin<float, kVector>(acc, map, pitch, map_width, ys, y, xs, x, 1.0f);
                    } else {
                        add_bin_by_samples<float, kVector>(acc, map, pitch, map_width, y_axis, y0 + y, height,
                                                           x_axis, x0 + x, 1.0f);
                    }
                    SF_UNROLL
                    for (int i = 0; i < kVector; ++i) {
                        if (comes_before(acc[i], bin, best[i], where[i])) {
                            best[i] = acc[i];
                            where[i] = bin;
                        }
                    }
                }
            }
        }
    }

    // The slots of a warp, then the warps.
    SF_UNROLL
    for (int i = 0; i < kVector; ++i) {
        SF_UNROLL
        for (int lanes = kLanes; lanes < kWarp; lanes *= 2) {
            const float other = shfl_xor_sync(best[i], lanes);
            const int bin = shfl_xor_sync(where[i], lanes);
            if (bin >= 0 && comes_before(other, bin, best[i], where[i])) {
                best[i] = other;
                where[i] = bin;
            }
        }
    }
    if (lane() < kLanes) {
        store(best_of + warp() * kSlice + lane_c, bit_cast<Vec<float, kVector>>(best));
        store(where_of + warp() * kSlice + lane_c, bit_cast<Vec<int, kVector>>(where));
    }
    syncthreads();
    const int c = thread_x();
    if (c >= kSlice || first + c >= p.channels) return;
    float value = bit_cast<float>(0x7fc00000u);
    int bin = -1;
    for (int w = 0; w < kWarps; ++w) {
        const int i = where_of[w * kSlice + c];
        if (i >= 0 && comes_before(best_of[w * kSlice + c], i, value, bin)) {
            value = best_of[w * kSlice + c];
            bin = i;
        }
    }
    const int64_t at = int64_t(roi) * a.channels + p.first + first + c;
    a.out[at] = from_float<T>(value);
    a.arg[at] = bin;
}

// --- Backward ----------------------------------------------------------------------------------------------

constexpr int kHeadBwdSlice = 64;  // channels of one block

template <class T>
struct RoiHeadBwdParams {
    Rois rois;
    int count;
    const T* grad;  // [count][channels]
    const int* arg;
    int64_t grad_pitch, arg_pitch;
    T* dx;              // [clip][frame][cell][channels]
    const T* features;  // of the forward, for the maximum over time; else null
    int64_t pitch;      // of the features
    int channels, frames, slices;
    int tile_h,
        tile_w;  // cells of one block: tile_h * tile_w * kHeadBwdSlice floats of dynamic shared memory
};

// One block: a tile of one clip's cells, one slice of the channels, all frames. It walks the boxes in order;
// a thread has one channel and every kSlots-th column, so that every sum is one thread's.
template <class T, int V>
SF_KERNEL SF_LAUNCH_BOUNDS(kHeadThreads, 3) void roi_head_bwd_kernel(RoiHeadBwdParams<T> a) {
    constexpr int kSlots = kHeadThreads / kHeadBwdSlice;
    static_assert((kSlots & (kSlots - 1)) == 0, "columns modulo the slots are masked");
    constexpr int kGroup = 4, kWeights = 1024, kBins = 128;  // boxes at once, and what the tables of one hold
    SF_SHARED(float, weights, kGroup* kWeights);
    SF_SHARED(CellRange, ranges, kGroup * kBins);
    SF_SHARED(int, list, kHeadThreads);
    SF_SHARED(uint32_t, warps, kHeadThreads / kWarp);
    float* map = dynamic_shared<float>();

    const int height = a.rois.extent[1], width = a.rois.extent[2];
    const int tiles_w = ceil_div(width, a.tile_w), tiles_h = ceil_div(height, a.tile_h);
    const int c0 = block_x() % a.slices * kHeadBwdSlice;
    int item = block_x() / a.slices;
    const int x0 = item % tiles_w * a.tile_w;
    item /= tiles_w;
    const int y0 = item % tiles_h * a.tile_h, clip = item / tiles_h;
    const int y1 = y0 + a.tile_h < height ? y0 + a.tile_h : height;
    const int x1 = x0 + a.tile_w < width ? x0 + a.tile_w : width;
    const int bh = a.rois.bins[1], bw = a.rois.bins[2];
    const int lane_c = thread_x() % kHeadBwdSlice, slot = thread_x() / kHeadBwdSlice;
    const bool active = c0 + lane_c < a.channels;

    for (int i = thread_x(); i < a.tile_h * a.tile_w * kHeadBwdSlice; i += kHeadThreads) map[i] = 0.0f;
    const auto add = [&](int y, int x, float value) {
        if (y >= y0 && y < y1 && x >= x0 && x < x1 && x % kSlots == slot)
            map[((y - y0) * a.tile_w + x - x0) * kHeadBwdSlice + lane_c] += value;
    };

    for (int64_t k0 = 0; k0 < a.count; k0 += kHeadThreads) {
        const int64_t k = k0 + thread_x();
        bool hit = false;
        if (k < a.count) {
            const float* row = a.rois.rows + k * a.rois.columns;
            hit = roi_valid_clip(a.rois, row) == clip &&
                  roi_reaches(roi_axis_of<1>(a.rois, row), bh, y0, y1) &&
                  roi_reaches(roi_axis_of<2>(a.rois, row), bw, x0, x1);
        }
        const int hits = list_hits(hit, static_cast<int>(k), warps, list);
        for (int g0 = 0; g0 < hits; g0 += kGroup) {
            const int group = kGroup < hits - g0 ? kGroup : hits - g0;
            for (int i = thread_x(); i < group * (bh + bw); i += kHeadThreads) {
                const int g = i / (bh + bw), b = i % (bh + bw);
                const float* row = a.rois.rows + int64_t(list[g0 + g]) * a.rois.columns;
                const RoiAxis y_axis = roi_axis_of<1>(a.rois, row), x_axis = roi_axis_of<2>(a.rois, row);
                const int span_y = roi_span(y_axis, height), span_x = roi_span(x_axis, width);
                if (bh + bw > kBins || int64_t(bh) * span_y + int64_t(bw) * span_x > kWeights) continue;
                CellRange* of_box = ranges + g * kBins;
                float* w = weights + g * kWeights;
                if (b < bh) {
                    AxisTable{w, of_box, span_y}.fill(y_axis, b, b, height);
                } else {
                    AxisTable{w + bh * span_y, of_box + bh, span_x}.fill(x_axis, b - bh, b - bh, width);
                }
            }
            syncthreads();
            for (int g = 0; active && g < group; ++g) {
                const int64_t box = list[g0 + g];
                const int bin = a.arg[box * a.arg_pitch + c0 + lane_c];
                if (bin < 0 || bin >= bh * bw) continue;
                const float grad = to_float(a.grad[box * a.grad_pitch + c0 + lane_c]);
                const float* row = a.rois.rows + box * a.rois.columns;
                const RoiAxis y_axis = roi_axis_of<1>(a.rois, row), x_axis = roi_axis_of<2>(a.rois, row);
                const int span_y = roi_span(y_axis, height), span_x = roi_span(x_axis, width);
                const int y = bin / bw, x = bin % bw;
                if (bh + bw > kBins || int64_t(bh) * span_y + int64_t(bw) * span_x > kWeights) {
                    const float samples_y = static_cast<float>(y_axis.grid);
                    const float samples_x = static_cast<float>(x_axis.grid);
                    roi_taps(y_axis, y, height, [&](int cell_y, float wy) {
                        const float w = div_rn(wy, samples_y);
                        roi_taps(x_axis, x, width, [&](int cell_x, float wx) {
                            add(cell_y, cell_x, w * div_rn(wx, samples_x) * grad);
                        });
                    });
                    continue;
                }
                const CellRange yr = ranges[g * kBins + y], xr = ranges[g * kBins + bh + x];
                const float* wy = weights + g * kWeights + y * span_y;
                const float* wx = weights + g * kWeights + bh * span_y + x * span_x;
                const int cell_y0 = yr.lo > y0 ? yr.lo : y0, cell_x0 = xr.lo > x0 ? xr.lo : x0;
                const int cell_y1 = yr.lo + yr.count < y1 ? yr.lo + yr.count : y1;
                const int cell_x1 = xr.lo + xr.count < x1 ? xr.lo + xr.count : x1;
                const int mine = cell_x0 + ((slot - cell_x0) & (kSlots - 1));  // this slot's first column
                for (int j = cell_y0; j < cell_y1; ++j) {
                    const float w = wy[j - yr.lo];
                    if (w < 0.0f) continue;
                    float* map_row = map + ((j - y0) * a.tile_w - x0) * kHeadBwdSlice + lane_c;
                    for (int i = mine; i < cell_x1; i += kSlots) {
                        const float weight = wx[i - xr.lo];
                        if (weight >= 0.0f) map_row[i * kHeadBwdSlice] += w * weight * grad;
                    }
                }
            }
            syncthreads();  // the tables are no longer read
        }
    }
    syncthreads();

    // To all frames, or to the first that has the maximum.
    constexpr int kLanes = kHeadBwdSlice / V;
    const int c = thread_x() % kLanes * V;
    if (c0 + c >= a.channels) return;
    const int64_t cells = int64_t(height) * width;
    const float scale = a.features ? 1.0f : div_rn(1.0f, static_cast<float>(a.frames));
    for (int i = thread_x() / kLanes; i < (y1 - y0) * (x1 - x0); i += kHeadThreads / kLanes) {
        const int y = i / (x1 - x0), x = i % (x1 - x0);
        const int64_t at = clip * a.frames * cells + int64_t(y0 + y) * width + x0 + x;
        Vec<float, V> g;
        SF_UNROLL
        for (int v = 0; v < V; ++v) g[v] = map[(y * a.tile_w + x) * kHeadBwdSlice + c + v] * scale;
        T* to = a.dx + at * a.channels + c0 + c;
        const int64_t size = cells * a.channels;
        if (a.features == nullptr) {
            const Vec<T, V> value = from_float<T>(g);
            for (int t = 0; t < a.frames; ++t) store_result(to + t * size, value);
            continue;
        }
        float best[V] = {};
        int where[V];
        SF_UNROLL
        for (int v = 0; v < V; ++v) where[v] = -1;
        const T* from = a.features + at * a.pitch + c0 + c;
        for (int t = 0; t < a.frames; ++t) {
            const Vec<float, V> f = to_float(load_readonly<V>(from + t * cells * a.pitch));
            SF_UNROLL
            for (int v = 0; v < V; ++v) {
                if (comes_before(f[v], t, best[v], where[v])) {
                    best[v] = f[v];
                    where[v] = t;
                }
            }
        }
        for (int t = 0; t < a.frames; ++t) {
            Vec<float, V> mine;
            SF_UNROLL
            for (int v = 0; v < V; ++v) mine[v] = where[v] == t ? g[v] : 0.0f;
            store_result(to + t * size, from_float<T>(mine));
        }
    }
}

}  // namespace slowfast::cuda
