"""Promises about status and diagnostics of the policy node."""

from __future__ import annotations

from itertools import pairwise

from pi05_ros.conformance.heard import (
    DIAGNOSTICS_PERIOD_S,
    LONGEST_GAP_S,
    Heard,
    NodeRecord,
    PolicyRecord,
    gaps,
)
from pi05_ros.conformance.promises import (
    NODE,
    STATUS,
    Checks,
    Verdict,
    absent,
    failed,
    none_of,
    passed,
)

POLICY: Checks[PolicyRecord] = Checks()
ACTIVE = 3
LABELS = {1: "unconfigured", 2: "inactive", 3: "active", 4: "finalized"}
STALE, OK = 3, 0
INFERENCE_KEYS = (
    "backend", "backend_reason", "precision", "device", "rate_hz", "asked_rate_hz", "published",
    "skipped_ticks", "nan_chunks", "late_chunks", "dropped_chunks", "errors",
)  # fmt: skip
SOURCE_KEYS = ("rate_hz", "age_ms", "received", "dropped")
LONG_ENOUGH_S = 4.0


def once_per_second(heard: list[Heard], seconds: float, what: str) -> Verdict:
    """Whether messages came at 1 Hz, give or take what a busy machine does to a timer."""
    if seconds < LONG_ENOUGH_S:
        return absent(f"listened for {seconds:.1f} s only")
    if len(heard) < 2:
        return failed(f"{len(heard)} {what} in {seconds:.1f} s")
    seconds = heard[-1].mono_s - heard[0].mono_s
    due = seconds / DIAGNOSTICS_PERIOD_S
    longest = max(gaps(heard))
    text = f"{len(heard)} {what} in {seconds:.1f} s, longest gap {longest:.1f} s"
    wrong = longest > LONGEST_GAP_S or not 0.6 * due - 1 <= len(heard) <= 1.3 * due + 2
    return failed(text) if wrong else passed(text)


def latched(record: NodeRecord, topic: str, due: str) -> Verdict:
    """Whether the publisher of a topic has this QoS."""
    found = record.qos.get(topic)
    if found is None:
        return absent(f"no publisher of {topic}")
    return none_of([f"{topic} is {found}"] if found != due else [], 1, f"topic, {found}")


@POLICY.add("status is latched", NODE, "Topics and services", "out, reliable, transient local, "
            "depth 1 | in every state, on each change and at the end")  # fmt: skip
def status_latched(record: PolicyRecord) -> Verdict:
    """Quality of service of `~/status`, and that a late joiner got one."""
    verdict = latched(record, f"{record.node}/status", "reliable transient_local")
    return verdict if record.statuses else none_of(["no status came"], 1, "listener")


@POLICY.add("chunks are reliable", NODE, "Topics and services", "out, reliable, volatile, depth 1")
def chunk_qos(record: PolicyRecord) -> Verdict:
    """Quality of service of `~/action_chunk`."""
    return latched(record, f"{record.node}/action_chunk", "reliable volatile")


@POLICY.add("status state", STATUS, "", "Lifecycle state (values of lifecycle_msgs/State primary "
            "states).")  # fmt: skip
def state(record: PolicyRecord) -> Verdict:
    """The newest status against `~/get_state`."""
    if not record.statuses or record.state not in LABELS.values():
        return absent(f"get_state: {record.state or 'no answer'}")
    shown = LABELS.get(record.statuses[-1].message.state, "?")
    broken = [f"status {shown}, get_state {record.state}"] if shown != record.state else []
    return none_of(broken, 1, f"state, {shown}")


@POLICY.add("policy_id of a status", STATUS, "", "As in ActionChunk; empty while not active.")
def policy_id(record: PolicyRecord) -> Verdict:
    """Whether there is one exactly while active."""
    broken = [
        f"state {LABELS.get(item.message.state)}: policy_id {item.message.policy_id!r}"
        for item in record.statuses
        if bool(item.message.policy_id) != (item.message.state == ACTIVE)
    ]
    return none_of(broken, len(record.statuses), "statuses")


@POLICY.add("hash of the weights", STATUS, "", "a hash of the weights (\"sha256:...\" or "
            "\"random:<preset>:<seed>\").")  # fmt: skip
def weights(record: PolicyRecord) -> Verdict:
    """Form of the hash, and that random weights say so."""
    loaded = [item.message for item in record.statuses if item.message.state in (2, ACTIVE)]
    broken = []
    for status in loaded:
        random = status.checkpoint_hash.startswith("random:")
        known = (
            random or status.checkpoint_hash.startswith("sha256:") or status.backend == "remote"
        )
        if not known or random != status.random_weights:
            broken.append(f"{status.checkpoint_hash!r}, random_weights {status.random_weights}")
        elif not (status.robot and status.backend and status.precision_denoise):
            broken.append(f"robot {status.robot!r}, backend {status.backend!r}")
    return none_of(broken, len(loaded), "statuses of a loaded policy")


@POLICY.add("status on each change", STATUS, "", "published again whenever a field changes")
def changes(record: PolicyRecord) -> Verdict:
    """Two statuses in a row differ, apart from the stamp."""

    def told(heard: Heard) -> list[object]:
        fields = heard.message.get_fields_and_field_types()
        return [getattr(heard.message, name) for name in fields if name != "stamp"]

    broken = [
        "the same status twice"
        for a, b in pairwise(record.statuses)
        if told(a) == told(b) and a.message.state != 4
    ]
    return none_of(broken, len(record.statuses), "statuses")


@POLICY.add(
    "diagnostics at 1 Hz", NODE, "Topics and services", "1 Hz of real time, in every state"
)
def diagnostics_rate(record: PolicyRecord) -> Verdict:
    """Number of arrays and the longest gap."""
    return once_per_second(record.entries.get("inputs", []), record.seconds, "reports")


@POLICY.add("two entries", NODE, "Diagnostics", "Two entries per node, `<node>: inputs` and "
            "`<node>: inference`")  # fmt: skip
def entries(record: PolicyRecord) -> Verdict:
    """Names, and as many of one as of the other."""
    counts = {name: len(items) for name, items in record.entries.items()}
    names = {"inputs", "inference"}
    wrong = set(counts) != names or abs(counts["inputs"] - counts["inference"]) > 1
    return none_of([str(counts)] if wrong else [], 1, f"pair of entries, {counts}")


@POLICY.add("stale entries", NODE, "Diagnostics", "STALE while the node is not active.")
def stale(record: PolicyRecord) -> Verdict:
    """Level of the entries against the state around them."""
    broken, seen = [], 0
    for name, items in record.entries.items():
        for item in items:
            before = [s.message.state for s in record.statuses if s.mono_s <= item.mono_s]
            near = any(abs(s.mono_s - item.mono_s) < LONGEST_GAP_S for s in record.statuses[1:])
            if not before or near:
                continue  # around a transition either may come first
            seen += 1
            if (item.level == STALE) == (before[-1] == ACTIVE):
                broken.append(f"{name} has level {item.level} while {LABELS[before[-1]]}")
    return none_of(broken, seen, "entries")


@POLICY.add("keys of diagnostics", NODE, "Diagnostics", "per source `rate_hz`, `age_ms`, "
            "`received`, `dropped`")  # fmt: skip
def keys(record: PolicyRecord) -> Verdict:
    """The keys of the newest pair of entries while active."""
    broken: list[str] = []
    active = {
        name: item
        for name, items in record.entries.items()
        for item in items
        if item.level != STALE
    }
    if inference := active.get("inference"):
        found = {pair.key for pair in inference.message.values}
        broken += [f"inference lacks {key}" for key in INFERENCE_KEYS if key not in found]
    if sources := active.get("inputs"):
        found = {pair.key for pair in sources.message.values}
        names = {key.partition(".")[0] for key in found if key.endswith(".received")}
        broken += [
            f"inputs lack {name}.{key}"
            for name in sorted(names | {"joint_states"})
            for key in SOURCE_KEYS
            if f"{name}.{key}" not in found
        ]
    return none_of(broken, len(active), "entries of an active node")


@POLICY.add("diagnostics say why", NODE, "Which samples are used", "Every reason is counted per "
            "source in diagnostics; nothing is published otherwise.")  # fmt: skip
def say_why(record: PolicyRecord) -> Verdict:
    """Where no chunk came over three reports, one of them is not OK and has a text."""
    period_s = 1.0 / max(record.number("rate_hz", 10.0), 0.1)
    if period_s > DIAGNOSTICS_PERIOD_S:
        return absent("less than one inference per second is asked for")
    came = [heard.mono_s for heard in record.chunks]
    items = record.entries.get("inputs", [])
    other = {round(item.mono_s, 1): item for item in record.entries.get("inference", [])}
    broken, seen = [], 0
    for a, b, c in zip(items, items[1:], items[2:], strict=False):
        three = [
            a,
            b,
            c,
            *(x for at, x in other.items() if a.mono_s - 0.2 <= at <= c.mono_s + 0.2),
        ]
        if any(item.level == STALE for item in three):
            continue
        seen += 1
        silent = not any(a.mono_s <= at <= c.mono_s for at in came)
        if silent and all(item.level == OK for item in three):
            broken.append(f"no chunk for {c.mono_s - a.mono_s:.1f} s and all entries are OK")
        if any(item.level != OK and not item.message.message for item in three):
            broken.append("a warning without a text")
    return none_of(broken, seen, "times three reports")


@POLICY.add("published is counted", NODE, "Diagnostics", "`published`")
def published(record: PolicyRecord) -> Verdict:
    """The counter rises at least by the chunks that came meanwhile, but for two on their way."""
    items = [item for item in record.entries.get("inference", []) if item.level != STALE]
    broken, start = [], 0
    for index, item in enumerate(items):
        if index + 1 < len(items) and items[index + 1].count("published") >= item.count(
            "published"
        ):
            continue  # until it starts again, or to the end
        first = items[start]
        risen = item.count("published") - first.count("published")
        came = sum(first.mono_s < heard.mono_s < item.mono_s for heard in record.chunks)
        if risen + 2 < came:
            broken.append(f"published rose by {risen} while {came} chunks came")
        start = index + 1
    return none_of(broken, max(0, len(items) - 1), "pairs of reports")
