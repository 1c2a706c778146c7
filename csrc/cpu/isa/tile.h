// Register tiles: MR output pixels x a panel of output channels, accumulated over taps and input channels.
//
// Weights come packed in panels (csrc/cpu/panel.h). A panel of NV vectors is NV*16 channels wide; the PAIR
// panel holds up to 8 channels and puts two steps of K side by side, so that no lane idles at 8 channels:
// lane 2j is channel j at the even step, lane 2j+1 the same channel at the odd one.
//
// A "unit" is 4 bytes of one pixel's channels: one float or two bf16.
#pragma once

#include "cpu/isa/vec.h"
#include "cpu/panel.h"

#define SF_MEMBER inline __attribute__((always_inline))

namespace slowfast::SLOWFAST_ISA {

// Rows whose addresses come from a table: entry [tap * ld + row],
// bytes. `zeros` marks rows outside the input.
struct TableRows {
    const char* const* table;
    ptrdiff_t ld;
    const char* zeros;
    SF_MEMBER const char* at(int tap, int r) const { return table[tap * ld + r]; }
    SF_MEMBER bool may_skip() const { return zeros != nullptr; }
    SF_MEMBER bool skipped(const char* a) const { return a == zeros; }
    SF_MEMBER void advance(int64_t rows) { table += rows; }
    SF_MEMBER void prefetch(int tap, int r, ptrdiff_t at) const {
        // The table goes on for a tile beyond its end. An address beyond the row's tensor is never read from,
        // only prefetched: so it is a number, not a pointer.
        __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(table[tap * ld + r]) +
                                                         static_cast<uintptr_t>(at)),
                           0, 2);
    }
};
// Rows at a constant distance: base + offset[tap] + row * stride, bytes.
struct StridedRows {
    const char* base;
    const ptrdiff_t* offset;  // null for a single tap
    ptrdiff_t stride;
    SF_MEMBER const char* at(int tap, int r) const { return base + (offset ? offset[tap] : 0) + r * stride; }
    SF_MEMBER bool may_skip() const { return false; }
    SF_MEMBER bool skipped(const char*) const { return false; }
    SF_MEMBER void advance(int64_t rows) { base += rows * stride; }
    SF_MEMBER void prefetch(int tap, int r, ptrdiff_t at) const {
        const uintptr_t first = reinterpret_cast<uintptr_t>(this->at(tap, 0));
        __builtin_prefetch(reinterpret_cast<const void*>(first + static_cast<uintptr_t>(r * stride + at)), 0,
                           2);
    }
};

// One run over K: taps [tap0, tap1), bytes [k0, k0 + k * sizeof(T)) of each tap's channels.
template <class Rows>
struct Run {
    Rows rows;
    int tap0, tap1;
    ptrdiff_t k0;
    int64_t k;  // channels
};

// What happens to the sums: added to partial sums, kept as partial sums, or finished into the output.
struct Finish {
    const float* partial_in;  // [rows][partial_ld] or null
    float* partial_out;       // the same, and then nothing else happens
    ptrdiff_t partial_ld;
    const float* shift;    // per channel of the panel, or null
    const char* residual;  // first row, or null
    ptrdiff_t residual_stride;
    char* out;
    ptrdiff_t out_stride;
    int channels;  // valid channels of the panel
    bool relu;
};

// The last `n` channels of a pixel, fewer than a step takes, zero above them.
template <class T>
SF_INLINE uint64_t load_rest(const char* p, int n) {
    if constexpr (sizeof(T) == 4) {
        uint32_t x;
        memcpy(&x, p, 4);
        return x;
    } else {
        uint16_t x[3] = {};
        memcpy(&x[0], p, 2);
        if (n > 1) memcpy(&x[1], p + 2, 2);
        if (n > 2) memcpy(&x[2], p + 4, 2);
        return x[0] | static_cast<uint64_t>(x[1]) << 16 | static_cast<uint64_t>(x[2]) << 32;
    }
}

template <class T, int MR, int NV, int PANEL, bool PAIR, class Rows>
SF_INLINE const char* accumulate(V (&acc)[MR][NV], const Run<Rows>& run, const char* b) {
    constexpr int kPerStep =
        (4 / static_cast<int>(sizeof(T))) * (PAIR ? 2 : 1);  // channels a step of K takes
    constexpr ptrdiff_t kStepBytes = PAIR ? 64 : PANEL * 64;
    constexpr ptrdiff_t kStepChannelBytes = PAIR ? 8 : 4;  // of one row
    constexpr int64_t kBlock = 64;                         // steps between two rounds of prefetches
    const int64_t steps = run.k / kPerStep;
    const int rest = static_cast<int>(run.k % kPerStep);
    const ptrdiff_t tap_bytes = (steps + (rest ? 1 : 0)) * kStepBytes;
    for (int tap = run.tap0; tap < run.tap1; ++tap) {
        const char* a[MR];
        bool live = !run.rows.may_skip();
        for (int r = 0; r < MR; ++r) {
            a[r] = run.rows.at(tap, r);
            live |= !run.rows.skipped(a[r]);
        }
        if (!live) {
            b += tap_bytes;
            continue;
        }
        for (int r = 0; r < MR; ++r) a[r] += run.k0;
        for (int64_t block = 0; block < steps; block += kBlock) {
            const int64_t block_end = steps - block < kBlock ? steps : block + kBlock;
            // The same channels of the next tile's rows, into the level-2 cache.
            if (steps >= 16)
#pragma GCC unroll 8
                for (int r = 0; r < MR; ++r)
                    for (ptrdiff_t at = 0; at < (block_end - block) * kStepChannelBytes; at += 64)
                        run.rows.prefetch(tap, r + MR, run.k0 + block * kStepChannelBytes + at);
            for (int64_t k = block; k < block_end; ++k) {
                V bv[NV];
#pragma GCC unroll 4
                for (int j = 0; j < NV; ++j)
                    bv[j] = load(reinterpret_cast<const float*>(b + k * kStepBytes + j * 64));
#pragma GCC unroll 8
                for (int r = 0; r < MR; ++r) {
                    V av = PAIR ? bcast64(a[r] + k * 8) : bcast32(a[r] + k * 4);
#pragma GCC unroll 4
                    for (int j = 0; j < NV; ++j) acc[r][j] = dot<T>(acc[r][j], av, bv[j]);
                }
            }
        }
        if (rest) {  // the last channels: read no further than the pixel's own, a neighbour may be NaN
            const char* last = b + steps * kStepBytes;
            V bv[NV];
            for (int j = 0; j < NV; ++j) bv[j] = load(reinterpret_cast<const float*>(last + j * 64));
            for (int r = 0; r < MR; ++r) {
                const uint64_t bits = load_rest<T>(a[r] + steps * (PAIR ? 8 : 4), rest);
                V av = PAIR ? bcast64_bits(bits) : bcast32_bits(static_cast<uint32_t>(bits));
                for (int j = 0; j < NV; ++j) acc[r][j] = dot<T>(acc[r][j], av, bv[j]);
            }
        }
        b += tap_bytes;
    }
    return b;
}

// One vector of every row: `n` of its lanes are channels. FULL: all of them.
template <class T, int MR, int NV, bool PAIR, bool FULL>
SF_INLINE void finish_column(V (&acc)[MR][NV], const Finish& f, int j, int c, int n) {
    const V shift = !f.shift ? zero() : FULL ? load(f.shift + c) : load_n(f.shift + c, n);
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
        V v = acc[r][j];
        if (f.partial_in) v = add(v, load(f.partial_in + r * f.partial_ld + c));
        if (PAIR) v = fold_pairs(v);
        v = add(v, shift);
        if (f.residual) {
            const T* q = reinterpret_cast<const T*>(f.residual + r * f.residual_stride) + c;
            v = add(v, FULL ? load(q) : load_n(q, n));
        }
        if (f.relu) v = relu(v);
        T* o = reinterpret_cast<T*>(f.out + r * f.out_stride) + c;
        FULL ? store(o, v) : store_n(o, v, n);
    }
}

// Loops are unrolled whole: a loop over the accumulators would put them into memory.
template <class T, int MR, int NV, bool PAIR>
SF_INLINE void finish(V (&acc)[MR][NV], const Finish& f, int first) {
    // `first`: the panel's channel that acc[.][0] starts at
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) {
        const int c = first + j * kLanes;
        if (f.partial_out) {
#pragma GCC unroll 8
            for (int r = 0; r < MR; ++r) {
                V v = acc[r][j];
                if (f.partial_in) v = add(v, load(f.partial_in + r * f.partial_ld + c));
                store(f.partial_out + r * f.partial_ld + c, v);
            }
            continue;
        }
        const int n = f.channels - c;
        if (!PAIR && n >= kLanes)
            finish_column<T, MR, NV, PAIR, true>(acc, f, j, c, n);
        else if (n > 0)
            finish_column<T, MR, NV, PAIR, false>(acc, f, j, c, n);
    }
}

#if defined(__AVX512F__)
constexpr int kTileVectors = 4;  // vectors of a panel that one register tile holds
#else
constexpr int kTileVectors = 1;  // 16 registers of 8 lanes: 6 rows x 16 channels
#endif

// The residual and the output of a tile, on their way while its sums are computed: rows of a wide tensor lie
// pages apart, where the hardware does not prefetch.
template <int MR, int NV>
SF_INLINE void prefetch_rows(const Finish& f, int bytes) {
    if (f.partial_out) return;
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) {
            const int at = j * kLanes * bytes;
            if (bytes == 2 && j % 2) continue;  // two vectors a cache line
            if (f.residual) __builtin_prefetch(f.residual + r * f.residual_stride + at);
            __builtin_prefetch(f.out + r * f.out_stride + at, 1);
        }
}

// One tile of MR rows over a whole panel. Runs are processed in
// order, e.g. conv_c and then the shortcut conv.
template <class T, int MR, int PANEL, bool PAIR, class RowsA, class RowsB>
SF_INLINE void tile(const Run<RowsA>& first, const Run<RowsB>* second, const char* b, const Finish& f) {
    constexpr int NV = PANEL < kTileVectors ? PANEL : kTileVectors;
    if constexpr (PANEL >= 2) prefetch_rows<MR, PANEL>(f, sizeof(T));
    for (int j = 0; j < PANEL; j += NV) {
        V acc[MR][NV];
#pragma GCC unroll 8
        for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
            for (int i = 0; i < NV; ++i) acc[r][i] = zero();
        const char* p = accumulate<T, MR, NV, PANEL, PAIR>(acc, first, b + j * 64);
        if (second) accumulate<T, MR, NV, PANEL, PAIR>(acc, *second, p);
        finish<T, MR, NV, PAIR>(acc, f, j * kLanes);
    }
}

// Most rows of a tile: enough independent sums to hide the FMA latency, few enough for the registers.
template <int PANEL, bool PAIR>
constexpr int max_rows() {
#if defined(SLOWFAST_SMALL_TILES)  // the sanitizer build: the same addresses from a tenth of the code
    return 2;
#elif defined(__AVX512F__)
    return PANEL == 1 ? 8 : 6;
#else
    return 6;
#endif
}

// All rows of a strip over one panel. `rows` advances by whole tiles; the last tile is as short as needed.
template <class T, int PANEL, bool PAIR, class RowsA, class RowsB>
static void strip(Run<RowsA> first, const Run<RowsB>* second_in, const char* b, Finish f, int64_t n) {
    constexpr int M = max_rows<PANEL, PAIR>();
    Run<RowsB> second{};
    if (second_in) second = *second_in;
    const Run<RowsB>* sp = second_in ? &second : nullptr;
    while (n > 0) {
        const int rows = n < M ? static_cast<int>(n) : M;
        switch (rows) {
#define SF_CASE(R)                                                      \
    case R:                                                             \
        if constexpr (R <= M) tile<T, R, PANEL, PAIR>(first, sp, b, f); \
        break;
            SF_CASE(1)
            SF_CASE(2)
            SF_CASE(3)
            SF_CASE(4)
            SF_CASE(5)
            SF_CASE(6)
            SF_CASE(7)
            SF_CASE(8)
#undef SF_CASE
        }
        first.rows.advance(rows);
        if (second_in) second.rows.advance(rows);
        if (f.partial_in) f.partial_in += rows * f.partial_ld;
        if (f.partial_out) f.partial_out += rows * f.partial_ld;
        if (f.residual) f.residual += rows * f.residual_stride;
        f.out += rows * f.out_stride;
        n -= rows;
    }
}

// Chooses the strip for a panel's width.
template <class T, class RowsA, class RowsB>
static void panel_strip(const Run<RowsA>& first, const Run<RowsB>* second, int lanes, bool pair,
                        const char* b, const Finish& f, int64_t n) {
    if (pair) return strip<T, 1, true>(first, second, b, f, n);
    switch (lanes / kLanes) {
        case 1:
            return strip<T, 1, false>(first, second, b, f, n);
        case 2:
            return strip<T, 2, false>(first, second, b, f, n);
        case 3:
            return strip<T, 3, false>(first, second, b, f, n);
        default:
            return strip<T, 4, false>(first, second, b, f, n);
    }
}

}  // namespace slowfast::SLOWFAST_ISA
