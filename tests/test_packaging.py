"""What people install: the sdist, wheels built from it, the editable installation, and what they say about themselves.

The wheel that is built here has the CPU library's host code only (SLOWFAST_ISAS=none): the kernels, most of the
compiler's work, are compiled by ``make test`` from files that the sdist is shown to hold byte for byte.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

import slowfast_kernels
from check_wheel import metadata, names, problems, relative_links, tag
from slowfast_kernels import _extension

ROOT = Path(__file__).resolve().parents[1]


def run(*command, cwd, **environment):
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def built(hook, folder, cwd, **environment):
    """File that a hook of the build backend has made."""
    folder.mkdir()
    call = f"from setuptools import build_meta; build_meta.{hook}({str(folder)!r})"
    said = run(sys.executable, "-c", call, cwd=cwd, **environment)
    (made,) = folder.iterdir()
    return made, said


@pytest.fixture(scope="session")
def tracked():
    """Files that git keeps, as they are in the working tree."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    listed = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    return [name for name in listed if name and (ROOT / name).exists()]


@pytest.fixture(scope="session")
def clone(tracked, tmp_path_factory):
    """A copy of the repository as a clone would have it."""
    folder = tmp_path_factory.mktemp("clone")
    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def unpacked(clone, tmp_path_factory):
    """What a user finds in the sdist."""
    folder = tmp_path_factory.mktemp("sdist")
    sdist, _ = built("build_sdist", folder / "dist", clone)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return folder / sdist.name.removesuffix(".tar.gz")


@pytest.fixture(scope="session")
def reference_wheel(unpacked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference") / "dist"
    return built("build_wheel", folder, unpacked, SLOWFAST_NO_NATIVE="1")


@pytest.fixture(scope="session")
def native_wheel(unpacked, tmp_path_factory):
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        pytest.skip("native wheels are for Linux on x86-64")
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("no C++ compiler found")
    pytest.importorskip("ninja", reason="the build requirements are not installed")
    settings = {
        "SLOWFAST_ISAS": "none",
        "SLOWFAST_CUDA": "OFF",
        "SLOWFAST_BUILD_TYPE": "None",
    }  # None: not optimised
    return built("build_wheel", tmp_path_factory.mktemp("native") / "dist", unpacked, **settings)


def installed(wheel, folder):
    """Runs Python with nothing of ours on the path but this wheel's content; what it prints."""
    shutil.unpack_archive(wheel, folder, "zip")

    def python(*words):
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("SLOWFAST_", "TRITON_", "PYTHON"))}
        done = subprocess.run(
            [sys.executable, *words],
            env={**keep, "PYTHONPATH": str(folder)},
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert python("-c", "import slowfast_kernels as s; print(s.__file__)").startswith(str(folder))
    return python


def test_the_sdist_is_the_repository(tracked, unpacked):
    """Whatever builds from a clone builds from the sdist: the same files, byte for byte."""
    different = [name for name in tracked if not (unpacked / name).exists()]
    assert not different, f"missing: {different}"
    assert [name for name in tracked if (unpacked / name).read_bytes() != (ROOT / name).read_bytes()] == []
    found = {str(p.relative_to(unpacked)) for p in unpacked.rglob("*") if p.is_file()}
    made = {name for name in found if "egg-info" in name} | {"PKG-INFO", "setup.cfg"}
    assert found - made <= set(tracked)


def test_a_wheel_builds_from_the_sdist_and_runs(native_wheel, tmp_path):
    wheel, said = native_wheel
    assert "SLOWFAST_ISAS = none" in said  # the log says what is built
    assert problems(wheel) == []
    assert tag(wheel) == ("py3", "none", ["linux_x86_64"])
    python = installed(wheel, tmp_path / "site")
    info = python("-m", "slowfast_kernels", "info", "--ceilings")
    assert "no instruction set that the CPU kernels are built for" in info  # loaded; these were left out
    assert re.search(r"copy_gbs +\d", info)  # the probe is there, and works


def test_a_wheel_without_native_code_says_why(reference_wheel, tmp_path):
    wheel, said = reference_wheel
    assert "SLOWFAST_NO_NATIVE was set: only the PyTorch reference is installed" in said
    assert problems(wheel) == []
    assert tag(wheel) == ("py3", "none", ["any"])
    info = installed(wheel, tmp_path / "site")("-m", "slowfast_kernels", "info")
    assert "the native CPU library is not built (SLOWFAST_NO_NATIVE was set)" in info


def test_leftovers_of_earlier_builds_stay_out(unpacked, tmp_path):
    for name in ("build/lib/slowfast_kernels/old.py", "slowfast_kernels/_lib/libslowfast_emulated.so"):
        (unpacked / name).parent.mkdir(parents=True, exist_ok=True)
        (unpacked / name).write_text("")
    try:
        wheel, _ = built("build_wheel", tmp_path / "dist", unpacked, SLOWFAST_NO_NATIVE="1")
    finally:
        shutil.rmtree(unpacked / "slowfast_kernels" / "_lib")
    assert problems(wheel) == [] and "slowfast_kernels/old.py" not in names(wheel)


def test_every_module_and_every_tuned_tile_is_in_the_wheel(tracked, clone, tmp_path):
    tuned = ["slowfast_kernels/ops/stem3d/tuned/gpu.json", "slowfast_kernels/plans/tuned/gpu.json"]
    for name in tuned:
        (clone / name).parent.mkdir()
        (clone / name).write_text("{}")
    try:
        wheel, _ = built("build_wheel", tmp_path / "dist", clone, SLOWFAST_NO_NATIVE="1")
    finally:
        for name in tuned:
            shutil.rmtree((clone / name).parent)
    there = set(names(wheel))
    modules = {
        name if name.startswith("slowfast_kernels/") else f"slowfast_kernels/{name}"
        for name in tracked
        if re.match(r"(slowfast_kernels|models|bench)/.*\.py$", name) and "/test_" not in name
    }
    assert modules | set(tuned) <= there


def test_metadata(reference_wheel):
    about = metadata(reference_wheel[0])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert about["Author"] and about["Keywords"]
    assert {"Typing :: Typed", "Operating System :: POSIX :: Linux"} <= set(about.get_all("Classifier"))
    assert about.get_all("Project-URL") is None  # there is no public address
    extras = set(about.get_all("Provides-Extra"))
    assert {"video", "bench", "train", "detect", "all"} <= extras == set(project["optional-dependencies"])
    needed = [line for line in about.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(re.match(r"[\w-]+", line)[0] for line in needed) == ["numpy", "pyyaml", "torch", "tqdm"]
    description = about.get_payload()
    assert description.startswith("# slowfast-kernels") and relative_links(description) == []
    assert relative_links("[a](docs/a.md) ![b](b.png) [c](https://c) [d](#d)") == ["docs/a.md", "b.png"]


def test_one_version():
    (cited,) = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cited == project["version"] == slowfast_kernels.__version__


def test_an_editable_installation_is_a_folder_that_tools_can_follow(clone, tmp_path):
    wheel, _ = built("build_editable", tmp_path / "dist", clone, SLOWFAST_NO_NATIVE="1")
    (path,) = (name for name in names(wheel) if name.endswith(".pth"))
    shutil.unpack_archive(wheel, tmp_path / "site", "zip")
    links = Path((tmp_path / "site" / path).read_text().strip())
    assert links.is_relative_to(clone)
    assert [entry.name for entry in links.iterdir() if entry.suffix != ".egg-info"] == ["slowfast_kernels"]
    for folder in (links, clone):  # on the path; and as `python -m` in the repository puts it there
        for name in ("py.typed", "models/macs.py", "bench/gpu/worker.py", "ops/stem3d/api.py"):
            below = name if name.startswith(("models", "bench")) else f"slowfast_kernels/{name}"
            assert (folder / "slowfast_kernels" / name).resolve() == (clone / below).resolve()
    sdist, _ = built("build_sdist", tmp_path / "sdist", clone)
    with tarfile.open(sdist) as archive:
        assert not [name for name in archive.getnames() if "slowfast_kernels/models" in name]
    if shutil.which("mypy", path=Path(sys.executable).parent) is None:
        pytest.skip("mypy is not installed: its part was not checked")
    (clone / "models" / "planted.py").write_text("x: int = 'a string'\n")
    try:
        mypy = [sys.executable, "-m", "mypy", "--follow-imports=skip", "--cache-dir", tmp_path / "cache"]
        done = subprocess.run(
            [*mypy, "-m", "slowfast_kernels.models.planted"], cwd=clone, capture_output=True, text=True
        )
    finally:
        (clone / "models" / "planted.py").unlink()
    assert "models/planted.py:1: error: Incompatible types in assignment" in done.stdout


def test_make_demo_compiles_what_it_runs_and_says_so_first(clone):
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    told = run("make", "-s", "hello", cwd=clone)
    assert "make demo: recognises actions" in told and "about a minute" in told
    demo, tests, lint = (run("make", "-n", target, cwd=clone) for target in ("demo", "test", "lint"))
    assert "SLOWFAST_ISAS=native SLOWFAST_CUDA=OFF" in demo and "EMULATOR" not in demo
    assert "SLOWFAST_EMULATOR=ON" in tests and "SLOWFAST_ISAS" not in tests
    for target in (demo, tests, lint):  # pip hides what a compiler says: it only makes links
        assert "SLOWFAST_NO_NATIVE=1" in next(line for line in target.splitlines() if line.endswith(" -e ."))


@pytest.mark.parametrize("name", ["cpu", "probe"])
def test_libraries_do_not_need_a_glibc_newer_than_torch(name):
    """libstdc++'s headers would ask glibc 2.32 whether there are threads (csrc/common/glibc.cpp)."""
    library = _extension.LIB_DIR / f"libslowfast_{name}.so"
    if not library.exists():
        pytest.skip(f"{library.name} is not built")
    assert b"__libc_single_threaded" not in dynamic_names(library)


def dynamic_names(library):
    """Names in a library's dynamic string table."""
    objdump = shutil.which("objdump") or pytest.skip("objdump (binutils) is not installed")
    return subprocess.run([objdump, "-T", library], capture_output=True, check=True).stdout
