// Tiles of the block kernels: of output pixels, and of the tensor cores.
//
// Weights come packed as the second operand's fragments (ops/bottleneck3d/cuda_pack.py): per 16 products and
// two tiles of eight channels, each lane's four registers together, so that one 16-byte load feeds two
// instructions. The order of the channels in the tiles is chosen such that a lane's results are neighbours in
// memory.
#pragma once

#include <type_traits>

#include "cuda/primitives.cuh"

namespace slowfast::cuda::tile {

// Tiles of eight channels that are stored together: a lane then holds 2 * joined(n) neighbours.
SF_HOST_DEVICE constexpr int joined(int channels) {
    return channels >= 32 ? 4 : channels / 8;
}

// Elements between rows of `channels` (a multiple of 8) in shared memory: an odd number of 16-byte units, so
// that the eight rows of an ldmatrix tile fall into different banks.
SF_HOST_DEVICE constexpr int row_pitch(int channels) {
    return ((channels / 8) | 1) * 8;
}

// The same for pixels of a map. Where their channels are whole 128 bytes, they lie without gaps.
SF_HOST_DEVICE constexpr int pixel_pitch(int channels) {
    return channels % 64 == 0 ? channels : row_pitch(channels);
}

// What a pixel's 16-byte units change places with: unit i lies at i ^ swizzle(pixel). Without gaps the eight of
// each 128 bytes do; and neighbours where every other pixel is read, whose second four would meet the first four.
struct Swizzle {
    int low, high;
    SF_DEVICE int operator()(int pixel) const { return (pixel & low) ^ (pixel / 8 & high); }
};
// step: pixels between those that are read together.
SF_HOST_DEVICE Swizzle pixel_swizzle(int channels, int step) {
    return {channels % 64 == 0 ? 7 : 0, channels % 16 == 0 && step % 2 == 0 ? 1 : 0};
}

// Packed elements of 16 products times `channels`.
SF_HOST_DEVICE constexpr int step_elements(int channels) {
    return 16 * channels;
}

// Weight fragments of Tiles tiles of 16 products: b[j] = both registers of tile j. `at` points to the step's
// first element of these tiles.
template <int Tiles, class T>
SF_DEVICE void load_weights(uint32_t (*b)[2], const T* at) {
    const uint32_t* words = reinterpret_cast<const uint32_t*>(at);
    if constexpr (Tiles == 1) {
        const auto v = load<2>(words + 2 * lane());
        b[0][0] = v[0];
        b[0][1] = v[1];
    } else {
        static_assert(Tiles % 2 == 0, "tiles come in pairs");
        SF_UNROLL
        for (int j = 0; j < Tiles; j += 2) {
            const auto v = load<4>(words + 64 * j + 4 * lane());
            b[j][0] = v[0];
            b[j][1] = v[1];
            b[j + 1][0] = v[2];
            b[j + 1][1] = v[3];
        }
    }
}

// d += a * b of Products (16 or 8) products.
template <class T, int Products>
SF_DEVICE void mma_products(float* d, const uint32_t* a, const uint32_t* b) {
    if constexpr (Products == 8) {
        mma_m16n8k8<T>(d, a, b);
    } else {
        mma_m16n8k16<T>(d, a, b);
    }
}

// acc[m][j] += the 16 x 16 values at rows[m] times step `weights`. rows[m]: this lane's ldmatrix row, that is
// row lane % 16 of the tile and its products 8 * (lane / 16) and on.
template <class T, int M, int Tiles>
SF_DEVICE void multiply16(float (&acc)[M][Tiles][4], const T* const (&rows)[M], const T* weights) {
    uint32_t b[Tiles][2];
    load_weights<Tiles>(b, weights);
    SF_UNROLL
    for (int m = 0; m < M; ++m) {
        uint32_t a[4];
        ldmatrix_x4(a, rows[m]);
        SF_UNROLL
        for (int j = 0; j < Tiles; ++j) mma_m16n8k16<T>(acc[m][j], a, b[j]);
    }
}

// The same for eight products, the first half of a step. rows[m]: row lane % 16.
template <class T, int M, int Tiles>
SF_DEVICE void multiply8(float (&acc)[M][Tiles][4], const T* const (&rows)[M], const T* weights) {
    uint32_t b[Tiles][2];
    load_weights<Tiles>(b, weights);
    SF_UNROLL
    for (int m = 0; m < M; ++m) {
        uint32_t a[2];
        ldmatrix_x2(a, rows[m]);
        SF_UNROLL
        for (int j = 0; j < Tiles; ++j) mma_m16n8k8<T>(acc[m][j], a, b[j]);
    }
}

// f(std::integral_constant<int, n>{}), for 1 <= n <= Most: how many tiles there are is then known when the loops
// over them are unrolled.
template <int Most, class F>
SF_DEVICE void with_count(int n, const F& f) {
    if constexpr (Most > 0) {
        if (n == Most) {
            f(std::integral_constant<int, Most>{});
        } else {
            with_count<Most - 1>(n, f);
        }
    }
}

// sums[tap][m][j] += `channels` products of the pixel at frame + rows[m] (this lane's row lane % 16, swizzle[m]
// its swizzle) and the weights of tile j from weights + tap * tap_step on, for each tap that is live(tap): what one
// ldmatrix brings meets all of them.
template <class T, int M, int Taps, int Most, int Tiles, class Live>
SF_DEVICE void multiply_channels(float (&sums)[Taps][Most][Tiles][4], const T* frame, const int (&rows)[M],
                                 const int (&swizzle)[M], int channels, const T* weights, int weight_step,
                                 int tap_step, const Live& live) {
    auto products = [&](auto count, const uint32_t (&a)[M][4]) {
        SF_UNROLL
        for (int tap = 0; tap < Taps; ++tap) {
            if (!live(tap)) continue;
            uint32_t b[Tiles][2];
            load_weights<Tiles>(b, weights + tap * tap_step);
            SF_UNROLL
            for (int m = 0; m < M; ++m) {
                SF_UNROLL
                for (int j = 0; j < Tiles; ++j) {
                    mma_products<T, decltype(count)::value>(sums[tap][m][j], a[m], b[j]);
                }
            }
        }
    };
    int unit = lane() / 16;
    auto step = [&] {
        uint32_t a[M][4];
        SF_UNROLL
        for (int m = 0; m < M; ++m) ldmatrix_x4(a[m], frame + rows[m] + 8 * (unit ^ swizzle[m]));
        products(std::integral_constant<int, 16>{}, a);
        weights += weight_step;
        unit += 2;
    };
    // Of few tiles two steps at a time, so that one's loads run ahead of the other's products.
    constexpr int kSteps = Taps * M * Tiles < 8 ? 2 : 1;
    int c = 0;
    SF_NO_UNROLL
    for (; c + 16 * kSteps <= channels; c += 16 * kSteps) {
        SF_UNROLL
        for (int i = 0; i < kSteps; ++i) step();
    }
    if (c + 16 <= channels) step();
    if (channels % 16 != 0) {
        uint32_t a[M][4];
        SF_UNROLL
        for (int m = 0; m < M; ++m) ldmatrix_x2(a[m], frame + rows[m] + (channels - 8));
        products(std::integral_constant<int, 8>{}, a);
    }
}

// The sums begin with what is added to them: shift[2 j + i] to column i of tile j that a lane has.
template <int M, int Tiles>
SF_DEVICE void begin(float (&acc)[M][Tiles][4], const Vec<float, 2 * Tiles>& shift) {
    SF_UNROLL
    for (int m = 0; m < M; ++m) {
        SF_UNROLL
        for (int j = 0; j < Tiles; ++j) {
            SF_UNROLL
            for (int i = 0; i < 4; ++i) acc[m][j][i] = shift[2 * j + i % 2];
        }
    }
}

// Results plus shift, clamped: a[k] is the first operand of step k of the next product. Tile j of eight
// channels is columns 8 j to 8 j + 7; shift points to the first.
template <class T, int M, int Tiles>
SF_DEVICE void to_operand(uint32_t (&a)[(Tiles + 1) / 2][M][4], const float (&acc)[M][Tiles][4],
                          const float* shift) {
    SF_UNROLL
    for (int m = 0; m < M; ++m) {
        SF_UNROLL
        for (int j = 0; j < Tiles; ++j) {
            const auto s = load<2>(shift + 8 * j + lane() % 4 * 2);
            a[j / 2][m][j % 2 * 2] = pack2_relu<T>(acc[m][j][0] + s[0], acc[m][j][1] + s[1]);
            a[j / 2][m][j % 2 * 2 + 1] = pack2_relu<T>(acc[m][j][2] + s[0], acc[m][j][3] + s[1]);
        }
    }
}

// acc[m][j] += the Products products of a[m] times step `weights`.
template <class T, int Products = 16, int M, int Tiles>
SF_DEVICE void multiply_operand(float (&acc)[M][Tiles][4], const uint32_t (&a)[M][4], const T* weights) {
    uint32_t b[Tiles][2];
    load_weights<Tiles>(b, weights);
    SF_UNROLL
    for (int m = 0; m < M; ++m) {
        SF_UNROLL
        for (int j = 0; j < Tiles; ++j) mma_products<T, Products>(acc[m][j], a[m], b[j]);
    }
}

// Row lane / 4 + 8 * half of the results of Tiles joined tiles from `first` on: 2 * Tiles neighbouring
// channels, from 2 * Tiles * (lane % 4) of theirs.
template <int Tiles, int All>
SF_DEVICE Vec<float, 2 * Tiles> row_of(const float (&acc)[All][4], int half, int first = 0) {
    Vec<float, 2 * Tiles> v;
    SF_UNROLL
    for (int j = 0; j < Tiles; ++j) {
        v[2 * j] = acc[first + j][2 * half];
        v[2 * j + 1] = acc[first + j][2 * half + 1];
    }
    return v;
}

template <int M, int Tiles>
SF_DEVICE void copy(float (&to)[M][Tiles][4], const float (&from)[M][Tiles][4]) {
    SF_UNROLL
    for (int m = 0; m < M; ++m) {
        SF_UNROLL
        for (int j = 0; j < Tiles; ++j) {
            SF_UNROLL
            for (int i = 0; i < 4; ++i) to[m][j][i] = from[m][j][i];
        }
    }
}

template <int M, int Tiles>
SF_DEVICE void clear(float (&acc)[M][Tiles][4]) {
    SF_UNROLL
    for (int m = 0; m < M; ++m) {
        SF_UNROLL
        for (int j = 0; j < Tiles; ++j) {
            SF_UNROLL
            for (int i = 0; i < 4; ++i) acc[m][j][i] = 0.0f;
        }
    }
}

// Rows between the lines of an output tile: every line begins a new eight rows where that takes no more than
// `rows`. An ldmatrix tile that breaks within it would meet a bank twice.
SF_HOST_DEVICE int line_rows(int tile_h, int tile_w, int rows) {
    const int eights = round_up(tile_w, 8);
    return eights * tile_h <= rows ? eights : tile_w;
}

// Of every row of the tile at (out_y, out_x): the first pixel of its window in the halo tile, and its index
// in the frame of the result, or -1. Rows that stand for no pixel read what the one before them reads.
template <int Threads, class Params>
SF_DEVICE void place(int* window, int* out_at, int rows, int halo_w, int out_y, int out_x, const Params& p) {
    const int line = line_rows(p.tile_h, p.tile_w, rows);
    for (int i = thread_x(); i < rows; i += Threads) {
        const int y = i / line, v = i % line;
        const bool in_tile = y < p.tile_h && v < p.tile_w;
        window[i] = y < p.tile_h ? (y * halo_w + (v < p.tile_w ? v : p.tile_w - 1)) * p.stride : 0;
        const bool in_frame = in_tile && out_y + y < p.out_height && out_x + v < p.out_width;
        out_at[i] = in_frame ? (out_y + y) * p.out_width + out_x + v : -1;
    }
}

// relu(acc + shift [+ residual]) of eight channels, rounded once.
template <class T>
SF_DEVICE Vec<T, 8> finished(Vec<float, 8> v, const Vec<float, 8>& shift) {
    SF_UNROLL
    for (int i = 0; i < 8; ++i) v[i] += shift[i];
    return relu_from_float<T>(v);
}
// relu(acc + residual), where the sums began with the shift.
template <class T>
SF_DEVICE Vec<T, 8> finished(Vec<float, 8> v, const Vec<T, 8>& residual) {
    const Vec<float, 8> r = to_float(residual);
    SF_UNROLL
    for (int i = 0; i < 8; ++i) v[i] += r[i];
    return relu_from_float<T>(v);
}
template <class T>
SF_DEVICE Vec<T, 8> finished(Vec<float, 8> v, const Vec<float, 8>& shift, const Vec<T, 8>& residual) {
    const Vec<float, 8> r = to_float(residual);
    SF_UNROLL
    for (int i = 0; i < 8; ++i) v[i] = v[i] + shift[i] + r[i];
    return relu_from_float<T>(v);
}

}  // namespace slowfast::cuda::tile
