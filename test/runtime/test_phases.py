"""What a long start says while it lasts."""

from __future__ import annotations

import logging
import threading

import pytest

from pi05_ros import phases


def test_a_long_part_is_told_again_and_again_and_then_how_long_it_took(monkeypatch, caplog):
    monkeypatch.setattr(phases, "EVERY_S", 0.01)
    monkeypatch.setattr(phases, "BRIEF_S", 0.0)
    caplog.set_level(logging.INFO, "pi05_ros")
    told = threading.Event()
    caplog.handler.emit = lambda record, emit=caplog.handler.emit: (emit(record), told.set())
    with phases.phase("weights"):
        assert told.wait(60)
    assert "loading: weights, 0 s so far" in caplog.messages[0]
    assert "loading: weights took" in caplog.messages[-1]


def test_a_brief_part_is_not_worth_a_line_and_errors_pass(monkeypatch, caplog):
    monkeypatch.setattr(phases, "BRIEF_S", 3600.0)
    monkeypatch.setattr(phases, "EVERY_S", 3600.0)
    caplog.set_level(logging.INFO, "pi05_ros")
    with pytest.raises(KeyError), phases.phase("engine"):
        raise KeyError
    assert not caplog.messages
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("phase")]
