"""Results that are added line by line: what was cut off costs nothing else."""

from __future__ import annotations

from pi05_ros.sim.evaluation.results_file import append, read


def test_rows_come_back_and_the_later_one_counts(tmp_path):
    path = tmp_path / "results.jsonl"
    assert read(path) == {}
    for key, value in (("a", 1), ("b", 2), ("a", 3)):
        append(path, key, {"x": value})
    assert read(path) == {"a": {"x": 3}, "b": {"x": 2}}
    assert path.read_text().count("\n") == 3


def test_a_line_that_was_cut_off_does_not_swallow_the_next(tmp_path):
    path = tmp_path / "results.jsonl"
    append(path, "a", {"x": 1})
    with path.open("ab") as file:
        file.write(b'{"key": "cut o\xff')
    append(path, "b", {"x": 2})
    append(path, "c", {"x": 3})
    assert list(read(path)) == ["a", "b", "c"]


def test_lines_that_are_no_results_are_left_out(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('7\n{"key": "a"}\n{"row": {}}\n{"key": "b", "row": 5}\n\n')
    append(path, "c", {})
    assert read(path) == {"c": {}}
