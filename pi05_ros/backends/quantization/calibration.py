"""The result of a calibration on disk: ranges in safetensors, everything else in JSON.

No pickle: loading a calibration builds the stages from the checkpoint and attaches scales by
name. The JSON says which weights, samples and ModelOpt release it came from.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pi05_ros.backends.files import write_atomically
from pi05_ros.backends.quantization.presets import Preset, preset
from pi05_ros.errors import Pi05Error
from pi05_ros.small_files import MIB, MissingFileError, read_json, require_regular

FORMAT = 1
MAX_RANGES = 256 * MIB


class CalibrationError(Pi05Error, ValueError):
    """A calibration that cannot be made, read or used."""


@dataclass(frozen=True)
class Calibration:
    """Ranges of every enabled quantizer.

    Attributes:
        preset: name of the preset.
        amax: quantizer name -> largest magnitude, float32; 0-d, or ``[out]`` per channel.
        smooth: Linear name -> factor ``[in]`` its input is multiplied with (SmoothQuant; the
            weights in the graph are divided by it).
        info: weights hash, samples, versions, report per layer.

    """

    preset: str
    amax: dict[str, Tensor]
    smooth: dict[str, Tensor] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def choice(self) -> Preset:
        """The preset itself."""
        return preset(self.preset)

    @property
    def digest(self) -> str:
        """sha256 over the preset and all ranges: two calibrations are equal if these are."""
        state = hashlib.sha256(f"{FORMAT} {self.preset}".encode())
        for group, tensors in (("amax", self.amax), ("smooth", self.smooth)):
            for name in sorted(tensors):
                values = tensors[name].float().contiguous()
                state.update(f"{group} {name} {tuple(values.shape)}".encode())
                state.update(values.numpy().tobytes())
        return state.hexdigest()

    def save(self, directory: Path) -> None:
        """Write ``amax.safetensors`` and ``calibration.json``.

        Raises:
            BackendError: the disk is full or the folder cannot be written.

        """
        tensors = {f"amax/{name}": value.float().contiguous() for name, value in self.amax.items()}
        tensors |= {f"smooth/{name}": v.float().contiguous() for name, v in self.smooth.items()}
        write_atomically(directory / "amax.safetensors", save(tensors))
        document = {
            "format": FORMAT,
            "preset": self.preset,
            "digest": self.digest,
            **self.info,
        }
        text = json.dumps(document, indent=1, sort_keys=True)
        write_atomically(directory / "calibration.json", (text + "\n").encode())

    @staticmethod
    def load(directory: Path) -> Calibration:
        """Read what `save` wrote; the digest must match.

        Raises:
            CalibrationError: files missing, damaged, or from another format.

        """
        try:
            document = read_json(directory / "calibration.json")
            name, digest = str(document["preset"]), document["digest"]
            groups: dict[str, dict[str, Tensor]] = {"amax": {}, "smooth": {}}
            require_regular(directory / "amax.safetensors", MAX_RANGES)
            with safe_open(directory / "amax.safetensors", framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - not a dict
                    group, _, quantizer = key.partition("/")
                    groups[group][quantizer] = file.get_tensor(key)
        except MissingFileError as error:
            raise CalibrationError(
                f"no calibration in {directory} ({error}); make one with: "
                "pi05 calibrate --for tensorrt"
            ) from None
        except OSError as error:
            raise CalibrationError(f"no calibration in {directory}: {error}") from None
        except (ValueError, SafetensorError, KeyError, TypeError) as error:
            raise CalibrationError(
                f"the calibration in {directory} is damaged ({type(error).__name__}: {error})"
            ) from None
        if document.get("format") != FORMAT:
            raise CalibrationError(
                f"the calibration in {directory} has format {document.get('format')!r}; "
                f"this version reads {FORMAT}. Make it again with: pi05 calibrate --for tensorrt"
            )
        own = ("format", "digest", "preset")
        known = {key: value for key, value in document.items() if key not in own}
        result = Calibration(name, groups["amax"], groups["smooth"], known)
        if result.digest != digest:
            raise CalibrationError(
                f"amax.safetensors and calibration.json in {directory} do not belong together"
            )
        return result

    def check_ranges(self) -> None:
        """Every range must be finite and positive: zero means that no data reached it."""
        bad = [
            name
            for name, value in self.amax.items()
            if not bool(torch.isfinite(value).all())
            or float(value.max()) <= 0.0
            or float(value.min()) < 0.0
        ]
        if bad:
            raise CalibrationError(
                f"{len(bad)} quantizers have no usable range (zero, negative or not finite), "
                f"the first: {bad[0]}"
            )
