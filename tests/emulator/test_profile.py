"""The profile counts what planted accesses cost, exactly; the kernels' own accesses stay as cheap as they are."""

import os
from pathlib import Path

import pytest
import torch

from emulator.accesses import counted, run_case
from slowfast_kernels import _extension

LANES = range(32)
SOURCE = Path(__file__).with_name("kernels.cu").read_text().splitlines()
# enum Seen of kernels.cu, in order.
SEEN = ["shared_load", "shared_store", "global_load", "global_store", "copy", "matrix"]


def launch(emulated, seen, width, *rounds, meet=True, blocks=1):
    """The one launch of seen_kernel: byte offsets of every thread, round by round, None for no access."""
    threads = len(rounds[0])
    at = torch.tensor([[-1 if a is None else a for a in row] for row in rounds], dtype=torch.int32)
    x = torch.zeros(1 << 14, dtype=torch.uint8)
    assert x.data_ptr() % 32 == 0
    call = (SEEN.index(seen), width, at, len(rounds), meet, blocks, threads, x)
    (found,) = counted(lambda: emulated.call("test_seen", *call))
    assert (found.blocks, found.threads) == (blocks, threads)
    return found


def site(emulated, seen, width, *rounds, **kwargs):
    """The one site of such a launch."""
    (found,) = launch(emulated, seen, width, *rounds, **kwargs).sites
    return found


def counts(found):
    return found.requests, found.lanes, found.bytes, found.passes, found.least


def strided(step, lanes=LANES, first=0):
    return [first + step * lane for lane in lanes]


# Bytes from row to row of eight 8x8 tiles' rows -> wavefronts of a tile.
@pytest.mark.parametrize("pitch, ways", [(16, 1), (144, 1), (80, 1), (32, 2), (64, 4), (128, 8), (192, 4)])
def test_rows_of_ldmatrix(emulated, order, pitch, ways):
    rows = [pitch * (lane % 8) + 2048 * (lane // 8) for lane in LANES]
    found = site(emulated, "matrix", 16, rows)
    assert (found.access, found.space, found.width) == ("matrix", "shared", 16)
    assert counts(found) == (1, 32, 512, 4 * ways, 4)


@pytest.mark.parametrize(
    "width, step, wavefronts, least",
    [
        (4, 4, 1, 1),  # one word after another
        (4, 0, 1, 1),  # one word for all
        (4, 8, 2, 1),  # every second bank
        (4, 12, 1, 1),  # an odd step
        (4, 128, 32, 1),
        (2, 2, 1, 1),  # two lanes a word
        (2, 4, 1, 1),
        (8, 8, 2, 2),
        (8, 16, 4, 2),
        (16, 16, 4, 4),
        (16, 32, 8, 4),
        (16, 128, 32, 4),
        (16, 144, 4, 4),
    ],
)
def test_shared_loads(emulated, width, step, wavefronts, least):
    found = site(emulated, "shared_load", width, strided(step))
    assert (found.access, found.space, found.width) == ("load", "shared", width)
    assert counts(found) == (1, 32, 32 * width, wavefronts, least)


def test_rows_of_shared_stores(emulated):
    """Two rows of four vectors at a time: whether they share banks is a question of the pitch."""
    for pitch, wavefronts in [(64, 4), (80, 8), (144, 8), (192, 4)]:
        rows = [pitch * (lane // 4) + 16 * (lane % 4) for lane in LANES]
        assert counts(site(emulated, "shared_store", 16, rows)) == (1, 32, 512, wavefronts, 4)


@pytest.mark.parametrize("seen, access", [("global_load", "load"), ("global_store", "store")])
@pytest.mark.parametrize(
    "width, step, first, sectors, least",
    [
        (4, 4, 0, 4, 4),
        (4, 4, 4, 5, 4),  # not from a sector's start
        (4, 16, 0, 16, 4),  # a quarter of every sector
        (4, 32, 0, 32, 4),
        (4, 0, 64, 1, 1),  # one word for all
        (16, 16, 0, 16, 16),
        (16, 16, 16, 17, 16),
        (16, 32, 0, 32, 16),  # every second half of a sector
    ],
)
def test_sectors(emulated, seen, access, width, step, first, sectors, least):
    found = site(emulated, seen, width, strided(step, first=first))
    assert (found.access, found.space) == (access, "global")
    assert counts(found) == (1, 32, 32 * width, sectors, least)


def test_overlapping_bytes_count_once(emulated):
    """Lanes in any order, half of them on the bytes of others."""
    found = site(emulated, "global_load", 4, [4 * (lane * 7 % 16) for lane in LANES])
    assert counts(found) == (1, 32, 128, 2, 2)
    found = site(emulated, "global_load", 1, strided(1))
    assert counts(found) == (1, 32, 32, 1, 1)


def test_lanes_that_do_not_take_part(emulated):
    some = [16 * lane if lane % 8 == 0 else None for lane in LANES]
    assert counts(site(emulated, "shared_load", 16, some)) == (1, 4, 64, 4, 1)  # one in every quarter
    assert counts(site(emulated, "global_load", 16, some)) == (1, 4, 64, 4, 2)
    none = [None] * 32
    assert launch(emulated, "global_load", 4, none).sites == ()


def test_a_warp_that_is_not_full(emulated, order):
    """40 threads: the second warp's eight lanes are a request of their own."""
    found = launch(emulated, "shared_load", 4, strided(4, range(40)), meet=False, blocks=3)
    assert found.warps == 6
    assert counts(found.sites[0]) == (6, 120, 480, 6, 6)


def test_copies_have_two_sides(emulated):
    """Of a round that brings nothing the zeros are written and nothing is read."""
    found = launch(emulated, "copy", 16, strided(32), strided(32))
    shared, read = sorted(found.sites, key=lambda s: s.space, reverse=True)
    assert (shared.access, read.access) == ("copy", "copy")
    assert counts(shared) == (2, 64, 1024, 16, 8)
    assert counts(read) == (1, 32, 512, 32, 16)
    assert (shared.direction, read.direction) == ("shared", "loads")


def test_rounds_are_requests_of_their_own(emulated, order):
    rounds = strided(4), strided(8), strided(128)
    assert counts(site(emulated, "shared_load", 4, *rounds)) == (3, 96, 384, 1 + 2 + 32, 3)
    # no meeting in between: still every lane's first, second and third
    assert counts(site(emulated, "shared_load", 4, *rounds, meet=False)) == (3, 96, 384, 35, 3)


def test_lanes_that_skip_a_round_are_back_after_a_meeting(emulated, order):
    late = [None if lane < 16 else 2048 + 4 * (lane - 16) for lane in LANES], strided(4)
    assert counts(site(emulated, "shared_load", 4, *late)) == (2, 48, 192, 1 + 1, 2)
    # without one, the first access of the lower lanes joins the first of the upper ones: words of the same banks
    assert counts(site(emulated, "shared_load", 4, *late, meet=False)) == (2, 48, 192, 2 + 1, 2)


def test_sites_are_lines_of_the_source(emulated):
    for seen, text in [
        ("shared_load", "load<Bytes>(shared + offset)"),
        ("shared_store", "store(shared + offset, zeros)"),
        ("global_load", "load_readonly<Bytes>(x + offset)"),
        ("matrix", "ldmatrix_x4(r, shared + offset)"),
    ]:
        width = 16 if seen == "matrix" else 4
        file, line = site(emulated, seen, width, strided(16 if width == 16 else 4)).site.split(":")
        assert file == "kernels.cu"
        assert text in SOURCE[int(line) - 1]


def test_a_gemm_is_its_products_and_copies(emulated, order):
    """One block's 64 x 64 x 64: two steps, everything conflict-free but the copies' rows of 80 bytes."""
    a, b, c = torch.randn(64, 64).bfloat16(), torch.randn(64, 64).bfloat16(), torch.empty(64, 64)
    (found,) = counted(lambda: emulated.call("test_gemm", 0, True, a, b, c, 64, 64, 64))
    assert found.mma == {"mma_m16n8k16": 4 * 8 * 4}  # four warps, tiles of 16 x 8, four times 16 products
    assert found.products == 64 * 64 * 64
    assert found.barriers == 2
    matrix = [s for s in found.sites if s.access == "matrix"]
    assert [counts(s)[3:] for s in matrix] == [(128, 128)] * 2
    copies = sorted((s for s in found.sites if s.access == "copy"), key=lambda s: (s.space, s.passes))
    assert [(s.space, s.passes, s.least) for s in copies] == [
        ("global", 256, 256), ("global", 256, 256), ("shared", 64, 64), ("shared", 128, 64)]  # fmt: skip
    assert found.bytes("global") == 2 * 64 * 64 * 2 + sum(s.bytes for s in found.sites if s.access == "store")


def test_only_where_it_is_asked_for(emulated, tmp_path, monkeypatch):
    x, y = torch.zeros(1, 128), torch.empty(1, 128)
    monkeypatch.setenv("SLOWFAST_EMULATE_PROFILE", str(tmp_path / "profile"))
    emulated.call("test_mirror", 0, x, y, 1)
    assert (tmp_path / "profile").read_text().count("\n") == 1
    with pytest.raises(RuntimeError, match="wait at syncthreads"):
        emulated.call("test_mirror", 6, x, y, 1)  # a launch that fails is not counted
    monkeypatch.setenv("SLOWFAST_EMULATE_PROFILE", "")
    emulated.call("test_mirror", 0, x, y, 1)
    assert (tmp_path / "profile").read_text().count("\n") == 1
    monkeypatch.setenv("SLOWFAST_EMULATE_PROFILE", os.devnull + "/profile")
    with pytest.raises(RuntimeError, match="SLOWFAST_EMULATE_PROFILE: cannot append to"):
        emulated.call("test_mirror", 0, x, y, 1)


# (op, case, divisor of its maps) -> kernel -> most wavefronts of shared memory, sectors of global loads and of global
# stores, each as a multiple of the least. What is above 1 is explained where the shape does it: rows of weights that
# begin between sectors (lateral.0), lanes that stand for no pixel of a tile of 4 x 4 or 7 x 14 (fast blocks), rows of
# the stem's frames that end between sectors, two halves of what a lane has (shifts of the wide blocks, reduced maps).
MOST: dict[tuple[str, str, int], dict[str, tuple[float, float, float]]] = {
    ("stem3d", "stem.slow", 7): {"stem_kernel": (1.02, 1.07, 1)},
    ("stem3d", "stem.fast", 7): {"stem_kernel": (1.03, 1.15, 1)},
    ("bottleneck3d", "res2.slow.0", 4): {
        "block_wide_a_kernel": (1, 1.04, 1),
        "block_wide_rest_kernel": (1, 1.06, 1),
    },
    ("bottleneck3d", "res2.slow.1", 4): {"block_wide_one_kernel": (1, 1.03, 1)},
    ("bottleneck3d", "res3.slow.1", 4): {
        "block_wide_a_kernel": (1, 1.01, 1),
        "block_wide_rest_kernel": (1, 1.02, 1),
    },
    ("bottleneck3d", "res2.fast.0", 4): {"block_narrow_kernel": (1, 1, 1)},
    ("bottleneck3d", "res2.fast.1", 4): {"block_narrow_kernel": (1.02, 1, 1)},
    ("bottleneck3d", "res3.fast.0", 4): {"block_narrow_kernel": (1.01, 1, 1)},
    ("bottleneck3d", "res3.fast.1", 4): {"block_narrow_kernel": (1, 1, 1)},
    ("bottleneck3d", "res4.fast.0", 4): {"block_narrow_kernel": (1, 1, 1)},
    ("bottleneck3d", "res4.fast.1", 4): {"block_narrow_kernel": (1.03, 1, 1)},
    ("lateral_fusion", "lateral.0", 4): {"gather_kernel": (1, 1, 1), "lateral_kernel": (1, 1.04, 1)},
    ("lateral_fusion", "lateral.1", 4): {"gather_kernel": (1, 1, 1), "lateral_kernel": (1, 1, 1)},
    ("lateral_fusion", "lateral.1 time_to_channel_sum", 4): {"gather_kernel": (1, 1, 1)},
    ("pack_pathways", "view", 4): {"pack_colour_kernel": (1, 1, 1)},
    ("roi_align3d", "ava fast, 8 boxes", 4): {
        "roi_align_kernel": (1, 1, 1),
        "roi_align_bwd_kernel": (1, 1, 1),
    },
    ("roi_head_pool", "ava, 4 boxes", 4): {"roi_max_kernel": (1.08, 1, 1), "roi_head_bwd_kernel": (1, 1, 1)},
    ("roi_head_pool", "ava, 16 boxes", 4): {
        "roi_reduce_kernel": (1, 1, 2),
        "roi_max_kernel": (1, 1, 1),
        "roi_head_bwd_kernel": (1, 1, 1),
    },
}


@pytest.mark.skipif(not _extension.EMULATE, reason="for the emulated library")
@pytest.mark.parametrize("provider", ["cuda"], indirect=True)
@pytest.mark.parametrize("op, name, shrink", MOST, ids=lambda v: str(v))
def test_kernels_waste_no_more_than_they_did(op, name, shrink, provider):
    launches = run_case(op, name, shrink=shrink, backward=op.startswith("roi"))
    most = MOST[op, name, shrink]
    assert {found.kernel.split("<")[0] for found in launches} == set(most)
    for found in launches:
        for direction, bound in zip(
            ("shared", "loads", "stores"), most[found.kernel.split("<")[0]], strict=True
        ):
            assert found.ratio(direction) <= bound, "\n".join(
                [
                    f"{found.kernel}: {direction} {found.ratio(direction):.3f} x the least",
                    *map(str, found.worst(5)),
                ]
            )
