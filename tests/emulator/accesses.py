"""What CUDA kernels ask of memory, counted by the emulator (csrc/emulator/profile.h): bank conflicts, sectors.

    python tests/emulator/accesses.py --op stem3d --sites 5

runs the real cases of every op, or of one, on shrunken maps and prints for each launch how many wavefronts of shared
memory and sectors of global memory it took, as a multiple of the least, and the lines that waste most of them. Nothing
is measured: every figure is a count, the same on every machine. Arrays dereferenced as p[i] are not seen.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

if __name__ == "__main__":
    os.environ["SLOWFAST_EMULATE"] = "1"
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402
from torch.utils import _pytree as pytree  # noqa: E402

#: Multiplications of a warp's instruction.
PRODUCTS = {"mma_m16n8k16": 16 * 8 * 16, "mma_m16n8k8": 16 * 8 * 8, "mma_m16n8k8_tf32": 16 * 8 * 8}


@dataclass(frozen=True)
class Site:
    """Requests of one line of the source: fields as csrc/emulator/profile.h explains them."""

    site: str
    access: str
    space: str
    width: int
    requests: int
    lanes: int
    bytes: int
    passes: int
    least: int

    @property
    def direction(self) -> str:
        """shared, loads or stores: what is held against its least together."""
        if self.space == "shared":
            return "shared"
        return "stores" if self.access == "store" else "loads"

    def __str__(self) -> str:
        unit = "wavefronts" if self.space == "shared" else "sectors"
        return (
            f"{self.passes / max(self.least, 1):5.2f} x  {self.space} {self.access:6} {self.width:2} B"
            f"  {self.site:25} {self.passes:9} {unit}, least {self.least},"
            f" {self.lanes / self.requests:4.1f} lanes"
        )


@dataclass(frozen=True)
class Launch:
    """One launch."""

    kernel: str
    blocks: int
    threads: int
    shared_bytes: int
    warps: int
    barriers: int
    mma: dict[str, int]
    sites: tuple[Site, ...]

    @staticmethod
    def parse(line: str) -> Launch:
        d = json.loads(line)
        blocks, threads = (x * y * z for x, y, z in (d["grid"], d["block"]))
        sites = tuple(Site(**s) for s in d["sites"])
        return Launch(
            d["kernel"], blocks, threads, d["shared_bytes"], d["warps"], d["barriers"], d["mma"], sites
        )

    def passes(self, direction: str) -> tuple[int, int]:
        """(wavefronts or sectors, their least) of shared memory, global loads or stores."""
        sites = [s for s in self.sites if s.direction == direction]
        return sum(s.passes for s in sites), sum(s.least for s in sites)

    def ratio(self, direction: str) -> float:
        """Passes as a multiple of the least; 1 where there are none."""
        passes, least = self.passes(direction)
        return passes / least if least else 1.0

    def bytes(self, space: str) -> int:
        return sum(s.bytes for s in self.sites if s.space == space)

    @property
    def products(self) -> int:
        """Multiplications of the tensor cores."""
        return sum(PRODUCTS[shape] * n for shape, n in self.mma.items())

    def worst(self, n: int) -> list[Site]:
        """The sites with the most passes beyond the least."""
        return sorted((s for s in self.sites if s.passes > s.least), key=lambda s: s.least - s.passes)[:n]


def counted(call: Callable[[], object]) -> list[Launch]:
    """The launches of a call on the emulator."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile"
        with mock.patch.dict(os.environ, SLOWFAST_EMULATE_PROFILE=str(path)):
            call()
        return [Launch.parse(line) for line in path.read_text().splitlines()] if path.exists() else []


@contextlib.contextmanager
def machine(processors: int) -> Iterator[None]:
    """Heuristics choose for a machine of so many multiprocessors: a small one for small maps, whose tiles are those
    of large maps on a large one.
    """
    bottleneck, lateral, stem = (
        importlib.import_module(f"slowfast_kernels.ops.{op}.cuda")
        for op in ("bottleneck3d", "lateral_fusion", "stem3d")
    )
    shared = bottleneck.limits(torch.device("cpu"))[1]
    with (
        mock.patch.object(bottleneck, "limits", lambda device: (processors, shared)),
        mock.patch.object(lateral, "limits", lambda device: (processors, shared)),
        mock.patch.object(stem, "limits", lambda device: (processors, shared)),
        mock.patch.dict(bottleneck.TUNER.found, clear=True),
        mock.patch.dict(lateral.TUNER.found, clear=True),
        mock.patch.dict(stem.TUNER.found, clear=True),
    ):
        yield


def run_case(
    op: str, name: str, *, shrink: int, dtype: torch.dtype = torch.bfloat16, backward: bool = False
) -> list[Launch]:
    """The launches of a real case on maps of 1 / shrink of its height and width, on 132 / shrink^2 multiprocessors.

    backward: those of the gradients as well, of ops that have a kernel for them.
    """
    from slowfast_kernels import ops
    from slowfast_kernels.ops._cases import cases_of
    from slowfast_kernels.testing import use_provider

    case = next(case for case in cases_of(op) if case.name == name)
    args, kwargs = case.args(dtype=dtype, shrink=shrink)

    def call() -> None:
        result = getattr(ops, op)(*args, **kwargs)
        if backward:
            result.backward(result.detach())

    if backward:
        args = pytree.tree_map_only(
            torch.Tensor, lambda x: x.requires_grad_() if x.dtype == dtype else x, args
        )
    with machine(max(1, round(132 / shrink**2))), use_provider("cuda"):
        return counted(call)


def describe(launch: Launch, sites: int) -> str:
    """The table of one launch."""
    lines = [
        f"  {launch.kernel}: {launch.blocks} blocks of {launch.threads} threads, {launch.shared_bytes} bytes of"
        f" dynamic shared memory, {launch.barriers / launch.blocks:.1f} barriers a block"
    ]
    parts = []
    for direction, name in (
        ("shared", "shared memory"),
        ("loads", "global loads"),
        ("stores", "global stores"),
    ):
        passes, least = launch.passes(direction)
        if least:
            parts.append(f"{name} {passes / least:.3f} x the least ({passes})")
    lines.append("    " + ", ".join(parts))
    if launch.products:
        per = ", ".join(
            f"{launch.products / launch.bytes(space):.1f} a byte of {space} memory"
            for space in ("shared", "global")
            if launch.bytes(space)
        )
        lines.append(f"    products: {per}; {', '.join(f'{n} {s}' for s, n in launch.mma.items())}")
    lines += [f"    {site}" for site in launch.worst(sites)]
    return "\n".join(lines)


def main() -> None:
    from slowfast_kernels import _extension
    from slowfast_kernels.ops._cases import cases_of, op_names
    from slowfast_kernels.ops._registration import OPS

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--op", choices=op_names(), help="one op only")
    parser.add_argument("--case", help="one case only")
    parser.add_argument("--sites", type=int, default=4, help="lines shown of each kernel (default: 4)")
    parser.add_argument(
        "--shrink", type=int, default=4, help="divides height and width of the maps (default: 4)"
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    given = parser.parse_args()
    if reason := _extension.cuda_missing():
        raise SystemExit(reason)
    for op in op_names():
        if given.op not in (None, op) or "cuda" not in OPS[op].providers:
            continue
        for case in cases_of(op):
            if not case.real or given.case not in (None, case.name):
                continue
            try:
                launches = run_case(
                    op, case.name, shrink=given.shrink, dtype=getattr(torch, given.dtype),
                    backward=op.startswith("roi"),
                )  # fmt: skip
            except RuntimeError as error:
                print(f"{op}, {case.name}: {error}", flush=True)
                continue
            print(f"{op}, {case.name}")
            print("\n".join(describe(launch, given.sites) for launch in launches), flush=True)


if __name__ == "__main__":
    main()
