"""Planted bugs are found, each by its message or by a result that is wrong or moves; right kernels pass."""

import math
import subprocess

import pytest
import torch

BLOCKS = 4


def mirror(emulated, bug):
    """What mirror_kernel made and what it should have made."""
    x = torch.randn(BLOCKS, 128)
    y = torch.full_like(x, math.inf)
    emulated.call("test_mirror", bug, x, y, BLOCKS)
    i = torch.arange(128)
    return y, x.flip(1) + x[:, i ^ 1]


def test_the_right_kernel_passes_in_every_order(emulated, order, bug):
    y, expected = mirror(emulated, bug("none"))
    assert torch.equal(y, expected)


@pytest.mark.parametrize("name", ["no_barrier", "no_syncwarp", "no_wait", "unwritten"])
def test_reading_too_early_is_nan(emulated, order, bug, name):
    y, expected = mirror(emulated, bug(name))
    wrong = y != expected
    assert wrong.any(), f"{name} went unnoticed"
    assert y[wrong].isnan().all()  # poison, never a stale value that looks right


def test_a_stage_filled_too_early_shows(emulated, order, bug):
    a, b = torch.randn(64, 256).bfloat16(), torch.randn(256, 64).bfloat16()
    c = torch.empty(64, 64)
    emulated.call("test_gemm", bug("reuse"), True, a, b, c, 64, 64, 256)
    assert c.isnan().any()


def test_a_divergent_barrier_is_named(emulated, order, bug):
    message = r"mirror_kernel.*block \(0, 0, 0\).*divergent barrier: \d+ threads wait at syncthreads \(kernels.cu:\d+\)"
    with pytest.raises(RuntimeError, match=message):
        mirror(emulated, bug("divergent_barrier"))


def test_a_thread_that_does_not_come_is_a_deadlock(emulated, order, bug):
    message = (
        r"deadlock: threads 0-76, 78-127 wait at syncthreads \(kernels.cu:\d+\); threads 77 have returned"
    )
    with pytest.raises(RuntimeError, match=message):
        mirror(emulated, bug("missing_thread"))


def test_a_lane_that_does_not_come_is_a_deadlock(emulated, order, bug):
    with pytest.raises(
        RuntimeError, match=r"deadlock: .*threads 32-39, 41-63 wait at ballot_sync \(kernels.cu:\d+\)"
    ):
        mirror(emulated, bug("missing_lane"))


def test_bytes_written_behind_an_array_are_found(emulated, order, bug):
    with pytest.raises(RuntimeError, match="wrote byte 512 of the shared array values, which has 512 bytes"):
        mirror(emulated, bug("write_outside"))


def test_primitives_check_their_addresses(emulated, order, bug):
    out = torch.zeros(32, dtype=torch.int32)
    emulated.call("test_rows", bug("none"), out)
    assert out[5] == 10 | 11 << 16  # lane 5: row 1, columns 2 and 3
    with pytest.raises(RuntimeError, match=r"ldmatrix .*16 bytes from byte 128 of the shared array tile"):
        emulated.call("test_rows", bug("ldmatrix_outside"), out)
    with pytest.raises(RuntimeError, match=r"ldmatrix .*expected an address that is a multiple of 16"):
        emulated.call("test_rows", bug("misaligned"), out)


# enum Misuse of kernels.cu, in order, and what is said of it.
MISUSES = {
    "shuffle_outside_mask": r"shfl_sync \(kernels.cu:\d+\): reads lane 20, which is not in its mask 0x0000ffff",
    "not_in_its_mask": r"syncwarp \(kernels.cu:\d+\): lane (1[6-9]|[23]\d) is not in its mask 0x0000ffff",
    "divergent_warp": r"divergent warp: lanes 0x\w+ wait at shfl_xor_sync \(kernels.cu:\d+\), lane \d+ comes to",
    "load_misaligned": r"load \(kernels.cu:\d+\): expected an address that is a multiple of 16",
    "copy_misaligned": r"cp_async \(kernels.cu:\d+\): expected an address that is a multiple of 8",
    "copy_outside": r"cp_async \(kernels.cu:\d+\): 16 bytes from byte 256 of the shared array shared, .* 256 bytes",
    "copy_too_much": r"cp_async \(kernels.cu:\d+\): expected 0 to 8 bytes, got 9",
    "static_too_much": "expected at most 49152 bytes of static shared memory, got 49156",
    "half_warp_barrier": r"named_barrier .*: expected barriers 0 to 15 of whole warps of 64 threads, got .* 16",
    "barrier_of_other_size": r"barrier [12] is waited for by (64|32) threads .*, got (32|64)|deadlock: threads",
}


@pytest.mark.parametrize("name", MISUSES)
def test_misused_primitives_say_what_and_where(emulated, order, name):
    out = torch.zeros(64, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="misuse_kernel.*" + MISUSES[name]):
        emulated.call("test_misuse", list(MISUSES).index(name), out)


def test_an_error_in_a_thread_ends_the_launch_and_the_next_one_works(emulated, order, bug):
    out = torch.zeros(64, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="thread 3: thread 3 has had enough"):
        emulated.call("test_throw", out)
    y, expected = mirror(emulated, bug("none"))
    assert torch.equal(y, expected)


@pytest.mark.parametrize(
    ("blocks", "threads", "shared_bytes", "message"),
    [
        (1, 1025, 0, "expected 1 to 1024 threads a block, got 1025"),
        (1, 0, 0, "expected 1 to 1024 threads a block, got 0"),
        (1, 32, 232449, "expected at most 232448 bytes of shared memory, got 232449"),
    ],
)
def test_limits_of_a_launch(emulated, blocks, threads, shared_bytes, message):
    with pytest.raises(RuntimeError, match=message):
        emulated.call(
            "test_limits", blocks, threads, emulated.int64(shared_bytes), torch.zeros(1, dtype=torch.int32)
        )


def test_a_launch_of_no_blocks_does_nothing(emulated):
    out = torch.zeros(32, dtype=torch.int32)
    emulated.call("test_limits", 0, 32, emulated.int64(0), out)
    assert not out.any()


def test_an_unknown_order_is_an_error(emulated, bug, monkeypatch):
    monkeypatch.setenv("SLOWFAST_EMULATE_ORDER", "sideways")
    with pytest.raises(RuntimeError, match="expected random.*got sideways"):
        mirror(emulated, bug("none"))


def run_program(program, kernel, bug):
    return subprocess.run([program, kernel, str(bug)], capture_output=True, text=True)


@pytest.mark.parametrize(("name", "access"), [("read_outside", "READ"), ("write_outside", "WRITE")])
def test_address_sanitizer_finds_plain_accesses_outside(asan_program, bug, name, access):
    done = run_program(asan_program, "mirror", bug(name))
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
    assert f"{access} of size 4" in done.stderr
    assert "mirror_kernel" in done.stderr  # the stack of the fiber it happened on


@pytest.mark.parametrize("kernel", ["mirror", "rows", "gemm"])
def test_address_sanitizer_has_nothing_on_right_kernels(asan_program, bug, order, kernel):
    done = run_program(asan_program, kernel, bug("none"))
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "fine", "")


def test_errors_leave_threads_behind_cleanly_under_address_sanitizer(asan_program, bug):
    for name in ("missing_thread", "divergent_barrier", "missing_lane"):
        done = run_program(asan_program, "mirror", bug(name))
        assert done.stdout.startswith("CUDA emulator: mirror_kernel")
        assert done.stderr == ""


@pytest.mark.parametrize("kernel", ["mirror", "gemm"])
def test_the_portable_stack_switch(ucontext_program, bug, kernel):
    assert run_program(ucontext_program, kernel, bug("none")).stdout == "fine\n"
    assert run_program(ucontext_program, kernel, bug("no_barrier")).stdout == "wrong result\n"
