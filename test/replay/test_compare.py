"""Comparison catches what changed and names it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pi05_ros.bags.chunk_record import ChunkRecord
from pi05_ros.replay.compare import compare
from pi05_ros.replay.summary import ReplaySummary, Spread


def record(index: int) -> ChunkRecord:
    stamp = 10**9 + index * 10**8
    return ChunkRecord(
        received_ns=stamp + 10**7, stamp_ns=stamp, observation_ns=stamp, published_ns=stamp,
        inputs={"base_camera": stamp, "joint_states": stamp + 1}, chunk_id=index, policy_id="a",
        names=("x", "y"), step_ns=5 * 10**7, meaning=(0, 0), unit=(0, 0),
        data=np.full((3, 2), index, np.float32), steps_past=0, prompt="go", seed=index, kv_age=0,
        random_weights=True, denoise_steps=10, timings={},
    )  # fmt: skip


RUN = [record(index) for index in range(5)]


def changed(value: float) -> list[ChunkRecord]:
    data = RUN[3].data.copy()
    data[1, 1] += value
    return [*RUN[:3], replace(RUN[3], data=data), RUN[4]]


def test_equal_runs() -> None:
    result = compare(RUN, RUN)
    assert result.equal
    assert result.compared == 5


def test_one_value() -> None:
    result = compare(changed(0.5), RUN, 1e-3)
    assert not result.equal
    assert "chunk 3" in result.report()
    assert "y at step 1 is 3.5, reference 3" in result.report()
    assert compare(changed(0.5), RUN, 0.5).equal


def test_rounding_gets_a_hint() -> None:
    assert "threads" in compare(changed(1e-6), RUN).report()
    assert "threads" not in compare(changed(0.5), RUN).report()


def test_infinite_difference_is_not_lost() -> None:
    assert not compare(changed(float("nan")), RUN, 1e9).equal


@pytest.mark.parametrize(
    ("field", "value"),
    [("prompt", "stop"), ("names", ("x", "z")), ("seed", 9), ("denoise_steps", 3)],
)
def test_other_fields(field: str, value: object) -> None:
    result = compare([replace(RUN[0], **{field: value})], RUN[:1])
    assert field in result.report()


def test_missing_chunks_count_unless_partial() -> None:
    assert not compare(RUN[1:], RUN).equal
    assert not compare(RUN, RUN[1:]).equal
    result = compare(RUN[1:], RUN, partial=True)
    assert result.equal
    assert (result.compared, result.only_there) == (4, 1)


def test_nothing_in_common_is_not_equal() -> None:
    later = [replace(chunk, observation_ns=chunk.observation_ns + 7) for chunk in RUN]
    result = compare(later, RUN, partial=True)
    assert not result.equal
    assert "same bag" in result.report()


def test_other_samples_are_named() -> None:
    moved = replace(RUN[0], inputs={**RUN[0].inputs, "joint_states": 5 + 10**9})
    assert "joint_states" in compare([moved], RUN[:1]).report()
    assert compare([moved, RUN[1]], RUN[:2], partial=True).compared == 1


def test_spread_and_rate() -> None:
    spread = Spread.of([1.0, 2.0, 3.0, float("nan")])
    assert (spread.p50, spread.maximum, spread.count) == (2.0, 3.0, 3)
    assert Spread.of([]).text() == "no samples"
    summary = ReplaySummary("b", "live", 10.0, 10.0, 89, 100.0, {}, spread, spread)
    assert not summary.rate_kept(0.9)
    assert summary.rate_kept(0.8)
    assert "8.90 Hz" in summary.lines()[0]
