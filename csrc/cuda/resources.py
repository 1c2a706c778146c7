"""What every CUDA kernel takes of the machine, as ptxas says while it compiles.

resources.py compile COMMAND...          run nvcc; what ptxas reports goes to OBJECT.ptxas instead of the terminal
resources.py report JSON OBJECT...       gather the reports of the objects: print a table and write JSON
resources.py sources JSON FOLDER         hash every source file of a folder: what a measured choice of tiles is good for
resources.py differ JSON FOLDER          names of the files that no longer are what was hashed, or are new, or gone

JSON: a list of {"kernel", "arch", "registers", "stack_bytes", "spill_store_bytes", "spill_load_bytes",
"shared_bytes" (static), "threads" (a block, at most: its launch bounds), "blocks_per_sm" (at most: dynamic
shared memory is not known here)}.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REGISTERS_PER_SM = 65536
REGISTERS_UNIT = 256  # a warp gets a multiple of this
THREADS_PER_SM = 2048
BLOCKS_PER_SM = 32
SHARED_PER_SM = {"sm_80": 164 * 1024, "sm_90a": 228 * 1024}
LEAST_SHARED_PER_SM = 100 * 1024  # of the other architectures from sm_80 on
SHARED_OF_THE_SYSTEM = 1024  # a block
THREADS_WITHOUT_BOUNDS = 1024
#: of an entry in PTX: its name, then its parameters, then its bounds
BOUNDS = re.compile(r"\.entry\s+(\w+)\([^)]*\)\s*\.maxntid\s+(\d+)(?:,\s*(\d+),\s*(\d+))?")


def compile_and_keep(command: list[str]) -> int:
    """Run a compiler; ptxas's report and the launch bounds go beside the object, everything else to stderr."""
    if not ("-o" in command and "-c" in command):
        return subprocess.run(command).returncode
    with tempfile.TemporaryDirectory() as kept:
        done = subprocess.run([*command, "--keep", "--keep-dir", kept], stderr=subprocess.PIPE, text=True)
        ptx = "".join(path.read_text() for path in sorted(Path(kept).glob("*.ptx")))
    report = [
        f"bounds {name} {int(x) * int(y or 1) * int(z or 1)}" for name, x, y, z in set(BOUNDS.findall(ptx))
    ]
    in_report = False
    for line in done.stderr.splitlines():
        # A line of figures follows "Function properties" without the prefix.
        in_report = line.startswith("ptxas info") or (in_report and line.startswith("    "))
        if in_report:
            report.append(line)
        else:
            print(line, file=sys.stderr)
    Path(command[command.index("-o") + 1] + ".ptxas").write_text("\n".join(report) + "\n")
    return done.returncode


def blocks_per_sm(arch: str, registers: int, shared_bytes: int, threads: int) -> int:
    warps = -(-threads // 32)
    per_warp = -(-max(registers, 1) * 32 // REGISTERS_UNIT) * REGISTERS_UNIT
    return min(
        BLOCKS_PER_SM,
        THREADS_PER_SM // (32 * warps),
        REGISTERS_PER_SM // per_warp // warps,
        SHARED_PER_SM.get(arch, LEAST_SHARED_PER_SM) // (shared_bytes + SHARED_OF_THE_SYSTEM),
    )


def parse(report: str) -> list[dict[str, object]]:
    """Kernels of one compilation's report."""
    kernels: list[dict[str, object]] = []
    entry = re.compile(r"Compiling entry function '(\S+)' for '(\S+)'")
    frame = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
    used = re.compile(r"Used (\d+) registers")
    shared = re.compile(r"(\d+) bytes smem")
    threads = {name: int(n) for name, n in re.findall(r"^bounds (\S+) (\d+)$", report, re.MULTILINE)}
    kernel: dict[str, object] = {}
    for line in report.splitlines():
        if found := entry.search(line):
            kernel = {"kernel": found[1], "arch": found[2]}
        elif found := frame.search(line):
            sizes = (int(size) for size in found.groups())
            kernel.update(zip(("stack_bytes", "spill_store_bytes", "spill_load_bytes"), sizes, strict=True))
        elif kernel and (found := used.search(line)):
            smem = shared.search(line)
            registers, shared_bytes = int(found[1]), int(smem[1]) if smem else 0
            bound = threads.get(str(kernel["kernel"]), THREADS_WITHOUT_BOUNDS)
            blocks = blocks_per_sm(str(kernel["arch"]), registers, shared_bytes, bound)
            kernel.update(registers=registers, shared_bytes=shared_bytes, threads=bound, blocks_per_sm=blocks)
            kernels.append(kernel)
            kernel = {}
    return kernels


def demangle(names: list[str]) -> list[str]:
    tool = shutil.which("c++filt")
    if tool is None or not names:
        return names
    done = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def short(name: str) -> str:
    """A demangled kernel without its namespaces and parameters."""
    name = re.sub(r"^void ", "", name)
    name = re.sub(r"\(anonymous namespace\)::|slowfast::cuda::", "", name)
    return re.sub(r"\((?![a-z ]+\)[\w-]).*\)$", "", name)


def report(path: Path, objects: list[str]) -> None:
    kernels = []
    for name in objects:
        kept = Path(name + ".ptxas")
        if kept.exists():
            kernels += parse(kept.read_text())
    for kernel, name in zip(kernels, demangle([str(k["kernel"]) for k in kernels]), strict=True):
        kernel["kernel"] = short(name)
    kernels.sort(key=lambda k: (str(k["kernel"]), str(k["arch"])))
    path.write_text(json.dumps(kernels, indent=1) + "\n")
    print(
        f"{len(kernels)} CUDA kernels: registers, bytes spilled, static shared memory, threads x blocks per SM at most"
    )
    for k in kernels:
        spilled = int(str(k["spill_store_bytes"])) + int(str(k["spill_load_bytes"]))
        mark = "  SPILLS" if spilled else ""
        print(
            f"  {k['arch']:8}{k['registers']:4} reg {spilled:5} B {k['shared_bytes']:6} B {k['threads']:5}"
            f" x{k['blocks_per_sm']:3}  {k['kernel']}{mark}"
        )


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.iterdir() if p.suffix in (".cu", ".cuh", ".h"))
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest()[:16] for p in files}


def differ(path: Path, folder: Path) -> list[str]:
    """Contents, not times: a copy of the tree may have any. Nothing is known of a library without a list."""
    if not path.exists():
        return []
    before, now = json.loads(path.read_text()), hashes(folder)
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


if __name__ == "__main__":
    if sys.argv[1] == "compile":
        sys.exit(compile_and_keep(sys.argv[2:]))
    if sys.argv[1] == "sources":
        Path(sys.argv[2]).write_text(json.dumps(hashes(Path(sys.argv[3])), indent=1) + "\n")
    elif sys.argv[1] == "differ":
        print(*differ(Path(sys.argv[2]), Path(sys.argv[3])), sep=", ")
    else:
        report(Path(sys.argv[2]), sys.argv[3:])
