"""When the next message of a periodic publisher comes, so that it can be taken when it is there.

Taking a message costs CPU time in proportion to its size. A reader that takes only what it uses
must know when to look: too early it takes a frame that the next one replaces at once.
"""

from __future__ import annotations

from pi05_ros.runtime.inputs.observation_buffer import NS

LONGEST_PERIOD_NS = NS
FORGET_AFTER = 20
"""Periods without a message after which nothing is predicted any more."""
MOST_MISSED = 1000
"""A sequence number that is farther ahead is of another publisher."""


class FrameClock:
    """Period and phase of one publisher, from the messages that were taken; times in ns."""

    def __init__(self) -> None:
        self._received_ns: int | None = None
        self._sequence = 0
        self._period_ns = 0.0

    def observe(self, received_ns: int, sequence: int) -> int:
        """Note a message that was taken.

        Args:
            received_ns: when the middleware received it.
            sequence: its number at the publisher; 0 if the middleware has none.

        Returns:
            How many messages were published since the one before, itself included: at least 1.

        """
        last_ns, last = self._received_ns, self._sequence
        self._received_ns, self._sequence = received_ns, sequence
        ahead = sequence - last
        if last_ns is None or not 0 < ahead <= MOST_MISSED or received_ns <= last_ns:
            return 1
        period = (received_ns - last_ns) / ahead
        known = self._period_ns
        # Several cameras on one topic, or one that changed its rate: start over.
        steady = known > 0 and 0.5 < period / known < 2.0
        self._period_ns = known + 0.2 * (period - known) if steady else period
        return ahead

    def next_after(self, now_ns: int) -> int | None:
        """When the first message after a time is expected; None if nothing can be said."""
        if self._received_ns is None or not 0 < self._period_ns <= LONGEST_PERIOD_NS:
            return None
        since = now_ns - self._received_ns
        if since > FORGET_AFTER * self._period_ns:
            return None
        periods = max(1, -int(-since // self._period_ns))
        return round(self._received_ns + periods * self._period_ns)
