"""The policy node, which first times its policy's call alone, in its own process and thread.

    python -m pi05_ros.ros.processes.timed_policy_node --direct-out FILE --sizes 640x480 \
        --rates 10,30 --seconds 2 --ros-args ...

What the node costs is then the difference between a call under load and this one. With isolation
`process` both go to the engine's process and back. FILE gets {"info": ..., "seconds": all took,
"calls": {"640x480": {"0": [ms, ...], "10": [ms, ...]}}}; rate 0 is call after call.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pi05_ros.phases import phase
from pi05_ros.policy.interface import ActionChunk, Observation
from pi05_ros.ros import process
from pi05_ros.ros.policy_node import PolicyNode
from pi05_ros.runtime.inference import PolicyLike
from pi05_ros.runtime.large_buffers import return_large_buffers
from pi05_ros.runtime.parameters import PolicyParameters
from pi05_ros.runtime.policy_loading import host_policy

IMAGES = 8
WARM_CALLS = 12
FEWEST_CALLS = 5


class PretendedPolicy:
    """A policy whose inferences after the first take a time without computing, as on a GPU.

    Each half of an inference takes half of the time.

    Args:
        policy: makes the chunk that is given again and again.
        seconds: of one inference.

    """

    def __init__(self, policy: PolicyLike, seconds: float) -> None:
        self.info, self.robot = policy.info, policy.robot
        self.warm_up, self.close = policy.warm_up, policy.close
        self._policy = policy
        self._seconds = seconds
        self._chunk: ActionChunk | None = None

    def infer(
        self, obs: Observation, *, seed: int | None = None, denoise_steps: int | None = None
    ) -> ActionChunk:
        """Sleep, and give the chunk of the first observation."""
        return self.denoise(self.prefill(obs, seed=seed, denoise_steps=denoise_steps))

    def prefill(
        self, obs: Observation, *, seed: int | None = None, denoise_steps: int | None = None
    ) -> ActionChunk:
        """Sleep for the first half."""
        if self._chunk is None:
            self._chunk = self._policy.infer(obs, seed=seed, denoise_steps=denoise_steps)
        time.sleep(self._seconds / 2)
        return self._chunk

    def denoise(self, prefilled: ActionChunk) -> ActionChunk:
        """Sleep for the second half; the next first half may run meanwhile."""
        time.sleep(self._seconds / 2)
        return prefilled


def time_calls(
    policy: PolicyLike, observations: Sequence[Observation], rate_hz: float, seconds: float
) -> list[float]:
    """Durations of `infer` in ms, at a rate or (0) one after the other, for about ``seconds``."""
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < FEWEST_CALLS or time.perf_counter() - start < seconds:
        if rate_hz:
            time.sleep(max(0.0, start + len(times) / rate_hz - time.perf_counter()))
        began = time.perf_counter()
        policy.infer(observations[len(times) % len(observations)], seed=len(times))
        times.append(1e3 * (time.perf_counter() - began))
    return times


def make_observations(
    policy: PolicyLike, roles: Sequence[str], size: tuple[int, int], prompt: str
) -> list[Observation]:
    """Random images uint8 ``[height, width, 3]`` of the cameras, and states near rest."""
    rng, (width, height) = np.random.default_rng(0), size
    return [
        Observation(
            {role: rng.integers(0, 256, (height, width, 3), np.uint8) for role in roles},
            rng.uniform(0.0, 0.5, len(policy.robot.state_names)),
            prompt,
        )
        for _ in range(IMAGES)
    ]


def time_policy(
    policy: PolicyLike,
    parameters: PolicyParameters,
    sizes: Sequence[tuple[int, int]],
    rates_hz: Sequence[float],
    seconds: float,
) -> dict[str, object]:
    """Times of all sizes and rates, and who was timed."""
    roles = parameters.camera_roles or policy.robot.camera_roles
    prompt = parameters.prompt or policy.robot.default_prompt or "measure"
    made = {size: make_observations(policy, roles, size, prompt) for size in sizes}
    for observations in made.values():  # kernels, graphs and scales for every image size
        for index in range(WARM_CALLS):
            policy.infer(observations[index % IMAGES], seed=index)
    info = policy.info
    return {
        "info": {
            "backend": info.backend,
            "device": str(info.device),
            "precision": [info.precision.vision, info.precision.prefill, info.precision.denoise],
        },
        "calls": {
            f"{size[0]}x{size[1]}": {
                f"{rate:g}": time_calls(policy, observations, rate, seconds)
                for rate in (0.0, *rates_hz)
            }
            for size, observations in made.items()
        },
    }


def main() -> int:
    """Run the node; its configure takes as much longer as the times take."""
    parser = argparse.ArgumentParser(prog="timed_policy_node")
    parser.add_argument("--direct-out", type=Path, required=True)
    parser.add_argument("--sizes", required=True, help="WxH, separated by commas")
    parser.add_argument("--rates", required=True, help="Hz, separated by commas")
    parser.add_argument("--seconds", type=float, default=2.0, help="per size and rate")
    parser.add_argument("--pretend-ms", type=float, default=0.0, help="of each inference")
    args, ros = parser.parse_known_args()
    sizes = [
        (int(width), int(height))
        for width, height in (word.split("x") for word in args.sizes.split(","))
    ]
    rates = [float(word) for word in args.rates.split(",")]

    def load_and_time(parameters: PolicyParameters) -> PolicyLike:
        policy = host_policy(parameters)
        with phase("warm-up"):
            policy.warm_up()
        if args.pretend_ms:
            policy = PretendedPolicy(policy, args.pretend_ms / 1e3)
        began = time.monotonic()
        found = time_policy(policy, parameters, sizes, rates, args.seconds)
        found["seconds"] = time.monotonic() - began
        args.direct_out.write_text(json.dumps(found) + "\n", encoding="utf-8")
        return policy

    return_large_buffers()
    return process.run(lambda stop: PolicyNode(policy_factory=load_and_time, stop=stop), ros)


if __name__ == "__main__":
    sys.exit(main())
