#!/usr/bin/env python3
"""Run every own kernel of the cuda backend on small sizes under compute-sanitizer.

    python scripts/sanitize_kernels.py [--tools memcheck racecheck synccheck] [--json FILE]

Each precision, on the Hopper kernels and on Triton alone, is a process of its own under memcheck
and under synccheck. It builds a model of pi0.5's widths with two layers per stack, runs it
without graphs and without PyTorch's caching of memory, so that a buffer ends where it ends.
Under racecheck each Hopper kernel is a process of its own, with tests of that kernel. Exit code
1 if a tool reports anything or a kernel of ours was never launched. Needs a GPU and compute-
sanitizer (CUDA toolkit).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
TOOLS = ("memcheck", "racecheck", "synccheck")
MIXES = {
    "bf16": ("bf16", "bf16", "bf16"),
    "fp8": ("bf16", "fp8", "fp8"),
    "fp8-vision": ("fp8", "fp8", "fp8"),
    "fp8-w8a16": ("bf16", "fp8", "fp8-w8a16"),
    "int8": ("bf16", "int8", "int8"),
    "int8-vision": ("int8", "int8", "int8-w8a16"),
}
KINDS: dict[str, dict[str, object]] = {
    "hopper": {
        "vision_kernels": "hopper",
        "hopper_vision": [
            {"max_rows": 256, "out": 4, "fc2": 8},
            {"out": 2, "fc2": 4, "stages": 4, "fold": 1},
        ],
    },
    "triton": {
        "denoise_kernels": "triton",
        "prefill_kernels": "triton",
        "vision_kernels": "library",
        "denoise_attention": "split",
    },
}
SECONDS = 560
RACES = {  # source: tests of its kernels, and which of them
    "attention.cu": ("test_hopper_attention.py", "layouts or saturate or one_key"),
    "euler.cu": ("test_euler_step.py", "fp64 and 512"),
    "prefill.cu": ("test_hopper_prefill.py", "fp64 or saturate"),
    "prefix_attention.cu": ("test_prefix_attention.py", "fp64 or saturate or one_key"),
    "prefix_projections.cu": ("test_prefix_projections.py", "test_"),
    "products.cu": ("test_hopper_products.py", "qkv_rope or gate_up or residual"),
    "vision.cu": ("test_vision_products.py", "test_products_match_fp64"),
    "vision_attention.cu": ("test_vision_attention.py", "test_"),
    "vision_fp8.cu": ("test_vision_products.py", "e4m3_match_fp64"),
    "vision_narrow.cu": ("test_vision_products.py", "narrow_products_match_fp64"),
    "vision_normed.cu": ("test_vision_products.py", "folded_norm_match_fp64"),
}


def own_kernels() -> set[str]:
    """Names of all kernels that the stages launch: Triton's by their use, ours in .cu files."""
    backend = ROOT / "pi05_ros" / "backends" / "cuda"
    names = set()
    for path in (backend / "triton").glob("*.py"):
        names |= set(re.findall(r"@triton\.jit.*\ndef (\w+)", path.read_text()))
    used = "".join(path.read_text() for path in (backend / "stages").glob("*.py"))
    found = {f"triton/{name}" for name in names if re.search(rf"\.{name}\[", used)}
    return found | set(hopper_kernels())


def hopper_kernels() -> list[str]:
    """Names of the kernels in .cu files."""
    pattern = r'extern "C" __global__ void[^(]*\([^)]*\)\s*(\w+)\('
    sources = sorted((ROOT / "pi05_ros/backends/cuda/hopper").rglob("*.cu"))
    return [
        f"{path.name}/{name}" for path in sources for name in re.findall(pattern, path.read_text())
    ]


def run_kernels(mix: str, kind: str) -> set[str]:
    """One precision: all launch sequences; names of the kernels launched."""
    import torch
    from triton.runtime.jit import JITFunction

    from pi05_ros.backends import create_engine
    from pi05_ros.backends.cuda import graphs
    from pi05_ros.backends.cuda.hopper import launch
    from pi05_ros.backends.engine import Guidance
    from pi05_ros.model import Pi05, Pi05Config
    from pi05_ros.model.config import GEMMA_2B, GEMMA_300M, VisionConfig

    launched: set[str] = set()
    triton_run, hopper_launch, load = JITFunction.run, launch.Kernel.launch, launch.load
    module_kernel = launch.Module.kernel

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        launched.add(f"triton/{self.fn.__name__}")
        return triton_run(self, *args, **kwargs)

    def start(self: Any, *args: Any, **kwargs: Any) -> None:
        launched.add(f"{self.source}/{self.name}")
        hopper_launch(self, *args, **kwargs)

    def load_named(source: str, *args: Any, **kwargs: Any) -> Any:
        module = load(source, *args, **kwargs)
        module.source = Path(source).name  # type: ignore[attr-defined]
        return module

    def kernel(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = module_kernel(self, *args, **kwargs)
        made.source = getattr(self, "source", "?")  # type: ignore[attr-defined]
        return made

    def direct(self: Any, key: Any, forms: Any, twin: Any = None, use_twin: bool = False) -> None:
        (twin if use_twin else forms)()

    JITFunction.run, launch.Kernel.launch, graphs.Graphs.run = run, start, direct
    launch.load, launch.Module.kernel = load_named, kernel
    config = Pi05Config(
        vision=VisionConfig(num_hidden_layers=2),
        vlm=dataclasses.replace(GEMMA_2B, depth=2),
        expert=dataclasses.replace(GEMMA_300M, depth=2),
        vocab=512,
    )
    model = Pi05.random_on_device(config, 0, torch.bfloat16)
    g = torch.Generator(device="cuda").manual_seed(0)
    images = torch.randint(0, 256, (2, 90, 120, 3), generator=g, device="cuda").byte()
    pixels = torch.rand(1, 3, 224, 224, generator=g, device="cuda") * 2 - 1
    words = dict(zip(("vision", "prefill", "denoise"), MIXES[mix], strict=True))
    engine: Any = create_engine(
        model, "cuda", words, horizon=10, monitor_every=2, tuning=KINDS[kind]
    )
    for horizon, frames in ((10, images), (50, images), (3, pixels)):
        tokens = torch.randint(0, 512, (horizon,), generator=g, device="cuda")
        noise = torch.randn(horizon, 32, generator=g, device="cuda")
        engine.sample(frames, tokens, noise, 2)
        engine.sample(frames, tokens, noise, 2, frozen=noise[:2])
        cache = engine.prefill(frames, tokens)
        pull = Guidance(noise, torch.ones(horizon, device="cuda"))
        engine.denoise(cache, noise, steps=2, guidance=pull)
    actions = engine.sample(images, tokens, seed=3, steps=1)
    torch.cuda.synchronize()
    assert actions.isfinite().all()
    engine.close()
    return launched


def sanitized(tool: str, mix: str, kind: str) -> dict[str, Any]:
    """One precision under one tool."""
    words = [__file__, "--mix", mix, "--kinds", kind]
    row, text = under_tool(tool, words, ())
    kernels = re.search(r"^kernels: (.*)$", text, re.M)
    return row | {
        "precision": mix,
        "kind": kind,
        "kernels": kernels[1].split() if kernels else [],
    }


def without_races(source: str, kernel: str) -> dict[str, Any]:
    """Some tests of one kernel under racecheck, which looks at no other kernel.

    A whole model does not run under it: cuBLAS and kernels that it does not look at end in an
    illegal access ("the Sanitizer failed to handle a hardware exception", version 2025.3.1).
    """
    file, choice = RACES[source]
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "test/gpu" / file)]
    row, text = under_tool("racecheck", [*words, "-k", choice], ("--kernel-name", f"kns={kernel}"))
    passed = re.search(r"(\d+) passed", text)
    return row | {
        "precision": f"{passed[1] if passed else 0} tests",
        "kind": "hopper",
        "kernels": [f"{source}/{kernel}"] if passed else [],
    }


def under_tool(tool: str, words: list[str], options: Sequence[str]) -> tuple[dict[str, Any], str]:
    """A Python process under one tool, and what it printed."""
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--print-limit", "5",
               "--report-api-errors", "no",  # asking for a parameter that is not there is no fault
               *options, sys.executable, *words]  # fmt: skip
    paths = [str(ROOT), str(ROOT / "test" / "shared"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    began = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False,
                              timeout=SECONDS, env=environment)  # fmt: skip
        code, text = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        code, text = 124, str(error.stdout or "")
    found = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", text)
    return {
        "tool": tool,
        "exit code": code,
        "summary": found[-1] if found else "no summary",
        "seconds": round(time.monotonic() - began, 1),
        "text": "" if code == 0 else f"{text[:2500]}\n...\n{text[2500:][-2500:]}",
    }, text


def show(row: dict[str, Any]) -> bool:
    """Print the outcome of a process; whether it failed."""
    head = f"{row['tool']:10} {row['precision']:12} {row['kind']:7} {row['exit code']:4}"
    what = row["kernels"][0] if len(row["kernels"]) == 1 else f"{len(row['kernels']):3} kernels"
    print(f"{head} {row['seconds']:6.1f} s  {what}  {row['summary']}", flush=True)
    if row["text"]:
        print(row["text"], flush=True)
    return bool(row["exit code"])


def main() -> int:
    """Run all, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--mixes", nargs="+", choices=list(MIXES), default=list(MIXES))
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--jobs", type=int, default=6, help="processes at a time")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--mix", choices=list(MIXES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.mix:
        print("kernels:", *sorted(run_kernels(args.mix, args.kinds[0])))
        return 0
    if shutil.which("compute-sanitizer") is None:
        print("compute-sanitizer is not on the PATH; it comes with the CUDA toolkit")
        return 2
    jobs: list[Callable[[], dict[str, Any]]] = [
        partial(sanitized, *job)
        for job in itertools.product(args.tools, args.mixes, args.kinds)
        if job[0] != "racecheck"
    ]
    if "racecheck" in args.tools:
        jobs += [partial(without_races, *name.split("/")) for name in hopper_kernels()]
    rows, failed = [], 0
    with ThreadPoolExecutor(args.jobs) as pool:
        for done in as_completed([pool.submit(job) for job in jobs]):
            rows.append(done.result())
            failed += show(rows[-1])
            if args.json:  # what there is, if the rest is stopped
                args.json.write_text(json.dumps(rows, indent=1) + "\n")
    for tool in args.tools:
        launched = {name for row in rows if row["tool"] == tool for name in row["kernels"]}
        never = (set(hopper_kernels()) if tool == "racecheck" else own_kernels()) - launched
        print(
            f"{tool}: {len(launched)} kernels of ours launched; never: {sorted(never) or 'none'}"
        )
        everything = set(args.mixes) == set(MIXES) and set(args.kinds) == set(KINDS)
        failed += len(never) if everything or tool == "racecheck" else 0
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
