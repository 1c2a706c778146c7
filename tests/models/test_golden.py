"""Outputs recorded with the reference libraries' own code, at full size."""

import golden
import pytest
import torch

import slowfast_kernels
from slowfast_kernels.models import load_checkpoint
from slowfast_kernels.testing import relative_l2

# The recorded margins are of both samples; one of them is run here.
MARGIN = {"rel": 0.2}


def save(recorded: dict, path) -> str:
    """The case's checkpoint as a file of its library."""
    file = path / "checkpoint"
    torch.save({recorded["checkpoint"]["wrapper_key"]: golden.weights(recorded["case"])}, file)
    return str(file)


def inputs(recorded: dict, clip: torch.Tensor, index: list[int] | None) -> torch.Tensor | list[torch.Tensor]:
    return clip if index is None else [clip[:, :, index], clip]


@pytest.mark.parametrize("name", golden.CASES)
def test_same_numbers_on_this_machine(name):
    recorded = golden.case(name)
    tensors = list(golden.weights(name).values())
    assert golden.digest(tensors) == pytest.approx(recorded["weights_digest"], rel=1e-6)
    assert golden.digest([golden.clip(recorded)]) == pytest.approx(recorded["input"]["digest"], rel=1e-6)
    assert sum(t.numel() for t in tensors) >= recorded["checkpoint"]["parameters"]


@pytest.mark.parametrize("name", golden.CASES)
def test_outputs(name, tmp_path):
    recorded = golden.case(name)
    config, expected = recorded["config"], recorded["expected"]
    overrides = {} if config["alpha"] is None else {"alpha": config["alpha"]}
    model = load_checkpoint(save(recorded, tmp_path), **overrides)
    spec = model.config.input
    assert model.config.source == recorded["library"].lower()
    assert (spec.frames, model.config.head.classes) == (config["frames"], config["classes"])
    assert (model.config.lateral.norm, model.config.lateral.relu) == (
        (config["lateral_norm"], config["lateral_relu"])
        if config["lateral_norm"] is not None
        else (True, True)
    )
    index = recorded["input"]["slow_index"]
    if index is not None:
        rule = {"linspace": torch.linspace(0, spec.frames - 1, len(index)).long().tolist()}
        rule["stride"] = list(range(0, spec.frames, spec.alpha))
        assert rule[spec.slow_index] == index
    clip = golden.clip(recorded)
    frozen = slowfast_kernels.freeze(model)
    out = frozen(inputs(recorded, clip, index))
    logits = torch.tensor(expected["logits"])
    assert relative_l2(out, torch.tensor(expected["output"]) if "output" in expected else logits) < 1e-4
    if config["activation"] != "none":
        assert relative_l2(centred(out.log()), centred(logits)) < 1e-4

    # A wrong choice moves the output as far as it did there: the agreement above is not an accident.
    margins = recorded["stats"]["if_wrong_relative_l2"]
    for mistake, margin in margins.items():
        moved = wrong(mistake, model, frozen, recorded, clip[:1])
        if config["activation"] == "softmax":
            moved = moved.log()
        assert relative_l2(centred(moved), centred(logits[:1])) == pytest.approx(margin, **MARGIN), mistake


def centred(logits: torch.Tensor) -> torch.Tensor:
    """Less their mean, which a softmax forgets."""
    return logits - logits.mean(dim=-1, keepdim=True)


def wrong(mistake: str, model, frozen, recorded: dict, clip: torch.Tensor) -> torch.Tensor:
    """Outputs of one sample with the mistake made."""
    index = recorded["input"]["slow_index"]
    if mistake.startswith("slow frames"):
        rule = torch.linspace(0, clip.shape[2] - 1, len(index)).long().tolist()
        if index == rule:
            rule = list(range(0, clip.shape[2], recorded["config"]["alpha"]))
        return frozen([clip[:, :, rule], clip])
    if mistake.startswith("ReLU"):
        for lateral in model.lateral:
            lateral.activation = "relu"
        out = slowfast_kernels.freeze(model)([clip[:, :, index], clip])
        for lateral in model.lateral:
            lateral.activation = "none"
        return out
    assert mistake.startswith("fc columns"), mistake
    weight = model.head.proj.weight.data
    fast = model.config.fast.out_channels(3)
    right = weight.clone()
    weight.copy_(torch.cat([right[:, -fast:], right[:, :-fast]], dim=1))
    out = slowfast_kernels.freeze(model)([clip[:, :, index], clip])
    weight.copy_(right)
    return out
