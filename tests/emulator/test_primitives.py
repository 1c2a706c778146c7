"""Every primitive against formulas written here from the PTX manual: on the emulator, and on a GPU if there is one."""

import itertools

import pytest
import torch

LANES = range(32)
G = [lane // 4 for lane in LANES]  # "groupID" of the manual
T = [lane % 4 for lane in LANES]  # "threadID_in_group"

# name -> (number in kernels.cu, k, dtype)
MMA = {
    "m16n8k16.bf16": (0, 16, torch.bfloat16),
    "m16n8k16.f16": (1, 16, torch.float16),
    "m16n8k8.bf16": (2, 8, torch.bfloat16),
    "m16n8k8.f16": (3, 8, torch.float16),
    "m16n8k8.tf32": (4, 8, torch.float32),
}


def a_index(lane, i, k, dtype):
    """(row, column) of element i of a lane's A fragment; PTX ISA, "Matrix Fragments for mma.m16n8k16" and k8."""
    if dtype == torch.float32:  # a0..a3
        return G[lane] + 8 * (i % 2), T[lane] + 4 * (i // 2)
    if k == 8:
        return G[lane] + (8 if i >= 2 else 0), 2 * T[lane] + i % 2
    return (G[lane] if i < 2 or 4 <= i < 6 else G[lane] + 8), 2 * T[lane] + i % 2 + (8 if i >= 4 else 0)


def b_index(lane, i, k, dtype):
    if dtype == torch.float32:
        return T[lane] + 4 * i, G[lane]
    return 2 * T[lane] + i % 2 + (8 if i >= 2 else 0), G[lane]


def c_index(lane, i):
    return G[lane] + (8 if i >= 2 else 0), 2 * T[lane] + i % 2


def fragments(matrix, index, per_lane, k):
    dtype = matrix.dtype
    rows = [[matrix[index(lane, i, k, dtype)] for i in range(per_lane)] for lane in LANES]
    return torch.tensor(rows, dtype=torch.float32).to(dtype)


@pytest.mark.parametrize("name", MMA)
def test_mma_is_the_product_of_its_fragments(kernels, name):
    number, k, dtype = MMA[name]
    a, b, c = torch.randn(16, k).to(dtype), torch.randn(k, 8).to(dtype), torch.randn(16, 8)
    if dtype == torch.float32:  # tf32 has 10 bits of mantissa; the rest must be ignored
        a, b = ((x.view(torch.int32) & ~0x1FFF).view(torch.float32) for x in (a, b))
    fa = fragments(a, a_index, 16 * k // 32, k)
    fb = fragments(b, b_index, 8 * k // 32, k)
    if dtype == torch.float32:
        noise = torch.randint(0, 0x2000, fa.shape, dtype=torch.int32)
        fa = (fa.view(torch.int32) | noise).view(torch.float32)
    fd = torch.tensor([[c[c_index(lane, i)] for i in range(4)] for lane in LANES])
    fa, fb, fd = (x.to(kernels.device).contiguous() for x in (fa, fb, fd))
    kernels.call("test_mma", number, fa, fb, fd)
    expected = c.double() + a.double() @ b.double()
    got = torch.full((16, 8), float("nan"))
    for lane, i in itertools.product(LANES, range(4)):
        got[c_index(lane, i)] = fd[lane, i]
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MMA)
def test_mma_keeps_every_element_apart(kernels, name):
    """One 1 in A and one in B at a time: no sum can hide a wrong place."""
    number, k, dtype = MMA[name]
    for row, inner, column in [
        (0, 0, 0),
        (3, k - 1, 7),
        (15, 5, 2),
        (8, k // 2, 4),
        (7, 3, 1),
        (12, k - 2, 6),
    ]:
        a, b = torch.zeros(16, k, dtype=dtype), torch.zeros(k, 8, dtype=dtype)
        a[row, inner] = b[inner, column] = 1
        fa, fb = fragments(a, a_index, k // 2, k), fragments(b, b_index, k // 4, k)
        fa, fb = fa.to(kernels.device), fb.to(kernels.device)
        fd = torch.zeros(32, 4, device=kernels.device)
        kernels.call("test_mma", number, fa, fb, fd)
        hits = [c_index(lane, i) for lane, i in itertools.product(LANES, range(4)) if fd[lane, i] != 0]
        assert hits == [(row, column)]
        assert fd.sum() == 1


@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize("tiles", [1, 2, 4])
def test_ldmatrix_gives_each_lane_its_pair(kernels, tiles, trans):
    values = torch.arange(tiles * 64, dtype=torch.int16) + 1000
    out = torch.zeros(32, tiles, dtype=torch.int32, device=kernels.device)
    kernels.call("test_ldmatrix", tiles, trans, values.to(kernels.device), out)
    matrix = values.reshape(tiles, 8, 8).tolist()
    for lane, tile in itertools.product(LANES, range(tiles)):
        g, t = G[lane], T[lane]
        low, high = (
            (matrix[tile][2 * t][g], matrix[tile][2 * t + 1][g])
            if trans
            else matrix[tile][g][2 * t : 2 * t + 2]
        )
        assert out[lane, tile] == low | high << 16


def test_shuffles_and_votes(kernels):
    out = torch.zeros(32, 10, dtype=torch.int32, device=kernels.device)
    kernels.call("test_shuffle", out)
    for lane, row in enumerate(out.tolist()):
        ballot = sum(1 << i for i in range(0, 32, 3))
        assert row == [
            107,
            100 + (lane ^ 5),
            100 + (lane + 3 if lane + 3 < 32 else lane),
            100 + (lane - 3 if lane >= 3 else lane),
            ballot - (1 << 32 if ballot >> 31 else 0),
            1,
            0,
            sum(range(100, 132)),
            16,
            100,
        ]


def test_coordinates(kernels):
    out = torch.full((2 * 3 * 2 * 64, 8), -1, dtype=torch.int32, device=kernels.device)
    kernels.call("test_index", out)
    expected = [
        [tx, ty, tz, bx, by, bz, i % 32, i // 32]
        for bz, by, bx in itertools.product(range(2), range(3), range(2))
        for i, (tz, ty, tx) in enumerate(itertools.product(range(2), range(4), range(8)))
    ]
    assert out.tolist() == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_number_to_float(kernels, dtype):
    x = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    y = torch.empty(x.numel(), device=kernels.device)
    kernels.call("test_to_float", dtype == torch.bfloat16, x.to(kernels.device), y, x.numel())
    torch.testing.assert_close(y.cpu(), x.float(), rtol=0, atol=0, equal_nan=True)


def floats():
    """All exponents, and mantissas around every rounding of 16-bit numbers."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(1 << 31), 1 << 31, (1 << 16,), generator=generator)
    ties = (bits & ~0x1FFF) | 0x1000
    near = [
        ties,
        ties + 1,
        ties - 1,
        (bits & ~0xFFFF) | 0x8000,
        (bits & ~0xFFFF) | 0x7FFF,
        (bits & ~0xFFFF) | 0x8001,
    ]
    special = torch.tensor(
        [0.0, -0.0, float("inf"), -float("inf"), 65519.996, 65520.0, 65504.0, 6e-8, 2.98e-8, 3.0e-8]
    )
    return torch.cat([bits, *near]).to(torch.int32).view(torch.float32), special


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float_to_16_bits_rounds_to_nearest_even(kernels, dtype):
    x = torch.cat(floats())
    y = torch.empty(x.numel(), dtype=dtype, device=kernels.device)
    pairs = torch.empty(x.numel() // 2, dtype=torch.int32, device=kernels.device)
    kernels.call("test_from_float", dtype == torch.bfloat16, x.to(kernels.device), y, pairs, x.numel())
    torch.testing.assert_close(y.cpu(), x.to(dtype), rtol=0, atol=0, equal_nan=True)
    packed = pairs.view(dtype).cpu()
    torch.testing.assert_close(packed, x.to(dtype)[: packed.numel()], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_maxima_of_pairs_keep_nan(kernels, dtype):
    x = torch.cat(
        [floats()[1].to(dtype), torch.randn(1000).to(dtype), torch.full((50,), torch.nan).to(dtype)]
    )
    x = x[: x.numel() // 2 * 2]
    others = x[torch.randperm(x.numel(), generator=torch.Generator().manual_seed(1))]
    y = torch.empty_like(x).to(kernels.device)
    kernels.call(
        "test_max2",
        dtype == torch.bfloat16,
        x.to(kernels.device),
        others.to(kernels.device),
        y,
        x.numel() // 2,
    )
    assert y.isnan().any()
    torch.testing.assert_close(y.cpu(), torch.maximum(x, others), rtol=0, atol=0, equal_nan=True)


def test_float_to_tf32_rounds_ties_away_from_zero(kernels):
    x = torch.cat(floats())
    x = x[x.isfinite()]
    y = torch.empty(x.numel(), dtype=torch.int32, device=kernels.device)
    kernels.call("test_to_tf32", x.to(kernels.device), y, x.numel())
    step = torch.ldexp(
        torch.ones_like(x), torch.frexp(x)[1].clamp(min=-125) - 11
    ).double()  # of 11 significant bits
    exact = x.double() / step
    expected = torch.where(exact >= 0, torch.floor(exact + 0.5), torch.ceil(exact - 0.5)) * step
    got = y.cpu().view(torch.float32)
    torch.testing.assert_close(
        (got.view(torch.int32) & ~0x1FFF).view(torch.float32), expected.float(), rtol=0, atol=0
    )


def test_named_barriers_join_a_producer_and_a_consumer(kernels):
    x = torch.randn(8, 32, device=kernels.device)
    y = torch.empty_like(x)
    kernels.call("test_named_barrier", x, y, 8)
    assert torch.equal(y, x.flip(1) + 1)


def test_a_launch_gets_more_than_48_kib_of_shared_memory(kernels):
    out = torch.zeros(2, dtype=torch.int32, device=kernels.device)
    kernels.call("test_limits", 1, 2, kernels.int64(100_000), out)
    assert out.tolist() == [1, 1]


@pytest.mark.parametrize("sizes", [(16, 8, 4), (0, 0, 0), (10, 3, 1), (15, 0, 4)])
def test_copies_put_zeros_behind_what_they_read(kernels, sizes):
    x = torch.arange(1, 29, dtype=torch.uint8)
    out = torch.zeros(32, dtype=torch.uint8, device=kernels.device)
    kernels.call("test_copy", x.to(kernels.device), *sizes, out)
    expected = []
    for start, whole, size in zip((0, 16, 24), (16, 8, 4), sizes, strict=True):
        expected += [start + 1 + i if i < size else 0 for i in range(whole)]
    assert out.tolist() == expected + [77] * 4


@pytest.mark.parametrize("left", [0, 1, 2, 4])
def test_a_wait_leaves_the_last_groups_under_way(emulated, left):
    x = torch.tensor([10, 11, 12, 13], dtype=torch.int32)
    out = torch.zeros(4, dtype=torch.int32)
    emulated.call("test_copy_groups", left, x, out)
    assert out.tolist() == [10, 11, 12, 13][: 4 - left] + [-1] * left  # -1: the poison


def test_atomics(kernels):
    n = 4 * 96
    sums, maximum, tickets = (torch.zeros(1, dtype=torch.int32, device=kernels.device) for _ in range(3))
    seen = torch.zeros(n, dtype=torch.int32, device=kernels.device)
    kernels.call("test_atomics", sums, maximum, tickets, seen)
    assert (sums.item(), maximum.item(), tickets.item()) == (n * (n - 1) // 2, n - 1, n)
    assert seen.eq(1).all()
