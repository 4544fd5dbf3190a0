"""Shapes, compaction, per-token time, gradients and bad input of the plain model."""

import dataclasses

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from model_fixtures import config, inputs, model, recorded, worst

from pi05_ros.model import (
    GemmaConfig,
    Pi05,
    Pi05Config,
    VisionConfig,
    flow_sample,
    flow_times,
    openpi_layout,
)
from pi05_ros.model.layout import EXPERT_LM_HEAD, model_name


def random_inputs(cfg, B, V, L, seed=0):
    g = torch.Generator().manual_seed(seed)
    S = cfg.vision.image_size
    images = torch.rand(B, V, 3, S, S, generator=g) * 2 - 1
    tokens = torch.randint(0, cfg.vocab, (B, L), generator=g)
    noise = torch.randn(B, cfg.horizon, cfg.action_dim, generator=g)
    return images, tokens, noise


@st.composite
def mask_patterns(draw):
    B = draw(st.integers(1, 3))
    V = draw(st.integers(1, 3))
    L = draw(st.integers(1, 12))
    cameras = draw(
        st.lists(st.lists(st.booleans(), min_size=V, max_size=V), min_size=B, max_size=B)
    )
    words = [draw(st.integers(1, L)) for _ in range(B)]
    prompt = [[i < n for i in range(L)] for n in words]
    if draw(st.booleans()):  # padding in the middle is not openpi's way, but is well defined
        prompt = [draw(st.permutations(row)) for row in prompt]
    return torch.tensor(cameras).view(B, V), torch.tensor(prompt).view(B, L)


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(masks=mask_patterns(), seed=st.integers(0, 99))
def test_compaction_changes_nothing(masks, seed):
    image_masks, token_mask = masks
    images, tokens, noise = random_inputs(config(), *image_masks.shape, token_mask.shape[1], seed)
    short = model().prefill(images, image_masks, tokens, token_mask)
    full = model().prefill(images, image_masks, tokens, token_mask, compact=False)
    valid = image_masks.sum(-1) * config().vision.tokens + token_mask.sum(-1)
    assert torch.equal(short.length, valid)
    assert short.mask.shape[1] == int(valid.max())
    for row, n in enumerate(valid.tolist()):
        assert short.mask[row, :n].all()
        assert not short.mask[row, n:].any()
    noise = noise[: len(valid)]
    for t in (1.0, 0.3):
        a, b = model().velocity(noise, t, short), model().velocity(noise, t, full)
        assert worst(a, b) <= 1e-5


def test_masked_content_does_not_matter():
    images, image_masks, tokens, token_mask = inputs()
    changed = torch.where(image_masks[..., None, None, None], images, torch.tensor(float("nan")))
    others = torch.where(token_mask, tokens, 7)
    z = recorded()
    before = model().sample(images, image_masks, tokens, token_mask, z["noise"], 2)
    after = model().sample(changed, image_masks, others, token_mask, z["noise"], 2)
    assert torch.equal(before, after)


def test_rows_of_a_batch_are_independent():
    z = recorded()
    batch = model().sample(*inputs(), z["noise"], 3)
    for row in range(3):
        alone = model().sample(*(x[row : row + 1] for x in (*inputs(), z["noise"])), 3)
        assert worst(alone, batch[row : row + 1]) <= 1e-5


ODD = Pi05Config(
    vision=VisionConfig(36, 60, 1, 3, image_size=48, patch_size=12),
    vlm=GemmaConfig(width=40, depth=2, mlp_dim=56, num_heads=4, num_kv_heads=2, head_dim=12),
    expert=GemmaConfig(width=24, depth=2, mlp_dim=40, num_heads=4, num_kv_heads=2, head_dim=12),
    vocab=97,
    action_dim=7,
    horizon=5,
)


@pytest.mark.parametrize(("B", "V"), [(1, 1), (3, 2), (2, 3)])
def test_other_sizes(B, V):
    odd = Pi05.random(ODD, seed=3)
    images, tokens, noise = random_inputs(ODD, B, V, 6)
    masks = torch.ones(B, V, dtype=torch.bool), torch.ones(B, 6, dtype=torch.bool)
    cache = odd.prefill(images, masks[0], tokens, masks[1])
    assert cache.k[0].shape == (B, 2, 16 * V + 6, 12)
    actions = odd.sample(images, masks[0], tokens, masks[1], noise, steps=2)
    assert actions.shape == (B, 5, 7)
    assert actions.isfinite().all()


@pytest.mark.parametrize("B", [1, 3])
def test_224_pixels_one_view(B):
    cfg = dataclasses.replace(
        config(), vision=dataclasses.replace(config().vision, image_size=224), horizon=15
    )
    big = Pi05.random(cfg, seed=1)
    images, tokens, noise = random_inputs(cfg, B, 1, 200)
    token_mask = torch.arange(200) < torch.tensor([[30], [200], [1]])[:B]
    image_masks = torch.ones(B, 1, dtype=torch.bool)
    a = big.velocity(noise, 0.5, big.prefill(images, image_masks, tokens, token_mask))
    full = big.prefill(images, image_masks, tokens, token_mask, compact=False)
    assert full.mask.shape == (B, 456)
    assert worst(a, big.velocity(noise, 0.5, full)) <= 1e-5


def test_per_token_time():
    z = recorded()
    cache = model().prefill(*inputs())
    B, H, _ = z["noise"].shape
    whole = model().velocity(z["noise"], 0.7, cache)
    same = model().velocity(z["noise"], torch.full((B, H), 0.7), cache)
    assert worst(whole, same) <= 1e-5
    rows = model().velocity(z["noise"], torch.tensor([0.7, 0.3, 0.1]), cache)
    assert worst(rows[:1], z["v_0.7"][:1]) <= 1e-5
    assert worst(rows[1:2], z["v_0.3"][1:2]) <= 1e-5
    times = torch.full((B, H), 0.7)
    times[:, :3] = 0.0
    mixed = model().velocity(z["noise"], times, cache)
    assert worst(mixed[:, :3], whole[:, :3]) > 1e-2


def test_gradient_reaches_the_actions_and_nothing_else():
    z = recorded()
    cache = model().prefill(*inputs())
    x = z["noise"].clone().requires_grad_()
    e = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    (vjp,) = torch.autograd.grad(model().velocity(x, 0.5, cache), x, e)
    step = 1e-2
    up, down = (model().velocity(z["noise"] + s * step * e, 0.5, cache) for s in (1, -1))
    directional = ((up - down) / (2 * step) * e).sum()
    assert torch.allclose(directional, (vjp * e).sum(), rtol=1e-2)
    assert not any(p.requires_grad for p in model().parameters())
    assert not model().training


def test_parameters_can_be_trained():
    trained = Pi05.random(config(), seed=0)
    trained.requires_grad_(True)
    z = recorded()
    trained.velocity(z["noise"], 0.5, trained.prefill(*inputs())).square().mean().backward()
    without = {name for name, p in trained.named_parameters() if p.grad is None}
    unused = {
        model_name(name)
        for name, spec in openpi_layout(config()).items()
        if not spec.inference and name != EXPERT_LM_HEAD
    }
    assert without == unused


def test_guide_wraps_the_velocity():
    z = recorded()
    times = []

    def guide(velocity):
        def guided(x, t):
            times.append(t)
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                v = velocity(x, t)
                torch.autograd.grad(v.sum(), x)
            return v.detach() * 0

        return guided

    out = model().sample(*inputs(), z["noise"], steps=4, guide=guide)
    assert torch.equal(out, z["noise"])
    assert times == flow_times(4)


def test_flow_integrates_a_line_exactly():
    noise, data = torch.full((1, 2, 3), 4.0), torch.full((1, 2, 3), 1.0)
    for clock in ("openpi", "exact"):
        assert worst(flow_sample(lambda x, t: noise - data, noise, 8, clock), data) <= 1e-6
    assert flow_times(4, "exact") == [1.0, 0.75, 0.5, 0.25]
    assert len(flow_times(1000)) == 1000
    assert abs(flow_times(1000)[-1] - 0.001) < 1e-4


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, None])
def test_bad_steps(steps):
    with pytest.raises(ValueError, match="accepted: an integer >= 1"):
        flow_times(steps)


def test_bad_inputs_are_named():
    images, image_masks, tokens, token_mask = inputs()
    z = recorded()
    for args, text in (
        ((images[0], image_masks, tokens, token_mask), r"\[B, V, 3, S, S\]"),
        ((images[..., :28], image_masks, tokens, token_mask), r"3, 56, 56"),
        ((images.to(torch.uint8), image_masks, tokens, token_mask), r"float tensor"),
        ((images, image_masks.float(), tokens, token_mask), "image_masks"),
        ((images, image_masks[:, :2], tokens, token_mask), "image_masks"),
        ((images, image_masks, tokens, token_mask[:, 1:]), "token_mask"),
        ((images, image_masks, tokens + 512, token_mask), "accepted: 0 to 511"),
        ((images, image_masks, tokens - 1000, token_mask), "accepted: 0 to 511"),
        ((images, image_masks, tokens.float(), token_mask), "accepted: int64"),
    ):
        with pytest.raises(ValueError, match=text):
            model().prefill(*args)
    cache = model().prefill(*inputs())
    for x, t, text in (
        (z["noise"][..., :7], 1.0, r"\[B, H, 32\]"),
        (z["noise"][:2], 1.0, "2 rows"),
        (z["noise"], torch.zeros(3, 4), r"\[3, 10\]"),
    ):
        with pytest.raises(ValueError, match=text):
            model().velocity(x, t, cache)


def test_other_horizons_than_the_configs():
    cache = model().prefill(*inputs())
    for H in (1, 23):
        assert model().velocity(torch.zeros(3, H, 32), 0.5, cache).shape == (3, H, 32)
