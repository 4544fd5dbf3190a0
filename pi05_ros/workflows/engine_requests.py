"""What a workflow is asked to do, as frozen dataclasses; this imports neither torch nor ROS.

The options of the engine commands, their defaults and help texts are the fields here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pi05_ros.errors import InvalidValueError
from pi05_ros.request_options import REQUIRED, option, positive

PRECISIONS = ("fp8", "fp16", "fp32")
LAYOUTS = ("stages", "mlp_only")
FLAVORS = ("auto", "tensorrt", "rtx")
CHECKED_BACKENDS = ("tensorrt", "onnx", "simulated", "scaled_mm", "torch_tensorrt")

Say = Callable[[str], None]
"""Takes one line for the user."""
Progress = Callable[[int, int], None]
"""Takes how many of how many observations are done."""


@dataclass(frozen=True)
class Outlets:
    """Where a workflow tells what it does.

    Attributes:
        say: results for the user.
        warn: what the user should know besides.
        progress: observations done and in all.

    """

    say: Say = print
    warn: Say = lambda text: None
    progress: Progress = lambda done, total: None


@dataclass(frozen=True)
class ModelRequest:
    """Which checkpoint, and for which robot and sizes; without an option those of the robot."""

    checkpoint: str = option(REQUIRED, "checkpoint folder or file, or random:tiny")
    robot: str | None = option(None, "robot profile: decides cameras, horizon and prompt")
    tokenizer: str | None = option(None, "tokenizer file")
    device: str = option("auto", "auto, cpu or cuda")
    views: int | None = option(None, "camera slots (default: the robot's)", type=positive)
    max_prompt_tokens: int | None = option(None, "prompt slots", type=positive)
    cache: Path | None = option(None, "cache root instead of ~/.cache/pi05_ros/trt")


@dataclass(frozen=True)
class SampleRequest:
    """Where observations come from; `count` of them are taken, evenly over all."""

    observations: tuple[Path, ...] = option(
        (),
        "saved observations (.safetensors files, folders), or a golden.safetensors",
        nargs="+",
    )
    bags: tuple[Path, ...] = option((), "recorded bags", "--bag", nargs="+")
    topics: tuple[str, ...] = option(
        (), "topics of the bag", "--map", action="append", metavar="INPUT=TOPIC"
    )
    prompt: str | None = option(None, "prompt of observations that bring none")
    count: int = option(
        32, "observations to take (default %(default)s)", "--samples", type=positive
    )
    allow_synthetic: bool = option(
        False, "random images instead of recorded ones: dry runs only, never for a robot"
    )
    steps: int = option(10, "flow steps per observation (%(default)s)", type=positive)

    @property
    def named(self) -> bool:
        """Whether observations are asked for, recorded or made up."""
        return bool(self.observations or self.bags or self.allow_synthetic)


@dataclass(frozen=True)
class GraphRequest:
    """What the exported stages run in; `prefill` and `denoise` follow `precision` if None."""

    precision: str = option(
        PRECISIONS[0],
        "fp8: vision fp16, prefill and denoise fp8 (or what the calibration says)",
        choices=PRECISIONS,
    )
    prefill: str | None = option(None, "the prefill alone otherwise", choices=("fp8", "fp16"))
    denoise: str | None = option(None, "the denoise alone otherwise", choices=("fp8", "fp16"))
    layout: str = option(
        LAYOUTS[0],
        "mlp_only: of the prefill only the MLPs, torch runs the attention between them",
        choices=LAYOUTS,
    )
    calibration: Path | None = option(
        None, "folder of pi05 calibrate --for onnx or tensorrt (default: the newest that fits)"
    )

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
    """Write the stages as ONNX graphs."""

    model: ModelRequest
    graphs: GraphRequest = GraphRequest()
    full_steps: int | None = option(
        None,
        "also one graph of all stages with this many steps unrolled; needs --out",
        type=positive,
    )
    out: Path | None = option(None, "folder instead of the cache")


@dataclass(frozen=True)
class CheckRequest:
    """Compare exported or compiled stages with the plain model."""

    model: ModelRequest
    graphs: GraphRequest = GraphRequest()
    samples: SampleRequest = SampleRequest()
    backend: str = option(
        CHECKED_BACKENDS[0],
        "tensorrt: the newest engines; onnx: the graphs in ONNX Runtime; simulated: the "
        "calibration's arithmetic in torch, which judges any preset anywhere; scaled_mm: the same "
        "FP8 scales on this GPU's FP8 units through torch; torch_tensorrt: prefill MLPs and "
        "denoise step compiled by torch-tensorrt (experimental). Precision and layout can be "
        "chosen for onnx and simulated; engines bring their own",
        choices=CHECKED_BACKENDS,
    )
    engine: Path | None = option(None, "engine folder instead of the newest")
    out: Path = option(
        Path("out/check"),
        "folder of the report (%(default)s); that of engines always lies with them",
    )


@dataclass(frozen=True)
class BuildRequest:
    """Compile the stages with TensorRT and check them."""

    model: ModelRequest
    graphs: GraphRequest = GraphRequest()
    samples: SampleRequest = SampleRequest()
    optimization_level: int | None = option(
        None,
        "0 to 5; default 3, and 2 if the check refuses that (after that, unless --prefill is "
        "given, the prefill in fp16)",
    )
    flavor: str = option(
        FLAVORS[0],
        "tensorrt, or rtx: TensorRT for RTX (default: what suits the GPU of this machine)",
        choices=FLAVORS,
    )
    targets: tuple[str, ...] = option(
        (),
        "with --flavor rtx: GPUs to compile for, on a machine that has none of them",
        "--target",
        type=lambda text: tuple(text.split(",")),
        metavar="sm89,sm120",
    )
    workspace_mib: int = option(0, "scratch memory limit")
    check: bool = option(True, "engines stay unusable until then")

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
    """Choose tile sizes of the cuda backend on this GPU; `views` and `tokens` are pairs."""

    preset: str = option("pi05", "sizes of the model")
    views: tuple[int, ...] = option((2, 3), "one for each workload", nargs="+")
    tokens: tuple[int, ...] = option((20, 200), "prompt tokens, too", nargs="+")
    horizon: int = option(50, "steps of a chunk (default 50)")
    precisions: tuple[str, ...] = option(
        ("auto", "bf16"), "auto, bf16, fp8, fp8-w8a16, int8, int8-w8a16", "--precision", nargs="+"
    )
    seconds: float = option(600.0, "time for each precision (default %(default)g)")
