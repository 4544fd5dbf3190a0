"""Jobs over processes: results, errors, and a process that dies."""

from __future__ import annotations

import math
import os

import pytest

from pi05_ros.sim.workers import as_done


def test_every_job_is_done_once():
    assert sorted(as_done(math.factorial, range(30), 2)) == [math.factorial(n) for n in range(30)]


def test_an_error_is_raised_here():
    with pytest.raises(ValueError, match="math domain"):
        list(as_done(math.sqrt, [4.0, -1.0], 2))


@pytest.mark.timeout(60)
def test_a_process_that_dies_is_noticed():
    """multiprocessing.Pool would wait for its result for ever."""
    with pytest.raises(ChildProcessError, match="a worker process died"):
        list(as_done(os._exit, [7], 2))
