"""Ctrl-C at any moment of the command: one line, status 130, no traceback."""

import os
import signal
import subprocess
import sys

import pytest

# Sends the signal while the package is being imported: torch's place is taken by a module that interrupts.
EARLY = """
import os, signal, sys, types

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):
                pass  # the handler runs between two instructions
        return None

sys.meta_path.insert(0, Interrupts())
"""


def started(way, folder, handler=signal.SIG_DFL):
    """A process that is interrupted while it imports torch. handler: of Ctrl-C when it starts (a shell's background
    jobs, and so perhaps this test, have it ignored)."""
    (folder / "sitecustomize.py").write_text(EARLY)
    script = folder / "slowfast-kernels"
    script.write_text("import sys\nfrom slowfast_kernels.cli import main\nsys.exit(main())\n")
    words = {
        "script": [str(script), "info"],
        "module": ["-m", "slowfast_kernels", "info"],
        "library": ["-c", "import slowfast_kernels"],
    }
    path = os.pathsep.join([str(folder), *sys.path])
    return subprocess.run(
        [sys.executable, *words[way]],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        preexec_fn=lambda: signal.signal(signal.SIGINT, handler),
    )


@pytest.mark.parametrize("way", ["script", "module", "library"])
def test_an_interrupt_while_torch_is_imported(way, tmp_path):
    done = started(way, tmp_path)
    if way == "library":  # somebody else's program: its own KeyboardInterrupt
        assert "KeyboardInterrupt" in done.stderr and done.returncode != 130
    else:
        assert (done.returncode, done.stderr) == (130, "\nslowfast-kernels: interrupted\n")


def test_an_ignored_interrupt_stays_ignored(tmp_path):
    done = started("script", tmp_path, signal.SIG_IGN)
    assert done.returncode == 0 and "interrupted" not in done.stderr


def test_an_interrupt_later(command, monkeypatch):
    from slowfast_kernels.cli import info

    def interrupted(args):
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(info, "execute", interrupted)
    got = command("info")
    assert got.status == 130 and got.err == "\nslowfast-kernels: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_while_a_command_is_imported(command, monkeypatch):
    from slowfast_kernels import cli

    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.importlib, "import_module", interrupted)
    got = command("bench", "targets")
    assert got.status == 130 and "Traceback" not in got.err
