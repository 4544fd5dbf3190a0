"""Who publishes the messages of one source: how many there were, whether several take turns."""

from __future__ import annotations

from pi05_ros.runtime.inputs.observation_buffer import NS

MOST_MISSED = 1000
"""A sequence number that is farther ahead is no count."""
TURNS_NS = 3 * NS
"""So long after a publisher came back between messages of others, several take turns."""
REMEMBERED = 16


class Publishers:
    """The publishers of one source, by the messages that were taken."""

    def __init__(self) -> None:
        self._sequences: dict[bytes, int] = {}  # newest number of each; the latest heard is last
        self._newest = b""
        self._came_back_ns: int | None = None

    def observe(self, publisher: bytes, sequence: int, mono_ns: int) -> int:
        """Note a message that was taken.

        Args:
            publisher: its identifier; empty if the middleware gives none.
            sequence: its number at the publisher; 0 if the middleware has none.
            mono_ns: monotonic time.

        Returns:
            How many messages the publisher sent since its one before, this one included.

        """
        last = self._sequences.pop(publisher, None)
        if last is not None and self._newest != publisher:
            self._came_back_ns = mono_ns
        self._newest = publisher
        self._sequences[publisher] = sequence
        if len(self._sequences) > REMEMBERED:
            del self._sequences[next(iter(self._sequences))]
        ahead = 1 if last is None else sequence - last
        return ahead if 0 < ahead <= MOST_MISSED else 1

    def take_turns(self, mono_ns: int) -> bool:
        """Whether messages of several publishers come by turns; none may just follow another."""
        back_ns = self._came_back_ns
        return back_ns is not None and mono_ns - back_ns < TURNS_NS
