"""Activation scales of the 8-bit GEMMs: from observations, in files, and their supervision.

A site is the input of one GEMM ("prefill.3.down"). In FP8 its scale is a power of two with room
for twice the largest magnitude seen: e4m3 is a floating-point format, so room costs no precision
until values fall below 2^-6 of the scale, and a power of two rounds every value alike whatever was
calibrated. In INT8 every bit of room is a bit of precision lost, so there is a tenth of it. Files
hold magnitudes, not scales: one calibration serves both.

Files: `<name>.safetensors` (one float32 vector "amax" in the order of the sites) beside
`<name>.json` (sites, fingerprint of the weights, how many observations). Engines find those that
lie under the fingerprint in the user's cache by themselves.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from pi05_ros.backends.cache import cache_folder
from pi05_ros.backends.cuda.buffers import Buffers
from pi05_ros.backends.cuda.weights import Weights
from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.files import write_atomically
from pi05_ros.backends.quantization.fake_quant import LARGEST
from pi05_ros.small_files import MIB, read_json, require_regular

log = logging.getLogger("pi05_ros.cuda")

FIRST_RUNS = 3  # observations that set the scales where no calibration was given
MARGIN = {"fp8": 2.0, "int8": 1.1}
FIRST_PASSES = {"fp8": 2, "int8": 6}
"""Recordings of the very first observation. Each is made under the scales that the one before
found; INT8 has so little range that magnitudes settle layer by layer."""
FORMAT = "pi05_ros activation scales 1"
MAX_AMAX = 64 * MIB


def default_path(fingerprint: str) -> Path:
    """Where `pi05 calibrate` keeps the scales of some weights, and engines look for them."""
    return cache_folder("scales") / fingerprint[:32]


def files_of(path: str | Path) -> tuple[Path, Path]:
    """The two files that NAME, NAME.safetensors or NAME.json stand for; NAME may hold dots."""
    path = Path(path)
    stem = path.stem if path.suffix in (".safetensors", ".json") else path.name
    return path.with_name(f"{stem}.safetensors"), path.with_name(f"{stem}.json")


def limits(inputs: Sequence[str], device: torch.device | None = None) -> Tensor:
    """Largest code of each site, float32 ``[sites]``; `inputs` as in `Weights`."""
    return torch.tensor([LARGEST[kind or "fp8"] for kind in inputs], device=device)


def scale_of(amax: Tensor, inputs: Sequence[str]) -> Tensor:
    """Scale per site from the largest magnitude; 1 where nothing was seen.

    Args:
        amax: float32 ``[sites]``.
        inputs: kind of each site's input, as in `Weights`.

    """
    room = torch.tensor([MARGIN[kind or "fp8"] for kind in inputs], device=amax.device)
    wanted = (amax.float() * room / limits(inputs, amax.device)).clamp_min(2.0**-30)
    whole = torch.tensor([kind == "int8" for kind in inputs], device=amax.device)
    scale = torch.where(whole, wanted, torch.exp2(torch.ceil(torch.log2(wanted))))
    return torch.where(amax > 0, scale, torch.ones_like(scale))


def first_run(
    amax: Tensor, scale: Tensor, inputs: Sequence[str], record: Callable[[], None], first: bool
) -> None:
    """Set scales from an observation, with the usual margin, where no calibration was given.

    The very first run starts from scale 1 (e4m3 then spans 2^-9 to 448, wide enough for normalized
    inputs) and records several times, since coarse scales may have bent what the first pass saw.
    The next ones only raise scales: the first image may have been a black warm-up frame.
    """
    passes = max((FIRST_PASSES[kind] for kind in inputs if kind), default=1)
    for _ in range(passes if first else 1):
        amax.zero_()
        record()
        found = scale_of(amax, inputs)
        scale.copy_(found if first else torch.maximum(found, scale))
    amax.zero_()


@dataclass(frozen=True)
class ActivationScales:
    """Largest input magnitude per site, for one set of weights."""

    sites: tuple[str, ...]
    amax: Tensor  # float32 [sites], on the CPU
    fingerprint: str
    observations: int

    def save(self, path: Path) -> None:
        """Write `path`.safetensors and `path`.json."""
        values, json_path = files_of(path)
        write_atomically(values, save({"amax": self.amax.contiguous()}))
        about = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "observations": self.observations,
            "sites": list(self.sites),
        }
        write_atomically(json_path, (json.dumps(about, indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> ActivationScales:
        """Read what `save` wrote.

        Raises:
            BackendError: a file is missing or is not a calibration.

        """
        try:
            values, json_path = files_of(path)
            about = read_json(json_path)
            require_regular(values, MAX_AMAX)
            amax = load_file(str(values))["amax"]
            if about["format"] != FORMAT or len(about["sites"]) != amax.numel():
                raise ValueError("the two files do not belong together")
            if not bool((amax.isfinite() & (amax >= 0)).all()):
                raise ValueError("a magnitude is negative or not finite")
            return cls(
                tuple(about["sites"]),
                amax.float().flatten(),
                str(about["fingerprint"]),
                int(about["observations"]),
            )
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise BackendError(f"{path}: no calibration that can be read: {error}") from error

    def amax_for(self, sites: list[str], fingerprint: str, inputs: list[str]) -> Tensor:
        """Magnitudes in the order of an engine's sites; 0 where `inputs` says no 8 bits.

        Raises:
            BackendError: made for other weights, or a site is missing or had 16 bits then.

        """
        if fingerprint != self.fingerprint:
            raise BackendError(
                f"these activation scales belong to other weights (fingerprint "
                f"{self.fingerprint[:12]}, the model has {fingerprint[:12]}); run pi05 calibrate"
            )
        known = dict(zip(self.sites, self.amax.tolist(), strict=True))
        missing = [site for site in sites if site not in known]
        if missing:
            raise BackendError(f"the calibration lacks {len(missing)} sites, first {missing[0]!r}")
        unseen = [s for s, used in zip(sites, inputs, strict=True) if used and not known[s] > 0]
        if unseen:
            raise BackendError(
                f"the calibration has no magnitudes for {len(unseen)} sites that have 8 bits "
                f"here, first {unseen[0]!r}; run pi05 calibrate with this precision"
            )
        pairs = zip(sites, inputs, strict=True)
        return torch.tensor([known[site] if used else 0.0 for site, used in pairs])


@dataclass(frozen=True)
class Saturation:
    """What the monitor saw since the last report: a site whose input left its range."""

    site: str
    largest: float
    limit: float


def saturated(sites: list[str], amax: Tensor, scales: Tensor, largest: Tensor) -> list[Saturation]:
    """Sites with ``amax > largest * scale``, worst first; `largest` as `limits` gives it."""
    most = scales * largest
    over = amax / most
    rows = [
        Saturation(sites[i], float(amax[i]), float(most[i]))
        for i in torch.nonzero(over > 1.0).flatten().tolist()
    ]
    return sorted(rows, key=lambda row: row.limit / row.largest)


class EngineScales:
    """The scales of one engine: of a calibration, or of its first observations.

    Attributes:
        source: where they come from, for diagnostics.
        first_runs: observations that are still to set them.

    """

    def __init__(self, weights: Weights, buffers: Buffers) -> None:
        self._weights = weights
        self._buffers = buffers
        self.source = "the first observations"
        self.first_runs = 0

    def prepare(self, calibration: str | Path | ActivationScales | None) -> None:
        """Take what was given, else what `pi05 calibrate` left for these weights, else wait."""
        self.first_runs = FIRST_RUNS
        if calibration is not None:
            self.use(calibration)
            return
        path = default_path(self._weights.fingerprint)
        try:
            if files_of(path)[1].is_file():
                self.use(path)
                log.info("activation scales from %s", path)
        except BackendError as error:
            log.warning("activation scales come from the first observations: %s", error)

    def use(self, calibration: str | Path | ActivationScales) -> None:
        """Take scales from a file; refused where they belong to other weights."""
        if not isinstance(calibration, ActivationScales):
            calibration = ActivationScales.load(Path(calibration))
        w, b = self._weights, self._buffers
        amax = calibration.amax_for(w.sites, w.fingerprint, w.inputs)
        b.scales.copy_(scale_of(amax, w.inputs).to(b.scales.device))
        self.first_runs = 0
        self.source = f"{calibration.observations} observations"

    def start(self) -> None:
        """Forget the largest magnitudes seen so far."""
        self._buffers.amax.zero_()

    def recorded(self, observations: int) -> ActivationScales:
        """What was recorded since `start`."""
        amax = self._buffers.amax.to("cpu", copy=True)
        w = self._weights
        return ActivationScales(tuple(w.sites), amax, w.fingerprint, observations)

    def first_run(self, record: Callable[[], None]) -> None:
        """One of the first runs, which set the scales where no calibration was given."""
        first = self.first_runs == FIRST_RUNS
        b = self._buffers
        first_run(b.amax, b.scales, self._weights.inputs, record, first)
        if first:
            log.info("no calibration given: activation scales come from the first observations")
        self.first_runs -= 1

    def release(self) -> None:
        """Release the engine's memory; `source` stays."""
        for name in ("_weights", "_buffers"):
            self.__dict__.pop(name, None)

    @contextlib.contextmanager
    def first_runs_kept(self) -> Iterator[None]:
        """Runs within set the scales and do not count as observations that did."""
        left = self.first_runs
        try:
            yield
        finally:
            self.first_runs = left
