"""Drives CMake: the native build is defined in CMakeLists.txt and nowhere else.

Environment variables: docs/install.md, "Build options".
"""

import contextlib
import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
PACKAGE = ROOT / "slowfast_kernels"

# models/ and bench/ stand at the top level of the repository but install as sub-packages,
# so that a wheel puts nothing called "models" or "bench" on anyone's path.
MAPPED = {"slowfast_kernels.models": ROOT / "models", "slowfast_kernels.bench": ROOT / "bench"}


def packages() -> list[str]:
    """Every package, under the name it is installed with."""
    found = {"slowfast_kernels"}
    for name, folder in {"slowfast_kernels": PACKAGE, **MAPPED}.items():
        for init in folder.glob("**/__init__.py"):
            found.add(".".join((name, *init.parent.relative_to(folder).parts)))
    return sorted(found)


def not_native() -> str | None:
    """Why this build has no native code and runs on the reference, or None."""
    if os.environ.get("SLOWFAST_NO_NATIVE"):
        return "SLOWFAST_NO_NATIVE was set"
    if sys.platform != "linux":
        return f"the native kernels are for Linux, this is {platform.system()}"
    if platform.machine() != "x86_64" and os.environ.get("SLOWFAST_CUDA") != "ON":
        return (
            f"the native kernels are for x86-64, this is {platform.machine()} (SLOWFAST_CUDA=ON: CUDA only)"
        )
    if shutil.which(os.environ.get("CXX", "c++")) is None and shutil.which("g++") is None:
        return "no C++ compiler was found"
    return None


NOT_NATIVE = not_native()


def description() -> str:
    """README.md for a page that has nothing beside it: without its pictures, and relative links become their text."""
    text = (ROOT / "README.md").read_text()
    text = re.sub(r"!\[[^]]*\]\((?!https?:)[^)]*\)\n*", "", text)
    return re.sub(r"\[([^]]*)\]\((?!https?:|#)[^)]*\)", r"\1", text)


class BuildPython(build_py):
    """Nothing of an earlier build, no tests, and the reason where there will be no native library."""

    def run(self) -> None:
        if self.editable_mode:
            return
        shutil.rmtree(Path(self.build_lib) / "slowfast_kernels", ignore_errors=True)
        super().run()
        if NOT_NATIVE:
            print(f"slowfast-kernels: {NOT_NATIVE}: only the PyTorch reference is installed", file=sys.stderr)
            reason = Path(self.build_lib) / "slowfast_kernels" / "_lib" / "missing.txt"
            reason.parent.mkdir(exist_ok=True)
            reason.write_text(NOT_NATIVE + "\n")

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        return [module for module in found if not module[1].startswith("test_")]


class CMakeBuild(build_ext):
    """Configure and build with CMake and Ninja into slowfast_kernels/_lib."""

    def run(self) -> None:
        if NOT_NATIVE:
            print(f"slowfast-kernels: {NOT_NATIVE}: nothing is compiled", file=sys.stderr)
            return
        import torch

        in_place = self.inplace or self.editable_mode
        out = (ROOT if in_place else Path(self.build_lib).resolve()) / "slowfast_kernels" / "_lib"
        build = ROOT / "build" / "cmake"
        config = {
            "CMAKE_BUILD_TYPE": os.environ.get("SLOWFAST_BUILD_TYPE", "Release"),
            "SLOWFAST_TORCH_DIR": Path(torch.__file__).parent,
            "SLOWFAST_OUTPUT_DIR": out,
            "SLOWFAST_CUDA": os.environ.get("SLOWFAST_CUDA", "AUTO"),
            "SLOWFAST_ISAS": os.environ.get("SLOWFAST_ISAS", "all"),
            "SLOWFAST_EMULATOR": os.environ.get("SLOWFAST_EMULATOR", "OFF"),
            "Python_EXECUTABLE": sys.executable,
        }
        print("slowfast-kernels build configuration:")
        for key, value in config.items():
            print(f"  {key} = {value}", flush=True)
        # CMake and Ninja of this environment, which are on the path only where it was activated.
        tools = []
        for package, folder in (("cmake", "CMAKE_BIN_DIR"), ("ninja", "BIN_DIR")):
            with contextlib.suppress(ImportError):
                tools.append(getattr(importlib.import_module(package), folder))
        env = {**os.environ, "PATH": os.pathsep.join([*tools, os.environ.get("PATH", os.defpath)])}
        cmake = shutil.which("cmake", path=env["PATH"]) or "cmake"
        defs = [f"-D{key}={value}" for key, value in config.items()]
        subprocess.run([cmake, "-S", ROOT, "-B", build, "-G", "Ninja", *defs], check=True, env=env)
        subprocess.run([cmake, "--build", build], check=True, env=env)


class Wheel(bdist_wheel):
    """The libraries use PyTorch's stable ABI and nothing of Python's: one wheel for every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class Editable(editable_wheel):
    """An editable installation is a folder on the path, which type checkers and editors can follow: a link to the
    package, in which links to models/ and bench/ stand where an installation has them."""

    def initialize_options(self) -> None:
        super().initialize_options()
        links = {ROOT / "build" / "editable" / "slowfast_kernels": PACKAGE}
        links |= {PACKAGE / name.rpartition(".")[2]: folder for name, folder in MAPPED.items()}
        for link, folder in links.items():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(folder, link.parent), target_is_directory=True)
        self.distribution.package_dir = {"": "build/editable"}


setup(
    long_description=description(),
    long_description_content_type="text/markdown",
    packages=packages(),
    package_dir={name: folder.name for name, folder in MAPPED.items()},
    package_data={
        "slowfast_kernels": ["py.typed", "plans/tuned/*.json", "ops/*/tuned/*.json"],
        "slowfast_kernels.bench": ["results/**/*"],
    },
    include_package_data=False,  # what the sdist holds for building is not for the wheel
    ext_modules=[] if NOT_NATIVE else [Extension("slowfast_kernels._native", sources=[])],
    cmdclass={
        "bdist_wheel": Wheel,
        "build_ext": CMakeBuild,
        "build_py": BuildPython,
        "editable_wheel": Editable,
    },
)
