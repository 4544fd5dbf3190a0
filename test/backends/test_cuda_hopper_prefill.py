"""How the products of the prefix are divided, when they run, and the packed form they read."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from fp8_simulation import Simulation
from hypothesis import given
from hypothesis import strategies as st

from pi05_ros.backends import Precision
from pi05_ros.backends.cuda import packing, tuning
from pi05_ros.backends.cuda.hopper import compile as compiler
from pi05_ros.backends.cuda.hopper.prefix import prefill, prefix_projections
from pi05_ros.backends.cuda.hopper.products import MAX_SHARED
from pi05_ros.backends.cuda.pack_model import pack
from pi05_ros.backends.cuda.stages import choice, modulation
from pi05_ros.backends.cuda.weights import rope_pairs
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


def test_images_of_the_projections_hold_the_same_weights():
    tiny = Pi05Config.preset("tiny")
    sizes = dataclasses.replace(tiny.vlm, width=256, mlp_dim=512, num_heads=8, head_dim=256)
    expert = dataclasses.replace(tiny.expert, num_heads=8, head_dim=256)
    model = Pi05.random(dataclasses.replace(tiny, vlm=sizes, expert=expert), 3)
    plain = pack(model, FP8, fused_gate_up=True, prefix_image=True)
    image = pack(model, FP8, fused_gate_up=True, prefix_image=True, projection_image=True)
    assert image.fingerprint == plain.fingerprint
    assert image.bytes() == plain.bytes()
    for ours, theirs in zip(image.prefix, plain.prefix, strict=True):
        assert ours.qkv.image
        assert ours.qkv.outputs == theirs.qkv.outputs
        wanted = rope_pairs(modulation.dequantize(theirs.qkv), 256)
        assert torch.equal(modulation.dequantize(ours.qkv), wanted)
        if theirs.out is not None:
            assert ours.out.image
            assert torch.equal(modulation.dequantize(ours.out), modulation.dequantize(theirs.out))
    embeds = torch.randn(9, 256, generator=torch.Generator().manual_seed(0))
    scales = torch.full((len(plain.sites),), 2.0**-6)
    with torch.no_grad():
        caches = [Simulation(w, scales).prefill(embeds) for w in (image, plain)]
    for ours, theirs in zip(*caches, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@given(rows=st.integers(1, 2688), count=st.sampled_from((6, 8)))
def test_tiles_of_the_projections_cover_the_rows_and_fit(rows, count):
    tiles = prefix_projections.ProjectionTiles.of(rows, count)
    assert tiles.columns % 8 == 0
    assert tiles.columns <= prefix_projections.MAX_COLUMNS
    assert rows <= tiles.columns * tiles.count <= packing.image_rows(rows)
    assert tiles.groups * prefix_projections.CLUSTER == tiles.count <= 16
    assert tiles.stages(16) >= 5
    assert tiles.shared_bytes(16) <= MAX_SHARED


def test_other_heads_and_widths_keep_their_projections_on_the_library():
    assert choice.projects(FULL, 968)
    assert not choice.projects(FULL, 2689)
    for sizes, word in (({"num_heads": 4}, "4 heads"), ({"width": 2112}, "width 2112")):
        other = dataclasses.replace(FULL.vlm, **sizes)
        assert word in prefix_projections.unsupported(other, 968)


@pytest.mark.skipif(not NVRTC, reason="NVRTC is not installed")
@pytest.mark.parametrize("rows", [3, 2688])
def test_the_projections_compile_for_sm_90a(rows, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tiles = prefix_projections.ProjectionTiles.of(rows, prefix_projections.QKV_TILES)
    sizes = {"COLS": tiles.columns, "CLUSTER": 2, "STAGES": tiles.stages(16), "COLUMNS": 2048}
    image = compiler.cubin("prefix/prefix_projections.cu", sizes)
    for name in (b"prefix_qkv", b"prefix_out"):
        assert name in image


@pytest.mark.skipif(not NVRTC, reason="NVRTC is not installed")
@pytest.mark.parametrize(("columns", "cluster"), [(16, 1), (136, 2), (152, 2)])
def test_the_products_compile_for_sm_90a(columns, cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sizes = {"COLS": columns, "CLUSTER": cluster, "STAGES": 4, "SPLITS": 3}
    image = compiler.cubin("prefix/prefill.cu", {**sizes, "WIDTH": 2048, "MLP": 16384})
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
