"""The registry of families."""

import pytest

from slowfast_kernels.models import names
from slowfast_kernels.models.checkpoint.detect import describe
from slowfast_kernels.models.families import FAMILIES, family_of
from slowfast_kernels.models.presets import ALIASES, PRESETS


def test_every_preset_is_of_one_family():
    assert sum(len(family.presets) for family in FAMILIES) == len(PRESETS)
    for family in FAMILIES:
        for name, config in family.presets.items():
            assert config.name == name
            assert [other for other in FAMILIES if other.has(config)] == [family_of(config)] == [family]


def test_aliases_are_of_presets_and_no_presets():
    assert set(ALIASES.values()) <= set(names()) and not set(ALIASES) & set(names())


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_kinds_are_what_their_networks_are_called(family):
    for kind, preset in family.networks.items():
        config = family.presets[preset]
        assert family.kind(config) == kind.removesuffix(", boxes")
        assert (config.head.roi is not None) == kind.endswith(", boxes")
        assert describe(config).startswith(f"{family.kind(config)}-R50, ")
