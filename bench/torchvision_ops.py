"""torchvision's compiled RoIAlign, also beside a CPU build of PyTorch.

torchvision's wheels are built with CUDA: on a CPU build of PyTorch their library of operators does not load, for want
of three CUDA libraries. Its CPU kernels call nothing in them. Stand-ins that hold the names asked for, compiled here,
satisfy the loader; the kernels measured are torchvision's own.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from slowfast_kernels.bench.peers import Unavailable


def roi_align(
    maps: Tensor, rois: Tensor, bins: tuple[int, int], scale: float, ratio: int, aligned: bool
) -> Tensor:
    """[N, C, H, W], [K, 5] -> [K, C, *bins], without gradients; ratio 0: as many samples as a bin has cells.

    In float32 whatever the maps are, as under torchvision's autocast: it has no bfloat16 kernel."""
    out = torch.ops.torchvision.roi_align(maps.float(), rois.float(), scale, *bins, ratio, aligned)
    return out.to(maps.dtype)


@functools.cache
def load() -> None:
    """Register torchvision's operators; raises Unavailable, in one line. Nothing of its Python is imported."""
    try:
        found = importlib.util.find_spec("torchvision")
    except ValueError:  # a module without a spec stands in its place
        found = None
    library = Path(found.origin).with_name("_C.so") if found is not None and found.origin else None
    if library is None or not library.exists():
        raise Unavailable(
            f"torchvision is not installed (pip install --no-deps torchvision=={matching_version()})"
        )
    try:
        if not _loads(library) and torch.version.cuda is None:
            _stand_in(library)
        torch.ops.load_library(str(library))
        # There is nothing to call where the wheel was built for another PyTorch.
        torch.ops.torchvision.roi_align.default  # noqa: B018
    except (OSError, AttributeError, RuntimeError, subprocess.SubprocessError) as error:
        reason = " ".join(str(error).split())[:200]
        raise Unavailable(f"torchvision's operators do not load ({reason})") from error


def matching_version(torch_version: str = torch.__version__) -> str:
    """The torchvision that was released with a PyTorch: 0.28.* for 2.13."""
    major, minor = re.match(r"(\d+)\.(\d+)", torch_version).groups()  # type: ignore[union-attr]
    return f"0.{int(minor) + 15}.*" if major == "2" else "*"


def _loads(library: Path) -> bool:
    try:
        ctypes.CDLL(str(library), mode=os.RTLD_LAZY)
    except OSError:
        return False
    return True


def _stand_in(library: Path) -> None:
    """Load libraries with the names of the CUDA libraries that this one needs, and its undefined names in them."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    tools = {"a C compiler": compiler, "nm": shutil.which("nm"), "readelf": shutil.which("readelf")}
    for what, path in tools.items():
        if path is None:
            raise OSError(f"no CUDA libraries, and stand-ins for them need {what}")
    needed = re.findall(r"\(NEEDED\).*\[(lib\w*cuda\w*\.so[.\d]*)\]", _output("readelf", "-d", library))
    undefined = _output("nm", "-D", "--undefined-only", library)
    names = sorted(set(re.findall(r" [Uw] (\w*cuda\w*)", undefined)))
    version = next(iter(re.findall(r" U \w*cuda\w*@+(\S+)", undefined)), "cuda")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "names.c").write_text("".join(f"void *{n}(void) {{ return 0; }}\n" for n in names))
        (folder / "names.map").write_text(f"{version} {{ global: *; }};\n")
        for soname in needed:
            options = [
                "-shared",
                "-fPIC",
                "-w",
                f"-Wl,-soname,{soname}",
                f"-Wl,--version-script={folder}/names.map",
            ]
            _output(compiler, *options, "-o", folder / soname, folder / "names.c")
            ctypes.CDLL(str(folder / soname))


def _output(*words: object) -> str:
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=True)
    return done.stdout
