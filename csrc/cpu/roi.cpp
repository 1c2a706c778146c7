// Host side of roi_align3d and roi_head_pool: checks the boxes, lists their taps, hands out the work.

#include <cstring>

#include "common/bilinear.h"
#include "cpu/ops.h"
#include "cpu/roi.h"

namespace slowfast {

namespace {

constexpr int64_t kMaxRatio = 4096;

struct Sampling {
    float spatial_scale, temporal_scale;
    int64_t ratio;
    bool aligned;
};

Sampling sampling_of(double spatial_scale, double temporal_scale, int64_t ratio, bool aligned) {
    STD_TORCH_CHECK(ratio >= 0 && ratio <= kMaxRatio, "sampling_ratio: expected 0 to ", kMaxRatio, ", got ",
                    ratio);
    return {static_cast<float>(spatial_scale), static_cast<float>(temporal_scale), ratio, aligned};
}

// The taps of every box, and which clip it reads.
class Boxes {
  public:
    // rois: rows of batch index, x1, y1, x2, y2 (, t1, t2); bins, extent: time (0 bins = no such axis), y, x.
    Boxes(const Tensor& rois, int64_t columns, int64_t clips, const Sampling& s, const int64_t (&bins)[3],
          const int64_t (&extent)[3])
        : bins_(bins[0] + bins[1] + bins[2]) {
        STD_TORCH_CHECK(rois.scalar_type() == ScalarType::Float && rois.is_contiguous(),
                        "rois: expected contiguous float32");
        for (int d = 0; d < 3; ++d)
            STD_TORCH_CHECK(bins[d] >= (d > 0) && extent[d] >= 0 && extent[d] <= INT32_MAX,
                            "expected at least one bin and maps below 2^31 cells along every axis");
        const int64_t count = rois.numel() / columns;
        const float* row = reinterpret_cast<const float*>(data_of(rois));
        clip_.reserve(count);
        first_.reserve(count * bins_ + 1);
        first_.push_back(0);
        for (int64_t box = 0; box < count; ++box, row += columns) {
            const float clip = row[0];
            // true for NaN as well: only then is the conversion defined
            STD_TORCH_CHECK(clip >= 0.0f && clip < static_cast<float>(clips) && floorf(clip) == clip,
                            "rois: box ", box, " has batch index ", clip, ", expected an integer in [0, ",
                            clips, ")");
            clip_.push_back(static_cast<int64_t>(clip));
            bool finite = true;
            RoiAxis axis[3] = {};
            for (int d = 0; d < 3; ++d) {
                if (bins[d] == 0) continue;
                const int low = d == 0 ? 5 : d == 1 ? 2 : 1, high = d == 0 ? 6 : low + 2;
                const float scale = d == 0 ? s.temporal_scale : s.spatial_scale;
                axis[d] = roi_axis(row[low], row[high], scale, s.aligned, bins[d], s.ratio);
                finite = finite && axis[d].finite;
            }
            invalid_.push_back(!finite);
            for (int d = 0; d < 3; ++d)
                for (int64_t b = 0; b < bins[d]; ++b) {
                    if (finite) append(axis[d], b, extent[d]);
                    first_.push_back(static_cast<int64_t>(taps_.size()));
                }
        }
    }

    int64_t count() const { return static_cast<int64_t>(clip_.size()); }
    RoiTaps taps() const { return {first_.data(), taps_.data(), bins_}; }
    const int64_t* clip() const { return clip_.data(); }
    const unsigned char* invalid() const { return invalid_.data(); }

    // Boxes by group, each group in the order of the rois: order[first[g]..first[g + 1]).
    template <class F>
    void group(int64_t groups, const F& group_of, Ints& first, Ints& order) const {
        first.assign(groups + 1, 0);
        order.resize(count());
        for (int64_t b = 0; b < count(); ++b) ++first[group_of(b) + 1];
        for (int64_t g = 0; g < groups; ++g) first[g + 1] += first[g];
        Ints next(first.begin(), first.end() - 1);
        for (int64_t b = 0; b < count(); ++b) order[next[group_of(b)]++] = b;
    }

  private:
    void append(const RoiAxis& axis, int64_t bin, int64_t extent) {
        const size_t start = taps_.size();
        int64_t i0, i1;
        roi_inside(axis, bin, extent, &i0, &i1);
        for (int64_t i = i0; i < i1; ++i) {
            const BilinearTaps t = bilinear_taps(roi_position(axis, bin, i), extent);
            add(start, t.low, t.w_low);
            add(start, t.high, t.w_high);
        }
        for (size_t i = start; i < taps_.size(); ++i) taps_[i].weight /= static_cast<float>(axis.grid);
    }
    // Samples come in order, so a cell they share is one of the last two.
    void add(size_t start, int64_t cell, float weight) {
        for (size_t i = taps_.size(); i > start && i + 2 > taps_.size(); --i)
            if (taps_[i - 1].index == cell) {
                taps_[i - 1].weight += weight;
                return;
            }
        taps_.push_back({static_cast<int32_t>(cell), weight});
    }

    int64_t bins_;
    Ints first_, clip_;
    std::vector<RoiTap> taps_;
    std::vector<unsigned char> invalid_;
};

// x: the maps, y: [K, C, T', h, w].
Boxes fill(RoiAlignParams& a, const Tensor& x, const Tensor& rois, const Sampling& s, int64_t mode,
           const Tensor& y) {
    STD_TORCH_CHECK(x.dim() == 5 && y.dim() == 5, "expected maps and bins of 5 dimensions");
    STD_TORCH_CHECK(mode >= 0 && mode <= 2, "mode: expected 0 (frame), 1 (tube) or 2 (volume), got ", mode);
    a.dtype = dtype_of(x, "x");
    STD_TORCH_CHECK(dtype_of(y, "y") == a.dtype, "expected maps and bins of one type");
    a.tube = mode == 1;
    a.volume = mode == 2;
    a.channels = x.size(1);
    a.t = x.size(2);
    a.h = x.size(3);
    a.w = x.size(4);
    a.bt = y.size(2);
    a.bh = y.size(3);
    a.bw = y.size(4);
    const int64_t k = y.size(0), columns = a.volume ? 7 : 5;
    STD_TORCH_CHECK(y.size(1) == a.channels && (a.volume || a.bt == a.t), "bins: expected ", a.channels,
                    " channels and, but for volumes, ", a.t, " frames");
    STD_TORCH_CHECK(rois.dim() == (a.tube ? 3 : 2) && rois.size(0) == k && (!a.tube || rois.size(1) == a.t) &&
                        rois.size(rois.dim() - 1) == columns,
                    "rois: expected ", k, " rows of ", columns, a.tube ? " values per frame" : " values");
    STD_TORCH_CHECK(y.numel() == 0 || pixel_stride(y, "bins") == a.channels * bytes_of(a.dtype),
                    "bins: expected dense channels_last_3d memory");
    const int64_t pixel = x.numel() ? pixel_stride(x, "x") : 0;
    a.x_stride[3] = pixel;
    a.x_stride[2] = pixel * a.w;
    a.x_stride[1] = pixel * a.w * a.h;
    a.x_stride[0] = pixel * a.w * a.h * a.t;
    a.x = data_of(x);
    a.y = data_of(y);
    return Boxes(rois, columns, x.size(0), s, {a.volume ? a.bt : 0, a.bh, a.bw}, {a.t, a.h, a.w});
}

int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}
int64_t threads() {
    return static_cast<int64_t>(torch::stable::get_num_threads());
}

}  // namespace

void roi_align_cpu(Tensor x, Tensor rois, double spatial_scale, double temporal_scale, int64_t sampling_ratio,
                   bool aligned, int64_t mode, Tensor out) {
    RoiAlignParams a{};
    const Sampling s = sampling_of(spatial_scale, temporal_scale, sampling_ratio, aligned);
    const Boxes boxes = fill(a, x, rois, s, mode, out);
    if (out.numel() == 0) return;
    a.boxes = boxes.taps();
    a.clip = boxes.clip();
    a.invalid = boxes.invalid();
    const KernelTable& k = kernels();
    const int64_t bins = out.size(0) * a.bt, slices = ceil_div(a.channels, kRoiSlice);
    int64_t cuts = ceil_div(4 * threads(), bins);
    cuts = cuts > slices ? slices : cuts;
    for_each_item(bins * cuts, [&](int64_t item) {
        const int64_t i = item / cuts, cut = item % cuts, c1 = slices * (cut + 1) / cuts * kRoiSlice;
        k.roi_align_item(a, i / a.bt, i % a.bt, slices * cut / cuts * kRoiSlice,
                         c1 < a.channels ? c1 : a.channels);
    });
}

void roi_align_bwd_cpu(Tensor grad, Tensor rois, double spatial_scale, double temporal_scale,
                       int64_t sampling_ratio, bool aligned, int64_t mode, Tensor x) {
    RoiAlignParams a{};
    const Sampling s = sampling_of(spatial_scale, temporal_scale, sampling_ratio, aligned);
    const Boxes boxes = fill(a, x, rois, s, mode, grad);
    if (x.numel() == 0) return;
    Ints group, order;
    if (a.tube)
        boxes.group(
            x.size(0) * a.t, [&](int64_t b) { return boxes.clip()[b] * a.t + b % a.t; }, group, order);
    else
        boxes.group(x.size(0), [&](int64_t b) { return boxes.clip()[b]; }, group, order);
    a.boxes = boxes.taps();
    a.group = group.data();
    a.order = order.data();
    // Every item owns a band of rows and a slice of channels of one frame and walks the frame's boxes in
    // order: no atomics, the same sums whoever computes them, and no more memory than one band.
    const int64_t row = a.w * kRoiSlice * static_cast<int64_t>(sizeof(float));
    int64_t rows = (256 << 10) / row;
    rows = rows < 1 ? 1 : rows > a.h ? a.h : rows;
    const KernelTable& k = kernels();
    const int64_t slices = ceil_div(a.channels, kRoiSlice), bands = ceil_div(a.h, rows);
    for_each_item(x.size(0) * a.t * slices * bands, [&](int64_t item) {
        const int64_t band = item % bands, slice = item / bands % slices, frame = item / bands / slices;
        const int64_t y0 = band * rows, y1 = y0 + rows < a.h ? y0 + rows : a.h;
        k.roi_align_bwd_item(a, frame / a.t, frame % a.t, slice * kRoiSlice, y0, y1,
                             thread_scratch(rows * row));
    });
}

// --- roi_head_pool -----------------------------------------------------------------------------------------

namespace {

// The reduced map of one clip. Apart from thread_scratch, which the
// calling thread uses as well when it helps.
char* map_scratch(int64_t bytes) {
    static thread_local Scratch scratch;
    return scratch.get(bytes);
}

int64_t map_floats(const RoiHeadParams& a, const RoiPathway& p) {
    return ceil_div(p.channels, kRoiSlice) * a.h * a.w * kRoiSlice;
}

// Cells of one item: long runs of every frame, and sums that stay in the level-2 cache.
int64_t cells_per_item(const RoiPathway& p) {
    const int64_t cells = 16384 / p.channels;
    return cells < 1 ? 1 : cells;
}

void add_pathway(RoiHeadParams& a, int i, const Tensor& x, int64_t offset) {
    RoiPathway& p = a.path[i];
    STD_TORCH_CHECK(x.dim() == 5 && dtype_of(x, "x") == a.dtype, "expected 5-D pathways of one type");
    STD_TORCH_CHECK(x.size(3) == a.h && x.size(4) == a.w && x.size(2) >= 1 && x.size(1) >= 1,
                    "expected pathways of one height and width, with at least a frame and a channel");
    const int64_t pixel = x.numel() ? pixel_stride(x, "x") : 0;
    p.x_stride[2] = pixel;
    p.x_stride[1] = pixel * a.w;
    p.x_stride[0] = pixel * a.w * a.h;
    p.channels = x.size(1);
    p.frames = x.size(2);
    p.offset = offset;
}

void check_bins(const RoiHeadParams& a, const Ints& size) {
    STD_TORCH_CHECK(size.size() == 2 && size[0] >= 1 && size[1] >= 1 && size[0] <= 4096 && size[1] <= 4096,
                    "output_size: expected two values of 1 to 4096");
}

}  // namespace

void roi_head_cpu(Tensor slow, std::optional<Tensor> fast, Tensor rois, Ints output_size,
                  double spatial_scale, int64_t sampling_ratio, bool aligned, bool max, Tensor out,
                  Tensor arg) {
    RoiHeadParams a{};
    check_bins(a, output_size);
    a.dtype = dtype_of(slow, "slow");
    a.bh = output_size[0];
    a.bw = output_size[1];
    a.max = max;
    STD_TORCH_CHECK(slow.dim() == 5, "slow: expected 5 dimensions (N, C, T, H, W), got ", slow.dim());
    a.h = slow.size(3);
    a.w = slow.size(4);
    add_pathway(a, 0, slow, 0);
    a.y_channels = slow.size(1);
    const int paths = fast ? 2 : 1;
    if (fast) {
        add_pathway(a, 1, *fast, slow.size(1));
        STD_TORCH_CHECK(fast->size(0) == slow.size(0), "fast: expected ", slow.size(0),
                        " clips, as slow has");
        a.y_channels += fast->size(1);
    }
    STD_TORCH_CHECK(rois.dim() == 2 && rois.size(1) == 5, "rois: expected [K, 5]");
    STD_TORCH_CHECK(out.dim() == 2 && out.is_contiguous() && dtype_of(out, "out") == a.dtype &&
                        out.size(0) == rois.size(0) && out.size(1) == a.y_channels && arg.dim() == 2 &&
                        arg.is_contiguous() && arg.scalar_type() == ScalarType::Int &&
                        arg.numel() == out.numel(),
                    "out, arg: expected contiguous [", rois.size(0), ", ", a.y_channels, "], arg int32");
    const Sampling s = sampling_of(spatial_scale, 1.0, sampling_ratio, aligned);
    const Boxes boxes(rois, 5, slow.size(0), s, {0, a.bh, a.bw}, {0, a.h, a.w});
    if (out.numel() == 0) return;
    a.boxes = boxes.taps();
    a.invalid = boxes.invalid();
    a.y = data_of(out);
    a.arg = reinterpret_cast<int32_t*>(data_of(arg));
    Ints group, order;
    boxes.group(slow.size(0), [&](int64_t b) { return boxes.clip()[b]; }, group, order);

    int64_t floats = 0, slices[2] = {}, scratch = 0;
    for (int i = 0; i < paths; ++i) {
        RoiPathway& p = a.path[i];
        floats += map_floats(a, p);
        slices[i] = ceil_div(p.channels, kRoiSlice);
        const int64_t need =
            cells_per_item(p) * ceil_div(p.channels, 16) * 16 * static_cast<int64_t>(sizeof(float));
        scratch = need > scratch ? need : scratch;
    }
    float* map = reinterpret_cast<float*>(map_scratch(floats * static_cast<int64_t>(sizeof(float))));
    a.path[0].map = map;
    a.path[1].map = map + map_floats(a, a.path[0]);

    struct Cells {
        int pathway;
        int64_t first, last;
    };
    std::vector<Cells> items;
    std::vector<unsigned char> touched, row_touched, column_touched;
    const KernelTable& k = kernels();
    for (int64_t n = 0; n < slow.size(0); ++n) {
        a.order = order.data() + group[n];
        a.count = group[n + 1] - group[n];
        if (a.count == 0) continue;
        for (int i = 0; i < paths; ++i)
            a.path[i].x = data_of(i ? *fast : slow) + n * a.path[i].frames * a.path[i].x_stride[0];

        // Only cells under a box are read.
        touched.assign(static_cast<size_t>(a.h * a.w), 0);
        for (int64_t i = 0; i < a.count; ++i) {
            const int64_t* first = a.boxes.first + a.order[i] * a.boxes.bins;
            row_touched.assign(static_cast<size_t>(a.h), 0);
            column_touched.assign(static_cast<size_t>(a.w), 0);
            for (int64_t j = first[0]; j < first[a.bh]; ++j) row_touched[a.boxes.taps[j].index] = 1;
            for (int64_t j = first[a.bh]; j < first[a.bh + a.bw]; ++j)
                column_touched[a.boxes.taps[j].index] = 1;
            for (int64_t y = 0; y < a.h; ++y)
                if (row_touched[y])
                    for (int64_t x = 0; x < a.w; ++x) touched[y * a.w + x] |= column_touched[x];
        }
        items.clear();
        for (int i = 0; i < paths; ++i)
            for (int64_t cell = 0; cell < a.h * a.w; ++cell) {
                if (!touched[cell]) continue;
                Cells* last = items.empty() ? nullptr : &items.back();
                if (last && last->pathway == i && last->last == cell &&
                    cell - last->first < cells_per_item(a.path[i]))
                    ++last->last;
                else
                    items.push_back({i, cell, cell + 1});
            }
        for_each_item(static_cast<int64_t>(items.size()), [&](int64_t i) {
            k.roi_reduce_item(a, items[i].pathway, items[i].first, items[i].last, thread_scratch(scratch));
        });

        const int64_t all = slices[0] + slices[1];
        int64_t cuts = ceil_div(4 * threads(), all);
        cuts = cuts > a.count ? a.count : cuts;
        for_each_item(all * cuts, [&](int64_t item) {
            const int64_t slice = item / cuts, cut = item % cuts;
            const int i = slice >= slices[0];
            k.roi_max_item(a, i, i ? slice - slices[0] : slice, a.count * cut / cuts,
                           a.count * (cut + 1) / cuts);
        });
    }
}

void roi_head_bwd_cpu(Tensor grad, Tensor arg, Tensor rois, std::optional<Tensor> x_forward, Ints output_size,
                      double spatial_scale, int64_t sampling_ratio, bool aligned, bool max, Tensor x) {
    RoiHeadParams a{};
    check_bins(a, output_size);
    a.dtype = dtype_of(x, "x");
    a.bh = output_size[0];
    a.bw = output_size[1];
    a.max = max;
    STD_TORCH_CHECK(x.dim() == 5, "x: expected 5 dimensions (N, C, T, H, W), got ", x.dim());
    a.h = x.size(3);
    a.w = x.size(4);
    add_pathway(a, 0, x, 0);
    RoiPathway& p = a.path[0];
    a.y_channels = p.channels;
    STD_TORCH_CHECK(rois.dim() == 2 && rois.size(1) == 5, "rois: expected [K, 5]");
    STD_TORCH_CHECK(grad.dim() == 2 && grad.is_contiguous() && dtype_of(grad, "grad") == a.dtype &&
                        grad.size(0) == rois.size(0) && grad.size(1) == p.channels && arg.dim() == 2 &&
                        arg.is_contiguous() && arg.scalar_type() == ScalarType::Int &&
                        arg.numel() == grad.numel(),
                    "grad, arg: expected contiguous [", rois.size(0), ", ", p.channels, "], arg int32");
    STD_TORCH_CHECK(x.numel() == 0 || p.x_stride[2] == p.channels * bytes_of(a.dtype),
                    "x: expected dense channels_last_3d memory");
    const char* features = nullptr;
    if (max) {
        STD_TORCH_CHECK(x_forward && x_forward->dim() == 5 && dtype_of(*x_forward, "x_forward") == a.dtype,
                        "x_forward: expected the maps of the forward");
        for (int d = 0; d < 5; ++d)
            STD_TORCH_CHECK(x_forward->size(d) == x.size(d), "x_forward: expected the gradient's shape");
        const int64_t pixel = x.numel() ? pixel_stride(*x_forward, "x_forward") : 0;
        a.features_stride[2] = pixel;
        a.features_stride[1] = pixel * a.w;
        a.features_stride[0] = pixel * a.w * a.h;
        features = data_of(*x_forward);
    }
    const Sampling s = sampling_of(spatial_scale, 1.0, sampling_ratio, aligned);
    const Boxes boxes(rois, 5, x.size(0), s, {0, a.bh, a.bw}, {0, a.h, a.w});
    if (x.numel() == 0) return;
    a.boxes = boxes.taps();
    a.y = data_of(grad);
    a.arg = reinterpret_cast<int32_t*>(data_of(arg));
    p.map = reinterpret_cast<float*>(map_scratch(map_floats(a, p) * static_cast<int64_t>(sizeof(float))));
    Ints group, order;
    boxes.group(x.size(0), [&](int64_t b) { return boxes.clip()[b]; }, group, order);
    const KernelTable& k = kernels();
    const int64_t cells = a.h * a.w, step = cells_per_item(p);
    for (int64_t n = 0; n < x.size(0); ++n) {
        p.x = data_of(x) + n * p.frames * p.x_stride[0];
        a.features = features + n * p.frames * a.features_stride[0];
        a.order = order.data() + group[n];
        a.count = group[n + 1] - group[n];
        if (a.count == 0) {
            for_each_item(p.frames, [&](int64_t t) {
                memset(p.x + t * p.x_stride[0], 0, static_cast<size_t>(p.x_stride[0]));
            });
            continue;
        }
        for_each_item(ceil_div(p.channels, kRoiSlice), [&](int64_t slice) { k.roi_scatter_item(a, slice); });
        for_each_item(ceil_div(cells, step), [&](int64_t i) {
            k.roi_spread_item(a, i * step, i * step + step < cells ? i * step + step : cells);
        });
    }
}

}  // namespace slowfast
