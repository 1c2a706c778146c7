// Lateral convolution (k x 1 x 1, stride alpha in time, k = 2 alpha - 1, float32) in polyphase form.
//
// Frames alpha apart belong to one phase. All phases but one carry two taps g0, g1 of the kernel: two output
// frames next to each other are two outputs of a 2-tap filter on the phase's frames d0, d1, d2, which take
// three products instead of four (Winograd's F(2, 2)):
//
//     sum = d1 (g0 + g1),  y0 = sum + (d0 - d1) g0,  y1 = sum + (d2 - d1) g1
//
// The last phase carries the kernel's middle tap alone. Per output pair that is 3 (alpha - 1) + 2 products of
// a frame and a tap instead of 2 k: 11 for 14 with alpha = 4.

#include "cpu/isa/entry.h"
#include "cpu/isa/tile.h"

namespace slowfast::SLOWFAST_ISA {

namespace {

constexpr int kMaxPhases = 64;

// StridedRows whose prefetches go to other rows, which the next unit reads: without them,
// reading would take a third of the time. Their own rows were just touched.
struct AheadRows : StridedRows {
    const char* ahead;  // row 0 of tap 0; null: nothing is wanted
    ptrdiff_t ahead_tap, ahead_row;
    SF_MEMBER void advance(int64_t rows) {
        StridedRows::advance(rows);
        if (ahead) ahead += rows * ahead_row;
    }
    SF_MEMBER void prefetch(int tap, int r, ptrdiff_t at) const {
        if (ahead) __builtin_prefetch(ahead + tap * ahead_tap + r * ahead_row + at, 0, 2);
    }
};

// first = d0 - d1 and second = d2 - d1 of `count` values; d0 is missing before the clip, d2 behind it.
template <bool FIRST, bool SECOND>
void differences(float* first, float* second, const float* d0, const float* d1, const float* d2,
                 int64_t count) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        const V middle = load(d1 + i);
        store(first + i, sub(FIRST ? load(d0 + i) : zero(), middle));
        if (SECOND) store(second + i, sub(load(d2 + i), middle));
    }
    if (const int n = static_cast<int>(count - i)) {
        const V middle = load_n(d1 + i, n);
        store_n(first + i, sub(FIRST ? load_n(d0 + i, n) : zero(), middle), n);
        if (SECOND) store_n(second + i, sub(load_n(d2 + i, n), middle), n);
    }
}

}  // namespace

int64_t lateral_scratch(const LateralParams& a, int64_t rows) {
    return rows * (2 * (a.alpha - 1) * a.cin + kPanelChannels) * static_cast<int64_t>(sizeof(float));
}

void lateral_unit(const LateralParams& a, const LateralUnit& u, const LateralUnit* next, char* scratch) {
    const int64_t n = u.n, m0 = u.m0, rows = u.m1 - m0, t = 2 * u.pair, plane = rows * a.cin;
    const int phases = static_cast<int>(a.alpha) - 1;
    const bool both = t + 1 < a.t_out;
    const char* x = a.x + n * a.stride_n + m0 * a.stride_w;
    const auto frame = [&](int64_t f) { return x + f * a.stride_t; };
    float* first = reinterpret_cast<float*>(scratch);
    float* second = first + phases * plane;
    float* partial = second + phases * plane;

    const ptrdiff_t dense = a.cin * static_cast<ptrdiff_t>(sizeof(float));
    // A frame's pixels are one run of values unless the input is a channel slice.
    const int64_t runs = a.stride_w == dense ? 1 : rows, count = a.stride_w == dense ? plane : a.cin;
    const auto transform = t ? (both ? differences<true, true> : differences<true, false>)
                             : (both ? differences<false, true> : differences<false, false>);
    ptrdiff_t sum_offset[kMaxPhases], plane_offset[kMaxPhases];
    for (int i = 0; i < phases; ++i) {
        const int64_t f1 = a.alpha * t + i + 1;
        sum_offset[i] = f1 * a.stride_t;
        plane_offset[i] = i * plane * static_cast<ptrdiff_t>(sizeof(float));
        for (int64_t r = 0; r < runs; ++r) {
            const auto at = [&](int64_t f, bool there) {
                return there ? reinterpret_cast<const float*>(frame(f) + r * a.stride_w) : nullptr;
            };
            transform(first + i * plane + r * a.cin, second + i * plane + r * a.cin, at(f1 - a.alpha, t > 0),
                      at(f1, true), at(f1 + a.alpha, both), count);
        }
    }

    // Frames of the next unit, row 0; none of the second half where it has one output frame.
    const char* ahead =
        next ? a.x + next->n * a.stride_n + next->m0 * a.stride_w + 2 * next->pair * a.alpha * a.stride_t
             : nullptr;
    const char* ahead_second = next && 2 * next->pair + 1 < a.t_out ? ahead + a.alpha * a.stride_t : nullptr;
    const ptrdiff_t row = static_cast<ptrdiff_t>(a.stride_w), tap = static_cast<ptrdiff_t>(a.stride_t);
    const char* packed[3] = {a.packed_sum, a.packed_first, a.packed_second};
    for (int64_t p = 0; p < panel_count(a.cout); ++p) {
        const PanelShape ps = panel_shape(a.cout, p);
        const int64_t tap_bytes = panel_tap_bytes(ps, a.cin, sizeof(float)), c0 = p * kPanelChannels;
        if (p) ahead = ahead_second = nullptr;
        const auto run = [&](const void* base, const ptrdiff_t* offset, int taps, ptrdiff_t stride,
                             const char* ahead) {
            return Run<AheadRows>{
                {{static_cast<const char*>(base), offset, stride}, ahead, tap, row}, 0, taps, 0, a.cin};
        };
        Finish f{};
        f.partial_ld = ps.lanes;
        f.channels = ps.channels;
        f.partial_out = partial;
        panel_strip<float, AheadRows, AheadRows>(
            run(x, sum_offset, phases, row, ahead ? ahead + tap : nullptr), nullptr, ps.lanes, ps.pair,
            packed[0], f, rows);
        f.partial_out = nullptr;
        f.partial_in = partial;
        f.shift = a.shift ? a.shift + c0 : nullptr;
        f.out_stride = a.out_stride;
        f.relu = a.relu;
        for (int k = 0; k < (both ? 2 : 1); ++k) {
            const Run<AheadRows> middle =
                run(frame(a.alpha * (t + k)), nullptr, 1, row, k ? ahead_second : ahead);
            f.out = a.out + (n * a.t_out + t + k) * a.out_stride_t + m0 * a.out_stride +
                    c0 * static_cast<int64_t>(sizeof(float));
            panel_strip<float>(run(k ? second : first, plane_offset, phases, dense,
                                   k == 0 && ahead_second ? ahead_second + tap : nullptr),
                               &middle, ps.lanes, ps.pair, packed[1 + k], f, rows);
        }
        packed[0] += phases * tap_bytes;
        packed[1] += (phases + 1) * tap_bytes;
        packed[2] += (phases + 1) * tap_bytes;
    }
}

}  // namespace slowfast::SLOWFAST_ISA
