"""When simulated time may go on: once the chunk and the command for it have had their chance.

Pure logic on nanoseconds of simulated time and seconds of a monotonic clock. The driver node tells
it what it receives and asks before every step. A node that answers slowly then slows simulated
time down instead of missing it, so that what the arm does is not a question of the machine.
"""

from __future__ import annotations

CAMERA_WAIT_NS = 50_000_000
"""Simulated time that an inference may wait for new images after it has become due."""


class LockStep:
    """Holds simulated time for the next chunk and for the next command.

    A source is waited for from its first message on. One that stays away for ``wait_s`` is not
    waited for again until it is back: it was stopped, or it died.

    Args:
        chunk_period_ns: time between two inferences; 0 does not wait for chunks.
        step_ns: one step of the simulator.
        wait_s: longest wait, monotonic time.

    """

    def __init__(self, chunk_period_ns: int, step_ns: int, wait_s: float) -> None:
        self._chunk_period_ns = chunk_period_ns
        self._step_ns = step_ns
        self._wait_s = wait_s
        self._chunk_due_ns: int | None = None
        self._command_due_ns: int | None = None
        self._following = True
        self._held_since_s: float | None = None
        self.given_up = 0
        """Waits that ended without a message."""

    def restart(self) -> None:
        """Wait for nothing until messages come again: a new episode."""
        self._chunk_due_ns = self._command_due_ns = self._held_since_s = None

    def chunk(self, newest_input_ns: int, now_ns: int) -> None:
        """Take note of a chunk by the stamp of its newest input: the time it was begun.

        Inferences begin whole periods apart. A late chunk has missed some of its successors; the
        next to begin is then waited for, for which time must go on until then.
        """
        self._held_since_s = None
        if self._chunk_period_ns:
            periods = max(0, now_ns - newest_input_ns) // self._chunk_period_ns + 1
            slack_ns = CAMERA_WAIT_NS + 2 * self._step_ns
            self._chunk_due_ns = newest_input_ns + periods * self._chunk_period_ns + slack_ns

    def command(self, now_ns: int, period_ns: int) -> None:
        """Take note of a command that comes once per ``period_ns``."""
        self._held_since_s = None
        if self._following:
            self._command_due_ns = now_ns + max(period_ns, self._step_ns)

    def following(self, on: bool) -> None:
        """Whether the executor sends commands; one that only waits has none to wait for."""
        self._following = on
        if not on:
            self._command_due_ns = None

    def may_step(self, now_ns: int, mono_s: float) -> bool:
        """Whether time may go on from ``now_ns``."""
        dues = (self._chunk_due_ns, self._command_due_ns)
        if all(due is None or now_ns < due for due in dues):
            self._held_since_s = None
            return True
        if self._held_since_s is None:
            self._held_since_s = mono_s
        if mono_s - self._held_since_s < self._wait_s:
            return False
        self.given_up += 1
        self._held_since_s = None
        if self._chunk_due_ns is not None and now_ns >= self._chunk_due_ns:
            self._chunk_due_ns = None
        if self._command_due_ns is not None and now_ns >= self._command_due_ns:
            self._command_due_ns = None
        return True
