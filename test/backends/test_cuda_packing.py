"""CPU-side logic of the cuda backend: packing, tables, scales, tuning. No GPU, no Triton."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from fp8_simulation import Simulation

from pi05_ros.backends import BackendError, Precision, create_engine
from pi05_ros.backends.cuda import resolve, scales, tuning, usable
from pi05_ros.backends.cuda.pack_model import pack
from pi05_ros.backends.cuda.stages import modulation
from pi05_ros.backends.cuda.weights import alternate, fold_norm, quantize, rope_pairs
from pi05_ros.model import Pi05, Pi05Config

BF16 = Precision("bf16", "bf16", "bf16")
FP8 = Precision("bf16", "fp8", "fp8")
INT8 = Precision("bf16", "int8", "int8")


@pytest.fixture(scope="module")
def model() -> Pi05:
    return Pi05.random(Pi05Config.preset("tiny"), 3)


def example(model: Pi05, horizon: int = 9, views: int = 2, prompt: int = 7) -> tuple:
    g = torch.Generator().manual_seed(1)
    pixels = torch.rand(views, 3, 56, 56, generator=g) * 2 - 1
    tokens = torch.randint(0, model.config.vocab, (prompt,), generator=g)
    return pixels, tokens, torch.randn(horizon, 32, generator=g)


def reference(model: Pi05, pixels, tokens, noise, steps):
    masks = torch.ones(1, len(pixels), dtype=torch.bool)
    valid = torch.ones(1, len(tokens), dtype=torch.bool)
    return model.sample(pixels[None], masks, tokens[None], valid, noise[None], steps)[0]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_packed_weights_compute_the_plain_model(model, fused, steps):
    weights = pack(model, BF16, fused_gate_up=fused, fold_norms=fused)
    pixels, tokens, noise = example(model)
    simulation = Simulation(weights, torch.ones(len(weights.sites)))
    actions = simulation.sample(pixels, tokens, noise, modulation.build(weights, steps))
    torch.testing.assert_close(
        actions, reference(model, pixels, tokens, noise, steps), atol=2e-4, rtol=0
    )


def test_fp8_simulation_is_near_and_scales_matter(model):
    weights = pack(model, FP8)
    pixels, tokens, noise = example(model)
    expected = reference(model, pixels, tokens, noise, 3)
    mod = modulation.build(weights, 3)
    fine = Simulation(weights, torch.full((len(weights.sites),), 2.0**-4))
    tight = Simulation(weights, torch.full((len(weights.sites),), 2.0**-12))  # saturates
    error = [
        (s.sample(pixels, tokens, noise, mod) - expected).norm() / expected.norm()
        for s in (fine, tight)
    ]
    assert error[0] < 0.15
    assert error[1] > 2 * error[0]


def test_last_table_row_is_time_zero(model):
    mod = modulation.build(pack(model, BF16), 4)
    cond = model.condition(torch.tensor([0.0]))
    norm = model.expert.layers[1].post_attention_layernorm.dense
    scale, shift, gate = norm(cond)[0].chunk(3)
    torch.testing.assert_close(mod.mod[-1, 3, 0], 1 + scale, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mod.mod[-1, 3, 1], shift, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mod.mod[-1, 3, 2], gate, atol=1e-5, rtol=1e-5)


def test_release_empties_the_model_but_not_the_weights():
    model = Pi05.random(Pi05Config.preset("tiny"), 3)
    weights = pack(model, FP8, release=True)
    assert model.vlm.layers[0].mlp.up_proj.weight.numel() == 0
    assert weights.prefix[0].gate_up.weight.float().abs().sum() > 0


def test_rope_pairs_and_alternate_move_rows_only():
    rows = torch.arange(16.0)[:, None]
    assert rope_pairs(rows, 8).flatten().tolist()[:8] == [0, 4, 1, 5, 2, 6, 3, 7]
    assert alternate(rows[:2], rows[8:10]).flatten().tolist() == [0, 8, 1, 9]


def test_quantize_error_is_e4m3_rounding():
    w = torch.randn(32, 64)
    q, scale = quantize(w, "fp8")
    assert (
        (q.float() * scale[:, None] - w).abs() <= w.abs() * 2**-4 + scale[:, None] * 2**-9
    ).all()


def test_scales_are_powers_of_two_with_room():
    amax = torch.tensor([0.0, 1.0, 447.0, 3e-6, 1e6])
    scale = scales.scale_of(amax, ["fp8"] * 5)
    assert scale[0] == 1.0
    assert torch.equal(torch.log2(scale), torch.log2(scale).round())
    assert (amax[1:] * scales.MARGIN["fp8"] <= scale[1:] * 448).all()


def test_calibration_round_trip_and_refusals(tmp_path, model):
    weights = pack(model, FP8)
    made = scales.ActivationScales(
        tuple(weights.sites), torch.rand(len(weights.sites)), weights.fingerprint, 8
    )
    made.save(tmp_path / "scales")
    read = scales.ActivationScales.load(tmp_path / "scales.json")
    wanted = weights.sites, weights.fingerprint, weights.inputs
    amax = read.amax_for(*wanted)
    used = torch.tensor([bool(kind) for kind in weights.inputs])
    assert torch.equal(amax[used], made.amax[used])
    assert not amax[~used].any()  # vision is BF16 here: its scales stay 1
    other = pack(Pi05.random(model.config, 4), FP8)
    with pytest.raises(BackendError, match="other weights"):
        read.amax_for(other.sites, other.fingerprint, other.inputs)
    with pytest.raises(BackendError, match="lacks 1 sites"):
        read.amax_for([*weights.sites, "new"], weights.fingerprint, [*weights.inputs, "fp8"])
    blind = dataclasses.replace(made, amax=torch.where(used, made.amax, 0.0))
    with pytest.raises(BackendError, match=r"no magnitudes for \d+ sites .*'vision.0.qkv'"):
        blind.amax_for(weights.sites, weights.fingerprint, ["fp8"] * len(weights.sites))
    (tmp_path / "scales.json").write_text(json.dumps({"format": "x"}))
    with pytest.raises(BackendError, match="no calibration"):
        scales.ActivationScales.load(tmp_path / "scales")


def test_saturation_names_the_worst_site_first():
    rows = scales.saturated(
        ["a", "b", "c"],
        torch.tensor([500.0, 100.0, 9000.0]),
        torch.ones(3),
        scales.limits(["fp8"] * 3),
    )
    assert [row.site for row in rows] == ["c", "a"]


def test_fingerprint_depends_on_weights_not_on_precision_or_layout(model):
    prints = {
        pack(model, p, fused_gate_up=f, fold_norms=f).fingerprint
        for p in (FP8, BF16)
        for f in (False, True)
    }
    assert len(prints) == 1


@pytest.mark.parametrize("mean", [0.0, 30.0, -1000.0])
def test_a_folded_norm_is_the_norm_and_the_product(mean):
    g = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    weight, bias, x = draw(24, 96).bfloat16(), draw(24), draw(40, 96).double() + mean
    norm = (1 + 0.3 * draw(96), draw(96))
    folded, affine = fold_norm(weight, bias, norm, torch.bfloat16)
    assert folded.dtype == torch.bfloat16
    true = torch.nn.functional.layer_norm(x, (96,), *(n.double() for n in norm), 1e-6)
    want = true @ weight.double().t() + bias.double()
    middle, rstd = x.mean(1, keepdim=True), torch.rsqrt(x.var(1, False, keepdim=True) + 1e-6)
    got = rstd * (x @ folded.double().t() - middle * affine[:, 0]) + affine[:, 1]
    assert (got - want).norm() / want.norm() < 3e-3  # weights in BF16, whatever the mean
    same = torch.nn.functional.layer_norm(x, (96,), None, None, 1e-6) @ folded.double().t()
    assert (same + affine[:, 1] - got).norm() / want.norm() < 1e-5


def test_vision_keeps_one_copy_of_a_folded_matrix(model):
    plain, folded = (pack(model, BF16, fold_norms=fold) for fold in (False, True))
    tables = sum(layer.fc1.outputs * 2 * 4 for layer in plain.vision)
    assert folded.bytes() == plain.bytes() + tables
    assert all(layer.fc1_affine is None for layer in plain.vision)


def test_w8a16_quantizes_the_expert_s_weights_alone(model):
    weights = pack(model, Precision("bf16", "bf16", "fp8-w8a16"))
    assert not any(weights.inputs)
    assert weights.expert[0].down.weight.dtype == torch.float8_e4m3fn
    pixels, tokens, noise = example(model)
    expected = reference(model, pixels, tokens, noise, 3)
    mod = modulation.build(weights, 3)
    ours = Simulation(weights, torch.ones(len(weights.sites)))
    error = (ours.sample(pixels, tokens, noise, mod) - expected).norm() / expected.norm()
    assert 1e-3 < error < 0.1


def test_precision_without_fp8_units_is_int8(caplog):
    assert resolve(Precision(), (9, 0)) == Precision("bf16", "fp8", "fp8")
    with caplog.at_level("WARNING"):
        assert resolve(Precision(vision="fp8", prefill="fp8"), (8, 6)) == INT8
    assert "no FP8 units: vision bf16, prefill int8, denoise int8" in caplog.text
    assert resolve(Precision(prefill="bf16"), (8, 0)) == Precision("bf16", "bf16", "int8")
    assert resolve(Precision(denoise="fp8-w8a16"), (8, 6)).denoise == "int8-w8a16"
    assert resolve(Precision(denoise="fp8-w8a16"), (9, 0)).denoise == "fp8-w8a16"
    assert resolve(BF16, (8, 0)) == BF16
    assert resolve(INT8, (9, 0)) == INT8
    with pytest.raises(BackendError, match="accepts auto, bf16, fp8 and int8"):
        resolve(Precision(vision="fp16"), (9, 0))
    with pytest.raises(BackendError, match=r"denoise is 'fp16'.* fp8-w8a16 and int8-w8a16"):
        resolve(Precision(denoise="fp16"), (9, 0))


class Recorder(Simulation):
    """Keeps the largest input of every product, as the kernels do under `observe`."""

    def __init__(self, weights) -> None:
        super().__init__(weights, torch.ones(len(weights.sites)))
        self.amax = torch.zeros(len(weights.sites))

    def matmul(self, x, linear):
        self.amax[linear.site] = max(self.amax[linear.site], x.abs().max())
        return super().matmul(x, linear)


def test_one_calibration_serves_fp8_and_int8_and_int8_is_the_nearer_one(model):
    exact = pack(model, BF16)
    pixels, tokens, noise = example(model)
    expected = reference(model, pixels, tokens, noise, 3)
    recorder = Recorder(exact)
    recorder.sample(pixels, tokens, noise, modulation.build(exact, 3))
    made = scales.ActivationScales(
        tuple(exact.sites), recorder.amax, exact.fingerprint, observations=1
    )
    error = {}
    for precision in (FP8, INT8, Precision("bf16", "int8", "int8-w8a16")):
        weights = pack(model, precision)
        amax = made.amax_for(weights.sites, weights.fingerprint, weights.inputs)
        ours = Simulation(weights, scales.scale_of(amax, weights.inputs))
        got = ours.sample(pixels, tokens, noise, modulation.build(weights, 3))
        error[precision] = float((got - expected).norm() / expected.norm())
    fp8, int8, wide = error.values()
    assert 1e-4 < wide < int8 < fp8 < 0.1


def test_int8_scales_leave_a_tenth_of_room_and_saturate_at_127():
    amax = torch.tensor([0.0, 1.0, 300.0])
    scale = scales.scale_of(amax, ["int8"] * 3)
    assert scale[0] == 1.0
    torch.testing.assert_close(scale[1:] * 127, amax[1:] * 1.1)
    mixed = scales.scale_of(torch.tensor([1.0, 1.0]), ["fp8", "int8"])
    assert torch.log2(mixed[0]) == torch.log2(mixed[0]).round()
    rows = scales.saturated(
        ["a", "b"], torch.tensor([130.0, 130.0]), torch.ones(2), scales.limits(["int8", "fp8"])
    )
    assert [(row.site, row.limit) for row in rows] == [("a", 127.0)]


@pytest.mark.parametrize("backend", ["eager", "onnx"])
def test_other_backends_refuse_w8a16_by_name(model, backend):
    with pytest.raises(BackendError, match=r"'fp8-w8a16'.*accepted"):
        create_engine(model, backend, {"denoise": "fp8-w8a16"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_error_names_eager(model):
    assert not usable()[0]
    with pytest.raises(BackendError, match="eager"):
        create_engine(model, "cuda")


def test_device_names_become_file_names():
    assert tuning.slug("NVIDIA H100 80GB HBM3") == "nvidia_h100"
    assert tuning.slug("NVIDIA H100 PCIe") == "nvidia_h100"
    assert tuning.slug("NVIDIA GeForce RTX 4090") == "nvidia_geforce_rtx_4090"


def test_defaults_and_shipped_files_have_the_same_keys():
    default = json.loads((tuning.FOLDER / "default.json").read_text())
    for path in tuning.FOLDER.glob("*.json"):
        unknown = set(tuning.read(path)) - set(default)
        assert not unknown, f"{path.name}: {unknown}"


def test_tuning_override_wins_and_rows_choose():
    loaded = tuning.load(torch.device("cpu"), {"denoise": {"step": {"warps": 2}}})
    assert loaded.kernel("denoise", "step") == {"CHUNK": 256, "warps": 2}
    assert loaded.by_rows("prefill_attention", 10**9)["splits"] >= 1
