// What a warp does together: shuffles, votes, ldmatrix, mma. Fragment layouts as in the PTX ISA.

#include "cuda/primitives.cuh"

namespace slowfast::cuda::detail {

namespace {

template <class F>
void for_each_lane(uint32_t mask, F f) {
    for (int lane = 0; lane < kWarp; ++lane) {
        if (mask >> lane & 1) f(lane);
    }
}

// --- ldmatrix ----------------------------------------------------------------------------------------
struct LdMatrix {
    uint32_t* r;
    const char* row;
};

template <int Tiles, bool Trans>
void ldmatrix_work(void* const* lanes, uint32_t) {
    for (int tile = 0; tile < Tiles; ++tile) {
        const char* rows[8];
        for (int r = 0; r < 8; ++r) rows[r] = static_cast<const LdMatrix*>(lanes[8 * tile + r])->row;
        for (int lane = 0; lane < kWarp; ++lane) {
            const int g = lane / 4, t = lane % 4;
            uint16_t two[2];
            if (Trans) {
                std::memcpy(&two[0], rows[2 * t] + 2 * g, 2);
                std::memcpy(&two[1], rows[2 * t + 1] + 2 * g, 2);
            } else {
                std::memcpy(two, rows[g] + 4 * t, 4);
            }
            static_cast<LdMatrix*>(lanes[lane])->r[tile] = two[0] | static_cast<uint32_t>(two[1]) << 16;
        }
    }
}

// --- mma ---------------------------------------------------------------------------------------------
struct Mma {
    float* d;
    const uint32_t* a;
    const uint32_t* b;
};

struct Tf32 {};

// A register is a pair of 16-bit values, neighbours along k, or one tf32, of which the low bits are not read.
template <class T>
constexpr int kPerRegister = std::is_same_v<T, Tf32> ? 1 : 2;

template <class T>
float element(uint32_t bits, int i) {
    if constexpr (std::is_same_v<T, Tf32>) {
        return bit_cast<float>(bits & ~0x1fffu);
    } else {
        return to_float(T{static_cast<uint16_t>(bits >> (16 * i))});
    }
}

template <class T, int K>
void mma_work(void* const* lanes, uint32_t) {
    constexpr int P = kPerRegister<T>;
    constexpr int kHalves = K / (4 * P);  // registers along k
    float a[16][K], b[K][8], d[16][8];
    for (int lane = 0; lane < kWarp; ++lane) {
        const Mma& m = *static_cast<const Mma*>(lanes[lane]);
        const int g = lane / 4, t = lane % 4;
        for (int half = 0; half < kHalves; ++half) {
            for (int i = 0; i < P; ++i) {
                const int k = half * 4 * P + t * P + i;
                a[g][k] = element<T>(m.a[2 * half], i);
                a[g + 8][k] = element<T>(m.a[2 * half + 1], i);
                b[k][g] = element<T>(m.b[half], i);
            }
        }
        for (int i = 0; i < 4; ++i) d[g + 8 * (i / 2)][2 * t + i % 2] = m.d[i];
    }
    for (int row = 0; row < 16; ++row) {
        for (int k = 0; k < K; ++k) {
            for (int n = 0; n < 8; ++n) d[row][n] += a[row][k] * b[k][n];
        }
    }
    for (int lane = 0; lane < kWarp; ++lane) {
        const Mma& m = *static_cast<const Mma*>(lanes[lane]);
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; ++i) m.d[i] = d[g + 8 * (i / 2)][2 * t + i % 2];
    }
}

template <class T, int K>
void mma(const char* what, float* d, const uint32_t* a, const uint32_t* b, Site site) {
    if (__builtin_expect(emulator::profiling, false) && lane() == 0) emulator::count_mma(what);
    Mma m{d, a, b};
    emulator::meet(what, kFullWarp, mma_work<T, K>, &m, site);
}

}  // namespace

void shuffle_work(void* const* lanes, uint32_t mask) {
    for_each_lane(mask, [&](int lane) {
        Shuffle& s = *static_cast<Shuffle*>(lanes[lane]);
        s.theirs = static_cast<const Shuffle*>(lanes[s.from])->mine;
    });
}

void ballot_work(void* const* lanes, uint32_t mask) {
    uint32_t all = 0;
    for_each_lane(mask, [&](int lane) {
        all |= static_cast<uint32_t>(static_cast<const Ballot*>(lanes[lane])->mine) << lane;
    });
    for_each_lane(mask, [&](int lane) { static_cast<Ballot*>(lanes[lane])->all = all; });
}

void ldmatrix(int tiles, bool trans, uint32_t* r, const void* row, Site site) {
    constexpr emulator::Work work[2][3] = {
        {ldmatrix_work<1, false>, ldmatrix_work<2, false>, ldmatrix_work<4, false>},
        {ldmatrix_work<1, true>, ldmatrix_work<2, true>, ldmatrix_work<4, true>}};
    if (lane() < 8 * tiles) {
        emulator::check_shared(row, 16, 16, "ldmatrix", site);
        emulator::seen(emulator::Access::matrix, row, 16, site);
    }
    LdMatrix m{r, static_cast<const char*>(row)};
    emulator::meet("ldmatrix", kFullWarp, work[trans][tiles / 2], &m, site);
}

void mma_bf16_k16(float* d, const uint32_t* a, const uint32_t* b, Site site) {
    mma<bf16, 16>("mma_m16n8k16", d, a, b, site);
}
void mma_bf16_k8(float* d, const uint32_t* a, const uint32_t* b, Site site) {
    mma<bf16, 8>("mma_m16n8k8", d, a, b, site);
}
void mma_f16_k16(float* d, const uint32_t* a, const uint32_t* b, Site site) {
    mma<f16, 16>("mma_m16n8k16", d, a, b, site);
}
void mma_f16_k8(float* d, const uint32_t* a, const uint32_t* b, Site site) {
    mma<f16, 8>("mma_m16n8k8", d, a, b, site);
}
void mma_tf32_k8(float* d, const uint32_t* a, const uint32_t* b, Site site) {
    mma<Tf32, 8>("mma_m16n8k8_tf32", d, a, b, site);
}

}  // namespace slowfast::cuda::detail
