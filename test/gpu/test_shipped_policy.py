"""The shipped small policy on the cuda backend: sizes that are no powers of two."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity

from pi05_ros.backends import Precision
from pi05_ros.backends.eager import EagerEngine
from pi05_ros.model import load_checkpoint
from pi05_ros.sim.training.shipped import CHECKPOINT, CONFIG

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9),
    reason="needs a CUDA device with FP8",
)


def example(generator, views=2, prompt=30):
    images = torch.randint(
        0, 256, (views, 128, 128, 3), generator=generator, dtype=torch.uint8, device="cuda"
    )
    tokens = torch.randint(0, CONFIG.vocab, (prompt,), generator=generator, device="cuda")
    noise = torch.randn(CONFIG.horizon, 32, generator=generator, device="cuda")
    return images, tokens, noise


@pytest.fixture(scope="module")
def model():
    return load_checkpoint(CHECKPOINT, CONFIG, device="cuda")


@pytest.mark.parametrize(
    ("precision", "least"),
    [(Precision("bf16", "bf16", "bf16"), 0.9999), (Precision("bf16", "fp8", "fp8"), 0.999)],
    ids=["bf16", "fp8"],
)
def test_actions_are_those_of_the_plain_model(model, precision, least):
    from pi05_ros.backends.cuda import create

    generator = torch.Generator(device="cuda").manual_seed(0)
    engine = create(model, precision, horizon=CONFIG.horizon, max_prompt_tokens=48)
    for _ in range(3):  # these set the activation scales
        engine.sample(*example(generator))
    images, tokens, noise = example(generator)
    actions = engine.sample(images, tokens, noise)
    expected = EagerEngine(model).sample(images, tokens, noise)
    again = engine.denoise(engine.prefill(images, tokens), noise)
    cosine = cosine_similarity(actions.double().flatten(), expected.double().flatten(), dim=0)
    print(f"cosine {float(cosine):.6f}")
    assert cosine >= least
    assert torch.equal(again, actions)
    engine.close()
