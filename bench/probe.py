"""Ceilings of this machine, measured: arithmetic held in registers and memory bandwidth.

The loops are in ``csrc/probe``; each is compiled for its own instruction set and chosen at run time.
"""

import contextlib
import ctypes
import math
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from slowfast_kernels import _extension

#: Where Linux says how large the caches are.
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


class Library:
    """The loops of libslowfast_probe.so. Rows of its tables go from weak to strong instruction sets."""

    def __init__(self, path: Path) -> None:
        self._c = ctypes.CDLL(str(path))
        for name in ("features", "arithmetic", "memory"):
            getattr(self._c, f"slowfast_probe_{name}").restype = ctypes.c_char_p
        self._c.slowfast_probe_operations.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_double]
        self._c.slowfast_probe_operations.restype = ctypes.c_double
        bandwidth = self._c.slowfast_probe_bandwidth
        bandwidth.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int, ctypes.c_double]
        bandwidth.restype = ctypes.c_double
        self._c.slowfast_probe_cache.restype = ctypes.c_int64

    def features(self) -> list[str]:
        """Instruction sets of this processor that there are loops for."""
        return str(self._c.slowfast_probe_features().decode()).split()

    def arithmetic(self) -> list[dict[str, str]]:
        """The arithmetic loops this processor can run: kind ("fp32", "bf16", "int8"), isa, instruction."""
        return self._rows(self._c.slowfast_probe_arithmetic, "isa", "instruction")

    def memory(self) -> list[dict[str, str]]:
        """The memory loops this processor can run: kind ("read", "copy", "copy_stream", "triad"), isa."""
        return self._rows(self._c.slowfast_probe_memory, "isa")

    def operations(self, kind: str, isa: str, threads: int = 1, seconds: float = 0.05) -> float:
        """Operations per second (a multiply and an add are two), summed over the threads."""
        row = self._row(self.arithmetic(), kind, isa, threads, seconds)
        return self._figure(self._c.slowfast_probe_operations(row, threads, seconds), threads)

    def bandwidth(self, kind: str, isa: str, size: int, threads: int = 1, seconds: float = 0.05) -> float:
        """Bytes per second that the program reads plus writes, summed over the threads, in arrays of ``size``
        bytes together for each thread. Lines the hardware fetches before writing them are not counted."""
        row = self._row(self.memory(), kind, isa, threads, seconds)
        if size < 768:  # three arrays of 64 floats
            raise ValueError(f"size: expected at least 768 bytes, got {size}")
        return self._figure(self._c.slowfast_probe_bandwidth(row, size, threads, seconds), threads)

    def caches(self) -> dict[str, int]:
        """Bytes of one core's data caches, as far as the system library tells."""
        found = {f"l{level}": int(self._c.slowfast_probe_cache(level)) for level in (1, 2, 3)}
        return {name: size for name, size in found.items() if size > 0}

    @staticmethod
    def _rows(function: Any, *names: str) -> list[dict[str, str]]:
        rows: list[dict[str, str]] = []
        texts = [ctypes.c_char_p() for _ in names]
        while kind := function(len(rows), *(ctypes.byref(text) for text in texts)):
            row = zip(("kind", *names), (kind, *(text.value for text in texts)), strict=True)
            rows.append({name: (text or b"").decode() for name, text in row})
        return rows

    @staticmethod
    def _row(rows: list[dict[str, str]], kind: str, isa: str, threads: int, seconds: float) -> int:
        """Where the loop stands in its table; the C side trusts what it gets."""
        known = [f"{row['kind']}/{row['isa']}" for row in rows]
        if f"{kind}/{isa}" not in known:
            raise ValueError(f"expected one of {', '.join(known)} on this processor, got {kind}/{isa}")
        if not 1 <= threads <= 4096:
            raise ValueError(f"threads: expected 1 to 4096, got {threads}")
        if not 0 < seconds <= 60:
            raise ValueError(f"seconds: expected more than 0 and at most 60, got {seconds}")
        return known.index(f"{kind}/{isa}")

    @staticmethod
    def _figure(value: float, threads: int) -> float:
        if math.isnan(value):
            raise RuntimeError(f"the probe found no memory, or could not start {threads} threads")
        return value


@cache
def library() -> Library:
    """The native probe. Raises RuntimeError, in one line, where it is not built."""
    path = _extension.LIB_DIR / "libslowfast_probe.so"
    if not path.exists():
        raise RuntimeError(f"the probe is not built ({path.name} is missing)")
    try:
        return Library(path)
    except (OSError, AttributeError) as error:
        raise RuntimeError(f"the probe does not load: {error}") from error


def available() -> bool:
    """Whether the probe is there."""
    try:
        library()
    except RuntimeError:
        return False
    return True


def caches() -> dict[str, int]:
    """Bytes of the data caches of one core: l1, l2, l3, as far as the system tells."""
    found = library().caches()
    with contextlib.suppress(OSError, ValueError):
        for index in sorted(_CACHES.glob("index*")):
            kind, level, size = ((index / name).read_text().strip() for name in ("type", "level", "size"))
            if kind != "Instruction" and size.endswith("K"):
                found[f"l{level}"] = int(size[:-1]) * 1024
    return found


class _Prober:
    """Measures on so many threads; a ceiling is the best of its slices, as whatever else runs can only lower one."""

    def __init__(self, threads: int, seconds: float = 0.03, slices: int = 3) -> None:
        self.native, self.threads, self.seconds, self.slices = library(), threads, seconds, slices

    def best(self, measure: Callable[..., float], kind: str, isa: str, *more: int) -> float:
        return max(measure(kind, isa, *more, self.threads, self.seconds) for _ in range(self.slices)) / 1e9

    def arithmetic(self) -> dict[str, float]:
        """Giga-operations per second of every loop this processor runs, keyed "fp32/avx512"; a multiply and an add
        count as two."""
        loops = [(row["kind"], row["isa"]) for row in self.native.arithmetic()]
        return {f"{kind}/{isa}": self.best(self.native.operations, kind, isa) for kind, isa in loops}

    def memory(self, levels: Sequence[str] = ("l2", "l3", "dram")) -> dict[str, float]:
        """Bandwidth in GB/s, keyed "copy/dram": bytes the program reads plus bytes it writes, with the strongest
        instruction set. "copy_stream" writes past the caches.

        Working sets: half of every core's level-2 cache, a third of the level-3 cache together, and 256 MiB or eight
        times the level-3 cache together, whichever is more (at most 1 GiB).
        """
        size = caches()
        l2, l3 = size.get("l2", 1 << 20), size.get("l3", 0)
        shared = l3 // 3 // self.threads
        working = {
            "l2": l2 // 2,
            # A level-3 cache below twice the level-2 caches it backs has no level of its own to measure.
            "l3": shared if shared > l2 else 0,
            "dram": min(max(256 << 20, 8 * l3), 1 << 30) // self.threads,
        }
        strongest = {row["kind"]: row["isa"] for row in self.native.memory()}  # from weak to strong
        return {
            f"{kind}/{level}": self.best(self.native.bandwidth, kind, isa, working[level])
            for level in levels
            for kind, isa in strongest.items()
            if working[level]
        }


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

    Raises RuntimeError where the probe is not built or the processor is not an x86-64.
    """
    if threads is None:
        import torch

        threads = torch.get_num_threads()
    probe = _Prober(threads, *((0.02, 3) if quick else (0.05, 5)))
    strongest = {row["kind"]: row["isa"] for row in probe.native.arithmetic()}  # from weak to strong
    if not strongest:
        raise RuntimeError("the probe has loops for x86-64 processors only")
    found: dict[str, Any] = {"threads": threads}
    for kind, key in (("fp32", "fp32_gflops"), ("bf16", "bf16_gflops"), ("int8", "int8_gops")):
        isa = found[f"{kind}_isa"] = strongest.get(kind)
        found[key] = probe.best(probe.native.operations, kind, isa) if isa else None
    if found["bf16_gflops"] is None:
        found["bf16_gflops"], found["bf16_isa"] = found["fp32_gflops"], found["fp32_isa"]
    measured = probe.memory(("dram",) if quick else ("l2", "l3", "dram"))
    for level, prefix in (("dram", ""), ("l3", "l3_"), ("l2", "l2_")):
        if f"copy/{level}" in measured:
            found[f"{prefix}read_gbs"] = measured[f"read/{level}"]
            found[f"{prefix}copy_gbs"] = max(measured[f"copy/{level}"], measured[f"copy_stream/{level}"])
            found[f"{prefix}triad_gbs"] = measured[f"triad/{level}"]
    if not quick:
        probes = {n: _Prober(n) for n in sorted({1, threads})}
        found["detail"] = {
            f"{n} threads": {**one.arithmetic(), **(measured if n == threads else one.memory())}
            for n, one in probes.items()
        }
    return found


if __name__ == "__main__":
    import json

    sys.stdout.write(json.dumps(ceilings(quick="--full" not in sys.argv), indent=1) + "\n")
