"""Context of one frame under the denoising of the one before, on a CUDA device at full size."""

from __future__ import annotations

import gc
import queue
import threading

import numpy as np
import pytest
import torch

from pi05_ros.backends import Precision
from pi05_ros.backends.engine import Guidance
from pi05_ros.model import Pi05, Pi05Config

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available()
    or torch.cuda.get_device_properties(0).total_memory < 20e9
    or torch.cuda.get_device_capability() < (8, 9),
    reason="needs a CUDA device with FP8 and 20 GB",
)

PATIENCE_S = 120
HALF_OF = {"bf16": ("bf16",) * 3, "fp8": ("bf16", "fp8", "fp8")}


def example(seed, views=2, prompt=20, horizon=50):
    g = torch.Generator(device="cuda").manual_seed(seed)
    images = torch.randint(
        0, 256, (views, 224, 224, 3), generator=g, dtype=torch.uint8, device="cuda"
    )
    tokens = torch.randint(0, 257152, (prompt,), generator=g, device="cuda")
    return images, tokens, torch.randn(horizon, 32, generator=g, device="cuda")


def in_two_threads(prefill, denoise, count):
    """Call prefill(n) here and denoise(n, its result) in a thread, one frame apart.

    As in the policy node: the next prefill begins when a denoise has taken over the last one.
    """
    handed: queue.Queue = queue.Queue(maxsize=1)
    taken = threading.Semaphore(0)
    results, errors = [], []

    def work():
        try:
            for n in range(count):
                cache = handed.get(timeout=PATIENCE_S)
                taken.release()
                results.append(denoise(n, cache))
        except Exception as error:
            errors.append(error)
            taken.release(count)

    thread = threading.Thread(target=work)
    thread.start()
    for n in range(count):
        handed.put(prefill(n), timeout=PATIENCE_S)
        assert taken.acquire(timeout=PATIENCE_S)
    thread.join(PATIENCE_S)
    assert not errors, errors
    return results


@pytest.fixture(scope="module", params=["bf16", "fp8"])
def engine(request):
    from pi05_ros.backends.cuda import create

    model = Pi05.random_on_device(Pi05Config.preset("pi05"), 0, torch.bfloat16, "cuda")
    made = create(model, Precision(*HALF_OF[request.param]), release_model=True)
    for seed in range(3):  # these set the activation scales
        made.sample(*example(seed))
    yield made
    made.close()
    del model, made
    gc.collect()
    torch.cuda.empty_cache()


@pytest.mark.parametrize("steps", [1, 10])
def test_two_threads_give_what_the_merged_graph_gives(engine, steps):
    from pi05_ros.backends.create import overlapped

    shapes = [(2, 20), (3, 150), (1, 33)]
    cases = [example(40 + n, *shapes[n // 4 % 3]) for n in range(24)]
    expected = [engine.sample(*case, steps) for case in cases]
    pipeline = overlapped(engine)
    for _ in range(2):  # the first time around captures the graphs
        got = in_two_threads(
            lambda n: pipeline.prefill(*cases[n][:2]),
            lambda n, cache: pipeline.denoise(cache, cases[n][2], steps=steps),
            len(cases),
        )
        for n, (actions, want) in enumerate(zip(got, expected, strict=True)):
            assert torch.equal(actions, want), f"frame {n}"


def test_submitted_frames_give_what_the_merged_graph_gives(engine):
    from pi05_ros.backends.cuda.pipeline import Pipeline

    cases = [example(70 + n) for n in range(100)]
    expected = [engine.sample(*case) for case in cases]
    pipeline = Pipeline(engine)
    pending = [pipeline.submit(*case) for case in cases]
    for future, want in zip(pending, expected, strict=True):
        assert torch.equal(future.result(), want)


def test_a_kept_cache_stays_whole_under_the_next_prefill(engine):
    from pi05_ros.backends.cuda.pipeline import Pipeline

    cases = [example(200 + n) for n in range(4)]
    noises = [example(300 + n)[2] for n in range(12)]
    # Each cache serves three frames.
    expected = [
        engine.denoise(engine.prefill(*cases[n // 3][:2]), noise) for n, noise in enumerate(noises)
    ]
    pipeline = Pipeline(engine)
    kept = {}

    def prefill(n):
        if n // 3 not in kept:
            kept[n // 3] = pipeline.prefill(*cases[n // 3][:2])
        return kept[n // 3]

    got = in_two_threads(prefill, lambda n, cache: pipeline.denoise(cache, noises[n]), len(noises))
    for n, (actions, want) in enumerate(zip(got, expected, strict=True)):
        assert torch.equal(actions, want), f"frame {n}"


def test_continued_chunks_are_the_same(engine):
    from pi05_ros.backends.cuda.pipeline import Pipeline

    cases = [example(400 + n) for n in range(6)]
    weights = torch.linspace(1, 0, 50)

    def steering(n, before):
        if before is None:
            return {}
        rest = torch.zeros(50, 32)
        rest[:-5] = before.cpu()[5:]
        return {"frozen": rest[:4]} if n % 2 else {"guidance": Guidance(rest, weights)}

    expected: list = []
    for n, (images, tokens, noise) in enumerate(cases):
        before = expected[-1] if expected else None
        cache = engine.prefill(images, tokens)
        expected.append(engine.denoise(cache, noise, **steering(n, before)))
    pipeline = Pipeline(engine)
    last: list = [None]

    def denoise(n, cache):
        last[0] = pipeline.denoise(cache, cases[n][2], **steering(n, last[0]))
        return last[0]

    got = in_two_threads(lambda n: pipeline.prefill(*cases[n][:2]), denoise, len(cases))
    for n, (actions, want) in enumerate(zip(got, expected, strict=True)):
        assert torch.equal(actions, want), f"frame {n}"


def test_the_policy_on_first_run_scales_and_after_them():
    from pi05_ros.policy import Observation, Policy

    policy = Policy.load("random:pi05", device="cuda", backend="cuda")
    try:
        policy.allow_overlap()
        policy.warm_up()
        assert policy.engine.engine.scales.first_runs == 2  # both slots, counted once
        rng = np.random.default_rng(0)
        frames = [
            Observation(
                {
                    role: rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
                    for role in policy.robot.camera_roles
                },
                rng.uniform(-1, 1, len(policy.robot.state_names)),
                "pick up the red block",
            )
            for _ in range(8)
        ]

        def run():
            return in_two_threads(
                lambda n: policy.prefill(frames[n], seed=n),
                lambda n, half: policy.denoise(half),
                len(frames),
            )

        first = run()
        assert all(np.isfinite(chunk.normalized).all() for chunk in first)
        assert policy.engine.engine.scales.first_runs == 0
        alone = [policy.infer(frame, seed=n) for n, frame in enumerate(frames)]
        for chunk, want in zip(run(), alone, strict=True):
            assert np.array_equal(chunk.actions, want.actions)
            assert chunk.timings.denoise_ms > 0
    finally:
        policy.close()
