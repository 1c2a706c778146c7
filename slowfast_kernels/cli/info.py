"""What is installed on this machine, which kernels can run here, and why others cannot."""

import argparse
import json
from typing import Any

from slowfast_kernels import report
from slowfast_kernels.cli import UserError, one_line

EPILOG = """\
examples:
  slowfast-kernels info               versions, providers, instruction set
  slowfast-kernels info --ceilings    also measure this machine (some seconds)
  slowfast-kernels info --json        the same for programs
"""

EXTRAS = ("numpy", "av", "matplotlib", "triton", "onnxruntime", "openvino")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ceilings", action="store_true", help="measure arithmetic and memory ceilings too")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")


def measured_ceilings(threads: int) -> tuple[dict[str, float] | None, str | None]:
    """Ceilings of this machine at ``threads`` threads, or None and the reason why they cannot be measured."""
    try:
        from slowfast_kernels.bench import probe

        return dict(probe.ceilings(threads)), None
    except (ImportError, OSError, RuntimeError) as error:
        return None, one_line(error)


def gather(ceilings: bool = False) -> dict[str, Any]:
    """Everything the command shows, as one dictionary."""
    from slowfast_kernels import backends, known_issues

    document: dict[str, Any] = {"environment": report.environment()}
    document["packages"] = {name: report.version_of(name) for name in EXTRAS}
    document["providers"] = {
        name: {"available": reason is None, "reason": reason}
        for name, reason in ((name, _why_not(name)) for name in backends.NAMES)
    }
    document["gpu"] = gpu()
    document["known_issues"] = [known_issues.sentence(issue) for issue in known_issues.found()]
    document["isa"] = {"found": backends.cpu_isa_found(), "used": backends.cpu_isa()}
    try:
        from slowfast_kernels import models

        document["models"] = list(models.names())
    except ImportError as error:
        document["models"] = []
        document["models_missing"] = one_line(error)
    if ceilings:
        document["ceilings"], document["ceilings_missing"] = measured_ceilings(
            document["environment"]["threads"]
        )
    return document


def gpu() -> dict[str, Any]:
    """What a GPU user gets: the device, the ops each provider has, the CUDA library built here."""
    import torch

    from slowfast_kernels import _extension, ops
    from slowfast_kernels.ops._registration import OPS

    document: dict[str, Any] = {"device": None, "cudnn": None}
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        document["device"] = f"{torch.cuda.get_device_name()} (compute capability {major}.{minor})"
        document["cudnn"] = torch.backends.cudnn.version()
    for name in ("triton", "cuda"):
        document[name] = [op for op in ops.NAMES if name in OPS[op].providers]
        document[f"simulated_{name}"] = _simulated(name)
    resources = _extension.LIB_DIR / "cuda_resources.json"
    rows = json.loads(resources.read_text()) if resources.exists() else []
    document["cuda_kernels"] = len({row["kernel"] for row in rows})
    return document


def _simulated(name: str) -> bool:
    from slowfast_kernels import backends

    return backends.simulated(name)


def _why_not(name: str) -> str | None:
    from slowfast_kernels import backends

    return None if name == "reference" else backends.unavailable(name)


def say_gpu(gpu: dict[str, Any], width: int) -> None:
    """The GPU part of the text."""
    report.say("\ngpu")
    report.say(f"  {'device'.ljust(width - 2)}  {gpu['device'] or 'none'}")
    for name in ("triton", "cuda"):
        simulated = " (simulated on the CPU)" if gpu[f"simulated_{name}"] else ""
        report.say(f"  {name.ljust(width - 2)}  {', '.join(gpu[name]) or 'no op'}{simulated}")
    kernels = gpu["cuda_kernels"]
    built = f"{kernels} kernels built" if kernels else "not built: without nvcc, or with SLOWFAST_CUDA=OFF"
    report.say(f"  {'cuda library'.ljust(width - 2)}  {built}")


def execute(args: argparse.Namespace) -> int:
    try:
        document = gather(args.ceilings)
    except ImportError as error:
        raise UserError(f"the installation is incomplete: {error}") from error
    if args.json:
        report.say(json.dumps(document, indent=1))
        return 0
    stamp = document["environment"]
    lines = [(key, str(value)) for key, value in stamp.items() if key not in ("time", "av", "isa")]
    lines += [(name, version or "not installed") for name, version in document["packages"].items()]
    width = max(len(key) for key, _ in lines)
    for key, value in lines:
        report.say(f"{key.ljust(width)}  {value}")
    isa = document["isa"]
    used = "" if isa["found"] == isa["used"] else f" (in use: {isa['used']})"
    report.say(f"{'isa'.ljust(width)}  {isa['found']}{used}")
    report.say("\nproviders")
    for name, state in document["providers"].items():
        answer = "available" if state["available"] else f"not available: {state['reason']}"
        report.say(f"  {name.ljust(width - 2)}  {answer}")
    if not document["providers"]["cpu"]["available"]:
        report.say("  warning: CPU calls run on the plain PyTorch reference, at its speed")
    say_gpu(document["gpu"], width)
    if document["known_issues"]:
        report.say("\nknown issues\n  " + "\n  ".join(document["known_issues"]))
    if args.ceilings:
        report.say(f"\nceilings at {report.count(stamp['threads'], 'thread')}")
        found = document["ceilings"]
        if found is None:
            report.say(f"  not measured: {document['ceilings_missing']}")
        for key, value in (found or {}).items():
            report.say(
                f"  {key.ljust(width - 2)}  {value:.4g}" if isinstance(value, float) else f"  {key}  {value}"
            )
    if document["models"]:
        report.say("\nmodels\n  " + "\n  ".join(document["models"]))
    else:
        report.say(f"\nmodels: not available: {document['models_missing']}")
    return 0
