"""Choose tile sizes for a device: each kernel in turn, timed inside the graph it runs in.

Kernels timed alone mislead (the sign of a difference can turn in the chain), so every candidate is
one kernel changed in the whole stage. Greedy: the best so far stays while the next is tried.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pi05_ros.backends.cuda import tuning
from pi05_ros.backends.cuda.engine import CudaEngine
from pi05_ros.backends.cuda.hopper.prefix.prefill import MAX_COLUMNS
from pi05_ros.backends.cuda.stages.assembly import denoise_stage, prefix_stages
from pi05_ros.backends.cuda.stages.choice import PRODUCT_DIVISION, VISION_DIVISION
from pi05_ros.backends.cuda.stages.denoise import DenoiseKernels
from pi05_ros.backends.cuda.stages.prefill import PrefixKernels
from pi05_ros.backends.cuda.weights import CODES
from pi05_ros.backends.files import write_atomically

Say = Callable[[str], None]
Measure = Callable[[dict[str, Any]], list[float]]
STEPS = 3
GAIN, LOSS = 0.995, 1.005
"""A candidate is taken if it needs at most so much of the time, and more nowhere than that."""


@dataclass(frozen=True)
class TunedWork:
    """One workload: cameras, rows of the prefix with its prompt bucket, action rows."""

    views: int
    rows: int
    horizon: int


def denoise_candidates(kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """One change at a time, as an override of the tuning values."""
    f = 1 if kind in CODES else 2
    for early in (True, False):
        yield "trigger", {"early_trigger": early}
    for name, tiles, splits in (
        ("qkv", (32, 64), (1,)),
        ("out", (16, 32), (1, 2, 4)),
        ("gate_up", (32, 64), (1,)),
        ("down", (16, 32), (1, 2, 4)),
    ):
        for BN in tiles:
            for split in splits:
                for BK, stages in ((256, 3), (256, 5), (512, 3), (512, 4)):
                    options = {"BN": BN, "BK": BK // f, "warps": 4, "stages": stages}
                    if splits != (1,):
                        options["split"] = split
                    yield name, {"denoise": {kind: {name: options}}}
    for BN, warps in ((32, 4), (64, 4), (64, 8)):
        yield "attention", {"denoise": {"attention": {"BM": 64, "BN": BN, "warps": warps}}}


def hopper_candidates(
    products: list[dict[str, int]],
    attention: list[dict[str, int]],
    horizon: int,
    queries: int,
    key: str = "hopper_products",
) -> Iterator[tuple[str, dict[str, Any]]]:
    """As above, where the expert is packed for the Hopper kernels.

    Args:
        products: entries of the tuning data; only the one that the horizon uses is replaced.
        attention: same; those behind the one that is replaced take what it cannot.
        horizon: action rows.
        queries: query rows of the attention.
        key: name of the entries of products.

    """
    coded = key == PRODUCT_DIVISION["fp8"]  # bf16: K of q, k, v is divided too, that of down in 8
    divisions = ((1, 1), (2, 1), (4, 1)) if coded else ((3, 1), (1, 2), (2, 2), (1, 4), (2, 4))
    at = next(i for i, e in enumerate(products) if horizon <= e.get("max_rows", horizon))
    place = next(i for i, e in enumerate(attention) if queries <= e.get("max_rows", queries))
    before, now, behind = attention[:place], attention[place], attention[place + 1 :]
    # candidates hold whatever the prefix is
    base = {key: value for key, value in products[at].items() if not key.startswith("short_")}
    for qkv, split in divisions:
        for out in (2, 4, 8):
            for down in (4, 8) if coded else (8,):
                entry = base | {"qkv": qkv, "qkv_split": split, "out": out, "down": down}
                yield "products", {key: [*products[:at], entry, *products[at + 1 :]]}
    for rows in (16, 32, 64):
        for cluster in (4, 8, 16):
            for trigger in (0, 1):
                options = now | {"rows": rows, "cluster": cluster, "trigger": trigger}
                yield "attention", {"cluster_attention": [*before, options, now, *behind]}


def hopper_prefill_candidates(
    products: list[dict[str, int]], rows: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """As above, where the MLP of the prefix is packed for the Hopper kernels.

    Args:
        products: entries of the tuning data; only the one that `rows` use is replaced.
        rows: of the prefix.

    """
    at = next(i for i, e in enumerate(products) if rows <= e.get("max_rows", rows))
    least = -(-products[at].get("max_rows", rows) // MAX_COLUMNS)  # others use the entry too
    for gate_up in range(least, least + 3):
        for down in range(least, least + 3):
            for splits in (1, 2, 3, 4, 6, 8):
                entry = products[at] | {"gate_up": gate_up, "down": down, "splits": splits}
                yield "products", {"hopper_prefill": [*products[:at], entry, *products[at + 1 :]]}


def vision_candidates(
    products: list[dict[str, int]] | None,
    rows: int,
    key: str = "hopper_vision",
    folded: bool = False,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """As above, for attention and products of vision.

    Args:
        products: entries of the tuning data; only the one that `rows` use is replaced. None: the
            products are the library's.
        rows: image tokens of all cameras.
        key: name of the entries.
        folded: weights are packed so that a norm needs no kernel.

    """
    if products is not None:
        wide = key == VISION_DIVISION["bf16"]  # e4m3 has half as many chunks of K
        at = next(i for i, e in enumerate(products) if rows <= e.get("max_rows", rows))
        outs = (1, 2, 3, 4, 6) if wide else (1, 2, 3, 5)
        fc2s = (2, 3, 4, 6, 8) if wide else (2, 3, 4, 6, 7)
        for out in outs:
            for fc2 in fc2s:
                entry = products[at] | {"out": out, "fc2": fc2}
                yield "products", {key: [*products[:at], entry, *products[at + 1 :]]}
        others = [{"stages": stages} for stages in (3, 4, 5, 6)]
        others += [{"early_trigger": on} for on in (0, 1)]
        if folded:
            others += [{"fold": 0}, *({"fold": 1, "narrow_stages": n} for n in (4, 6, 8, 10))]
        for other in others:
            entry = products[at] | other
            yield next(iter(other)), {key: [*products[:at], entry, *products[at + 1 :]]}
    for BM, warps in ((32, 4), (64, 4), (64, 8), (128, 8)):
        for BN in (64, 128, 256):
            yield "attention", {"vision_attention": {"BM": BM, "BN": BN, "warps": warps}}


def norm_candidates() -> Iterator[tuple[str, dict[str, Any]]]:
    """As above, for the norms of vision and prefill."""
    for warps in (2, 4, 8):
        yield "norm", {"norm_warps": warps}


def prefill_candidates(kind: str, fused: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """As above, for attention and MLP of prefill on the Triton kernels."""
    for BM, BN, warps, stages in ((64, 64, 4, 2), (64, 32, 4, 2), (128, 64, 8, 2)):
        options = {"BM": BM, "BN": BN, "splits": 0, "warps": warps, "stages": stages}
        yield "attention", {"prefill_attention": [options]}
    if fused:
        BK = 128 if kind == "fp8" else 64  # INT8 is never fused
        for stages, group, special in ((4, 1, 0), (4, 4, 0), (3, 1, 1), (3, 4, 1)):
            options = {"BM": 128, "BN": 256, "BK": BK, "warps": 8, "stages": stages}
            options |= {"group": group, "persistent": 1, "specialize": special}
            yield "gate_up", {f"fused_gate_up_{kind}": [options]}


def int8_candidates() -> Iterator[tuple[str, dict[str, Any]]]:
    """As above, for the INT8 products of prefill, and its attention."""
    yield from prefill_candidates("int8", fused=False)
    for BM, BN, BK, warps, stages in (
        (128, 128, 128, 8, 3), (128, 64, 128, 4, 3), (64, 128, 128, 4, 4), (128, 256, 64, 8, 3),
    ):  # fmt: skip
        options = {"BM": BM, "BN": BN, "BK": BK, "warps": warps, "stages": stages}
        yield "product", {"int8_product": [options]}


def _graph_ms(launch: Callable[[], None], runs: int = 15) -> float:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        launch()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        launch()
    times = []
    for _ in range(runs):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        graph.replay()
        events[1].record()
        torch.cuda.synchronize()
        times.append(events[0].elapsed_time(events[1]))
    return sorted(times)[runs // 2]


def tune(
    engine: CudaEngine,
    say: Say = print,
    works: Sequence[TunedWork] = (TunedWork(2, 544, 50),),
    seconds: float = math.inf,
) -> dict[str, Any]:
    """Best overrides for the engine's device and precision.

    The engine must have run once with most cameras and prompt tokens of `works`, so that its
    buffers hold a real observation. After `seconds` no further candidate is tried. Choices of
    denoising hold whatever the prefix is, so all workloads judge them together.
    """
    end = time.monotonic() + seconds
    slot, device = engine.buffers.slots[0], engine.device
    chosen: dict[str, Any] = {"dependent_launch": engine.prefix_stages.pdl}

    def build(over: dict[str, Any]) -> tuple[PrefixKernels, DenoiseKernels]:
        values = tuning.load(device, tuning.merge(chosen, over))
        prefix = prefix_stages(engine.weights, engine.buffers, values, engine.prefix_stages.pdl)
        return prefix, denoise_stage(engine.weights, engine.buffers, values, prefix)

    def denoise_ms(over: dict[str, Any]) -> list[float]:
        stage, table = build(over)[1], engine.modulation_tables(STEPS)
        times = []
        for work in works:
            slot.length.fill_(work.rows)
            run = functools.partial(stage.run, work.horizon, table, slot, work.rows)
            times.append(_graph_ms(run))
        return times

    def prefill_ms(rows: int) -> Measure:
        def measure(over: dict[str, Any]) -> list[float]:
            slot.length.fill_(rows)
            return [_graph_ms(functools.partial(build(over)[0].prefill, rows, slot))]

        return measure

    def vision_ms(views: int) -> Measure:
        return lambda over: [_graph_ms(functools.partial(build(over)[0].vision, 0, views))]

    horizon, values = works[0].horizon, engine.tuning.values
    if engine.denoise_stage.image:
        queries = horizon * engine.weights.config.expert.num_heads
        key = PRODUCT_DIVISION[engine.precision.denoise]
        flow = hopper_candidates(values[key], values["cluster_attention"], horizon, queries, key)
    else:
        flow = denoise_candidates(engine.precision.denoise)
    plans: list[tuple[str, Measure, Iterator[tuple[str, dict[str, Any]]]]] = []
    for rows in sorted({w.rows for w in works}):
        if engine.precision.prefill == "int8":
            prefix = int8_candidates()
        elif engine.weights.prefix_image:
            prefix = hopper_prefill_candidates(values["hopper_prefill"], rows)
        else:
            kind = "fp8" if engine.precision.prefill == "fp8" else "bf16"
            prefix = prefill_candidates(kind, engine.weights.fused_gate_up)
        prefix = itertools.chain(norm_candidates(), prefix)
        plans.append((f"prefill of {rows} rows", prefill_ms(rows), prefix))
    for views in sorted({w.views for w in works if w.views}):
        key = VISION_DIVISION.get(engine.precision.vision, "hopper_vision")
        products = values[key] if engine.prefix_stages.clusters else None
        folded = engine.weights.vision[0].fc1_affine is not None
        found = vision_candidates(products, views * engine.buffers.tokens, key, folded)
        plans.append((f"vision of {views} cameras", vision_ms(views), found))
    plans.append(("denoise", denoise_ms, flow))
    for title, measure, candidates in plans:
        best = measure({})
        first, tried = best, 0
        for name, over in candidates:
            if time.monotonic() > end:
                say("out of time: the candidates left are not tried")
                break
            tried += 1
            try:
                now = measure(over)
            except Exception as error:  # a candidate that does not fit this device is no error
                say(f"{name}: {str(error).splitlines()[0][:80]}")
                continue
            # Twice, and against the best measured beside it: clocks drift.
            if _share(now, best) > GAIN or _share(measure(over), best := measure({})) > GAIN:
                continue
            best, chosen = now, tuning.merge(chosen, over)
            say(f"{name}: {_words(best)} ms with {json.dumps(over)}")
        say(f"{title}, {tried} candidates: {_words(first)} -> {_words(best)} ms")
    return chosen


def _share(now: list[float], best: list[float]) -> float:
    """Time of a candidate over that of the best, on average; infinite if one workload loses."""
    shares = [a / b for a, b in zip(now, best, strict=True)]
    return sum(shares) / len(shares) if max(shares) <= LOSS else math.inf


def _words(times: list[float]) -> str:
    return ", ".join(f"{t:.3f}" for t in times)


def save(chosen: dict[str, Any], device: torch.device) -> Path:
    """Add the choices to the user's file of this device."""
    path = tuning.user_file(device)
    assert path is not None
    merged = json.dumps(tuning.merge(tuning.read(path) or {}, chosen), indent=1) + "\n"
    write_atomically(path, merged.encode())
    return path
