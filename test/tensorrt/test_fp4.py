"""NVFP4 arithmetic against values worked out here, and how far the preset goes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.experimental.scaled_mm import scaled_mm_engine
from pi05_ros.backends.experimental.torch_tensorrt import modelopt_module
from pi05_ros.backends.export.export import export_stage
from pi05_ros.backends.export.fp4_graph import pack_e2m1
from pi05_ros.backends.export.mlp_only import mlp_module
from pi05_ros.backends.identity import weights_id
from pi05_ros.backends.onnx.engine import engine_of
from pi05_ros.backends.quantization.calibrate import calibrate, reference_engine
from pi05_ros.backends.quantization.calibration import Calibration, CalibrationError
from pi05_ros.backends.quantization.modules import QuantLinear, apply_calibration
from pi05_ros.backends.quantization.nvfp4 import (
    Fp4Linear,
    fake_quantize_blocks,
    quantize_blocks,
    round_e2m1,
    tensor_scale,
)
from pi05_ros.backends.quantization.presets import modelopt_config, preset
from pi05_ros.backends.quantization.samples import Sample
from pi05_ros.backends.staged.engine import StagedEngine
from pi05_ros.backends.staged.shapes import StageShapes
from pi05_ros.backends.staged.stages import make_stage
from pi05_ros.backends.tensorrt.flavor import RTX, TENSORRT, require_fp4_target
from pi05_ros.backends.verification.metrics import distance
from pi05_ros.model import Pi05


@pytest.fixture(scope="module")
def fp4(model: Pi05, shapes: StageShapes, samples: list[Sample]) -> Calibration:
    return calibrate(
        model,
        weights_id(model),
        samples,
        "nvfp4",
        shapes=shapes,
        steps=2,
        allow_synthetic=True,
        experimental=True,
    )


def test_e2m1_rounding_table() -> None:
    table = {
        0.0: 0.0,
        0.24: 0.0,
        0.25: 0.0,  # ties go to the even mantissa: 0, 1, 2, 4
        0.26: 0.5,
        0.74: 0.5,
        0.75: 1.0,
        1.25: 1.0,
        1.26: 1.5,
        1.74: 1.5,
        1.75: 2.0,
        2.49: 2.0,
        2.5: 2.0,
        2.51: 3.0,
        3.49: 3.0,
        3.5: 4.0,
        4.99: 4.0,
        5.0: 4.0,
        5.01: 6.0,
        6.0: 6.0,
        7.0: 6.0,
        1000.0: 6.0,
    }
    values = torch.tensor(list(table))
    assert round_e2m1(values).tolist() == list(table.values())
    assert round_e2m1(-values).tolist() == [-v for v in table.values()]
    # Every code is a fixed point, and there are only these.
    codes = {0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0}
    assert set(round_e2m1(torch.linspace(0, 8, 4001)).tolist()) == codes


def test_two_blocks_worked_out_by_hand() -> None:
    # Tensor scale: 2688 / (6 * 448) = 1. Block 1: 12 / 6 = 2, exact in E4M3, so steps of 2.
    # Block 2: 6.3 / 6 = 1.05; E4M3 has 1, 1.125, ... there, 1.05 goes to 1.
    first = [12.0, 0.5, 0.6, 1.5, 2.5, 3.0, 5.0, 7.0, 7.1, 10.0, 10.1, -12.0, -0.4, 0.0, 1.0, 4.0]
    second = [6.3, 0.3] + [0.0] * 14
    scale = tensor_scale(torch.tensor(2688.0))
    assert float(scale) == 1.0
    x = torch.tensor([first + second])
    codes, scales = quantize_blocks(x, scale)
    assert scales.float().tolist() == [[2.0, 1.0]]
    wanted = [6.0, 0.0, 0.5, 1.0, 1.0, 1.5, 2.0, 4.0, 4.0, 4.0, 6.0, -6.0, -0.0, 0.0, 0.5, 2.0]
    assert codes[0, :16].tolist() == wanted
    assert codes[0, 16:18].tolist() == [6.0, 0.5]
    back = fake_quantize_blocks(x, scale)
    assert back[0, :16].tolist() == [2 * code for code in wanted]
    assert back[0, 16:18].tolist() == [6.0, 0.5]


def test_largest_block_scale_smallest_one_and_saturation() -> None:
    amax = torch.tensor(3.0)
    scale = tensor_scale(amax)
    x = torch.zeros(3, 16)
    x[0, 5] = 3.0  # the calibrated maximum has block scale 448 and comes back
    x[1, 0] = 30.0  # beyond it: saturates at the maximum
    x[2, 0] = 1e-6  # a block whose scale is below E4M3's smallest: zeros, not NaN
    _, scales = quantize_blocks(x, scale)
    assert scales.float().flatten().tolist() == [448.0, 448.0, 0.0]
    back = fake_quantize_blocks(x, scale)
    assert torch.isfinite(back).all()
    torch.testing.assert_close(back[:, 0] + back[:, 5], torch.tensor([3.0, 3.0, 0.0]))
    assert fake_quantize_blocks(torch.zeros(1, 16), tensor_scale(torch.tensor(0.0))).sum() == 0


def test_linear_is_the_product_of_both_operands_quantized() -> None:
    generator = torch.Generator().manual_seed(0)
    source = nn.Linear(32, 5, bias=False)
    source.weight.data = torch.randn(5, 32, generator=generator)
    x = torch.randn(7, 32, generator=generator)
    weight_amax, input_amax = source.weight.detach().abs().max(), x.abs().max()
    linear = Fp4Linear(source, weight_amax=weight_amax, input_amax=input_amax)
    w = fake_quantize_blocks(source.weight.detach(), tensor_scale(weight_amax))
    assert torch.equal(linear.weight(), w)
    expected = fake_quantize_blocks(x, tensor_scale(input_amax)) @ w.t()
    torch.testing.assert_close(linear(x), expected)
    truth = source(x).detach()
    error = float((linear(x) - truth).norm() / truth.norm())
    assert 0.03 < error < 0.3
    assert linear.half()(x.half()).dtype == torch.float16
    with pytest.raises(CalibrationError, match="no whole blocks of 16"):
        Fp4Linear(nn.Linear(24, 4, bias=False), weight_amax=weight_amax, input_amax=input_amax)


def test_only_for_those_who_ask_for_it(
    model: Pi05, shapes: StageShapes, samples: list[Sample]
) -> None:
    with pytest.raises(
        CalibrationError, match=r"nvfp4 is experimental.*12 points.*--experimental"
    ):
        calibrate(model, "sha256:x", samples, "nvfp4", shapes=shapes, allow_synthetic=True)


@pytest.mark.parametrize("ordered_list", [True, False])
def test_modelopt_is_told_blocks_for_the_prefill_mlps_alone(ordered_list: bool) -> None:
    rules = modelopt_config(preset("nvfp4"), ordered_list=ordered_list)["quant_cfg"]
    if ordered_list:
        rules = {rule["quantizer_name"]: rule.get("cfg", {}) for rule in rules}
    blocks = {name: cfg for name, cfg in rules.items() if cfg.get("num_bits") == (2, 1)}
    assert set(blocks) == {
        f"*prefill.layers.*mlp.{linear}_proj.{side}_quantizer"
        for linear in ("gate", "up", "down")
        for side in ("weight", "input")
    }
    for cfg in blocks.values():
        assert cfg["block_sizes"] == {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}


def test_fp4_in_the_prefill_mlps_and_nowhere_else(model: Pi05, fp4: Calibration) -> None:
    for stage in ("prefill", "denoise_step"):
        module = make_stage(model, stage, torch.float32)
        apply_calibration(module, stage, fp4)
        kinds = {name: type(m) for name, m in module.named_modules() if name.endswith("_proj")}
        for name, kind in kinds.items():
            inside = stage == "prefill" and ".mlp." in name
            assert kind in ((Fp4Linear,) if inside else (QuantLinear, nn.Linear)), name
        assert (Fp4Linear in kinds.values()) == (stage == "prefill")
    assert fp4.amax["prefill.layers.0.mlp.up_proj.weight_quantizer"].ndim == 0
    row = fp4.info["layers"]["prefill.layers.0.mlp.up_proj"]
    assert row["clipped"] < 0.01
    assert 0 < row["flushed"] < 0.5


def test_worse_than_fp8_and_still_the_same_policy(
    model: Pi05,
    shapes: StageShapes,
    samples: list[Sample],
    fp4: Calibration,
    reference: StagedEngine,
    fake_quant: StagedEngine,
) -> None:
    engine = reference_engine(model, shapes, calibration=fp4)
    sample = samples[0]
    truth = reference.prefill(sample.images, sample.tokens).keys.clone()
    ours = distance(engine.prefill(sample.images, sample.tokens).keys, truth)
    fp8 = distance(fake_quant.prefill(sample.images, sample.tokens).keys, truth)
    assert 1.2 * fp8.relative < ours.relative < 0.3
    assert ours.cosine > 0.95


def test_codes_are_packed_as_onnx_stores_them() -> None:
    values = np.array([0.0, -0.5, 1.0, -1.5, 2.0, 3.0, -4.0, 6.0], np.float32)
    tensor = onnx.helper.make_tensor(
        "w", onnx.TensorProto.FLOAT4E2M1, [8], pack_e2m1(values).tobytes(), raw=True
    )
    found = onnx.numpy_helper.to_array(tensor).astype(np.float32)
    assert np.array_equal(found, values)


def test_exported_graph_holds_the_simulated_numbers(
    model: Pi05, shapes: StageShapes, fp4: Calibration, tmp_path: Path
) -> None:
    export_stage(model, "prefill_mlp_00", shapes, tmp_path, calibration=fp4)
    path = tmp_path / "prefill_mlp_00.onnx"
    graph = onnx.load(str(path)).graph
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    producer = {out: node for node in graph.node for out in node.output}
    product = next(n for n in graph.node if n.op_type == "MatMul" and "down" in n.name)
    node = producer[product.input[1]]
    while node.op_type != "DequantizeLinear":
        node = producer[node.input[0]]
    codes = values[node.input[0]].astype(np.float32)
    scales = producer[node.input[1]]
    steps = values[scales.input[0]].astype(np.float32) * values[scales.input[1]]
    module = mlp_module(model, "prefill_mlp_00", torch.float16, fp4)
    layer = module.get_submodule("down_proj")
    assert isinstance(layer, Fp4Linear)
    found = codes.reshape(codes.shape[0], -1, 16) * steps[:, :, None]
    assert np.array_equal(found.reshape(codes.shape), layer.weight().numpy())
    own = [node for node in graph.node if node.domain == "trt"]
    assert {node.op_type for node in own} == {"TRT_FP4DynamicQuantize"}


def test_what_has_no_fp4_refuses_it(
    model: Pi05, shapes: StageShapes, fp4: Calibration, tmp_path: Path
) -> None:
    document = {"preset": "nvfp4", "quantised_stages": ["prefill"], "layout": "stages"}
    with pytest.raises(BackendError, match="ONNX Runtime has no operators"):
        engine_of(model, shapes, tmp_path, document)
    with pytest.raises(BackendError, match="--backend simulated"):
        scaled_mm_engine(model, shapes, fp4)
    stage = make_stage(model, "denoise_step", torch.float32)
    with pytest.raises(BackendError, match="FP8 presets here, not 'nvfp4'"):
        modelopt_module(stage, "denoise_step", "", fp4)
    for flavor, capability in ((RTX, (8, 9)), (TENSORRT, (12, 0)), (TENSORRT, (11, 0))):
        with pytest.raises(BackendError, match="on sm120 or sm121"):
            require_fp4_target(flavor, capability)
    require_fp4_target(RTX, (12, 1))
