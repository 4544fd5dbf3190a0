"""Delays from signals: many delays, rates and noises; what is too weak is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pi05_ros.execution.calibration.delay_estimate import (
    DelayError,
    SensorSignal,
    estimate_delay,
)
from pi05_ros.execution.calibration.delay_results import (
    Samples,
    compare,
    parameters_yaml,
)
from pi05_ros.execution.calibration.image_motion import motion_patterns, small_gray
from pi05_ros.execution.calibration.sine_motion import SineMotion, SineRefusedError
from pi05_ros.execution.executor import Executor, ExecutorSettings
from pi05_ros.execution.limits import JointLimits
from pi05_ros.execution.strategies import make_strategy
from pi05_ros.execution.timed_chunk import TimedChunk
from pi05_ros.runtime.inputs.observation_buffer import Inputs, Snapshot
from pi05_ros.runtime.inputs.sources import limits
from pi05_ros.runtime.parameters import PolicyParameters
from pi05_ros.strict_yaml import parse_yaml

MOTION = SineMotion(0.05, 0.5, 6)
STEPS = np.arange(-0.5, MOTION.duration_s + 1.0, 0.002)
MOVED = SensorSignal(STEPS, MOTION.at(STEPS))
RANGE = (-0.1, 0.6)


def response(delay_s, rate_hz, noise, seed=0, jitter=0.3, scale=1.0, drift=0.0):
    rng = np.random.default_rng(seed)
    times = np.arange(-0.4, MOTION.duration_s + 0.9, 1 / rate_hz)
    times = np.sort(times + rng.uniform(-jitter, jitter, len(times)) / rate_hz)
    values = 1.3 + scale * MOTION.at(times - delay_s) + drift * times
    return SensorSignal(times, values + noise * rng.normal(size=len(times)))


@given(
    delay_s=st.floats(0.0, 0.5),
    rate_hz=st.sampled_from([20.0, 30.0, 50.0, 100.0, 500.0]),
    noise=st.floats(0.0, 0.002),
    scale=st.floats(0.2, 3.0),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_delays_are_found_within_five_milliseconds(delay_s, rate_hz, noise, scale, seed):
    made = response(delay_s, rate_hz, noise * scale, seed, scale=scale, drift=0.001)
    found = estimate_delay(MOVED, made, range_s=RANGE, least=0.95)
    assert found.delay_s == pytest.approx(delay_s, abs=0.005)
    assert found.correlation > 0.98
    assert abs(found.delay_s - delay_s) < 5 * found.error_s + 0.001


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (response(0.1, 100.0, 0.3), "correlation is"),
        (response(0.1, 100.0, 0.0, scale=-1.0), "correlation is|end of the range"),
        (response(0.8, 100.0, 0.0), "end of the range"),
        (response(0.1, 1.0, 0.0), "only .* samples"),
        (response(0.1, 100.0, 0.0, scale=0.0), "does not change"),
        (response(0.1, 20.0, 0.013), "uncertain by"),
    ],
)
def test_what_is_weak_is_refused(made, reason):
    with pytest.raises(DelayError, match=reason):
        estimate_delay(MOVED, made, range_s=RANGE, least=0.8)


def test_two_delays_that_fit_alike_are_refused():
    fast = SineMotion(0.05, 2.0, 60)
    steps = np.arange(0, fast.duration_s, 0.002)
    made = SensorSignal(steps, fast.at(steps - 0.1))
    with pytest.raises(DelayError, match="fit alike"):
        estimate_delay(SensorSignal(steps, fast.at(steps)), made, range_s=(-0.1, 0.9), least=0.8)


def picture(offset, rng, noise):
    """A scene of smooth blobs that moves sideways by ``offset`` pixels."""
    x, y = np.arange(96)[None, :], np.arange(72)[:, None]
    scene = 120 + 60 * np.sin((x - offset) / 9) * np.cos(y / 7)
    scene = scene[..., None] + noise * rng.normal(size=(72, 96, 3))
    return np.clip(scene, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("delay_s", "noise"), [(0.0, 5.0), (0.17, 0.0), (0.3, 15.0)])
def test_cameras_behind_joint_states(delay_s, noise):
    rng = np.random.default_rng(1)
    start_s = 100.0
    states, images = Samples(), Samples()
    for t in start_s + np.arange(-0.5, MOTION.duration_s + 1, 0.01):
        states.add(t, t + 0.004, float(MOTION.at(np.array([t - start_s - 0.06]))[0]))
    for t in start_s + np.arange(-0.5, MOTION.duration_s + 1, 0.0667):
        place = float(MOTION.at(np.array([t - start_s - 0.06 - delay_s]))[0])
        images.add(t, t + 0.02, small_gray(picture(40 * place, rng, noise)))
    found = compare(MOTION, start_s, "j", states, {"cam": images}, RANGE, 0.1)
    stamped, arrived = found.cameras["cam"]
    assert found.command.delay_s == pytest.approx(0.06, abs=0.003)
    assert found.command_arrival.delay_s == pytest.approx(0.064, abs=0.003)
    assert stamped.delay_s == pytest.approx(delay_s, abs=0.005)
    assert arrived.delay_s == pytest.approx(delay_s + 0.02, abs=0.005)
    written = parse_yaml(parameters_yaml(found), "x")
    policy = written["/**/pi05_policy"]["ros__parameters"]
    executor = written["/**/pi05_executor"]["ros__parameters"]
    assert executor == {"command_delay_s": pytest.approx(0.16, abs=0.003)}
    assert policy["command_delay_s"] == executor["command_delay_s"]
    assert policy["camera_delay_s"] == pytest.approx(delay_s, abs=0.005)


def test_images_without_the_motion_are_refused():
    rng = np.random.default_rng(2)
    images = np.stack([small_gray(picture(0, rng, 10.0)) for _ in range(40)])
    assert len(motion_patterns(images)) == 5
    assert motion_patterns(np.zeros((10, 4, 4))) == []
    states, seen = Samples(), Samples()
    for t in np.arange(-0.5, MOTION.duration_s + 1, 0.01):
        states.add(t, t, float(MOTION.at(np.array([t]))[0]))
    for t in np.arange(-0.5, MOTION.duration_s + 1, 0.1):
        seen.add(t, t, images[int(10 * (t + 0.5)) % 40])
    with pytest.raises(DelayError, match="cam: correlation is"):
        compare(MOTION, 0.0, "j", states, {"cam": seen}, RANGE)


def test_the_sine_starts_and_ends_at_rest_within_its_peaks():
    t = np.arange(0, MOTION.duration_s, 0.001)
    velocity = np.gradient(MOTION.at(t), 0.001)
    assert abs(MOTION.at(np.array([-1.0, 0.0, MOTION.duration_s, 99.0]))).max() < 1e-12
    assert abs(velocity[[0, -1]]).max() < 1e-3
    assert abs(velocity).max() <= MOTION.peak_velocity * 1.001
    MOTION.check(0.0, -1.0, 1.0, 1.0, 5.0)


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ((0.0, -1.0, 1.0, 0.2, 5.0), "for the velocity limit"),
        ((0.0, -1.0, 1.0, 1.0, 0.5), "for the acceleration limit"),
        ((0.95, -1.0, 1.0, 1.0, 5.0), "for the position limit"),
        ((1.0, -1.0, 1.0, 1.0, 5.0), "too near an end"),
    ],
)
def test_a_sine_that_comes_near_a_limit_is_refused(numbers, reason):
    with pytest.raises(SineRefusedError, match=reason):
        MOTION.check(*numbers)


@pytest.mark.parametrize(("amplitude", "hz", "cycles"), [(0, 0.5, 6), (0.1, 5, 6), (0.1, 0.5, 1)])
def test_motions_that_make_no_sense_are_refused(amplitude, hz, cycles):
    with pytest.raises(SineRefusedError, match="accepted"):
        SineMotion(amplitude, hz, cycles)


def test_the_executor_follows_chunks_earlier_by_the_command_delay():
    joint = JointLimits(("a",), [-9], [9], [5.0], [50.0])
    rows = np.linspace(0, 1, 41)[:, None]
    at = {}
    for delay_s in (0.0, 0.2):
        settings_ = ExecutorSettings(period_s=0.02, command_delay_s=delay_s)
        core = Executor(joint, make_strategy("rtc"), settings_)
        core.measure(np.zeros(1), 0)
        core.offer(TimedChunk(0, 50_000_000, rows, "p", 1), 0)
        for k in range(60):
            core.measure(np.zeros(1) if k == 0 else core.filter.position, k * 20_000_000)
            at[delay_s, k] = float(core.tick(k * 20_000_000).positions[0])
    assert at[0.2, 45] == pytest.approx(at[0.0, 55], abs=1e-6)
    assert at[0.0, 50] == pytest.approx(0.5, abs=0.02)


def test_what_an_image_shows_is_older_than_its_stamp_by_the_camera_delay():
    ms = 1_000_000
    values = {"camera_delay_s": 0.12, "max_age_s": 0.2, "max_skew_s": 0.5}
    inputs = Inputs(("base_camera",), limits(PolicyParameters.from_values(values), ("base",)))

    def offer(at_ms):
        assert inputs.offer("base_camera", "image", at_ms * ms, 1000 * ms, 5)
        return inputs.take(1000 * ms, 5)

    problems = offer(900)  # shows what was 0.22 s ago
    assert [(p.source, p.code) for p in problems] == [("base_camera", "stale")]
    taken = offer(960)
    assert isinstance(taken, Snapshot)
    assert taken.stamp_ns == 840 * ms
    assert taken.samples["base_camera"].stamp_ns == 960 * ms  # what the chunk names its inputs by
