"""How long the inferences of a setting take, measured alone after the episodes.

The episodes themselves may share the machine with other workers, so their times say little.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from pi05_ros.sim.evaluation.evaluate import EpisodeJob, EpisodeRunner
from pi05_ros.sim.evaluation.setting import Setting
from pi05_ros.small_files import read_json, write_atomically

FILE = "latency.json"
ENGINE = ("backend", "precision", "denoise_steps", "chunking", "max_guidance", "kv_reuse")
"""What an inference's time depends on."""


def engine_key(values: dict[str, object]) -> str:
    """The part of a setting, or of a row, that decides how long an inference takes."""
    return json.dumps([values[name] for name in ENGINE])


def measure(
    todo: Sequence[EpisodeJob], out: Path, make: Callable[[], EpisodeRunner]
) -> dict[str, dict[str, object]]:
    """Mean and median inference time of every engine among the jobs, by `engine_key`.

    One job of each is run twice with one CPU thread, and the second run counts: the first loads
    and captures. What ``out``/latency.json has already is kept.
    """
    path = out / FILE
    known: dict[str, dict[str, object]] = {}
    if path.is_file():
        with contextlib.suppress(ValueError):  # cut off while it was written
            known = dict(read_json(path))
    wanted: dict[str, EpisodeJob] = {}
    for job in todo:
        wanted.setdefault(engine_key(asdict(job.setting)), job)
    missing = {key: job for key, job in wanted.items() if key not in known}
    if missing:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        runner = make()
        try:
            for key, job in missing.items():
                runner.run(job)
                times = runner.run(job).infer_ms
                known[key] = {
                    "mean_ms": round(float(np.mean(times)), 3),
                    "p50_ms": round(float(np.median(times)), 3),
                    "inferences": len(times),
                    "device": device_name(job.setting),
                }
                write_atomically(path, json.dumps(known, indent=1) + "\n")
        finally:
            runner.close()
            torch.set_num_threads(threads)
    return {key: known[key] for key in wanted}


def device_name(setting: Setting) -> str:
    """GPU of this machine where the setting's backend needs one, else how many CPUs it has."""
    if setting.backend in ("cuda", "tensorrt") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return "CPU or the machine's default device"
