"""`pi05 bench model`: where the time of one inference goes on this GPU.

Stages are timed as their own CUDA graphs, the total as the one graph a user runs, all from random
weights and random inputs (zeros run faster on a power-limited card). Weights are larger than any
L2 cache, so every replay reads them from memory. Times are device times between CUDA events unless
said otherwise; the boundary is uint8 images on the GPU to actions on the GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pi05_ros.backends import BackendError, create_engine
from pi05_ros.backends.cuda.workload import MIXES, STAGES, Workload, random_inputs
from pi05_ros.bench.ceilings import floor_ms
from pi05_ros.model import Pi05, Pi05Config, load_checkpoint
from pi05_ros.model.config import PRESETS


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
        ordered = sorted(samples)
        last = len(ordered) - 1
        return cls(
            statistics.fmean(ordered),
            statistics.pstdev(ordered),
            ordered[last // 2],
            ordered[min(last, round(0.99 * last))],
        )


def device_times(call: Callable[[], Any], runs: int, warmup: int = 5) -> list[float]:
    """Milliseconds of each of `runs` calls on the device."""
    for _ in range(warmup):
        call()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(runs)]
    for start, end in events:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in events]


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


def at_least_one(text: str) -> int:
    """Type of an option that counts something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: 1 or more is accepted")
    return value


def frame_size(text: str) -> tuple[int, int]:
    """``WxH`` to (height, width)."""
    width, _, height = text.partition("x")
    try:
        return at_least_one(height), at_least_one(width)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: WxH is accepted, as 640x480") from None


def parser() -> argparse.ArgumentParser:
    """Command line of the benchmark."""
    p = argparse.ArgumentParser(prog="pi05 bench model", description=__doc__)
    p.add_argument("--checkpoint", help="weights; random ones without it")
    p.add_argument("--preset", default="pi05", choices=tuple(PRESETS), help="of random weights")
    p.add_argument("--precision", default="auto", choices=("auto", *MIXES))
    p.add_argument("--vision", choices=("bf16", "fp8"), help="vision apart from the mix")
    p.add_argument("--views", type=int, choices=range(4), default=2)
    p.add_argument("--tokens", type=at_least_one, default=20, help="prompt tokens")
    p.add_argument("--horizon", type=at_least_one, default=50)
    p.add_argument("--steps", type=at_least_one, nargs="+", default=[1, 3, 10])
    p.add_argument("--image", type=frame_size, default="224x224", help="frame size, WxH")
    p.add_argument("--runs", type=at_least_one, default=200)
    p.add_argument("--depth", type=int, help="student: layers of both stacks")
    p.add_argument("--width", type=float, default=1.0, help="student: factor on the MLP widths")
    p.add_argument(
        "--overlap", action="store_true", help="also frame after frame with two under way"
    )
    p.add_argument("--no-eager", action="store_true", help="skip the plain model")
    p.add_argument("--json", type=Path)
    p.add_argument("--markdown", type=Path)
    p.add_argument("--plot", type=Path, help="PNG: stage bars and latency histogram")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; exit code 2 where it cannot run."""
    args = parser().parse_args(argv)
    report = run(args)
    from pi05_ros.bench import report as out

    out.console(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(out.markdown(report))
    if args.plot:
        out.plot(report, args.plot)
    return 0


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Build the engine, measure all step counts, return the report."""
    from pi05_ros.backends.cuda import usable

    ok, why = usable()
    if not ok:
        raise BackendError(why)
    height, width = args.image
    if args.checkpoint:
        model = load_checkpoint(args.checkpoint, dtype=torch.bfloat16, device="cuda")
        source = str(args.checkpoint)
    else:
        config = student(Pi05Config.preset(args.preset), args.depth, args.width)
        model = Pi05.random_on_device(config, 0, torch.bfloat16, "cuda")
        source = f"random {args.preset}"
    words = dict(zip(STAGES, MIXES.get(args.precision, ("auto",) * 3), strict=True))
    if args.vision:
        words["vision"] = args.vision
    works = [Workload(args.views, args.tokens, args.horizon, n) for n in args.steps]
    eager = None
    if not args.no_eager:
        times = eager_times(model, works[-1], (height, width), 8)
        eager = dataclasses.asdict(Timing.of(times))
    begin = time.perf_counter()
    engine: Any = create_engine(
        model, "cuda", words, views=args.views, horizon=args.horizon, release_model=True
    )
    del model
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    images, tokens, noise = random_inputs(engine.weights.config, works[-1], (height, width), 1)
    engine.sample(images, tokens, noise, works[-1].steps)
    torch.cuda.synchronize()
    ready = time.perf_counter() - begin
    memory = torch.cuda.max_memory_allocated()
    rows = [measure(engine, work, (height, width), args.runs, args.overlap) for work in works]
    report = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "weights": source,
        "precision": dataclasses.asdict(engine.precision),
        "tuning": Path(engine.tuning.source).name,
        "image": [height, width],
        "runs": args.runs,
        "ready_s": ready,
        "peak_memory_gb": memory / 1e9,
        "eager_ms": eager,
        "results": rows,
    }
    if eager:
        report["speedup"] = eager["p50"] / rows[-1]["times_ms"]["total"]["p50"]
    engine.close()
    return report


if __name__ == "__main__":
    sys.exit(main())
