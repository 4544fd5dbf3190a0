"""How the products of the prefix are divided, when they run, and the packed form they read."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pi05_ros.backends import Precision
from pi05_ros.backends.cuda import packing, tuning
from pi05_ros.backends.cuda.hopper import compile as compiler
from pi05_ros.backends.cuda.hopper import prefill
from pi05_ros.backends.cuda.hopper.products import MAX_SHARED
from pi05_ros.backends.cuda.pack_model import pack
from pi05_ros.backends.cuda.stages import choice, modulation
from pi05_ros.model import Pi05, Pi05Config

FULL = Pi05Config.preset("pi05")
FP8 = Precision("bf16", "fp8", "fp8")
HOPPER = {"prefill_kernels": "hopper"}
CPU = torch.device("cpu")

try:
    compiler.nvrtc()
    NVRTC = True
except compiler.KernelError:
    NVRTC = False


def why_not(config=FULL, precision=FP8, over=HOPPER, capability=(9, 0), rows=968):
    return choice.reason_against_prefill(
        config, precision, tuning.load(CPU, over), capability, rows
    )


def vlm(**sizes) -> Pi05Config:
    return dataclasses.replace(FULL, vlm=dataclasses.replace(FULL.vlm, **sizes))


@given(rows=st.integers(1, 1064), count=st.integers(1, 16))
def test_tiles_cover_the_rows_and_fit_into_the_images(rows, count):
    tiles = prefill.Tiles.of(rows, count)
    assert tiles.columns % 8 == 0
    assert rows <= tiles.columns * count <= packing.image_rows(rows)
    assert tiles.groups * tiles.cluster == count
    if tiles.columns <= prefill.MAX_COLUMNS:
        assert max(tiles.shared_bytes().values()) <= MAX_SHARED


def test_the_full_model_runs_on_hopper_where_the_tuning_data_asks_for_it():
    assert why_not() is None
    assert why_not(vlm(mlp_dim=8192)) is None  # the half-width student
    assert "Triton" in why_not(over={})


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"capability": (10, 0)}, "capability 9.0"),
        ({"precision": Precision("bf16", "bf16", "fp8")}, "prefill is bf16"),
        ({"config": vlm(mlp_dim=16384 + 64)}, "MLP size 16448"),
        ({"config": vlm(width=2176)}, "width 2176"),
        ({"config": vlm(mlp_dim=2048)}, "fewer than 4 chunks"),
        ({"rows": 1065}, "tiles for 1065 rows"),
    ],
)
def test_everything_else_falls_back_with_a_reason(case, message):
    assert message in why_not(**case)


def test_all_shipped_tuning_data_fits_the_kernels():
    for path in tuning.FOLDER.glob("*.json"):
        over = {**tuning.read(path), **HOPPER}
        assert why_not(over=over) is None, path.name
        rows = choice.part_rows(tuning.load(CPU, over), 968)
        assert 968 <= rows <= 8 * 968


def test_without_a_gpu_the_triton_kernels_are_chosen():
    assert not choice.usable_for_prefill(FULL, FP8, tuning.load(CPU, HOPPER), CPU, 968)


def test_a_missing_compiler_is_one_line_in_the_log(monkeypatch, caplog):
    def missing(self, rows, options):
        raise compiler.KernelError("NVRTC was not found\nmore")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(prefill.PrefixProducts, "prepare", missing)
    with caplog.at_level("WARNING"):
        chosen = tuning.load(CPU, HOPPER)
        device = torch.device("cuda", 0)
        assert not choice.usable_for_prefill(FULL, FP8, chosen, device, 968)
    assert caplog.messages == [
        "prefill runs on the slower Triton kernels: NVRTC was not found",
    ]


def test_images_hold_the_same_weights():
    tiny = Pi05Config.preset("tiny")
    sizes = dataclasses.replace(tiny.vlm, width=256, mlp_dim=512)
    model = Pi05.random(dataclasses.replace(tiny, vlm=sizes), 3)
    plain = pack(model, FP8, fused_gate_up=True)
    image = pack(model, FP8, fused_gate_up=True, prefix_image=True)
    assert image.fingerprint == plain.fingerprint
    assert image.bytes() == plain.bytes()
    for ours, theirs in zip(image.prefix[:-1], plain.prefix[:-1], strict=True):
        for name in ("gate_up", "down"):
            a, b = getattr(ours, name), getattr(theirs, name)
            assert a.image
            assert a.outputs == b.weight.shape[0]
            assert torch.equal(modulation.dequantize(a), modulation.dequantize(b))


@pytest.mark.skipif(not NVRTC, reason="NVRTC is not installed")
@pytest.mark.parametrize(("columns", "cluster"), [(16, 1), (136, 2), (152, 2)])
def test_the_products_compile_for_sm_90a(columns, cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sizes = {"COLS": columns, "CLUSTER": cluster, "STAGES": 4, "SPLITS": 3}
    image = compiler.cubin("prefill.cu", {**sizes, "WIDTH": 2048, "MLP": 16384})
    assert image[:4] == b"\x7fELF"
    for name in (b"prefix_gate_up", b"prefix_down"):
        assert name in image


def test_every_candidate_of_the_tuner_keeps_other_rows():
    pytest.importorskip("triton")
    from pi05_ros.backends.cuda import tuner

    values = tuning.read(tuning.FOLDER / "nvidia_h100.json")
    before = choice.prefill_options(tuning.Tuning(values, ""), 968)
    found = list(tuner.hopper_prefill_candidates(values["hopper_prefill"], 544))
    assert len(found) == 54
    for _, over in found:
        now = tuning.Tuning(values | over, "")
        assert choice.prefill_options(now, 968) == before
        assert prefill.unsupported(FULL.vlm, choice.prefill_options(now, 544), 544) is None


def test_candidates_of_few_rows_serve_all_rows_of_their_entry():
    """One that does not would take the whole of prefill off these kernels at the next start."""
    pytest.importorskip("triton")
    from pi05_ros.backends.cuda import tuner

    products = tuning.load(CPU).values["hopper_prefill"]
    found = list(tuner.hopper_prefill_candidates(products, 32))
    assert found
    assert all(why_not(over=HOPPER | over) is None for _, over in found)
