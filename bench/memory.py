"""Peak resident memory of inference above the weights, each contender in a process of its own.

Method. The child imports everything, makes the inputs and touches them, runs a tiny network once so that
libraries and thread pools are loaded, and notes its resident memory R0. It then makes the contender, drops
what only its making needed, returns freed memory to the system (malloc_trim) and notes its resident memory
R1: the weights as this contender holds them (VmRSS). It resets the kernel's high-water mark
(/proc/self/clear_refs), runs, and reads the mark (VmHWM):

    peak    mark - R1: inference above the weights as they are held (activations, buffers, caches)
    strict  mark - R0 - weights: the same above the weights' plain size, so that packed copies, or a second
            form of a weight, are charged to whoever keeps them
"""

import contextlib
import ctypes
import functools
import gc
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slowfast_kernels import models, report
from slowfast_kernels.bench import peers
from slowfast_kernels.bench.harness import DTYPES, Setting
from slowfast_kernels.bench.tables import mebibytes, times_faster
from slowfast_kernels.bench.targets import FROZEN

HEADER = ("who", "dtype", "weights", "as held", "peak", "peak to ours", "strict", "strict to ours")
LEGEND = (
    "weights: their plain size; as held: what is resident once the contender is made. peak: inference above what is "
    "held; strict: above the plain size, so that packed copies and second forms of a weight count.",
)


def measure(
    setting: Setting, dtype: str, who: Sequence[str], *, calls: int = 3, batch: int = 1
) -> dict[str, Any]:
    """Rows {who, weight_bytes, loaded_bytes, peak_bytes, strict_bytes}, see the module."""
    rows, missing = [], {}
    for contender in who:
        numbers = map(str, (setting.threads, calls, batch, setting.frames or 0, setting.crop or 0))
        command = [
            sys.executable,
            "-m",
            "slowfast_kernels.bench.memory",
            setting.model,
            contender,
            dtype,
            *numbers,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            missing[contender] = (done.stderr.strip().splitlines() or ["failed"])[-1]
            continue
        rows.append({"who": contender, **json.loads(done.stdout.strip().splitlines()[-1])})
    ours = next((r for r in rows if r["who"] == FROZEN), None)
    for row in rows:
        for kind in ("peak", "strict"):
            least = ours[f"{kind}_bytes"] if ours else 0
            row[f"{kind}_to_ours"] = row[f"{kind}_bytes"] / least if least > 0 else None
    size = models.configure(setting.model).input
    return {
        "model": setting.model,
        "dtype": dtype,
        "batch": batch,
        "frames": setting.frames or size.frames,
        "crop": setting.crop or size.crop,
        "threads": setting.threads,
        "rows": rows,
        "missing": missing,
    }


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes. Raises OSError where the system does not say."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def settle() -> None:
    """Give freed memory back to the system and reset the high-water mark."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _child(name: str, who: str, dtype: str, *numbers: str) -> dict[str, Any]:
    import torch

    from slowfast_kernels import freeze, models
    from slowfast_kernels.bench import plain
    from slowfast_kernels.bench.subject import clips

    threads, calls, batch, frames, crop = map(int, numbers)
    torch.set_num_threads(threads)
    # create() alone: batch norms as after training would change no buffer's size.
    overrides = {k: v for k, v in (("frames", frames), ("crop", crop)) if v}
    config = models.configure(name, activation="none", **overrides)
    inputs = clips(config, batch, torch.Generator().manual_seed(0))
    x = torch.randn(1, 8, 4, 16, 16)
    with torch.inference_mode():
        torch.nn.Conv3d(8, 8, 3)(x)
    settle()
    before = resident("VmRSS")

    model = models.build(config).eval()
    elements = sum(t.numel() for t in model.state_dict().values())
    call: Callable[[], Any]
    if who == FROZEN:
        frozen = freeze(model, DTYPES[dtype])
        call = functools.partial(frozen, inputs if len(inputs) > 1 else inputs[0])
        size = 2 if dtype == "bf16" else 4
    else:
        peer = peers.PEERS[who]
        call = peer.build(plain.SlowFast(model, fold=peer.folded), inputs, dtype, threads)
        size = 4  # peers keep float32 weights and cast them in the call
    del model
    settle()
    loaded = resident("VmRSS")
    for _ in range(calls):
        call()
    peak = resident("VmHWM")
    weights = elements * size
    return {
        "weight_bytes": weights,
        "loaded_bytes": loaded - before,
        "peak_bytes": peak - loaded,
        "strict_bytes": peak - before - weights,
    }


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """All results as text."""
    lines = [
        (
            row["who"],
            result["dtype"],
            mebibytes(row["weight_bytes"]),
            mebibytes(row["loaded_bytes"]),
            mebibytes(row["peak_bytes"]),
            times_faster(row["peak_to_ours"]),
            mebibytes(row["strict_bytes"]),
            times_faster(row["strict_to_ours"]),
        )
        for result in results
        for row in result["rows"]
    ]
    notes = [f"not run: {n} {r['dtype']}: {reason}" for r in results for n, reason in r["missing"].items()]
    return "\n".join([report.table(lines, HEADER), *report.wrapped([*notes, *LEGEND])])


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_child(*sys.argv[1:])) + "\n")
