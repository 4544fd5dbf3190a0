"""A part of `make hostile`: the same generator with few seeds, and the harness itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from hostile_clients import attack
from hostile_run import BAD, Report, run, target_names

CASES = 8
"""Seeds of every target here; `make hostile` runs 500 of each."""


@pytest.fixture(scope="module")
def report() -> Report:
    return run(target_names(), range(CASES))


def test_nothing_hangs_crashes_or_is_wrong(report: Report) -> None:
    assert not report.faults, "\n".join(report.faults)


def test_every_target_was_tried_and_some_inputs_were_accepted(report: Report) -> None:
    assert set(report.counts) == set(target_names())
    assert all(sum(counts.values()) == CASES for counts in report.counts.values())
    assert sum(counts["answered"] for counts in report.counts.values()) > CASES
    assert sum(counts["refused"] for counts in report.counts.values()) > 5 * CASES


OUTCOMES = {
    "return None": "answered",
    "raise OSError('no such file')": "refused",
    "raise Pi05Error('')": "wrong",
    "raise Pi05Error('\\udcff')": "crashed",
    "raise KeyError('x')": "crashed",
    "sys.exit(3)": "crashed",
    "os._exit(3)": "crashed",
    "bytearray(2**33)": "crashed",
    "time.sleep(600)": "hung",
    "raise WrongError('joint1 moved')": "wrong",
}


def test_the_harness_tells_outcomes_apart(tmp_path, monkeypatch) -> None:
    import hostile_run as harness

    targets = "".join(
        f"def target{index}(rng, folder):\n    {body}\nworker.TARGETS['{index}'] = target{index}\n"
        for index, body in enumerate(OUTCOMES)
    )
    code = (
        f"import os, sys, time, types\nsys.path.insert(0, {str(HERE)!r})\n"
        "sys.modules['torch'] = types.ModuleType('torch')  # seconds of each of the processes\n"
        f"{IMPORT}"
        f"from worker import Pi05Error, WrongError\n{targets}worker.main()\n"
    )
    (tmp_path / "hostile_worker.py").write_text(code)
    monkeypatch.setattr(harness, "HERE", tmp_path)
    worker = harness.Worker()
    try:
        for index, (body, outcome) in enumerate(OUTCOMES.items()):
            monkeypatch.setattr(harness, "LIMIT_S", 3.0 if outcome == "hung" else 120.0)
            assert worker.run(str(index), 0)[0] == outcome, body
            assert (outcome in BAD) == (outcome not in ("answered", "refused"))
    finally:
        worker.close()


IMPORT = (
    f"import importlib.util\nplace = {str(HERE / 'hostile_worker.py')!r}\n"
    "spec = importlib.util.spec_from_file_location('real_worker', place)\n"
    "worker = importlib.util.module_from_spec(spec)\nsys.modules['worker'] = worker\n"
    "spec.loader.exec_module(worker)\n"
)


def test_a_case_can_be_made_again() -> None:
    words = [sys.executable, str(HERE / "hostile_run.py"), "--target", "urdf", "--seed", "5"]
    first, again = (
        subprocess.run(words, capture_output=True, text=True, check=True).stdout for _ in range(2)
    )
    assert first == again
    assert first.startswith(("answered", "refused"))


def test_hostile_clients_of_the_policy_server() -> None:
    counts, faults, memory = attack(frames=300, connections=100)
    assert not faults, "\n".join(faults)
    assert counts["refused"] > 200
    assert counts["held connections"] == 100
    assert "MB" in memory
