"""Promises about the executor's status, diagnostics and commands."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from pi05_ros.conformance.heard import LONGEST_GAP_S, ExecutorRecord, Heard, gaps
from pi05_ros.conformance.policy_promises import latched, once_per_second
from pi05_ros.conformance.promises import (
    EXECUTOR,
    EXECUTOR_STATUS,
    Checks,
    Verdict,
    absent,
    failed,
    none_of,
    passed,
)

EXECUTOR_CHECKS: Checks[ExecutorRecord] = Checks()
WAITING, FOLLOWING, HOLDING, STOPPED, FAULT, TELEOPERATED = range(1, 7)
MODES = {
    WAITING: "waiting", FOLLOWING: "following", HOLDING: "holding", STOPPED: "stopped",
    FAULT: "fault", TELEOPERATED: "teleoperated",
}  # fmt: skip
EDGE_S = 0.25
"""Status and commands travel on topics of their own: not closer to a change of mode than this."""
BRAKING_S = 2.0
CONTROL_S = 0.5
"""By then a control period has passed since something was asked for."""
SLACK = 1e-3
"""Relative, for rounding of what is sent."""
SMALL = 1e-6


@EXECUTOR_CHECKS.add("executor status is latched", EXECUTOR_STATUS, "", "Latched (reliable, "
                     "transient local, depth 1)")  # fmt: skip
def status_latched(record: ExecutorRecord) -> Verdict:
    """Quality of service of `~/executor_status`, and that a late joiner got one."""
    topic = f"{record.node}/executor_status"
    verdict = latched(record, topic, "reliable transient_local")
    return verdict if record.statuses else none_of(["no status came"], 1, "listener")


@EXECUTOR_CHECKS.add("executor status once per second", EXECUTOR_STATUS, "", "published when "
                     "anything but a number changes and once per second.")  # fmt: skip
def status_rate(record: ExecutorRecord) -> Verdict:
    """The longest gap; changes come in between."""
    heard = record.statuses
    longest = max((b.mono_s - a.mono_s for a, b in pairwise(heard)), default=record.seconds)
    if record.seconds < 4.0:
        return absent(f"listened for {record.seconds:.1f} s only")
    text = f"{len(heard)} statuses in {record.seconds:.1f} s, longest gap {longest:.1f} s"
    return failed(text) if longest > LONGEST_GAP_S else passed(text)


@EXECUTOR_CHECKS.add("reason", EXECUTOR_STATUS, "", "Why it does not follow, empty if it does")
def reason(record: ExecutorRecord) -> Verdict:
    """Mode and reason of every status."""
    broken = [
        f"{MODES.get(item.message.mode)} with reason {item.message.reason!r}"
        for item in record.statuses
        if (item.message.mode == FOLLOWING) == bool(item.message.reason)
    ]
    return none_of(broken, len(record.statuses), "statuses")


@EXECUTOR_CHECKS.add("stops keep it from following", EXECUTOR_STATUS, "", "What keeps it from "
                     "following, whatever the mode says first.")  # fmt: skip
def stops(record: ExecutorRecord) -> Verdict:
    """With stop, halt, fault or without permission the mode is stopped or fault."""
    broken, seen = [], 0
    previous: tuple[bool, ...] | None = None
    since_s = -CONTROL_S
    for item in record.statuses:
        status = item.message
        now = (status.stopped, status.halted, not status.enabled, bool(status.fault))
        if now != previous:
            previous, since_s = now, item.mono_s
        if item.mono_s - since_s < CONTROL_S:
            continue  # the mode is that of the command before
        seen += 1
        blocked = status.mode in (STOPPED, FAULT)
        if any(now) and not blocked:
            broken.append(
                f"{MODES.get(status.mode)} while stopped, halted, not enabled, fault={now}"
            )
        if status.mode == FAULT and not status.fault:
            broken.append("fault without a text")
    return none_of(broken, seen, "statuses")


@EXECUTOR_CHECKS.add("intervention", EXECUTOR_STATUS, "", "A person is in charge.")
def intervention(record: ExecutorRecord) -> Verdict:
    """Mode teleoperated only with intervention, but for the moment of handing back."""
    broken = [
        "teleoperated without intervention"
        for a, b in pairwise(record.statuses)
        if all(
            item.message.mode == TELEOPERATED and not item.message.intervention for item in (a, b)
        )
    ]
    return none_of(broken, len(record.statuses), "statuses")


@EXECUTOR_CHECKS.add("numbers of a status", EXECUTOR_STATUS, "", "Joints in command order, the "
                     "command sent last, and where they were measured; empty before.")  # fmt: skip
def numbers(record: ExecutorRecord) -> Verdict:
    """Lengths, finite values, speed_scale from 0 to 1."""
    broken = []
    for item in record.statuses:
        status = item.message
        count = len(status.joints)
        for name in ("commanded", "measured"):
            values = getattr(status, name)
            if len(values) not in (0, count) or not all(map(math.isfinite, values)):
                broken.append(f"{len(values)} values in {name} for {count} joints")
        if not 0 <= status.speed_scale <= 1 or not status.reason_age_s >= 0:
            broken.append(f"speed_scale {status.speed_scale}, age {status.reason_age_s}")
    return none_of(broken, len(record.statuses), "statuses")


@EXECUTOR_CHECKS.add(
    "executor diagnostics", EXECUTOR, "", "mode, reason, refused chunks by reason"
)
def diagnostics(record: ExecutorRecord) -> Verdict:
    """About 1 Hz, with these keys, ERROR exactly in a fault."""
    items = record.entries.get("executor", [])
    broken = []
    for item in items:
        keys = {pair.key for pair in item.message.values}
        broken += [f"lacks {key}" for key in ("mode", "reason", "refused") if key not in keys]
        if (item.level == 2) != (item.value("mode") == "fault"):
            broken.append(f"level {item.level} in mode {item.value('mode')}")
    if broken:
        return none_of(broken, len(items), "reports")
    if len(items) < 2:
        return once_per_second(items, record.seconds, "reports")
    longest = max(gaps(items))  # changes of the mode are reported in between
    text = f"{len(items)} reports, longest gap {longest:.1f} s"
    return failed(text) if longest > LONGEST_GAP_S else passed(text)


def _periods(record: ExecutorRecord) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """Joint -> commands of one stretch without a pause; a pause ends commanding."""
    pause_s = max(1.0, 20 / record.number("control_rate_hz", 20.0))
    for joint, track in record.tracks():
        stretch = track[:1]
        for before, after in pairwise(track):
            if after[0] - before[0] > pause_s:
                yield joint, stretch
                stretch = []
            stretch.append(after)
        yield joint, stretch


@EXECUTOR_CHECKS.add("finite commands", EXECUTOR, "", "keeps the joint limits whatever a chunk "
                     "says.")  # fmt: skip
def positions(record: ExecutorRecord) -> Verdict:
    """Every position is finite and, once inside the limits, stays there."""
    broken, seen = [], 0
    for joint, track in record.tracks():
        limit = record.limits.get(joint)
        inside = False
        for _, value in track:
            seen += 1
            if not math.isfinite(value):
                broken.append(f"{joint}: {value}")
            elif limit is not None and limit.lower is not None and limit.upper is not None:
                slack = SLACK * (limit.upper - limit.lower)
                is_inside = limit.lower - slack <= value <= limit.upper + slack
                if inside and not is_inside:
                    broken.append(f"{joint} at {value:.4f}, limits {limit.lower} to {limit.upper}")
                inside = inside or is_inside
    return none_of(broken, seen, "commands of a joint")


def _derivative(record: ExecutorRecord, name: str, order: int) -> Verdict:
    """Differences of commands of some order against a limit times the period to that power."""
    period = (1.0 / record.number("control_rate_hz", 20.0)) ** order
    slack, small = (1 + SLACK, SMALL) if order == 1 else (1 + 10 * SLACK, 4 * SMALL)
    broken, seen = [], 0
    for joint, track in _periods(record):
        limit = getattr(record.limits.get(joint), name, None)
        if limit is None:
            continue
        values = [value for _, value in track]
        for _ in range(order):
            values = [b - a for a, b in pairwise(values)]
        seen += len(values)
        rates = [abs(value) / period for value in values]
        over = [rate for rate in rates if rate > limit * slack + small / period]
        broken += [f"{joint}: {name} {rate:.3f}, limit {limit:g}" for rate in over]
    return none_of(broken, seen, "steps") if record.limits else absent("limits are not readable")


@EXECUTOR_CHECKS.add("velocity limits", EXECUTOR, "", "Every command keeps position, velocity and "
                     "acceleration limits relative to the one before, whatever a chunk "
                     "says")  # fmt: skip
def velocity(record: ExecutorRecord) -> Verdict:
    """Differences of two commands."""
    return _derivative(record, "velocity", 1)


@EXECUTOR_CHECKS.add("acceleration limits", EXECUTOR, "", "it brakes within the acceleration "
                     "limit and holds.")  # fmt: skip
def acceleration(record: ExecutorRecord) -> Verdict:
    """Second differences; before the first command is rest."""
    return _derivative(record, "acceleration", 2)


def _spans(record: ExecutorRecord, modes: tuple[int, ...]) -> Iterator[tuple[float, float]]:
    """Times from one status to another between which the mode was always one of these."""
    begin: Heard | None = None
    last: Heard | None = None
    for item in record.statuses:
        if item.message.mode not in modes:
            if begin is not None and last is not None:
                yield begin.mono_s, last.mono_s
            begin = None
        elif begin is None:
            begin = item
        last = item
    if begin is not None and last is not None:
        yield begin.mono_s, last.mono_s


@EXECUTOR_CHECKS.add("waiting commands nothing", EXECUTOR_STATUS, "", "nothing is commanded; the "
                     "next chunk starts at the measured joints")  # fmt: skip
def waiting(record: ExecutorRecord) -> Verdict:
    """No commands while all statuses say waiting."""
    broken, seconds = [], 0.0
    for begin, end in _spans(record, (WAITING,)):
        seconds += max(0.0, end - begin - 2 * EDGE_S)
        for topic, series in record.commands.items():
            sent = sum(begin + EDGE_S < at < end - EDGE_S for at, _ in series)
            if sent:
                broken.append(f"{sent} commands on {topic}")
    return none_of(broken, round(seconds), "seconds of waiting")


@EXECUTOR_CHECKS.add("holding is at rest", EXECUTOR_STATUS, "", "brakes and holds: no fresh "
                     "chunk, stale or doubtful joint states")  # fmt: skip
def holding(record: ExecutorRecord) -> Verdict:
    """Commands are constant once the arm had time to brake."""
    broken, seconds = [], 0.0
    for begin, end in _spans(record, (HOLDING, STOPPED, FAULT)):
        seconds += max(0.0, end - begin - BRAKING_S - EDGE_S)
        for joint, track in record.tracks():
            held = [value for at, value in track if begin + BRAKING_S < at < end - EDGE_S]
            if held and max(held) - min(held) > SMALL:
                broken.append(f"{joint} moves by {max(held) - min(held):.4f}")
    return none_of(broken, round(seconds), "seconds of holding")


@EXECUTOR_CHECKS.add("random weights move nothing", EXECUTOR, "Which chunks are refused", "random "
                     "weights, unless `allow_random_weights` (for simulations)")  # fmt: skip
def random_weights(record: ExecutorRecord) -> Verdict:
    """Mode following never, if the only chunks are those of random weights."""
    if record.parameters.get("allow_random_weights", False) or not record.only_random_chunks:
        return absent("allowed, or other chunks came")
    broken = [
        "follows chunks of random weights"
        for item in record.statuses
        if item.message.mode == FOLLOWING
    ]
    return none_of(broken, len(record.statuses), "statuses")


@EXECUTOR_CHECKS.add("control rate", EXECUTOR, "Parameters", "Commands per second.")
def control_rate(record: ExecutorRecord) -> Verdict:
    """Commands while the mode is following, as often as asked for or, on a busy machine, less."""
    asked = record.number("control_rate_hz", 20.0)
    if record.parameters.get("use_sim_time"):
        return absent("on simulated time")
    spans = [(a, b) for a, b in _spans(record, (FOLLOWING,)) if b - a > 2.0]
    if not spans or not any(record.commands.values()):
        return absent("not following for two seconds")
    broken, seen = [], 0
    for topic, series in record.commands.items():
        for begin, end in spans:
            sent = sum(begin <= at <= end for at, _ in series)
            seen += sent
            rate = sent / (end - begin)
            if not 0.5 * asked <= rate <= 1.2 * asked + 1:
                broken.append(f"{topic}: {rate:.1f} Hz, asked {asked:g} Hz")
    return none_of(broken, seen, "commands")
