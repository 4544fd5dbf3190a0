"""What the player process is told: a JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pi05_ros.bags.topics import Source
from pi05_ros.small_files import read_json, write_atomically


@dataclass(frozen=True)
class PlayPlan:
    """One playing of a bag.

    Attributes:
        bag: path of the bag.
        sources: inputs to publish.
        base: time base, see `pi05_ros.bags.timeline`.
        speed: bag seconds per second.
        loops: how often the bag is played; the clock jumps back in between.
        clock_map: file to write the clock map to.
        bring_up: lifecycle node to configure and activate before playing, "" for none.
        configure_timeout_s: time for loading a checkpoint.

    """

    bag: str
    sources: tuple[Source, ...]
    base: str
    speed: float
    loops: int
    clock_map: str
    bring_up: str
    configure_timeout_s: float

    def write(self, path: Path) -> None:
        """Write as JSON."""
        write_atomically(path, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> PlayPlan:
        """Read what `write` wrote."""
        data = read_json(path)
        data["sources"] = tuple(Source(**source) for source in data["sources"])
        return cls(**data)
