"""When the Hopper kernels run denoising, and the packed form of the expert that they read."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch
from fp8_simulation import Simulation

from pi05_ros.backends import Precision
from pi05_ros.backends.cuda import tuning
from pi05_ros.backends.cuda.hopper import compile as compiler
from pi05_ros.backends.cuda.hopper import products
from pi05_ros.backends.cuda.hopper.vision import vision_products
from pi05_ros.backends.cuda.pack_model import pack
from pi05_ros.backends.cuda.stages import choice, modulation
from pi05_ros.model import Pi05, Pi05Config

FULL = Pi05Config.preset("pi05")
FP8 = Precision("bf16", "fp8", "fp8")
BF16 = Precision("bf16", "bf16", "bf16")
HOPPER = {"denoise_kernels": "hopper"}
CPU = torch.device("cpu")


def why_not(config=FULL, precision=FP8, over=HOPPER, capability=(9, 0), rows=968):
    return choice.reason_against(config, precision, tuning.load(CPU, over), capability, rows)


def expert(**sizes) -> Pi05Config:
    return dataclasses.replace(FULL, expert=dataclasses.replace(FULL.expert, **sizes))


def test_the_full_model_runs_on_hopper_where_the_tuning_data_asks_for_it():
    assert why_not() is None
    assert why_not(expert(mlp_dim=2048)) is None  # the half-width student
    assert why_not(precision=BF16) is None
    assert why_not(expert(mlp_dim=2048), BF16) is None
    assert why_not(expert(width=2048)) is None
    assert "Triton" in why_not(over={})
    assert "Triton" in why_not(over={"denoise_kernels": "triton"})


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"capability": (10, 0)}, "capability 9.0"),
        ({"capability": (8, 9)}, "capability 9.0"),
        ({"precision": Precision("bf16", "int8", "int8")}, "denoise is int8"),
        ({"precision": BF16, "config": expert(mlp_dim=4096 + 256)}, "MLP size 4352"),
        ({"precision": BF16, "config": expert(width=2048)}, "shared memory"),
        ({"precision": BF16, "config": expert(width=768)}, "width 768"),
        ({"precision": Precision("bf16", "fp8", "fp8-w8a16")}, "denoise is fp8-w8a16"),
        ({"config": expert(mlp_dim=4096 + 128)}, "MLP size 4224"),
        ({"config": expert(width=1088)}, "width 1088"),
        ({"config": expert(width=4096)}, "shared memory"),
        ({"rows": 5000}, "5000 prefix rows"),
    ],
)
def test_everything_else_falls_back_with_a_reason(case, message):
    assert message in why_not(**case)


def test_all_shipped_tuning_data_fits_the_kernels():
    for path in tuning.FOLDER.glob("*.json"):
        over = tuning.read(path)
        for precision in (FP8, BF16):
            assert why_not(precision=precision, over={**over, **HOPPER}) is None, path.name


def test_without_a_gpu_the_triton_kernels_are_chosen():
    assert not choice.usable(FULL, FP8, tuning.load(CPU, HOPPER), CPU, 968, 50)


def test_a_missing_compiler_is_one_line_in_the_log(monkeypatch, caplog):
    def missing(self, horizon):
        raise compiler.KernelError("NVRTC was not found\nmore")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(products.Products, "kernels", missing)
    with caplog.at_level("WARNING"):
        chosen = tuning.load(CPU, HOPPER)
        assert not choice.usable(FULL, FP8, chosen, torch.device("cuda", 0), 968, 50)
    assert caplog.messages == [
        "denoising runs on the slower Triton kernels: NVRTC was not found",
    ]


def test_rows_are_padded_to_the_matrix_unit():
    assert [products.padded_rows(h) for h in (1, 8, 9, 50, 64)] == [8, 8, 16, 56, 64]


def test_blocks_leave_room_for_those_of_the_next_kernel():
    a_processor, each = 228 * 1024, 1024  # of compute capability 9.0; what a block costs besides
    least = {name: size + each for name, size in products.LEAST_SHARED.items()}
    assert 2 * least["out_residual"] > a_processor
    assert 3 * least["down_residual"] > a_processor
    measured = tuning.Tuning(tuning.read(tuning.FOLDER / "nvidia_h200.json"), "")
    for horizon, prefix in itertools.product((1, 24, 25, 50, 64), (544, 968)):
        options = choice.product_options(measured, horizon, prefix)
        rows = products.padded_rows(horizon)
        need = products.shared_bytes(FULL.expert, options, rows)
        down = max(least["down_residual"], need["down_residual"] + each)
        assert need["gate_up"] + each + down <= a_processor


@pytest.fixture(scope="module")
def model() -> Pi05:
    tiny = Pi05Config.preset("tiny")
    vlm = dataclasses.replace(tiny.vlm, num_heads=2, head_dim=64)
    small = dataclasses.replace(tiny.expert, width=128, mlp_dim=256, num_heads=2, head_dim=64)
    return Pi05.random(dataclasses.replace(tiny, vlm=vlm, expert=small), 3)


@pytest.mark.parametrize("precision", [FP8, BF16])
def test_images_hold_the_same_weights(model, precision):
    plain, image = pack(model, precision), pack(model, precision, expert_image=True)
    assert image.expert_image
    assert not plain.expert_image
    assert image.fingerprint == plain.fingerprint
    assert image.bytes() == plain.bytes()
    for ours, theirs in zip(image.expert, plain.expert, strict=True):
        for name in ("qkv", "out", "gate_up", "down"):
            a, b = getattr(ours, name), getattr(theirs, name)
            columns = 128 // b.weight.element_size()
            assert a.weight.shape[1:] == (b.weight.shape[1] // columns, 64, columns)
            assert a.outputs == b.outputs == b.weight.shape[0]
            assert a.coded == (precision == FP8)
            assert torch.equal(modulation.dequantize(a), modulation.dequantize(b))


@pytest.mark.parametrize("precision", [FP8, BF16])
def test_simulation_and_tables_do_not_depend_on_the_layout(model, precision):
    g = torch.Generator().manual_seed(1)
    pixels = torch.rand(2, 3, 56, 56, generator=g) * 2 - 1
    tokens = torch.randint(0, model.config.vocab, (7,), generator=g)
    noise = torch.randn(9, 32, generator=g)
    results = []
    for image in (False, True):
        weights = pack(model, precision, expert_image=image)
        scales = torch.full((len(weights.sites),), 2.0**-4)
        tables = modulation.build(weights, 2)
        results.append(Simulation(weights, scales).sample(pixels, tokens, noise, tables))
        head, bias = weights.action_out
        torch.testing.assert_close(tables.velocity, tables.mod[:, -1, 1] @ head.t() + bias)
    assert torch.equal(results[0], results[1])


def test_other_devices_of_capability_9_start_from_the_measured_one():
    measured, others = (tuning.FOLDER / f"{name}.json" for name in ("nvidia_h100", "sm90"))
    assert tuning.read(others) == tuning.read(measured) == json.loads(measured.read_text())


@pytest.mark.parametrize("precision", [FP8, BF16])
def test_every_candidate_of_the_tuner_leaves_all_workloads_possible(precision):
    pytest.importorskip("triton")
    from pi05_ros.backends.cuda import tuner

    values = tuning.load(CPU, tuning.read(tuning.FOLDER / "nvidia_h200.json")).values
    key = choice.PRODUCT_DIVISION[precision.denoise]
    attention = values["cluster_attention"]
    found = list(tuner.hopper_candidates(values[key], attention, 50, 400, key))
    assert {name for name, _ in found} == {"products", "attention"}
    for _, over in found:
        assert why_not(precision=precision, over={**values, **over}) is None


@pytest.mark.parametrize("kind", ["fp8", "bf16"])
@pytest.mark.parametrize("horizon", [10, 24, 50])
def test_the_tuner_keeps_the_products_of_other_horizons(horizon, kind):
    pytest.importorskip("triton")
    from pi05_ros.backends.cuda import tuner

    values = tuning.load(CPU, tuning.read(tuning.FOLDER / "nvidia_h200.json")).values
    key = choice.PRODUCT_DIVISION[kind]

    def options(of, now):
        return choice.product_options(tuning.Tuning(now, ""), of, 544, kind)

    other = 50 if options(horizon, values) == options(10, values) else 10
    before = options(other, values)
    changed = set()
    for name, over in tuner.hopper_candidates(
        values[key], values["cluster_attention"], horizon, 8 * horizon, key
    ):
        if name == "products":
            assert options(other, values | over) == before
            changed.add(options(horizon, values | over))
    assert len(changed) == (18 if kind == "fp8" else 15)


def test_the_products_of_vision_run_on_hopper_where_they_fit():
    all_fp8 = Precision("fp8", "fp8", "fp8")

    def why(config=FULL, precision=FP8, over=None, capability=(9, 0)):
        values = tuning.load(CPU, {"vision_kernels": "hopper", **(over or {})})
        return choice.reason_against_vision(config, precision, values, capability)

    def tower(**sizes):
        return dataclasses.replace(FULL, vision=dataclasses.replace(FULL.vision, **sizes))

    assert why() is None
    assert "library" in why(over={"vision_kernels": "library"})
    assert why(precision=all_fp8) is None
    assert "vision is int8" in why(precision=Precision("int8", "int8", "int8"))
    assert "capability 9.0" in why(capability=(10, 0))
    assert "256 tokens" not in str(why(tower(image_size=224)))
    assert "64 tokens" in why(tower(image_size=112))
    assert "MLP size 4300" in why(tower(intermediate_size=4300))
    assert "out of 128 columns" in why(tower(hidden_size=128))
    assert why(tower(intermediate_size=4312)) is None
    assert "multiples of 16" in why(tower(intermediate_size=4312), all_fp8)
    assert "out of 256 columns" in why(tower(hidden_size=256), all_fp8)
    uneven = {"hopper_vision_fp8": [{"out": 4, "fc2": 4}]}  # 9 chunks of K make 3 slices of 3
    assert "out of 1152 columns does not divide into 4" in why(precision=all_fp8, over=uneven)
    assert why(over=uneven) is None
    for path in tuning.FOLDER.glob("*.json"):
        over = {**tuning.read(path), "vision_kernels": "hopper"}
        for precision in (FP8, all_fp8):
            assert why(precision=precision, over=over) is None, path.name
    assert choice.vision_clusters(FULL, FP8, tuning.load(CPU), CPU) == 0


def test_the_tuner_tries_only_divisions_of_vision_that_the_kernels_take():
    pytest.importorskip("triton")
    from pi05_ros.backends.cuda import tuner

    values = tuning.load(CPU, {"vision_kernels": "hopper"}).values
    for word, key in choice.VISION_DIVISION.items():
        tried = 0
        for _, over in tuner.vision_candidates(values[key], 512, key):
            chosen = tuning.Tuning(values | over, "")
            precision = Precision(word, "fp8", "fp8")
            assert choice.reason_against_vision(FULL, precision, chosen, (9, 0)) is None
            tried += key in over
        assert tried >= 20


def test_norms_are_folded_only_where_a_kernel_reads_them_so(monkeypatch):
    wide = Precision("bf16", "fp8", "fp8")
    asked = tuning.load(CPU, {"hopper_vision": [{"out": 1, "fc2": 3, "fold": 1}]})
    assert not choice.folds_norms(FULL, wide, asked, CPU)
    monkeypatch.setattr(choice, "vision_clusters", lambda *_: 66)
    assert choice.folds_norms(FULL, wide, asked, CPU)
    assert not choice.folds_norms(FULL, Precision("fp8", "fp8", "fp8"), asked, CPU)
    assert not choice.folds_norms(FULL, wide, tuning.load(CPU), CPU)


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("form", ["plain", "narrow", "normed"])
@pytest.mark.parametrize("rows", [256, 512, 768])
def test_tiles_of_vision_run_at_the_same_time_and_cover_all_columns(rows, form, coded):
    if coded and form != "plain":
        pytest.skip("there are no such kernels in e4m3")
    for columns, splits in ((3456, 1), (4304, 1), (2048, 1), (1152, 1), (1152, 3)):
        if (splits > 1 and form != "plain") or (columns != 1152 and form == "narrow"):
            continue
        tiles = vision_products.VisionTiles.of(rows, columns, splits, 66, coded, form)
        assert tiles.columns * tiles.count >= columns > tiles.columns * (tiles.count - 1)
        assert rows // tiles.rows * splits * tiles.count <= 132
        assert tiles.columns % 16 == 0
        assert 3 <= tiles.stages() <= vision_products.MAX_STAGES
        assert tiles.shared_bytes(tiles.stages()) <= 227 * 1024
