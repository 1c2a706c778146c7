"""Families of networks: each is a file here, which says what `Family` asks for, and a name in FAMILIES."""

from slowfast_kernels.models.config import ModelConfig
from slowfast_kernels.models.families import resnet3d, slowfast
from slowfast_kernels.models.families.family import Family

FAMILIES = (slowfast.FAMILY, resnet3d.FAMILY)


def family_of(config: ModelConfig) -> Family:
    """The family whose network a configuration describes."""
    return next(family for family in FAMILIES if family.has(config))
