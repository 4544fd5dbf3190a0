"""Real-time chunking against the recorded reference and by its own promises."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pi05_ros.model import Pi05Config, flow_sample, load_checkpoint
from pi05_ros.model.guidance import guidance_gain, guided, sample_frozen
from pi05_ros.policy.chunking.continuation import DelayEstimator, continuation
from pi05_ros.policy.chunking.rtc import SCHEDULES, guidance_weights
from pi05_ros.policy.transforms.normalize import Normalizer

CLOCK = "exact"  # LeRobot's, which the recorded samples were made with
DATA = Path(__file__).parents[1] / "data" / "openpi_tiny"


@pytest.fixture(scope="module")
def reference():
    meta = json.loads((DATA / "tiny.meta.json").read_text())
    arrays = np.load(DATA / "tiny.npz")
    model = load_checkpoint(DATA / "tiny.safetensors", Pi05Config.from_dict(meta))
    images = torch.from_numpy(arrays["images"]).transpose(0, 1)
    masks = torch.from_numpy(arrays["img_masks"]).transpose(0, 1)
    kv = model.prefill(
        images.contiguous(),
        masks.contiguous(),
        torch.from_numpy(arrays["tokens"]),
        torch.from_numpy(arrays["token_mask"]),
    )
    previous = torch.zeros(3, 10, 32)
    previous[:, :8, :28] = torch.from_numpy(arrays["rtc_prev"])
    return meta["rtc"], arrays, model, kv, previous


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_weights_equal_the_reference(reference, schedule):
    meta, arrays, *_ = reference
    weights = guidance_weights(schedule, 10, meta["inference_delay"], meta["execution_horizon"])
    assert np.abs(weights.numpy() - arrays[f"rtc_w_{schedule}"]).max() <= 1e-6


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("correction", ["vjp", "identity"])
def test_guided_samples_equal_the_reference(reference, schedule, correction):
    meta, arrays, model, kv, previous = reference
    weights = guidance_weights(schedule, 10, meta["inference_delay"], meta["execution_horizon"])

    def plain(x, t):
        return model.velocity(x, t, kv)

    velocity = guided(plain, previous, weights, correction, meta["max_guidance_weight"])
    with torch.no_grad():
        actions = flow_sample(
            velocity, torch.from_numpy(arrays["noise"]), meta["num_steps"], CLOCK
        )
    assert np.abs(actions.numpy() - arrays[f"rtc_{correction}_{schedule}"]).max() <= 1e-5


def test_gain_follows_the_formula():
    times = [1 - i / 10 for i in range(10)]
    want = [10, 9.11, 4.25, 2.76, 2.17, 2.0, 2.17, 2.76, 4.25, 9.11]
    assert [guidance_gain(t) for t in times] == pytest.approx(want, abs=0.01)
    assert guidance_gain(0.0) == 10


def test_frozen_actions_come_out_unchanged_and_get_time_zero(reference):
    _, arrays, model, kv, previous = reference
    seen = []

    def velocity(x, t):
        seen.append(t)
        return model.velocity(x, t, kv)

    noise = torch.from_numpy(arrays["noise"])
    with torch.no_grad():
        actions = sample_frozen(velocity, noise, previous, 3, 4)
        free = sample_frozen(velocity, noise, previous, 0, 4, CLOCK)
        plain = flow_sample(lambda x, t: model.velocity(x, t, kv), noise, 4, CLOCK)
    assert torch.equal(actions[:, :3], previous[:, :3])
    assert not torch.allclose(actions[:, 3:], free[:, 3:], atol=1e-3)
    assert (seen[0][:, :3] == 0).all()
    assert (seen[0][:, 3:] == 1).all()
    assert torch.allclose(free, plain, atol=1e-6)
    with pytest.raises(ValueError, match="0 to 10"):
        sample_frozen(velocity, noise, previous, 11, 4)


def test_wrong_words_are_refused():
    with pytest.raises(ValueError, match="zeros, ones, linear, exp"):
        guidance_weights("cubic", 10, 2, 7)
    with pytest.raises(ValueError, match="vjp, vjp-scaled, identity"):
        guided(lambda x, t: x, torch.zeros(1), torch.zeros(1), "full")


def test_continuation_is_relative_to_the_new_state():
    output = np.arange(24, dtype=float).reshape(6, 4)
    got = continuation(
        output,
        4,
        np.array([1.0, 100.0]),
        delta_mask=(True, False),
        normalizer=Normalizer("identity"),
        columns=2,
        horizon=5,
        delay=9,
    )
    assert got.left == got.delay == 2
    assert got.previous.tolist() == [[15, 17, 0, 0], [19, 21, 0, 0], *[[0.0] * 4] * 3]


@pytest.mark.parametrize("family", ["openpi", "lerobot"])
def test_actions_that_never_varied_in_training_are_continued_as_they_were(family):
    """A range of zero makes a millionth of a unit the whole scale of a column."""
    stats = {"q01": np.array([0.5, 0.0, 100.0]), "q99": np.array([0.5, 2.0, 100.0])}
    output = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    got = continuation(
        output,
        1,
        np.array([0.3, 0.5, 7.0]),
        delta_mask=(True, True, False),
        normalizer=Normalizer("quantile", stats, family),
        columns=3,
        horizon=6,
        delay=1,
    )
    assert np.array_equal(got.previous[:5, [0, 2]], output[1:, [0, 2]])
    assert got.previous[:5, 1] == pytest.approx(output[1:, 1] - 0.5, abs=1e-5)


def test_delay_is_the_longest_recent_one_in_steps():
    delay = DelayEstimator(0.05, window=3)
    assert delay.steps() == 0
    for latency in (0.12, float("nan"), 0.05, -1.0):
        delay.record(latency)
    assert delay.steps() == 3
    assert [delay.steps(age) for age in (0.01, 0.03, 0.031)] == [3, 3, 4]
    delay.record(0.05)
    delay.record(0.05)
    assert delay.steps() == 1
    assert [delay.steps(age) for age in (0.05, 0.1)] == [2, 3]


@pytest.mark.parametrize(("response", "share"), [(0.9, 1.0), (0.2, 1.0), (0.05, 0.25)])
def test_the_scaled_pull_makes_up_for_a_policy_that_is_sure_of_itself(response, share):
    """The clean estimate of this policy moves by ``response`` of what x_t moves."""
    sure = torch.randn(1, 8, 4, generator=torch.Generator().manual_seed(1))
    x, previous = torch.randn_like(sure), torch.randn_like(sure)
    weights = guidance_weights("exp", 8, 2, 6)

    def velocity(x_t, t):
        clean = sure + response * (x_t - sure)
        return (x_t - clean) / t

    def pull(correction):
        return guided(velocity, previous, weights, correction, 5.0)(x, 0.5) - velocity(x, 0.5)

    whole, paper = pull("identity"), pull("vjp")
    assert torch.allclose(paper, response * whole, atol=1e-5)
    assert torch.allclose(pull("vjp-scaled"), share * whole, atol=1e-5)


def test_the_scaled_pull_is_set_for_each_chunk_of_a_batch_and_nothing_without_error(reference):
    _, arrays, model, kv, previous = reference
    weights = guidance_weights("linear", 10, 2, 7)
    x = torch.from_numpy(arrays["noise"])
    velocity = guided(lambda x_t, t: model.velocity(x_t, t, kv), previous, weights, "vjp-scaled")
    zero = guided(lambda x_t, t: x_t, x * 0.5, torch.ones(10), "vjp-scaled")
    assert torch.isfinite(velocity(x, 0.5)).all()
    assert torch.equal(zero(x, 0.5), x)
