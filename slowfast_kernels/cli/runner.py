"""Runs the views of videos through the frozen model and the reference, and keeps what was measured."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slowfast_kernels.cli import measure

# Timed runs of each model that a median needs, however few views there are.
MIN_RUNS = 5
PROFILE_RUNS = 3


@dataclass
class Setting:
    """Everything the views are run with: ``model`` is the reference, ``frozen`` its inference form."""

    model: Any
    frozen: Any
    device: torch.device
    dtype: torch.dtype
    backend: str
    views: tuple[int, int]
    crop: int
    short_side: int | None
    rule: str
    compare: bool
    partial: bool
    labels: list[str] | None
    quiet: bool

    @property
    def config(self) -> Any:
        """The model's ModelConfig."""
        return self.model.config

    @property
    def input(self) -> Any:
        """How clips are made for the model (InputSpec)."""
        return self.config.input

    @property
    def head(self) -> Any:
        """What the outputs mean (HeadConfig)."""
        return self.config.head

    @property
    def features(self) -> bool:
        """Whether views give the pooled features instead of scores."""
        return bool(self.head.output == "features")

    @property
    def activation(self) -> str:
        """What the model did to its outputs."""
        return "none" if self.features else str(self.head.activation)

    @property
    def reason(self) -> str | None:
        """Why the frozen model runs on plain PyTorch; None where it runs the fused kernels."""
        reason: str | None = self.frozen.reason
        return reason

    @property
    def ours(self) -> str:
        """What tables and pictures call the frozen model, after what it runs on."""
        dtype = "bf16" if self.dtype == torch.bfloat16 else "fp32"
        return f"{'plain PyTorch' if self.reason else 'fused'} {dtype}"

    @property
    def compared(self) -> str:
        """What errors are measured on."""
        return "features" if self.features else "logits"


@dataclass
class Tally:
    """Measurements over all videos; times in seconds, memory in bytes."""

    frozen: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    pack: list[float] = field(default_factory=list)
    frozen_memory: int | None = None
    reference_memory: int | None = None
    max_abs: float = 0.0
    rel_l2: float = 0.0
    stages: list[dict[str, Any]] = field(default_factory=list)
    profile: list[dict[str, Any]] = field(default_factory=list)


class Runner:
    """Processes videos one after the other with one setting; ``tally`` collects over all of them."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.tally = Tally()
        #: Outputs of every view [views, C] by file, where the model gives features.
        self.features: dict[str, Tensor] = {}
        self._bar: Any = None

    def process(self, path: str) -> dict[str, Any]:
        """Decode one video, run all its views, and return its part of the JSON document."""
        from slowfast_kernels import video

        setting, spec = self.setting, self.setting.input
        reader = video.VideoReader(path, partial=setting.partial)
        clips, crops = setting.views
        first = not self.tally.frozen  # the first video also warms up, measures memory and profiles
        extra = max(MIN_RUNS - clips * crops, 0) if first and setting.compare else 0
        sampling = {"frames": spec.frames, "tau": spec.tau, "rule": setting.rule}
        views = video.sample_views(
            reader, crop=setting.crop, views=setting.views, short_side=setting.short_side, **sampling
        )
        rows, ours, theirs = [], [], []
        with self._progress(Path(path).name, clips * crops):
            for number, view in enumerate(views):
                frozen_input, reference_input = self._pack(view)
                if first and number == 0:
                    self._warm_up(frozen_input, reference_input)
                output, expected = self._run_both(frozen_input, reference_input, number)
                rows.append(self._row(view, output, expected))
                ours.append(self._result(output))
                if expected is not None:
                    theirs.append(self._result(expected))
                self._bar.update()
                self._say("decoding")
            for turn in range(extra):
                self._run_both(frozen_input, reference_input, turn + 1)
            if first and setting.compare:
                self._profile(frozen_input, reference_input)

        note = video.short_clip_note(reader.info, clips=clips, **sampling)
        result: dict[str, Any] = {
            "file": path,
            "info": asdict(reader.info),
            "damaged_packets": reader.damaged,
            "notes": [note] if note else [],
        }
        if setting.features:
            self.features[path] = torch.stack(ours)
        else:
            result["top5"] = top5(_ensemble(ours, spec.ensemble), setting.labels)
            if theirs:
                result["top5_reference"] = top5(_ensemble(theirs, spec.ensemble), setting.labels)
        result["views"] = rows
        return result

    # -- models --

    def run_frozen(self, inputs: Any) -> Tensor:
        """Outputs [1, C] of the frozen model."""
        from slowfast_kernels import use_backend

        with torch.inference_mode(), use_backend(self.setting.backend):
            outputs: Tensor = self.setting.frozen(inputs)
            return outputs

    def run_reference(self, inputs: Any) -> Tensor:
        """Outputs [1, C] of the model on plain PyTorch, with the same weights in fp32."""
        from slowfast_kernels import use_backend

        with torch.inference_mode(), use_backend("reference"):
            return self.setting.model(inputs)

    def _pack(self, view: Any) -> tuple[Any, Any]:
        """Inputs of the frozen model and of the reference (fp32)."""
        from slowfast_kernels import video

        setting = self.setting
        pack = partial(video.pack_view, view, setting.input, device=setting.device)
        packed, seconds = measure.timed(partial(pack, dtype=setting.dtype), setting.device)
        self.tally.pack.append(seconds)
        same = setting.dtype == torch.float32 or not setting.compare
        return packed, packed if same else pack(dtype=torch.float32)

    def _warm_up(self, frozen_input: Any, reference_input: Any) -> None:
        """First run of each model, which allocates what later runs reuse: the one to measure memory in."""
        self._say("warm-up")
        device = self.setting.device
        _, self.tally.frozen_memory = measure.peak_memory(partial(self.run_frozen, frozen_input), device)
        if self.setting.compare:
            run = partial(self.run_reference, reference_input)
            _, self.tally.reference_memory = measure.peak_memory(run, device)

    def _run_both(self, frozen_input: Any, reference_input: Any, turn: int) -> tuple[Tensor, Tensor | None]:
        """One timed run of each model, taking turns in who goes first."""
        sides: dict[str, tuple[Callable[[], Tensor], list[float]]] = {
            "frozen": (partial(self.run_frozen, frozen_input), self.tally.frozen),
            "reference": (partial(self.run_reference, reference_input), self.tally.reference),
        }
        order = ["frozen", "reference"] if self.setting.compare else ["frozen"]
        outputs: dict[str, Tensor] = {}
        for who in order if turn % 2 == 0 else reversed(order):
            self._say(self.setting.ours if who == "frozen" else who)
            run, times = sides[who]
            outputs[who], seconds = measure.timed(run, self.setting.device)
            times.append(seconds)
        return outputs["frozen"], outputs.get("reference")

    def _profile(self, frozen_input: Any, reference_input: Any) -> None:
        """Time per stage of both models, a few interleaved repeats."""
        from slowfast_kernels import use_backend

        self._say("time per stage")
        frozen = self.setting.frozen
        reference, ours = [], []
        for _ in range(PROFILE_RUNS):
            with measure.stage_clock(self.setting.model, self.setting.device) as clock:
                self.run_reference(reference_input)
            reference.append(dict(clock))
            with torch.inference_mode(), use_backend(self.setting.backend):
                ours.append(list(frozen.profile(frozen_input, runs=1)))
        if {row["stage"] for row in ours[-1]} == {"model"}:
            # Without packed kernels there is no call to time but the whole; its modules still can be.
            with measure.stage_clock(frozen.model, self.setting.device) as clock:
                self.run_frozen(frozen_input)
            ours = [[{"stage": name, "seconds": seconds} for name, seconds in clock.items()]]
        self.tally.profile = ours[-1]
        self.tally.stages = measure.merge_stages(reference, ours)

    # -- results --

    def _result(self, outputs: Tensor) -> Tensor:
        """A view's scores, or its features, [C]."""
        if self.setting.features:
            return outputs[0].detach().float().cpu()
        head = self.setting.head
        return measure.scores_of(outputs, head.activation, head.multi_label)

    def _row(self, view: Any, ours: Tensor, theirs: Tensor | None) -> dict[str, Any]:
        """A view's part of the JSON document."""
        activation, tally = self.setting.activation, self.tally
        logits = measure.logits_of(ours, activation)
        row: dict[str, Any] = {
            "clip": view.clip,
            "crop": view.crop,
            "offset_top_left": view.offset,
            "first_frame": view.indices[0],
            "last_frame": view.indices[-1],
            self.setting.compared: {
                "min": logits.min().item(),
                "max": logits.max().item(),
                "mean": logits.mean().item(),
                "std": logits.std(unbiased=False).item(),
            },
        }
        if not self.setting.features:
            row["top5"] = top5(self._result(ours), self.setting.labels)
        if theirs is not None:
            max_abs, rel_l2 = measure.errors(logits, measure.logits_of(theirs, activation))
            row["max_abs_error"], row["rel_l2_error"] = max_abs, rel_l2
            tally.max_abs = measure.worse(tally.max_abs, max_abs)
            tally.rel_l2 = measure.worse(tally.rel_l2, rel_l2)
        return row

    # -- progress --

    @contextlib.contextmanager
    def _progress(self, name: str, views: int) -> Iterator[None]:
        """A bar that counts views, on a terminal; behind it what is being done."""
        from tqdm import tqdm

        unseen = self.setting.quiet or not sys.stderr.isatty()
        self._bar = tqdm(total=views, desc=name, unit="view", disable=unseen, leave=False, file=sys.stderr)
        try:
            yield
        finally:
            self._bar.close()

    def _say(self, what: str) -> None:
        self._bar.set_postfix_str(what)


def top5(scores: Tensor, labels: list[str] | None) -> list[dict[str, Any]]:
    """The five best classes of scores[classes], best first."""
    values, numbers = scores.topk(min(5, scores.numel()))
    return [
        {"class": n, "label": labels[n] if labels else None, "score": v}
        for n, v in zip(numbers.tolist(), values.tolist(), strict=True)
    ]


def _ensemble(scores: list[Tensor], rule: str) -> Tensor:
    """Scores of a video from those of its views: their mean, or their maximum (Charades)."""
    stacked = torch.stack(scores)
    return stacked.amax(0) if rule == "max" else stacked.mean(0)
