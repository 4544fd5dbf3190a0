"""The whole node on the exported graphs: `backend:=onnx`, and tensorrt's refusal."""

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus

from pi05_ros.policy import Policy
from pi05_ros.runtime.policy_loading import load_policy

CONFIGURE, ACTIVATE = 1, 3
ARM = (*(f"joint{i}" for i in range(1, 7)), "gripper")


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory):
    """Exporting takes longest here: the graphs are made once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def test_node_answers_from_exported_graphs(bench, messages):
    parameters = {"checkpoint": "random:tiny", "backend": "onnx", "rate_hz": 5.0, "seed": 1}
    b = bench({**parameters, "max_answer_age_s": 5.0}, factory=load_policy)
    assert b.client.change_state(CONFIGURE, timeout_s=300)  # exports the graphs
    assert b.client.change_state(ACTIVATE)
    joints = messages.joints(ARM, [0.1] * 7)
    chunk = b.chunks(2, 60.0, lambda: b.feed(joints=joints))[-1]
    assert np.isfinite(chunk.data).all()
    assert tuple(chunk.names) == ARM
    status = b.client.statuses[-1]
    assert status.backend == "onnx"
    assert "onnxruntime" in status.backend_reason
    assert b.client.until(lambda: b.client.value("inference", "backend") == "onnx")


def test_node_refuses_tensorrt_without_proof_and_says_what_to_do(bench):
    b = bench({"checkpoint": "random:tiny", "backend": "tensorrt"}, factory=load_policy)
    assert not b.client.change_state(CONFIGURE, timeout_s=120)
    assert b.client.until(lambda: bool(b.client.statuses) and b.client.statuses[-1].message)
    assert "tensorrt" in b.client.statuses[-1].message


def test_fallback_is_a_warning_in_diagnostics(bench, messages):
    parameters = {"checkpoint": "random:tiny", "backend": "tensorrt", "allow_fallback": True}
    b = bench({**parameters, "rate_hz": 5.0, "max_answer_age_s": 5.0}, factory=load_policy)
    assert b.client.change_state(CONFIGURE, timeout_s=120)
    assert b.client.change_state(ACTIVATE)
    joints = messages.joints(ARM, [0.1] * 7)
    b.chunks(1, 60.0, lambda: b.feed(joints=joints))
    seen = b.client.until(
        lambda: "fallback from tensorrt" in (b.client.value("inference", "backend_reason") or ""),
        feed=lambda: b.feed(joints=joints),
    )
    assert seen
    assert b.client.latest("inference").level == DiagnosticStatus.WARN
    assert b.client.value("inference", "backend") == "eager"


def test_fallback_is_for_tensorrt_only():
    from pi05_ros.runtime.parameters import ParameterError, PolicyParameters

    with pytest.raises(ParameterError, match="allow_fallback is for backend tensorrt"):
        load_policy(PolicyParameters(checkpoint="random:tiny", allow_fallback=True))


def test_policy_on_graphs_equals_policy_on_the_plain_model():
    from pi05_ros.policy import Observation

    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    observation = Observation({"base": picture}, np.zeros(7), "pick up the block")
    policies = [Policy.load("random:tiny", backend=name) for name in ("onnx", "eager")]
    found, expected = (policy.infer(observation, seed=3).normalized for policy in policies)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
