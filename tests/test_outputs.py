"""What a network returns: scores, features or maps, from the model, frozen for the CPU and for a GPU, and unpacked."""

import copy
import functools
from typing import Any

import pytest
import torch

import slowfast_kernels as sf
from slowfast_kernels import backends
from slowfast_kernels.models import override
from slowfast_kernels.precision import fp32_precision
from test_freeze import call, clips_for, distance, needs_cpu, reference, scores, small_model

needs_triton = pytest.mark.skipif(
    backends.unavailable("triton") is not None, reason=f"provider triton: {backends.unavailable('triton')}"
)
TINY = {"crop": 64, "frames": 8, "blocks": (1, 1, 1, 1), "pool": 1}  # a window that slides: 2 x 2 positions
KINDS = {
    "two pathways": ("slowfast", TINY),
    "one pathway": ("slow", TINY),
    "mmaction2": ("mmaction2 head", TINY | {"pool": None}),
    "boxes": ("dilated res5", TINY | {"pool": None, "roi": True}),
}
ROIS = torch.tensor([[0, 3.0, 4.0, 50.0, 60.0], [1, 0.0, 0.0, 20.0, 33.0], [0, 10.0, 10.0, 11.0, 64.0]])
on_each_kind = pytest.mark.parametrize("kind", KINDS)


@functools.cache
def weights(kind: str) -> torch.nn.Module:
    key, overrides = KINDS[kind]
    return scores(small_model(key, **overrides))


def network(kind: str, output: str = "scores") -> torch.nn.Module:
    """A model of its own with the kind's weights."""
    model: Any = copy.deepcopy(weights(kind))
    model.config = override(model.config, {"output": output})
    return model


def run(model: torch.nn.Module, clips: list[torch.Tensor], output: str, kind: str) -> list[torch.Tensor]:
    rois = (ROIS.to(clips[0].device),) if kind == "boxes" and output != "maps" else ()
    out = model(clips if len(clips) > 1 else clips[0], *rois)
    return out if output == "maps" else [out]


def clips_of(kind: str, side: int = 64, shorter: int = 1) -> list[torch.Tensor]:
    """shorter: by how much the clips are shorter than the configuration has them."""
    return [x[:, :, : x.shape[2] // shorter] for x in clips_for(weights(kind), 2, crop=side)]


@functools.cache
def exactly(kind: str, output: str, *size: int) -> list[torch.Tensor]:
    """What PyTorch's own operators give in float64."""
    with torch.no_grad(), sf.use_backend("reference"):
        model = network(kind, output).double()
        return run(model, [x.double() for x in clips_of(kind, *size)], output, kind)


@on_each_kind
def test_features_are_what_the_classifier_gets(kind: str) -> None:
    model = network(kind, "features").double()
    clips = [x.double() for x in clips_for(model, 2)]
    (features,) = run(model, clips, "features", kind)
    (logits,) = run(network(kind).double(), clips, "scores", kind)
    assert features.dtype == torch.float64
    assert distance(model.head.proj(features), logits) < 1e-12
    model.train()  # batch statistics, but the same kinds of output, and gradients
    (features,) = run(model, clips, "features", kind)
    features.sum().backward()
    assert features.shape == (logits.shape[0], model.head.proj.in_features)
    assert model.stem["slow"].conv.weight.grad.abs().max() > 0 and model.head.proj.weight.grad is None


@on_each_kind
def test_maps_are_what_the_head_gets(kind: str) -> None:
    model = network(kind, "maps")
    clips = clips_for(model, 2)
    maps = run(model, clips, "maps", kind)
    assert [m.shape[1] for m in maps] == [
        model.config.pathway(p).out_channels(3) for p in model.config.pathways
    ]
    again = model.head(maps, ROIS) if kind == "boxes" else model.head(maps)
    assert torch.equal(again, *run(network(kind), clips, "scores", kind))
    with pytest.raises(ValueError, match="expected no rois"):
        model(clips if len(clips) > 1 else clips[0], ROIS)


def test_the_parameters_are_the_same() -> None:
    small = {"blocks": (1, 1, 1, 1)}
    states = [sf.models.create("slow_4x16_r50", output=o, **small).state_dict() for o in ("scores", "maps")]
    assert states[0].keys() == states[1].keys()
    with pytest.raises(ValueError, match="output: expected one of scores, features, maps, got 'logits'"):
        sf.models.create("slowfast_8x8_r50", output="logits")
    config = sf.models.configure("slowfast_8x8_r50", output="maps")
    assert type(config).from_dict(config.to_dict()) == config


def test_only_scores_have_multiply_adds_of_a_classifier() -> None:
    scored, mapped = (sf.models.macs(network("one pathway", output), 8, 64) for output in ("scores", "maps"))
    proj = weights("one pathway").head.proj
    positions = 2 * 2  # of the window, at each of which a model in training has the classifier
    assert scored - mapped == positions * proj.in_features * proj.out_features


def agree(frozen, output, kind, dtype, limit, *size) -> None:
    clips = [x.to(frozen.device) for x in clips_of(kind, *size)]
    expected = exactly(kind, output, *size)
    got = run(frozen, clips, output, kind)
    assert frozen.config.head.output == output
    for x, y in zip(got, expected, strict=True):
        assert x.dtype == (dtype if output == "maps" else torch.float32)
        assert x.shape == y.shape and distance(x.cpu(), y) < limit
    before = [x.clone() for x in got]
    for x in got:
        x += 1  # the caller's own, and no inference tensor
        torch.nn.Linear(x.shape[-1], 2).to(x)(x).sum().backward()
    assert all(torch.equal(x, y) for x, y in zip(run(frozen, clips, output, kind), before, strict=True))


@needs_cpu
@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str)
@pytest.mark.parametrize("output", ["scores", "features", "maps"])
@on_each_kind
def test_frozen(kind: str, output: str, dtype: torch.dtype, limit: float) -> None:
    model = network(kind)
    frozen = sf.freeze(model, dtype, output=output)
    assert model.config.head.output == "scores"  # the model is left as it is
    agree(frozen, output, kind, dtype, limit)


@needs_cpu
@pytest.mark.parametrize("output", ["features", "maps"])
def test_a_models_own_output_is_kept(output: str) -> None:
    frozen = sf.freeze(network("one pathway", output))
    agree(frozen, output, "one pathway", torch.float32, 1e-5)


@needs_triton
@pytest.mark.parametrize("kind, output", [("boxes", "features"), ("two pathways", "maps")])
def test_frozen_for_a_gpu(kind: str, output: str) -> None:
    model, device = network(kind), backends.home("triton")
    with sf.use_backend("triton"), fp32_precision("ieee"):
        frozen = sf.freeze(model.to(device), output=output)
        agree(frozen, output, kind, torch.float32, 1e-5, 16, 2)


@pytest.mark.parametrize("output", ["scores", "features", "maps"])
def test_without_packed_kernels(output: str) -> None:
    model = network("two pathways")
    with sf.use_backend("reference"):
        frozen = sf.freeze(model, output=output)
    agree(frozen, output, "two pathways", torch.float32, 1e-5)


@needs_cpu
def test_a_step_of_maps_is_in_the_profile() -> None:
    model = network("two pathways")
    rows = sf.freeze(model, output="maps").profile(clips_for(model), runs=1)
    assert (rows[-1]["stage"], rows[-1]["op"], rows[-1]["flops"]) == ("output", "output", 0)
    assert copy.deepcopy(model.config).head.output == "scores"


@needs_cpu
def test_calls_without_a_batch() -> None:
    model = network("two pathways")
    for output, shapes in (("features", [(0, 2304)]), ("maps", [(0, 2048, 2, 2, 2), (0, 256, 8, 2, 2)])):
        frozen = sf.freeze(model, output=output)
        out = call(frozen, [x[:0] for x in clips_for(model)])
        assert [tuple(x.shape) for x in (out if output == "maps" else [out])] == shapes
    assert reference(model, clips_for(model)).shape == (1, 11)
