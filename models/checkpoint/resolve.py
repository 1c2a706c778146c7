"""From what the shapes tell to a complete configuration.

Gaps are closed by the file's own configuration, else by the preset and the overrides that the caller names.
What would change the network's function and is still open then is taken from the library's published models
with these shapes if they agree, and noted; if not, it is an error that lists them. What only describes the
input (frames, crop, normalisation) is taken from the published model that fits best, and noted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from slowfast_kernels.models.checkpoint.detect import Found, structure
from slowfast_kernels.models.checkpoint.errors import Question, UndecidedError
from slowfast_kernels.models.checkpoint.stored import UNSEEN, Stored
from slowfast_kernels.models.config import HeadConfig, InputSpec, ModelConfig, PathwayConfig, RoIConfig
from slowfast_kernels.models.families import family_of
from slowfast_kernels.models.families.resnet3d import path_kind
from slowfast_kernels.models.overrides import override
from slowfast_kernels.models.presets import PRESETS

T = TypeVar("T")
DETECTION_CLASSES = (80, 81)  # AVA's, without and with a background class


@dataclass(frozen=True)
class Resolved:
    """config, and what of it was assumed rather than read (for the log).

    decisive: some of that changes the network's function. length_known: the length of its clips is told, or that of
    all published models that it may be. norms: (eps, momentum) of a pathway's batch norms, where not the usual.
    """

    config: ModelConfig
    assumed: tuple[str, ...]
    decisive: bool = False
    length_known: bool = True
    norms: Mapping[str, tuple[float, float | None]] = field(default_factory=dict)


def resolve(
    found: Found,
    library: str,
    stored: Stored | None,
    preset: ModelConfig | None,
    overrides: Mapping[str, Any],
    *,
    detects: bool | None,
    semantics: str,
) -> Resolved:
    """The configuration of a network with these shapes.

    library: whose network it is, "pyslowfast", "pytorchvideo" or "mmaction2". detects: whether it has a
    detection head, where the keys tell. semantics: whose rule the head follows.
    Raises UndecidedError with the candidates for what nothing tells, ValueError for contradictions.
    """
    said = stored or Stored("nothing")
    return _Resolver(found, library, said, preset, overrides, detects, semantics).run()


def with_window(config: ModelConfig) -> ModelConfig:
    """The configuration with the length of its clips fixed where the library's head has a window over all
    frames of a training clip, which it would slide along a longer one; mmaction2's averages whatever comes."""
    head = config.head
    window = head.semantics != "mmaction2" and (head.roi is not None or head.pool is not None)
    return replace(config, input=replace(config.input, fixed_frames=window))


@dataclass
class _Resolver:
    found: Found
    library: str
    stored: Stored
    preset: ModelConfig | None
    overrides: Mapping[str, Any]
    told: bool | None  # whether it detects
    semantics: str
    assumed: list[str] = field(default_factory=list)
    decisive: bool = False
    length_known: bool = True
    open: list[Question] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.detects = self._detects()
        self.published = self._published()

    def run(self) -> Resolved:
        config = self._assemble()
        if self.open:
            raise UndecidedError("", list(dict.fromkeys(self.open)))
        config = override(config, self.overrides)
        name = self.preset.name if self.preset is not None else self._known_as(config)
        norms = self.stored.norms
        if not self.found.two:  # whatever the pathway is called
            norms = {path: norm for path in config.pathways for norm in norms.values()}
        config = replace(config, name=name)
        return Resolved(config, tuple(self.assumed), self.decisive, self.length_known, norms)

    # -- where values come from --

    def _published(self) -> list[ModelConfig]:
        """Presets with the file's shapes, the best guess first: same library, same classes, 8x8, detection or not."""

        def rank(p: ModelConfig) -> tuple[bool, ...]:
            one = not self.found.two and "8x8" not in p.name
            return not self._same_classes(p), p.source != self.library, one

        shape = structure(self.found)
        same = [p for p in PRESETS.values() if structure(p) == shape]
        return sorted((p for p in same if self.open or (p.head.roi is not None) == self.detects), key=rank)

    def _agreed(
        self, value: Callable[[ModelConfig], T], otherwise: T, shown: str, what: str, *settings: str
    ) -> T:
        """What the library's published models with the file's shapes agree on, noted as assumed.

        Where they differ, or there are none, it becomes a question: `what` in words, and the settings that
        would tell. shown: the value in words, such as "alpha {}". otherwise: what to go on with then.
        """
        own = [p for p in self.published if p.source == self.library]
        values = {value(p) for p in own}
        if len(values) == 1:
            (agreed,) = values
            self.assumed.append(f"{shown.format(agreed)} as {own[0].name}")
            self.decisive = True
            return agreed
        ranked = sorted(self.published, key=lambda p: (p.source != self.library, p.name))
        candidates = tuple(f"{p.name} ({shown.format(value(p))})" for p in ranked[:6])
        self.open.append(Question(what, (*settings, "model=NAME"), candidates))
        return otherwise

    def _same_classes(self, preset: ModelConfig) -> bool:
        return preset.head.classes == self.found.classes

    def _detects(self) -> bool:
        if self.overrides.get("roi") is not None:
            return True
        for told in (self.told, self.stored.detects):
            if told is not None:
                return told
        if "roi" in self.overrides:  # roi=None
            return False
        if self.preset is not None:
            return self.preset.head.roi is not None
        if (classes := self.found.classes) in DETECTION_CLASSES:
            what = f"whether its {classes} classes are those of boxes (a detection head) or of clips"
            presets = tuple(p.name for p in PRESETS.values() if p.head.roi and p.source == self.library)
            self.open.append(Question(what, ("roi=True", "roi=None", "model=NAME"), presets))
        return False

    # -- the parts --

    def _assemble(self) -> ModelConfig:
        alpha = self._alpha()
        paths = {name: self._pathway(name, path) for name, path in self.found.paths.items()}
        spec = self._input(alpha, paths)
        lateral = self.found.lateral
        if "relu" in self.stored.lateral and lateral.kind == "conv":
            lateral = replace(lateral, relu=self.stored.lateral["relu"])
        return ModelConfig(
            input=spec,
            slow=paths.get("slow"),
            fast=paths.get("fast"),
            lateral=lateral,
            head=self._head(spec),
            source=self.library,
        )

    def _known_as(self, config: ModelConfig) -> str:
        """The published model that this is, else a name made up alike."""

        def facts(c: ModelConfig) -> tuple:
            paths = [tuple(getattr(path, key) for key in UNSEEN) for path in c.paths.values()]
            return paths, (c.input.frames, c.input.alpha, c.input.tau), c.head.classes

        same = [p for p in self.published if facts(p) == facts(config)]
        same.sort(key=lambda p: (p.source != self.library, self.found.two and p.lateral != config.lateral))
        return same[0].name if same else self._name(config)

    def _name(self, config: ModelConfig) -> str:
        kinds, spec = {"Fast-only": "fast_only", "3-D ResNet": "resnet3d"}, config.input
        kind = family_of(config).kind(config)
        depths = dict.fromkeys(
            f"r{path.depth}" if path.blocks is None else "blocks" + "".join(map(str, path.blocks))
            for path in config.paths.values()
        )
        frames, stride = spec.frames // spec.alpha, spec.tau * spec.alpha
        return f"{kinds.get(kind, kind.lower())}_{frames}x{stride}_{'_'.join(depths)}"

    def _alpha(self) -> int:
        if not self.found.two:
            return 1
        if "alpha" in self.overrides:
            return self.overrides["alpha"]
        alpha = self._told("alpha", "alpha", self.stored.input, self.preset and self.preset.input)
        if alpha is not None:
            return alpha
        what = "alpha (frame rate of the Fast over the Slow pathway, in published models 4 or 8)"
        return self._agreed(lambda p: p.input.alpha, 1, "alpha {}", what, "alpha=N")

    def _told(self, key: str, what: str, stored: Mapping[str, Any], preset: object | None) -> Any:
        """What the file's configuration or the preset says, which may not contradict each other."""
        values = [stored[key]] if key in stored else []
        values += [getattr(preset, key)] if preset is not None else []
        if len(values) == 2 and values[0] != values[1] and self.preset is not None:
            raise ValueError(
                f"{what}: the file's configuration says {values[0]}, {self.preset.name} {values[1]}"
            )
        return values[0] if values else None

    def _pathway(self, name: str, path: PathwayConfig) -> PathwayConfig:
        known, said = self.preset.paths if self.preset is not None else {}, self.stored.pathways
        preset, stored = known.get(name), said.get(name, {})
        if not self.found.two:  # whatever the pathway is called
            preset = preset or next(iter(known.values()), None)
            stored = said.get("slow") or next(iter(said.values()), {})
        values: dict[str, Any] = {}
        for key in UNSEEN:
            value = self._told(key, f"{key} of the {name} pathway", stored, preset)
            if value is not None:
                values[key] = value
        if self.found.visible_pool is not None:
            values["pool_after_res2"] = 2 if self.found.visible_pool else 1
            if "pool_after_res2" in stored and self.found.visible_pool:
                values["pool_after_res2"] = stored["pool_after_res2"]
        self._open_pathway(name, path, values)
        return replace(path, **values)

    def _open_pathway(self, name: str, path: PathwayConfig, values: dict[str, Any]) -> None:
        """Close or report what neither the file nor the caller says about a pathway."""
        given = self.overrides
        inflated = not self.found.two and path_kind(path) not in ("Slow", "Fast-only")
        if "pool_after_res2" not in (*values, *given):
            values["pool_after_res2"] = 1  # no library pools in the others
            if inflated:
                values["pool_after_res2"] = self._agreed(
                    lambda p: next(iter(p.paths.values())).pool_after_res2,
                    1,
                    "max-pool of {} frames after res2",
                    f"the temporal max-pool after res2 of this {path_kind(path)} network",
                    *("pool_after_res2=2", "pool_after_res2=1"),
                )
        if self.library == "mmaction2" and inflated and "stem_stride" not in (*values, *given):
            values["stem_stride"], values["stem_pool_stride"] = self._agreed(
                lambda p: next((path.stem_stride, path.stem_pool_stride) for path in p.paths.values()),
                (1, 1),
                "strides in time of the stem {}",
                "the strides in time of the stem",
                "stem_stride=N and stem_pool_stride=N",
            )
        if not self.detects:
            if "strides" not in values:
                values.update(strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1))  # in every published classifier
            return
        if "dilations" not in values and not {"dilations", "res5_dilation"} & set(given):
            dilation = self._agreed(
                lambda p: next(iter(p.paths.values())).dilations[3],
                1,
                "dilation {} of res5",
                "the dilation of res5 in this detection model (PySlowFast and pytorchvideo have 2, mmaction2 1)",
                "res5_dilation=N",
            )
            values["dilations"] = (1, 1, 1, dilation)
        if "strides" not in values:
            values["strides"] = (1, 2, 2, 1)  # a detection model keeps stride 16

    def _input(self, alpha: int, paths: Mapping[str, PathwayConfig]) -> InputSpec:
        known = self.stored.input
        base = self.preset.input if self.preset is not None else None
        if base is None:
            rated = [p for p in self.published if p.input.alpha == alpha]
            fitting = next(iter(rated), None)
            base = fitting.input if fitting is not None else InputSpec(alpha=1, frames=8, tau=8, call="clip")
            if fitting is None and self.found.two:
                base = InputSpec(alpha=1, frames=32, tau=2)
            guessed = [key for key in ("frames", "tau", "crop") if key not in (*known, *self.overrides)]
            lengths = {p.input.frames for p in rated if p.source == self.library and self._same_classes(p)}
            self.length_known = len(lengths) == 1 or "frames" not in guessed
            if guessed:
                said = ", ".join(f"{key}={getattr(base, key)}" for key in guessed)
                self.assumed.append(said + (f" as {fitting.name}" if fitting is not None else ""))
        names = {item.name for item in fields(InputSpec)} - {"alpha", "call", "fast_input"}
        values: dict[str, Any] = {key: getattr(base, key) for key in names}
        # a library's colours and rule for Slow frames go with its weights
        values["slow_index"] = "stride" if self.library == "mmaction2" else "linspace"
        if values["slow_index"] != base.slow_index:
            own = next(p for p in PRESETS.values() if p.source == self.library).input
            values |= {"mean": own.mean, "std": own.std}
        values |= {key: value for key, value in known.items() if key in names}
        if "alpha" in self.overrides or values["frames"] % alpha:
            values["frames"] = max(1, values["frames"] // alpha) * alpha
        fast_input = "rgb"
        if "fast" in paths and paths["fast"].in_channels == 1:
            fast_input = known.get("fast_input") or (base.fast_input if base.fast_input != "rgb" else "gray")
            if self.preset is None and "fast_input" not in (*known, *self.overrides):
                ways = 'fast_input="gray"', 'fast_input="time_diff"'
                self.open.append(Question("what its one-channel Fast input is", ways))
        call = "pathways" if self.found.two else "clip"
        return InputSpec(**values, alpha=alpha, call=call, fast_input=fast_input)

    def _head(self, spec: InputSpec) -> HeadConfig:
        known = self.stored.head
        base = self.preset
        if base is None and self.published and self.published[0].head.classes == self.found.classes:
            base = self.published[0]
        multi_label = known.get("multi_label", base.head.multi_label if base is not None else self.detects)
        background = known.get("background", self.detects and self.library == "mmaction2")
        dropout = known.get("dropout", base.head.dropout if base is not None else 0.5)
        pool = None
        if not self.detects and self.semantics != "mmaction2":
            preset = self.preset.head if self.preset is not None else HeadConfig(semantics="mmaction2")
            own = preset.semantics != "mmaction2" and preset.roi is None
            pool = known.get("pool", preset.pool if own else max(1, spec.crop // 32))
        head = HeadConfig(
            classes=self.found.classes,
            semantics=self.semantics,
            pool=pool,
            dropout=dropout,
            multi_label=bool(multi_label),
            background=bool(background),
            roi=self._roi(known) if self.detects else None,
        )
        return replace(head, activation=known.get("activation", head.usual_activation))

    def _roi(self, known: Mapping[str, Any]) -> RoIConfig:
        if known.get("roi") is not None:
            return known["roi"]
        if self.preset is not None and self.preset.head.roi is not None:
            return self.preset.head.roi
        usual = {
            "pyslowfast": RoIConfig(),
            "pytorchvideo": RoIConfig(aligned=False),
            "mmaction2": RoIConfig(resolution=8),
        }[self.library]
        given = self.overrides.get("roi")
        pooled = {p.head.roi.temporal for p in self.published if p.head.roi and p.source == self.library}
        told = isinstance(given, RoIConfig) or (isinstance(given, Mapping) and "temporal" in given)
        if len(pooled) > 1 and not told:
            ways = tuple(f'roi={{"temporal": "{way}"}}' for way in sorted(pooled))
            names = tuple(p.name for p in self.published if p.source == self.library)
            self.open.append(Question("how frames are pooled before RoIAlign", (*ways, "model=NAME"), names))
        if given is None:
            self.assumed.append(f"RoIAlign {usual.resolution}x{usual.resolution}, aligned={usual.aligned}")
            self.decisive = True
        return usual
