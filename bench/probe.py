"""Ceilings of this machine, measured: arithmetic held in registers and memory bandwidth.

The loops are in ``csrc/probe``; each is compiled for its own instruction set and chosen at run time.
"""

import importlib.machinery
import importlib.util
import os
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from slowfast_kernels import _extension

#: Where Linux says how large the caches are.
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@cache
def module() -> ModuleType:
    """The native probe module. Raises RuntimeError, in one line, where it is not built."""
    name = "_probe"
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = _extension.LIB_DIR / f"{name}{suffix}"
        if path.exists():
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None and spec.loader is not None
            try:
                found = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(found)
            except ImportError as error:
                raise RuntimeError(f"the probe module does not load: {error}") from error
            return found
    raise RuntimeError(
        "the probe module is not built: expected "
        f"_lib/_probe{importlib.machinery.EXTENSION_SUFFIXES[0]} (pip install pybind11, then build again)"
    )


def available() -> bool:
    """Whether the probe module is there."""
    try:
        module()
    except RuntimeError:
        return False
    return True


def caches() -> dict[str, int]:
    """Bytes of the data caches of one core: l1, l2, l3, as far as the system tells."""
    found: dict[str, int] = dict(module().caches())
    try:
        for index in sorted(_CACHES.glob("index*")):
            kind, level = (index / "type").read_text().strip(), (index / "level").read_text().strip()
            size = (index / "size").read_text().strip()
            if kind != "Instruction" and size.endswith("K"):
                found[f"l{level}"] = int(size[:-1]) * 1024
    except (OSError, ValueError):
        pass
    return found


def _best(kind: str, rows: list[dict[str, str]]) -> str | None:
    """Strongest instruction set that has a loop of this kind (tables go from weak to strong)."""
    return next((row["isa"] for row in reversed(rows) if row["kind"] == kind), None)


def _highest(measure: Any, slices: int) -> float:
    """A ceiling is the best slice: whatever else runs on the machine can only lower a slice."""
    return max(measure() for _ in range(slices))


def _threads(threads: int | None) -> int:
    if threads is None:
        import torch

        return torch.get_num_threads()
    if threads < 1:
        raise ValueError(f"threads: expected at least 1, got {threads}")
    return threads


def arithmetic(threads: int | None = None, seconds: float = 0.03, slices: int = 3) -> dict[str, float]:
    """Giga-operations per second of every loop this processor runs, keyed "fp32/avx512"; a multiply and an
    add count as two."""
    count, native = _threads(threads), module()
    return {
        f"{row['kind']}/{row['isa']}": _highest(
            lambda row=row: native.operations(row["kind"], row["isa"], count, seconds) / 1e9, slices
        )
        for row in native.arithmetic()
    }


def memory(
    threads: int | None = None,
    seconds: float = 0.03,
    slices: int = 3,
    kinds: tuple[str, ...] = ("read", "copy", "copy_stream", "triad"),
    levels: tuple[str, ...] = ("l2", "l3", "dram"),
) -> dict[str, float]:
    """Bandwidth in GB/s, keyed "copy/dram": bytes the program reads plus bytes it writes, with the strongest
    instruction set.

    Working sets: half of every core's level-2 cache, a third of the level-3 cache together, and 256 MiB or
    eight times the level-3 cache together, whichever is more (at most 1 GiB). "copy_stream" writes past the
    caches.
    """
    count, native, size = _threads(threads), module(), caches()
    l2, l3 = size.get("l2", 1 << 20), size.get("l3", 0)
    working = {
        "l2": l2 // 2,
        # A level-3 cache below twice the level-2 caches it backs has no level of its own to measure.
        "l3": l3 // 3 // count if l3 // 3 // count > l2 else 0,
        "dram": min(max(256 << 20, 8 * l3), 1 << 30) // count,
    }
    found = {}
    for level in levels:
        for kind in kinds:
            isa = _best(kind, native.memory())
            if isa is not None and working[level]:
                found[f"{kind}/{level}"] = _highest(
                    lambda kind=kind, isa=isa, level=level: (
                        native.bandwidth(kind, isa, working[level], count, seconds) / 1e9
                    ),
                    slices,
                )
    return found


def ceilings(threads: int | None = None, quick: bool = True) -> dict[str, Any]:
    """What this machine can do at most, measured now.

    threads: how many run at once (default: torch's number). quick: only the strongest instruction set and
    main memory (about a second); else every loop, every cache level, and one thread beside all of them.

    Returns:
        threads         as measured
        fp32_gflops     multiply-adds in registers, a multiply and an add counting as two
        bf16_gflops     the same with bf16 operands and float32 sums (vdpbf16ps; where the processor has none,
                        the float32 figure: bf16 is then only a storage format)
        int8_gops       the same with int8 operands and int32 sums (vpdpbusd); None where there is none
        copy_gbs        main memory, bytes read plus bytes written, the better of plain and streaming stores
        read_gbs, triad_gbs   (not quick: also l2_..., l3_...)
        fp32_isa, bf16_isa, int8_isa   what was measured
        detail          (not quick) every single figure

    Raises RuntimeError where the probe module is not built or the processor is not an x86-64.
    """
    count, native = _threads(threads), module()
    rows = native.arithmetic()
    if not rows:
        raise RuntimeError("the probe has loops for x86-64 processors only")
    found: dict[str, Any] = {"threads": count}
    seconds, slices = (0.02, 3) if quick else (0.05, 5)
    for kind, key in (("fp32", "fp32_gflops"), ("bf16", "bf16_gflops"), ("int8", "int8_gops")):
        isa = _best(kind, rows)
        found[key] = None
        if isa is not None:
            found[key] = _highest(
                lambda kind=kind, isa=isa: native.operations(kind, isa, count, seconds) / 1e9, slices
            )
        found[f"{kind}_isa"] = isa
    if found["bf16_gflops"] is None:
        found["bf16_gflops"], found["bf16_isa"] = found["fp32_gflops"], found["fp32_isa"]
    measured = memory(count, seconds, slices, levels=("dram",) if quick else ("l2", "l3", "dram"))
    for level, prefix in (("dram", ""), ("l3", "l3_"), ("l2", "l2_")):
        if f"copy/{level}" in measured:
            found[f"{prefix}read_gbs"] = measured[f"read/{level}"]
            found[f"{prefix}copy_gbs"] = max(measured[f"copy/{level}"], measured[f"copy_stream/{level}"])
            found[f"{prefix}triad_gbs"] = measured[f"triad/{level}"]
    if not quick:
        counts = sorted({1, count})
        found["detail"] = {
            f"{n} threads": {**arithmetic(n), **(measured if n == count else memory(n))} for n in counts
        }
    return found


def cores() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    import json

    sys.stdout.write(json.dumps(ceilings(quick="--full" not in sys.argv), indent=1) + "\n")
