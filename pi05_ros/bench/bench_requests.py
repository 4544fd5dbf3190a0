"""What a benchmark is asked to measure: its options; this imports neither torch nor ROS."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pi05_ros.errors import InvalidValueError
from pi05_ros.request_options import option, positive, require_within, words

MODEL_PRESETS = ("pi05", "tiny")
MIXES = ("bf16", "fp8", "fp8-w8a16", "int8", "int8-w8a16")
"""Words of `model.config.PRESETS` and `backends.workload.MIXES`, which --help does not import."""


def frame_size(text: str) -> tuple[int, int]:
    """``WxH`` to (height, width)."""
    width, _, height = text.partition("x")
    return positive(height), positive(width)


def counts(text: str) -> tuple[int, ...]:
    """``1,2,4`` to numbers."""
    return tuple(positive(word) for word in text.split(","))


@dataclass(frozen=True)
class ModelBenchRequest:
    """Stages and totals of one model on this GPU."""

    checkpoint: str | None = option(None, "weights; random ones without it")
    preset: str = option("pi05", "of random weights", choices=MODEL_PRESETS)
    precision: str = option("auto", "of prefill and denoise", choices=("auto", *MIXES))
    vision: str | None = option(None, "vision apart from the mix", choices=("bf16", "fp8", "int8"))
    views: int = option(2, "images, 0 to 3 (default 2)", choices=range(4), metavar="N")
    tokens: int = option(20, "prompt tokens", type=positive)
    horizon: int = option(50, "steps of a chunk (default 50)", type=positive)
    steps: tuple[int, ...] = option(
        (1, 3, 10), "denoise steps, one table each", type=positive, nargs="+"
    )
    image: tuple[int, int] = option((224, 224), "frame size, WxH (224x224)", type=frame_size)
    runs: int = option(200, "how often each time is taken", type=positive)
    depth: int | None = option(None, "student: layers of both stacks")
    width: float = option(1.0, "student: factor on the MLP widths")
    backend: str = option(
        "cuda", "eager: the plain model alone, without a GPU too", choices=("cuda", "eager")
    )
    overlap: bool = option(False, "also frame after frame with two under way")
    eager: bool = option(True, "skip the plain model")


@dataclass(frozen=True)
class CompareRequest:
    """Two source trees or two settings of `pi05 bench model`, in turn in fresh processes."""

    trees: tuple[str, ...] = ()
    a: tuple[str, ...] = option((), "options of bench model for side A, as one text", type=words)
    b: tuple[str, ...] = option((), "same, for side B", type=words)
    options: tuple[str, ...] = option(
        (),
        "same, for both (behind --no-eager --steps 10): --preset, --precision, --views ...",
        type=words,
    )
    pairs: int = option(4, "runs of each side, 2 to 100", within=(2, 100))
    row: str = option("total", "of the report that is judged")
    level: float = option(0.95, "confidence of the interval")
    history: Path | None = option(None, "JSON file that a record of every run is added to")

    def __post_init__(self) -> None:
        """Refuse what cannot be compared."""
        if len(self.trees) not in (0, 2):
            raise InvalidValueError("two sides are compared: A and B, or none for two settings")
        require_within(self)
        if not 0.5 <= self.level < 1:
            raise InvalidValueError(f"--level is {self.level}; accepted: 0.5 to below 1")


@dataclass(frozen=True)
class NodeLoad:
    """What a policy node under load runs, and its load beside the cameras."""

    checkpoint: str = option("random:tiny", "path, or random:tiny (default)")
    robot: str = option("sim_arm", "robot profile (default sim_arm)")
    cameras: int = option(2, "cameras of the robot that are used")
    joint_hz: float = option(100.0, "joint states per second (100)", within=(0.1, 10000))
    threads: int = option(1, "CPU threads of the model")
    backend: str = option("auto", "engine of the node (default auto)")
    precision: str = option("auto", "of all three stages (default auto)")
    prompt: str = option("pick up the red block", "instruction of the policy")
    out: Path = option(Path("out/bench_node"), "folder for logs and the recording")

    def __post_init__(self) -> None:
        """Refuse a load that cannot be published."""
        require_within(self)


@dataclass(frozen=True)
class NodeBenchRequest(NodeLoad):
    """Load for the policy node, with synthetic cameras and joint states."""

    duration: float = option(30.0, "seconds of load", within=(2, 86400))
    rate: float = option(10.0, "inferences per second")
    width: int = option(640, "pixels", within=(1, 4096))
    height: int = option(480, "pixels", within=(1, 4096))
    camera_hz: float = option(30.0, "images per second and camera (30)", within=(0.1, 1000))


@dataclass(frozen=True)
class BatchBenchRequest:
    """What `pi05 bench batch` measures; one request in a call is always measured."""

    preset: str = option("pi05", "sizes of random weights", choices=MODEL_PRESETS)
    device: str = option("cuda", "torch device; cpu only shows that it runs")
    batches: tuple[int, ...] = option((2, 4, 8), "requests in one call: 2,4,8", type=counts)
    views: int = option(2, "images (default 2)", type=positive)
    tokens: int = option(20, "prompt tokens (default 20)", type=positive)
    horizon: int = option(50, "steps of a chunk (default 50)", type=positive)
    steps: int = option(10, "denoise steps (default 10)", type=positive)
    runs: int = option(20, "how often each time is taken", type=positive)


@dataclass(frozen=True)
class ServeBenchRequest:
    """What `pi05 bench serve` measures."""

    checkpoint: str | None = None
    robot: str = option("droid", "robot profile")
    robots: tuple[int, ...] = option((1,), "clients at a time: 1,2,4,8", type=counts)
    rate: float = option(10.0, "requests per second of each")
    seconds: float = option(10.0, "for each number of robots")
    image: tuple[int, int] = option(
        (224, 224), "of two raw images, WxH (224x224)", type=frame_size
    )
    deadline_ms: float = option(100.0, "later answers are missed")
    serve: tuple[str, ...] = option((), "further options of pi05 serve, as one text", type=words)

    def __post_init__(self) -> None:
        numbers = (self.rate, self.seconds, self.deadline_ms, *self.robots, *self.image)
        if not self.robots or not all(number > 0 for number in numbers):
            raise InvalidValueError(
                "robots, rate, seconds, image and deadline-ms are accepted above 0 only"
            )


@dataclass(frozen=True)
class CameraLoad:
    """Size, pixels, and rate of the images of every camera.

    Attributes:
        jpeg: compressed images instead of raw ones.
        cameras: how many of the robot's cameras; None: as the request says.

    """

    width: int
    height: int
    hz: float
    jpeg: bool = False
    cameras: int | None = None

    def __str__(self) -> str:
        """As it is given: 640x480@30, 3*640x480@30jpeg."""
        count = "" if self.cameras is None else f"{self.cameras}*"
        return f"{count}{self.width}x{self.height}@{self.hz:g}{'jpeg' if self.jpeg else ''}"

    @classmethod
    def parse(cls, text: str) -> CameraLoad:
        """Read [N*]WxH@HZ[jpeg]; raises InvalidValueError naming what is accepted."""
        pattern = r"(?:(\d)\*)?(\d{1,4})x(\d{1,4})@(\d{1,4}(?:\.\d+)?)(jpeg)?"
        found = re.fullmatch(pattern, text.strip())
        if not found:
            raise InvalidValueError(
                f"--grid {text!r}; accepted: WxH@HZ, as 640x480@30, 3*640x480@30 for three "
                "cameras, 640x480@30jpeg for compressed images"
            )
        cameras = None if found[1] is None else int(found[1])
        width, height, hz = int(found[2]), int(found[3]), float(found[4])
        if not (1 <= width <= 4096 and 1 <= height <= 4096 and 0.1 <= hz <= 1000):
            raise InvalidValueError(
                f"--grid {text!r}; accepted: up to 4096 pixels a side, 0.1 to 1000 Hz"
            )
        return cls(width, height, hz, found[5] is not None, cameras)


@dataclass(frozen=True)
class NodeGridRequest(NodeLoad):
    """Camera settings times inference rates for a policy node.

    It is loaded once for each number of cameras and kind of images.
    """

    grid: tuple[CameraLoad, ...] = ()
    rates: tuple[float, ...] = (10.0, 30.0, 60.0)
    seconds: float = option(6.0, "with --grid: of each cell", within=(1, 3600))
    direct_seconds: float = option(2.0, "with --grid: of direct calls, per rate", within=(0.2, 60))
    tokenizer: str = option("", "with --grid: the node's parameter")
    denoise_steps: int = 10
    pretend_ms: float = option(
        0.0,
        "with --grid: inferences sleep so long instead of computing, as a GPU lets the CPU",
        within=(0, 10000),
    )
    overlap: bool = option(False, "with --grid: overlap prefill and denoising")
    isolation: str = option("thread", "with --grid", choices=("thread", "process"))

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        super().__post_init__()
        if self.pretend_ms and self.isolation != "thread":
            raise InvalidValueError("--pretend-ms goes with --isolation thread")
        if not self.grid or not self.rates:
            raise InvalidValueError("--grid and --rates name one setting at least")
        for rate in self.rates:
            if not 0.1 <= rate <= 200:
                raise InvalidValueError(f"--rates {rate:g}; accepted: 0.1 to 200 Hz")
