"""FP8 and INT8 arithmetic imitated in float32, to see what rounding does to success rates.

Weights are rounded per output channel, activations per tensor with the range of the tensor at
hand, which is what dynamic quantization does. Norms, softmax, RoPE, the patch convolution and the
four action heads stay as they are: these are the precision islands of the quantized engines.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from pi05_ros.backends.quantization.fake_quant import LARGEST, quantize
from pi05_ros.errors import InvalidValueError
from pi05_ros.model import Pi05

KINDS = ("fp8", "int8")
IMITATED = "fake-"
"""Prefix of precisions that are imitated: fake-fp8, fake-int8."""
_PARTS = ("vision", "vlm", "expert")


def rounded(x: Tensor, largest: Tensor, kind: str) -> Tensor:
    """X as it is after a trip through 8 bits with ``largest`` as the end of the range."""
    scale = (largest / LARGEST[kind]).clamp(min=1e-12)
    return quantize(x, scale, kind).to(x.dtype) * scale


class FakeQuantLinear(nn.Module):
    """Linear layer with rounded weights and inputs."""

    def __init__(self, linear: nn.Linear, kind: str) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.kind = kind
        largest = weight.abs().amax(dim=1, keepdim=True)
        self.weight = nn.Parameter(rounded(weight, largest, kind), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` -> ``[..., out]``."""
        return F.linear(rounded(x, x.detach().abs().amax(), self.kind), self.weight, self.bias)


def fake_quantize(model: Pi05, kind: str) -> int:
    """Replace the linear layers of all three stacks in place; returns how many.

    Raises:
        ValueError: unknown kind.

    """
    if kind not in KINDS:
        raise InvalidValueError(f"fake quantization {kind!r}; accepted: {', '.join(KINDS)}")
    count = 0
    for part in _PARTS:
        for module in list(model.get_submodule(part).modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear) and name != "dense":
                    setattr(module, name, FakeQuantLinear(child, kind))
                    count += 1
    return count
