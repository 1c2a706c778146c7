"""Tile shapes as data: a heuristic's choice, tuned winners on disk, and the measuring that finds them.

A kernel's tiles are a frozen dataclass. A `Tuner` picks, in this order: the winner kept in the package
(``slowfast_kernels/ops/<op>/tuned/<gpu>.json``) or in the user's cache, the fastest candidate if measuring is
switched on for its family, the heuristic's choice. Winners are keyed by GPU, shape, dtype and a hash of the kernel's
source: an edited kernel forgets them.

``SLOWFAST_AUTOTUNE=cuda,plans`` switches families on, ``1`` all of them. They cost differently: tiles of a CUDA kernel
take milliseconds each, the providers of a layer are few, every tile of a Triton kernel has to be compiled.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch

from . import _extension, backends

Config = TypeVar("Config")

#: GPU cycles before a measurement, some 10 ms.
WARM_UP_CYCLES = 20_000_000

_PACKAGE = Path(__file__).resolve().parent

#: What can be measured by itself: tiles of CUDA kernels, tiles of Triton kernels, who computes a layer of a plan.
FAMILIES = ("cuda", "triton", "plans")


def _asked(text: str) -> frozenset[str]:
    """The families that SLOWFAST_AUTOTUNE names."""
    if text in ("", "0", "1"):
        return frozenset(FAMILIES if text == "1" else ())
    names = frozenset(name.strip() for name in text.split(","))
    if unknown := sorted(names.difference(FAMILIES)):
        warnings.warn(
            f"SLOWFAST_AUTOTUNE: expected 0, 1 or a list of {', '.join(FAMILIES)}, got {text!r}: "
            f"{', '.join(map(repr, unknown))} left out",
            stacklevel=2,
        )
    return names.intersection(FAMILIES)


_from_environment = _asked(os.environ.get("SLOWFAST_AUTOTUNE", ""))
_measuring: ContextVar[frozenset[str]] = ContextVar("slowfast_autotune", default=_from_environment)


@contextlib.contextmanager
def measuring(families: Sequence[str] = FAMILIES) -> Iterator[None]:
    """Calls inside the block time every candidate of a shape they meet for the first time: of these of `FAMILIES`, and
    of no other. Raises ValueError for another name."""
    if unknown := sorted(set(families).difference(FAMILIES)):
        raise ValueError(f"families: expected some of {FAMILIES}, got {unknown[0]!r}")
    token = _measuring.set(frozenset(families))
    try:
        yield
    finally:
        _measuring.reset(token)


def is_measuring(family: str) -> bool:
    """Whether what nobody measured yet is measured now."""
    return family in _measuring.get()


def cache_dir() -> Path:
    """Folder of the user's winners: SLOWFAST_CACHE_DIR, or slowfast-kernels in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser(
        "~/.cache"
    )  # never raises, as Path.home does
    return Path(os.environ.get("SLOWFAST_CACHE_DIR") or Path(home) / "slowfast-kernels")


@functools.cache
def gpu_name(device: torch.device) -> str:
    """File name of a GPU: "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")


@functools.cache
def source_hash(*files: str) -> str:
    """Hash of the source files that a kernel's speed depends on."""
    digest = hashlib.sha256()
    for name in files:
        digest.update(Path(name).read_bytes())
    return digest.hexdigest()[:16]


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


@functools.cache
def _tables(op: str, gpu: str, source: str) -> dict[str, dict[str, Any]]:
    """Winners of one op on one GPU for this source: the package's, then the user's."""
    found: dict[str, dict[str, Any]] = {}
    home = _PACKAGE / "ops" / op if (_PACKAGE / "ops" / op).is_dir() else _PACKAGE / op
    for path in (home / "tuned" / f"{gpu}.json", cache_dir() / op / f"{gpu}.json"):
        found.update(_load(path).get("winners", {}).get(source, {}))
    return found


def _keep(op: str, gpu: str, source: str, winners: dict[str, dict[str, Any]]) -> None:
    path = cache_dir() / op / f"{gpu}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    # One op may have several kernels, each with a source of its own.
    document = {
        "gpu": gpu,
        "winners": {**_load(path).get("winners", {}), source: dict(sorted(winners.items()))},
    }
    # Another process may write at the same time: replace the file in one step.
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False) as file:
        json.dump(document, file, indent=1)
    os.replace(file.name, path)


def time_call(run: Callable[[], None], runs: int = 20) -> float:
    """Median seconds of a call on the current CUDA device, after a warm-up; caches as the call before left them.

    The device's time, not the host's: the calls queue up behind a kernel that waits, as a graph's would. Calls that
    themselves wait for the device are timed with the host's part.
    """
    run()  # compiles, loads, and measures what the call is made of
    torch.cuda.synchronize()
    begin = time.perf_counter()
    run()
    host = time.perf_counter() - begin
    # At 2 GHz, and long enough for an idle device to raise its clock.
    torch.cuda._sleep(WARM_UP_CYCLES)
    cycles = min(WARM_UP_CYCLES, max(100_000, int(2 * host * 2e9)))
    marks = []
    for _ in range(runs):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(cycles)
        start.record()
        run()
        end.record()
        marks.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) * 1e-3 for start, end in marks)


def choose(
    op: str,
    key: Sequence[object],
    source: str,
    device: torch.device,
    heuristic: Config,
    candidates: Callable[[], Sequence[Config]],
    run: Callable[[Config], None],
    family: str = "triton",
) -> Config:
    """Tiles of one call.

    op:         whose tiles: an op, or "plans" for the choice of providers; the folder of the winners.
    key:        what the best tiles depend on: shape, dtype, options.
    source:     `source_hash` of the kernel.
    device:     of the tensors; anything but a CUDA device gets the heuristic's choice.
    heuristic:  the choice without measurements; its type is that of every candidate.
    candidates: the tiles worth measuring.
    run:        runs the call with given tiles; a candidate that cannot run raises and is left out.
    family:     of `FAMILIES`; measured where that is switched on.
    """
    if device.type != "cuda":
        return heuristic
    gpu, name = gpu_name(device), " ".join(str(k) for k in key)
    winners = _tables(op, gpu, source)
    if name in winners:
        return type(heuristic)(**winners[name]["config"])
    if not is_measuring(family) or torch.cuda.is_current_stream_capturing():
        return heuristic
    measured: list[tuple[float, Config]] = []
    for config in dict.fromkeys([heuristic, *candidates()]):
        try:
            with torch.cuda.device(device):
                measured.append((time_call(functools.partial(run, config)), config))
        except Exception as error:  # out of shared memory or registers, by whatever class the version raises
            if config == heuristic:
                raise RuntimeError(f"{op}: the heuristic's tiles {heuristic} do not run: {error}") from error
    seconds, best = min(measured, key=lambda m: m[0])
    winners[name] = {"config": asdict(best), "seconds": seconds, "heuristic_seconds": measured[0][0]}  # type: ignore[call-overload]
    try:
        _keep(op, gpu, source, winners)
    except OSError as error:
        warnings.warn(f"{op}: the tiles measured cannot be kept: {error}", stacklevel=2)
    return best


class Tuner:
    """Configurations of the kernels of one op, each found once: a call then costs one look-up.

    op:    as in `choose`.
    files: sources that the kernels' speed depends on.
    cuda:  prefixes of the CUDA sources that it depends on.
    family: as in `choose`; by default that of the kernels.
    """

    def __init__(self, op: str, *files: str, cuda: Sequence[str] = (), family: str = "") -> None:
        self.op, self.files, self.cuda = op, files, tuple(cuda)
        self.family = family or ("cuda" if cuda else "triton")
        self.found: dict[tuple[object, ...], Any] = {}

    def pick(
        self,
        key: Sequence[object],
        device: torch.device,
        heuristic: Callable[[], Config],
        candidates: Callable[[], Sequence[Config]],
        run: Callable[[Config], None],
    ) -> Config:
        """As `choose`; a heuristic that finds nothing to run returns None, and so does this."""
        place = (*key, device, is_measuring(self.family), backends.chosen_as_on_gpu())
        if place not in self.found:
            config, on_gpu = heuristic(), device.type == "cuda"
            if config is not None:
                source = self._source() if on_gpu else ""
                config = choose(self.op, key, source, device, config, candidates, run, self.family)
            if on_gpu and torch.cuda.is_current_stream_capturing():  # nothing was measured: a later call may
                return config
            self.found[place] = config
        return self.found[place]

    def _source(self) -> str:
        return source_hash(*self.files) + (_extension.cuda_source(*self.cuda) if self.cuda else "")
