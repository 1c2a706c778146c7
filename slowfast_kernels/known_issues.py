"""Versions of PyTorch, alone or with cuDNN, whose 3-D convolution is known to be wrong or slow.

They concern what this library leaves to PyTorch: training, the reference, and cuDNN where it is a model's provider.
Told by ``slowfast-kernels info``; those of a GPU also once, when a model is first frozen for one. Of those of the CPU
this library keeps its own calls away (``ops/_conv3d.py``).
"""

from __future__ import annotations

import functools
import re
import warnings
from dataclasses import dataclass

import torch

Version = tuple[int, ...]


@dataclass(frozen=True)
class KnownIssue:
    """A range of versions and what goes wrong there.

    cudnn: first bad version and first good one, as (major, minor, patch); None: on the CPU, without cuDNN.
    torch: the same; an end of None = no end.
    what:  the symptom; see: where it is reported, or seen.
    """

    cudnn: tuple[Version, Version] | None
    torch: tuple[Version, Version | None]
    what: str
    see: str


ISSUES = (
    KnownIssue(
        ((9, 8, 0), (9, 15, 0)),
        ((0,), (2, 9)),
        "bfloat16 and float16 conv3d can silently give wrong results",
        "pytorch#163539",
    ),
    KnownIssue(
        ((9, 8, 0), (9, 15, 0)),
        ((2, 9), None),
        "bfloat16 and float16 conv3d in contiguous memory avoids cuDNN: several times slower, more memory; "
        "keep models in channels_last_3d memory",
        "pytorch#166122, #166643, #174051",
    ),
    KnownIssue(
        ((9, 10, 2), (9, 15, 0)),
        ((2, 9, 1), None),
        "float32 conv3d does not use TF32, its kernel being broken: slower by several times",
        "pytorch#167024",
    ),
    KnownIssue(
        None,
        ((2, 11), None),
        "conv3d of one input channel in channels_last_3d memory can be wrong, NaN or (2.11, 2.13) write past its "
        "memory; this library calls it in contiguous memory",
        "seen with 2.11.0, 2.13.0 and 2.15.0 on AVX-512",
    ),
    KnownIssue(
        None,
        ((2, 11), (2, 15)),
        "conv3d padded by more than half its kernel can crash in channels_last_3d memory; this library calls it in "
        "contiguous memory",
        "pytorch#195394; seen with 2.11.0 and 2.13.0, not with 2.15.0",
    ),
    KnownIssue(
        None,
        ((2, 11), None),
        "the weight gradient of conv3d in bfloat16 reads uninitialised memory where the kernel is long for the clip "
        "(3 on 2 frames, 5 on 3 or 4) or maps are one or two columns wide; the ops differentiate in float32, modules "
        "trained in bfloat16 are not protected",
        "seen with 2.11.0, 2.13.0 and 2.15.0",
    ),
)


def parse(version: str) -> Version:
    """Numbers of a version: "2.13.0+cu130" -> (2, 13, 0)."""
    return tuple(int(v) for v in re.findall(r"\d+", version.partition("+")[0])[:3])


def parse_cudnn(version: int) -> Version:
    """cuDNN's own number: 91002 -> (9, 10, 2), 8907 -> (8, 9, 7)."""
    major = version // 10000 if version >= 90000 else version // 1000
    rest = version % 10000 if version >= 90000 else version % 1000
    return major, rest // 100, rest % 100


def matching(torch_version: Version, cudnn_version: Version | None) -> list[KnownIssue]:
    """The issues of a PyTorch: on the CPU, and with this cuDNN unless there is none."""

    def within(v: Version | None, bounds: tuple[Version, Version | None]) -> bool:
        return v is not None and bounds[0] <= v and (bounds[1] is None or v < bounds[1])

    return [
        issue
        for issue in ISSUES
        if within(torch_version, issue.torch) and (issue.cudnn is None or within(cudnn_version, issue.cudnn))
    ]


@functools.cache
def found() -> tuple[KnownIssue, ...]:
    """The issues of this installation."""
    version = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    return tuple(matching(parse(torch.__version__), None if version is None else parse_cudnn(version)))


def sentence(issue: KnownIssue) -> str:
    """What an issue of this installation is about, what happens and where that is reported, in one line."""
    where = "on the CPU" if issue.cudnn is None else f"with cuDNN {torch.backends.cudnn.version()}"
    return f"torch {torch.__version__} {where}: {issue.what} ({issue.see})"


@functools.cache
def warn_once() -> None:
    """One warning for each cuDNN issue of this installation, the first time it is called."""
    for issue in found():
        if issue.cudnn is not None:
            warnings.warn(sentence(issue), stacklevel=3)
