"""Every check finds the violation that is planted for it, and none in a good record."""

from __future__ import annotations

import array
import copy
import itertools
import math

import pytest
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from pi05_ros.msg import ActionChunk, ExecutorStatus, PolicyStatus

from pi05_ros.conformance.chunk_promises import CHUNKS
from pi05_ros.conformance.executor_promises import EXECUTOR_CHECKS
from pi05_ros.conformance.heard import NS, ExecutorRecord, Heard, Limit, PolicyRecord
from pi05_ros.conformance.policy_promises import INFERENCE_KEYS, POLICY
from pi05_ros.conformance.promises import PromiseOutcome

BEGIN_NS = 1_000 * NS
PERIOD_S = 0.2
KEYS = {**dict.fromkeys(INFERENCE_KEYS, "0"), "published": "0"}


def stamped(stamp, time_ns):
    stamp.sec, stamp.nanosec = divmod(time_ns, NS)


def chunk(number):
    taken_ns = BEGIN_NS + round(number * PERIOD_S * NS)
    message = ActionChunk(
        chunk_id=number, policy_id="p", names=["a", "b"], horizon=4, meaning=[0, 0], unit=[0, 0],
        data=array.array("f", [0.0] * 8), prompt="do it", seed=number, steps_past=1,
        input_names=["base_camera", "joint_states"],
    )  # fmt: skip
    message.step.nanosec = 50_000_000
    for stamp in (message.header.stamp, message.observation_stamp):
        stamped(stamp, taken_ns)
    stamps = [type(message.header.stamp)() for _ in range(2)]
    stamped(stamps[0], taken_ns + 10_000_000)
    stamped(stamps[1], taken_ns)
    message.input_stamps = stamps
    stamped(message.published_stamp, taken_ns + 40_000_000)
    times = message.timings
    times.inference_ms, times.model_ms, times.total_ms, times.denoise_steps = 20.0, 15.0, 30.0, 10
    times.vision_ms = times.prefill_ms = times.denoise_ms = 5.0
    return Heard(number * PERIOD_S + 0.05, taken_ns + 50_000_000, message)


def entry(at_s, message="", level=0, **values):
    status = DiagnosticStatus(level=bytes([level]), message=message)
    status.values = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    return Heard(at_s, 0, status)


def policy_record():
    status = PolicyStatus(
        state=3, policy_id="p", checkpoint_hash="random:tiny:0", random_weights=False,
        robot="r", backend="eager", precision_denoise="fp32", horizon=4, step_s=0.05,
        prompt="Do it",
    )  # fmt: skip
    status.checkpoint_hash = "sha256:00"
    other = copy.deepcopy(status)
    other.message = "something"
    record = PolicyRecord(
        "/n", {"rate_hz": 5.0}, {"/n/status": "reliable transient_local",
                                 "/n/action_chunk": "reliable volatile"}, 10.0,
        [Heard(-5.0, 0, status), Heard(-4.9, 0, other)], state="active",
    )  # fmt: skip
    record.chunks = [chunk(number) for number in range(50)]
    sources = {f"{s}.{k}": 0 for s in ("base_camera", "joint_states")
               for k in ("rate_hz", "age_ms", "received", "dropped")}  # fmt: skip
    for second in range(11):
        record.entries.setdefault("inputs", []).append(entry(float(second), "fine", **sources))
        values = {**KEYS, "published": 5 * second}
        record.entries.setdefault("inference", []).append(entry(float(second), "5 Hz", **values))
    return record


def executor_record():
    record = ExecutorRecord(
        "/e", {"control_rate_hz": 10.0}, {"/e/executor_status": "reliable transient_local"}, 20.0,
        limits={"a": Limit(-1.0, 1.0, 1.0, 5.0)},
    )  # fmt: skip
    modes = [1] * 5 + [2] * 6 + [3] * 9
    for second, mode in enumerate(modes):
        status = ExecutorStatus(
            mode=mode, reason="" if mode == 2 else "none", enabled=True, speed_scale=1.0,
            joints=["a"], commanded=[0.0], measured=[0.0],
        )  # fmt: skip
        record.statuses.append(Heard(float(second), 0, status))
        report = entry(float(second), mode=mode, reason="", refused=0)
        record.entries.setdefault("executor", []).append(report)
    at, position, track = 5.0, 0.0, []
    for index in range(150):
        speed = min(0.4, 0.04 * index, 0.04 * max(0, 40 - index))
        position += speed * 0.1
        track.append((at + 0.1 * index, {"a": min(position, 0.95)}))
    record.commands = {"/c": track}
    return record


def changed(record, index, **values):
    for name, value in values.items():
        target = record.chunks[index].message
        *path, last = name.split("__")
        for part in path:
            target = getattr(target, part)
        setattr(target, last, value)


def spoil(**values):
    return lambda record: changed(record, 7, **values)


def of_status(index=0, **values):
    def plant(record):
        for name, value in values.items():
            setattr(record.statuses[index].message, name, value)

    return plant


def commands(change):
    def plant(record):
        track = record.commands["/c"]
        record.commands["/c"] = change(track)

    return plant


def moved(index, by):
    return lambda track: [
        (at, {"a": v["a"] + (by if i == index else 0.0)}) for i, (at, v) in enumerate(track)
    ]


def late_stamp(record):
    stamped(record.chunks[7].message.published_stamp, record.chunks[7].clock_ns + NS)


def old_answer(record):
    message = record.chunks[7].message
    for stamp in (message.header.stamp, message.observation_stamp, message.input_stamps[1]):
        stamp.sec -= 3
    message.steps_past = 4


def silent_and_fine(record):
    record.chunks = record.chunks[:10]


def backwards(record):
    stamped(record.chunks[7].message.input_stamps[1], BEGIN_NS)
    stamped(record.chunks[7].message.header.stamp, BEGIN_NS)
    stamped(record.chunks[7].message.observation_stamp, BEGIN_NS)


def too_fast(record):
    for heard in record.chunks:
        for stamp in (heard.message.published_stamp,):
            stamped(stamp, BEGIN_NS + (stamp.sec * NS + stamp.nanosec - BEGIN_NS) // 2)


def undo_change(record):
    record.statuses[1] = Heard(-4.9, 0, copy.deepcopy(record.statuses[0].message))


def drop_reports(record):
    del record.entries["inputs"][3:8]


def drop_inference(record):
    del record.entries["inference"]


def all_stale(record):
    for item in record.entries["inputs"]:
        item.message.level = b"\x03"


def no_keys(record):
    for item in record.entries["inference"]:
        item.message.values = []


def stuck_counter(record):
    for item in record.entries["inference"]:
        next(v for v in item.message.values if v.key == "published").value = "3"


def no_reports(record):
    del record.entries["executor"][3:15]


def only_random(record):
    record.only_random_chunks = True


def slow(track):
    return [item for i, item in enumerate(track) if i % 4 == 0]


def qos(topic):
    def plant(record):
        record.qos[topic] = "best_effort volatile"

    return plant


PLANTED = {
    "chunk sizes": [spoil(horizon=5), spoil(names=["a", "a"]), spoil(unit=[0]),
                    spoil(data=array.array("f", [math.nan] * 8)), spoil(meaning=[9, 0])],
    "chunk numbers": [spoil(chunk_id=6), spoil(chunk_id=2)],
    "chunk stamp": [spoil(header__stamp__nanosec=1), spoil(observation_stamp__sec=5)],
    "chunk inputs": [spoil(input_names=["base_camera"]), spoil(input_names=["x", "joint_states"])],
    "steps past": [spoil(steps_past=2), spoil(steps_past=0)],
    "answer age": [old_answer],
    "skew": [old_answer],
    "new samples": [lambda r: setattr(r.chunks[7].message, "input_stamps",
                                      r.chunks[6].message.input_stamps)],
    "chunk order": [backwards],
    "seeds": [spoil(seed=6)],
    "time of publication": [late_stamp],
    "timings": [spoil(timings__vision_ms=50.0), spoil(timings__model_ms=29.0),
                spoil(timings__total_ms=1.0), spoil(timings__denoise_steps=0)],
    "frame": [spoil(header__frame_id="tool0")],
    "only while active": [spoil(policy_id="q")],
    "chunk as status": [spoil(random_weights=True), spoil(step__nanosec=20_000_000),
                        lambda r: setattr(r.statuses[1].message, "horizon", 9)],
    "prompt in use": [spoil(prompt="something else")],
    "rate": [too_fast],
    "status is latched": [qos("/n/status"), lambda r: r.statuses.clear()],
    "chunks are reliable": [qos("/n/action_chunk")],
    "status state": [lambda r: setattr(r, "state", "inactive")],
    "policy_id of a status": [of_status(policy_id=""), of_status(state=2)],
    "hash of the weights": [of_status(checkpoint_hash=""), of_status(random_weights=True),
                            of_status(backend="")],
    "status on each change": [undo_change],
    "diagnostics at 1 Hz": [drop_reports, lambda r: r.entries["inputs"].clear()],
    "two entries": [drop_inference],
    "stale entries": [all_stale],
    "keys of diagnostics": [no_keys],
    "diagnostics say why": [silent_and_fine],
    "published is counted": [stuck_counter],
    "executor status is latched": [qos("/e/executor_status"), lambda r: r.statuses.clear()],
    "executor status once per second": [lambda r: r.statuses.__delitem__(slice(3, 8))],
    "reason": [of_status(7, reason="x"), of_status(2, reason="")],
    "stops keep it from following": [
        lambda r: [of_status(i, halted=True)(r) for i in range(6, 10)],
        lambda r: [of_status(i, fault="x")(r) for i in range(6, 10)],
        of_status(15, mode=5)],
    "intervention": [lambda r: [of_status(i, mode=6)(r) for i in (7, 8)]],
    "numbers of a status": [of_status(7, speed_scale=1.5), of_status(7, commanded=[0.0, 1.0]),
                            of_status(7, measured=[math.inf])],
    "executor diagnostics": [no_reports, lambda r: setattr(
        r.entries["executor"][4].message, "values", [])],
    "finite commands": [commands(moved(60, 0.5)), commands(moved(60, math.nan))],
    "velocity limits": [commands(moved(60, -0.2))],
    "acceleration limits": [commands(moved(60, 0.08))],
    "waiting commands nothing": [lambda r: r.commands["/c"].insert(0, (2.0, {"a": 0.0}))],
    "holding is at rest": [commands(moved(130, 0.02))],
    "random weights move nothing": [only_random],
    "control rate": [commands(slow)],
}  # fmt: skip
CASES = [(name, index) for name, plants in PLANTED.items() for index in range(len(plants))]


def outcomes(record):
    if isinstance(record, PolicyRecord):
        found = CHUNKS.judge("/n", record) + POLICY.judge("/n", record)
    else:
        found = EXECUTOR_CHECKS.judge("/e", record)
    return {item.promise.name: item.verdict for item in found}


def test_a_good_record_has_no_violation():
    for record in (policy_record(), executor_record()):
        for name, verdict in outcomes(record).items():
            unseen = name == "random weights move nothing"
            due = PromiseOutcome.NONE if unseen else PromiseOutcome.PASS
            assert verdict.outcome is due, f"{name}: {verdict}"


def test_every_check_has_a_planted_violation():
    promises = itertools.chain(CHUNKS.promises, POLICY.promises, EXECUTOR_CHECKS.promises)
    names = [promise.name for promise in promises]
    assert set(names) == set(PLANTED)
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("name", "index"), CASES)
def test_a_planted_violation_is_found(name, index):
    executors = {promise.name for promise in EXECUTOR_CHECKS.promises}
    record = executor_record() if name in executors else policy_record()
    PLANTED[name][index](record)
    assert outcomes(record)[name].outcome is PromiseOutcome.FAIL, outcomes(record)[name]


def test_nothing_heard_is_no_pass():
    found = outcomes(PolicyRecord("/n", seconds=10.0))
    assert not any(v.outcome is PromiseOutcome.PASS for v in found.values()), found
    found = outcomes(ExecutorRecord("/e", seconds=10.0))
    assert not any(v.outcome is PromiseOutcome.PASS for v in found.values()), found


def test_limits_are_those_that_a_user_reads(tmp_path):
    from pi05_ros.conformance.limits_from_docs import read_limits

    path = tmp_path / "limits.yaml"
    path.write_text(
        "joint_limits:\n  a: {min_position: -1, max_position: 0, max_velocity: 2, "
        "has_acceleration_limits: false, max_acceleration: 3}\n  b: {max_velocity: 0}\n"
    )
    found = read_limits({"limits_file": str(path)})
    assert found == {"a": Limit(-1.0, 0.0, 2.0, None), "b": Limit()}
    assert read_limits({"limits_file": str(tmp_path / "none")}) == {}
