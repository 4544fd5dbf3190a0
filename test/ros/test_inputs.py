"""Freshness rules on plain numbers; times in milliseconds are scaled below."""

from pi05_ros.runtime.inputs.observation_buffer import Inputs, Limits, Snapshot

MS = 1_000_000


def make(**changes):
    values = {
        "max_age": {"cam": 500 * MS, "joints": 200 * MS},
        "max_skew": 100 * MS,
        "future": 50 * MS,
        "dead": 2000 * MS,
        **changes,
    }
    return Inputs(["cam", "joints"], Limits(**values))


def offer(inputs, name, stamp, now=None, payload="x"):
    now = stamp if now is None else now
    return inputs.offer(name, payload, stamp * MS, now * MS, now * MS)


def codes(result):
    assert not isinstance(result, Snapshot), "inputs were taken"
    return {problem.source: problem.code for problem in result}


def take(inputs, now, mono=None):
    return inputs.take(now * MS, (now if mono is None else mono) * MS)


def test_newest_sample_wins_and_oldest_stamp_counts():
    inputs = make()
    offer(inputs, "cam", 1000, payload="old")
    offer(inputs, "cam", 1010, payload="new")
    offer(inputs, "joints", 1050)
    snapshot = take(inputs, 1060)
    assert snapshot.samples["cam"].payload == "new"
    assert snapshot.stamp_ns == 1010 * MS
    assert snapshot.received_ns == 1050 * MS


def test_missing_source_is_named():
    inputs = make()
    offer(inputs, "joints", 1000)
    assert codes(take(inputs, 1000)) == {"cam": "missing"}
    assert inputs.sources["cam"].refused["missing"] == 1


def test_each_source_has_its_own_age_limit():
    inputs = make(max_skew=10_000 * MS)
    offer(inputs, "cam", 1000)
    offer(inputs, "joints", 1000)
    assert codes(take(inputs, 1300)) == {"joints": "stale"}
    assert codes(take(inputs, 1600)) == {"cam": "stale", "joints": "stale"}


def test_skew_names_the_source_that_lags():
    inputs = make()
    offer(inputs, "cam", 1000)
    offer(inputs, "joints", 1150)
    assert codes(take(inputs, 1150)) == {"cam": "skew"}


def test_future_stamp_is_refused_and_does_not_lock_the_source():
    inputs = make()
    offer(inputs, "joints", 1000)
    offer(inputs, "cam", 9000, now=1000)
    problems = take(inputs, 1000)
    assert codes(problems) == {"cam": "future"}
    assert "clocks are not synchronized" in problems[0].text
    assert offer(inputs, "cam", 1010)
    assert isinstance(take(inputs, 1010), Snapshot)


def test_stamp_within_the_tolerance_is_taken():
    inputs = make()
    offer(inputs, "joints", 1000)
    offer(inputs, "cam", 1040, now=1000)
    assert isinstance(take(inputs, 1000), Snapshot)


def test_out_of_order_sample_is_dropped():
    inputs = make()
    offer(inputs, "cam", 1000)
    assert not offer(inputs, "cam", 990, now=1001)
    assert inputs.sources["cam"].dropped["out_of_order"] == 1


def test_zero_stamp_is_refused_unless_receive_time_is_asked_for():
    inputs = make()
    assert not offer(inputs, "cam", 0, now=1000)
    assert inputs.sources["cam"].dropped["zero_stamp"] == 1
    assert "zero_stamps:=receive_time" in take(inputs, 1000)[0].text
    inputs = make(zero_is_receive_time=True)
    assert offer(inputs, "cam", 0, now=1000)
    assert inputs.sources["cam"].newest.stamp_ns == 1000 * MS


def test_dead_source_by_monotonic_time_even_if_the_clock_stands():
    inputs = make()
    offer(inputs, "cam", 1000)
    offer(inputs, "joints", 1000)
    assert codes(take(inputs, 1000, mono=4000)) == {"cam": "dead", "joints": "dead"}


def test_same_samples_are_used_once():
    inputs = make()
    offer(inputs, "cam", 1000)
    offer(inputs, "joints", 1000)
    assert isinstance(take(inputs, 1001), Snapshot)
    assert set(codes(take(inputs, 1002)).values()) == {"unchanged"}
    offer(inputs, "joints", 1010)
    assert isinstance(take(inputs, 1011), Snapshot)


def test_clock_jump_back_empties_the_buffers():
    inputs = make()
    offer(inputs, "cam", 10_000)
    offer(inputs, "joints", 10_000)
    assert codes(take(inputs, 100, mono=10_001)) == {"cam": "missing", "joints": "missing"}
    assert inputs.clock_jumps == 1
    inputs.offer("cam", "x", 110 * MS, 110 * MS, 10_010 * MS)
    inputs.offer("joints", "x", 110 * MS, 110 * MS, 10_010 * MS)
    assert isinstance(take(inputs, 120, mono=10_020), Snapshot)


def test_small_slew_back_is_no_jump():
    inputs = make()
    offer(inputs, "cam", 1000)
    inputs.observe_clock(1000 * MS)
    assert not inputs.observe_clock(970 * MS)
    assert inputs.sources["cam"].newest is not None


def test_complete_since_asks_for_each_camera():
    inputs = make()
    offer(inputs, "cam", 1000)
    assert inputs.complete_since(["cam"], 1000 * MS)
    assert not inputs.complete_since(["cam"], 1001 * MS)
    assert not inputs.complete_since(["cam", "joints"], 1000 * MS)


def test_rejected_message_shows_its_reason():
    inputs = make()
    offer(inputs, "cam", 1000)
    inputs.reject("joints", "joint_missing", "joint state lacks b", 1000 * MS)
    assert take(inputs, 1000)[0].text == "joint state lacks b"
    assert inputs.sources["joints"].dropped["joint_missing"] == 1


def test_stale_source_whose_messages_are_rejected_says_so():
    inputs = make()
    offer(inputs, "cam", 1000)
    offer(inputs, "joints", 1000)
    inputs.reject("joints", "joint_missing", "joint state lacks b", 1290 * MS)
    problem = take(inputs, 1300)[0]
    assert problem.code == "stale"
    assert problem.text.endswith("newer messages cannot be used: joint state lacks b")
    offer(inputs, "joints", 1010, now=1295)  # fits again, late
    assert "lacks" not in take(inputs, 1300)[0].text
