"""`pi05 bench model`: where the time of one inference goes on this GPU.

Stages are timed as their own CUDA graphs, the total as the one graph a user runs, all from random
weights and random inputs (zeros run faster on a power-limited card). Weights are larger than any
L2 cache, so every replay reads them from memory. Times are device times between CUDA events unless
said otherwise; the boundary is uint8 images on the GPU to actions on the GPU.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pi05_ros.backends import BackendError, create_engine
from pi05_ros.backends.workload import MIXES, STAGES, Workload, random_inputs
from pi05_ros.bench.bench_requests import ModelBenchRequest
from pi05_ros.bench.ceilings import device_times, floor_ms
from pi05_ros.model import Pi05, Pi05Config, load_checkpoint


@dataclasses.dataclass(frozen=True)
class Timing:
    """Milliseconds over many runs."""

    mean: float
    std: float
    p50: float
    p99: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        """Statistics of a list of milliseconds."""
        p50, p99 = np.percentile(samples, (50, 99))
        return cls(float(np.mean(samples)), float(np.std(samples)), float(p50), float(p99))


def overlap_times(
    engine: Any, work: Workload, size: tuple[int, int], runs: int
) -> dict[str, list[float]]:
    """Frame after frame with two under way: wall time from answer to answer, and of one frame."""
    from pi05_ros.backends.cuda.pipeline import Pipeline

    pipeline = Pipeline(engine)
    images, tokens, noise = random_inputs(engine.weights.config, work, size, 1)
    for _ in range(4):
        pipeline.submit(images, tokens, noise, work.steps).result()
    periods, latencies = [], []
    began = [time.perf_counter()]
    under_way = pipeline.submit(images, tokens, noise, work.steps)
    last = 0.0
    for _ in range(runs):
        began.append(time.perf_counter())
        following = pipeline.submit(images, tokens, noise, work.steps)
        under_way.result()
        now = time.perf_counter()
        latencies.append(1e3 * (now - began[-2]))
        if last:
            periods.append(1e3 * (now - last))
        last, under_way = now, following
    under_way.result()
    return {"overlap period": periods, "overlap latency": latencies}


def measure(
    engine: Any, work: Workload, size: tuple[int, int], runs: int, overlap: bool = False
) -> dict[str, Any]:
    """Every stage and the total of one workload."""
    images, tokens, noise = random_inputs(engine.weights.config, work, size, 1)
    engine.sample(images, tokens, noise, work.steps)
    key = next(reversed(engine.graphs.keys()))
    cache = engine.prefill(images, tokens)
    rows = engine.buffers.rows_of(cache)
    slot = engine.buffers.slots[0]
    stages, table = engine.prefix_stages, engine.modulation_tables(work.steps)
    kinds = tuple(view.kind for view in engine.inputs.views(images, 3))

    def denoise(guided: bool = False) -> None:
        engine.denoise_stage.run(work.horizon, table, slot, rows, guided)

    def graph(name: str, launch: Callable[[], None]) -> list[float]:
        return device_times(lambda: engine.graphs.run(("bench", name, work), launch), runs)

    def preprocess() -> None:
        for camera, kind in enumerate(kinds):
            engine.launches.camera(camera, kind)

    def prefill() -> None:
        stages.embed_prompt(work.views, cache.bucket, slot)
        stages.prefill(rows, slot)

    host = images.cpu().pin_memory()
    result = noise.cpu().pin_memory()
    times: dict[str, list[float]] = {
        "H2D": device_times(lambda: images.copy_(host, non_blocking=True), runs),
        "preprocess": graph("preprocess", preprocess),
        "vision": graph("vision", lambda: stages.vision(0, work.views)),
        "vision per camera": graph("camera", lambda: stages.vision(0, 1)),
        "prefill": graph("prefill", prefill),
        "denoise": graph("denoise", denoise),
        "denoise guided": graph("guided", lambda: denoise(guided=True)),
        "D2H": device_times(lambda: result.copy_(noise, non_blocking=True), runs),
        "graph": device_times(lambda: engine.graphs.replay(key), runs),
        "total": device_times(lambda: engine.sample(images, tokens, noise, work.steps), runs),
    }
    if engine.monitor.every:
        times["graph monitored"] = device_times(
            lambda: engine.graphs.replay(key, twin=True), min(runs, 50)
        )
    wall = []
    for _ in range(min(runs, 100)):
        begin = time.perf_counter()
        engine.sample(images, tokens, noise, work.steps)
        torch.cuda.synchronize()
        wall.append(1e3 * (time.perf_counter() - begin))
    times["wall"] = wall
    if overlap:
        times.update(overlap_times(engine, work, size, runs))
    rows_out = {name: dataclasses.asdict(Timing.of(values)) for name, values in times.items()}
    rows_out["denoise per step"] = {
        name: value / work.steps for name, value in rows_out["denoise"].items()
    }
    floors = floor_ms(engine.weights.config, work, engine.precision)
    return {
        "workload": dataclasses.asdict(work),
        "bucket_rows": rows,
        "times_ms": rows_out,
        "floor_ms": floors,
        "histogram": times["graph"],
    }


def eager_times(model: Pi05, work: Workload, size: tuple[int, int], runs: int) -> list[float]:
    """The plain model in the same process."""
    engine = create_engine(model, "eager")
    images, tokens, noise = random_inputs(model.config, work, size, 1)
    return device_times(lambda: engine.sample(images, tokens, noise, work.steps), runs, warmup=2)


def student(config: Pi05Config, depth: int | None, width: float) -> Pi05Config:
    """A smaller model of the same family: fewer layers, narrower MLPs (a distilled student)."""
    if depth is None and width == 1.0:
        return config

    def shrink(stack: Any) -> Any:
        mlp = max(512, int(stack.mlp_dim * width) // 512 * 512)
        return dataclasses.replace(stack, depth=depth or stack.depth, mlp_dim=mlp)

    return dataclasses.replace(config, vlm=shrink(config.vlm), expert=shrink(config.expert))


def measure_model(request: ModelBenchRequest) -> dict[str, Any]:
    """Build the engine, measure all step counts, return the report.

    Raises:
        BackendError, CheckpointError: it cannot run here.

    """
    from pi05_ros.backends.cuda import usable

    ok, why = usable()
    if not ok:
        raise BackendError(why)
    height, width = request.image
    if request.checkpoint:
        model = load_checkpoint(request.checkpoint, dtype=torch.bfloat16, device="cuda")
        source = str(request.checkpoint)
    else:
        config = student(Pi05Config.preset(request.preset), request.depth, request.width)
        model = Pi05.random_on_device(config, 0, torch.bfloat16, "cuda")
        source = f"random {request.preset}"
    words = dict(zip(STAGES, MIXES.get(request.precision, ("auto",) * 3), strict=True))
    if request.vision:
        words["vision"] = request.vision
    works = [Workload(request.views, request.tokens, request.horizon, n) for n in request.steps]
    eager = None
    if request.eager:
        times = eager_times(model, works[-1], (height, width), 8)
        eager = dataclasses.asdict(Timing.of(times))
    begin = time.perf_counter()
    engine: Any = create_engine(
        model, "cuda", words, views=request.views, horizon=request.horizon, release_model=True
    )
    del model
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    images, tokens, noise = random_inputs(engine.weights.config, works[-1], (height, width), 1)
    engine.sample(images, tokens, noise, works[-1].steps)
    torch.cuda.synchronize()
    ready = time.perf_counter() - begin
    memory = torch.cuda.max_memory_allocated()
    rows = [
        measure(engine, work, (height, width), request.runs, request.overlap) for work in works
    ]
    report = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "weights": source,
        "precision": dataclasses.asdict(engine.precision),
        "tuning": Path(engine.tuning.source).name,
        "image": [height, width],
        "runs": request.runs,
        "ready_s": ready,
        "peak_memory_gb": memory / 1e9,
        "eager_ms": eager,
        "results": rows,
    }
    if eager:
        report["speedup"] = eager["p50"] / rows[-1]["times_ms"]["total"]["p50"]
    engine.close()
    return report
