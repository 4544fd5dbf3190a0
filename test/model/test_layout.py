"""The tensor list of openpi files, and seeded random weights."""

import json

import pytest
import torch
from model_fixtures import DATA, config, same_parameters, weights

from pi05_ros.model import GemmaConfig, Pi05, Pi05Config, VisionConfig, openpi_layout
from pi05_ros.model.layout import EXPERT_LM_HEAD, model_name
from pi05_ros.model.random_weights import random_tensor


def test_tiny_layout_is_the_recorded_one():
    keys = json.loads((DATA / "tiny.keys.json").read_text())
    layout = openpi_layout(config())
    assert {name: list(spec.shape) for name, spec in layout.items()} == {
        name: value[0] for name, value in keys.items()
    }


def test_full_layout_has_the_published_size():
    layout = openpi_layout(Pi05Config.preset("pi05"))
    assert len(layout) == 812
    assert sum(spec.size for spec in layout.values()) == 3_616_757_520
    unused = sum(spec.size for spec in layout.values() if not spec.inference)
    live = 3_616_757_520 - unused
    assert 3.23e9 < live < 3.25e9


@pytest.mark.parametrize("preset", ["pi05", "tiny"])
@pytest.mark.parametrize("explicit", [True, False])
def test_model_has_exactly_these_tensors(preset, explicit):
    cfg = Pi05Config.preset(preset)
    if explicit:
        model = Pi05(cfg, device="meta")
    else:
        with torch.device("meta"):
            model = Pi05(cfg)
    assert not list(model.buffers())
    ours = {name: tuple(p.shape) for name, p in model.named_parameters()}
    layout = openpi_layout(cfg)
    theirs = {model_name(n): spec.shape for n, spec in layout.items() if n != EXPERT_LM_HEAD}
    assert len(theirs) == len(layout) - 1, "the name map is one to one"
    assert ours == theirs


def test_random_weights_are_the_fixtures():
    for name, tensor in weights().items():
        assert torch.equal(random_tensor(name, tuple(tensor.shape), 0), tensor), name


def test_random_models():
    a = Pi05.random(config(), seed=5)
    assert same_parameters(a, Pi05.random(config(), seed=5))
    assert not same_parameters(a, Pi05.random(config(), seed=6))
    half = Pi05.random(config(), 5, torch.bfloat16)
    for (name, p), q in zip(a.named_parameters(), half.parameters(), strict=True):
        assert torch.equal(p.to(q.dtype), q), name
    with pytest.raises(ValueError, match="seed"):
        Pi05.random(config(), seed=-1)


def test_configs_refuse_what_cannot_be():
    good = config().to_dict()
    assert Pi05Config.from_dict(good) == config()
    assert Pi05Config.preset("tiny") == config()
    for path, value, text in (
        (("vlm", "width"), 0, "vlm|gemma"),
        (("vlm", "width"), 63, "even"),
        (("expert", "depth"), 2, "must agree"),
        (("vision", "image_size"), 50, "multiple"),
        (("vision", "num_attention_heads"), 5, "heads"),
        (("vocab",), -1, "vocab"),
        (("horizon",), 1.5, "horizon"),
        (("horizon",), True, "horizon"),
        (("rope",), "fp16", "accepted: fp32, openpi-bf16"),
        (("clock",), "wall", "accepted: openpi, exact"),
    ):
        bad = json.loads(json.dumps(good))
        place = bad
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(ValueError, match=text):
            Pi05Config.from_dict(bad)
    del good["vlm"]["mlp_dim"]
    with pytest.raises(ValueError, match="mlp_dim"):
        Pi05Config.from_dict(good)
    del good["vlm"]
    with pytest.raises(ValueError, match="'vlm'"):
        Pi05Config.from_dict(good)
    with pytest.raises(ValueError, match="accepted: pi05, tiny"):
        Pi05Config.preset("huge")
    with pytest.raises(ValueError, match="KV heads"):
        GemmaConfig(8, 1, 8, num_heads=3, num_kv_heads=2)
    assert VisionConfig().tokens == 256
