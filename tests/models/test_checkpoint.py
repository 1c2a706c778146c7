"""load_checkpoint: files of four libraries, recognised by content; what is refused, and with which words."""

import builtins
import io
import logging
import os
import pickle
import re
import struct
import subprocess
import sys
import types
from dataclasses import replace
from typing import Any, ClassVar

import golden
import live
import numpy as np
import pytest
import torch
import yaml
from live import I3D, SLOW, MmPath, MmRecognizer, MmSlowFast, PySlowFastNet, caffe2_blobs, randomise
from torch import nn

from slowfast_kernels import freeze
from slowfast_kernels.cli.checkpoints import as_option
from slowfast_kernels.models import (
    CheckpointError,
    build,
    configure,
    create,
    load_checkpoint,
    save_checkpoint,
)
from slowfast_kernels.models.checkpoint import MismatchError, UndecidedError, keys, write
from slowfast_kernels.models.checkpoint.assemble import skeleton
from slowfast_kernels.models.checkpoint.python_config import assignments
from slowfast_kernels.models.checkpoint.templates import Layout
from slowfast_kernels.models.presets import PRESETS
from slowfast_kernels.models.support import looks_like
from slowfast_kernels.testing import relative_l2

pytestmark = pytest.mark.usefixtures("one_thread")

BOXES = torch.tensor([[0, 5, 10, 60, 50.0], [1, 0, 0, 63, 63.0], [1, 30, 30, 37, 45.0]])


@pytest.fixture
def file(tmp_path):
    return tmp_path / "checkpoint"


def clips(frames: int, size: int, index=None, batch: int = 2):
    clip = torch.randn(batch, 3, frames, size, size, generator=torch.Generator().manual_seed(1))
    return clip if index is None else [clip[:, :, index], clip]


def pyslowfast_cfg(**sections) -> str:
    """The part of a dumped PySlowFast configuration that matters, for the small networks of these tests."""
    cfg: dict[str, dict[str, Any]] = {
        "MODEL": {"ARCH": "slowfast", "MODEL_NAME": "SlowFast", "HEAD_ACT": "softmax", "DROPOUT_RATE": 0.5},
        "DATA": {
            "NUM_FRAMES": 8,
            "SAMPLING_RATE": 2,
            "TRAIN_CROP_SIZE": 64,
            "TEST_CROP_SIZE": 96,
            "MEAN": [0.45, 0.45, 0.45],
            "STD": [0.225, 0.225, 0.225],
            "REVERSE_INPUT_CHANNEL": False,
        },
        "RESNET": {
            "SPATIAL_STRIDES": [[1, 1], [2, 2], [2, 2], [2, 2]],
            "SPATIAL_DILATIONS": [[1, 1], [1, 1], [1, 1], [1, 1]],
        },
        "SLOWFAST": {"ALPHA": 4, "BETA_INV": 4, "FUSION_KERNEL_SZ": 7},
        "DETECTION": {"ENABLE": False, "ALIGNED": True},
    }
    for name, values in sections.items():
        cfg.setdefault(name, {}).update(values)
    return yaml.safe_dump(cfg)


def pyslowfast_file(file, net: nn.Module, cfg: str | None = None, **more) -> str:
    content = {
        "epoch": 3,
        "model_state": net.state_dict(),
        "optimizer_state": {"state": {}, "param_groups": []},
    }
    torch.save({**content, **({"cfg": cfg} if cfg else {}), **more}, file)
    return str(file)


def answers(model: nn.Module, net: nn.Module, given, *boxes) -> None:
    with torch.no_grad():
        expected = net(list(given) if isinstance(given, list) else given, *boxes)
        assert relative_l2(model(given, *boxes), expected) < 2e-5


class TestNames:
    @pytest.mark.parametrize("case", golden.CASES)
    def test_every_recorded_key_and_back(self, case):
        recorded = [key for key, *_ in golden.case(case)["checkpoint"]["entries"]]
        names = keys.read(recorded)
        assert names.library == golden.case(case)["library"].lower()
        assert names.other == () and len(set(names.ours.values())) == len(recorded)
        assert all(names.theirs(ours) == key for key, ours in names.ours.items())

    @pytest.mark.parametrize(
        "theirs, ours",
        [
            ("s1.pathway1_stem.bn.weight", "stem.fast.bn.weight"),
            ("s4_fuse.conv_f2s.weight", "lateral.3.conv.weight"),
            ("s3.pathway0_res2.branch1_bn.bias", "res3.slow.2.shortcut.bn.bias"),
            ("s5.pathway1_res0.branch2.c_bn.running_var", "res5.fast.0.c.bn.running_var"),
            ("head.projection.bias", "head.proj.bias"),
        ],
    )
    def test_pyslowfast(self, theirs, ours):
        known = ["s1.pathway0_stem.conv.weight", "s1.pathway1_stem.conv.weight"]
        assert keys.read([*known, theirs]).ours[theirs] == ours

    def test_pytorchvideo_counts_a_pool_as_a_block(self):
        stages = [f"blocks.{b}.res_blocks.0.branch2.conv_a.weight" for b in (1, 3, 4, 5)]
        names = keys.read(["blocks.0.conv.weight", *stages, "blocks.6.proj.bias"])
        assert names.layout.pool
        assert [names.ours[key] for key in stages] == [f"res{n}.slow.0.a.conv.weight" for n in (2, 3, 4, 5)]

    @pytest.mark.parametrize("library", ["slowfast", "pyslowfast", "pytorchvideo", "mmaction2", "caffe2"])
    def test_every_key_of_every_preset_and_back(self, library):
        for config in PRESETS.values():
            state = [key for key in skeleton(config).state_dict() if not key.endswith("num_batches_tracked")]
            two, detects = len(config.pathways) == 2, config.head.roi is not None
            pool = library == "pytorchvideo" and config.paths[config.pathways[0]].pool_after_res2 > 1
            prefix = "model." if library == "pytorchvideo" and detects else ""
            layout = Layout(
                two, detects and library not in ("slowfast", "pyslowfast", "caffe2"), pool, prefix
            )
            theirs = [keys.name(library, key, layout) for key in state]
            names = keys.read([key.replace("*", "0") for key in theirs])
            assert (names.library, names.layout, names.other) == (library, layout, ())
            ours = (names if two else names.called(*config.pathways)).ours
            assert list(ours.values()) == state
            assert [names.theirs(key) for key in state] == theirs

    def test_nothing_known(self):
        assert keys.read(["layer1.weight", "fc.bias"]) is None


class TestPySlowFast:
    def test_configuration_in_the_file(self, file, caplog):
        net = randomise(PySlowFastNet())
        cfg = pyslowfast_cfg(DATA={"REVERSE_INPUT_CHANNEL": True, "MEAN": [0.4, 0.5, 0.6]})
        with caplog.at_level(logging.INFO, "slowfast_kernels.checkpoint"):
            model = load_checkpoint(pyslowfast_file(file, net, cfg))
        assert not model.training
        spec = model.config.input
        assert (spec.alpha, spec.frames, spec.tau, spec.crop, spec.test_crop) == (4, 8, 2, 64, 96)
        assert spec.reverse_channels and spec.mean == (0.4, 0.5, 0.6) and spec.slow_index == "linspace"
        assert model.config.head.semantics == "pyslowfast" and model.config.head.pool == 2
        for size in (64, 96):
            answers(model, net, clips(8, size, [0, 7]))
        assert "SlowFast" in caplog.text and "alpha 4" in caplog.text and "11 classes" in caplog.text
        assert model.checkpoint.source == "pyslowfast" and model.checkpoint.format == "PySlowFast"
        assert model.checkpoint.architecture in caplog.text

    def test_something_something_is_sampled_by_segments(self, file):
        net = randomise(PySlowFastNet())
        spec = load_checkpoint(
            pyslowfast_file(file, net, pyslowfast_cfg(TRAIN={"DATASET": "ssv2"}))
        ).config.input
        assert (spec.sampling, spec.views[0]) == ("segments", 1)

    @pytest.mark.parametrize("act, multi", [("sigmoid", True), ("none", False)])
    def test_head(self, file, act, multi):
        net = randomise(PySlowFastNet(act=act))
        head = load_checkpoint(
            pyslowfast_file(file, net, pyslowfast_cfg(MODEL={"HEAD_ACT": act}))
        ).config.head
        assert (head.activation, head.multi_label) == (act, multi)

    def test_clips_are_as_long_as_the_heads_window(self, file):
        """PySlowFast slides its window over 8 frames along a longer clip; here that is refused."""
        path = pyslowfast_file(file, randomise(PySlowFastNet()), pyslowfast_cfg())
        model = load_checkpoint(path)
        assert model.config.input.fixed_frames
        for form in (model, freeze(model)):
            with (
                pytest.raises(ValueError, match="expected clips of 2 and 8 frames .*got 4 and 16"),
                torch.no_grad(),
            ):
                form(clips(16, 64, [0, 5, 10, 15]))
        free = load_checkpoint(path, fixed_frames=False)
        assert free(clips(16, 64, [0, 5, 10, 15])).shape == (2, 11)
        save_checkpoint(model, file)
        assert load_checkpoint(file).config.input.fixed_frames

    def test_the_length_of_clips_is_free_where_nothing_tells_it(self, file):
        model = load_checkpoint(pyslowfast_file(file, PySlowFastNet()), alpha=4)
        assert "frames=32" in model.checkpoint.assumed[0] and not model.config.input.fixed_frames
        torch.save({"model_state": golden_state("pyslowfast_slowfast_8x8_r50")}, file)
        assert load_checkpoint(file).config.input.fixed_frames  # 32, as the published model
        torch.save(
            {
                "model_state": live.zeros(
                    PySlowFastNet, ((64, 1, SLOW),), blocks=(3, 4, 6, 3), classes=400
                ).state_dict()
            },
            file,
        )
        assert not load_checkpoint(file).config.input.fixed_frames  # slow_4x16_r50 or slow_8x8_r50
        torch.save({"state_dict": golden_state("mmaction2_slowfast_8x8_r50")}, file)
        assert not load_checkpoint(file).config.input.fixed_frames  # its head averages whatever comes

    def test_another_output(self, file):
        path = pyslowfast_file(file, randomise(PySlowFastNet()), pyslowfast_cfg())
        features = load_checkpoint(path, output="features")(clips(8, 64, [0, 7]))
        assert features.shape == (2, 512 + 128)
        slow, fast = load_checkpoint(path, output="maps")(clips(8, 64, [0, 7]))
        assert (slow.shape, fast.shape) == ((2, 512, 2, 2, 2), (2, 128, 8, 2, 2))
        pooled = torch.cat([x.mean((2, 3, 4)) for x in (slow, fast)], 1)
        assert relative_l2(features, pooled) < 2e-6

    def test_short_cycle_averages_the_whole_map(self, file):
        net = randomise(PySlowFastNet(window=False))
        model = load_checkpoint(pyslowfast_file(file, net, pyslowfast_cfg(MULTIGRID={"SHORT_CYCLE": True})))
        answers(model, net, clips(8, 96, [0, 7]))

    @pytest.mark.parametrize("arch, stem, kernels, pool", [
        ("slow", 1, SLOW, 1), ("i3d", 5, I3D, 2), ("c2d", 1, ((1,),) * 4, 2), ("slow_i3d", 5, I3D, 1),
    ])  # fmt: skip
    def test_single_pathway(self, file, arch, stem, kernels, pool):
        net = randomise(PySlowFastNet(((16, stem, kernels),), pool=pool, blocks=(2, 3, 2, 2)))
        cfg = pyslowfast_cfg(MODEL={"ARCH": arch, "MODEL_NAME": "ResNet"})
        model = load_checkpoint(pyslowfast_file(file, net, cfg))
        assert model.config.slow.pool_after_res2 == pool and model.config.input.call == "clip"
        answers(model, net, [clips(8, 96)])

    @pytest.mark.parametrize("aligned", [True, False])
    def test_detection(self, file, aligned):
        net = randomise(PySlowFastNet(detects=True, dilation=2, aligned=aligned, act="sigmoid"))
        detection = {
            "ENABLE": True,
            "ALIGNED": aligned,
            "ROI_XFORM_RESOLUTION": 7,
            "SPATIAL_SCALE_FACTOR": 16,
        }
        resnet = {
            "SPATIAL_STRIDES": [[1, 1], [2, 2], [2, 2], [1, 1]],
            "SPATIAL_DILATIONS": [[1, 1], [1, 1], [1, 1], [2, 2]],
        }
        cfg = pyslowfast_cfg(DETECTION=detection, RESNET=resnet, MODEL={"HEAD_ACT": "sigmoid"})
        model = load_checkpoint(pyslowfast_file(file, net, cfg))
        answers(model, net, clips(8, 96, [0, 7]), BOXES)

    def test_detection_without_configuration(self, file):
        net = randomise(PySlowFastNet(detects=True, dilation=2, act="sigmoid", classes=80))
        path = pyslowfast_file(file, net)
        with pytest.raises(CheckpointError, match="80 classes .* detection .*slowfast_8x8_r50_ava"):
            load_checkpoint(path, alpha=4)
        with pytest.raises(CheckpointError, match="dilation of res5"):
            load_checkpoint(path, alpha=4, roi=True)
        model = load_checkpoint(path, alpha=4, roi=True, res5_dilation=2)
        answers(model, net, clips(8, 96, [0, 7]), BOXES)
        assert load_checkpoint(path, alpha=4, roi=None).config.head.roi is None

    def test_partial_temporal_blocks_and_widths_come_from_the_shapes(self, file):
        some = ((2, 2, 1, 2), (2, 1, 2, 2))
        paths = ((24, 1, SLOW), (4, 5, ((3,),) * 4))
        net = randomise(PySlowFastNet(paths, blocks=(2, 2, 3, 2), temporal=some, kernel=5))
        config = load_checkpoint(pyslowfast_file(file, net, pyslowfast_cfg())).config
        assert config.slow.block_kernels(2) == (3, 1, 1) and config.fast.block_kernels(1) == (3, 1)
        assert (config.slow.width, config.fast.width, config.lateral.kernel) == (24, 4, 5)

    def test_data_parallel_prefix_bare_state_and_old_file_format(self, file):
        net = randomise(PySlowFastNet())
        torch.save({f"module.{k}": v for k, v in net.state_dict().items()}, file)
        answers(load_checkpoint(file, alpha=4, crop=64), net, clips(8, 64, [0, 7]))
        torch.save({"model_state": net.state_dict()}, file, _use_new_zipfile_serialization=False)
        answers(load_checkpoint(file, alpha=4, crop=64), net, clips(8, 64, [0, 7]))

    def test_half_precision_and_missing_counters(self, file):
        net = randomise(PySlowFastNet())
        state = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
        torch.save({"model_state": {k: v for k, v in state.items() if "num_batches" not in k}}, file)
        model = load_checkpoint(file, alpha=4)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert torch.equal(model.head.proj.weight, net.head.projection.weight.half().float())

    def test_trains(self, file):
        model = load_checkpoint(pyslowfast_file(file, randomise(PySlowFastNet()), pyslowfast_cfg())).train()
        model(clips(8, 64, [0, 7])).square().sum().backward()
        assert all(p.grad is not None for p in model.parameters())


class Python2Pickler(pickle._Pickler):
    """Writes text as Python 2 wrote it, strings of bytes: numpy arrays of that age need encoding="latin1"."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def save_string(self: Any, text: str | bytes) -> None:
        raw = text if isinstance(text, bytes) else text.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = save_string


class TestCaffe2:
    @pytest.mark.parametrize("protocol", [0, 2, 4, 5])
    def test_read(self, file, protocol):
        net = randomise(PySlowFastNet())
        blobs = caffe2_blobs(net)
        assert "t_res3_1_branch2c_bn_subsample_bn_riv" in blobs and "t_pool1_subsample_w" in blobs
        blobs["pred_w"] = blobs["pred_w"].reshape(*blobs["pred_w"].shape, 1, 1, 1)
        file.write_bytes(pickle.dumps({"blobs": blobs}, protocol=protocol))
        model = load_checkpoint(file, alpha=4, crop=64)
        assert model.checkpoint.format == "PySlowFast (Caffe2 pickle)"
        answers(model, net, clips(8, 96, [0, 7]))

    def test_read_python_2(self, file):
        net = randomise(PySlowFastNet())
        stream = io.BytesIO()
        Python2Pickler(stream, protocol=2).dump({"blobs": caffe2_blobs(net)})
        raw = stream.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        assert b"_codecs" not in raw
        file.write_bytes(raw)
        answers(load_checkpoint(file, alpha=4, crop=64), net, clips(8, 64, [0, 7]))

    def test_big_endian(self, file):
        net = PySlowFastNet()
        blobs = {k: v.astype(">f4") if v.dtype == np.float32 else v for k, v in caffe2_blobs(net).items()}
        file.write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
        model = load_checkpoint(file, alpha=4)
        assert torch.equal(model.head.proj.weight, net.head.projection.weight)
        assert np.dtype("f4").byteorder == "="

    def test_a_torch_file_of_that_name(self, tmp_path):
        path = pyslowfast_file(tmp_path / "SLOWFAST_32x2_R101.pkl", PySlowFastNet(), pyslowfast_cfg())
        assert load_checkpoint(path).checkpoint.format == "PySlowFast"

    def test_unknown_blobs_are_listed(self, file):
        blobs = {**caffe2_blobs(PySlowFastNet()), "extra_w": np.zeros(3, np.float32)}
        del blobs["res4_0_branch2b_bn_rm"]
        file.write_bytes(pickle.dumps({"blobs": blobs}))
        with pytest.raises(MismatchError) as error:
            load_checkpoint(file, alpha=4)
        assert error.value.unexpected == ["extra_w"] and error.value.missing == ["res4_0_branch2b_bn_rm"]

    def test_not_aligned(self, file):
        """The option came after the format: its boxes are never aligned, whatever the preset has."""
        net = randomise(PySlowFastNet(
            ((64, 1, SLOW),), blocks=(3, 4, 6, 3), detects=True, dilation=2, aligned=False, act="sigmoid", classes=80,
            frames=4,
        ))  # fmt: skip
        file.write_bytes(pickle.dumps({"blobs": caffe2_blobs(net, (3, 4, 6, 3))}))
        model = load_checkpoint(file, roi=True)
        assert not model.config.head.roi.aligned and model.config.name == "slow_4x16_r50_ava"
        answers(model, net, [clips(4, 64)], BOXES)
        assert not load_checkpoint(
            file, "slow_4x16_r50_ava_mmaction2", res5_dilation=2
        ).config.head.roi.aligned
        roi = load_checkpoint(file, "slow_4x16_r50_ava", roi={"aligned": True}).config.head.roi
        assert (roi.aligned, roi.resolution) == (True, 7)

    def test_nonlocal(self, file):
        blobs = {**caffe2_blobs(PySlowFastNet()), "nonlocal_conv3_1_theta_w": np.zeros((3, 3), np.float32)}
        file.write_bytes(pickle.dumps({"blobs": blobs}))
        with pytest.raises(CheckpointError, match="non-local .*nonlocal_conv3_1_theta_w"):
            load_checkpoint(file, alpha=4)


class Evil:
    def __init__(self, function, *given) -> None:
        self.call = (function, given)

    def __reduce__(self):
        return self.call


class TestRefusedPickles:
    @pytest.mark.parametrize(
        "function, given, named",
        [
            (os.system, ("touch {}",), os.system.__module__ + ".system"),
            (builtins.eval, ("open('{}', 'w')",), "builtins.eval"),
            (np.load, ("{}",), "numpy.load"),
            (getattr, (3, "real"), "__builtin__.getattr|builtins.getattr"),
            (subprocess.run, (["touch", "{}"],), "subprocess.run"),
        ],
    )
    @pytest.mark.parametrize("kind", ["pickle", "torch"])
    def test_nothing_is_called(self, file, tmp_path, kind, function, given, named):
        trace = tmp_path / "trace"
        given = tuple(g.format(trace) if isinstance(g, str) else g for g in given)
        content = {"blobs": {"conv1_w": Evil(function, *given)}}
        if kind == "pickle":
            file.write_bytes(pickle.dumps(content))
        else:
            torch.save(content, file)
        with pytest.raises(CheckpointError) as error:
            load_checkpoint(file)
        assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)
        assert re.search(f"refused: .*({named}|{named.rpartition('.')[2]}).*expected", str(error.value))
        assert not trace.exists()

    @pytest.mark.parametrize(
        "raw",
        [
            b"cnumpy\nndarray\n((I9000000000000\ntR.",  # a call of the class
            b"cnumpy.core.multiarray\n_reconstruct\n(ccollections\nOrderedDict\n(I0\ntU\x01btR.",
            b"cnumpy\ndtype\n(U\x01OtR.",  # objects
            b"cnumpy\ndtype\n(U\x02f4tR(I3\nU\x01<(cnumpy\ndtype\n(U\x02f8tR(I9\nttNNI8\nI8\nI0\ntb.",
            b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00hextR.",
        ],
    )
    def test_admitted_names_in_another_form(self, file, raw):
        file.write_bytes(b"\x80\x02" + raw)
        with pytest.raises(CheckpointError, match="refused|not a checkpoint|without weights"):
            load_checkpoint(file)
        assert np.dtype("f4") == np.float32 and np.dtype("f4").subdtype is None

    def test_persistent_ids(self, file):
        file.write_bytes(b"Pfile:///etc/passwd\n.")
        with pytest.raises(CheckpointError, match="outside the file"):
            load_checkpoint(file)


class TestPytorchvideo:
    @pytest.fixture
    def ptv(self):
        pytest.importorskip("pytorchvideo", reason="pytorchvideo is not installed (requirements-nodeps.txt)")
        return live.pytorchvideo()

    @pytest.fixture
    def net(self, ptv):
        made = ptv[0].create_slowfast(
            stem_dim_outs=(16, 2), model_num_class=11, head_pool_kernel_sizes=((2, 2, 2), (8, 2, 2))
        )
        return randomise(made)

    def test_hub_file(self, file, net):
        torch.save({"model_state": net.state_dict()}, file)
        with pytest.raises(CheckpointError, match="alpha"):
            load_checkpoint(file)
        model = load_checkpoint(file, alpha=4, crop=64)
        assert model.config.source == "pytorchvideo" and model.config.head.activation == "none"
        answers(model, net, clips(8, 96, [0, 4]))

    def test_wrapped_by_pyslowfast(self, file, net):
        """The same network trained by PySlowFast's wrapper: softmax at each position, then the mean."""
        state = {f"model.{k}": v for k, v in net.state_dict().items()}
        net.blocks[-1].activation = nn.Softmax(dim=1)
        for cfg in (pyslowfast_cfg(MODEL={"MODEL_NAME": "PTVSlowFast"}), None):
            torch.save({"model_state": state, **({"cfg": cfg} if cfg else {})}, file)
            model = load_checkpoint(file, **({} if cfg else {"alpha": 4, "crop": 64}))
            assert model.config.source == "pyslowfast" and model.config.head.activation == "softmax"
            answers(model, net, clips(8, 96, [0, 4]))

    def test_lightning_file(self, file, net):
        torch.save({"state_dict": {f"model.{k}": v for k, v in net.state_dict().items()}, "epoch": 3}, file)
        model = load_checkpoint(file, alpha=4, crop=64)
        assert model.config.source == "pytorchvideo"
        answers(model, net, clips(8, 64, [0, 4]))

    @pytest.mark.parametrize("kind", ["slow", "c2d", "i3d"])
    def test_the_pool_is_in_the_names(self, file, ptv, kind):
        kernels = {
            "slow": ((1, 1, 1), (1, 1, 1), (3, 1, 1), (3, 1, 1)),
            "c2d": ((1, 1, 1),) * 4,
            "i3d": ((3, 1, 1), [(3, 1, 1), (1, 1, 1)], [(3, 1, 1), (1, 1, 1)], [(1, 1, 1), (3, 1, 1)]),
        }[kind]
        net = randomise(
            ptv[1].create_resnet(
                stem_dim_out=16,
                model_num_class=11,
                stem_conv_kernel_size=(5 if kind == "i3d" else 1, 7, 7),
                stage1_pool=None if kind == "slow" else nn.MaxPool3d,
                stage_conv_a_kernel_size=kernels,
                head_pool_kernel_size=(8 if kind == "slow" else 4, 2, 2),
            )
        )
        torch.save({"model_state": net.state_dict()}, file)
        model = load_checkpoint(file, crop=64)
        assert model.config.slow.pool_after_res2 == (1 if kind == "slow" else 2)
        answers(model, net, clips(8, 96))

    def test_detection(self, file, ptv):
        net = randomise(
            ptv[0].create_slowfast_with_roi_head(
                stem_dim_outs=(16, 2), head_pool_kernel_sizes=((2, 1, 1), (8, 1, 1)), model_num_class=12
            )
        )
        torch.save({"model_state": net.state_dict()}, file)
        with pytest.raises(CheckpointError, match="dilation of res5"):
            load_checkpoint(file, alpha=4)
        model = load_checkpoint(file, alpha=4, res5_dilation=2)
        assert model.config.source == "pytorchvideo" and not model.config.head.roi.aligned
        answers(model, net, clips(8, 96, [0, 4]), BOXES)

    def test_detection_trained_by_pyslowfast(self, file, ptv):
        """Its wrapper dilates the Fast pathway as res3 is dilated, and always aligns."""
        dilations = ((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 2, 2)), ((1, 1, 1),) * 4
        net = randomise(
            ptv[0].create_slowfast_with_roi_head(
                stem_dim_outs=(16, 2),
                head_pool_kernel_sizes=((2, 1, 1), (8, 1, 1)),
                stage_conv_b_dilations=dilations,
            )
        )
        net.detection_head.roi_layer.aligned = True
        cfg = pyslowfast_cfg(
            MODEL={"MODEL_NAME": "PTVSlowFast", "HEAD_ACT": "sigmoid"},
            DETECTION={"ENABLE": True, "ALIGNED": False},
            RESNET={
                "SPATIAL_STRIDES": [[1, 1], [2, 2], [2, 2], [1, 1]],
                "SPATIAL_DILATIONS": [[1, 1], [1, 1], [1, 1], [2, 2]],
            },
        )
        model = load_checkpoint(pyslowfast_file(file, net, cfg))
        assert model.config.source == "pyslowfast" and model.config.fast.dilations[3] == 1
        answers(model, net, clips(8, 96, [0, 4]), BOXES)


MM_CONFIG = """
norm = dict(type='ActionDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
model = dict(
    type='Recognizer3D',
    backbone=dict(
        type='ResNet3dSlowFast', resample_rate={resample}, speed_ratio={alpha}, channel_ratio=4,
        slow_pathway=dict(type='resnet3d', depth=50, lateral=True, conv1_stride_t=1, pool1_stride_t=1),
        fast_pathway=dict(type='resnet3d', depth=50, lateral=False, conv1_stride_t=1, pool1_stride_t=1)),
    cls_head=dict(type='SlowFastHead', num_classes=11, dropout_ratio=0.4, average_clips='prob'),
    data_preprocessor=norm)
train_pipeline = [
    dict(type='SampleFrames', clip_len=32, frame_interval=2, num_clips=1),
    dict(type='Resize', scale=(224, 224), keep_ratio=False)]
test_pipeline = [
    dict(type='SampleFrames', clip_len=32, frame_interval=2, num_clips=10, test_mode=True),
    dict(type='ThreeCrop', crop_size=256)]
optimizer = build_optimizer(lr=0.1)
work_dir = __import__('os').getcwd()
"""


class TestMmaction2:
    @pytest.mark.parametrize("key", ["config", "cfg"])
    @pytest.mark.parametrize("alpha, norm", [(4, False), (8, True)])
    def test_slowfast(self, file, key, alpha, norm):
        net = randomise(MmRecognizer(MmSlowFast(alpha, 5, norm)))
        meta = {key: MM_CONFIG.format(alpha=alpha, resample=alpha), "epoch": 7}
        torch.save({"meta": meta, "state_dict": net.state_dict(), "optimizer": {"state": {}}}, file)
        model = load_checkpoint(file)
        spec = model.config.input
        assert (spec.alpha, spec.frames, spec.tau, spec.views) == (alpha, 32, 2, (10, 3))
        assert spec.mean == (0.485, 0.456, 0.406) and spec.slow_index == "stride"
        assert model.config.head.dropout == 0.4 and model.config.lateral.norm == norm
        clip = clips(16, 96)
        with torch.no_grad():
            assert relative_l2(model([clip[:, :, ::alpha], clip]), net(clip)) < 2e-5

    def test_model_that_thins_out_its_clip_for_both_pathways(self, file):
        meta = {"config": MM_CONFIG.format(alpha=4, resample=8)}
        torch.save({"meta": meta, "state_dict": MmRecognizer(MmSlowFast(4)).state_dict()}, file)
        spec = load_checkpoint(file).config.input
        assert (spec.frames, spec.tau, spec.alpha) == (16, 4, 4)

    def test_without_configuration(self, file):
        net = randomise(MmRecognizer(MmSlowFast(4)))
        torch.save({"meta": {}, "state_dict": net.state_dict()}, file)
        with pytest.raises(CheckpointError, match="alpha"):
            load_checkpoint(file)
        model = load_checkpoint(file, alpha=4)
        assert model.config.head.semantics == "mmaction2" and model.config.input.std[0] == 0.229
        clip = clips(8, 96)
        with torch.no_grad():
            assert relative_l2(model([clip[:, :, ::4], clip]), net(clip)) < 2e-5

    def test_basic_blocks(self, file):
        net = randomise(MmRecognizer(MmSlowFast(4, basic=True)))
        torch.save({"state_dict": net.state_dict()}, file)
        model = load_checkpoint(file, alpha=4)
        assert model.config.slow.block == "basic"
        clip = clips(8, 64)
        with torch.no_grad():
            assert relative_l2(model([clip[:, :, ::4], clip]), net(clip)) < 2e-5

    def test_i3d(self, file):
        net = randomise(MmRecognizer(MmPath(16, 5, (1, (1, 0), 1, 0), stem_strides=(2, 2), with_pool2=True)))
        config = """
model = dict(
    type='Recognizer3D', cls_head=dict(type='I3DHead'),
    backbone=dict(type='ResNet3d', depth=50, conv1_stride_t=2, pool1_stride_t=2))
"""
        torch.save({"meta": {"config": config}, "state_dict": net.state_dict()}, file)
        model = load_checkpoint(file)
        assert (model.config.slow.stem_stride, model.config.slow.pool_after_res2) == (2, 2)
        answers(model, net, clips(16, 64))
        torch.save({"state_dict": net.state_dict()}, file)
        with pytest.raises(CheckpointError, match="max-pool after res2.*strides in time of the stem"):
            load_checkpoint(file)

    def test_detection(self, file):
        """Keys of a RoI head: 80 classes and the background, bins of the extractor, (slow, fast) columns."""
        net = MmRecognizer(MmSlowFast(4), classes=81)
        state = {k.replace("cls_head.", "roi_head.bbox_head."): v for k, v in net.state_dict().items()}
        roi_head = (
            "    roi_head=dict(bbox_roi_extractor=dict(type='SingleRoIExtractor3D', output_size=8, "
            "temporal_pool_mode='max'), bbox_head=dict(dropout_ratio=0.5)),\n    unused="
        )
        config = MM_CONFIG.format(alpha=4, resample=4).replace("    cls_head=", roi_head)
        config = config.replace("conv1_stride_t=1", "conv1_stride_t=1, spatial_strides=(1, 2, 2, 1)")
        torch.save({"meta": {"cfg": config}, "state_dict": state}, file)
        head = load_checkpoint(file).config.head
        assert (head.classes, head.background, head.activation) == (81, True, "none")
        assert (head.roi.resolution, head.roi.aligned, head.roi.temporal) == (8, True, "max")
        assert head.column_order == ("slow", "fast")

    @pytest.mark.parametrize(
        "change, named",
        [
            (("depth=50", "depth=50, style='caffe'"), "style=caffe"),
            (("type='ResNet3dSlowFast'", "type='TimeSformer'"), "backbone TimeSformer"),
            (("type='SlowFastHead'", "type='SlowFastHead', spatial_type='max'"), "spatial_type=max"),
            (("depth=50", "depth=50, act_cfg=dict(type='SiLU')"), "act_cfg=.*SiLU.*expected ReLU"),
            (("depth=50", "depth=50, act_cfg=None"), "act_cfg=None"),
            (("depth=50", "depth=50, norm_cfg=dict(type='GN')"), "norm_cfg=.*GN"),
            (("depth=50", "depth=50, conv_cfg=dict(type='DCN')"), "conv_cfg=.*DCN"),
        ],
    )
    def test_refused_settings(self, file, change, named):
        meta = {"config": MM_CONFIG.format(alpha=4, resample=4).replace(*change)}
        torch.save({"meta": meta, "state_dict": MmRecognizer(MmSlowFast(4)).state_dict()}, file)
        with pytest.raises(CheckpointError, match=f"not supported.*{named}"):
            load_checkpoint(file)

    def test_batch_norms_of_another_epsilon(self, file):
        """norm_cfg belongs to a pathway; the lateral connections are part of the Slow one."""
        net = randomise(MmRecognizer(MmSlowFast(4, lateral_norm=True)))
        for name, layer in net.named_modules():
            if isinstance(layer, nn.BatchNorm3d) and ".slow_path." in name:
                layer.eps, layer.momentum = 0.1, 0.01
        config = MM_CONFIG.format(alpha=4, resample=4).replace(
            "lateral=True", "lateral=True, norm_cfg=dict(type='SyncBN', eps=0.1, momentum=0.01)"
        )
        torch.save({"meta": {"cfg": config}, "state_dict": net.state_dict()}, file)
        model = load_checkpoint(file)
        assert model.checkpoint.path == str(file)
        clip = clips(8, 64)
        with torch.no_grad():
            assert relative_l2(model([clip[:, :, ::4], clip]), net(clip)) < 2e-5
        for bn, norm in (
            (model.lateral[2].bn, (0.1, 0.01)),
            (model.res4["slow"][0].b.bn, (0.1, 0.01)),
            (model.res4["fast"][0].b.bn, (1e-5, 0.1)),
        ):
            assert (bn.eps, bn.momentum) == norm

    def test_training_file_with_a_log_of_mmengine(self, file):
        """Objects of a class that is not installed here: read over, without running anything of theirs."""
        names = ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer")
        modules: dict[str, Any] = {name: types.ModuleType(name) for name in names}

        class HistoryBuffer:
            def __init__(self):
                self._log_history, self._count = np.ones(3), np.ones(3, np.int64)
                self._statistics = {"min": HistoryBuffer.min}

            def min(self):
                raise AssertionError("nothing of the file is called")

        HistoryBuffer.__module__, HistoryBuffer.__qualname__ = names[-1], "HistoryBuffer"
        HistoryBuffer.min.__module__, HistoryBuffer.min.__qualname__ = names[-1], "HistoryBuffer.min"
        modules[names[-1]].HistoryBuffer = HistoryBuffer
        sys.modules.update(modules)
        try:
            content = {"meta": {}, "state_dict": MmRecognizer(MmSlowFast(4)).state_dict()}
            torch.save({**content, "message_hub": {"loss": HistoryBuffer()}}, file)
        finally:
            for name in names:
                del sys.modules[name]
        assert load_checkpoint(file, alpha=4).config.source == "mmaction2"

    def test_configurations_are_not_executed(self):
        read = assignments(
            "a = 1\nb = dict(x=[a, -2], y=open('z'))\nc = a.real\nd = {'k': (1, None)}\nimport os\n"
        )
        assert read == {"a": 1, "b": {"x": (1, -2)}, "d": {"k": (1, None)}}


class TestOwnFiles:
    def model(self):
        config = configure("slowfast_8x8_r50", blocks=(1, 1, 1, 1), classes=5, fast_input="gray", crop=64)
        return randomise(build(replace(config, slow=replace(config.pathway("slow"), width=16))))

    def test_round_trip(self, file):
        model = self.model()
        model.res3["slow"][0].b.bn.eps = 1e-3
        save_checkpoint(model, file)
        back = load_checkpoint(file)
        assert back.config == model.config and not back.training
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in back.state_dict().items())
        assert back.res3["slow"][0].b.bn.eps == 1e-3 and back.res3["slow"][0].a.bn.eps == 1e-5
        assert load_checkpoint(file, activation="none").config.head.activation == "none"

    def test_plain_data_only(self, file):
        save_checkpoint(self.model(), file)
        assert set(torch.load(file, weights_only=True)) == {"slowfast_kernels", "state_dict"}

    def test_other_modules_are_refused(self, file):
        with pytest.raises(TypeError, match="expected a model of slowfast_kernels.models, got Linear"):
            save_checkpoint(nn.Linear(2, 2), file)

    def test_newer_version(self, file):
        save_checkpoint(self.model(), file)
        content = torch.load(file, weights_only=True)
        content["slowfast_kernels"]["version"] = 99
        torch.save(content, file)
        with pytest.raises(CheckpointError, match="format 99 .*expected 1"):
            load_checkpoint(file)

    def test_bare_state_dict_needs_a_preset(self, file):
        model = create("slow_8x8_r50", classes=5, blocks=(1, 1, 1, 1))
        torch.save(model.state_dict(), file)
        with pytest.raises(CheckpointError, match="pass model="):
            load_checkpoint(file)
        back = load_checkpoint(file, "slow_8x8_r50", classes=5, blocks=(1, 1, 1, 1))
        assert torch.equal(back.head.proj.weight, model.head.proj.weight)
        with pytest.raises(MismatchError):
            load_checkpoint(file, "slow_8x8_r50", blocks=(1, 1, 1, 1))


def golden_state(case: str) -> dict[str, torch.Tensor]:
    """Zeros under the names and in the shapes of a published network."""
    entries = golden.case(case)["checkpoint"]["entries"]
    return {key: torch.zeros(shape) for key, shape, *_ in entries}


class TestGaps:
    """What neither shapes nor the file say."""

    def test_what_all_candidates_have_is_taken(self, file, caplog):
        """A file of weights alone, under the names of the published 8x8 network: they all have alpha 4."""
        torch.save({"model_state": golden_state("pyslowfast_slowfast_8x8_r50")}, file)
        model = load_checkpoint(file)
        spec = model.config.input
        assert (model.config.name, spec.alpha, spec.frames, spec.tau) == ("slowfast_8x8_r50", 4, 32, 2)
        assert model.checkpoint.assumed[0] == "alpha 4 as slowfast_8x8_r50"
        assert [record.levelname for record in caplog.records] == ["WARNING"] and "alpha 4" in caplog.text
        model = load_checkpoint(file, "slowfast_8x8_r50_pytorchvideo")
        assert model.config.input.alpha == 4 and model.config.head.semantics == "pyslowfast"
        assert not model.checkpoint.assumed
        assert load_checkpoint(file, alpha=8).config.input.alpha == 8

    def test_without_candidates_it_is_asked(self, file):
        torch.save({"model_state": PySlowFastNet().state_dict()}, file)
        with pytest.raises(UndecidedError, match=r"tell alpha .*: pass alpha=N or model=NAME") as error:
            load_checkpoint(file)
        assert "published are" not in str(error.value)
        assert [question.settings for question in error.value.questions] == [("alpha=N", "model=NAME")]

    def test_pool_candidates(self, file):
        net = live.zeros(PySlowFastNet, ((64, 1, ((1,),) * 4),), blocks=(3, 4, 6, 3), classes=400)
        torch.save({"model_state": net.state_dict()}, file)
        published = (
            r"c2d_8x8_r50 \(max-pool of 2 frames after res2\), c2d_nopool_8x8_r50 \(max-pool of 1 frames"
        )
        with pytest.raises(UndecidedError, match=f"max-pool .*pool_after_res2=2 or .*{published}"):
            load_checkpoint(file)
        assert load_checkpoint(file, "c2d_8x8_r50").config.slow.pool_after_res2 == 2
        assert load_checkpoint(file, pool_after_res2=1).config.name == "c2d_nopool_8x8_r50"

    def test_pooling_of_boxes_is_asked_where_the_zoo_has_both(self, file):
        """Two of mmaction2's detectors differ in nothing that weights show."""
        write(create("slowfast_8x8_r50_ava_temporal_max_mmaction2"), file, to="mmaction2")
        torch.save({"state_dict": torch.load(file, weights_only=True)["state_dict"]}, file)
        with pytest.raises(
            UndecidedError, match="frames are pooled .*slowfast_8x8_r50_ava_temporal_max"
        ) as error:
            load_checkpoint(file)
        assert """--set 'roi={"temporal": "max"}' or""" in error.value.told(as_option)
        roi = load_checkpoint(file, roi={"temporal": "max"}).config.head.roi
        assert (roi.temporal, roi.resolution, roi.aligned) == ("max", 8, True)

    def test_only_the_files_own_library_counts(self, file):
        """mmaction2's I3D strides in its stem, PySlowFast's of the same shapes does not."""
        write(create("i3d_32x2_r50_mmaction2"), file, to="mmaction2")
        torch.save({"state_dict": torch.load(file, weights_only=True)["state_dict"]}, file)
        model = load_checkpoint(file)
        assert (model.config.slow.stem_stride, model.config.slow.stem_pool_stride) == (2, 2)
        assert model.config.name == "i3d_32x2_r50_mmaction2"

    def test_what_is_assumed_is_said(self, file):
        torch.save({"model_state": PySlowFastNet(((64, 1, SLOW),), blocks=(3, 4, 6, 3)).state_dict()}, file)
        model = load_checkpoint(file)
        assert "frames=8" in model.checkpoint.assumed[0] and "assumed" in str(model.checkpoint)

    def test_file_and_preset_contradict_each_other(self, file):
        net = PySlowFastNet(((64, 1, SLOW), (8, 5, ((3,),) * 4)), blocks=(3, 4, 6, 3), kernel=5)
        path = pyslowfast_file(file, net, pyslowfast_cfg())
        with pytest.raises(
            CheckpointError, match="alpha: the file's configuration says 4, slowfast_4x16_r50 8"
        ):
            load_checkpoint(path, "slowfast_4x16_r50")

    def test_unreadable_configuration_counts_as_none(self, file, caplog):
        path = pyslowfast_file(file, PySlowFastNet(), "!!python/object/apply:os.system ['true']")
        with pytest.raises(CheckpointError, match="alpha"):
            load_checkpoint(path)
        assert "cannot be read" in caplog.text


class TestMismatch:
    def damaged(self, file, change) -> MismatchError:
        state = PySlowFastNet().state_dict()
        change(state)
        torch.save({"model_state": state, "cfg": pyslowfast_cfg()}, file)
        with pytest.raises(MismatchError) as error:
            load_checkpoint(file)
        assert str(error.value).startswith(str(file))
        return error.value

    def test_missing_key(self, file):
        error = self.damaged(file, lambda state: state.pop("s4.pathway1_res0.branch2.b_bn.running_var"))
        assert error.missing == ["s4.pathway1_res0.branch2.b_bn.running_var"] and not error.unexpected
        assert "missing s4.pathway1_res0.branch2.b_bn.running_var" in str(error)

    def test_missing_convolution(self, file):
        error = self.damaged(file, lambda state: state.pop("s4.pathway1_res0.branch2.a.weight"))
        assert error.missing == ["s4.pathway1_res0.branch2.a.weight"]

    def test_unexpected_key(self, file):
        error = self.damaged(file, lambda state: state.update({"s4.extra.weight": torch.zeros(3)}))
        assert error.unexpected == ["s4.extra.weight"] and "unexpected s4.extra.weight" in str(error)

    def test_shape(self, file):
        key = "s3.pathway0_res1.branch2.b.weight"
        error = self.damaged(file, lambda state: state.update({key: torch.zeros(32, 32, 1, 5, 5)}))
        assert error.shapes == {key: ((32, 32, 1, 3, 3), (32, 32, 1, 5, 5))}
        assert f"shape of {key}: expected [32, 32, 1, 3, 3], got [32, 32, 1, 5, 5]" in str(error)

    def test_another_architecture(self, file):
        net = PySlowFastNet(((64, 1, SLOW),), blocks=(3, 4, 6, 3), classes=400)
        torch.save({"model_state": net.state_dict()}, file)
        with pytest.raises(MismatchError) as error:
            load_checkpoint(file, "i3d_8x8_r50")
        assert "holds slow pathway R50" in str(error.value) and "expected I3D-R50" in str(error.value)
        assert "s1.pathway0_stem.conv.weight" in error.value.shapes
        with pytest.raises(MismatchError) as error:
            load_checkpoint(file, "slowfast_8x8_r50")
        assert "s1.pathway1_stem.conv.weight" in error.value.missing and "more missing" in str(error.value)
        with pytest.raises(MismatchError, match="400 classes"):
            load_checkpoint(file, classes=10)

    def test_another_number_of_classes_than_the_preset_is_the_files(self, file):
        torch.save({"model_state": PySlowFastNet(((64, 1, SLOW),), blocks=(3, 4, 6, 3)).state_dict()}, file)
        assert load_checkpoint(file, "slow_8x8_r50").config.head.classes == 11

    def test_nonlocal(self, file):
        def add(state):
            state["s3.pathway0_nonlocal1.conv_theta.weight"] = torch.zeros(1)

        state = PySlowFastNet().state_dict()
        add(state)
        torch.save({"model_state": state}, file)
        with pytest.raises(CheckpointError, match="non-local .*not supported yet.*conv_theta"):
            load_checkpoint(file, alpha=4)

    def test_two_dimensional_weights(self, file):
        state = {
            k: v.squeeze(2) if v.ndim == 5 else v for k, v in MmRecognizer(MmPath()).state_dict().items()
        }
        torch.save({"state_dict": state}, file)
        with pytest.raises(CheckpointError, match="looks like a 2-D network .*expected SlowFast"):
            load_checkpoint(file)


class TestOtherNetworks:
    """What a file holds that this library does not run, and what it does."""

    @pytest.mark.parametrize(
        "shapes, kind",
        [
            ({"s1.pathway0_stem.conv_xy.weight": (24, 3, 1, 3, 3), "head.conv_5.weight": (1,)}, "X3D"),
            ({"backbone.conv1_s.conv.weight": (24, 3, 1, 3, 3)}, "X3D"),
            ({"patch_embed.proj.weight": (96,), "blocks.0.attn.pool_q.weight": (96,)}, "MViT"),
            (
                {"backbone.blocks.0.attn.qkv.weight": (9,), "backbone.patch_embed.x": (1,)},
                "vision transformer",
            ),
            ({"layer1.0.conv1.0.3.weight": (64, 144, 3, 1, 1)}, r"R\(2\+1\)D"),
            ({"stem.0.weight": (64, 3, 3, 7, 7), "layer4.0.conv1.0.weight": (9, 9, 3, 3, 3)}, "r3d"),
            ({"conv1.weight": (64, 3, 7, 7), "layer4.0.conv1.weight": (9, 9, 3, 3)}, "2-D network"),
        ],
    )
    def test_by_names(self, file, shapes, kind):
        torch.save({"model_state": {key: torch.zeros(shape) for key, shape in shapes.items()}}, file)
        with pytest.raises(CheckpointError, match=f"looks like .*{kind}.*expected SlowFast"):
            load_checkpoint(file)

    @pytest.mark.parametrize("kind", ["X3D", "CSN", "R(2+1)D", "MViT"])
    def test_of_pytorchvideo(self, kind):
        pytest.importorskip("pytorchvideo", reason="pytorchvideo is not installed (requirements-nodeps.txt)")
        live.pytorchvideo()
        from pytorchvideo.models import csn, r2plus1d, vision_transformers, x3d

        build = {
            "X3D": lambda: x3d.create_x3d(input_clip_length=4, input_crop_size=64),
            "CSN": lambda: csn.create_csn(stem_dim_out=16),
            "R(2+1)D": lambda: r2plus1d.create_r2plus1d(stem_dim_out=16),
            "MViT": lambda: vision_transformers.create_multiscale_vision_transformers(
                spatial_size=32, temporal_size=4, depth=2
            ),
        }[kind]
        assert kind in looks_like({key: value.shape for key, value in build().state_dict().items()})

    def test_what_is_supported_looks_like_nothing_else(self):
        for case in golden.CASES:
            entries = golden.case(case)["checkpoint"]["entries"]
            assert looks_like({key: shape for key, shape, *_ in entries}) is None
        for net in (
            MmRecognizer(MmPath(basic=True)),
            MmRecognizer(MmSlowFast()),
            PySlowFastNet(detects=True),
        ):
            assert looks_like({key: value.shape for key, value in net.state_dict().items()}) is None


class TestNotACheckpoint:
    def refused(self, file, pattern: str) -> None:
        with pytest.raises(CheckpointError, match=pattern) as error:
            load_checkpoint(file)
        assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)

    def test_no_such_file(self, file):
        with pytest.raises(FileNotFoundError, match="no such file"):
            load_checkpoint(file)

    def test_folder(self, tmp_path):
        self.refused(tmp_path, "not a file")

    @pytest.mark.parametrize("raw", [b"", b"hello, world", b"\x00" * 64, b"\x80\x02", b"GIF89a\x01\x00"])
    def test_other_bytes(self, file, raw):
        file.write_bytes(raw)
        self.refused(file, "not a checkpoint")

    def test_truncated(self, file):
        pyslowfast_file(file, PySlowFastNet())
        file.write_bytes(file.read_bytes()[:-1000])
        self.refused(file, "truncated or damaged")

    @pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"model_state": {}}, [1, 2], torch.zeros(3)])
    def test_no_weights(self, file, content):
        torch.save(content, file)
        self.refused(file, "no weights|holds")

    def test_other_weights(self, file):
        torch.save({"model_state": nn.Linear(3, 4).state_dict()}, file)
        self.refused(file, "unknown weights, expected SlowFast.*got the keys weight, bias")

    def test_pickle_without_weights(self, file):
        file.write_bytes(pickle.dumps({"a": 3}))
        self.refused(file, "without weights")

    def test_unknown_preset(self, file):
        pyslowfast_file(file, PySlowFastNet())
        with pytest.raises(CheckpointError, match="did you mean slowfast_8x8_r50"):
            load_checkpoint(file, "slowfast_8x8_r5O")

    def test_unknown_override(self, file):
        pyslowfast_file(file, PySlowFastNet())
        with pytest.raises(CheckpointError, match="unknown override 'alhpa'"):
            load_checkpoint(file, alpha=4, alhpa=4)
