"""Choose the cuda backend's tile sizes on this GPU."""

from __future__ import annotations

from pathlib import Path

import torch

from pi05_ros.backends import BackendError, cuda
from pi05_ros.backends.create import create_engine
from pi05_ros.backends.cuda.inputs import check_range
from pi05_ros.backends.workload import MIXES, STAGES, Workload, random_inputs
from pi05_ros.model import Pi05, Pi05Config
from pi05_ros.workflows.engine_requests import Say, TuneRequest


def tune_kernels(request: TuneRequest, say: Say = print) -> Path | None:
    """Tune each precision in turn; returns the user's file.

    Raises:
        BackendError, InvalidValueError: no GPU, or a size that is not accepted.

    """
    config = Pi05Config.preset(request.preset)
    for name, least in (("views", 0), ("tokens", 1), ("horizon", 1)):
        check_range(f"--{name}", getattr(request, name), least)
    ok, why = cuda.usable()
    if not ok:
        raise BackendError(why)
    from pi05_ros.backends.cuda.engine import CudaEngine
    from pi05_ros.backends.cuda.tuner import save, tune

    model = Pi05.random_on_device(config, dtype=torch.bfloat16, device="cuda")
    work = Workload(request.views, request.tokens, request.horizon, 3)
    path = None
    for word in request.precisions:
        precision = dict(zip(STAGES, MIXES.get(word, (word,) * 3), strict=True))
        engine = create_engine(model, "cuda", precision, horizon=request.horizon)
        assert isinstance(engine, CudaEngine)
        images, tokens, noise = random_inputs(model.config, work, (224, 224), 0)
        engine.sample(images, tokens, noise, work.steps)
        rows = engine.buffers.rows_of(engine.prefill(images, tokens))
        say(f"precision {word}, from {engine.tuning.source}")
        chosen = tune(engine, rows=rows, horizon=request.horizon, seconds=request.seconds)
        path = save(chosen, engine.device)
        engine.close()
    say(f"written to {path}")
    return path
