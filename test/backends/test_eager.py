"""The eager engine equals the plain model, takes every kind of image, and refuses the rest."""

import math

import numpy as np
import pytest
import torch

from pi05_ros.backends import BackendError, Precision, create_engine, parse_precision
from pi05_ros.backends.eager import EagerEngine
from pi05_ros.backends.engine import Guidance
from pi05_ros.backends.resize import resize_with_pad_pillow, to_model_range
from pi05_ros.model import Pi05, Pi05Config, flow_sample
from pi05_ros.model.guidance import guided, sample_frozen

CONFIG = Pi05Config.preset("tiny")
SIZE = CONFIG.vision.image_size


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return Pi05.random(CONFIG, seed=0)


@pytest.fixture(scope="module")
def engine(model):
    return create_engine(model, "eager")


def inputs(views=2, prompt=9, horizon=10, seed=0):
    g = torch.Generator().manual_seed(seed)
    images = torch.rand(views, 3, SIZE, SIZE, generator=g) * 2 - 1
    tokens = torch.randint(3, CONFIG.vocab, (prompt,), generator=g)
    return images, tokens, torch.randn(horizon, CONFIG.action_dim, generator=g)


@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("horizon", [1, 10, 17])
def test_equals_the_model_with_masked_cameras_and_padding(model, engine, views, horizon):
    images, tokens, noise = inputs(views, horizon=horizon)
    padded = torch.cat([images, images.new_full((1, 3, SIZE, SIZE), -1.0)])[None]
    masks = torch.tensor([[True] * views + [False]])
    ids = torch.cat([tokens, torch.zeros(4, dtype=torch.int64)])[None]
    valid = torch.tensor([[True] * len(tokens) + [False] * 4])
    expected = model.sample(padded, masks, ids, valid, noise[None], steps=4)[0]
    actual = engine.sample(images, tokens, noise, 4)
    assert actual.shape == (horizon, CONFIG.action_dim)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_stages_chain_to_sample(engine):
    images, tokens, noise = inputs()
    whole = engine.sample(images, tokens, noise, 3)
    cache = engine.prefill(images, tokens)
    torch.testing.assert_close(engine.denoise(cache, noise, steps=3), whole, rtol=0, atol=0)
    torch.testing.assert_close(engine.denoise(cache, noise, steps=3), whole, rtol=0, atol=0)


def test_pictures_of_any_size_go_through_the_same_resize(engine):
    rng = np.random.default_rng(0)
    raw = [rng.integers(0, 256, s, dtype=np.uint8) for s in ((48, 64, 3), (70, 30, 3))]
    _, tokens, noise = inputs()
    floats = torch.stack(
        [to_model_range(torch.from_numpy(resize_with_pad_pillow(r, SIZE))) for r in raw]
    )
    expected = engine.sample(floats, tokens, noise, 2)
    mixed = [torch.from_numpy(r) for r in raw]
    torch.testing.assert_close(engine.sample(mixed, tokens, noise, 2), expected)
    torch.testing.assert_close(engine.sample([m[None] for m in mixed], tokens, noise, 2), expected)
    torch.testing.assert_close(engine.sample([mixed[0], floats[1]], tokens, noise, 2), expected)


def test_batched_uint8_pictures(engine):
    pictures = torch.randint(0, 256, (2, 40, 50, 3), dtype=torch.uint8)
    _, tokens, noise = inputs()
    torch.testing.assert_close(
        engine.sample(pictures, tokens, noise, 1), engine.sample(list(pictures), tokens, noise, 1)
    )


def test_no_camera_at_all_still_runs(engine):
    _, tokens, noise = inputs()
    assert torch.isfinite(engine.sample([], tokens, noise, 1)).all()


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(SIZE, SIZE, 4, dtype=torch.uint8),
        torch.zeros(3, SIZE, SIZE, dtype=torch.uint8),
        torch.zeros(3, SIZE + 1, SIZE),
        torch.zeros(SIZE, SIZE, 3),
        torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8),
    ],
)
def test_wrong_pictures(engine, image):
    _, tokens, noise = inputs()
    with pytest.raises(BackendError, match="accepted: uint8"):
        engine.sample([image], tokens, noise, 1)


def test_timings_are_told_apart(engine):
    images, tokens, noise = inputs()
    engine.sample(images, tokens, noise, 2)
    t = engine.timings
    assert all(v > 0 for v in (t.vision_ms, t.prefill_ms, t.denoise_ms))
    assert t.model_ms == pytest.approx(t.vision_ms + t.prefill_ms + t.denoise_ms)
    engine.prefill(images, tokens)
    assert math.isnan(engine.timings.denoise_ms)


def test_auto_precision_is_the_models(model, engine):
    assert engine.precision == Precision("fp32", "fp32", "fp32")
    half = create_engine(Pi05.random(CONFIG, 0, torch.bfloat16), "eager")
    assert half.precision == Precision("bf16", "bf16", "bf16")


@pytest.mark.parametrize("stages", ["bf16", "vision", "prefill", "denoise"])
def test_stages_at_other_precisions(model, engine, stages):
    wanted = stages if stages == "bf16" else {stages: "bf16"}
    mixed = create_engine(model, "eager", wanted)
    images, tokens, noise = inputs()
    near = mixed.sample(images, tokens, noise, 2)
    exact = engine.sample(images, tokens, noise, 2)
    assert 0 < (near - exact).abs().max() < 0.2
    assert next(model.vlm.layers[0].self_attn.q_proj.parameters()).dtype == torch.float32


def test_all_bf16_equals_a_bf16_model(model):
    images, tokens, noise = inputs()
    one = create_engine(model, "eager", "bf16").sample(images, tokens, noise, 2)
    other = create_engine(Pi05.random(CONFIG, 0, torch.bfloat16), "eager")
    torch.testing.assert_close(one, other.sample(images, tokens, noise, 2), rtol=0, atol=0)


@pytest.mark.parametrize("word", ["fp16", "fp8"])
def test_precisions_that_eager_does_not_have(model, word):
    with pytest.raises(BackendError, match=f"no precision '{word}' for vision.*auto, fp32, bf16"):
        create_engine(model, "eager", word)


@pytest.mark.parametrize(
    ("precision", "words"),
    [({"vison": "fp32"}, "'vison'; accepted: vision"), ("int4", "'int4'"), ({"vision": 3}, "3")],
)
def test_wrong_precisions(precision, words):
    with pytest.raises(BackendError, match=words):
        parse_precision(precision)


def test_auto_says_why(model):
    engine = create_engine(model, "auto")
    assert engine.backend == "eager"
    assert "CUDA" in engine.reason or "cuda" in engine.reason


def test_unknown_backend_lists_the_known():
    with pytest.raises(BackendError, match="accepted: auto, eager, cuda, onnx, tensorrt"):
        create_engine(Pi05.random(CONFIG, 0), "eagre")


def test_unknown_option(model):
    with pytest.raises(BackendError, match="no option 'graphs'"):
        create_engine(model, "eager", graphs=True)


def test_close_frees_the_weights(model):
    engine = create_engine(model, "eager")
    engine.close()
    assert not hasattr(engine, "model")


def test_guided_and_frozen_chunks_are_those_of_the_samplers(model):
    """`denoise` with guidance or frozen actions is `guided` and `sample_frozen`."""
    images, tokens, noise = inputs()
    engine = EagerEngine(model)
    cache = engine.prefill(images, tokens)
    target = torch.randn(noise.shape, generator=torch.Generator().manual_seed(3))
    weights = torch.linspace(1, 0, len(noise))

    def velocity(x, t):
        return model.velocity(x, t, cache)

    for correction in ("identity", "vjp"):
        with torch.no_grad():
            want = flow_sample(guided(velocity, target, weights, correction, 5.0), noise[None], 3)
        got = engine.denoise(
            cache, noise, steps=3, guidance=Guidance(target, weights, correction, 5.0)
        )
        torch.testing.assert_close(got, want[0], atol=1e-6, rtol=0)
    frozen = engine.denoise(cache, noise, steps=3, frozen=target[:2])
    assert torch.equal(frozen[:2], target[:2])
    with torch.no_grad():
        want = sample_frozen(velocity, noise[None], target, 2, 3)
    torch.testing.assert_close(frozen, want[0], atol=1e-6, rtol=0)
    with pytest.raises(BackendError, match="not both"):
        engine.denoise(
            cache, noise, steps=3, guidance=Guidance(target, weights), frozen=target[:2]
        )


@pytest.mark.parametrize(
    ("continued", "words"),
    [
        ({"frozen": torch.zeros(11, 32)}, r"\[11, 32\]; accepted: \[0 to 10, 32\]"),
        ({"frozen": torch.zeros(3, 1)}, r"\[3, 1\]; accepted"),
        (
            {"guidance": Guidance(torch.zeros(1, 32), torch.ones(10))},
            r"target \[1, 32\] and weights \[10\]; accepted: \[10, 32\] and \[10\]",
        ),
        ({"guidance": Guidance(torch.zeros(10, 32), torch.ones(1))}, r"weights \[1\]; accepted"),
        (
            {
                "guidance": Guidance(torch.zeros(10, 32), torch.ones(10)),
                "frozen": torch.zeros(3, 32),
            },
            "not both",
        ),
    ],
)
def test_what_continues_a_chunk_must_fit_it(engine, continued, words):
    images, tokens, noise = inputs()
    cache = engine.prefill(images, tokens)
    with pytest.raises(BackendError, match=words):
        engine.denoise(cache, noise, steps=1, **continued)
    assert engine.denoise(cache, noise, steps=1, frozen=torch.zeros(10, 32)).eq(0).all()


def test_a_camera_with_the_key_it_had_is_not_encoded_again(model):
    images, tokens, noise = inputs()
    engine = EagerEngine(model)
    fresh = engine.denoise(engine.prefill(images, tokens), noise, steps=2)
    engine.prefill(images, tokens, camera_keys=[1, 2])
    junk = torch.zeros_like(images)
    kept = engine.denoise(engine.prefill(junk, tokens, camera_keys=[1, 2]), noise, steps=2)
    torch.testing.assert_close(kept, fresh, atol=1e-5, rtol=0)
    engine.prefill(images[:1], tokens, camera_keys=[1])  # forgets the second camera
    other = engine.denoise(engine.prefill(junk, tokens, camera_keys=[1, 2]), noise, steps=2)
    assert not torch.allclose(other, fresh, atol=1e-3)
    with pytest.raises(BackendError, match="1 camera keys for 2 images"):
        engine.prefill(images, tokens, camera_keys=[1])


def test_mixed_activations_belong_to_denoise_alone():
    assert Precision(denoise="fp8-w8a16").denoise == "fp8-w8a16"
    with pytest.raises(ValueError, match=r"precision.vision is 'fp8-w8a16'; accepted"):
        Precision(vision="fp8-w8a16")
