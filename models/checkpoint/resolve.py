"""From what the shapes tell to a complete configuration.

Gaps are closed by the file's own configuration, else by the preset and the overrides that the caller names.
What would change the network's function and is still open then is taken from the library's published models
with these shapes if they agree, and noted; if not, it is an error that lists them. What only describes the
input (frames, crop, normalisation) is taken from the published model that fits best, and noted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from slowfast_kernels.models.checkpoint.detect import Found, single_kind, structure
from slowfast_kernels.models.checkpoint.errors import Question, UndecidedError
from slowfast_kernels.models.checkpoint.stored import Stored
from slowfast_kernels.models.config import (
    HeadConfig,
    InputSpec,
    ModelConfig,
    PathwayConfig,
    RoIConfig,
)
from slowfast_kernels.models.overrides import override
from slowfast_kernels.models.presets import PRESETS

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
    return _Resolver(found, library, stored, preset, overrides, detects, semantics).run()


def with_window(config: ModelConfig) -> ModelConfig:
    """The configuration with the length of its clips fixed where the library's head has a window over all
    frames of a training clip, which it would slide along a longer one; mmaction2's averages whatever comes."""
    head = config.head
    window = head.semantics != "mmaction2" and (head.roi is not None or head.pool is not None)
    return replace(config, input=replace(config.input, fixed_frames=window))


class _Resolver:
    def __init__(
        self,
        found: Found,
        library: str,
        stored: Stored | None,
        preset: ModelConfig | None,
        overrides: Mapping[str, Any],
        detects: bool | None,
        semantics: str,
    ) -> None:
        self.found, self.library, self.stored, self.preset = found, library, stored, preset
        self.overrides, self.semantics = overrides, semantics
        self.assumed: list[str] = []
        self.decisive = False
        self.length_known = True
        self.open: list[Question] = []
        self.detects = self._detects(detects)
        self.published = self._published()

    def run(self) -> Resolved:
        config = self._assemble()
        if self.open:
            raise UndecidedError("", list(dict.fromkeys(self.open)))
        config = override(config, self.overrides)
        name = self.preset.name if self.preset is not None else self._known_as(config)
        norms = dict(self.stored.norms) if self.stored else {}
        if not self.found.two:  # whatever the pathway is called
            norms = {path: norm for path in config.pathways for norm in norms.values()}
        return Resolved(
            replace(config, name=name), tuple(self.assumed), self.decisive, self.length_known, norms
        )

    # -- where values come from --

    def _published(self) -> list[ModelConfig]:
        """Presets with the file's shapes, the best guess first: same library, same classes, 8x8, detection or
        not."""
        same = [
            p
            for p in PRESETS.values()
            if structure(p) == self.found.structure()
            and (self.open or (p.head.roi is not None) == self.detects)
        ]
        return sorted(
            same,
            key=lambda p: (
                not self._same_classes(p),
                p.source != self.library,
                not self.found.two and "8x8" not in p.name,
            ),
        )

    def _agreed(
        self, value: Callable[[ModelConfig], Any], shown: str, what: str, *settings: str
    ) -> Any | None:
        """What the library's published models with the file's shapes agree on, noted as assumed.

        Where they differ, or there are none, it becomes a question: `what` in words, and the settings that
        would tell. shown: the value in words, such as "alpha {}".
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
        return None

    def _same_classes(self, preset: ModelConfig) -> bool:
        return preset.head.classes == self.found.classes

    def _detects(self, told: bool | None) -> bool:
        if self.overrides.get("roi") is not None:
            return True
        if told is not None:
            return told
        if self.stored is not None and self.stored.detects is not None:
            return self.stored.detects
        if "roi" in self.overrides:  # roi=None
            return False
        if self.preset is not None:
            return self.preset.head.roi is not None
        if self.found.classes in DETECTION_CLASSES:
            what = (
                f"whether its {self.found.classes} classes are those of boxes (a detection head) or of clips"
            )
            presets = tuple(p.name for p in PRESETS.values() if p.head.roi and p.source == self.library)
            self.open.append(Question(what, ("roi=True", "roi=None", "model=NAME"), presets))
        return False

    # -- the parts --

    def _assemble(self) -> ModelConfig:
        alpha = self._alpha()
        paths = {name: self._pathway(name, path) for name, path in self.found.pathways.items()}
        spec = self._input(alpha, paths)
        lateral = self.found.lateral
        if self.stored and "relu" in self.stored.lateral and lateral.kind == "conv":
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
            paths = [tuple(getattr(c.pathway(name), key) for key in _UNSEEN) for name in c.pathways]
            return paths, (c.input.frames, c.input.alpha, c.input.tau), c.head.classes

        same = [p for p in self.published if facts(p) == facts(config)]
        same.sort(key=lambda p: (p.source != self.library, self.found.two and p.lateral != config.lateral))
        return (
            same[0].name
            if same
            else self._name(config.input, {n: config.pathway(n) for n in config.pathways})
        )

    def _name(self, spec: InputSpec, paths: Mapping[str, PathwayConfig]) -> str:
        kinds = {"Fast-only": "fast_only", "3-D ResNet": "resnet3d"}
        first = next(iter(paths.values()))
        kind = "slowfast" if self.found.two else single_kind(first)
        kind = kinds.get(kind, kind.lower())
        alpha = spec.alpha
        depths = dict.fromkeys(
            f"r{path.depth}" if path.blocks is None else "blocks" + "".join(map(str, path.blocks))
            for path in paths.values()
        )
        return f"{kind}_{spec.frames // alpha}x{spec.tau * alpha}_{'_'.join(depths)}"

    def _alpha(self) -> int:
        if not self.found.two:
            return 1
        if "alpha" in self.overrides:
            return self.overrides["alpha"]
        stored = self.stored.input.get("alpha") if self.stored else None
        told = self.preset.input.alpha if self.preset is not None else None
        if stored is not None and told is not None and stored != told:
            raise ValueError(
                f"alpha: the file's configuration says {stored}, {self.preset.name} {told}"  # type: ignore[union-attr]
            )
        if stored is None and told is None:
            what = "alpha (frame rate of the Fast over the Slow pathway, in published models 4 or 8)"
            return self._agreed(lambda p: p.input.alpha, "alpha {}", what, "alpha=N") or 1
        return stored if stored is not None else told  # type: ignore[return-value]

    def _pathway(self, name: str, path: PathwayConfig) -> PathwayConfig:
        told: dict[str, Any] = {}
        if self.preset is not None and name in self.preset.pathways:
            other = self.preset.pathway(name)
            told = {key: getattr(other, key) for key in _UNSEEN}
        elif self.preset is not None and not self.found.two:
            told = {key: getattr(self.preset.pathway(self.preset.pathways[0]), key) for key in _UNSEEN}
        stored = dict(self.stored.pathways.get(name if self.found.two else "slow", {})) if self.stored else {}
        if not stored and self.stored and not self.found.two:
            stored = dict(next(iter(self.stored.pathways.values()), {}))
        for key in _UNSEEN:
            if key in stored and key in told and stored[key] != told[key]:
                raise ValueError(
                    f"{key} of the {name} pathway: the file's configuration says {stored[key]}, "
                    f"{self.preset.name} {told[key]}"  # type: ignore[union-attr]
                )
        values = {**told, **stored}
        if self.found.visible_pool is not None:
            values["pool_after_res2"] = 2 if self.found.visible_pool else 1
            if "pool_after_res2" in stored and self.found.visible_pool:
                values["pool_after_res2"] = stored["pool_after_res2"]
        self._open_pathway(name, path, values)
        return replace(path, **values)

    def _open_pathway(self, name: str, path: PathwayConfig, values: dict[str, Any]) -> None:
        """Close or report what neither the file nor the caller says about a pathway."""
        given = self.overrides
        if "pool_after_res2" not in values and "pool_after_res2" not in given:
            if self.found.two or single_kind(path) in ("Slow", "Fast-only"):
                values["pool_after_res2"] = 1  # no library pools there
            else:
                values["pool_after_res2"] = (
                    self._agreed(
                        lambda p: p.pathway(p.pathways[0]).pool_after_res2,
                        "max-pool of {} frames after res2",
                        f"the temporal max-pool after res2 of this {single_kind(path)} network",
                        "pool_after_res2=2",
                        "pool_after_res2=1",
                    )
                    or 1
                )
        inflated = not self.found.two and single_kind(path) not in ("Slow", "Fast-only")
        if (
            self.library == "mmaction2"
            and inflated
            and "stem_stride" not in values
            and "stem_stride" not in given
        ):
            strides = self._agreed(
                lambda p: tuple(
                    getattr(p.pathway(p.pathways[0]), f"stem_{kind}stride") for kind in ("", "pool_")
                ),
                "strides in time of the stem {}",
                "the strides in time of the stem",
                "stem_stride=N and stem_pool_stride=N",
            )
            values["stem_stride"], values["stem_pool_stride"] = strides or (1, 1)
        if not self.detects:
            if "strides" not in values:
                values.update(strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1))  # in every published classifier
            return
        if "dilations" not in values and not {"dilations", "res5_dilation"} & set(given):
            dilation = self._agreed(
                lambda p: p.pathway(p.pathways[0]).dilations[3],
                "dilation {} of res5",
                "the dilation of res5 in this detection model (PySlowFast and pytorchvideo have 2, mmaction2 1)",
                "res5_dilation=N",
            )
            values["dilations"] = (1, 1, 1, dilation or 1)
        if "strides" not in values:
            values["strides"] = (1, 2, 2, 1)  # a detection model keeps stride 16

    def _input(self, alpha: int, paths: Mapping[str, PathwayConfig]) -> InputSpec:
        known: dict[str, Any] = dict(self.stored.input) if self.stored else {}
        base = self.preset.input if self.preset is not None else None
        if base is None:
            rated = [p for p in self.published if p.input.alpha == alpha]
            fitting = next(iter(rated), None)
            base = fitting.input if fitting is not None else InputSpec(alpha=1, frames=8, tau=8, call="clip")
            if fitting is None and self.found.two:
                base = InputSpec(alpha=1, frames=32, tau=2)
            guessed = [
                key for key in ("frames", "tau", "crop") if key not in known and key not in self.overrides
            ]
            lengths = {p.input.frames for p in rated if p.source == self.library and self._same_classes(p)}
            self.length_known = len(lengths) == 1 or "frames" not in guessed
            if guessed:
                said = ", ".join(f"{key}={getattr(base, key)}" for key in guessed)
                self.assumed.append(said + (f" as {fitting.name}" if fitting is not None else ""))
        # a library's colours and rule for Slow frames go with its weights
        mmaction2 = self.library == "mmaction2"
        library: dict[str, Any] = {"slow_index": "stride" if mmaction2 else "linspace"}
        if mmaction2 != (base.slow_index == "stride"):
            own = next(p for p in PRESETS.values() if p.source == self.library).input
            library.update(mean=own.mean, std=own.std)
        names = {item.name for item in fields(InputSpec)} - {"alpha", "call", "fast_input"}
        values: dict[str, Any] = {key: getattr(base, key) for key in names}
        values.update(library)
        values.update({key: value for key, value in known.items() if key in names})
        if "alpha" in self.overrides or values["frames"] % alpha:
            values["frames"] = max(1, values["frames"] // alpha) * alpha
        fast = paths.get("fast")
        one_channel = fast is not None and fast.in_channels == 1
        fast_input = known.get("fast_input") or (base.fast_input if base.fast_input != "rgb" else "gray")
        if (
            one_channel
            and "fast_input" not in known
            and self.preset is None
            and "fast_input" not in self.overrides
        ):
            what = "what its one-channel Fast input is"
            self.open.append(Question(what, ('fast_input="gray"', 'fast_input="time_diff"')))
        return InputSpec(
            **values,
            alpha=alpha,
            call="pathways" if self.found.two else "clip",
            fast_input=fast_input if one_channel else "rgb",
        )

    def _head(self, spec: InputSpec) -> HeadConfig:
        known = dict(self.stored.head) if self.stored else {}
        base = self.preset
        if base is None and self.published and self.published[0].head.classes == self.found.classes:
            base = self.published[0]
        multi_label = known.get("multi_label", base.head.multi_label if base is not None else self.detects)
        background = known.get("background", self.detects and self.library == "mmaction2")
        dropout = known.get("dropout", base.head.dropout if base is not None else 0.5)
        if "activation" in known:
            activation = known["activation"]
        elif self.semantics == "mmaction2" or (self.semantics == "pytorchvideo" and not self.detects):
            activation = "none"
        else:
            activation = "sigmoid" if multi_label else "softmax"
        pool = None
        if not self.detects and self.semantics != "mmaction2":
            pool = known["pool"] if "pool" in known else self._pool(spec)
        return HeadConfig(
            classes=self.found.classes,
            semantics=self.semantics,
            activation=activation,
            pool=pool,
            dropout=dropout,
            multi_label=bool(multi_label),
            background=bool(background),
            roi=self._roi(known) if self.detects else None,
        )

    def _pool(self, spec: InputSpec) -> int | None:
        head = self.preset.head if self.preset is not None else None
        if head is not None and head.semantics != "mmaction2" and head.roi is None:
            return head.pool
        return max(1, spec.crop // 32)

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


_UNSEEN: Sequence[str] = ("strides", "dilations", "pool_after_res2", "stem_stride", "stem_pool_stride")
