"""The two products of NVIDIA that compile our graphs: TensorRT, and TensorRT for RTX.

They have one API and one plan format in our code, and differ in what they support:

tensorrt      builds on the GPU it is for; Thor, Orin, data center GPUs, RTX too.
tensorrt_rtx  compiles for RTX GPUs on any machine, also without a GPU; the kernels themselves are
              compiled just in time when a plan is loaded. It installs from PyPI alone.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType

from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.identity import parse_version

Capability = tuple[int, int]  # major and minor compute capability
FP8_SINCE: Capability = (8, 9)
NVFP4_SINCE: Capability = (12, 0)  # of the RTX line


@dataclass(frozen=True)
class Flavor:
    """One of the two, and what it can do.

    Attributes:
        name: in engine keys and on the command line.
        title: in messages.
        module: Python module.
        oldest: oldest release that works, major and minor.
        before: first release that is not known to.
        releases: the same for people.
        install: how to get it.
        targets: compute capabilities it compiles for on another machine; empty if it builds only
            on the GPU itself.

    """

    name: str
    title: str
    module: str
    oldest: tuple[int, int]
    before: tuple[int, int]
    releases: str
    install: str
    targets: tuple[Capability, ...] = ()

    @property
    def ahead_of_time(self) -> bool:
        """Whether plans are compiled without the GPU, and kernels when a plan is loaded."""
        return bool(self.targets)

    def installed(self) -> bool:
        """Whether its Python package is there; it may still not load."""
        return importlib.util.find_spec(self.module) is not None

    def load(self) -> ModuleType:
        """Import its module."""
        return importlib.import_module(self.module)

    def require(self) -> str:
        """Version of the installed package.

        Raises:
            BackendError: not installed, its libraries do not load, too old or too new.

        """
        if not self.installed():
            raise BackendError(
                f"the Python package {self.module} is not installed: {self.install}"
            )
        try:
            version = str(self.load().__version__)
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            # AttributeError: no __version__, the package is some folder of that name.
            raise BackendError(
                f"the Python package {self.module} is there but does not load: {error}. Its "
                "libraries must be of the same version and on the library path"
            ) from None
        if not self.oldest <= parse_version(version, self.title) < self.before:
            raise BackendError(
                f"{self.title} {version} is not supported: needed are {self.releases}. "
                "Weakly typed networks of older releases gave wrong actions for this model"
            )
        return version


TENSORRT = Flavor(
    name="tensorrt",
    title="TensorRT",
    module="tensorrt",
    oldest=(10, 13),
    before=(12, 0),
    releases="10.13 up to 11.x",
    install="pip install tensorrt-cu13 (JetPack: the python3-libnvinfer package of the image; "
    "make it visible in a virtual environment with --system-site-packages)",
)
RTX = Flavor(
    name="tensorrt_rtx",
    title="TensorRT for RTX",
    module="tensorrt_rtx",
    oldest=(1, 7),
    before=(2, 0),
    releases="1.7 up to 1.x",
    install='pip install "pi05_ros[tensorrt-rtx]" (wheels for Linux on x86_64 and aarch64)',
    targets=((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)),
)
FLAVORS = {flavor.name: flavor for flavor in (TENSORRT, RTX)}
WORDS = {"tensorrt": TENSORRT, "rtx": RTX}  # of the command line
DATA_CENTER: tuple[Capability, ...] = ((8, 0),)  # A100: TensorRT for RTX would take it too


def flavor_named(name: str) -> Flavor:
    """A flavor by the name in engine keys.

    Raises:
        BackendError: an unknown name.

    """
    if name not in FLAVORS:
        raise BackendError(f"TensorRT flavor {name!r} is unknown; accepted: {', '.join(FLAVORS)}")
    return FLAVORS[name]


def recommended(capability: Capability) -> Flavor:
    """The flavor for a GPU: RTX for RTX 20 to 50, RTX PRO and GB10, else full TensorRT."""
    rtx = capability in RTX.targets and capability not in DATA_CENTER
    return RTX if rtx else TENSORRT


def usable_flavor(capability: Capability) -> Flavor:
    """The recommended flavor of a GPU if it works here, else the other one if that does.

    Raises:
        BackendError: neither, with what to install.

    """
    first = recommended(capability)
    second = RTX if first is TENSORRT else TENSORRT
    try:
        first.require()
    except BackendError:
        able = not second.targets or capability in second.targets
        if able and second.installed():
            second.require()
            return second
        raise
    return first


def require_any() -> None:
    """At least one flavor must load.

    Raises:
        BackendError: none, with what to install.

    """
    reasons = []
    for flavor in FLAVORS.values():
        try:
            flavor.require()
        except BackendError as error:
            reasons.append(str(error))
        else:
            return
    raise BackendError("; ".join(reasons))


def sm(capability: Capability) -> str:
    """Compute capability in NVIDIA's short form: (8, 9) -> "sm89"."""
    return f"sm{capability[0]}{capability[1]}"


def parse_targets(text: str) -> tuple[Capability, ...]:
    """Compute capabilities of "sm89,sm120", without repetition, in the order of numbers.

    Raises:
        BackendError: naming what TensorRT for RTX does not compile for.

    """
    known = {sm(capability): capability for capability in RTX.targets}
    found = set()
    for word in text.split(","):
        name = word.strip().lower()
        if name not in known:
            raise BackendError(
                f"target {word.strip()!r} is unknown; {RTX.title} compiles for {', '.join(known)}"
            )
        found.add(known[name])
    return tuple(sorted(found))


def require_fp4_target(flavor: Flavor, capability: Capability) -> None:
    """Target of graphs with NVFP4 products.

    Raises:
        BackendError: a flavor or GPU for which they are not compiled.

    """
    if flavor is not RTX or capability not in RTX.targets or capability < NVFP4_SINCE:
        raise BackendError(
            f"{flavor.title} does not compile NVFP4 for {sm(capability)}: preset nvfp4 is for "
            "--flavor rtx on sm120 or sm121 (RTX 50, RTX PRO Blackwell, GB10)"
        )


def require_fp8_targets(targets: Iterable[Capability]) -> None:
    """Targets of a graph with FP8 products.

    Raises:
        BackendError: naming the first without FP8.

    """
    for capability in targets:
        if capability < FP8_SINCE:
            raise BackendError(
                f"{sm(capability)} has no FP8; it begins with sm89. Take --precision fp16, or "
                "INT8: pi05 quantize --preset int8_smoothquant or w8a16, and give its folder "
                "with --calibration"
            )
