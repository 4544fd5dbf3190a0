"""Whether denoising and the products of prefill and vision run on the Hopper kernels."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from pi05_ros.backends.cuda.buffers import ACTION_ROWS
from pi05_ros.backends.cuda.hopper import attention
from pi05_ros.backends.cuda.hopper.compile import KernelError
from pi05_ros.backends.cuda.hopper.prefix import prefill, prefix_projections
from pi05_ros.backends.cuda.hopper.products import (
    ProductOptions,
    Products,
    padded_rows,
    unsupported,
)
from pi05_ros.backends.cuda.hopper.vision import vision_products
from pi05_ros.backends.cuda.tuning import Tuning
from pi05_ros.backends.engine import Precision
from pi05_ros.model import Pi05Config

log = logging.getLogger("pi05_ros.cuda")

PRODUCT_DIVISION = {"fp8": "hopper_products", "bf16": "hopper_products_bf16"}
"""Tuning data that says how the products of denoising are divided, by precision."""
VISION_DIVISION = {"bf16": "hopper_vision", "fp8": "hopper_vision_fp8"}
"""Tuning data that says how the products of vision are divided, by precision."""


def product_options(
    tuning: Tuning, horizon: int, prefix_rows: int, kind: str = "fp8"
) -> ProductOptions:
    """How the products of a precision are divided, from the tuning data.

    Blocks of attention are smaller where the prefix is short, and leave more room beside them.
    """
    entry = tuning.by_rows(PRODUCT_DIVISION[kind], horizon)
    short = prefix_rows <= entry.get("short_prefix", 0)
    chosen = {
        key: value
        for key, value in entry.items()
        if key != "max_rows" and not key.startswith("short_")
    }
    if short:
        chosen["qkv"] = entry["short_qkv"]
    return ProductOptions(**chosen, coded=kind == "fp8")


def attention_options(
    tuning: Tuning, config: Pi05Config, prefix_rows: int, horizon: int
) -> dict[str, int] | None:
    """First entry of the tuning data that takes the workload, None where none does."""
    heads, head_dim = config.expert.num_heads, config.expert.head_dim
    for entry in tuning.values["cluster_attention"]:
        if horizon * heads > entry.get("max_rows", horizon * heads):
            continue
        if attention.unsupported(heads, head_dim, prefix_rows, horizon, entry) is None:
            return dict(entry)
    return None


def prefill_options(tuning: Tuning, rows: int) -> prefill.PrefixProductOptions:
    """How the products of `rows` rows of the prefix are divided, from the tuning data."""
    entry = tuning.by_rows("hopper_prefill", rows)
    return prefill.PrefixProductOptions(
        **{key: entry[key] for key in ("gate_up", "down", "splits")}
    )


def part_rows(tuning: Tuning, prefix_rows: int) -> int:
    """Rows of partial sums that the down projection makes of up to `prefix_rows` rows."""
    return max(n * prefill_options(tuning, n).splits for n in range(1, prefix_rows + 1))


def reason_against_prefill(
    config: Pi05Config,
    precision: Precision,
    tuning: Tuning,
    capability: tuple[int, int],
    prefix_rows: int,
) -> str | None:
    """Why cuBLASLt and Triton are to compute the MLP of the prefix; see `reason_against`."""
    if tuning.values["prefill_kernels"] != "hopper":
        return "the tuning data asks for Triton"
    if precision.prefill != "fp8":
        return f"they run in fp8, prefill is {precision.prefill}"
    if capability != (9, 0):
        return f"they need compute capability 9.0, this is {capability[0]}.{capability[1]}"
    for rows in range(1, prefix_rows + 1):
        reason = prefill.unsupported(config.vlm, prefill_options(tuning, rows), rows)
        if reason is not None:
            return reason
    return None


def projects(config: Pi05Config, prefix_rows: int) -> bool:
    """Whether, where the Hopper kernels compute the MLP of the prefix, they do all of it."""
    reason = prefix_projections.unsupported(config.vlm, prefix_rows)
    if reason is not None:
        log.info("projections of the prefix run on cuBLASLt: %s", reason)
    return reason is None


def reason_against_vision(
    config: Pi05Config, precision: Precision, tuning: Tuning, capability: tuple[int, int]
) -> str | None:
    """Why cuBLASLt and Triton are to compute the products of vision; see `reason_against`."""
    if tuning.values["vision_kernels"] != "hopper":
        return "the tuning data asks for the library"
    if precision.vision not in VISION_DIVISION:
        return f"they run in bf16 and fp8, vision is {precision.vision}"
    if capability != (9, 0):
        return f"they need compute capability 9.0, this is {capability[0]}.{capability[1]}"
    coded = precision.vision == "fp8"
    return vision_products.unsupported(config.vision, coded) or next(
        (
            f"{name} of {K} columns does not divide into {entry[name]} slices"
            for entry in tuning.values[VISION_DIVISION[precision.vision]]
            for name, K in (
                ("out", config.vision.hidden_size),
                ("fc2", config.vision.intermediate_size),
            )
            if not vision_products.divides(K, entry[name], coded)
        ),
        None,
    )


def vision_clusters(
    config: Pi05Config, precision: Precision, tuning: Tuning, device: torch.device
) -> int:
    """Clusters of the Hopper kernels of vision that run at a time; 0: they are not to be used."""
    if device.type != "cuda":
        return 0
    capability = torch.cuda.get_device_capability(device)
    reason = reason_against_vision(config, precision, tuning, capability)
    coded = precision.vision == "fp8"
    usable = _decide(
        "vision", reason, lambda: vision_products.resident_clusters(device, coded), "cuBLASLt"
    )
    return vision_products.resident_clusters(device, coded) if usable else 0


def folds_norms(
    config: Pi05Config, precision: Precision, tuning: Tuning, device: torch.device
) -> bool:
    """Whether norms of vision go into the weights behind them, for some number of cameras."""
    entries = tuning.values[VISION_DIVISION["bf16"]]
    wanted = precision.vision == "bf16" and any(entry.get("fold") for entry in entries)
    return wanted and vision_clusters(config, precision, tuning, device) > 0


def reason_against(
    config: Pi05Config,
    precision: Precision,
    tuning: Tuning,
    capability: tuple[int, int],
    prefix_rows: int,
) -> str | None:
    """Why the Triton kernels are to run denoising; None where the Hopper kernels can.

    Args:
        config: sizes of the model.
        precision: resolved, per stage.
        tuning: says which kernels are wanted, and how they are split.
        capability: of the device.
        prefix_rows: most rows of a prefix.

    """
    if tuning.values["denoise_kernels"] != "hopper":
        return "the tuning data asks for Triton"
    kind = precision.denoise
    if kind not in PRODUCT_DIVISION:
        return f"they run in bf16 and fp8, denoise is {kind}"
    if not tuning.values[PRODUCT_DIVISION[kind]]:
        return f"the tuning data has no division of the products in {kind}"
    for horizon in range(1, ACTION_ROWS + 1):
        for rows in (1, prefix_rows):
            options = product_options(tuning, horizon, rows, kind)
            reason = unsupported(config, options, capability, padded_rows(horizon))
            if reason is not None:
                return reason
        if attention_options(tuning, config, prefix_rows, horizon) is None:
            return f"no attention kernel takes {prefix_rows} prefix rows and {horizon} actions"
    return None


def usable(
    config: Pi05Config,
    precision: Precision,
    tuning: Tuning,
    device: torch.device,
    prefix_rows: int,
    horizon: int,
) -> bool:
    """Whether to denoise on these kernels; where only a compiler is missing, a line in the log."""
    if device.type != "cuda":
        return False
    capability = torch.cuda.get_device_capability(device)
    reason = reason_against(config, precision, tuning, capability, prefix_rows)

    def compile_first() -> None:
        options = product_options(tuning, horizon, prefix_rows, precision.denoise)
        Products(config, options, device).kernels(horizon)

    return _decide("denoising", reason, compile_first)


def usable_for_prefill(
    config: Pi05Config,
    precision: Precision,
    tuning: Tuning,
    device: torch.device,
    prefix_rows: int,
) -> bool:
    """Whether these kernels compute the MLP of the prefix; see `usable`."""
    if device.type != "cuda":
        return False
    capability = torch.cuda.get_device_capability(device)
    reason = reason_against_prefill(config, precision, tuning, capability, prefix_rows)
    products = prefill.PrefixProducts(config.vlm, device)
    options = prefill_options(tuning, prefix_rows)
    return _decide("prefill", reason, lambda: products.prepare(prefix_rows, options))


def _decide(
    what: str, reason: str | None, compile_first: Callable[[], object], others: str = "Triton"
) -> bool:
    if reason is not None:
        log.info("%s runs on the %s kernels: %s", what, others, reason)
        return False
    try:
        compile_first()
    except KernelError as error:
        first = str(error).splitlines()[0]
        log.warning("%s runs on the slower %s kernels: %s", what, others, first)
        return False
    return True
