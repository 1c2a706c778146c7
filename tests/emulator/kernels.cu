// Kernels for the emulator's own tests, right and wrong on purpose, behind a C interface without torch.
// Compiled by the host compiler (a library, and a program with AddressSanitizer) and by nvcc.
//
// Every function takes pointers to device memory (host memory when emulated) and returns null or what went
// wrong.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda/primitives.cuh"

using namespace slowfast::cuda;

namespace {

// --- One warp: what each lane holds ------------------------------------------------------------------

// tiles: Tiles 8x8 matrices of 16-bit values, one after another; out[lane][Tiles].
template <int Tiles, bool Trans>
SF_KERNEL void ldmatrix_kernel(const uint16_t* tiles, uint32_t* out) {
    SF_SHARED(uint16_t, shared, Tiles * 64);
    for (int i = lane(); i < Tiles * 64; i += kWarp) shared[i] = tiles[i];
    syncthreads();
    uint32_t r[Tiles];
    const uint16_t* row = shared + 8 * (lane() % (8 * Tiles));
    if constexpr (Tiles == 1) Trans ? ldmatrix_x1_trans(r, row) : ldmatrix_x1(r, row);
    if constexpr (Tiles == 2) Trans ? ldmatrix_x2_trans(r, row) : ldmatrix_x2(r, row);
    if constexpr (Tiles == 4) Trans ? ldmatrix_x4_trans(r, row) : ldmatrix_x4(r, row);
    for (int i = 0; i < Tiles; ++i) out[lane() * Tiles + i] = r[i];
}

// Registers in, registers out: a[lane][A], b[lane][B], d[lane][4], updated.
enum class Mma { k16_bf16, k16_f16, k8_bf16, k8_f16, k8_tf32 };
template <Mma M>
SF_KERNEL void mma_kernel(const uint32_t* a, const uint32_t* b, float* d) {
    constexpr bool kFour = M == Mma::k16_bf16 || M == Mma::k16_f16 || M == Mma::k8_tf32;
    constexpr int A = kFour ? 4 : 2, B = A / 2;
    uint32_t ra[A], rb[B];
    float rd[4];
    for (int i = 0; i < A; ++i) ra[i] = a[lane() * A + i];
    for (int i = 0; i < B; ++i) rb[i] = b[lane() * B + i];
    for (int i = 0; i < 4; ++i) rd[i] = d[lane() * 4 + i];
    if constexpr (M == Mma::k16_bf16) mma_m16n8k16<bf16>(rd, ra, rb);
    if constexpr (M == Mma::k16_f16) mma_m16n8k16<f16>(rd, ra, rb);
    if constexpr (M == Mma::k8_bf16) mma_m16n8k8<bf16>(rd, ra, rb);
    if constexpr (M == Mma::k8_f16) mma_m16n8k8<f16>(rd, ra, rb);
    if constexpr (M == Mma::k8_tf32) mma_m16n8k8_tf32(rd, ra, rb);
    for (int i = 0; i < 4; ++i) d[lane() * 4 + i] = rd[i];
}

// out[lane][10]: every shuffle and vote on lane-dependent values.
SF_KERNEL void shuffle_kernel(int* out) {
    const int me = lane(), v = 100 + me;
    int* mine = out + 10 * me;
    mine[0] = shfl_sync(v, 7);
    mine[1] = shfl_xor_sync(v, 5);
    mine[2] = shfl_down_sync(v, 3);
    mine[3] = shfl_up_sync(v, 3);
    mine[4] = static_cast<int>(ballot_sync(me % 3 == 0));
    mine[5] = any_sync(me == 31);
    mine[6] = all_sync(me < 31);
    mine[7] = warp_sum(v);
    mine[8] = warp_max(v % 17);
    // Half a warp each, and a value of 8 bytes.
    const uint32_t half = me < 16 ? 0x0000ffffu : 0xffff0000u;
    const int64_t wide = shfl_xor_sync(int64_t(v) << 32 | me, 1, half);
    mine[9] = static_cast<int>(wide >> 32) - static_cast<int>(wide & 0xff);
}

template <class T>
SF_KERNEL void to_float_kernel(const T* x, float* y, int n) {
    const int i = block_x() * block_dim_x() + thread_x();
    if (i < n) y[i] = to_float(x[i]);
}
// Values one by one, and in pairs.
template <class T>
SF_KERNEL void from_float_kernel(const float* x, T* y, uint32_t* pairs, int n) {
    const int i = block_x() * block_dim_x() + thread_x();
    if (i < n) y[i] = from_float<T>(x[i]);
    if (i < n / 2) pairs[i] = pack2<T>(x[2 * i], x[2 * i + 1]);
}
template <class T>
SF_KERNEL void max2_kernel(const uint32_t* a, const uint32_t* b, uint32_t* y, int n) {
    const int i = block_x() * block_dim_x() + thread_x();
    if (i < n) y[i] = max2<T>(a[i], b[i]);
}
SF_KERNEL void to_tf32_kernel(const float* x, uint32_t* y, int n) {
    const int i = block_x() * block_dim_x() + thread_x();
    if (i < n) y[i] = to_tf32(x[i]);
}

// out[i] = the coordinates of the thread that has linear index i in the grid.
SF_KERNEL void index_kernel(int* out) {
    const int threads = block_dim_x() * block_dim_y() * block_dim_z();
    const int block = block_x() + grid_dim_x() * (block_y() + grid_dim_y() * block_z());
    int* mine = out + 8 * (block * threads + thread_id());
    mine[0] = thread_x();
    mine[1] = thread_y();
    mine[2] = thread_z();
    mine[3] = block_x();
    mine[4] = block_y();
    mine[5] = block_z();
    mine[6] = lane();
    mine[7] = warp();
}

// --- Right, or with one bug --------------------------------------------------------------------------
enum class Bug {
    none,
    no_barrier,         // before reading what another warp wrote
    no_syncwarp,        // before reading what another lane wrote
    no_wait,            // before reading what was copied asynchronously
    reuse,              // no barrier before a stage of the ring is filled again
    divergent_barrier,  // half the block is at another barrier
    missing_thread,     // a thread returns before the barrier
    missing_lane,       // a lane leaves out a warp primitive
    read_outside,       // one element behind a shared array, by a plain access
    write_outside,      // the same, written
    ldmatrix_outside,   // by a primitive
    misaligned,
    unwritten,  // reads shared memory that nobody wrote
};

// y[block][i] = x[block][127 - i] + x[block][i ^ 1] of 128 floats a block, through shared memory.
template <Bug B>
SF_KERNEL SF_LAUNCH_BOUNDS(128, 1) void mirror_kernel(const float* x, float* y) {
    SF_SHARED(float, values, 128);
    SF_SHARED(float, pairs, 128);
    const int i = thread_x(), block = block_x() * 128;
    cp_async4(values + i, x + block + i);
    cp_async_commit();
    if (B != Bug::no_wait) cp_async_wait<0>();
    if (B == Bug::missing_thread && i == 77) return;
    if (B == Bug::divergent_barrier) {
        if (i < 64) {
            syncthreads();
        } else {
            syncthreads();
        }
    } else if (B != Bug::no_barrier) {
        syncthreads();
    }
    if (B != Bug::unwritten || i != 5) pairs[i ^ 1] = values[i];
    if (B != Bug::no_syncwarp) syncwarp();
    const int last = B == Bug::read_outside ? 128 : 127;
    float v = values[last - i] + pairs[i];
    if (B == Bug::missing_lane && i == 40) return;
    if (any_sync(i == 1000)) v = 0;
    const int one_more = last + 1 + block_dim_x() / 1000;  // 128, but the compiler does not know
    if (B == Bug::write_outside && i == 0) values[one_more] = v;
    y[block + i] = v;
}

// Every lane reads rows of a shared tile of 8x8 through ldmatrix.
template <Bug B>
SF_KERNEL void rows_kernel(uint32_t* out) {
    SF_SHARED(uint16_t, tile, 64);
    for (int i = lane(); i < 64; i += kWarp) tile[i] = static_cast<uint16_t>(i);
    syncwarp();
    const int shift = B == Bug::ldmatrix_outside ? 8 : B == Bug::misaligned ? 1 : 0;
    uint32_t r;
    ldmatrix_x1(&r, tile + 8 * (lane() % 8) + shift * (lane() % 8 == 7));
    out[lane()] = r;
}

// c[M, N] = a[M, K] b[K, N], all row-major, c in float; K and N are multiples of 8.
// 128 threads compute 64 x 64; the tiles of a and b go through a ring of three stages.
template <class T, Bug B = Bug::none>
struct Gemm {
    static constexpr int kM = 64, kN = 64, kK = 32, kStages = 3, kThreads = 128;
    static constexpr int kPitchA = kK + 8, kPitchB = kN + 8;  // 16 bytes more: rows fall into different banks
    static constexpr int kStage = kM * kPitchA + kK * kPitchB;
    static constexpr int kSharedBytes = kStages * kStage * static_cast<int>(sizeof(T));

    const T* a;
    const T* b;
    float* c;
    int m, n, k;
    T* ring;

    SF_DEVICE T* tile_a(int stage) const { return ring + stage % kStages * kStage; }
    SF_DEVICE T* tile_b(int stage) const { return tile_a(stage) + kM * kPitchA; }

    SF_DEVICE void fill(int stage) const {
        const int k0 = stage * kK, m0 = block_y() * kM, n0 = block_x() * kN;
        for (int i = thread_x(); i < kM * kK / 8; i += kThreads) {
            const int row = i / (kK / 8), col = i % (kK / 8) * 8;
            const bool valid = m0 + row < m && k0 + col < k;
            cp_async16(tile_a(stage) + row * kPitchA + col, valid ? a + int64_t(m0 + row) * k + k0 + col : a,
                       valid);
        }
        for (int i = thread_x(); i < kK * kN / 8; i += kThreads) {
            const int row = i / (kN / 8), col = i % (kN / 8) * 8;
            const bool valid = k0 + row < k && n0 + col < n;
            cp_async16(tile_b(stage) + row * kPitchB + col, valid ? b + int64_t(k0 + row) * n + n0 + col : b,
                       valid);
        }
    }

    SF_DEVICE void run() const {
        const int m_warp = warp() / 2 * 32, n_warp = warp() % 2 * 32;
        const int steps = ceil_div(k, kK);
        float d[2][4][4] = {};
        for (int stage = 0; stage < kStages - 1; ++stage) {
            if (stage < steps) fill(stage);
            cp_async_commit();
        }
        for (int step = 0; step < steps; ++step) {
            if (B != Bug::no_wait) cp_async_wait<kStages - 2>();
            if (B != Bug::no_barrier) syncthreads();
            // After the barrier nobody reads the stage that is filled now.
            const int next = step + kStages - (B == Bug::reuse ? 0 : 1);
            if (next < steps) fill(next);
            cp_async_commit();
            SF_UNROLL
            for (int k0 = 0; k0 < kK; k0 += 16) {
                uint32_t fa[2][4], fb[2][4];
                SF_UNROLL
                for (int i = 0; i < 2; ++i) {
                    ldmatrix_x4(fa[i], tile_a(step) + (m_warp + 16 * i + lane() % 16) * kPitchA + k0 +
                                           lane() / 16 * 8);
                    ldmatrix_x4_trans(fb[i], tile_b(step) + (k0 + lane() % 16) * kPitchB + n_warp + 16 * i +
                                                 lane() / 16 * 8);
                }
                SF_UNROLL
                for (int i = 0; i < 2; ++i) {
                    SF_UNROLL
                    for (int j = 0; j < 4; ++j) mma_m16n8k16<T>(d[i][j], fa[i], fb[j / 2] + j % 2 * 2);
                }
            }
        }
        SF_UNROLL
        for (int i = 0; i < 2; ++i) {
            SF_UNROLL
            for (int j = 0; j < 4; ++j) {
                SF_UNROLL
                for (int half = 0; half < 2; ++half) {
                    const int row = block_y() * kM + m_warp + 16 * i + lane() / 4 + 8 * half;
                    const int col = block_x() * kN + n_warp + 8 * j + lane() % 4 * 2;
                    if (row < m && col < n) {
                        store(c + int64_t(row) * n + col,
                              Vec<float, 2>{d[i][j][2 * half], d[i][j][2 * half + 1]});
                    }
                }
            }
        }
    }
};

template <class T, Bug B>
SF_KERNEL SF_LAUNCH_BOUNDS(128, 2) void gemm_kernel(const T* a, const T* b, float* c, int m, int n, int k) {
    Gemm<T, B>{a, b, c, m, n, k, dynamic_shared<T>()}.run();
}

template <class T, Bug B>
void gemm(const void* a, const void* b, float* c, int m, int n, int k) {
    using G = Gemm<T, B>;
    SF_LAUNCH((gemm_kernel<T, B>), Dim3(ceil_div(n, G::kN), ceil_div(m, G::kM)), Dim3(G::kThreads),
              G::kSharedBytes, nullptr, static_cast<const T*>(a), static_cast<const T*>(b), c, m, n, k);
}

// A producer warp and a consumer warp that meet at named barriers: y = x + 1, 32 floats at a time.
SF_KERNEL void named_barrier_kernel(const float* x, float* y, int chunks) {
    SF_SHARED(float, chunk, 32);
    for (int i = 0; i < chunks; ++i) {
        if (warp() == 0) chunk[lane()] = x[32 * i + lane()] + 1;
        named_barrier(1, 64);
        if (warp() == 1) y[32 * i + lane()] = chunk[31 - lane()];
        named_barrier(2, 64);
    }
}

// out: 32 bytes of shared memory after a copy of 16, one of 8 and one of 4 bytes, of which `bytes` are read.
SF_KERNEL void copy_kernel(const unsigned char* x, int bytes16, int bytes8, int bytes4, unsigned char* out) {
    SF_SHARED(unsigned char, shared, 32);
    if (thread_x() == 0) {
        for (int i = 0; i < 32; ++i) shared[i] = 77;
        cp_async_bytes<16>(shared, x, bytes16);
        cp_async_bytes<8>(shared + 16, x + 16, bytes8);
        cp_async_bytes<4>(shared + 24, x + 24, bytes4);
        cp_async_commit();
        cp_async_wait<0>();
    }
    syncwarp();
    out[lane()] = shared[lane()];
}

// Four groups of one copy each; out: what has landed when at most `Left` are under way.
template <int Left>
SF_KERNEL void copy_groups_kernel(const int* x, int* out) {
    SF_SHARED(int, shared, 4);
    for (int i = 0; i < 4; ++i) {
        cp_async4(shared + i, x + i);
        cp_async_commit();
    }
    cp_async_wait<Left>();
    for (int i = 0; i < 4; ++i) out[i] = shared[i];
    cp_async_wait<0>();
}

// Every thread of every block adds its index and offers it as the maximum; old[] is each thread's ticket.
SF_KERNEL void atomic_kernel(int* sum, int* maximum, int* tickets, int* seen) {
    const int i = block_x() * block_dim_x() + thread_x();
    atomic_add(sum, i);
    atomic_max(maximum, i);
    atomic_add(seen + atomic_add(tickets, 1), 1);
}

// For nvcc's output alone: the accesses of whose addresses the compiler knows nothing.
template <class T>
SF_KERNEL void vectors_kernel(const T* x, T* y, int pitch) {
    constexpr int N = 16 / sizeof(T);
    const auto a = to_float(load<N>(x + pitch * thread_x())), b = to_float(load_readonly<N>(x));
    Vec<float, N> sum;
    for (int i = 0; i < N; ++i) sum[i] = a[i] + b[i];
    store(y + pitch * thread_x(), from_float<T>(sum));
}

// What the profile counts: `rounds` accesses of Bytes bytes a lane, at the offsets at[round][thread]; -1:
// none.
enum class Seen { shared_load, shared_store, global_load, global_store, copy, matrix };
template <Seen S, int Bytes>
SF_KERNEL void seen_kernel(const int* at, int rounds, bool meet, unsigned char* x) {
    SF_SHARED(unsigned char, shared, 8192);
    const Vec<unsigned char, Bytes> zeros{};
    for (int round = 0; round < rounds; ++round) {
        const int offset = at[round * block_dim_x() + thread_x()];
        if constexpr (S == Seen::matrix) {  // all lanes take part
            uint32_t r[4];
            ldmatrix_x4(r, shared + offset);
        } else if (offset >= 0) {
            if constexpr (S == Seen::shared_load) static_cast<void>(load<Bytes>(shared + offset));
            if constexpr (S == Seen::shared_store) store(shared + offset, zeros);
            if constexpr (S == Seen::global_load) static_cast<void>(load_readonly<Bytes>(x + offset));
            if constexpr (S == Seen::global_store) store(x + offset, zeros);
            if constexpr (S == Seen::copy) {
                cp_async_bytes<Bytes>(shared + offset, x + offset, round % 2 ? 0 : Bytes);
            }
        }
        if (meet) syncwarp();
    }
}

enum class Misuse {
    shuffle_outside_mask,
    not_in_its_mask,
    divergent_warp,
    load_misaligned,
    copy_misaligned,
    copy_outside,
    copy_too_much,
    static_too_much,
    half_warp_barrier,
    barrier_of_other_size,
};
template <Misuse M>
SF_KERNEL void misuse_kernel(int* out) {
    SF_SHARED(int, shared, 64);
    const int me = lane();
    int v = me;
    if constexpr (M == Misuse::shuffle_outside_mask) {
        if (me < 16) v = shfl_sync(v, 20, 0xffffu);
    } else if constexpr (M == Misuse::not_in_its_mask) {
        syncwarp(0xffffu);
    } else if constexpr (M == Misuse::divergent_warp) {
        if (me < 16) {
            v = shfl_xor_sync(v, 1);
        } else {
            v = shfl_xor_sync(v, 2);
        }
    } else if constexpr (M == Misuse::load_misaligned) {
        v = load<4>(shared + me)[0];
    } else if constexpr (M == Misuse::copy_misaligned) {
        cp_async8(shared, out + 1);
    } else if constexpr (M == Misuse::copy_outside) {
        cp_async16(shared + 64, out);
    } else if constexpr (M == Misuse::copy_too_much) {
        cp_async_bytes<8>(shared, out, 9);
    } else if constexpr (M == Misuse::static_too_much) {
        SF_SHARED(int, more, 12 * 1024 - 63);
        v = more[0];
    } else if constexpr (M == Misuse::half_warp_barrier) {
        named_barrier(1, 16);
    } else if constexpr (M == Misuse::barrier_of_other_size) {
        named_barrier(1, warp() == 0 ? 32 : 64);
        named_barrier(2, warp() == 0 ? 32 : 64);
    }
    out[thread_x()] = v;
}

SF_KERNEL void throwing_kernel(int* out) {
#ifdef SLOWFAST_EMULATE
    if (thread_x() == 3) slowfast::emulator::fail("thread %d has had enough", thread_x());
#endif
    out[thread_x()] = 1;
    syncthreads();
}

// --- C interface -------------------------------------------------------------------------------------
template <class F>
const char* guarded(F f) {
    static thread_local std::string message;
    try {
        f();
        return nullptr;
    } catch (const std::exception& error) {
        message = error.what();
        return message.c_str();
    }
}

template <class F>
void with_bug(int bug, F f) {
    switch (static_cast<Bug>(bug)) {
#define CASE(name)  \
    case Bug::name: \
        return f(std::integral_constant<Bug, Bug::name>{});
        CASE(none)
        CASE(no_barrier)
        CASE(no_syncwarp)
        CASE(no_wait)
        CASE(reuse)
        CASE(divergent_barrier)
        CASE(missing_thread)
        CASE(missing_lane)
        CASE(read_outside)
        CASE(write_outside)
        CASE(ldmatrix_outside)
        CASE(misaligned)
        CASE(unwritten)
#undef CASE
    }
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default"))) const char*

EXPORT test_ldmatrix(int tiles, bool trans, const uint16_t* in, uint32_t* out) {
    return guarded([=] {
        if (tiles == 1 && !trans) SF_LAUNCH((ldmatrix_kernel<1, false>), 1, 32, 0, nullptr, in, out);
        if (tiles == 2 && !trans) SF_LAUNCH((ldmatrix_kernel<2, false>), 1, 32, 0, nullptr, in, out);
        if (tiles == 4 && !trans) SF_LAUNCH((ldmatrix_kernel<4, false>), 1, 32, 0, nullptr, in, out);
        if (tiles == 1 && trans) SF_LAUNCH((ldmatrix_kernel<1, true>), 1, 32, 0, nullptr, in, out);
        if (tiles == 2 && trans) SF_LAUNCH((ldmatrix_kernel<2, true>), 1, 32, 0, nullptr, in, out);
        if (tiles == 4 && trans) SF_LAUNCH((ldmatrix_kernel<4, true>), 1, 32, 0, nullptr, in, out);
    });
}

EXPORT test_mma(int which, const uint32_t* a, const uint32_t* b, float* d) {
    return guarded([=] {
        if (which == 0) SF_LAUNCH((mma_kernel<Mma::k16_bf16>), 1, 32, 0, nullptr, a, b, d);
        if (which == 1) SF_LAUNCH((mma_kernel<Mma::k16_f16>), 1, 32, 0, nullptr, a, b, d);
        if (which == 2) SF_LAUNCH((mma_kernel<Mma::k8_bf16>), 1, 32, 0, nullptr, a, b, d);
        if (which == 3) SF_LAUNCH((mma_kernel<Mma::k8_f16>), 1, 32, 0, nullptr, a, b, d);
        if (which == 4) SF_LAUNCH((mma_kernel<Mma::k8_tf32>), 1, 32, 0, nullptr, a, b, d);
    });
}

EXPORT test_shuffle(int* out) {
    return guarded([=] { SF_LAUNCH(shuffle_kernel, 1, 32, 0, nullptr, out); });
}

EXPORT test_to_float(bool is_bf16, const void* x, float* y, int n) {
    return guarded([=] {
        const Dim3 grid(ceil_div(n, 256));
        if (is_bf16) {
            SF_LAUNCH((to_float_kernel<bf16>), grid, 256, 0, nullptr, static_cast<const bf16*>(x), y, n);
        } else {
            SF_LAUNCH((to_float_kernel<f16>), grid, 256, 0, nullptr, static_cast<const f16*>(x), y, n);
        }
    });
}

EXPORT test_from_float(bool is_bf16, const float* x, void* y, uint32_t* pairs, int n) {
    return guarded([=] {
        const Dim3 grid(ceil_div(n, 256));
        if (is_bf16) {
            SF_LAUNCH((from_float_kernel<bf16>), grid, 256, 0, nullptr, x, static_cast<bf16*>(y), pairs, n);
        } else {
            SF_LAUNCH((from_float_kernel<f16>), grid, 256, 0, nullptr, x, static_cast<f16*>(y), pairs, n);
        }
    });
}

EXPORT test_max2(bool is_bf16, const uint32_t* a, const uint32_t* b, uint32_t* y, int n) {
    return guarded([=] {
        const Dim3 grid(ceil_div(n, 256));
        if (is_bf16) {
            SF_LAUNCH((max2_kernel<bf16>), grid, 256, 0, nullptr, a, b, y, n);
        } else {
            SF_LAUNCH((max2_kernel<f16>), grid, 256, 0, nullptr, a, b, y, n);
        }
    });
}

EXPORT test_to_tf32(const float* x, uint32_t* y, int n) {
    return guarded([=] { SF_LAUNCH(to_tf32_kernel, Dim3(ceil_div(n, 256)), 256, 0, nullptr, x, y, n); });
}

EXPORT test_index(int* out) {
    return guarded([=] { SF_LAUNCH(index_kernel, Dim3(2, 3, 2), Dim3(8, 4, 2), 0, nullptr, out); });
}

EXPORT test_mirror(int bug, const float* x, float* y, int blocks) {
    return guarded([=] {
        with_bug(bug, [=](auto b) {
            SF_LAUNCH((mirror_kernel<decltype(b)::value>), Dim3(blocks), 128, 0, nullptr, x, y);
        });
    });
}

EXPORT test_rows(int bug, uint32_t* out) {
    return guarded([=] {
        with_bug(bug, [=](auto b) { SF_LAUNCH((rows_kernel<decltype(b)::value>), 1, 32, 0, nullptr, out); });
    });
}

EXPORT test_gemm(int bug, bool is_bf16, const void* a, const void* b, float* c, int m, int n, int k) {
    return guarded([=] {
        if (!is_bf16) return gemm<f16, Bug::none>(a, b, c, m, n, k);
        switch (static_cast<Bug>(bug)) {
            case Bug::no_wait:
                return gemm<bf16, Bug::no_wait>(a, b, c, m, n, k);
            case Bug::no_barrier:
                return gemm<bf16, Bug::no_barrier>(a, b, c, m, n, k);
            case Bug::reuse:
                return gemm<bf16, Bug::reuse>(a, b, c, m, n, k);
            default:
                return gemm<bf16, Bug::none>(a, b, c, m, n, k);
        }
    });
}

EXPORT test_named_barrier(const float* x, float* y, int chunks) {
    return guarded([=] { SF_LAUNCH(named_barrier_kernel, 1, 64, 0, nullptr, x, y, chunks); });
}

EXPORT test_copy(const unsigned char* x, int bytes16, int bytes8, int bytes4, unsigned char* out) {
    return guarded([=] { SF_LAUNCH(copy_kernel, 1, 32, 0, nullptr, x, bytes16, bytes8, bytes4, out); });
}

EXPORT test_copy_groups(int left, const int* x, int* out) {
    return guarded([=] {
        if (left == 0) SF_LAUNCH((copy_groups_kernel<0>), 1, 1, 0, nullptr, x, out);
        if (left == 1) SF_LAUNCH((copy_groups_kernel<1>), 1, 1, 0, nullptr, x, out);
        if (left == 2) SF_LAUNCH((copy_groups_kernel<2>), 1, 1, 0, nullptr, x, out);
        if (left == 4) SF_LAUNCH((copy_groups_kernel<4>), 1, 1, 0, nullptr, x, out);
    });
}

EXPORT test_atomics(int* sum, int* maximum, int* tickets, int* seen) {
    return guarded([=] { SF_LAUNCH(atomic_kernel, 4, 96, 0, nullptr, sum, maximum, tickets, seen); });
}

EXPORT test_vectors(const float* x, float* y, const bf16* a, bf16* b, int pitch) {
    return guarded([=] {
        SF_LAUNCH((vectors_kernel<float>), 1, 32, 0, nullptr, x, y, pitch);
        SF_LAUNCH((vectors_kernel<bf16>), 1, 32, 0, nullptr, a, b, pitch);
    });
}

#ifdef SLOWFAST_EMULATE
EXPORT test_seen(int seen, int bytes, const int* at, int rounds, bool meet, int blocks, int threads,
                 unsigned char* x) {
    return guarded([=] {
        const Dim3 grid(blocks), block(threads);
        switch (100 * seen + bytes) {
#define CASE(name, size)                            \
    case 100 * static_cast<int>(Seen::name) + size: \
        return SF_LAUNCH((seen_kernel<Seen::name, size>), grid, block, 0, nullptr, at, rounds, meet, x);
            CASE(shared_load, 2)
            CASE(shared_load, 4)
            CASE(shared_load, 8)
            CASE(shared_load, 16)
            CASE(shared_store, 4)
            CASE(shared_store, 16)
            CASE(global_load, 1)
            CASE(global_load, 4)
            CASE(global_load, 16)
            CASE(global_store, 4)
            CASE(global_store, 16)
            CASE(copy, 16)
            CASE(matrix, 16)
#undef CASE
        }
        throw std::runtime_error("no such case");
    });
}

EXPORT test_misuse(int misuse, int* out) {
    return guarded([=] {
        switch (static_cast<Misuse>(misuse)) {
#define CASE(name)     \
    case Misuse::name: \
        return SF_LAUNCH((misuse_kernel<Misuse::name>), 1, 64, 0, nullptr, out);
            CASE(shuffle_outside_mask)
            CASE(not_in_its_mask)
            CASE(divergent_warp)
            CASE(load_misaligned)
            CASE(copy_misaligned)
            CASE(copy_outside)
            CASE(copy_too_much)
            CASE(static_too_much)
            CASE(half_warp_barrier)
            CASE(barrier_of_other_size)
#undef CASE
        }
    });
}
#endif

EXPORT test_throw(int* out) {
    return guarded([=] { SF_LAUNCH(throwing_kernel, 1, 64, 0, nullptr, out); });
}

EXPORT test_limits(int blocks, int threads, int64_t shared_bytes, int* out) {
    return guarded([=] {
        SF_LAUNCH(throwing_kernel, Dim3(blocks), Dim3(threads), static_cast<size_t>(shared_bytes), nullptr,
                  out);
    });
}

#ifdef SLOWFAST_TEST_PROGRAM
// Program of the AddressSanitizer build: mirror BUG | rows BUG | gemm BUG, with the numbers of the
// enumeration.
int main(int argc, char** argv) {
    if (argc != 3) return 2;
    const std::string which = argv[1];
    const int bug = std::atoi(argv[2]);
    const char* error = nullptr;
    if (which == "mirror") {
        std::vector<float> x(128 * 4), y(x.size());
        for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
        error = test_mirror(bug, x.data(), y.data(), 4);
        for (size_t i = 0; !error && i < x.size(); ++i) {
            const size_t block = i / 128 * 128, j = i % 128;
            if (y[i] != x[block + 127 - j] + x[block + (j ^ 1)]) error = "wrong result";
        }
    } else if (which == "rows") {
        std::vector<uint32_t> out(32);
        error = test_rows(bug, out.data());
    } else if (which == "gemm") {
        const int m = 70, n = 72, k = 72;
        std::vector<uint16_t> a(m * k, 0x3f80), b(k * n, 0x3f80);
        std::vector<float> c(m * n);
        error = test_gemm(bug, true, a.data(), b.data(), c.data(), m, n, k);
        for (size_t i = 0; !error && i < c.size(); ++i) {
            if (c[i] != static_cast<float>(k)) error = "wrong result";
        }
    }
    std::puts(error ? error : "fine");
    return error ? 1 : 0;
}
#endif
