"""What a workflow is asked to do, as frozen dataclasses; this imports neither torch nor ROS.

Every default of the engine commands is the default of a field here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pi05_ros.errors import InvalidValueError

PRECISIONS = ("fp8", "fp16", "fp32")
LAYOUTS = ("stages", "mlp_only")
FLAVORS = ("auto", "tensorrt", "rtx")
CHECKED_BACKENDS = ("tensorrt", "onnx", "simulated", "scaled_mm", "torch_tensorrt")

Say = Callable[[str], None]
"""Takes one line for the user."""
Progress = Callable[[int, int], None]
"""Takes how many of how many observations are done."""


@dataclass(frozen=True)
class ModelRequest:
    """Which checkpoint, and for which robot and sizes.

    Attributes:
        checkpoint: folder or file, or ``random:tiny``.
        robot: profile that decides cameras, horizon and prompt; None: the checkpoint's.
        tokenizer: file; None looks for it.
        device: auto, cpu or cuda.
        prompt: instruction of observations that bring none.
        views: camera slots of the graphs; None: the robot's.
        max_prompt_tokens: prompt slots of the graphs; None: the checkpoint's.
        cache: root of graphs, ranges and engines; None: the user's cache.

    """

    checkpoint: str
    robot: str | None = None
    tokenizer: str | None = None
    device: str = "auto"
    prompt: str | None = None
    views: int | None = None
    max_prompt_tokens: int | None = None
    cache: Path | None = None


@dataclass(frozen=True)
class SampleRequest:
    """Where observations come from.

    Attributes:
        observations: saved observations (.safetensors files or folders), or sample sets.
        bags: recorded bags.
        topics: ``INPUT=TOPIC`` of the bags.
        count: observations to take, evenly over all.
        allow_synthetic: random images where there is nothing else; for dry runs only.
        steps: flow steps per observation.

    """

    observations: tuple[Path, ...] = ()
    bags: tuple[Path, ...] = ()
    topics: tuple[str, ...] = ()
    count: int = 32
    allow_synthetic: bool = False
    steps: int = 10

    @property
    def named(self) -> bool:
        """Whether observations are asked for, recorded or made up."""
        return bool(self.observations or self.bags or self.allow_synthetic)


@dataclass(frozen=True)
class GraphRequest:
    """What the exported stages run in.

    Attributes:
        precision: of all stages: fp8 (vision stays fp16), fp16 or fp32.
        prefill, denoise: fp8 or fp16 for one stage alone; None follows `precision`.
        layout: "mlp_only": of the prefill only the MLPs, torch runs the attention between them.
        calibration: folder with ranges; None: the newest that fits, from the cache.

    """

    precision: str = PRECISIONS[0]
    prefill: str | None = None
    denoise: str | None = None
    layout: str = LAYOUTS[0]
    calibration: Path | None = None

    def __post_init__(self) -> None:
        """Refuse words that no stage has."""
        for name, word, accepted in (
            ("precision", self.precision, PRECISIONS),
            ("prefill", self.prefill, (None, "fp8", "fp16")),
            ("denoise", self.denoise, (None, "fp8", "fp16")),
            ("layout", self.layout, LAYOUTS),
        ):
            if word not in accepted:
                words = ", ".join(text for text in accepted if text)
                raise InvalidValueError(f"{name} is {word!r}; accepted: {words}")
        if self.precision == "fp32" and (self.prefill or self.denoise):
            raise InvalidValueError(
                "--prefill and --denoise go with --precision fp8 or fp16, not fp32"
            )

    @property
    def quantized_stages(self) -> list[str]:
        """Stages to quantize."""
        words = {"prefill": self.prefill, "denoise_step": self.denoise}
        return [stage for stage, word in words.items() if (word or self.precision) == "fp8"]


@dataclass(frozen=True)
class ExportRequest:
    """Write the stages as ONNX graphs.

    Attributes:
        model, graphs: what to export.
        full_steps: also one graph of all stages with this many steps unrolled; needs `out`.
        out: folder instead of the cache.

    """

    model: ModelRequest
    graphs: GraphRequest = GraphRequest()
    full_steps: int | None = None
    out: Path | None = None


@dataclass(frozen=True)
class CheckRequest:
    """Compare exported or compiled stages with the plain model.

    Attributes:
        model, graphs, samples: what to compare, on what.
        backend: one of `CHECKED_BACKENDS`.
        engine: engine folder; None: the newest of the cache. Only for tensorrt.
        out: folder of the report; that of engines lies with them.

    """

    model: ModelRequest
    graphs: GraphRequest = GraphRequest()
    samples: SampleRequest = SampleRequest()
    backend: str = CHECKED_BACKENDS[0]
    engine: Path | None = None
    out: Path = Path("out/check")


@dataclass(frozen=True)
class BuildRequest:
    """Compile the stages with TensorRT and check them.

    Attributes:
        model, graphs, samples: what to build, and what it is checked on.
        optimization_level: 0 to 5; None: 3, and 2 if the check refuses that.
        workspace_mib: scratch memory limit; 0: TensorRT's own.
        check: whether to check; engines stay unusable until then.
        flavor: one of `FLAVORS`; auto: what suits the GPU of this machine.
        targets: compute capabilities ("sm89", ...) to compile for with flavor rtx, also without
            such a GPU; empty: the GPU of this machine.

    """

    model: ModelRequest
    graphs: GraphRequest = GraphRequest()
    samples: SampleRequest = SampleRequest()
    optimization_level: int | None = None
    workspace_mib: int = 0
    check: bool = True
    flavor: str = FLAVORS[0]
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse flavors that do not exist, and targets of one that has none."""
        if self.flavor not in FLAVORS:
            raise InvalidValueError(f"flavor is {self.flavor!r}; accepted: {', '.join(FLAVORS)}")
        if self.targets and self.flavor == "tensorrt":
            raise InvalidValueError("--target goes with --flavor rtx: TensorRT builds on the GPU")


@dataclass(frozen=True)
class StageCalibrationRequest:
    """Find ranges for the backends onnx and tensorrt.

    Attributes:
        model, samples: what to calibrate, on what.
        preset: what is quantized and how.
        experimental: take a preset that is marked experimental.
        out: folder instead of the cache.

    """

    model: ModelRequest
    samples: SampleRequest = SampleRequest()
    preset: str = "fp8"
    experimental: bool = False
    out: Path | None = None


@dataclass(frozen=True)
class CudaCalibrationRequest:
    """Find FP8 activation scales of the cuda backend.

    Attributes:
        model, samples: what to calibrate, on what.
        vision: bf16 or fp8.
        out: NAME of NAME.safetensors and NAME.json; None: the cache, where engines find them.

    """

    model: ModelRequest
    samples: SampleRequest = SampleRequest()
    vision: str = "bf16"
    out: Path | None = None


@dataclass(frozen=True)
class TuneRequest:
    """Choose tile sizes of the cuda backend on this GPU.

    Attributes:
        preset: sizes of the model.
        views, tokens: cameras and prompt tokens of the inferences that are timed, in pairs.
        horizon: action rows of all of them.
        precisions: what is tuned, in turn.
        seconds: time for each of them.

    """

    preset: str = "pi05"
    views: tuple[int, ...] = (2, 3)
    tokens: tuple[int, ...] = (20, 200)
    horizon: int = 50
    precisions: tuple[str, ...] = field(default=("auto", "bf16"))
    seconds: float = 600.0
