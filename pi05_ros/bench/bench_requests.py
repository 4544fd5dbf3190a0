"""What a benchmark is asked to measure; importing this needs neither torch nor ROS."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pi05_ros.errors import InvalidValueError


@dataclass(frozen=True)
class ModelBenchRequest:
    """Stages and totals of one model on this GPU.

    Attributes:
        checkpoint: weights; None: random ones of `preset`.
        preset: sizes of random weights.
        precision: "auto" or one of the mixes of `backends.workload`.
        vision: precision of the vision tower apart from that; None: as the mix says.
        views, tokens, horizon: of the inference that is timed.
        steps: denoise step counts, one table each.
        image: frame height and width in pixels.
        runs: how often each time is taken.
        depth, width: layers of both stacks and factor on MLP widths of a smaller (student) model.
        overlap: also time frame after frame with two under way.
        eager: also time the plain model.
        backend: "cuda", or "eager": the plain model alone, which runs without a GPU too.

    """

    checkpoint: str | None = None
    preset: str = "pi05"
    precision: str = "auto"
    vision: str | None = None
    views: int = 2
    tokens: int = 20
    horizon: int = 50
    steps: tuple[int, ...] = (1, 3, 10)
    image: tuple[int, int] = (224, 224)
    runs: int = 200
    depth: int | None = None
    width: float = 1.0
    overlap: bool = False
    eager: bool = True
    backend: str = "cuda"


@dataclass(frozen=True)
class CompareRequest:
    """Two source trees or two settings of `pi05 bench model`, in turn in fresh processes.

    Attributes:
        trees: folders or git revisions of A and B; none: this package on both sides.
        a, b: options of `bench model` for one side.
        options: for both.
        pairs: how often both are run.
        row: of the report that is compared.
        level: confidence of the interval.
        history: file that records are added to.

    """

    trees: tuple[str, ...] = ()
    a: tuple[str, ...] = ()
    b: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    pairs: int = 4
    row: str = "total"
    level: float = 0.95
    history: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be compared."""
        if len(self.trees) not in (0, 2):
            raise InvalidValueError("two sides are compared: A and B, or none for two settings")
        if not 2 <= self.pairs <= 100:
            raise InvalidValueError(f"--pairs is {self.pairs}; accepted: 2 to 100")
        if not 0.5 <= self.level < 1:
            raise InvalidValueError(f"--level is {self.level}; accepted: 0.5 to below 1")


@dataclass(frozen=True)
class NodeBenchRequest:
    """Load for the policy node, with synthetic cameras and joint states.

    Attributes:
        duration: seconds of load.
        rate: inferences per second.
        checkpoint, robot: what the node runs.
        cameras: how many of the robot's cameras are used.
        width, height: of the images, pixels.
        camera_hz, joint_hz: rates of the messages.
        threads: CPU threads of the model.
        backend, precision: of the engine, precision of all three stages.
        out: folder for logs and the recording.

    """

    duration: float = 30.0
    rate: float = 10.0
    checkpoint: str = "random:tiny"
    robot: str = "sim_arm"
    cameras: int = 2
    width: int = 640
    height: int = 480
    camera_hz: float = 30.0
    joint_hz: float = 100.0
    threads: int = 1
    backend: str = "auto"
    precision: str = "auto"
    out: Path = Path("out/bench_node")

    def __post_init__(self) -> None:
        """Refuse a load that cannot be published."""
        for name, low, high, unit in (
            ("duration", 2, 86400, "seconds"),
            ("width", 1, 4096, "pixels"),
            ("height", 1, 4096, "pixels"),
            ("camera_hz", 0.1, 1000, "per second"),
            ("joint_hz", 0.1, 10000, "per second"),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                option = name.replace("_", "-")
                raise InvalidValueError(f"--{option} is {value}; accepted: {low} to {high} {unit}")


@dataclass(frozen=True)
class BatchBenchRequest:
    """What `pi05 bench batch` measures.

    Attributes:
        preset: sizes of the random weights.
        device: torch device; "cpu" only shows that it runs.
        batches: requests in one call; 1 is always measured.
        views, tokens, horizon, steps: of each request.
        runs: how often each time is taken.

    """

    preset: str = "pi05"
    device: str = "cuda"
    batches: tuple[int, ...] = (2, 4, 8)
    views: int = 2
    tokens: int = 20
    horizon: int = 50
    steps: int = 10
    runs: int = 20


@dataclass(frozen=True)
class ServeBenchRequest:
    """What `pi05 bench serve` measures.

    Attributes:
        checkpoint: of the server; None: a policy that answers at once.
        robot: robot profile.
        robots: numbers of clients, one after the other.
        rate: requests per second of each.
        seconds: for each number of robots.
        image: height and width of the two raw images, pixels.
        deadline_ms: answers later than this are counted as missed.
        serve: further options of `pi05 serve`.

    """

    checkpoint: str | None = None
    robot: str = "droid"
    robots: tuple[int, ...] = (1,)
    rate: float = 10.0
    seconds: float = 10.0
    image: tuple[int, int] = (224, 224)
    deadline_ms: float = 100.0
    serve: tuple[str, ...] = ()

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
class NodeGridRequest:
    """Camera settings times inference rates for a policy node.

    It is loaded once for each number of cameras and kind of images.

    Attributes:
        grid: loads, one after the other.
        rates: inferences per second, all of them under every load.
        seconds: of each cell; direct_seconds: of each series of direct calls.
        checkpoint, tokenizer, robot, prompt, backend, precision: of the node, as its
            parameters.
        denoise_steps, threads, overlap, isolation: of the node, too.
        cameras: how many of the robot's cameras are used, where a load does not say it.
        joint_hz: joint states per second.
        pretend_ms: inferences sleep so long instead of computing; 0: they compute.
        out: folder for logs, grid.json and grid.md.

    """

    grid: tuple[CameraLoad, ...]
    rates: tuple[float, ...] = (10.0, 30.0, 60.0)
    seconds: float = 6.0
    direct_seconds: float = 2.0
    checkpoint: str = "random:tiny"
    robot: str = "sim_arm"
    prompt: str = "pick up the red block"
    tokenizer: str = ""
    backend: str = "auto"
    precision: str = "auto"
    denoise_steps: int = 10
    threads: int = 1
    overlap: bool = False
    isolation: str = "thread"
    cameras: int = 2
    joint_hz: float = 100.0
    pretend_ms: float = 0.0
    out: Path = Path("out/bench_node")

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if not 0 <= self.pretend_ms <= 10_000:
            raise InvalidValueError(f"--pretend-ms is {self.pretend_ms}; accepted: 0 to 10000")
        if self.pretend_ms and self.isolation != "thread":
            raise InvalidValueError("--pretend-ms goes with --isolation thread")
        if not 0.2 <= self.direct_seconds <= 60:
            raise InvalidValueError(
                f"--direct-seconds is {self.direct_seconds}; accepted: 0.2 to 60"
            )
        if not self.grid or not self.rates:
            raise InvalidValueError("--grid and --rates name one setting at least")
        for name, low, high in (("seconds", 1, 3600), ("joint_hz", 0.1, 10000)):
            if not low <= getattr(self, name) <= high:
                option = name.replace("_", "-")
                raise InvalidValueError(
                    f"--{option} is {getattr(self, name)}; accepted: {low} to {high}"
                )
        for rate in self.rates:
            if not 0.1 <= rate <= 200:
                raise InvalidValueError(f"--rates {rate:g}; accepted: 0.1 to 200 Hz")
