"""Activation scales of the FP8 GEMMs: from observations, in files, and their supervision.

A site is the input of one GEMM ("prefill.3.down"). Its scale is a power of two with room for twice
the largest magnitude seen: e4m3 is a floating-point format, so room costs no precision until
values fall below 2^-6 of the scale, and a power of two rounds every value alike whatever was
calibrated.

Files: `<name>.safetensors` (one float32 vector "amax" in the order of the sites) beside
`<name>.json` (sites, fingerprint of the weights, how many observations). Engines find those that
lie under the fingerprint in the user's cache by themselves.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from pi05_ros.backends.cache import cache_folder
from pi05_ros.backends.cuda.buffers import Buffers
from pi05_ros.backends.cuda.weights import FP8_MAX, Weights
from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.files import write_atomically
from pi05_ros.small_files import MIB, read_json, require_regular

log = logging.getLogger("pi05_ros.cuda")

FIRST_RUNS = 3  # observations that set the scales where no calibration was given
MARGIN = 2.0
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


def scale_of(amax: Tensor) -> Tensor:
    """Scale per site from the largest magnitude: a power of two, 1 where nothing was seen."""
    wanted = (amax.float() * (MARGIN / FP8_MAX)).clamp_min(2.0**-30)
    scale = torch.exp2(torch.ceil(torch.log2(wanted)))
    return torch.where(amax > 0, scale, torch.ones_like(scale))


def first_run(amax: Tensor, scale: Tensor, record: Callable[[], None], first: bool) -> None:
    """Set scales from an observation, with the usual margin, where no calibration was given.

    The very first run starts from scale 1 (e4m3 then spans 2^-9 to 448, wide enough for normalized
    inputs) and records twice, since coarse scales may have bent what the first pass saw. The next
    ones only raise scales: the first image may have been a black warm-up frame.
    """
    for _ in range(2 if first else 1):
        amax.zero_()
        record()
        found = scale_of(amax)
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

    def amax_for(self, sites: list[str], fingerprint: str, quantized: list[bool]) -> Tensor:
        """Magnitudes in the order of an engine's sites; 0 where the input is not `quantized`.

        Raises:
            BackendError: made for other weights, or a site is missing or was not in FP8 then.

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
        unseen = [s for s, used in zip(sites, quantized, strict=True) if used and not known[s] > 0]
        if unseen:
            raise BackendError(
                f"the calibration has no magnitudes for {len(unseen)} sites that are FP8 here, "
                f"first {unseen[0]!r}; run pi05 calibrate with this precision"
            )
        pairs = zip(sites, quantized, strict=True)
        return torch.tensor([known[site] if used else 0.0 for site, used in pairs])


@dataclass(frozen=True)
class Saturation:
    """What the monitor saw since the last report: sites whose input left the FP8 range."""

    site: str
    largest: float
    limit: float


def saturated(sites: list[str], amax: Tensor, scales: Tensor) -> list[Saturation]:
    """Sites with ``amax > 448 * scale``, worst first."""
    over = amax / (scales * FP8_MAX)
    rows = [
        Saturation(sites[i], float(amax[i]), float(scales[i]) * FP8_MAX)
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
                log.info("FP8 scales from %s", path)
        except BackendError as error:
            log.warning("FP8 scales come from the first observations: %s", error)

    def use(self, calibration: str | Path | ActivationScales) -> None:
        """Take scales from a file; refused where they belong to other weights."""
        if not isinstance(calibration, ActivationScales):
            calibration = ActivationScales.load(Path(calibration))
        w, b = self._weights, self._buffers
        amax = calibration.amax_for(w.sites, w.fingerprint, w.quantized)
        b.scales.copy_(scale_of(amax).to(b.scales.device))
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
        first_run(self._buffers.amax, self._buffers.scales, record, first)
        if first:
            log.info("no calibration given: FP8 scales come from the first observations")
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
