"""The messages of a bag on one clock: what the node's clock shows when each one arrives.

Header stamps are judged against that clock, so it must be the one they were made with:

clock    the bag's own /clock (a simulation was recorded)
log      the time at which the recorder got the message (a real robot was recorded)
header   the header stamps themselves (the recorder's clock was something else)
auto     clock if the bag has a /clock topic, else log
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from pi05_ros.bags.bag import Bag, BagError, BagMessage
from pi05_ros.bags.cdr_messages import CLOCK, NS, STRING, to_ns
from pi05_ros.bags.topics import Source, by_topic

TIME_BASES = ("auto", "clock", "log", "header")
JUMP_BACK_NS = NS // 2  # a header stamp this much older than the last one means the bag looped


class TimedMessage(NamedTuple):
    """One message of the timeline.

    Attributes:
        source: input name.
        msgtype: ROS type.
        clock_ns: what the node's clock shows on arrival.
        offset_ns: time since the first message of the bag; playing keeps this pace.
        raw: CDR bytes.

    """

    source: str
    msgtype: str
    clock_ns: int
    offset_ns: int
    raw: bytes


def header_stamp_ns(raw: bytes) -> int | None:
    """Stamp of a CDR message that starts with a std_msgs/Header, without decoding the rest.

    None if the message is too short to have one.
    """
    if len(raw) < 12:
        return None
    order = "<" if raw[1] == 1 else ">"
    seconds, nanoseconds = struct.unpack_from(order + "iI", raw, 4)
    return int(seconds) * NS + int(nanoseconds)


def resolve_base(bag: Bag, base: str) -> str:
    """Turn "auto" into "clock" or "log".

    Raises:
        BagError: unknown base, or "clock" without a /clock topic.

    """
    if base not in TIME_BASES:
        raise BagError(f"time base {base!r}; accepted: {', '.join(TIME_BASES)}")
    clock = bag.topics.get("/clock")
    has_clock = clock is not None and clock.msgtype == CLOCK and clock.count > 0
    if base == "clock" and not has_clock:
        raise BagError(f"{bag.path} has no /clock messages; use --time log or --time header")
    return ("clock" if has_clock else "log") if base == "auto" else base


def read_timeline(
    bag: Bag, sources: Mapping[str, Source], base: str = "auto"
) -> Iterator[TimedMessage]:
    """Messages of the chosen sources in the order of arrival.

    Raises:
        BagError: as in `resolve_base`, or the bag is damaged.

    """
    base = resolve_base(bag, base)
    names = by_topic(sources)
    clock: Callable[[BagMessage], int | None]
    if base == "clock":
        clock = _RecordedClock(bag).at
    else:
        clock = _HeaderClock().at if base == "header" else _log_time
    start: int | None = None
    waiting: list[BagMessage] = []  # until the clock shows something
    for message in bag.messages(names):
        start = message.log_ns if start is None else start
        waiting.append(message)
        clock_ns = clock(message)
        if clock_ns is None:
            continue
        for each in waiting:
            for name in names[each.topic]:
                yield TimedMessage(name, each.msgtype, clock_ns, each.log_ns - start, each.raw)
        waiting.clear()


def _log_time(message: BagMessage) -> int:
    return message.log_ns


class _HeaderClock:
    """The newest header stamp so far; None before the first one."""

    def __init__(self) -> None:
        self._newest: int | None = None

    def at(self, message: BagMessage) -> int | None:
        stamp = None if message.msgtype == STRING else header_stamp_ns(message.raw)
        newest = self._newest
        if stamp is not None and (newest is None or not newest - JUMP_BACK_NS <= stamp <= newest):
            self._newest = stamp
        return self._newest


class _RecordedClock:
    """The /clock messages of a bag as a function of log time.

    Between two messages it runs on in real time, but never past the next one.
    """

    def __init__(self, bag: Bag) -> None:
        pairs = [(m.log_ns, to_ns(m.decode().clock)) for m in bag.messages(["/clock"])]
        self._log = [log for log, _ in pairs]
        self._clock = [clock for _, clock in pairs]

    def at(self, message: BagMessage) -> int:
        log_ns = message.log_ns
        index = bisect_right(self._log, log_ns) - 1
        if index < 0:
            return self._clock[0] - (self._log[0] - log_ns)
        passed = log_ns - self._log[index]
        if index + 1 < len(self._clock):
            passed = min(passed, max(0, self._clock[index + 1] - self._clock[index]))
        return self._clock[index] + passed
