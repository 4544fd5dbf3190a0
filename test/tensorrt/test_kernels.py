"""What the names and types of compiled kernels say; names as TensorRT for RTX 1.7 gives them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pi05_ros.backends.verification.inspector import read_layers
from pi05_ros.backends.verification.kernels import half_island, is_copy, kernels_in_log

LINE = (
    "Name: {name}, LayerType: {kind}, Inputs: [ {{ Name: a, Dimensions: [1,44,64], Strides: "
    "[2816,64,1], Datatype: {inputs}, Format: (Linear) Row major linear format }}], Constants: "
    "[], Outputs: [ {{ Name: b, Dimensions: [1,44,64], Datatype: Half, Format: (Linear) Row }}], "
    "TacticName: t, StreamId: 0, Metadata: [ONNX Layer: /layers/0/q_proj/MatMul]"
)


def kernel(name: str, inputs: str, kind: str = "kgen") -> dict[str, Any]:
    text = "Layers:\n" + LINE.format(name=name, kind=kind, inputs=inputs) + "\nBindings:\nx"
    (found,) = kernels_in_log(text)
    return found


def test_a_line_of_the_log_is_read_whole() -> None:
    found = kernel("__myl_CastMul_myl0_0", "Half")
    assert found["LayerType"] == "kgen"
    assert found["Inputs"] == [
        {
            "Name": "a",
            "Dimensions": "[1,44,64]",
            "Strides": "[2816,64,1]",
            "Datatype": "Half",
            "Format": "(Linear) Row major linear format",
        }
    ]
    assert found["Constants"] == []
    assert found["Metadata"] == "[ONNX Layer: /layers/0/q_proj/MatMul]"
    assert kernels_in_log("no list here") == []


@pytest.mark.parametrize(
    ("name", "inputs", "half"),
    [
        ("__myl_MaxrSubExpSumDiv", "Half", True),
        ("__myl_CastMaxrSubExpSumDivMulCast", "Half", False),
        ("__myl_CastAddMaxrSubExpSumDivMulCast", "Half", False),
        ("__myl_CastAddCastMaxrSubExpSumDivCast", "Half", True),
        ("__myl_MaxrSubExpSumDiv", "Float", False),
        ("__myl_CastMaxrSubExpSumDivCast", "Float", True),
        ("__myl_MoveMulMeanAddSqrtDivMul", "Half", True),
        ("__myl_CastMulMeanAddSqrtDivMulMulCastMulCast", "Half", False),
        ("__myl_CastMulCastMeanCastAddSqrtDivMulMulCastMulCast", "Half", True),
        ("__myl_MulMeanAddSqrtDivMul", "Float", False),
        ("__myl_MulTanhAddMul", "Half", False),
        ("_gemm_mha_v2", "Half", False),
        ("/layers/0/q_proj/MatMul", "FP8", False),
    ],
)
def test_half_precision_islands(name: str, inputs: str, half: bool) -> None:
    assert half_island(kernel(f"{name}_myl0_7", inputs)) is half


@pytest.mark.parametrize(("word", "half"), [("FP16", True), ("FP32", False), ("FP8", False)])
def test_words_of_tensorrt_10(word: str, half: bool) -> None:
    tensor = {"Name": "t", "Format/Datatype": f"Row major linear {word} format"}
    bare = {"Name": "__myl_MaxrSubExpSumDiv_myl0_1", "LayerType": "kgen", "Inputs": [tensor]}
    assert half_island(bare) is half
    assert not half_island({**bare, "Name": "__myl_CastMaxrSubExpSumDivCast", "Inputs": []})


def test_copies_are_counted() -> None:
    assert is_copy(kernel("__myl_ReshConc_myl0_19", "Half"))
    assert not is_copy(kernel("__myl_MulReshReplReshMove_myl0_3", "Half"))
    layers = [kernel("__myl_ReshConc_myl0_19", "Half"), kernel("x", "FP8", "gemm")]
    network = {"half_islands": [], "bare_codes": ["/a"], "softmax": ["/s"]}
    text = json.dumps({"Layers": layers, "Network": network})
    facts = read_layers(text, ["/layers/0/q_proj/MatMul"])
    assert (facts.copies, facts.quantized, facts.bare_codes) == (1, 1, ["/a"])
    assert (facts.attentions, facts.fused_attentions) == (1, 0)
