"""NVIDIA ModelOpt's quantizers on our stages: which release, which quantizers, no surprises."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.identity import parse_version
from pi05_ros.backends.onnx_runtime import switch_telemetry_off
from pi05_ros.backends.quantization.calibration import CalibrationError
from pi05_ros.backends.quantization.presets import Preset, modelopt_config
from pi05_ros.backends.staged.layers import MatMul

OLDEST = (0, 43)
LIST_FORM_SINCE = (0, 44)
INSTALL = "pip install nvidia-modelopt (pins: requirements/tensorrt.txt)"

log = logging.getLogger(__name__)


def modelopt_version() -> tuple[int, int]:
    """Major and minor release of the installed ModelOpt.

    Raises:
        BackendError: not installed, does not load, or older than 0.43.

    """
    if importlib.util.find_spec("modelopt") is None:
        raise BackendError(f"calibrating needs nvidia-modelopt, which is not installed: {INSTALL}")
    switch_telemetry_off()  # parts of modelopt import ONNX Runtime
    import modelopt

    version = parse_version(str(modelopt.__version__), "nvidia-modelopt")
    if version < OLDEST:
        raise BackendError(
            f"nvidia-modelopt {modelopt.__version__} is too old, 0.43 is the oldest that works: "
            f"{INSTALL}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("modelopt.torch.quantization")
    except ImportError as error:  # its wheels do not name all that it imports
        raise BackendError(
            f"nvidia-modelopt is there but does not load: {error}. It needs what "
            "requirements/tensorrt.txt lists"
        ) from None
    return version


def _register_attention_quantizers() -> None:
    """Give `MatMul` two quantizers under ModelOpt.

    Quantizers that are already there when ``mtq.quantize`` starts make ModelOpt believe that the
    model is quantized, and it then leaves every Linear alone; registering avoids that.
    """
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization.nn import QuantModuleRegistry, TensorQuantizer

    if QuantModuleRegistry.get(MatMul) is not None:
        return

    class QuantizedMatMul(MatMul):
        """`MatMul` with a quantizer on each side."""

        def _setup(self) -> None:
            self.a_bmm_quantizer = TensorQuantizer()
            self.b_bmm_quantizer = TensorQuantizer()

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return torch.matmul(self.a_bmm_quantizer(a), self.b_bmm_quantizer(b))

    mtq.register(original_cls=MatMul, quantized_cls=QuantizedMatMul)


def modelopt_quantize(
    stages: nn.Module, choice: Preset, forward: Callable[[nn.Module], None]
) -> nn.Module:
    """Quantize ``stages`` (a ModuleDict by stage name) in place with our explicit config."""
    version = modelopt_version()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import modelopt.torch.quantization as mtq

        _register_attention_quantizers()
    config = modelopt_config(choice, ordered_list=version >= LIST_FORM_SINCE)
    # It prints what it inserts and warns about packages that this has no use for.
    with contextlib.redirect_stdout(io.StringIO()) as said, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result: nn.Module = mtq.quantize(stages, config, forward)
    log.debug("ModelOpt: %s", said.getvalue().strip())
    return result


def enabled_quantizers(module: nn.Module) -> dict[str, Any]:
    """Name -> quantizer of all that are switched on."""
    from modelopt.torch.quantization.nn import TensorQuantizer

    return {
        name: quantizer
        for name, quantizer in module.named_modules()
        if isinstance(quantizer, TensorQuantizer) and quantizer.is_enabled
    }


def assert_exact_set(found: Iterable[str], expected: set[str]) -> None:
    """Exactly the expected quantizers, no more, no fewer.

    Raises:
        CalibrationError: naming some of the difference.

    """
    names = set(found)
    if names != expected:
        missing, extra = sorted(expected - names), sorted(names - expected)
        raise CalibrationError(
            "ModelOpt enabled other quantizers than asked for: "
            f"{len(missing)} missing {missing[:3]}, {len(extra)} unexpected {extra[:3]}"
        )
