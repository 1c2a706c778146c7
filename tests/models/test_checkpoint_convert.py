"""convert: the other libraries' files, bit for bit, read by the other libraries' own code where it is
here."""

import argparse
import pickle
import re
from dataclasses import replace
from pathlib import Path

import live
import pytest
import torch
import yaml
from live import MmRecognizer, MmSlowFast, PySlowFastNet, randomise
from torch import nn

from slowfast_kernels.cli import main, run
from slowfast_kernels.cli.convert import EPILOG
from slowfast_kernels.models import (
    CheckpointError,
    RoIConfig,
    build,
    configure,
    load_checkpoint,
    save_checkpoint,
)
from slowfast_kernels.models.checkpoint import convert, python_config, write
from slowfast_kernels.testing import relative_l2

pytestmark = pytest.mark.usefixtures("one_thread")

LIBRARIES = ("pyslowfast", "pytorchvideo", "mmaction2")


def small(preset: str, **overrides) -> nn.Module:
    """A preset's network with thin pathways."""
    config = configure(preset, **overrides)
    thin = {
        name: replace(config.pathway(name), width=16 if name == "slow" else 2) for name in config.pathways
    }
    return randomise(build(replace(config, **thin)))


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(value, y[key]) for key, value in x.items())


ROUND_TRIPS = [
    ("slowfast_8x8_r50", LIBRARIES),
    ("slowfast_4x16_r50_pytorchvideo", ("pyslowfast",)),
    ("slowfast_8x8_r50_steplr_mmaction2", LIBRARIES),
    ("slowfast_8x8_r101_50_101", ("pyslowfast",)),
    ("slowfast_8x8_r18", ("pyslowfast", "mmaction2")),
    ("slowfast_16x8_r50_charades", ("mmaction2",)),
    ("slow_4x16_r50", LIBRARIES),
    ("i3d_8x8_r50", LIBRARIES),
    ("c2d_8x8_r50", LIBRARIES),
    ("c2d_nopool_8x8_r50", ("pyslowfast",)),
    ("slowfast_8x8_r50_ava", LIBRARIES),
    ("slow_4x16_r50_ava", LIBRARIES),
    ("slowfast_8x8_r50_ava_pytorchvideo", ("pyslowfast",)),
    ("slowfast_8x8_r50_mmaction2", ("mmaction2",)),
    ("slowfast_4x16_r101_r50_mmaction2", ("mmaction2",)),
    ("i3d_32x2_r50_mmaction2", ("pytorchvideo", "mmaction2")),
    ("slowfast_8x8_r50_ava_temporal_max_mmaction2", ("mmaction2",)),
    ("fast_only", ("pytorchvideo", "mmaction2")),
]


class TestRoundTrip:
    @pytest.mark.parametrize("preset, library", [(name, one) for name, to in ROUND_TRIPS for one in to])
    def test_there_and_back(self, tmp_path, preset, library):
        """Through another library's file and back into one of our own source: every bit, and the same
        network."""
        model = small(preset)
        save_checkpoint(model, tmp_path / "ours")
        written = convert(tmp_path / "ours", tmp_path / "there", to=library)
        there = load_checkpoint(tmp_path / "there")
        assert there.config.source == library == written.library
        assert written.keys == len(model.state_dict())
        own = model.config.source
        if own == "pyslowfast" and preset == "fast_only":
            own = "mmaction2"  # PySlowFast cannot build it
        convert(tmp_path / "there", tmp_path / "back", to=own)
        back = load_checkpoint(tmp_path / "back")
        assert same_weights(back, model)
        for part in ("frames", "alpha", "tau", "mean", "std", "reverse_channels"):
            assert getattr(back.config.input, part) == getattr(model.config.input, part)
        for path in model.config.pathways:
            a, b = back.config.pathway(path), model.config.pathway(path)
            assert [a.block_kernels(stage) for stage in range(4)] == [
                b.block_kernels(stage) for stage in range(4)
            ]
            for part in ("strides", "dilations", "pool_after_res2", "stem_stride", "stem_pool_stride"):
                assert getattr(a, part) == getattr(b, part)
        if own == model.config.source:
            assert back.config.head == model.config.head

    def test_own_format(self, tmp_path):
        model = small("slowfast_8x8_r50_mmaction2")
        write(model, tmp_path / "mm", to="mmaction2")
        convert(tmp_path / "mm", tmp_path / "ours", to="slowfast")
        back = load_checkpoint(tmp_path / "ours")
        assert same_weights(back, model) and back.config.head == model.config.head


class TestAnswers:
    """Files written here, loaded by the other side."""

    def test_pytorchvideo_loads_what_was_pyslowfast(self, tmp_path):
        pytest.importorskip("pytorchvideo", reason="pytorchvideo is not installed (requirements-nodeps.txt)")
        net = randomise(PySlowFastNet(((16, 1, live.SLOW), (2, 5, live.FAST)), blocks=(3, 4, 6, 3)))
        torch.save({"model_state": net.state_dict()}, tmp_path / "a")
        convert(tmp_path / "a", tmp_path / "b", to="pytorchvideo", alpha=4, crop=64, frames=8)
        theirs = live.pytorchvideo()[0].create_slowfast(
            stem_dim_outs=(16, 2), model_num_class=11, head_pool_kernel_sizes=((2, 2, 2), (8, 2, 2))
        )
        state = torch.load(tmp_path / "b", weights_only=True)["model_state"]
        theirs.load_state_dict(state)  # strict
        clip = torch.randn(1, 3, 8, 64, 64)
        with torch.no_grad():
            logits = theirs.eval()([clip[:, :, [0, 7]], clip])
            assert relative_l2(logits.softmax(1), net([clip[:, :, [0, 7]], clip])) < 2e-5

    def test_pyslowfast_loads_what_was_mmaction2(self, tmp_path):
        """The classifier's columns change places: (fast, slow) there, (slow, fast) here."""
        net = randomise(MmRecognizer(MmSlowFast(4, 5, lateral_norm=True)))
        torch.save({"state_dict": net.state_dict()}, tmp_path / "a")
        # the test's networks have two blocks in res3, which PySlowFast's depths have not: through our own
        # format
        with pytest.raises(CheckpointError, match="expected 18, 50 or 101 layers, got .*blocks"):
            convert(tmp_path / "a", tmp_path / "b", to="pyslowfast", alpha=4)
        model = small("slowfast_8x8_r50_steplr_mmaction2")
        write(model, tmp_path / "b", to="pyslowfast")
        theirs = PySlowFastNet(
            ((16, 1, live.SLOW), (2, 5, live.FAST)), blocks=(3, 4, 6, 3), classes=400, crop=64
        ).eval()
        content = torch.load(tmp_path / "b", weights_only=True)
        theirs.load_state_dict(content["model_state"])
        cfg = yaml.safe_load(content["cfg"])
        assert cfg["DATA"]["MEAN"] == [0.485, 0.456, 0.406] and cfg["SLOWFAST"]["BETA_INV"] == 8
        clip = torch.randn(1, 3, 8, 64, 64)
        slow = clip[:, :, ::4]
        with torch.no_grad():
            assert relative_l2(theirs([slow, clip]), model([slow, clip]).softmax(1)) < 2e-5

    def test_mmaction2_loads_what_was_pyslowfast(self, tmp_path):
        model = small("slowfast_8x8_r50")
        written = write(model, tmp_path / "mm", to="mmaction2")
        assert any("frames 0, alpha" in note for note in written.notes)
        content = torch.load(tmp_path / "mm", weights_only=True)
        weight = content["state_dict"]["cls_head.fc_cls.weight"]
        fast = 2 * 32
        assert torch.equal(weight[:, fast:], model.head.proj.weight[:, :-fast])
        assert torch.equal(weight[:, :fast], model.head.proj.weight[:, -fast:])
        backbone = python_config.assignments(content["meta"]["cfg"])["model"]["backbone"]
        assert backbone["slow_pathway"]["lateral_norm"] is True and backbone["channel_ratio"] == 8
        assert backbone["slow_pathway"]["inflate"] == (0, 0, 1, 1) and backbone["speed_ratio"] == 4

    def test_background_class(self, tmp_path):
        model = small("slow_4x16_r50_ava")
        written = write(model, tmp_path / "mm", to="mmaction2")
        state = torch.load(tmp_path / "mm", weights_only=True)["state_dict"]
        weight = state["roi_head.bbox_head.fc_cls.weight"]
        assert weight.shape[0] == 81 and not weight[0].any()
        assert torch.equal(weight[1:], model.head.proj.weight)
        assert any("background" in note for note in written.notes)
        convert(tmp_path / "mm", tmp_path / "back", to="pyslowfast")
        assert load_checkpoint(tmp_path / "back").config.head.classes == 80

    def test_without_a_background_class_no_row_is_added(self, tmp_path):
        """MultiSports: 66 classes, of which one holds, and no class 0 for the background."""
        model = small("slow_4x16_r50_ava_mmaction2", classes=66, background=False, multi_label=False)
        for source, target in (("a", "b"), ("b", "c")):
            if source == "a":
                write(model, tmp_path / "b", to="mmaction2")
            else:
                convert(tmp_path / source, tmp_path / target, to="mmaction2")
            state = torch.load(tmp_path / target, weights_only=True)["state_dict"]
            assert torch.equal(state["roi_head.bbox_head.fc_cls.weight"], model.head.proj.weight)
        back = load_checkpoint(tmp_path / "c")
        assert (back.config.head.classes, back.config.head.background) == (66, False)

    def test_a_softmax_over_boxes_gets_no_background(self, tmp_path):
        model = small("slow_4x16_r50_ava", classes=7, activation="softmax", multi_label=False)
        written = write(model, tmp_path / "mm", to="mmaction2")
        assert written.config.head.classes == 7 and not any("background" in note for note in written.notes)

    def test_a_detector_of_mmaction2_is_a_network_of_mmdet(self, tmp_path):
        """Its registry looks in mmdet for what has no prefix; both configurations are required arguments."""
        write(small("slowfast_8x8_r50_ava"), tmp_path / "mm", to="mmaction2")
        content = torch.load(tmp_path / "mm", weights_only=True)
        model = python_config.assignments(content["meta"]["cfg"])["model"]
        assert (model["type"], model["_scope_"]) == ("FastRCNN", "mmdet")
        assert model["backbone"]["type"] == "mmaction.ResNet3dSlowFast"
        assert model["data_preprocessor"]["type"] == "mmaction.ActionDataPreprocessor"
        assert model["test_cfg"] == {"rcnn": None}
        assert model["train_cfg"]["rcnn"]["assigner"]["type"] == "MaxIoUAssignerAVA"
        write(small("slow_4x16_r50"), tmp_path / "mm", to="mmaction2")
        content = torch.load(tmp_path / "mm", weights_only=True)
        model = python_config.assignments(content["meta"]["cfg"])["model"]
        assert model["backbone"]["type"] == "ResNet3d" and "_scope_" not in model

    def test_few_classes_of_boxes(self, tmp_path):
        """mmaction2 wants each k of its top-k accuracies below the number of classes; 3 and 5 are its defaults."""
        model = small("slow_4x16_r50_ava_mmaction2", classes=3, background=False, multi_label=False)
        write(model, tmp_path / "mm", to="mmaction2")
        text = torch.load(tmp_path / "mm", weights_only=True)["meta"]["cfg"]
        assert python_config.assignments(text)["model"]["roi_head"]["bbox_head"]["topk"] == (1,)

    @pytest.mark.parametrize(
        "preset, loss",
        [
            ("slowfast_16x8_r50_charades", "bce_logit"),  # the head of clips gives logits in training
            ("slow_4x16_r50_ava", "bce"),  # the one of boxes probabilities
            ("slow_8x8_r50", "cross_entropy"),
        ],
    )
    def test_loss_of_pyslowfast(self, tmp_path, preset, loss):
        write(small(preset), tmp_path / "py", to="pyslowfast")
        cfg = yaml.safe_load(torch.load(tmp_path / "py", weights_only=True)["cfg"])
        assert cfg["MODEL"]["LOSS_FUNC"] == loss

    @pytest.mark.parametrize("library", ["pyslowfast", "slowfast"])
    def test_weights_that_are_no_numbers(self, tmp_path, library):
        model = small("slow_8x8_r50")
        with torch.no_grad():
            model.head.proj.weight[0, 0] = float("nan")
            model.head.proj.bias[1] = float("inf")
        save_checkpoint(model, tmp_path / "in")
        written = convert(tmp_path / "in", tmp_path / "out", to=library)
        (note,) = [note for note in written.notes if "NaN" in note]
        assert "weight" in note and "bias" in note
        weight = load_checkpoint(tmp_path / "out").head.proj.weight
        assert weight[0, 0].isnan() and torch.equal(weight[1:], model.head.proj.weight[1:])


class TestRefused:
    @pytest.mark.parametrize(
        "preset, overrides, library, words",
        [
            ("slowfast_8x8_r50_mmaction2", {}, "pyslowfast", "batch norm and ReLU, got a bare convolution"),
            ("slowfast_8x8_r50_mmaction2", {}, "pytorchvideo", "batch norm and ReLU, got a bare convolution"),
            ("slowfast_8x8_r50", {"lateral": "time_sample"}, "mmaction2", "got kind 'time_sample'"),
            ("slowfast_8x8_r50", {"lateral": "none"}, "pyslowfast", "got kind 'none'"),
            ("slowfast_8x8_r50", {"fast_input": "gray"}, "pyslowfast", "fast_input='gray'"),
            ("slowfast_8x8_r18", {}, "pytorchvideo", r"got \(2, 2, 2, 2\)"),
            ("slowfast_4x16_r101_r50_mmaction2", {"lateral_norm": True}, "pyslowfast", "as many blocks"),
            ("fast_only", {}, "pyslowfast", "got a Fast-only network"),
            ("i3d_32x2_r50_mmaction2", {}, "pyslowfast", "strides in time"),
            ("i3d_8x8_r50", {"pool_after_res2": 4}, "mmaction2", "max-pool of 2 frames"),
            ("slowfast_8x8_r50_ava_temporal_max_mmaction2", {"lateral_norm": True}, "pyslowfast", "maximum"),
            ("slow_8x8_r50", {"pool": 5}, "pyslowfast", "crop / 32 = 7 cells, got 5"),
            ("slow_4x16_r50_ava", {"roi": RoIConfig(sampling_ratio=2)}, "pyslowfast", "sampling ratio 0"),
        ],
    )
    def test_what_cannot_be_expressed(self, tmp_path, preset, overrides, library, words):
        with pytest.raises(CheckpointError, match=words) as error:
            write(small(preset, **overrides), tmp_path / "file", to=library)
        assert "cannot express" in str(error.value) and not any(tmp_path.iterdir())

    def test_batch_norm_of_another_epsilon(self, tmp_path):
        model = small("slow_8x8_r50")
        model.stem["slow"].bn.eps = 1e-3
        with pytest.raises(CheckpointError, match="eps 1e-5 .*stem.slow.bn"):
            write(model, tmp_path / "file", to="pyslowfast")

    def test_unknown_library(self, tmp_path):
        with pytest.raises(CheckpointError, match="expected one of pyslowfast"):
            write(small("slow_8x8_r50"), tmp_path / "file", to="caffe2")

    def test_a_failed_check_leaves_the_old_file(self, tmp_path, monkeypatch):
        from slowfast_kernels.models.checkpoint import writing as module

        model, target = small("slow_8x8_r50"), tmp_path / "file"
        target.write_bytes(b"precious")
        swap = {"branch2.a.": "branch2.c.", "branch2.c.": "branch2.a."}
        name = module.keys.name

        def wrong(*given):
            key = name(*given)
            return next((key.replace(a, b) for a, b in swap.items() if a in key and "_bn" not in key), key)

        monkeypatch.setattr(module.keys, "name", wrong)
        with pytest.raises(CheckpointError):
            write(model, target, to="pyslowfast")
        assert target.read_bytes() == b"precious" and len(list(tmp_path.iterdir())) == 1


class TestCommand:
    def test_convert(self, tmp_path, capsys):
        save_checkpoint(small("slowfast_8x8_r50"), tmp_path / "in")
        assert main(["convert", str(tmp_path / "in"), str(tmp_path / "out"), "--to", "pytorchvideo"]) == 0
        said = "".join(capsys.readouterr())
        assert f"wrote {tmp_path / 'out'}" in said and "SlowFast-R50" in said and "note:" in said
        assert load_checkpoint(tmp_path / "out").config.source == "pytorchvideo"

    def test_model_and_settings(self, tmp_path):
        torch.save({"model_state": PySlowFastNet(blocks=(3, 4, 6, 3)).state_dict()}, tmp_path / "in")
        given = [
            "convert",
            str(tmp_path / "in"),
            str(tmp_path / "out"),
            "--to",
            "slowfast",
            "--set",
            "alpha=4",
        ]
        assert main(given) == 0
        assert load_checkpoint(tmp_path / "out").config.input.alpha == 4

    def test_every_example_of_the_help_works(self, tmp_path, capsys, monkeypatch):
        """On files of weights alone, the Caffe2 ones as the zoo has them."""
        monkeypatch.chdir(tmp_path)
        slowfast = live.zeros(
            PySlowFastNet, ((64, 1, live.SLOW), (8, 5, live.FAST)), blocks=(3, 4, 6, 3), classes=400
        )
        c2d = live.zeros(PySlowFastNet, ((64, 1, ((1,),) * 4),), blocks=(3, 4, 6, 3), classes=400)
        for name, net in (("SLOWFAST_8x8_R50.pkl", slowfast), ("C2D_NOPOOL_8x8_R50.pkl", c2d)):
            Path(name).write_bytes(pickle.dumps({"blobs": live.caffe2_blobs(net, (3, 4, 6, 3))}))
        torch.save({"model_state": slowfast.state_dict()}, "SLOWFAST_8x8_R50.pyth")
        examples = [line.split() for line in EPILOG.splitlines() if line.startswith("  slowfast-kernels")]
        assert len(examples) == 3
        for _, *words in examples:
            assert main(words) == 0, capsys.readouterr().err
        said = capsys.readouterr().out
        assert "note: assumed: alpha 4 as slowfast_8x8_r50" in " ".join(said.split())

        first = re.search(r"  slowfast-kernels (run .*--checkpoint .*)", run.EPILOG)[1].split()
        parser = argparse.ArgumentParser()
        run.add_arguments(parser)
        model = run.load(parser.parse_args(first[1:]))
        assert model.config.name == "slowfast_8x8_r50" and model.config.input.alpha == 4

    def test_hints_are_options_here(self, tmp_path, capsys):
        net = live.zeros(PySlowFastNet, ((64, 1, ((1,),) * 4),), blocks=(3, 4, 6, 3), classes=400)
        torch.save({"model_state": net.state_dict()}, tmp_path / "in")
        given = [str(tmp_path / "in"), str(tmp_path / "out"), "--to", "slowfast"]
        assert main(["convert", *given]) == 2
        said = capsys.readouterr().err.strip()
        assert "pass --set pool_after_res2=2 or --set pool_after_res2=1 or --model NAME" in said
        assert "c2d_nopool_8x8_r50" in said and " model=" not in said and "\n" not in said
        assert main(["convert", *given, "--set", "pool_after_res2=1"]) == 0
        assert main(["run", "clip.mp4", "--checkpoint", given[0]]) == 2
        assert "pass --set pool_after_res2=2" in capsys.readouterr().err

    def test_errors(self, tmp_path, capsys):
        source = tmp_path / "in"
        source.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
        assert main(["convert", str(source), str(tmp_path / "out"), "--to", "pyslowfast"]) == 2
        said = capsys.readouterr().err.strip()
        assert str(source) in said and "os.system" in said and "\n" not in said
