"""Which topic of a bag feeds which input of the policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pi05_ros.bags.bag import Bag, BagError
from pi05_ros.bags.cdr_messages import COMPRESSED_IMAGE, IMAGE, JOINT_STATE, STRING

JOINT_STATES = "joint_states"
PROMPT = "prompt"
CAMERAS = ("base_camera", "wrist_camera", "wrist_camera_2")
"""Those of the usual roles; a LeRobot policy of more cameras has others, called <role>_camera."""
INPUT_NAMES = (*CAMERAS, JOINT_STATES, PROMPT)


def is_camera(name: str) -> bool:
    """Whether an input is a camera."""
    return name not in (JOINT_STATES, PROMPT)


@dataclass(frozen=True)
class Source:
    """One input of the policy node and the bag topic that carries it.

    Attributes:
        name: input name as in ActionChunk.input_names, or "prompt".
        topic: topic in the bag.
        msgtype: its type in the bag.

    """

    name: str
    topic: str
    msgtype: str

    @property
    def compressed(self) -> bool:
        """True for sensor_msgs/CompressedImage."""
        return self.msgtype == COMPRESSED_IMAGE

    @property
    def node_topic(self) -> str:
        """Name under which a policy node without remaps expects it."""
        if not is_camera(self.name):
            return self.name
        return f"{self.name}/image_raw" + ("/compressed" if self.compressed else "")


def by_topic(sources: Mapping[str, Source]) -> dict[str, list[str]]:
    """Inputs that each topic feeds; one topic may feed several."""
    found: dict[str, list[str]] = {}
    for name, source in sources.items():
        found.setdefault(source.topic, []).append(name)
    return found


def accepted_types(name: str) -> tuple[str, ...]:
    """Message types that may feed an input."""
    if name in CAMERAS:
        return (IMAGE, COMPRESSED_IMAGE)
    if is_camera(name):  # the node takes no compressed images of other roles
        return (IMAGE,)
    return (JOINT_STATE,) if name == JOINT_STATES else (STRING,)


def parse_map(entries: Iterable[str]) -> dict[str, str]:
    """Turn ["base_camera=/cam/image_raw", ...] into a mapping.

    Raises:
        BagError: an entry is not NAME=TOPIC, or NAME is not an input.

    """
    mapping: dict[str, str] = {}
    for entry in entries:
        name, separator, topic = entry.partition("=")
        name = name.strip().strip("/")
        if not separator or not topic.strip():
            raise BagError(f"--map {entry!r} is not NAME=TOPIC")
        if name not in INPUT_NAMES and not name.endswith("_camera"):
            raise BagError(f"--map names {name!r}; inputs are {', '.join(INPUT_NAMES)}")
        if name in mapping:
            raise BagError(f"--map names {name} twice")
        mapping[name] = "/" + topic.strip().lstrip("/")
    return mapping


def find_sources(
    bag: Bag,
    required: Iterable[str],
    optional: Iterable[str] = (),
    mapping: Mapping[str, str] | None = None,
    namespace: str = "",
) -> dict[str, Source]:
    """Pick the topic of each input.

    Args:
        bag: an open bag.
        required: inputs that must be found.
        optional: inputs that may be absent.
        mapping: input -> topic, wins over the search by name.
        namespace: only topics below it are searched ("" searches all).

    Raises:
        BagError: a required input has no topic, several topics fit, or the type is wrong. The
            text lists what the bag holds.

    """
    mapping = dict(mapping or {})
    found: dict[str, Source] = {}
    required = tuple(required)
    for name in (*required, *optional):
        if name in mapping:
            found[name] = _mapped(bag, name, mapping[name])
            continue
        fits = _search(bag, name, namespace)
        if len({_camera_topic(topic) for topic in fits}) > 1:
            raise BagError(
                f"several topics of {bag.path} could be {name}: {', '.join(sorted(fits))}; "
                f"choose one with --map {name}=TOPIC or --namespace"
            )
        if fits:  # raw before compressed: no decoder between the recording and the model
            topic = min(fits, key=len)
            found[name] = Source(name, topic, bag.topics[topic].msgtype)
        elif name in required:
            raise BagError(
                f"{bag.path} has no topic for {name} (looked for "
                f"{_pattern(name, namespace)}); name it with --map {name}=TOPIC. "
                f"Topics in the bag:\n{bag.describe_topics()}"
            )
    return found


def _mapped(bag: Bag, name: str, topic: str) -> Source:
    info = bag.topics.get(topic)
    if info is None:
        raise BagError(
            f"{bag.path} has no topic {topic} (asked for as {name}). "
            f"Topics in the bag:\n{bag.describe_topics()}"
        )
    accepted = accepted_types(name)
    if info.msgtype not in accepted:
        raise BagError(
            f"{topic} in {bag.path} is {info.msgtype}; {name} takes {' or '.join(accepted)}"
        )
    return Source(name, topic, info.msgtype)


def _search(bag: Bag, name: str, namespace: str) -> list[str]:
    """Topics that are called like the input, below the namespace, empty ones last resort."""
    prefix = "/" + namespace.strip("/") + "/" if namespace.strip("/") else "/"
    endings = [f"/{name}/image_raw", f"/{name}/image_raw/compressed"]
    endings = endings if is_camera(name) else [f"/{name}"]
    named = [
        topic
        for topic in bag.topics
        if topic.startswith(prefix) and any(topic.endswith(ending) for ending in endings)
    ]
    wrong = [t for t in named if bag.topics[t].msgtype not in accepted_types(name)]
    if named and len(wrong) == len(named):
        raise BagError(
            f"{wrong[0]} in {bag.path} is {bag.topics[wrong[0]].msgtype}; "
            f"{name} takes {' or '.join(accepted_types(name))}"
        )
    good = [topic for topic in named if topic not in wrong]
    return [topic for topic in good if bag.topics[topic].count] or good


def _camera_topic(topic: str) -> str:
    return topic.removesuffix("/compressed")


def _pattern(name: str, namespace: str) -> str:
    prefix = "/" + namespace.strip("/") if namespace.strip("/") else ""
    if not is_camera(name):
        return f".../{name}"
    return f"{prefix}/.../{name}/image_raw" + ("[/compressed]" if name in CAMERAS else "")
