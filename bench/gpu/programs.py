"""Programs that a part starts: found beside CUDA's compiler as well, ended when the part's time is over."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slowfast_kernels.bench.gpu.machine import GpuMachine


def tool(name: str) -> str | None:
    """A program of the CUDA toolkit, which is often installed and not on the PATH."""
    homes = [f"{home}/bin" for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *homes]))


def output(machine: GpuMachine, command: Sequence[str], log: str, **more: Any) -> tuple[int | None, str]:
    """(exit status or None where it was stopped, what it printed), kept in the file ``log`` as well. It may take what
    the part has left, less what it takes to say so; what the command itself started ends with it."""
    seconds = max(10.0, min(300.0, machine.deadline - time.monotonic() - 2))
    path = Path(machine.setting.out) / log
    with path.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, **more
        )
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None, path.read_text(errors="replace")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return process.returncode, path.read_text(errors="replace")
