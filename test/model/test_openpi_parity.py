"""Every recorded intermediate of openpi's model, at the positions that count."""

import dataclasses

import pytest
import torch
from model_fixtures import WEIGHTS, config, inputs, model, recorded, worst

from pi05_ros.model import Pi05, load_checkpoint
from pi05_ros.model.expert import time_embedding

TIMES = ("1", "0.7", "0.3", "0.1", "0.001")


@pytest.mark.parametrize("camera", [0, 1, 2])
def test_image_tokens(camera):
    images = inputs()[0][:, camera]
    assert worst(model().vision(images), recorded()[f"siglip_out_{camera}"]) <= 1e-5
    assert worst(model().embed_images(images), recorded()[f"img_emb_{camera}"]) <= 1e-5


def test_prefix_embeddings_and_mask():
    z = recorded()
    embeddings, mask = model().embed_prefix(*inputs())
    assert torch.equal(mask, z["prefix_pad"])
    assert worst(embeddings[mask], z["prefix_embs"][mask]) <= 1e-5


def test_prefix_blocks_and_final_norm():
    z = recorded()
    mask = z["prefix_pad"]
    hidden = []
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out: hidden.append(out[0]))
        for layer in model().vlm.layers
    ]
    embeddings, _ = model().embed_prefix(*inputs())
    cache, last = model().vlm(embeddings, mask, whole=True)
    for hook in hooks:
        hook.remove()
    for index, x in enumerate([embeddings, *hidden[:-1], last]):
        assert worst(x[mask], z[f"prefix_hidden_{index}"][mask]) <= 1e-5
    assert worst(last[mask], z["prefix_out"][mask]) <= 1e-5
    assert torch.equal(cache.length, mask.sum(-1))


@pytest.mark.parametrize("compact", [True, False])
def test_keys_and_values(compact):
    z = recorded()
    cache = model().prefill(*inputs(), compact=compact)
    for index in range(config().vlm.depth):
        for ours, name in ((cache.k, "k"), (cache.v, "v")):
            theirs = z[f"prefix_{name}_{index}"]
            for row, valid in enumerate(z["prefix_pad"]):
                assert worst(ours[index][row][:, cache.mask[row]], theirs[row][:, valid]) <= 1e-5


@pytest.mark.parametrize("t", TIMES)
def test_time_action_tokens_and_velocity(t):
    z = recorded()
    B = z["noise"].shape[0]
    time = torch.full((B,), float(t))
    assert worst(time_embedding(time, config().expert.width), z[f"time_sin_{t}"].float()) <= 1e-6
    assert worst(model().condition(time), z[f"time_cond_{t}"]) <= 1e-5
    assert worst(model().action_in_proj(z["noise"]), z[f"suffix_embs_{t}"]) <= 1e-5
    cache = model().prefill(*inputs())
    assert worst(model().velocity(z["noise"], float(t), cache), z[f"v_{t}"]) <= 1e-5


def test_expert_blocks():
    z = recorded()
    hidden = []
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out: hidden.append(out[0]))
        for layer in model().expert.layers
    ]
    model().velocity(z["noise"], 0.7, model().prefill(*inputs()))
    for hook in hooks:
        hook.remove()
    for index, x in enumerate(hidden[:-1]):
        assert worst(x, z[f"suffix_hidden_0.7_{index + 1}"]) <= 1e-5
    after = model().expert.norm(hidden[-1], model().condition(torch.full((3,), 0.7)))[0]
    assert worst(after, z[f"suffix_hidden_0.7_{len(hidden)}"]) <= 1e-5


@pytest.mark.parametrize("clock", ["openpi", "exact"])
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_actions(steps, clock):
    z = recorded()
    actions = model().sample(*inputs(), z["noise"], steps=steps, clock=clock)
    assert worst(actions, z[f"actions_{steps}"]) <= 5e-5


def test_clock_defaults_to_the_config():
    z = recorded()
    exact = Pi05.random(dataclasses.replace(config(), clock="exact"), seed=0)
    assert torch.equal(
        exact.sample(*inputs(), z["noise"]), model().sample(*inputs(), z["noise"], clock="exact")
    )


@pytest.mark.parametrize("rope", ["fp32", "openpi-bf16"])
def test_bfloat16_velocity(rope):
    """Against the float32 run: about 2.9e-2 at worst. How a CPU sums bfloat16 products moves the
    last of 4800 values, so one in a thousand may pass the limit a little.
    """
    z = recorded()
    errors = []
    half = load_checkpoint(WEIGHTS, config(), torch.bfloat16, rope=rope)
    cache = half.prefill(*inputs())
    assert cache.k[0].dtype == torch.bfloat16
    for t in TIMES:
        v = half.velocity(z["noise"], float(t), cache)
        assert v.dtype == torch.float32
        errors.append((v - z[f"v_{t}"]).abs())
    error = torch.stack(errors)
    assert (error <= 3e-2).float().mean() >= 0.999
    assert error.max() <= 4e-2
    assert error.square().mean().sqrt() <= 1e-2


def test_bfloat16_dtypes_are_openpis():
    half = Pi05.random(config(), 0, torch.bfloat16)
    full = {name for name, p in half.named_parameters() if p.dtype == torch.float32}
    assert {p.dtype for p in half.parameters()} == {torch.float32, torch.bfloat16}
    expected = {
        name
        for name, _ in half.named_parameters()
        if name.startswith(("action_", "time_mlp_", "vision.patch", "vision.position"))
        or "input_layernorm" in name
        or "post_attention_layernorm" in name
        or name.startswith(("vlm.norm", "expert.norm"))
    }
    assert full == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int8])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(ValueError, match=r"accepted: torch\.float32, torch\.bfloat16"):
        Pi05(config(), dtype, device="meta")


def test_openpi_rope_rounds_the_frequencies():
    rounded = Pi05.random(dataclasses.replace(config(), rope="openpi-bf16"), seed=0)
    ours, theirs = (m.prefill(*inputs(), compact=True).k[0] for m in (rounded, model()))
    assert worst(ours[:, :, :1], theirs[:, :, :1]) == 0  # position 0 does not turn
    assert worst(ours, theirs) > 1e-3


def test_masked_tokens_stay_where_openpi_keeps_them():
    """In bfloat16 the number of rows changes the rounding, so bit parity keeps them all."""
    rounded = Pi05.random(dataclasses.replace(config(), rope="openpi-bf16"), seed=0)
    full = recorded()["prefix_pad"]
    assert torch.equal(rounded.prefill(*inputs()).mask, full)
    assert rounded.prefill(*inputs(), compact=True).mask.shape[1] == full.sum(1).max()
    # one row whose right camera is masked: the default drops 16 tokens and the prompt's padding
    row = tuple(tensor[:1] for tensor in inputs())
    assert model().prefill(*row).mask.all()
    assert rounded.prefill(*row).mask.shape[1] == full.shape[1]
