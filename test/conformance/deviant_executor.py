"""An executor that breaks promises, for the conformance client to find.

It jumps now and then, takes chunks with a frame, and `~/stop` does nothing.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import count

from pi05_ros.execution.arrival import chunk_intake
from pi05_ros.execution.executor import FOLLOWING, Executor
from pi05_ros.ros import executor_node

tick, read, ticks = Executor.tick, chunk_intake.read_slowly, count()


def jump(self, now_ns):
    command = tick(self, now_ns)
    if command.mode != FOLLOWING or next(ticks) % 20:
        return command
    return replace(command, positions=command.positions + 0.2)


def without_frame(message, *args):
    message.header.frame_id = ""
    return read(message, *args)


if __name__ == "__main__":
    Executor.tick = jump
    Executor.stop = lambda self, reason: None
    chunk_intake.read_slowly = without_frame
    sys.exit(executor_node.main())
