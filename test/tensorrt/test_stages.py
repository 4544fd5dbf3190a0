"""The exported stages compute what the plain model computes."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from pi05_ros.backends.engine import Capabilities, Guidance
from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.staged.engine import StagedEngine
from pi05_ros.backends.staged.shapes import StageShapes, stage_spec
from pi05_ros.backends.staged.stages import make_stage, modulation_table
from pi05_ros.model import GemmaConfig, Pi05, Pi05Config, flow_times


def _plain(model: Pi05, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
    views = torch.ones(1, images.shape[0], dtype=torch.bool)
    return images[None], views, tokens[None], torch.ones(1, tokens.shape[0], dtype=torch.bool)


@pytest.mark.parametrize(("views", "length"), [(2, 12), (2, 3), (1, 5)])
def test_engine_equals_plain_model_with_padding_and_missing_camera(
    model: Pi05, reference: StagedEngine, views: int, length: int
) -> None:
    generator = torch.Generator().manual_seed(views * 100 + length)
    images = torch.rand(views, 3, 56, 56, generator=generator) * 2 - 1
    tokens = torch.randint(0, 512, (length,), generator=generator)
    noise = torch.randn(10, 32, generator=generator)
    inputs = _plain(model, images, tokens)
    kv = model.prefill(*inputs)
    context = reference.prefill(images, tokens)
    valid = reference.prefix(images, tokens).valid
    for layer in range(model.config.vlm.depth):
        torch.testing.assert_close(context.keys[layer, 0, 0][valid], kv.k[layer][0, 0])
        torch.testing.assert_close(context.values[layer, 0, 0][valid], kv.v[layer][0, 0])
    expected = model.sample(*inputs, noise[None], 10)[0]
    torch.testing.assert_close(reference.denoise(context, noise, steps=10), expected)
    assert reference.timings.model_ms > 0


def test_uint8_pictures_of_any_size_are_fitted(reference: StagedEngine) -> None:
    picture = torch.randint(0, 256, (48, 64, 3), dtype=torch.uint8)
    pixels = reference.prefix([picture, picture], torch.tensor([2, 3])).pixels
    assert pixels.shape == (2, 3, 56, 56)
    assert pixels.min() >= -1
    assert pixels.max() <= 1


def test_modulation_rows_are_those_of_the_norms(model: Pi05) -> None:
    table = modulation_table(model, 4)
    times = flow_times(4, model.config.clock)
    cond = model.condition(torch.tensor(times[2]))
    expected = model.expert.layers[1].post_attention_layernorm.dense(cond)
    torch.testing.assert_close(table[2, 3], expected)


def test_half_stages_keep_islands_in_float32(model: Pi05) -> None:
    stage = make_stage(model, "prefill", torch.float16)
    gain = stage.get_submodule("layers.0.norm1").gain
    assert gain.dtype == torch.float32
    assert stage.get_submodule("layers.0.q_proj").weight.dtype == torch.float16
    assert model.vlm.layers[0].self_attn.q_proj.weight.dtype == torch.float32


def test_float_stages_share_the_models_memory(model: Pi05) -> None:
    stage = make_stage(model, "denoise_step", torch.float32)
    ours = stage.get_submodule("layers.2.mlp.up_proj").weight
    assert ours.data_ptr() == model.expert.layers[2].mlp.up_proj.weight.data_ptr()


@pytest.mark.parametrize("name", ["camera_keys", "guidance", "frozen"])
def test_abilities_that_the_engine_does_not_have_are_refused(
    reference: StagedEngine, name: str
) -> None:
    images, tokens, noise = torch.zeros(1, 3, 56, 56), torch.tensor([1]), torch.zeros(10, 32)
    given: dict[str, Any] = {
        "camera_keys": [1],
        "guidance": Guidance(noise, torch.ones(10)),
        "frozen": noise[:2],
    }
    assert reference.capabilities == Capabilities()
    cache = reference.prefill(images, tokens)
    options = {name: given[name]}
    act = partial(reference.denoise, cache, noise, steps=1, **options)
    if name == "camera_keys":
        act = partial(reference.prefill, images, tokens, **options)
    with pytest.raises(BackendError, match=f"'torch' does not have {name}; .*'eager'"):
        act()


def test_too_many_cameras_or_tokens_are_refused(reference: StagedEngine) -> None:
    images = torch.zeros(3, 3, 56, 56)
    with pytest.raises(BackendError, match="3 cameras for graphs exported with 2"):
        reference.prefill(images, torch.tensor([1]))
    with pytest.raises(BackendError, match="13 tokens"):
        reference.prefill(images[:1], torch.zeros(13, dtype=torch.long))
    with pytest.raises(BackendError, match="accepted: uint8"):
        reference.prefill([torch.zeros(5, 5)], torch.tensor([1]))
    with pytest.raises(BackendError, match="noise"):
        reference.sample(images[:1], torch.tensor([1]), torch.zeros(9, 32))


def test_shapes_refuse_what_cannot_be_exported() -> None:
    config = Pi05Config.preset("tiny")
    with pytest.raises(ValueError, match="views must be at least 1"):
        StageShapes.of(config, 0, 10, 10)
    many = GemmaConfig(width=64, depth=3, mlp_dim=128, head_dim=16, num_kv_heads=2)
    two_heads = Pi05Config(vision=config.vision, vlm=many, expert=many, vocab=512, horizon=10)
    with pytest.raises(ValueError, match="one key/value head"):
        StageShapes.of(two_heads, 1, 10, 10)
    with pytest.raises(ValueError, match="unknown stage"):
        stage_spec("decode", StageShapes.of(config, 1, 10, 10), torch.float32)
