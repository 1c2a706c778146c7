"""The table of supported models: every cell is tried."""

import re
import warnings
from dataclasses import replace
from pathlib import Path

import live
import pytest
from live import I3D, SLOW, MmPath, MmRecognizer, MmSlowFast, PySlowFastNet, randomise
from torch import nn

import slowfast_kernels as sf
from slowfast_kernels import accelerate
from slowfast_kernels.models import (
    CheckpointError,
    RoIConfig,
    UndecidedError,
    build,
    configure,
    load_checkpoint,
)
from slowfast_kernels.models.checkpoint import write
from slowfast_kernels.models.checkpoint.assemble import skeleton
from slowfast_kernels.models.checkpoint.detect import detect
from slowfast_kernels.models.checkpoint.resolve import resolve
from slowfast_kernels.models.checkpoint.stored import Stored
from slowfast_kernels.models.presets import PRESETS
from slowfast_kernels.models.support import NETWORKS, THEIRS, models_table, presets_table, supported

pytestmark = pytest.mark.usefixtures("one_thread")

CELLS = [(network, library) for network in NETWORKS for library in THEIRS]


@pytest.mark.parametrize("network, library", CELLS)
def test_files(tmp_path, network, library):
    """What is claimed is written and read back as that library's; what is not, is refused."""
    config = configure(NETWORKS[network])
    thin = {name: replace(config.pathway(name), width=8 if name == "slow" else 2) for name in config.pathways}
    model = build(replace(config, **thin))
    if not supported(network, library):
        with pytest.raises(CheckpointError, match="cannot express"):
            write(model, tmp_path / "file", to=library)
        return
    write(model, tmp_path / "file", to=library)
    back = load_checkpoint(tmp_path / "file")
    assert back.config.source == library
    assert (back.config.head.roi is not None) == ("boxes" in network)
    assert len(back.config.pathways) == len(config.pathways)


class MmDetector(nn.Module):
    """Names of a detector of mmaction2 over mmdet."""

    def __init__(self, backbone: nn.Module, channels: int) -> None:
        super().__init__()
        self.backbone, self.roi_head = backbone, nn.Module()
        self.roi_head.bbox_head = nn.Module()
        self.roi_head.bbox_head.fc_cls = nn.Linear(channels, 81)


def pyslowfast(network: str) -> nn.Module:
    boxes = {"detects": True, "dilation": 2, "act": "sigmoid"} if "boxes" in network else {}
    single = {"Slow": (1, SLOW, 1), "I3D": (5, I3D, 2), "C2D": (1, ((1,),) * 4, 2)}
    kind = network.split(",")[0]
    if kind == "SlowFast":
        return PySlowFastNet(**boxes)
    stem, kernels, pool = single[kind]
    return PySlowFastNet(((16, stem, kernels),), pool=pool, **boxes)


def pytorchvideo(network: str) -> nn.Module:
    pytest.importorskip("pytorchvideo", reason="pytorchvideo is not installed (requirements-nodeps.txt)")
    slowfast, resnet, _ = live.pytorchvideo()
    if network == "SlowFast":
        windows = ((2, 2, 2), (8, 2, 2))
        return slowfast.create_slowfast(stem_dim_outs=(16, 2), head_pool_kernel_sizes=windows)
    if network == "SlowFast, boxes":
        windows = ((2, 1, 1), (8, 1, 1))
        return slowfast.create_slowfast_with_roi_head(stem_dim_outs=(16, 2), head_pool_kernel_sizes=windows)
    if network == "Slow, boxes":
        return resnet.create_resnet_with_roi_head(stem_dim_out=16, head_pool_kernel_size=(8, 1, 1))
    t1, t3 = (1, 1, 1), (3, 1, 1)
    stem, kernels = {
        "Slow": (1, (t1, t1, t3, t3)),
        "I3D": (5, (t3, [t3, t1], [t3, t1], [t1, t3])),
        "C2D": (1, (t1,) * 4),
        "Fast-only": (5, (t3,) * 4),
    }[network]
    pooled = network in ("I3D", "C2D")
    return resnet.create_resnet(
        stem_dim_out=16,
        stem_conv_kernel_size=(stem, 7, 7),
        stage1_pool=nn.MaxPool3d if pooled else None,
        stage_conv_a_kernel_size=kernels,
        head_pool_kernel_size=(4 if pooled else 8, 2, 2),
    )


def mmaction2(network: str) -> nn.Module:
    if network == "SlowFast":
        return MmRecognizer(MmSlowFast())
    if network == "SlowFast, boxes":
        return MmDetector(MmSlowFast(), 512 + 128)
    if network == "Slow, boxes":
        return MmDetector(MmPath(), 512)
    path = {
        "Slow": MmPath(),
        "I3D": MmPath(16, 5, (1, (1, 0), 1, 0), stem_strides=(2, 2), with_pool2=True),
        "C2D": MmPath(16, 1, (0, 0, 0, 0), with_pool2=True),
        "Fast-only": MmPath(8, 5, (1, 1, 1, 1)),
    }[network]
    return MmRecognizer(path)


@pytest.mark.parametrize("network, library", [cell for cell in CELLS if cell != ("Fast-only", "pyslowfast")])
def test_live_modules(network, library):
    made = {"pyslowfast": pyslowfast, "pytorchvideo": pytorchvideo, "mmaction2": mmaction2}[library](network)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fast = accelerate(randomise(made))
    left = [str(warning.message) for warning in said if "left as it is" in str(warning.message)]
    assert (fast is not made and not left) == supported(network, library), left


def test_tables():
    """One row for each kind and each preset, as wide as its head."""
    for table, rows in ((models_table(), len(NETWORKS)), (presets_table(), len(PRESETS))):
        lines = table.splitlines()
        assert len(lines) == 2 + rows and len({line.count("|") for line in lines}) == 1
    assert all(f"`{name}`" in presets_table() for name in PRESETS)
    assert "| SlowFast | accelerate, load, convert |" in models_table()


def test_every_preset_is_of_a_kind_in_the_table():
    for preset in PRESETS.values():
        kinds = {network.split(",")[0] for network in NETWORKS}
        assert any(preset.name.startswith(kind.lower().replace("-", "_")) for kind in kinds), preset.name


def test_what_belongs_together_is_at_the_top():
    """Into a model of this library from anywhere, and back into a file."""
    for name in ("accelerate", "create", "freeze", "from_module", "load_checkpoint", "save_checkpoint"):
        assert name in sf.__all__ and callable(getattr(sf, name))
    for name in ("convert", "CheckpointError", "MismatchError", "UndecidedError"):
        assert name in sf.models.__all__ and callable(getattr(sf.models, name))


def rows_of_the_weights_page() -> list[tuple[str, str, bool]]:
    """(library, preset, whether the caller has to say which it is) of every file in docs/weights.md."""
    text = (Path(__file__).parents[2] / "docs" / "weights.md").read_text()
    rows = []
    for library, section in zip(THEIRS, re.split(r"^### ", text, flags=re.M)[1:], strict=True):
        for line in section.splitlines():
            cells = [cell.strip() for cell in line.split("|")[1:-1]]
            if line.startswith("| `"):
                needs = "=" in "".join(cells[1:]) or (library == "mmaction2" and "8x8_r50_ava" in cells[1])
                rows += [(library, preset, needs) for preset in re.findall(r"`(\w*x\d\w*)`", cells[1])]
    return rows


@pytest.mark.parametrize("library, preset, needs", rows_of_the_weights_page())
def test_published_files_need_what_the_page_says(library, preset, needs):
    """By the shapes of their weights alone, as files without a configuration have them."""
    config = PRESETS[preset]
    shapes = {key: tuple(value.shape) for key, value in skeleton(config).state_dict().items()}
    detects = config.head.roi is not None if library != "pyslowfast" else None
    pool = next(config.pathway(p) for p in config.pathways).pool_after_res2 > 1
    found = detect(shapes, pool if library == "pytorchvideo" and len(config.pathways) == 1 else None)
    said = (
        Stored("Caffe2 format", head={"roi": RoIConfig(aligned=False)}) if library == "pyslowfast" else None
    )
    try:
        result = resolve(found, library, said, None, {}, detects=detects, semantics=library)
    except UndecidedError:
        assert needs
        return
    assert (result.config.name == preset) != needs
    if not needs:
        assert result.config.input == config.input and result.config.head == config.head


def test_the_weights_page_has_rows():
    assert len(rows_of_the_weights_page()) >= 30
