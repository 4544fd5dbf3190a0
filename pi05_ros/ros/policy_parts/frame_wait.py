"""The wait of a due inference for the next frame of every camera.

A camera is left alone until its frame should be there: what would be taken before is replaced at
once. Timers of the executor wake the node shortly before; then it listens to the cameras' bells,
so that a frame is taken when it comes and not when a timer has fired. Cameras without a bell are
looked at when the latest of their frames should have come.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from pi05_ros.ros.policy_parts.frame_bell import rings
from pi05_ros.ros.policy_parts.input_reader import InputReader
from pi05_ros.runtime.inputs.frame_clock import wake_ns

EARLY_NS = 8_000_000
"""Listened so long before a frame is expected: each timer of the executor costs more CPU time."""
SURE_NS = 1_000_000
"""A frame is not there yet for certain so long before it is expected."""
LATE_NS = 2_000_000
"""And after it; the executor does nothing else meanwhile."""


class FrameWait:
    """Takes the frames of cameras when they come.

    Args:
        readers: of the cameras; may change.
        has_since: whether a camera has a sample that came after a monotonic time.
        take: takes what has come, of some cameras.

    """

    def __init__(
        self,
        readers: Callable[[], Mapping[str, InputReader]],
        has_since: Callable[[str, int], bool],
        take: Callable[[Collection[str]], None],
    ) -> None:
        self._readers = readers
        self._has_since = has_since
        self._take = take
        self._since_ns: int | None = None

    def take_since(self, since_ns: int, over_ns: int) -> int | None:
        """Take the frames that should have come after a time.

        Where that of a camera comes after the wait, the frame before it is the one to use, and is
        taken while others are waited for.

        Args:
            since_ns: monotonic time.
            over_ns: end of the wait.

        Returns:
            When to call again; None if nothing is left to wait for.

        """
        now_ns = time.monotonic_ns()
        if since_ns != self._since_ns:
            self._since_ns = since_ns
            self._forget_rings(since_ns, now_ns)
        while now_ns < over_ns:
            expected = self._expected_ns(since_ns, now_ns)
            self._take([n for n, at in expected.items() if self._is_there(n, at, now_ns, over_ns)])
            now_ns = time.monotonic_ns()
            expected = self._expected_ns(since_ns, now_ns)
            if not self._listen(expected, now_ns, over_ns):
                looks = [
                    self._look_ns(name, at_ns, now_ns)
                    for name, at_ns in expected.items()
                    if at_ns is None or at_ns <= over_ns  # later ones are not listened to either
                ]
                return wake_ns(looks, now_ns, over_ns)
            now_ns = time.monotonic_ns()
        return None

    def _expected_ns(self, since_ns: int, now_ns: int) -> dict[str, int | None]:
        """When the first frame after a time should be there, of each camera without one."""
        expected: dict[str, int | None] = {}
        for name, reader in self._readers().items():
            if not self._has_since(name, since_ns):
                at_ns = reader.frames.next_after(since_ns, now_ns)
                expected[name] = None if at_ns is None else at_ns + reader.frames.margin_ns
        return expected

    def _is_there(self, name: str, at_ns: int | None, now_ns: int, over_ns: int) -> bool:
        """Whether a camera is to be looked at now."""
        if at_ns is not None and at_ns > over_ns:
            return True  # not waited for
        bell = self._readers()[name].bell
        return at_ns is None or at_ns <= now_ns if bell is None else rings([bell])

    def _opens_ns(self, name: str, at_ns: int, early_ns: int = EARLY_NS) -> int:
        """When listening to a camera begins."""
        return at_ns - self._readers()[name].frames.margin_ns - early_ns

    def _look_ns(self, name: str, at_ns: int | None, now_ns: int) -> int | None:
        """When to look at a camera; with a bell when listening begins, if that is to come."""
        if at_ns is None or self._readers()[name].bell is None:
            return at_ns
        opens_ns = self._opens_ns(name, at_ns)
        return opens_ns if opens_ns > now_ns else at_ns

    def _listen(self, expected: Mapping[str, int | None], now_ns: int, over_ns: int) -> bool:
        """Wait for a ring of the cameras that are about to ring; False if there are none."""
        readers, bells, until_ns = self._readers(), [], now_ns
        for name, at_ns in expected.items():
            bell = readers[name].bell
            if bell is None or at_ns is None or at_ns > over_ns:
                continue
            if self._opens_ns(name, at_ns) <= now_ns < at_ns + LATE_NS:
                bells.append(bell)
                until_ns = max(until_ns, at_ns + LATE_NS)
        if bells:
            rings(bells, min(until_ns, over_ns) - now_ns)
        return bool(bells)

    def _forget_rings(self, since_ns: int, now_ns: int) -> None:
        """Forget frames that came before a time, where the next is still to come for certain."""
        for name, at_ns in self._expected_ns(since_ns, now_ns).items():
            bell = self._readers()[name].bell
            if bell is None or at_ns is None:
                continue
            if self._opens_ns(name, at_ns, SURE_NS) > now_ns:
                bell.silence()
