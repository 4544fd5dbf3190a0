"""A kernel that traps takes the engine process along and not the node."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pi05_ros.policy import Observation
from pi05_ros.policy.robots.profile_yaml import load_profile
from pi05_ros.runtime.isolation.errors import EngineFaultError, EngineLostError
from pi05_ros.runtime.isolation.isolated_policy import IsolatedPolicy, IsolationOptions
from pi05_ros.runtime.parameter_specs import to_values
from pi05_ros.runtime.parameters import PolicyParameters

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_a_kernel_that_traps_costs_the_process_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "runtime"))
    values = to_values(
        PolicyParameters.from_values({"checkpoint": "random:tiny", "device": "cuda"})
    )
    options = IsolationOptions(backoff_s=0.1)
    policy = IsolatedPolicy("engine_faults:make", values, load_profile("sim_arm"), options)

    def infer(prompt: str) -> np.ndarray:
        images = {role: np.full((48, 64, 3), 90, np.uint8) for role in policy.robot.camera_roles}
        state = np.zeros(len(policy.robot.state_names))
        return policy.infer(Observation(images, state, prompt), seed=1).actions

    try:
        before, pid = infer("pick"), policy.engine_pid
        with pytest.raises((EngineFaultError, EngineLostError), match=r"CUDA|device-side|Accel"):
            infer("trap")
        end = time.monotonic() + 300
        while (policy.engine_pid == pid or policy.problem) and time.monotonic() < end:
            time.sleep(0.05)
        assert policy.engine_pid != pid
        assert np.array_equal(infer("pick"), before)
    finally:
        policy.close()
