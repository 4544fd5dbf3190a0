"""What is quantized and how: our own explicit lists, never a preset of the quantizer library.

ModelOpt's named presets mean different layers in different releases (a vision tower is left
out of ``FP8_DEFAULT_CFG`` from 0.45 on, action projections never are), so every enabled
quantizer is named here and its exact set is asserted afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pi05_ros.errors import InvalidValueError

# The Linears of a Gemma layer; nothing else is ever quantized (not: patch convolution, action
# projections, time MLP, adaRMS dense, vision tower).
MLP_LINEARS = ("gate_proj", "up_proj", "down_proj")
GEMMA_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", *MLP_LINEARS)
# Module name and quantizers of the two attention products.
ATTENTION_PRODUCTS = {"qk": ("a", "b"), "av": ("a", "b")}
FP4_BLOCK = 16  # values that share a scale, along the summed axis


@dataclass(frozen=True)
class Preset:
    """One way to quantize the prefill and denoise stages.

    Attributes:
        weights: format of weights.
        per_channel: one weight scale per output channel, else one per matrix.
        activations: format of Linear inputs; None leaves them in half precision.
        attention_stages: stages whose attention products are quantized too. The expert's
            products are so small that quantizing them costs more than it saves.
        algorithm: ModelOpt's calibration algorithm.
        fp4_mlp_stages: stages whose MLPs are NVFP4 instead, weights and inputs.
        experimental: taken only by those who say that they want an experiment.

    """

    name: str
    summary: str
    weights: str
    per_channel: bool
    activations: str | None
    attention_stages: tuple[str, ...] = ()
    algorithm: str = "max"
    fp4_mlp_stages: tuple[str, ...] = ()
    experimental: bool = False

    def is_fp4(self, stage: str, linear: str) -> bool:
        """Whether a Linear, by its own name, is NVFP4."""
        return stage in self.fp4_mlp_stages and linear in MLP_LINEARS


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("fp8", "FP8 E4M3, weights per channel, static activations", "fp8", True, "fp8"),
        Preset(
            "fp8_attention",
            "fp8 and the prefill's attention products",
            "fp8",
            True,
            "fp8",
            attention_stages=("prefill",),
        ),
        Preset("fp8_tensor", "fp8 with one scale per weight matrix", "fp8", False, "fp8"),
        Preset(
            "int8_smoothquant",
            "INT8 with activation ranges moved into the weights, for GPUs without FP8",
            "int8",
            True,
            "int8",
            algorithm="smoothquant",
        ),
        Preset("w8a16", "INT8 weights per channel, activations not quantized", "int8", True, None),
        Preset(
            "nvfp4",
            "EXPERIMENTAL: fp8 with the prefill's MLPs in FP4, for RTX 50 and GB10",
            "fp8",
            True,
            "fp8",
            fp4_mlp_stages=("prefill",),
            experimental=True,
        ),
    )
}


def preset(name: str) -> Preset:
    """Look up a preset by name."""
    if name not in PRESETS:
        raise InvalidValueError(
            f"unknown quantization preset {name!r}; accepted: {', '.join(PRESETS)}"
        )
    return PRESETS[name]


def holds_fp4(choice: Preset, graph: str) -> bool:
    """Whether an exported graph (a stage, an MLP of the prefill, or "full") has FP4 products."""
    stage = "prefill" if graph == "full" or graph.startswith("prefill") else graph
    return stage in choice.fp4_mlp_stages


def expected_quantizers(choice: Preset, depth: int, *, stages: tuple[str, ...]) -> set[str]:
    """Names of exactly the quantizers that must be enabled.

    The prefill stage has no attention output and no MLP in its last layer: only its keys and
    values are used.

    Args:
        choice: the preset.
        depth: number of Gemma layers in both stacks.
        stages: of "prefill" and "denoise_step".

    """
    names: set[str] = set()
    for stage in stages:
        for layer in range(depth):
            last = stage == "prefill" and layer == depth - 1
            linears = ("k_proj", "v_proj") if last else GEMMA_LINEARS
            prefix = f"{stage}.layers.{layer}"
            for linear in linears:
                inner = (
                    f"{prefix}.mlp.{linear}" if linear in MLP_LINEARS else (f"{prefix}.{linear}")
                )
                names.add(f"{inner}.weight_quantizer")
                if choice.activations:
                    names.add(f"{inner}.input_quantizer")
            if stage in choice.attention_stages and not last:
                for product, sides in ATTENTION_PRODUCTS.items():
                    names.update(
                        f"{prefix}.attention.{product}.{side}_bmm_quantizer" for side in sides
                    )
    return names


def _attributes(kind: str, axis: int | None) -> dict[str, Any]:
    return {"num_bits": (4, 3) if kind == "fp8" else 8, "axis": axis}


def _fp4_attributes() -> dict[str, Any]:
    blocks = {-1: FP4_BLOCK, "type": "dynamic", "scale_bits": (4, 3)}
    return {"num_bits": (2, 1), "axis": None, "block_sizes": blocks}


def modelopt_config(choice: Preset, *, ordered_list: bool) -> dict[str, Any]:
    """The preset in ModelOpt's words.

    Args:
        choice: the preset.
        ordered_list: the form of ModelOpt 0.44 and later (a list, later entries win); the dict
            form serves 0.43, where the first key switches everything off.

    """
    entries: list[tuple[str, dict[str, Any]]] = []
    for linear in GEMMA_LINEARS:
        weights = _attributes(choice.weights, 0 if choice.per_channel else None)
        entries.append((f"*layers.*{linear}.weight_quantizer", weights))
        if choice.activations:
            inputs = _attributes(choice.activations, None)
            entries.append((f"*layers.*{linear}.input_quantizer", inputs))
    for stage in choice.attention_stages:
        for product in ATTENTION_PRODUCTS:
            pattern = f"*{stage}.layers.*.attention.{product}.*_bmm_quantizer"
            entries.append((pattern, _attributes("fp8", None)))
    for stage in choice.fp4_mlp_stages:
        for linear in MLP_LINEARS:
            for side in ("weight", "input"):
                pattern = f"*{stage}.layers.*mlp.{linear}.{side}_quantizer"
                entries.append((pattern, _fp4_attributes()))
    if ordered_list:
        rules: Any = [{"quantizer_name": "*", "enable": False}]
        rules += [{"quantizer_name": name, "cfg": cfg, "enable": True} for name, cfg in entries]
    else:
        rules = {"*": {"enable": False}}
        rules.update({name: {**cfg, "enable": True} for name, cfg in entries})
    return {"quant_cfg": rules, "algorithm": choice.algorithm}
