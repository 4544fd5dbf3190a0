"""The checkpoint a workflow is about, loaded as the node would load it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pi05_ros.backends import BackendError
from pi05_ros.backends.eager import EagerEngine
from pi05_ros.backends.identity import weights_id
from pi05_ros.backends.staged.shapes import StageShapes
from pi05_ros.model import Pi05
from pi05_ros.policy import Policy
from pi05_ros.workflows.engine_requests import ModelRequest


@dataclass(frozen=True)
class Subject:
    """A checkpoint as the node would use it."""

    policy: Policy
    model: Pi05
    shapes: StageShapes
    weights: str


def load_subject(request: ModelRequest, precision: str | None = None) -> Subject:
    """Load the checkpoint through the policy, so that all sizes are those of the node.

    Args:
        request: which checkpoint.
        precision: "fp32" loads weights as they are; None in bfloat16 on a GPU.

    """
    policy = Policy.load(
        request.checkpoint,
        robot=request.robot,
        tokenizer=request.tokenizer,
        backend="eager",
        precision=precision,
        device=request.device,
    )
    engine = policy.engine
    assert isinstance(engine, EagerEngine)
    model = engine.model
    views = request.views or len(policy.robot.cameras)
    prompt_tokens = request.max_prompt_tokens or policy.recipe.max_prompt_tokens
    shapes = StageShapes.of(model.config, views, prompt_tokens, engine.horizon)
    return Subject(policy, model, shapes, weights_id(model))


@contextlib.contextmanager
def named_out_of_memory() -> Iterator[None]:
    """Turn running out of memory into a BackendError that says so."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise BackendError(f"out of memory: {error}") from error
