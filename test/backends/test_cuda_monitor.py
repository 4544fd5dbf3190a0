"""The saturation monitor of the cuda backend: counting, reports, warnings. No GPU."""

from __future__ import annotations

import threading

import torch

from pi05_ros.backends.cuda.monitor import RECENT, Monitor

SITES = ["prefill.0.qkv", "prefill.0.down", "denoise.0.qkv"]


def make(every):
    amax, scale = torch.zeros(3), torch.ones(3)
    return amax, Monitor(every, SITES, amax, scale, ["fp8"] * 3)


def test_every_nth_call_of_a_part_is_due():
    _, monitor = make(3)
    both = ("prefill", "denoise")
    assert [monitor.due(both) for _ in range(6)] == [False, False, True] * 2
    assert [monitor.due(("denoise",)) for _ in range(3)] == [False, False, True]
    _, off = make(0)
    assert not any(off.due(both) for _ in range(5))
    assert off.health("a file").values == {"fp8_scales": "a file", "fp8_monitor": "off"}


def test_findings_are_reported_once_and_warned_of_until_calls_are_clean_again():
    amax, monitor = make(1)
    amax[1], amax[2] = 900.0, 500.0
    monitor.drain(("prefill",))
    assert amax.tolist() == [0, 0, 500]  # the denoising of another frame may be under way
    assert [row.site for row in monitor.report()] == ["prefill.0.down"]
    assert monitor.report() == []
    health = monitor.health("a file")
    assert health.values["fp8_saturated_calls"] == "1"
    assert "worst at prefill.0.down (900 > 448)" in health.warning
    for _ in range(RECENT):
        monitor.drain(("prefill",))
        monitor.poll()
    assert monitor.health("a file").warning == ""
    assert monitor.health("a file").values["fp8_monitored_calls"] == str(RECENT + 1)
    monitor.drain(("denoise",))
    assert [row.site for row in monitor.report()] == ["denoise.0.qkv"]


def test_reports_and_polls_of_two_threads_lose_nothing():
    amax, monitor = make(1)
    polling = threading.Event()

    def diagnostics():
        while not polling.is_set():
            monitor.health("a file")

    thread = threading.Thread(target=diagnostics)
    thread.start()
    try:
        for n in range(300):
            amax[n % 2] = 500.0 + n
            monitor.drain(("prefill",))
            assert [row.largest for row in monitor.report()] == [500.0 + n]
    finally:
        polling.set()
        thread.join()


def test_the_log_has_a_line_when_saturation_begins_and_not_for_every_call(caplog):
    amax, monitor = make(1)
    with caplog.at_level("WARNING"):
        for _ in range(5):
            amax[0] = 900.0
            monitor.drain(("prefill",))
            monitor.poll()
    assert len(caplog.records) == 1
    assert monitor.saturated == 5
