"""The stamp of a run: machine, versions and revision, without which figures cannot be compared with others."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from slowfast_kernels import _extension, report


def output(*command: str) -> str | None:
    """What a command prints, None where it cannot be run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _git(*arguments: str) -> str | None:
    return output("git", "-C", str(Path(__file__).resolve().parent), *arguments)


@functools.cache
def revision() -> str | None:
    """Git revision of this code, "+changes" when files differ from it; None outside of a clone (an installed copy may
    lie inside a repository of something else)."""
    commit = _git("rev-parse", "--short=12", "HEAD") if _git("ls-files", Path(__file__).name) else None
    if not commit:
        return None
    return commit + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")


def environment() -> dict[str, Any]:
    """Machine, versions and revision: what figures must carry to be compared with others."""
    stamp = report.environment()
    stamp["revision"] = revision()
    for name in ("onnxruntime", "openvino"):
        stamp[name] = report.version_of(name)
    stamp["load"] = [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None
    stamp["affinity"] = os.environ.get("OMP_PROC_BIND"), os.environ.get("GOMP_CPU_AFFINITY")
    return stamp


def stamp_lines(stamp: Mapping[str, Any]) -> list[str]:
    """The stamp as lines of text: processor and threads, versions, revision and load."""
    others = ", ".join(f"{k} {stamp[k]}" for k in ("onnxruntime", "openvino") if stamp.get(k))
    cores, threads = report.count(stamp["cores"], "core"), report.count(stamp["threads"], "thread")
    revision = stamp["revision"]
    version = f"revision {revision}" if revision else f"version {stamp['slowfast_kernels']}"
    return [
        f"{stamp['processor']}, {cores}, {threads}, isa {stamp['isa']}",
        f"torch {stamp['torch']}, python {stamp['python']}" + (f", {others}" if others else ""),
        f"{version}, {stamp['time']}, load before {stamp['load']}",
    ]


# --- a GPU's ---------------------------------------------------------------------------------------------


def _other_sources(library: Path) -> str:
    """What to say of a library that was built from sources other than those beside it. Contents count, not times: a
    copy of the tree may have any."""
    folder = Path(__file__).resolve().parents[1] / "csrc" / "cuda"
    hashes = library.with_name("cuda_sources.json")
    names = output(sys.executable, str(folder / "resources.py"), "differ", str(hashes), str(folder))
    return f" (built from other sources: {names}; bench/gpu.sh --rebuild builds it again)" if names else ""


def gpu_environment(dry: bool) -> dict[str, Any]:
    """Machine, device, versions, revision. Only reads: the GPU's settings stay as they are."""
    stamp = environment()
    stamp["revision"] = os.environ.get("SLOWFAST_REVISION") or stamp["revision"]
    for name in ("triton", "torchvision", "numpy"):
        stamp[name] = report.version_of(name)
    stamp["cudnn"] = torch.backends.cudnn.version()
    nvcc = output("nvcc", "--version") if shutil.which("nvcc") else None
    stamp["nvcc"] = nvcc.splitlines()[-1] if nvcc else None
    library = _extension.LIB_DIR / ("libslowfast_emulated.so" if dry else "libslowfast_cuda.so")
    stamp["library"] = _extension.cuda_missing() or library.name + ("" if dry else _other_sources(library))
    if not dry:
        major, minor = torch.cuda.get_device_capability()
        stamp["capability"] = f"{major}.{minor}"
        fields = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"
        found = output("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "-i", "0")
        if found:
            driver, *rest = (x.strip() for x in found.split(","))
            stamp["driver"] = driver
            names = ("SM", "memory", "SM at most", "power limit", "temperature")
            stamp["clocks"] = ", ".join(f"{n} {v}" for n, v in zip(names, rest, strict=True))
    return stamp


def gpu_lines(stamp: Mapping[str, Any]) -> list[str]:
    """What the stamp says of the device."""
    words = "gpu capability driver cuda cudnn triton torchvision nvcc clocks library"
    return [f"{key}: {stamp[key]}" for key in words.split() if stamp.get(key)]
