#!/usr/bin/env python3
"""Run every own kernel of the cuda backend on small sizes under compute-sanitizer.

    python scripts/sanitize_kernels.py [--tools memcheck racecheck synccheck] [--json FILE]

Each precision, on the Hopper kernels and on Triton alone, is a process of its own under each tool,
and under racecheck each kernel.
It builds a model of pi0.5's widths with two layers per stack, runs it without graphs and without
PyTorch's caching of memory, so that a buffer ends where it ends. Exit code 1 if a tool reports
anything or a kernel of ours was never launched. Needs a GPU and compute-sanitizer (CUDA toolkit).
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
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
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
Job = tuple[str, ...]  # tool, precision, kind, and one kernel for racecheck


def own_kernels() -> set[str]:
    """Names of all kernels that the stages launch: Triton's by their use, ours in .cu files."""
    backend = ROOT / "pi05_ros" / "backends" / "cuda"
    names = set()
    for path in (backend / "triton").glob("*.py"):
        names |= set(re.findall(r"@triton\.jit.*\ndef (\w+)", path.read_text()))
    used = "".join(path.read_text() for path in (backend / "stages").glob("*.py"))
    found = {f"triton/{name}" for name in names if re.search(rf"\.{name}\[", used)}
    for path in (backend / "hopper").rglob("*.cu"):
        pattern = r'extern "C" __global__ void[^(]*\([^)]*\)\s*(\w+)\('
        found |= {f"{path.name}/{name}" for name in re.findall(pattern, path.read_text())}
    return found


def without_library() -> Any:
    """A context in which PyTorch multiplies matrices element by element.

    Under racecheck kernels of cuBLAS end in an illegal access, whichever kernels are checked.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    aten = torch.ops.aten

    def product(a: Any, b: Any) -> Any:
        """float32 ``[..., M, N]`` of ``[..., M, K]`` and ``[..., K, N]``, some of K at a time."""
        chunk = max(1, 2**28 // (a.shape[:-1].numel() * b.shape[-1]))
        parts = zip(a.split(chunk, -1), b.split(chunk, -2), strict=True)
        return sum((x[..., None].float() * y[..., None, :, :].float()).sum(-2) for x, y in parts)

    class ElementByElement(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = dict(kwargs or {})
            if func.overloadpacket in (aten.mm, aten.bmm):
                found = product(*args[:2])
            elif func.overloadpacket is aten.addmm:
                found = product(*args[1:3]) + args[0].float()
            else:
                return func(*args, **kwargs)
            out = kwargs.get("out")
            return found.to(args[1].dtype) if out is None else out.copy_(found)

    return ElementByElement()


def run_kernels(mix: str, kind: str, small: bool) -> set[str]:
    """One precision: all launch sequences; names of the kernels launched.

    `small`: one size and one step, one kernel after the other, for racecheck, which takes a
    hundred times as long.
    """
    with without_library() if small else nullcontext():
        return _run_kernels(mix, kind, small)


def _run_kernels(mix: str, kind: str, small: bool) -> set[str]:
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
    tuning = KINDS[kind] | ({"dependent_launch": False, "beside_prefill": False} if small else {})
    engine: Any = create_engine(model, "cuda", words, horizon=10, monitor_every=2, tuning=tuning)
    cases = ((10, images),) if small else ((10, images), (50, images), (3, pixels))
    steps = 1 if small else 2
    for horizon, frames in cases:
        tokens = torch.randint(0, 512, (horizon,), generator=g, device="cuda")
        noise = torch.randn(horizon, 32, generator=g, device="cuda")
        engine.sample(frames, tokens, noise, steps)
        if small:
            continue
        engine.sample(frames, tokens, noise, steps, frozen=noise[:2])
        cache = engine.prefill(frames, tokens)
        pull = Guidance(noise, torch.ones(horizon, device="cuda"))
        engine.denoise(cache, noise, steps=steps, guidance=pull)
    actions = engine.sample(images, tokens, seed=3, steps=1)
    torch.cuda.synchronize()
    assert actions.isfinite().all()
    engine.close()
    return launched


def sanitized(tool: str, mix: str, kind: str, kernel: str = "") -> dict[str, Any]:
    """One process under one tool, or without any for ""; `kernel`: check only this one."""
    command = [sys.executable, __file__, "--mix", mix, "--kinds", kind]
    if tool in ("", "racecheck"):
        command.append("--small")
    if tool:
        options = ["--kernel-name", f"kns={kernel.split('/')[1]}"] if kernel else []
        # asking for a parameter that is not there is no fault
        command[:0] = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9",
                       "--print-limit", "5", "--report-api-errors", "no", *options]  # fmt: skip
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    began = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False,
                              timeout=SECONDS, env=environment)  # fmt: skip
        code, text = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        code, text = 124, str(error.stdout or "")
    found = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", text)
    kernels = re.search(r"^kernels: (.*)$", text, re.M)
    ends = text if len(text) < 5000 else f"{text[:2500]}\n...\n{text[-2500:]}"
    return {
        "tool": tool,
        "precision": mix,
        "kind": kind,
        "exit code": code,
        "summary": found[-1] if found else "no summary",
        "kernels": [kernel] if kernel else kernels[1].split() if kernels else [],
        "seconds": round(time.monotonic() - began, 1),
        "text": "" if code == 0 else ends,
    }


def racecheck_jobs(pool: ThreadPoolExecutor, mixes: list[str], kinds: list[str]) -> list[Job]:
    """One process for each kernel: what the tool itself cannot run ends that process only.

    Kernels of PyTorch are left out as well; they would take minutes.
    """
    jobs: dict[str, Job] = {}
    pairs = list(itertools.product(mixes, kinds))
    for pair, done in zip(pairs, pool.map(lambda pair: sanitized("", *pair), pairs), strict=True):
        if done["exit code"]:
            raise SystemExit(f"{pair} fails without a tool:\n{done['text']}")
        for kernel in set(done["kernels"]) & own_kernels():
            jobs.setdefault(kernel, ("racecheck", *pair, kernel))
    return list(jobs.values())


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
    parser.add_argument("--small", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--mix", choices=list(MIXES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.mix:
        print("kernels:", *sorted(run_kernels(args.mix, args.kinds[0], args.small)))
        return 0
    if shutil.which("compute-sanitizer") is None:
        print("compute-sanitizer is not on the PATH; it comes with the CUDA toolkit")
        return 2
    tools = [tool for tool in args.tools if tool != "racecheck"]
    jobs: list[Job] = list(itertools.product(tools, args.mixes, args.kinds))
    rows, failed = [], 0
    with ThreadPoolExecutor(args.jobs) as pool:
        if "racecheck" in args.tools:
            jobs += racecheck_jobs(pool, args.mixes, args.kinds)
        for done in as_completed([pool.submit(sanitized, *job) for job in jobs]):
            rows.append(done.result())
            failed += show(rows[-1])
            if args.json:  # what there is, if the rest is stopped
                args.json.write_text(json.dumps(rows, indent=1) + "\n")
    for tool in args.tools:
        launched = {name for row in rows if row["tool"] == tool for name in row["kernels"]}
        never = own_kernels() - launched
        print(
            f"{tool}: {len(launched)} kernels of ours launched; never: {sorted(never) or 'none'}"
        )
        everything = set(args.mixes) == set(MIXES) and set(args.kinds) == set(KINDS)
        failed += len(never) if everything else 0
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
