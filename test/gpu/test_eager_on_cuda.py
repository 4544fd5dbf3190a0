"""The eager engine and the policy on a CUDA device give what they give on the CPU."""

import numpy as np
import pytest
import torch

from pi05_ros.backends import create_engine
from pi05_ros.backends.resize import resize_with_pad_pillow, resize_with_pad_torch
from pi05_ros.model import Pi05, Pi05Config
from pi05_ros.policy import Observation, Policy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SIZES = [
    (480, 640), (720, 1280), (224, 224), (225, 223), (37, 1000), (1000, 37), (640, 480),
    (1280, 720), (222, 222), (226, 226), (100, 120), (1, 1), (1, 300), (300, 1), (1080, 1920),
]  # fmt: skip


@pytest.mark.parametrize("shape", SIZES)
def test_resize_on_the_gpu_is_within_one_level_of_pillow(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    ours = resize_with_pad_torch(torch.from_numpy(image).cuda(), 224).cpu()
    theirs = torch.from_numpy(resize_with_pad_pillow(image, 224))
    assert (ours.int() - theirs.int()).abs().max() <= 1
    assert torch.equal(ours, resize_with_pad_torch(torch.from_numpy(image), 224))


def test_engine_equals_the_cpu():
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    config = Pi05Config.preset("tiny")
    pictures = [torch.randint(0, 256, (48, 64, 3), dtype=torch.uint8) for _ in range(2)]
    tokens = torch.randint(3, config.vocab, (20,))
    noise = torch.randn(10, 32)
    here = create_engine(Pi05.random(config, 0), "eager").sample(pictures, tokens, noise)
    there = create_engine(Pi05.random(config, 0, device="cuda"), "eager")
    answer = there.sample(pictures, tokens, noise)
    assert answer.device.type == "cuda"
    torch.testing.assert_close(answer.cpu(), here, rtol=0, atol=1e-4)
    assert there.timings.denoise_ms > 0


def test_policy_on_cuda():
    images = {"base": np.full((480, 640, 3), 99, np.uint8)}
    observation = Observation(images, np.zeros(7))
    options = {"backend": "eager", "precision": "fp32"}
    gpu = Policy.load("random:tiny", device="cuda", **options)
    cpu = Policy.load("random:tiny", device="cpu", **options)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    one, other = (p.infer(observation, seed=3) for p in (gpu, cpu))
    np.testing.assert_allclose(one.actions, other.actions, atol=1e-3)
    np.testing.assert_array_equal(one.actions, gpu.infer(observation, seed=3).actions)
