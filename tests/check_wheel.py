"""What has to be true of a wheel, read from the file: ``python tests/check_wheel.py dist/*.whl`` (``make wheel``)."""

import re
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

#: manylinux_2_28 is what PyTorch's own wheels ask for: a lower tag would let nobody else in.
OLDEST = 28


def tag(wheel):
    """(python, abi, [platforms]) of a wheel's name."""
    python, abi, platforms = wheel.name.removesuffix(".whl").split("-")[-3:]
    return python, abi, platforms.split(".")


def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def relative_links(text):
    """Targets of Markdown links and pictures that only a page with files beside it can show."""
    return [target for target in re.findall(r"\]\(([^)]*)\)", text) if not re.match(r"https?:|#", target)]


def has_cuda(wheel):
    return any(name.endswith("/libslowfast_cuda.so") for name in names(wheel))


def too_new(wheel):
    """Whether it asks for a newer system than PyTorch's own; a tag that names several holds for the oldest. With the
    CUDA library it may: CUDA's static runtime takes the newest symbols that the compiling system has."""
    if has_cuda(wheel):
        return False
    minors = [int(m[1]) for m in map(re.compile(r"manylinux_2_(\d+)_").match, tag(wheel)[2]) if m]
    return bool(minors) and min(minors) > OLDEST


def problems(wheel):
    """One line for everything that is wrong."""
    found, files = [], names(wheel)
    python, abi, platforms = tag(wheel)
    if (python, abi) != ("py3", "none"):
        found.append(f"expected a wheel for every Python (py3-none), got {python}-{abi}")
    if too_new(wheel):
        found.append(f"expected manylinux_2_{OLDEST} or older, got {'.'.join(platforms)}")
    tops = {name.split("/")[0] for name in files}
    strangers = sorted(
        t for t in tops if t != "slowfast_kernels" and not re.match(r"slowfast_kernels-.*\.dist-info$", t)
    )
    found += [f"{name} would be on everybody's path" for name in strangers]
    unwanted = re.compile(r"emulated|/test_|/conftest|cpython-|\.(cpp|cu|cuh|h|sh|pyc)$")
    found += [f"{name} does not belong into a wheel" for name in files if unwanted.search(name)]
    libraries = {name.rsplit("/", 1)[1] for name in files if name.endswith(".so")}
    if platforms == ["any"]:
        found += [f"{name} in a wheel for any platform" for name in libraries]
        wanted = {"slowfast_kernels/_lib/missing.txt"}
    else:
        wanted = {f"slowfast_kernels/_lib/libslowfast_{name}.so" for name in ("cpu", "probe")}
        found += [f"{name} is not ours to carry" for name in libraries if not name.startswith("libslowfast_")]
    wanted |= {
        f"slowfast_kernels/{name}" for name in ("py.typed", "models/__init__.py", "bench/gpu/__init__.py")
    }
    found += [f"{name} is missing" for name in sorted(wanted - set(files))]
    about = metadata(wheel)
    found += [f"metadata: no {key}" for key in ("Author", "Keywords", "Classifier") if not about[key]]
    links = relative_links(about.get_payload())
    found += [f"the description links to {target}, which nothing stands beside" for target in links]
    return found


def main(paths):
    status = 0
    for path in map(Path, paths):
        found = problems(path)
        cuda = "with" if has_cuda(path) else "without"
        print(f"{path}: {'; '.join(found) or 'as it should be'} ({cuda} the CUDA library)")
        status |= bool(found)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
