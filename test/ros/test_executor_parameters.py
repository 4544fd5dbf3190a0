"""The executor's parameters: what they accept and that the documented table is the printed one."""

from __future__ import annotations

from pathlib import Path

import pytest

from pi05_ros.ros.executor_parameters import SPECS
from pi05_ros.runtime.parameter_specs import ParameterError, main, markdown_table

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- parameters:begin -->", "<!-- parameters:end -->"


def test_documented_table_is_the_printed_one(capsys):
    text = (ROOT / "docs" / "executor.md").read_text()
    (table,) = (part.split(END)[0].strip() for part in text.split(BEGIN)[1:])
    assert table == markdown_table(SPECS).strip()
    assert main(SPECS, "executor node", ["--markdown"]) == 0
    assert capsys.readouterr().out.strip() == table


def test_defaults_pass_their_own_checks_and_all_are_described():
    for spec in SPECS.values():
        assert spec.convert(spec.default) == spec.default
        assert spec.read_only == (spec.name not in ("speed_scale", "hold_chunks"))
        assert len(spec.text) > 10, spec.name


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("strategy", "naive", "accepted: replace, ensemble, rtc"),
        ("output", "torque", "accepted: trajectory, forward"),
        ("control_rate_hz", 0.0, "1 to 1000"),
        ("control_rate_hz", float("nan"), "1 to 1000"),
        ("replace_after", 2.0, "must be an integer, 0 to 1000"),
        ("joints", "joint1", "must be a string\\[\\]"),
        ("allow_random_weights", "yes", "must be a bool"),
    ],
)
def test_bad_value_is_refused_with_what_is_accepted(name, value, words):
    with pytest.raises(ParameterError, match=words):
        SPECS[name].convert(value)
