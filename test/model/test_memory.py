"""Loading needs little more memory than what stays, and 14 GB are not needed to look at 14 GB."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pi05_ros.model import (
    GemmaConfig,
    Pi05,
    Pi05Config,
    VisionConfig,
    load_checkpoint,
    save_openpi,
)
from pi05_ros.model.layout import openpi_layout

ROOT = Path(__file__).resolve().parents[2]

# Runs alone in a process, so that the high-water mark of its resident memory is its own.
LOAD = """
import json, sys, torch
sys.path.insert(0, sys.argv[1])
from pi05_ros.model import load_checkpoint
torch.set_num_threads(1)
def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))
load_checkpoint(sys.argv[2], dtype=getattr(torch, sys.argv[4]))  # imports, allocator
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # peak := now
before = status("VmRSS")
model = load_checkpoint(sys.argv[3], dtype=getattr(torch, sys.argv[4]))
resident = sum(p.numel() * p.element_size() for p in model.parameters())
print(json.dumps({"peak": status("VmHWM") - before, "resident": resident}))
"""

MIDDLE = Pi05Config(
    vision=VisionConfig(288, 1024, 4, 4),
    vlm=GemmaConfig(width=768, depth=6, mlp_dim=3072),
    expert=GemmaConfig(width=384, depth=6, mlp_dim=1024),
    vocab=60000,
)


@pytest.fixture(scope="module")
def stored(request, tmp_path_factory):
    dtype = getattr(torch, request.param)
    base = tmp_path_factory.mktemp(request.param)
    tiny = Pi05.random(Pi05Config.preset("tiny"), 0, dtype)
    small = save_openpi(tiny, base / "tiny").parent
    return small, save_openpi(Pi05.random(MIDDLE, 0, dtype), base / "middle").parent


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [("float32", "bfloat16"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")],
    indirect=["stored"],
)
def test_peak_memory_while_loading(stored, dtype):
    small, middle = stored
    command = [sys.executable, "-c", LOAD, str(ROOT), str(small), str(middle), dtype]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    report = json.loads(done.stdout)
    print(report)
    assert report["resident"] > 200e6
    assert report["peak"] <= 1.3 * report["resident"]


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_full_layout_in_a_sparse_file(dtype, tmp_path):
    """A header of the published model over a hole of 7 or 14 GB: all but the data is real."""
    header, position = {}, 0
    for name, spec in openpi_layout(Pi05Config.preset("pi05")).items():
        end = position + spec.size * (2 if dtype == "BF16" else 4)
        header[name] = {"dtype": dtype, "shape": spec.shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)
    loaded = load_checkpoint(path, dtype=torch.bfloat16, device="meta")
    assert loaded.config == Pi05Config.preset("pi05")
    assert sum(p.numel() for p in loaded.parameters()) == 3_616_757_520 - 257152 * 1024
