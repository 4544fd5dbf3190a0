"""Loading a checkpoint into a model, and writing one.

Everything is checked against the headers before the first tensor is allocated, so an error never
leaves a partial model behind. Tensors are then read in file order, a few at a time, straight into
the dtype and device where they stay: host memory peaks at the model plus a few staging buffers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pi05_ros.model.checkpoint.discovery import ACCEPTED, WEIGHTS, shorten
from pi05_ros.model.checkpoint.infer_config import VARIANTS, infer_config
from pi05_ros.model.checkpoint.lora import merge
from pi05_ros.model.checkpoint.open import Checkpoint, open_checkpoint
from pi05_ros.model.checkpoint.safetensors_file import (
    FLOAT_DTYPES,
    TensorEntry,
    read_tensor,
    write_file,
)
from pi05_ros.model.config import Pi05Config
from pi05_ros.model.dtypes import parameter_dtype
from pi05_ros.model.errors import CheckpointError
from pi05_ros.model.layout import (
    EMBED_TOKENS,
    EXPERT_LM_HEAD,
    LM_HEAD,
    model_name,
    openpi_layout,
)
from pi05_ros.model.pi05 import Pi05
from pi05_ros.model.random_weights import set_parameter

READERS = min(8, os.cpu_count() or 1)
"""Threads: one copies less than 1 GB/s out of the page cache and to a GPU."""


def load_checkpoint(
    path: str | Path,
    config: Pi05Config | Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    *,
    rope: str | None = None,
    clock: str | None = None,
) -> Pi05:
    """Load a pi0.5 model from a file or directory of any supported layout.

    Args:
        path: safetensors file, shard index, or directory (openpi or LeRobot).
        config: sizes; None infers them (see `infer` for the precedence).
        dtype: torch.float32, or torch.bfloat16 for openpi's mixed policy. The file's own dtypes
            (float64, float32, bfloat16, float16, in any mix) do not matter.
        device: where the parameters go; "meta" checks the headers and reads no data.
        rope: replaces the config's `rope`.
        clock: replaces the config's `clock`.

    Raises:
        CheckpointError: the checkpoint is not a complete pi0.5 model of this config, or a weight
            is NaN or infinite.
        ValueError: dtype, rope or clock is not one of the accepted ones.

    """
    parameter_dtype("", dtype)
    checkpoint = open_checkpoint(path)
    if config is None:
        config = infer_config(checkpoint).config
    elif not isinstance(config, Pi05Config):
        config = Pi05Config.from_dict(config)
    config = dataclasses.replace(config, rope=rope or config.rope, clock=clock or config.clock)
    check_tensors(checkpoint, config)
    return _read_model(checkpoint, config, dtype, torch.device(device))


def check_tensors(checkpoint: Checkpoint, config: Pi05Config) -> None:
    """Raise CheckpointError unless the checkpoint has exactly the tensors of a config."""
    layout = openpi_layout(config)
    del layout[EXPERT_LM_HEAD]
    tensors = checkpoint.tensors
    problems = []
    missing = layout.keys() - tensors.keys()
    unexpected = tensors.keys() - layout.keys()
    wrong = [
        f"{name} has {list(tensors[name].shape)} and should have {list(spec.shape)}"
        for name, spec in layout.items()
        if name in tensors and tensors[name].shape != spec.shape
    ]
    integers = [
        f"{name} is {tensors[name].dtype}"
        for name in layout
        if name in tensors and tensors[name].dtype not in FLOAT_DTYPES
    ]
    for count, label, names in (
        (len(missing), "missing", missing),
        (len(unexpected), "unexpected", unexpected),
        (len(wrong), "of another shape", wrong),
        (len(integers), f"not of a dtype in {'/'.join(FLOAT_DTYPES)}", integers),
    ):
        if count:
            problems.append(f"{count} {label}: {shorten(names)}")
    if problems:
        raise CheckpointError(
            f"{checkpoint.path}: looks like {checkpoint.family} pi0.5 with "
            f"{len(checkpoint.stored)} tensors, but " + "; ".join(problems) + f"; {ACCEPTED}"
        )


def _read_model(
    checkpoint: Checkpoint,
    config: Pi05Config,
    dtype: torch.dtype,
    device: torch.device,
) -> Pi05:
    tensors, adapters = checkpoint.tensors, checkpoint.adapters
    model = Pi05(config, dtype, device="meta")
    wanted = openpi_layout(config).keys() - {EXPERT_LM_HEAD}
    order = sorted(wanted, key=lambda name: (tensors[name].file, tensors[name].offset))
    sums: list[Tensor] = []
    opened: dict[Path, FileIO] = {}

    def read(name: str) -> Tensor:
        entry, final = tensors[name], parameter_dtype(model_name(name), dtype)
        if name not in adapters:
            return read_tensor(opened[entry.file], entry, final, device)
        factors = adapters[name]
        value, a, b = (
            read_tensor(opened[side.file], side, torch.float32, device)
            for side in (entry, factors.a, factors.b)
        )
        return merge(value, a, b, factors).to(final)

    readers = ThreadPoolExecutor(READERS, thread_name_prefix="pi05_weights")
    with contextlib.ExitStack() as stack:
        try:
            for path in {entry.file for entry in _entries(checkpoint, wanted)}:
                opened[path] = stack.enter_context(open(path, "rb", buffering=0))
            stack.callback(readers.shutdown, cancel_futures=True)
            for name, value in zip(order, readers.map(read, order), strict=True):
                set_parameter(model, model_name(name), value)
                sums.append(value.sum().float())
        except OSError as error:
            raise CheckpointError(f"cannot read the weights: {error}") from error
    if device.type != "meta":
        _require_finite(model, order, sums, tensors)
    return model


def _entries(checkpoint: Checkpoint, wanted: Iterable[str]) -> Iterator[TensorEntry]:
    """All tensors that are read for these weights."""
    for name in wanted:
        yield checkpoint.tensors[name]
        if name in checkpoint.adapters:
            yield checkpoint.adapters[name].a
            yield checkpoint.adapters[name].b


def _require_finite(
    model: Pi05, names: Sequence[str], sums: Sequence[Tensor], tensors: Mapping[str, TensorEntry]
) -> None:
    """Raise CheckpointError if a weight is NaN or infinite.

    A sum is one pass at memory speed and keeps NaN and infinity; only where one is not finite are
    the values looked at (a sum of finite values may overflow).
    """
    suspects = torch.stack(list(sums)).isfinite().logical_not().nonzero().flatten().tolist()
    parameters = dict(model.named_parameters())
    bad = {}
    for index in suspects:
        count = int(parameters[model_name(names[index])].isfinite().logical_not().sum())
        if count:
            bad[names[index]] = count
    if bad:
        name, count = next(iter(bad.items()))
        entry = tensors[name]
        raise CheckpointError(
            f"{entry.file}: {len(bad)} of {len(names)} tensors hold NaN or infinity: "
            f"{shorten(bad)}; the first has {count} such values of {entry.size}. "
            "The file is damaged, or the training diverged"
        )


def openpi_tensors(model: Pi05) -> dict[str, Tensor]:
    """The model's parameters under their openpi names, and zeros for the expert's lm_head.

    openpi loads strictly and wants the lm_head although it never uses it.
    """
    parameters = dict(model.named_parameters())
    layout = openpi_layout(model.config)
    tensors = {
        name: parameters[model_name(name)].detach() for name in layout if name != EXPERT_LM_HEAD
    }
    shape = layout[EXPERT_LM_HEAD].shape
    tensors[EXPERT_LM_HEAD] = torch.zeros(shape, dtype=tensors[LM_HEAD].dtype)
    return tensors


def save_openpi(model: Pi05, path: str | Path) -> Path:
    """Write a model in the openpi layout, each parameter in its own dtype.

    Args:
        model: not on the meta device.
        path: a name ending in .safetensors, or a directory (made where needed), which gets
            model.safetensors and a config.json that both openpi and `load_checkpoint` read.

    Returns:
        The path of the weight file.

    """
    path = Path(path)
    if path.suffix != ".safetensors":
        path.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_config_json(model), indent=2)
        (path / "config.json").write_text(text + "\n", encoding="utf-8")
        path = path / WEIGHTS
    metadata = {"format": "pt", EMBED_TOKENS: LM_HEAD}
    write_file(path, openpi_tensors(model), metadata)
    return path


def _config_json(model: Pi05) -> dict[str, Any]:
    config = model.config
    data: dict[str, Any] = {
        "action_dim": config.action_dim,
        "action_horizon": config.horizon,
        "precision": str(model.projector.weight.dtype).removeprefix("torch."),
    }
    for key, gemma in (
        ("paligemma_variant", config.vlm),
        ("action_expert_variant", config.expert),
    ):
        name = next((name for name, known in VARIANTS.items() if known == gemma), None)
        if name is not None:
            data[key] = name
    return data | config.to_dict()
