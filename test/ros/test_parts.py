"""The small parts: pacing, steps past, worker, domain id, output checks, edge log."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus

from pi05_ros.backends.engine import EngineHealth, Precision
from pi05_ros.ros.diagnostics import Context, Diagnostics
from pi05_ros.ros.messages import float_array, steps_past
from pi05_ros.ros.processes.domain import free_domain_id
from pi05_ros.runtime import pacing
from pi05_ros.runtime.edge_log import EdgeLog
from pi05_ros.runtime.inference import BadChunkError, check
from pi05_ros.runtime.inputs.observation_buffer import Inputs
from pi05_ros.runtime.inputs.sources import limits
from pi05_ros.runtime.parameters import PolicyParameters
from pi05_ros.runtime.statistics import Statistics
from pi05_ros.runtime.worker import Worker


def test_a_tick_is_lost_only_while_the_one_before_waits():
    pacer = pacing.Pacer()
    pacer.tick(0)
    pacer.tick(10)
    assert (pacer.due_since, pacer.skipped) == (0, 1)
    pacer.started()
    pacer.tick(20)
    assert (pacer.due_since, pacer.skipped) == (20, 1)


def test_start_waits_for_frames_up_to_the_limit():
    pacer = pacing.Pacer()
    assert not pacer.may_start(0, 0, complete=True)
    pacer.tick(100)
    assert pacer.may_start(101, 50, complete=True)
    assert not pacer.may_start(101, 50, complete=False)
    assert pacer.may_start(150, 50, complete=False)


def test_wait_never_exceeds_half_a_period():
    assert pacing.wait_ns(0.04, 10.0) == 40_000_000
    assert pacing.wait_ns(0.04, 50.0) == 10_000_000


@pytest.mark.parametrize(
    ("age_ms", "expected"), [(-5, 0), (0, 0), (1, 1), (50, 1), (51, 2), (10_000, 4)]
)
def test_steps_past(age_ms, expected):
    assert steps_past(age_ms * 1_000_000, 0.05, 4) == expected


def test_diagnostics_show_what_the_engine_found():
    def inference(health, backend_reason=""):
        info = SimpleNamespace(
            robot="arm", backend="cuda", backend_reason=backend_reason, device="cuda:0",
            precision=Precision("fp8", "fp8", "fp8"), assumptions=(), doubts=(),
        )  # fmt: skip
        context = Context(
            node="/policy", active=True, state="", parameters=PolicyParameters(), info=info,
            health=health,
        )  # fmt: skip
        inputs = Inputs((), limits(PolicyParameters(), ()))
        return Diagnostics().build(context, inputs, Statistics(), 0, 1).status[1]

    found = EngineHealth({"fp8_saturated_calls": "3"}, "FP8 saturation in 1 of the last 10")
    status = inference(found)
    assert status.level == DiagnosticStatus.WARN
    assert status.message.startswith("FP8 saturation")
    assert ("fp8_saturated_calls", "3") in [(pair.key, pair.value) for pair in status.values]
    assert inference(EngineHealth({"fp8_saturated_calls": "0"})).level == DiagnosticStatus.OK


def test_float_array_is_row_major():
    values = np.arange(6, dtype=np.float64).reshape(3, 2).T
    assert list(float_array(values)) == [0, 2, 4, 1, 3, 5]


def test_worker_takes_one_job_and_reports_when_it_is_free():
    idle = threading.Event()
    worker = Worker(idle.set)
    gate = threading.Event()
    first = worker.submit(gate.wait)
    assert first is not None
    assert worker.submit(lambda: None) is None
    assert not worker.wait_idle(0.01)
    gate.set()
    assert worker.wait_idle(60)
    assert idle.wait(60)
    failing = worker.submit(lambda: 1 / 0)
    assert failing.done.wait(60)
    assert isinstance(failing.error, ZeroDivisionError)
    assert worker.wait_idle(60)
    assert worker.stop(60)
    assert worker.submit(lambda: None) is None


def test_domain_id_is_in_range_and_avoids_used_ports():
    import socket

    first = free_domain_id()
    assert 1 <= first <= 100
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("", 7400 + 250 * first))
        assert all(free_domain_id() != first for _ in range(50))


def chunk(actions):
    return SimpleNamespace(actions=np.asarray(actions), names=("a", "b"))


@pytest.mark.parametrize(
    "actions",
    [[[1, np.nan]], [[np.inf, 1]], [[1, 2, 3]], [1, 2], np.zeros((0, 2))],
)
def test_unusable_chunk_is_refused(actions):
    with pytest.raises(BadChunkError):
        check(chunk(actions))


def test_usable_chunk_passes():
    check(chunk([[1, 2], [3, 4]]))


def test_edge_log_speaks_on_changes_only():
    lines = []
    logger = SimpleNamespace(warning=lines.append, info=lines.append)
    log = EdgeLog(logger, min_interval_s=0.0, settle_s=0.0)
    for code in ("", "stale", "stale", "dead", "", ""):
        log.report("cam", code, code)
    assert lines == ["cam: stale", "cam: dead", "cam: fine again"]


def test_edge_log_names_two_alternating_problems_once_each():
    lines = []
    logger = SimpleNamespace(warning=lines.append, info=lines.append)
    log = EdgeLog(logger, min_interval_s=0.0, settle_s=0.0)
    for code in [*("encoding", "stale") * 5, "", "stale"]:
        log.report("cam", code, code)
    assert lines == ["cam: encoding", "cam: stale", "cam: fine again", "cam: stale"]


def test_edge_log_names_a_problem_that_comes_and_goes_once(monkeypatch):
    lines, now = [], [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    logger = SimpleNamespace(warning=lines.append, info=lines.append)
    log = EdgeLog(logger)
    for _ in range(20):  # an inference slower than its rate: a lost tick, a chunk, ...
        for code in ("busy", "", ""):
            now[0] += 1.1
            log.report("inference", code, code)
    assert lines == ["inference: busy"]
    for _ in range(5):
        now[0] += 1.1
        log.report("inference", "")
    assert lines == ["inference: busy", "inference: fine again"]
