"""Choose the cuda backend's tile sizes on this GPU."""

from __future__ import annotations

from pathlib import Path

import torch

from pi05_ros.backends import BackendError, cuda
from pi05_ros.backends.create import create_engine
from pi05_ros.backends.cuda.inputs import check_range
from pi05_ros.backends.workload import MIXES, STAGES, Workload, random_inputs
from pi05_ros.errors import InvalidValueError
from pi05_ros.model import Pi05, Pi05Config
from pi05_ros.workflows.engine_requests import Say, TuneRequest


def tune_kernels(request: TuneRequest, say: Say = print) -> Path | None:
    """Tune each precision in turn; returns the user's file.

    Raises:
        BackendError, InvalidValueError: no GPU, or a size that is not accepted.

    """
    config = Pi05Config.preset(request.preset)
    for views in request.views:
        check_range("--views", views, 0)
    for count in request.tokens:
        check_range("--tokens", count, 1)
    if not request.views or len(request.views) != len(request.tokens):
        raise InvalidValueError("--views and --tokens take one number for each workload")
    check_range("--horizon", request.horizon, 1)
    ok, why = cuda.usable()
    if not ok:
        raise BackendError(why)
    from pi05_ros.backends.cuda.engine import CudaEngine
    from pi05_ros.backends.cuda.tuner import TunedWork, save, tune

    model = Pi05.random_on_device(config, dtype=torch.bfloat16, device="cuda")
    sizes = sorted(zip(request.views, request.tokens, strict=True))
    path = None
    for word in request.precisions:
        precision = dict(zip(STAGES, MIXES.get(word, (word,) * 3), strict=True))
        engine = create_engine(model, "cuda", precision, horizon=request.horizon)
        assert isinstance(engine, CudaEngine)
        works = []
        for views, count in sizes:  # the largest last: its observation stays in the buffers
            work = Workload(views, count, request.horizon, 3)
            images, tokens, noise = random_inputs(model.config, work, (224, 224), 0)
            engine.sample(images, tokens, noise, work.steps)
            rows = engine.buffers.rows_of(engine.prefill(images, tokens))
            works.append(TunedWork(views, rows, request.horizon))
        say(f"precision {word}, from {engine.tuning.source}")
        chosen = tune(engine, works=works, seconds=request.seconds)
        path = save(chosen, engine.device)
        engine.close()
    say(f"written to {path}")
    return path
