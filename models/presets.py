"""Presets of all families: the published models that need no non-local block, by name.

Names: architecture, T x tau of the Slow pathway (frames x raw-frame stride), depth, dataset unless
Kinetics-400, library unless PySlowFast. `r101_50_50` = 101 layers, of which only the first 6 of res4 (as many
as 50 layers have) look at several frames, in the Slow and in the Fast pathway; `r101` = all of them do.

Sources: PySlowFast's model zoo and configs, pytorchvideo's hub and PySlowFast's configs for it, mmaction2's
configs. Depth 18 follows PySlowFast, whose 18-layer networks keep bottleneck blocks, two per stage; for the
basic blocks of mmaction2 (and of the 2-D ResNet-18) pass `block="basic"`.
"""

from slowfast_kernels.models.config import ModelConfig
from slowfast_kernels.models.families import FAMILIES
from slowfast_kernels.models.overrides import closest

PRESETS: dict[str, ModelConfig] = {name: p for family in FAMILIES for name, p in family.presets.items()}
ALIASES: dict[str, str] = {alias: name for family in FAMILIES for alias, name in family.aliases.items()}


def preset(name: str) -> ModelConfig:
    """The preset of a name or alias. Raises a one-line ValueError with the nearest names for an unknown one."""
    if (name := ALIASES.get(name, name)) not in PRESETS:
        raise ValueError(closest("model", name, (*sorted(PRESETS), *ALIASES)))
    return PRESETS[name]
