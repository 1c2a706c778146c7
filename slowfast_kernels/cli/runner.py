"""Runs the views of videos through the fused model and the reference, and keeps what was measured."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slowfast_kernels.cli import measure

# Timed runs of each model that a median needs, however few views there are.
MIN_RUNS = 5
PROFILE_RUNS = 3


@dataclass
class Setting:
    """Everything the views are run with: ``model`` is the reference, ``fused`` its frozen twin."""

    model: nn.Module
    fused: Callable[..., Tensor]
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


@dataclass
class Tally:
    """Measurements over all videos; times in seconds, memory in bytes."""

    fused: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    pack: list[float] = field(default_factory=list)
    fused_memory: int | None = None
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
        self._bar: Any = None

    def process(self, path: str) -> dict[str, Any]:
        """Decode one video, run all its views, and return its part of the JSON document."""
        from slowfast_kernels import video

        setting, spec = self.setting, self.setting.input
        reader = video.VideoReader(path, partial=setting.partial)
        clips, crops = setting.views
        first = not self.tally.fused  # the first video also warms up, measures memory and profiles
        extra = max(MIN_RUNS - clips * crops, 0) if first and setting.compare else 0
        runs = (2 if setting.compare else 1) * (clips * crops + extra + first)
        sampling = {"frames": spec.frames, "tau": spec.tau, "rule": setting.rule}
        decoded = video.distinct_frames(reader, clips=clips, **sampling)
        views = video.sample_views(
            reader,
            crop=setting.crop,
            views=setting.views,
            short_side=setting.short_side,
            progress=self._advance,
            **sampling,
        )
        rows, ours_scores, their_scores = [], [], []
        with self._progress(Path(path).name, decoded + runs * spec.frames):
            for number, view in enumerate(views):
                fused_input, reference_input = self._pack(view)
                if first and number == 0:
                    self._warm_up(fused_input, reference_input)
                ours, theirs = self._run_both(fused_input, reference_input, number)
                rows.append(self._row(view, ours, theirs))
                ours_scores.append(self._scores(ours))
                if theirs is not None:
                    their_scores.append(self._scores(theirs))
                self._say("decode")
            for turn in range(extra):
                self._run_both(fused_input, reference_input, turn + 1)
            if first and setting.compare:
                self._profile(fused_input, reference_input)

        result = {"file": path, "info": asdict(reader.info), "damaged_packets": reader.damaged}
        result["top5"] = top5(_ensemble(ours_scores, spec.ensemble), setting.labels)
        if their_scores:
            result["top5_reference"] = top5(_ensemble(their_scores, spec.ensemble), setting.labels)
        result["views"] = rows
        return result

    # -- models --

    def run_fused(self, inputs: Any) -> Tensor:
        """Outputs [1, classes] of the frozen model."""
        from slowfast_kernels import use_backend

        with torch.inference_mode(), use_backend(self.setting.backend):
            # A copy: the frozen model may hand out a buffer that its next call overwrites.
            return self.setting.fused(inputs).clone()

    def run_reference(self, inputs: Any) -> Tensor:
        """Outputs [1, classes] of the model on plain PyTorch, with the same weights in fp32."""
        from slowfast_kernels import use_backend

        with torch.inference_mode(), use_backend("reference"):
            return self.setting.model(inputs)

    def _pack(self, view: Any) -> tuple[Any, Any]:
        """Inputs of the fused model and of the reference (fp32)."""
        from slowfast_kernels import video

        setting = self.setting
        pack = partial(video.pack_view, view, setting.input, device=setting.device)
        packed, seconds = measure.timed(partial(pack, dtype=setting.dtype), setting.device)
        self.tally.pack.append(seconds)
        same = setting.dtype == torch.float32 or not setting.compare
        return packed, packed if same else pack(dtype=torch.float32)

    def _warm_up(self, fused_input: Any, reference_input: Any) -> None:
        """First run of each model, which allocates what later runs reuse: the one to measure memory in."""
        self._say("warm-up")
        device, frames = self.setting.device, self.setting.input.frames
        _, self.tally.fused_memory = measure.peak_memory(partial(self.run_fused, fused_input), device)
        self._advance(frames)
        if self.setting.compare:
            run = partial(self.run_reference, reference_input)
            _, self.tally.reference_memory = measure.peak_memory(run, device)
            self._advance(frames)

    def _run_both(self, fused_input: Any, reference_input: Any, turn: int) -> tuple[Tensor, Tensor | None]:
        """One timed run of each model, taking turns in who goes first."""
        sides: dict[str, tuple[Callable[[], Tensor], list[float]]] = {
            "fused": (partial(self.run_fused, fused_input), self.tally.fused),
            "reference": (partial(self.run_reference, reference_input), self.tally.reference),
        }
        order = ["fused", "reference"] if self.setting.compare else ["fused"]
        outputs: dict[str, Tensor] = {}
        for who in order if turn % 2 == 0 else reversed(order):
            self._say(who)
            run, times = sides[who]
            outputs[who], seconds = measure.timed(run, self.setting.device)
            times.append(seconds)
            self._advance(self.setting.input.frames)
        return outputs["fused"], outputs.get("reference")

    def _profile(self, fused_input: Any, reference_input: Any) -> None:
        """Time per stage of both models, a few interleaved repeats."""
        from slowfast_kernels import use_backend

        self._say("stages")
        fused: Any = self.setting.fused
        reference, ours = [], []
        for _ in range(PROFILE_RUNS):
            with measure.stage_clock(self.setting.model, self.setting.device) as clock:
                self.run_reference(reference_input)
            reference.append(dict(clock))
            with torch.inference_mode(), use_backend(self.setting.backend):
                ours.append(list(fused.profile(fused_input, runs=1)))
        if {row["stage"] for row in ours[-1]} == {"model"}:
            # Without packed kernels there is no call to time but the whole; its modules still can be.
            with measure.stage_clock(fused.model, self.setting.device) as clock:
                self.run_fused(fused_input)
            ours = [[{"stage": name, "seconds": seconds} for name, seconds in clock.items()]]
        self.tally.profile = ours[-1]
        self.tally.stages = measure.merge_stages(reference, ours)

    # -- results --

    def _scores(self, outputs: Tensor) -> Tensor:
        head = self.setting.head
        return measure.scores_of(outputs, head.activation, head.multi_label)

    def _row(self, view: Any, ours: Tensor, theirs: Tensor | None) -> dict[str, Any]:
        """A view's part of the JSON document."""
        activation, tally = self.setting.head.activation, self.tally
        logits = measure.logits_of(ours, activation)
        row: dict[str, Any] = {
            "clip": view.clip,
            "crop": view.crop,
            "offset_top_left": view.offset,
            "first_frame": view.indices[0],
            "last_frame": view.indices[-1],
            "logits": {
                "min": logits.min().item(),
                "max": logits.max().item(),
                "mean": logits.mean().item(),
                "std": logits.std(unbiased=False).item(),
            },
            "top5": top5(self._scores(ours), self.setting.labels),
        }
        if theirs is not None:
            max_abs, rel_l2 = measure.errors(logits, measure.logits_of(theirs, activation))
            row["max_abs_error"], row["rel_l2_error"] = max_abs, rel_l2
            tally.max_abs = measure.worse(tally.max_abs, max_abs)
            tally.rel_l2 = measure.worse(tally.rel_l2, rel_l2)
        return row

    # -- progress --

    @contextlib.contextmanager
    def _progress(self, name: str, total: int) -> Iterator[None]:
        """A bar that counts frames: one for each frame decoded, T for each run of a model on a view."""
        from tqdm import tqdm

        bar = tqdm(
            total=total, desc=name, unit="frame", disable=self.setting.quiet, leave=False, file=sys.stderr
        )
        self._bar = bar
        try:
            yield
        finally:
            bar.close()
            self._bar = None

    def _advance(self, frames: int) -> None:
        if self._bar is not None:
            self._bar.update(frames)

    def _say(self, what: str) -> None:
        if self._bar is not None:
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
