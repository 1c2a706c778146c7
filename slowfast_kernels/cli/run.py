"""Recognise actions in videos with the fused network, or extract their features.

Each video is decoded, cut into views (clips in time x crops in space), run through the fused model and the
views' predictions are put together into a top-5 list. With --compare every view also goes through the plain
PyTorch reference with the same weights, and a table shows the error and the speed side by side. With
--features the network ends before its classifier, and the vectors are written instead.

Weights and class names: docs/weights.md says where the libraries publish theirs.

Several videos may be given. One that cannot be used is reported and the others still run; the exit status is
then 2.
"""

import argparse
import ast
import json
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slowfast_kernels import report
from slowfast_kernels._optional import needs
from slowfast_kernels.cli import UserError, complain, one_line, results
from slowfast_kernels.cli.checkpoints import reading
from slowfast_kernels.cli.runner import Runner, Setting

EPILOG = """\
examples:
  slowfast-kernels run clip.mp4 --checkpoint SLOWFAST_8x8_R50.pkl --labels kinetics.txt
      the usual test protocol, 10 clips x 3 crops; checkpoints of PySlowFast, pytorchvideo and mmaction2
  slowfast-kernels run clip.mp4 --views 1x1
      a quick look: one centre crop of the first seconds (several: --views 5x1)
  slowfast-kernels run examples/demo.mp4 --views 2x1 --compare --json demo.json --plot demo.png
      no weights needed: random ones prove the same answers and show the speed
  slowfast-kernels run a.mp4 b.mp4 --checkpoint SLOWFAST_8x8_R50.pkl --features features.npz
      no classes: a vector for every view, and their mean for every video
  slowfast-kernels run a.mp4 b.mp4 --dtype bf16 --json out.json
      two videos in bfloat16, everything about them in one file
  slowfast-kernels run clip.mp4 --model slow_8x8_r50 --set crop=160
      another preset (slowfast-kernels info lists them) with something of it changed

Exit status: 0 all videos done; 2 something was unusable (one line on the standard error names it).
"""

DEFAULT_MODEL = "slowfast_8x8_r50"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FEATURE_FILES = (".npz", ".json")
BACKENDS = ("auto", "reference", "cpu", "triton", "cuda")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("videos", nargs="+", metavar="VIDEO", help="video files (whatever FFmpeg reads)")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model", metavar="NAME", help=f"preset (default: the checkpoint's, or {DEFAULT_MODEL})"
    )
    model.add_argument("--checkpoint", metavar="FILE", help="trained weights; without it they are random")
    model.add_argument(
        "--labels", metavar="FILE", help="class names: one per line, or JSON (list, or name to number)"
    )
    model.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change something of the preset, such as classes=174 or alpha=8; repeatable",
    )
    model.add_argument("--seed", type=int, default=0, metavar="N", help="of the random weights (default 0)")
    views = parser.add_argument_group("views")
    views.add_argument(
        "--views",
        metavar="CLIPSxCROPS",
        help="clips in time x crops in space, 1 or 3 crops (default: the model's own test "
        "protocol, 10x3 for Kinetics)",
    )
    views.add_argument(
        "--crop",
        type=int,
        metavar="PIXELS",
        help="side of the square crop (default: the model's, 224 for one crop and 256 for three)",
    )
    views.add_argument(
        "--short-side",
        type=int,
        metavar="PIXELS",
        help="scale the shorter side to this before cropping (default: 256 for one crop, the crop for three)",
    )
    views.add_argument(
        "--sampling",
        choices=("pyslowfast", "pyslowfast-offset", "segments", "mmaction2"),
        help="whose rule places clips and crops (default: the one the model was tested with)",
    )
    views.add_argument("--partial", action="store_true", help="use what is there of a truncated video")
    how = parser.add_argument_group("how to run")
    how.add_argument(
        "--dtype", choices=tuple(DTYPES), default="fp32", help="of the frozen model (default fp32)"
    )
    how.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default cpu")
    how.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="provider of the fused ops (default auto); one asked for by name never falls back",
    )
    how.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    how.add_argument(
        "--compare",
        action="store_true",
        help="also run the fp32 PyTorch reference on every view: errors, speed-up, memory",
    )
    out = parser.add_argument_group("output")
    out.add_argument("--json", metavar="FILE", help="write everything found as JSON")
    out.add_argument(
        "--features",
        metavar="FILE",
        help="write the pooled features before the classifier, one vector per view and their mean, as .npz "
        "(arrays videos, mean, views, video, clip, crop) or .json; there is no top-5 list then",
    )
    out.add_argument(
        "--plot",
        metavar="FILE",
        help="draw the time per stage, reference beside fused, as .png, .svg, .pdf, ... (implies --compare)",
    )
    out.add_argument("--quiet", action="store_true", help="no progress bar (nor is there one in a pipe)")


# -- what the user gave --


def parse_overrides(items: list[str]) -> dict[str, Any]:
    """``["classes=10", "beta=1/16"]`` -> ``{"classes": 10, "beta": 0.0625}``; other values stay text."""
    result: dict[str, Any] = {}
    for item in items:
        key, sign, value = item.partition("=")
        if not sign or not key.isidentifier():
            raise UserError(f"--set {item}: expected KEY=VALUE, such as classes=10")
        above, slash, below = value.partition("/")
        if slash and above.isdigit() and below.isdigit() and int(below):
            result[key] = int(above) / int(below)
            continue
        try:
            result[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            result[key] = value
    return result


def read_labels(path: str, classes: int) -> list[str]:
    """Class names in the order of the outputs.

    Accepts text with one name per line, a JSON list, or a JSON object of name to number or number to name (as
    pytorchvideo's ``kinetics_classnames.json``).
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file (expected {classes} class names)") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as class names ({one_line(error)})") from error
    names: list[str]
    if text.lstrip()[:1] in ("[", "{"):
        try:
            names = _json_labels(json.loads(text))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path}: expected a JSON list of names or an object of name to number ({one_line(error)})"
            ) from error
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if len(names) != classes:
        raise UserError(
            f"{path}: expected {classes} class names, one for each output of the model, got {len(names)}"
        )
    return names


def _json_labels(data: Any) -> list[str]:
    if isinstance(data, list):
        return [str(name) for name in data]
    if data and all(isinstance(v, int) for v in data.values()):
        pairs = {number: name for name, number in data.items()}
    else:
        pairs = {int(number): name for number, name in data.items()}
    if sorted(pairs) != list(range(len(data))):
        raise ValueError(f"the numbers are not 0 to {len(data) - 1}, once each")
    return [str(pairs[i]).strip('"') for i in range(len(pairs))]


def check_outputs(args: argparse.Namespace) -> None:
    """Refuse paths that cannot be written before anything is computed."""
    try:
        if args.json is not None:
            report.check_output("--json", args.json)
        if args.features is not None:
            report.check_output("--features", args.features, FEATURE_FILES)
        if args.plot is not None:
            report.check_picture("--plot", args.plot)
    except ValueError as error:
        raise UserError(str(error)) from error


# -- the model --


def randomize(model: nn.Module, seed: int) -> None:
    """Fill a network with random weights whose answers are worth comparing.

    He initialisation keeps the signal's size through convolution and ReLU; with the usual zero (or one) in
    the last normalisation of each residual branch the branch would vanish (or the sum double at every block),
    so that scale is 0.3. Normalisation statistics are drawn near 0 and 1, so that folding them is put to the
    test, and the classifier is scaled to logits of order 1.
    """
    from slowfast_kernels.nn import BasicBlock, Bottleneck

    generator = torch.Generator().manual_seed(seed)

    def normal(t: Any, std: float, mean: float = 0.0) -> None:
        t.copy_(torch.randn(t.shape, generator=generator).mul_(std).add_(mean))

    def uniform(t: Any, low: float, high: float) -> None:
        t.copy_(torch.rand(t.shape, generator=generator).mul_(high - low).add_(low))

    blocks = [m for m in model.modules() if isinstance(m, Bottleneck | BasicBlock)]
    last = {id(block.last.bn) for block in blocks}
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.conv._ConvNd):
                normal(module.weight, (2.0 / module.weight[0].numel()) ** 0.5)
                if module.bias is not None:
                    normal(module.bias, 0.1)
            elif isinstance(module, nn.modules.batchnorm._BatchNorm):
                uniform(module.weight, *((0.2, 0.4) if id(module) in last else (0.8, 1.2)))
                normal(module.bias, 0.1)
                normal(module.running_mean, 0.1)
                uniform(module.running_var, 0.8, 1.2)
            elif isinstance(module, nn.Linear):
                normal(module.weight, 0.4 / module.in_features**0.5)
                normal(module.bias, 0.1)


def overrides_of(args: argparse.Namespace) -> dict[str, Any]:
    """What --set and --features change of the preset or the file."""
    overrides = parse_overrides(args.overrides)
    if "output" in overrides:
        raise UserError("--set output: expected --features FILE, which says it and writes them")
    return {**overrides, "output": "features"} if args.features else overrides


def preset(args: argparse.Namespace) -> Any:
    """The ModelConfig that --model and --set describe."""
    from slowfast_kernels import models

    name = args.model or DEFAULT_MODEL
    overrides = overrides_of(args)
    try:
        return models.configure(name, **overrides)
    except (ValueError, TypeError, ArithmeticError) as error:
        given = " ".join([f"--model {name}", *(f"--set {item}" for item in args.overrides)])
        raise UserError(f"{given}: {one_line(error)}") from error


def load(args: argparse.Namespace) -> nn.Module:
    """The model in a checkpoint."""
    from slowfast_kernels.models import checkpoint

    overrides = overrides_of(args)
    with reading(args.checkpoint):
        return checkpoint.load_checkpoint(args.checkpoint, args.model, **overrides)


# -- the command --


def check_machine(args: argparse.Namespace) -> None:
    """Refuse threads, a device or a backend that cannot be had."""
    from slowfast_kernels import backends

    if args.threads is not None:
        if args.threads < 1:
            raise UserError(f"--threads: expected at least 1, got {args.threads}")
        torch.set_num_threads(args.threads)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device is available to torch (expected one)")
    if args.backend not in ("auto", "reference"):
        reason = backends.unavailable(args.backend)
        if reason is not None:
            raise UserError(f"--backend {args.backend}: {reason}")


def sampling_rule(args: argparse.Namespace, config: Any) -> str:
    """The rule asked for, else the one that the model was trained and tested with."""
    if args.sampling:
        return str(args.sampling)
    if config.input.sampling == "segments":
        return "segments"
    return "mmaction2" if config.source == "mmaction2" else "pyslowfast"


def frame_sizes(args: argparse.Namespace, config: Any) -> tuple[tuple[int, int], int]:
    """Views (clips, crops) and the side of a crop, from the options or the model."""
    from slowfast_kernels import video

    try:
        clips, crops = video.parse_views(args.views) if args.views else config.input.views
    except ValueError as error:
        raise UserError(f"--{error}") from error
    if sampling_rule(args, config) == "segments" and clips != 1:
        raise UserError(
            f"sampling by segments: expected --views 1x1 or 1x3 (a clip spans the video), got {clips}x{crops}"
        )
    crop = config.input.test_crop if crops > 1 else config.input.crop
    if args.crop is not None:
        crop = args.crop
    if crop < 1 or (args.short_side is not None and args.short_side < crop):
        raise UserError(f"--crop {crop} --short-side {args.short_side}: expected 1 <= crop <= short side")
    pool = None if config.head.semantics == "mmaction2" else config.head.pool
    if pool is not None and math.ceil(crop / 32) < pool:
        raise UserError(
            f"--crop {crop}: expected at least {32 * (pool - 1) + 1} pixels, as the head pools {pool}x{pool} "
            f"cells (--set crop={crop} makes a model for smaller crops)"
        )
    return (clips, crops), crop


def prepare(args: argparse.Namespace) -> Setting:
    """Turn the arguments into a setting; raises UserError for anything unusable."""
    from slowfast_kernels import freeze, models, use_backend

    args.compare = args.compare or args.plot is not None
    check_outputs(args)
    check_machine(args)
    # A preset is checked before its weights are drawn; what a checkpoint holds shows when it is loaded.
    model = load(args) if args.checkpoint else None
    config: Any = preset(args) if model is None else model.config
    if config.head.roi is not None:
        raise UserError(f"{args.checkpoint or args.model}: detects in boxes (expected a classifier of clips)")
    views, crop = frame_sizes(args, config)
    labels = read_labels(args.labels, config.head.classes) if args.labels else None
    if model is None:
        model = models.build(config)
        randomize(model, args.seed)
    device, dtype = torch.device(args.device), DTYPES[args.dtype]
    model = model.eval().to(device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    try:
        # What runs, and why, is printed: the library's warning would say it again.
        with use_backend(args.backend), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            frozen = freeze(model, dtype=dtype)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"--backend {args.backend} --dtype {args.dtype}: {one_line(error)}") from error
    return Setting(
        model=model,
        frozen=frozen,
        device=device,
        dtype=dtype,
        backend=args.backend,
        views=views,
        crop=crop,
        short_side=args.short_side,
        rule=sampling_rule(args, config),
        compare=args.compare,
        partial=args.partial,
        labels=labels,
        quiet=args.quiet,
    )


def execute(args: argparse.Namespace) -> int:
    with needs("run", extra="video"):
        from slowfast_kernels import models, video
    from slowfast_kernels.cli.info import measured_ceilings

    setting = prepare(args)
    name = setting.config.name or args.model or f"model of {Path(args.checkpoint).name}"
    weights = args.checkpoint or f"random, seed {args.seed}"
    if args.checkpoint:
        report.say(str(setting.model.checkpoint))
    else:
        report.say(f"{name}, weights: {weights}")
        report.say("random weights: predictions are meaningless, parity and speed are real")
    if setting.reason:
        report.say(f"runs on plain PyTorch, without the fused kernels: {setting.reason}")

    runner = Runner(setting)
    videos: list[dict[str, Any]] = []
    failed = False
    for path in args.videos:
        try:
            result = runner.process(path)
        except video.VideoError as error:
            complain(error)
            videos.append({"file": path, "error": one_line(error)})
            failed = True
        except NotImplementedError:
            raise  # a kernel that is missing from the build: nothing the user gave, and worth its traceback
        except (RuntimeError, ValueError) as error:
            # Ops and providers say in a sentence what they cannot do; the next video would fail alike.
            raise UserError(f"{path}: {one_line(error)}") from error
        else:
            videos.append(result)
            results.show_video(result)
            if any(math.isnan(view[setting.compared]["std"]) for view in result["views"]):
                complain(
                    f"{path}: the model's outputs are not finite (expected numbers; is the checkpoint whole?)"
                )
                failed = True

    done = [result for result in videos if "error" not in result]
    summary: dict[str, Any] = {}
    if done:
        macs = models.macs(setting.model, frames=setting.input.frames, crop=setting.crop)
        ceilings, missing = None, None
        if setting.compare and setting.device.type == "cpu":
            ceilings, missing = measured_ceilings(torch.get_num_threads())
        summary = results.summarise(setting, runner.tally, macs, ceilings, done)
        results.show_summary(setting, summary, missing)
    if args.json:
        report.write_json(args.json, results.document(setting, name, weights, videos, summary))
        report.say(f"wrote {args.json}")
    if args.features and done:
        results.write_features(args.features, name, weights, done, runner.features)
        report.say(f"wrote {args.features}")
    if args.plot and done:
        results.plot(args.plot, setting, name, summary)
        report.say(f"wrote {args.plot}")
    return 2 if failed else 0
