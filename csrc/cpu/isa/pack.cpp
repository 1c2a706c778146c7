// Frames to normalised clips: 16 pixels (48 bytes, three vectors) at a time.

#include "cpu/isa/entry.h"
#include "cpu/isa/vec.h"

namespace slowfast::SLOWFAST_ISA {

namespace {

constexpr int kPixels = 16, kBytes = 3 * kPixels;

struct Chunk {
    __m128i v[3];
};

Chunk load_chunk(const uint8_t* p) {
    const __m128i* q = reinterpret_cast<const __m128i*>(p);
    return {{_mm_loadu_si128(q), _mm_loadu_si128(q + 1), _mm_loadu_si128(q + 2)}};
}

V to_float(__m128i bytes) {
#if defined(__AVX512F__)
    return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))};
#else
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)),
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)))};
#endif
}

// Any order of a chunk's 48 bytes: each output vector picks from all three input vectors.
struct Shuffle {
    __m128i pick[3][3];  // [output vector][input vector]; a set top bit picks nothing

    template <class Source>
    explicit Shuffle(Source source) {  // source(i): which byte becomes byte i
        uint8_t index[3][3][16];
        memset(index, 0x80, sizeof index);
        for (int i = 0; i < kBytes; ++i) {
            const int from = source(i);
            index[i / 16][from / 16][i % 16] = static_cast<uint8_t>(from % 16);
        }
        memcpy(pick, index, sizeof index);
    }
    Chunk operator()(const Chunk& c) const {
        Chunk out;
        for (int o = 0; o < 3; ++o)
            out.v[o] = _mm_or_si128(
                _mm_or_si128(_mm_shuffle_epi8(c.v[0], pick[o][0]), _mm_shuffle_epi8(c.v[1], pick[o][1])),
                _mm_shuffle_epi8(c.v[2], pick[o][2]));
        return out;
    }
};

// One row of pixels, `stride` bytes apart and their channels `channel` bytes apart.
struct Row {
    const uint8_t* p;
    int64_t stride, channel;
};

// Pixels [w, w + n) as 48 bytes R, G, B, R, ... with zeros after the n-th; nothing else is read.
SF_INLINE Chunk pixels_at(const Row& row, int64_t w, int n) {
    const uint8_t* q = row.p + w * row.stride;
    const bool dense = row.stride == 3 && row.channel == 1;
    if (dense && n == kPixels) return load_chunk(q);
    uint8_t bytes[kBytes] = {};
    if (dense)
        memcpy(bytes, q, static_cast<size_t>(3 * n));
    else
        for (int i = 0; i < n; ++i)
            for (int c = 0; c < 3; ++c) bytes[3 * i + c] = q[i * row.stride + c * row.channel];
    return load_chunk(bytes);
}

// Three channels, to one clip or to both.
template <class T>
void colour_row(const PackParams& a, const Row& row, int64_t pixels, T* out, T* second) {
    const Shuffle reverse([](int i) { return i - i % 3 + 2 - i % 3; });
    float scale[kBytes], shift[kBytes];
    for (int i = 0; i < kBytes; ++i) {
        scale[i] = a.scale[i % 3];
        shift[i] = a.shift[i % 3];
    }
    for (int64_t w = 0; w < pixels; w += kPixels) {
        const int n = pixels - w < kPixels ? static_cast<int>(pixels - w) : kPixels;
        Chunk c = pixels_at(row, w, n);
        if (a.reverse) c = reverse(c);
        for (int v = 0; v < 3; ++v) {
            const int lanes = 3 * n - v * kLanes;
            if (lanes <= 0) break;
            const V y = fma(to_float(c.v[v]), load(scale + v * kLanes), load(shift + v * kLanes));
            store_any(out + 3 * w + v * kLanes, y, lanes);
            if (second) store_any(second + 3 * w + v * kLanes, y, lanes);
        }
    }
}

// One channel: weighted sum of the three, of the frame or of its difference to the one before.
template <class T>
void gray_row(const PackParams& a, const Row& row, const Row* before, int64_t pixels, T* out) {
    const Shuffle planes([](int i) { return i % kPixels * 3 + i / kPixels; });
    const V shift = set1(a.gray_shift);
    for (int64_t w = 0; w < pixels; w += kPixels) {
        const int n = pixels - w < kPixels ? static_cast<int>(pixels - w) : kPixels;
        const Chunk now = planes(pixels_at(row, w, n));
        Chunk old{};
        if (before) old = planes(pixels_at(*before, w, n));
        V y = shift;
        for (int c = 0; c < 3; ++c) {
            V x = to_float(now.v[c]);
            if (before) x = sub(x, to_float(old.v[c]));  // exact: both are small integers
            y = fma(x, set1(a.gray_scale[c]), y);
        }
        store_any(out + w, y, n);
    }
}

template <class T>
void pack_rows(const PackParams& a, int64_t n, int64_t t, int64_t h0, int64_t h1) {
    // Rows without gaps are one long row.
    const bool joined = a.stride[3] == 3 && a.stride[4] == 1 && a.stride[2] == 3 * a.w;
    const int64_t pixels = joined ? (h1 - h0) * a.w : a.w, step = joined ? h1 - h0 : 1;
    const int64_t image = a.h * a.w, position = a.slow_first[t];
    const bool rgb = a.fast_input == FastInput::rgb;
    const uint8_t* frame = a.frames + n * a.stride[0] + t * a.stride[1];
    T* fast = reinterpret_cast<T*>(a.fast) + (n * a.t + t) * image * (rgb ? 3 : 1);
    T* slow_clip = reinterpret_cast<T*>(a.slow) + n * a.slow_t * image * 3;
    for (int64_t h = h0; h < h1; h += step) {
        const Row row{frame + h * a.stride[2], a.stride[3], a.stride[4]};
        T* slow = position < 0 ? nullptr : slow_clip + (position * image + h * a.w) * 3;
        if (rgb)
            colour_row(a, row, pixels, fast + h * a.w * 3, slow);
        else if (slow)
            colour_row(a, row, pixels, slow, static_cast<T*>(nullptr));
        if (a.fast_input == FastInput::gray) gray_row(a, row, nullptr, pixels, fast + h * a.w);
        if (a.fast_input == FastInput::time_diff) {
            if (t == 0) {
                memset(fast + h * a.w, 0, static_cast<size_t>(pixels) * sizeof(T));
            } else {
                const Row before{row.p - a.stride[1], row.stride, row.channel};
                gray_row(a, row, &before, pixels, fast + h * a.w);
            }
        }
        if (position < 0) continue;
        for (int64_t again = a.slow_next[position]; again >= 0; again = a.slow_next[again])
            memcpy(slow_clip + (again * image + h * a.w) * 3, slow,
                   static_cast<size_t>(3 * pixels) * sizeof(T));
    }
}

}  // namespace

void pack_item(const PackParams& a, int64_t n, int64_t t, int64_t h0, int64_t h1) {
    with_dtype<float, bf16, f16>(a.dtype, [&](auto zero) { pack_rows<decltype(zero)>(a, n, t, h0, h1); });
}

}  // namespace slowfast::SLOWFAST_ISA
