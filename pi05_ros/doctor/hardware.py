"""Checks of torch, CUDA, the GPU, TensorRT, modelopt and headless rendering."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib import metadata, util

from pi05_ros.doctor.checks import Check, Level, ask

_TORCH = """
import json, torch
gpus = []
if torch.cuda.is_available():
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        gpus.append([p.name, p.total_memory, p.major, p.minor])
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "gpus": gpus,
                  "threads": torch.get_num_threads()}))
"""
# Making a builder needs the libraries that the Python package only names.
_TENSORRT = """
import json, torch
from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.tensorrt.flavor import FLAVORS, recommended, sm
found, missing = {}, {}
for flavor in FLAVORS.values():
    try:
        version = flavor.require()
        module = flavor.load()
        module.Builder(module.Logger(module.Logger.ERROR))
        found[flavor.title] = version
    except (BackendError, TypeError) as error:
        missing[flavor.title] = str(error)
capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
print(json.dumps({
    "found": found, "missing": missing,
    "gpu": None if capability is None else sm(capability),
    "wanted": None if capability is None else recommended(capability).title,
}))
"""
_RENDER = """
import json
from pi05_ros.sim.arm.render import RenderError, mujoco
from pi05_ros.sim.arm.world import World
world = World()
try:
    world.render("base", 16, 16)
except RenderError as error:
    raise SystemExit(str(error))
print(json.dumps([mujoco.__version__, world.renderer.backend, world.renderer.note]))
"""


def torch_and_gpu() -> list[Check]:
    """PyTorch, its CUDA, the GPUs."""
    try:
        found = ask(_TORCH, 120.0)
    except RuntimeError as error:
        return [
            Check(
                "torch",
                Level.FAIL,
                f"does not import: {error}",
                "pip install torch (with --index-url https://download.pytorch.org/whl/cpu "
                "on a machine without an NVIDIA GPU)",
            )
        ]
    cuda = found["cuda"]
    checks = [Check("torch", Level.OK, f"{found['version']}, {found['threads']} CPU threads")]
    card = _nvidia_smi()
    if found["gpus"]:
        checks.append(Check("CUDA", Level.OK, f"{cuda} (torch's own)"))
        for name, memory, major, minor in found["gpus"]:
            checks.append(
                Check("GPU", Level.OK, f"{name}, {memory / 2**30:.0f} GiB, sm_{major}{minor}")
            )
        return checks
    if card and not cuda:
        fix = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu128"
        checks.append(Check("CUDA", Level.WARN, f"{card} is there, but torch is a CPU build", fix))
    elif card:
        fix = "nvidia-smi (compare its driver with torch.version.cuda); echo $CUDA_VISIBLE_DEVICES"
        checks.append(Check("CUDA", Level.WARN, f"torch cannot use {card} (CUDA {cuda})", fix))
    else:
        checks.append(
            Check(
                "GPU",
                Level.MISSING,
                "none: everything runs on the CPU; the full pi0.5 then takes seconds per chunk",
            )
        )
    return checks


def tensorrt() -> list[Check]:
    """TensorRT: optional engines, and which of its two flavors suits this GPU."""
    try:
        facts = ask(_TENSORRT)
    except RuntimeError as error:
        return [Check("TensorRT", Level.MISSING, f"no engines (optional): {error}")]
    found, wanted = facts["found"], facts["wanted"]
    listed = ", ".join(f"{title} {version}" for title, version in found.items())
    if wanted is None and found:
        return [Check("TensorRT", Level.OK, f"{listed}; no GPU here to run engines on")]
    if wanted in found:
        others = facts["gpu"] == "sm90"
        note = "; on this GPU the cuda backend is the faster way" if others else ""
        text = f"{wanted} {found[wanted]}, the one for this GPU ({facts['gpu']}){note}"
        return [Check("TensorRT", Level.OK, text)]
    # The text of a missing flavor ends with what to install.
    reasons = facts["missing"]
    reason = reasons[wanted] if wanted else "; ".join(reasons.values())
    text = f"{wanted} is the one for this GPU ({facts['gpu']}). " if wanted else ""
    here = f"; here: {listed}" if found else ""
    return [Check("TensorRT", Level.MISSING, f"no engines (optional): {text}{reason}{here}")]


def modelopt() -> list[Check]:
    """NVIDIA ModelOpt: optional quantization."""
    from pi05_ros.backends.errors import BackendError
    from pi05_ros.backends.quantization.modelopt_quantizers import modelopt_version

    try:
        modelopt_version()
    except BackendError as error:
        return [Check("modelopt", Level.MISSING, f"optional: {error}")]
    return [Check("modelopt", Level.OK, metadata.version("nvidia-modelopt"))]


def rendering() -> list[Check]:
    """What draws the simulated arm, chosen as the demo and `pi05 eval` choose it."""
    if util.find_spec("mujoco") is None:
        return [Check("rendering", Level.MISSING, "mujoco is not installed", "pip install mujoco")]
    try:
        version, backend, note = ask(_RENDER)
    except RuntimeError as error:
        fix = "unset MUJOCO_GL" if os.environ.get("MUJOCO_GL") else "pip install mujoco"
        return [Check("rendering", Level.WARN, str(error), fix)]
    if note:
        fix = "sudo apt-get install -y libegl1 libgl1-mesa-dri"
        return [Check("rendering", Level.MISSING, f"mujoco {version} casts rays: {note}", fix)]
    return [Check("rendering", Level.OK, f"mujoco {version} with {backend}")]


def _nvidia_smi() -> str:
    """Name and driver of the first GPU, "" without one."""
    if shutil.which("nvidia-smi") is None:
        return ""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = done.stdout.strip().splitlines()
    return lines[0] if done.returncode == 0 and lines else ""
