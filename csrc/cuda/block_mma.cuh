// Tiles of the block kernels: of output pixels, and of the tensor cores.
//
// Weights come packed as the second operand's fragments (ops/bottleneck3d/cuda_pack.py): per 16 products and
// two tiles of eight channels, each lane's four registers together, so that one 16-byte load feeds two
// instructions. The order of the channels in the tiles is chosen such that a lane's results are neighbours in
// memory.
#pragma once

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

// `channels` products from consecutive channels at rows[m] (this lane's row lane % 16, channel 0).
template <class T, int M, int Tiles>
SF_DEVICE void multiply_channels(float (&acc)[M][Tiles][4], const T* const (&rows)[M], int channels,
                                 const T* weights, int weight_step) {
    const T* at[M];
    SF_UNROLL
    for (int m = 0; m < M; ++m) at[m] = rows[m] + lane() / 16 * 8;
    auto step = [&] {
        multiply16<T, M, Tiles>(acc, at, weights);
        weights += weight_step;
        SF_UNROLL
        for (int m = 0; m < M; ++m) at[m] += 16;
    };
    // Two steps at a time, so that one's loads run ahead of the other's products.
    int c = 0;
    SF_NO_UNROLL
    for (; c + 32 <= channels; c += 32) {
        step();
        step();
    }
    if (c + 16 <= channels) step();
    if (channels % 16 != 0) {
        SF_UNROLL
        for (int m = 0; m < M; ++m) at[m] -= lane() / 16 * 8;
        multiply8<T, M, Tiles>(acc, at, weights);
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
        for (int j = 0; j < Tiles; ++j) {
            if constexpr (Products == 8) {
                mma_m16n8k8<T>(acc[m][j], a[m], b[j]);
            } else {
                mma_m16n8k16<T>(acc[m][j], a[m], b[j]);
            }
        }
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
SF_DEVICE int line_rows(int tile_h, int tile_w, int rows) {
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
