// RoIAlign over channels-last maps: channels are the vector lanes, taps come ready from the host.

#include "cpu/isa/vec.h"
#include "cpu/isa/entry.h"
#include "cpu/roi.h"

namespace slowfast::SLOWFAST_ISA {

namespace {

constexpr int kBlockVectors = kRoiSlice / kLanes;

SF_INLINE int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

// n <= kRoiSlice channels in NV vectors; FULL: no lane of the last one is missing.
template <int NV, bool FULL>
struct Block {
    static constexpr int kVectors = NV;
    V v[NV];

    template <class T>
    SF_INLINE Block load(const T* p, int n) {
        Block b;
        for (int i = 0; i < NV; ++i)
            b.v[i] = FULL || i + 1 < NV ? SLOWFAST_ISA::load(p + i * kLanes)
                                        : load_any(p + i * kLanes, n - i * kLanes);
        return b;
    }
    SF_INLINE Block fill(float x) {
        Block b;
        for (int i = 0; i < NV; ++i) b.v[i] = set1(x);
        return b;
    }
    template <class T>
    inline __attribute__((always_inline)) void store(T* p, int n) const {
        for (int i = 0; i < NV; ++i)
            if (FULL || i + 1 < NV)
                SLOWFAST_ISA::store(p + i * kLanes, v[i]);
            else
                store_any(p + i * kLanes, v[i], n - i * kLanes);
    }
    inline __attribute__((always_inline)) void fma(float w, const Block& x) {
        const V s = set1(w);
        for (int i = 0; i < NV; ++i) v[i] = SLOWFAST_ISA::fma(s, x.v[i], v[i]);
    }
};

// Calls f with the Block type for n channels, n <= kRoiSlice.
template <class F>
SF_INLINE void with_block(int n, const F& f) {
    if (n == kRoiSlice) return f(Block<kBlockVectors, true>{});
    switch ((n + kLanes - 1) / kLanes) {
        case 1:
            return f(Block<1, false>{});
        case 2:
            return f(Block<2, false>{});
        case 3:
            return f(Block<3, false>{});
        default:
            return f(Block<4, false>{});
    }
}

struct TapList {
    const RoiTap *begin, *end;
};

SF_INLINE TapList taps_of(const RoiTaps& r, int64_t box, int64_t bin) {
    const int64_t* first = r.first + box * r.bins + bin;
    return {r.taps + first[0], r.taps + first[1]};
}

template <class T, class B>
void align_bins(const RoiAlignParams& a, const char* clip, int64_t box, TapList time, int64_t c, int n,
                T* out) {
    const int64_t y_bins = a.volume ? a.bt : 0, x_bins = y_bins + a.bh;
    const char* base = clip + c * static_cast<int64_t>(sizeof(T));
    for (int64_t ph = 0; ph < a.bh; ++ph) {
        const TapList ys = taps_of(a.boxes, box, y_bins + ph);
        for (int64_t pw = 0; pw < a.bw; ++pw, out += a.channels) {
            const TapList xs = taps_of(a.boxes, box, x_bins + pw);
            B sum = B::fill(0.0f);
            for (const RoiTap* t = time.begin; t != time.end; ++t)
                for (const RoiTap* y = ys.begin; y != ys.end; ++y) {
                    const char* row = base + t->index * a.x_stride[1] + y->index * a.x_stride[2];
                    const float w = t->weight * y->weight;
                    for (const RoiTap* x = xs.begin; x != xs.end; ++x)
                        sum.fma(w * x->weight,
                                B::load(reinterpret_cast<const T*>(row + x->index * a.x_stride[3]), n));
                }
            sum.store(out, n);
        }
    }
}

template <class T, class B>
void align_bwd_bins(const RoiAlignParams& a, const T* grad, int64_t box, float time, int64_t y0, int64_t y1,
                    int n, int64_t lanes, float* sums) {
    const int64_t y_bins = a.volume ? a.bt : 0, x_bins = y_bins + a.bh;
    for (int64_t ph = 0; ph < a.bh; ++ph, grad += a.bw * a.channels) {
        const TapList ys = taps_of(a.boxes, box, y_bins + ph);
        for (const RoiTap* y = ys.begin; y != ys.end; ++y) {
            if (y->index < y0 || y->index >= y1) continue;
            float* row = sums + (y->index - y0) * a.w * lanes;
            const float w = time * y->weight;
            for (int64_t pw = 0; pw < a.bw; ++pw) {
                const TapList xs = taps_of(a.boxes, box, x_bins + pw);
                const B g = B::load(grad + pw * a.channels, n);
                for (const RoiTap* x = xs.begin; x != xs.end; ++x) {
                    float* cell = row + x->index * lanes;  // as many lanes as vectors: never short
                    B s = B::load(cell, kRoiSlice);
                    s.fma(w * x->weight, g);
                    s.store(cell, kRoiSlice);
                }
            }
        }
    }
}

// --- roi_head_pool -----------------------------------------------------------------------------------------

template <bool MAX>
SF_INLINE V join(V a, V b) {
    return MAX ? max_nan(a, b) : add(a, b);
}

// sums = frames f..f+NF joined, with what sums holds unless `first`. One run of `n` channels.
template <class T, bool MAX, int NF>
SF_INLINE void join_frames(const T* const* frames, float* sums, int64_t n, bool first) {
    for (int64_t c = 0; c < n; c += kLanes) {
        const int left = static_cast<int>(min64(n - c, kLanes));
        V s = load_any(frames[0] + c, left);
        for (int f = 1; f < NF; ++f) s = join<MAX>(s, load_any(frames[f] + c, left));
        store(sums + c, first ? s : join<MAX>(load(sums + c), s));
    }
}

template <class T, bool MAX>
void reduce_cells(const RoiHeadParams& a, const RoiPathway& p, int64_t cell0, int64_t cell1, float* sums) {
    const int64_t width = (p.channels + kLanes - 1) / kLanes * kLanes;
    constexpr int kFrames = 4;
    const T* from[kFrames];
    for (int64_t t = 0; t < p.frames; t += kFrames) {
        const int64_t nf = min64(kFrames, p.frames - t);
        for (int64_t cell = cell0; cell < cell1; ++cell) {
            const char* at = p.x + cell / a.w * p.x_stride[1] + cell % a.w * p.x_stride[2];
            for (int64_t f = 0; f < nf; ++f)
                from[f] = reinterpret_cast<const T*>(at + (t + f) * p.x_stride[0]);
            float* s = sums + (cell - cell0) * width;
            switch (nf) {
                case 1:
                    join_frames<T, MAX, 1>(from, s, p.channels, t == 0);
                    break;
                case 2:
                    join_frames<T, MAX, 2>(from, s, p.channels, t == 0);
                    break;
                case 3:
                    join_frames<T, MAX, 3>(from, s, p.channels, t == 0);
                    break;
                default:
                    join_frames<T, MAX, 4>(from, s, p.channels, t == 0);
            }
        }
    }
    const V scale = set1(MAX ? 1.0f : 1.0f / static_cast<float>(p.frames));
    const int64_t slice = a.h * a.w * kRoiSlice;
    for (int64_t cell = cell0; cell < cell1; ++cell) {
        const float* s = sums + (cell - cell0) * width;
        for (int64_t c = 0; c < width; c += kLanes)
            store(p.map + c / kRoiSlice * slice + cell * kRoiSlice + c % kRoiSlice, mul(load(s + c), scale));
    }
}

template <class T>
void reduce_mean(const RoiHeadParams& a, const RoiPathway& p, int64_t cell0, int64_t cell1, float* sums) {
    reduce_cells<T, false>(a, p, cell0, cell1, sums);
}
template <class T>
void reduce_max(const RoiHeadParams& a, const RoiPathway& p, int64_t cell0, int64_t cell1, float* sums) {
    reduce_cells<T, true>(a, p, cell0, cell1, sums);
}

// Where `value` is greater than `best`, or the first NaN: best = value, where = bin.
SF_INLINE void take_greater(V& best, V& where, V value, V bin) {
#if defined(__AVX512F__)
    const __mmask16 take =
        _mm512_cmp_ps_mask(value.v, best.v, _CMP_NLE_UQ) & _mm512_cmp_ps_mask(best.v, best.v, _CMP_ORD_Q);
    best.v = _mm512_mask_mov_ps(best.v, take, value.v);
    where.v = _mm512_mask_mov_ps(where.v, take, bin.v);
#else
    const __m256 lo = _mm256_and_ps(_mm256_cmp_ps(value.lo, best.lo, _CMP_NLE_UQ),
                                    _mm256_cmp_ps(best.lo, best.lo, _CMP_ORD_Q));
    const __m256 hi = _mm256_and_ps(_mm256_cmp_ps(value.hi, best.hi, _CMP_NLE_UQ),
                                    _mm256_cmp_ps(best.hi, best.hi, _CMP_ORD_Q));
    best = {_mm256_blendv_ps(best.lo, value.lo, lo), _mm256_blendv_ps(best.hi, value.hi, hi)};
    where = {_mm256_blendv_ps(where.lo, bin.lo, lo), _mm256_blendv_ps(where.hi, bin.hi, hi)};
#endif
}

// `g` in the lanes where a == b, zero in the others.
SF_INLINE V keep_equal(V g, V a, V b) {
#if defined(__AVX512F__)
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ), g.v)};
#else
    return {_mm256_and_ps(_mm256_cmp_ps(a.lo, b.lo, _CMP_EQ_OQ), g.lo),
            _mm256_and_ps(_mm256_cmp_ps(a.hi, b.hi, _CMP_EQ_OQ), g.hi)};
#endif
}

template <class T, int NV>
void max_of_box(const RoiHeadParams& a, const float* map, int64_t box, int n, T* y, int32_t* arg) {
    using B = Block<NV, true>;  // a map's slice is padded to full vectors
    B best = B::fill(__builtin_nanf("")), where = B::fill(-1.0f);
    if (!a.invalid[box]) {
        for (int64_t ph = 0; ph < a.bh; ++ph) {
            const TapList ys = taps_of(a.boxes, box, ph);
            for (int64_t pw = 0; pw < a.bw; ++pw) {
                const TapList xs = taps_of(a.boxes, box, a.bh + pw);
                B sum = B::fill(0.0f);
                for (const RoiTap* v = ys.begin; v != ys.end; ++v) {
                    const float* row = map + v->index * a.w * kRoiSlice;
                    for (const RoiTap* x = xs.begin; x != xs.end; ++x)
                        sum.fma(v->weight * x->weight, B::load(row + x->index * kRoiSlice, kRoiSlice));
                }
                const int64_t bin = ph * a.bw + pw;
                if (bin == 0) {
                    best = sum;
                    where = B::fill(0.0f);
                    continue;
                }
                const V number = set1(static_cast<float>(bin));
                for (int i = 0; i < NV; ++i) take_greater(best.v[i], where.v[i], sum.v[i], number);
            }
        }
    }
    float bins[NV * kLanes];
    where.store(bins, kRoiSlice);
    for (int i = 0; i < n; ++i) arg[i] = static_cast<int32_t>(bins[i]);
    Block<NV, false> result;
    for (int i = 0; i < NV; ++i) result.v[i] = best.v[i];
    result.store(y, n);
}

// Every frame's gradient = the mean's / frames.
template <class T>
void spread_mean(const RoiHeadParams& a, int64_t cell0, int64_t cell1) {
    const RoiPathway& p = a.path[0];
    const V scale = set1(1.0f / static_cast<float>(p.frames));
    const int64_t slice = a.h * a.w * kRoiSlice;
    for (int64_t t = 0; t < p.frames; ++t)
        for (int64_t cell = cell0; cell < cell1; ++cell) {
            T* out = reinterpret_cast<T*>(p.x + t * p.x_stride[0] + cell / a.w * p.x_stride[1] +
                                          cell % a.w * p.x_stride[2]);
            const float* from = p.map + cell * kRoiSlice;
            for (int64_t c = 0; c < p.channels; c += kLanes) {
                const V g = load(from + c / kRoiSlice * slice + c % kRoiSlice);
                store_any(out + c, mul(g, scale), static_cast<int>(min64(p.channels - c, kLanes)));
            }
        }
}

// The gradient goes to the first frame that holds the maximum (or the first NaN), zero to the others.
template <class T>
void spread_max(const RoiHeadParams& a, int64_t cell0, int64_t cell1) {
    const RoiPathway& p = a.path[0];
    const int64_t slice = a.h * a.w * kRoiSlice;
    for (int64_t cell = cell0; cell < cell1; ++cell) {
        const int64_t y = cell / a.w, x = cell % a.w;
        char* out = p.x + y * p.x_stride[1] + x * p.x_stride[2];
        const char* in = a.features + y * a.features_stride[1] + x * a.features_stride[2];
        for (int64_t c = 0; c < p.channels; c += kLanes) {
            const int n = static_cast<int>(min64(p.channels - c, kLanes));
            V best = load_any(reinterpret_cast<const T*>(in) + c, n), where = zero();
            for (int64_t t = 1; t < p.frames; ++t) {
                const T* at = reinterpret_cast<const T*>(in + t * a.features_stride[0]) + c;
                take_greater(best, where, load_any(at, n), set1(static_cast<float>(t)));
            }
            const V g = load(p.map + cell * kRoiSlice + c / kRoiSlice * slice + c % kRoiSlice);
            for (int64_t t = 0; t < p.frames; ++t) {
                T* o = reinterpret_cast<T*>(out + t * p.x_stride[0]) + c;
                store_any(o, keep_equal(g, where, set1(static_cast<float>(t))), n);
            }
        }
    }
}

template <class T>
void align_item(const RoiAlignParams& a, int64_t roi, int64_t frame, int64_t c0, int64_t c1) {
    const int64_t box = a.tube ? roi * a.t + frame : roi, bins = a.bh * a.bw;
    const RoiTap same{static_cast<int32_t>(frame), 1.0f};
    const TapList time = a.volume ? taps_of(a.boxes, box, frame) : TapList{&same, &same + 1};
    const char* clip = a.x + a.clip[box] * a.x_stride[0];
    T* out = reinterpret_cast<T*>(a.y) + (roi * a.bt + frame) * bins * a.channels;
    for (int64_t c = c0; c < c1; c += kRoiSlice) {
        const int n = static_cast<int>(min64(c1 - c, kRoiSlice));
        with_block(n, [&](auto block) {
            using B = decltype(block);
            if (!a.invalid[box]) return align_bins<T, B>(a, clip, box, time, c, n, out + c);
            for (int64_t i = 0; i < bins; ++i) B::fill(__builtin_nanf("")).store(out + c + i * a.channels, n);
        });
    }
}

template <class T>
void align_bwd_item(const RoiAlignParams& a, int64_t clip, int64_t frame, int64_t c, int64_t y0, int64_t y1,
                    float* sums) {
    const int n = static_cast<int>(min64(a.channels - c, kRoiSlice));
    const int64_t lanes = (n + kLanes - 1) / kLanes * kLanes, cells = (y1 - y0) * a.w;
    memset(sums, 0, static_cast<size_t>(cells * lanes) * sizeof(float));
    const int64_t group = a.tube ? clip * a.t + frame : clip;
    with_block(n, [&](auto block) {
        using B = decltype(block);
        for (int64_t i = a.group[group]; i < a.group[group + 1]; ++i) {
            const int64_t box = a.order[i], roi = a.tube ? box / a.t : box;
            for (int64_t to = a.volume ? 0 : frame; to < (a.volume ? a.bt : frame + 1); ++to) {
                const T* grad =
                    reinterpret_cast<const T*>(a.y) + (roi * a.bt + to) * a.bh * a.bw * a.channels + c;
                if (!a.volume) {
                    align_bwd_bins<T, B>(a, grad, box, 1.0f, y0, y1, n, lanes, sums);
                    continue;
                }
                const TapList time = taps_of(a.boxes, box, to);
                for (const RoiTap* t = time.begin; t != time.end; ++t)
                    if (t->index == frame)
                        align_bwd_bins<T, B>(a, grad, box, t->weight, y0, y1, n, lanes, sums);
            }
        }
    });
    char* out = a.x + clip * a.x_stride[0] + frame * a.x_stride[1] + y0 * a.x_stride[2];
    for (int64_t i = 0; i < cells; ++i)
        for (int64_t v = 0; v < lanes; v += kLanes) {
            T* o = reinterpret_cast<T*>(out + i / a.w * a.x_stride[2] + i % a.w * a.x_stride[3]) + c + v;
            store_any(o, load(sums + i * lanes + v), static_cast<int>(n - v));
        }
}

template <class T>
void max_item(const RoiHeadParams& a, const RoiPathway& p, int64_t slice, int64_t i0, int64_t i1) {
    const int64_t c = slice * kRoiSlice;
    const int n = static_cast<int>(min64(p.channels - c, kRoiSlice));
    const float* map = p.map + c * a.h * a.w;
    with_block(n, [&](auto block) {
        for (int64_t i = i0; i < i1; ++i) {
            const int64_t box = a.order[i], at = box * a.y_channels + p.offset + c;
            max_of_box<T, decltype(block)::kVectors>(a, map, box, n, reinterpret_cast<T*>(a.y) + at,
                                                     a.arg + at);
        }
    });
}

// Gradient of one slice of the reduced map: every box, channel by channel, into the taps of its arg-max bin.
template <class T>
void scatter_item(const RoiHeadParams& a, int64_t slice) {
    const RoiPathway& p = a.path[0];
    const int64_t c = slice * kRoiSlice;
    const int n = static_cast<int>(min64(p.channels - c, kRoiSlice));
    float* map = p.map + c * a.h * a.w;
    memset(map, 0, static_cast<size_t>(a.h * a.w * kRoiSlice) * sizeof(float));
    for (int64_t i = 0; i < a.count; ++i) {
        const int64_t box = a.order[i], at = box * a.y_channels + p.offset + c;
        float g[kRoiSlice];
        for (int v = 0; v < n; v += kLanes)
            store(g + v, load_any(reinterpret_cast<const T*>(a.y) + at + v, n - v));
        for (int lane = 0; lane < n; ++lane) {
            const int32_t bin = a.arg[at + lane];
            if (bin < 0 || bin >= a.bh * a.bw) continue;
            const TapList ys = taps_of(a.boxes, box, bin / a.bw),
                          xs = taps_of(a.boxes, box, a.bh + bin % a.bw);
            for (const RoiTap* y = ys.begin; y != ys.end; ++y) {
                float* row = map + y->index * a.w * kRoiSlice + lane;
                for (const RoiTap* x = xs.begin; x != xs.end; ++x)
                    row[x->index * kRoiSlice] += y->weight * x->weight * g[lane];
            }
        }
    }
}

}  // namespace

void roi_align_item(const RoiAlignParams& a, int64_t roi, int64_t frame, int64_t c0, int64_t c1) {
    with_dtype<float, bf16, f16>(a.dtype,
                                 [&](auto zero) { align_item<decltype(zero)>(a, roi, frame, c0, c1); });
}

void roi_align_bwd_item(const RoiAlignParams& a, int64_t clip, int64_t frame, int64_t c, int64_t y0,
                        int64_t y1, char* scratch) {
    float* sums = reinterpret_cast<float*>(scratch);
    with_dtype<float, bf16, f16>(
        a.dtype, [&](auto zero) { align_bwd_item<decltype(zero)>(a, clip, frame, c, y0, y1, sums); });
}

void roi_reduce_item(const RoiHeadParams& a, int pathway, int64_t cell0, int64_t cell1, char* scratch) {
    const RoiPathway& p = a.path[pathway];
    float* sums = reinterpret_cast<float*>(scratch);
    with_dtype<float, bf16, f16>(a.dtype, [&](auto zero) {
        using T = decltype(zero);
        a.max ? reduce_max<T>(a, p, cell0, cell1, sums) : reduce_mean<T>(a, p, cell0, cell1, sums);
    });
}

void roi_max_item(const RoiHeadParams& a, int pathway, int64_t slice, int64_t i0, int64_t i1) {
    with_dtype<float, bf16, f16>(
        a.dtype, [&](auto zero) { max_item<decltype(zero)>(a, a.path[pathway], slice, i0, i1); });
}

void roi_scatter_item(const RoiHeadParams& a, int64_t slice) {
    with_dtype<float, bf16, f16>(a.dtype, [&](auto zero) { scatter_item<decltype(zero)>(a, slice); });
}

void roi_spread_item(const RoiHeadParams& a, int64_t cell0, int64_t cell1) {
    with_dtype<float, bf16, f16>(a.dtype, [&](auto zero) {
        using T = decltype(zero);
        a.max ? spread_max<T>(a, cell0, cell1) : spread_mean<T>(a, cell0, cell1);
    });
}

}  // namespace slowfast::SLOWFAST_ISA
