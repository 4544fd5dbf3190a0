"""When the next message of a periodic publisher comes, so that it can be taken when it is there.

Taking a message costs CPU time in proportion to its size. A reader that takes only what it uses
must know when to look: too early it takes a frame that the next one replaces at once.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from pi05_ros.runtime.inputs.observation_buffer import NS

LONGEST_PERIOD_NS = NS
FORGET_AFTER = 20
"""Periods without a message after which nothing is predicted any more."""
MOST_MISSED = 1000
"""A sequence number that is farther ahead is of another publisher."""


LEAST_MARGIN_NS = 200_000
MOST_MARGIN_NS = 3_000_000
LATENESS_GAIN = 0.1
PHASE_GAIN = 0.3
LOOK_AGAIN_NS = 2_000_000
"""How soon to look for a frame of which nothing is known."""
LOOK_FOR_LATE_NS = 500_000
"""The same for a frame that should be there."""


class FrameClock:
    """Period and phase of one publisher, from the messages that were taken; times in ns."""

    def __init__(self) -> None:
        self._received_ns: int | None = None
        self._sequence = 0
        self._period_ns = 0.0
        self._phase_ns = 0.0  # when the last message should have come
        self._late_ns = 0.0  # how late messages come on average

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
            self._phase_ns = received_ns
            return 1
        period = (received_ns - last_ns) / ahead
        known = self._period_ns
        # Several cameras on one topic, or one that changed its rate: start over.
        if not (known > 0 and 0.5 < period / known < 2.0):
            self._period_ns, self._phase_ns, self._late_ns = period, received_ns, 0.0
            return ahead
        should_ns = self._phase_ns + ahead * known
        error = received_ns - should_ns
        self._late_ns += LATENESS_GAIN * (max(0.0, error) - self._late_ns)
        self._period_ns = known + 0.2 * (period - known)
        close = abs(error) < 0.5 * known
        self._phase_ns = should_ns + PHASE_GAIN * error if close else received_ns
        return ahead

    @property
    def margin_ns(self) -> int:
        """How long after the expected time to look; what is later is looked for again."""
        return LEAST_MARGIN_NS + round(min(self._late_ns, MOST_MARGIN_NS))

    def next_after(self, since_ns: int, now_ns: int | None = None) -> int | None:
        """When the first message after a time is expected; None if nothing can be said.

        Args:
            since_ns: the time.
            now_ns: no message was there until now: one that is late by half a period is lost.

        """
        if self._received_ns is None or not 0 < self._period_ns <= LONGEST_PERIOD_NS:
            return None
        if max(since_ns, now_ns or 0) - self._received_ns > FORGET_AFTER * self._period_ns:
            return None
        after_ns = max(since_ns, (now_ns or since_ns) - 0.5 * self._period_ns)
        periods = max(1, math.ceil((after_ns - self._phase_ns) / self._period_ns))
        return round(self._phase_ns + periods * self._period_ns)


def wake_ns(expected_ns: Collection[int | None], now_ns: int, over_ns: int) -> int | None:
    """When to look for frames again; None if there is nothing to wait for.

    Args:
        expected_ns: of each camera whose next frame is wanted, when it can be taken; None if
            nothing is known. What comes after the wait is not waited for.
        now_ns: time; each camera whose frame is expected by now has been looked at.
        over_ns: end of the wait.

    """
    wanted = [time_ns for time_ns in expected_ns if time_ns is None or time_ns <= over_ns]
    if now_ns >= over_ns or not wanted:
        return None
    looks = [
        now_ns + LOOK_AGAIN_NS
        if time_ns is None
        else time_ns if time_ns > now_ns
        else now_ns + LOOK_FOR_LATE_NS
        for time_ns in wanted
    ]  # fmt: skip
    return min(*looks, over_ns)
