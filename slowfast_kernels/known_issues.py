"""Pairs of PyTorch and cuDNN whose 3-D convolution is known to be wrong or slow.

They concern what this library leaves to PyTorch: training, the reference, and cuDNN where it is a model's provider.
Checked once, when a model is first frozen for a GPU, and by ``slowfast-kernels info``.
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

    cudnn: first bad version and first good one, as (major, minor, patch).
    torch: the same; None = no end.
    what:  the symptom; see: where it is reported.
    """

    cudnn: tuple[Version, Version]
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
)


def parse(version: str) -> Version:
    """Numbers of a version: "2.13.0+cu130" -> (2, 13, 0)."""
    return tuple(int(v) for v in re.findall(r"\d+", version.partition("+")[0])[:3])


def parse_cudnn(version: int) -> Version:
    """cuDNN's own number: 91002 -> (9, 10, 2), 8907 -> (8, 9, 7)."""
    major = version // 10000 if version >= 90000 else version // 1000
    rest = version % 10000 if version >= 90000 else version % 1000
    return major, rest // 100, rest % 100


def matching(torch_version: Version, cudnn_version: Version) -> list[KnownIssue]:
    """The issues that a pair of versions has."""

    def within(v: Version, bounds: tuple[Version, Version | None]) -> bool:
        return bounds[0] <= v and (bounds[1] is None or v < bounds[1])

    return [i for i in ISSUES if within(torch_version, i.torch) and within(cudnn_version, i.cudnn)]


@functools.cache
def found() -> tuple[KnownIssue, ...]:
    """The issues of this installation; none without cuDNN."""
    version = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    return () if version is None else tuple(matching(parse(torch.__version__), parse_cudnn(version)))


@functools.cache
def warn_once() -> None:
    """One warning for each issue of this installation, the first time it is called."""
    for issue in found():
        warnings.warn(
            f"torch {torch.__version__} with cuDNN {torch.backends.cudnn.version()}: {issue.what} ({issue.see})",
            stacklevel=3,
        )
