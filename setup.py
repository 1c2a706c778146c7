"""Drives CMake: the native build is defined in CMakeLists.txt and nowhere else."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configure and build with CMake and Ninja into slowfast_kernels/_lib."""

    def run(self) -> None:
        if os.environ.get("SLOWFAST_NO_NATIVE"):
            print("slowfast-kernels: SLOWFAST_NO_NATIVE is set, installing the reference only")
            return
        if shutil.which(os.environ.get("CXX", "c++")) is None and shutil.which("g++") is None:
            print("slowfast-kernels: no C++ compiler found, installing the reference only", file=sys.stderr)
            return
        import torch

        out = ROOT / "slowfast_kernels" / "_lib"
        if not self.inplace and not getattr(self, "editable_mode", False):
            out = Path(self.build_lib).resolve() / "slowfast_kernels" / "_lib"
        build = ROOT / "build" / "cmake"
        config = {
            "CMAKE_BUILD_TYPE": os.environ.get("SLOWFAST_BUILD_TYPE", "Release"),
            "SLOWFAST_TORCH_DIR": Path(torch.__file__).parent,
            "SLOWFAST_OUTPUT_DIR": out,
            "SLOWFAST_CUDA": os.environ.get("SLOWFAST_CUDA", "AUTO"),
            "Python_EXECUTABLE": sys.executable,
        }
        print("slowfast-kernels build configuration:")
        for key, value in config.items():
            print(f"  {key} = {value}")
        cmake = shutil.which("cmake") or "cmake"
        defs = [f"-D{key}={value}" for key, value in config.items()]
        subprocess.run([cmake, "-S", ROOT, "-B", build, "-G", "Ninja", *defs], check=True)
        subprocess.run([cmake, "--build", build], check=True)


setup(
    packages=[
        "slowfast_kernels",
        *sorted(
            ".".join(p.parent.relative_to(ROOT).parts)
            for p in (ROOT / "slowfast_kernels").glob("*/**/__init__.py")
        ),
        *sorted(
            "slowfast_kernels." + ".".join(p.parent.relative_to(ROOT).parts)
            for top in ("models", "bench")
            for p in (ROOT / top).glob("**/__init__.py")
        ),
    ],
    # models/ and bench/ stand at the top level of the repository but install as sub-packages,
    # so that a wheel puts nothing called "models" or "bench" on anyone's path.
    package_dir={"slowfast_kernels.models": "models", "slowfast_kernels.bench": "bench"},
    package_data={"slowfast_kernels": ["py.typed", "_lib/*"], "slowfast_kernels.bench": ["results/**/*"]},
    ext_modules=[Extension("slowfast_kernels._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
