"""`pi05 bench model --backend eager`: the plain model, on a CPU or a GPU, on the wall clock."""

from __future__ import annotations

import dataclasses
import platform
import resource
import time
from typing import Any

import torch

from pi05_ros.backends import create_engine
from pi05_ros.backends.workload import MIXES, STAGES, Workload, random_inputs
from pi05_ros.bench.bench_requests import ModelBenchRequest
from pi05_ros.bench.model import Timing
from pi05_ros.model import Pi05, Pi05Config, load_checkpoint


def measure_plain(request: ModelBenchRequest) -> dict[str, Any]:
    """Report in the form of `measure_model`, with the rows that the plain model has.

    Raises:
        BackendError, CheckpointError: it cannot run here.

    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if request.checkpoint:
        model = load_checkpoint(request.checkpoint, device=device)
        source = str(request.checkpoint)
    else:
        model = Pi05.random(Pi05Config.preset(request.preset), 0).to(device)
        source = f"random {request.preset}"
    words = dict(zip(STAGES, MIXES.get(request.precision, ("auto",) * 3), strict=True))
    begin = time.perf_counter()
    engine = create_engine(model, "eager", words, horizon=request.horizon)
    results = []
    ready = 0.0
    for steps in request.steps:
        work = Workload(request.views, request.tokens, request.horizon, steps)
        images, tokens, noise = random_inputs(model.config, work, request.image, 1, device)
        engine.sample(images, tokens, noise, steps)
        ready = ready or time.perf_counter() - begin
        times: dict[str, list[float]] = {name: [] for name in (*STAGES, "total")}
        for _ in range(request.runs):
            start = time.perf_counter()
            engine.sample(images, tokens, noise, steps)
            if device != "cpu":
                torch.cuda.synchronize()
            times["total"].append(1e3 * (time.perf_counter() - start))
            stages = engine.timings
            for name in STAGES:
                times[name].append(getattr(stages, f"{name}_ms"))
        rows = {name: dataclasses.asdict(Timing.of(values)) for name, values in times.items()}
        results.append({"workload": dataclasses.asdict(work), "times_ms": rows, "floor_ms": {}})
    precision = dataclasses.asdict(engine.precision)
    engine.close()
    return {
        "device": platform.processor() or platform.machine()
        if device == "cpu"
        else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "weights": source,
        "precision": precision,
        "image": list(request.image),
        "runs": request.runs,
        "ready_s": ready,
        "tuning": "none",
        "peak_memory_gb": _peak_gb(device),
        "eager_ms": None,
        "results": results,
    }


def _peak_gb(device: str) -> float:
    """Most memory so far: of the GPU, or of the process on a CPU."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return torch.cuda.max_memory_allocated() / 1e9
