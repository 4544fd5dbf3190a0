"""Operand layout, cache and compiler of the Hopper kernels: what can be checked without a GPU."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib

import pytest
import torch

from pi05_ros.backends.cuda import packing
from pi05_ros.backends.cuda.hopper import compile as compiler
from pi05_ros.backends.cuda.hopper import euler, launch
from pi05_ros.backends.cuda.hopper.products import ProductOptions, defines
from pi05_ros.backends.cuda.hopper.vision import vision_attention, vision_products
from pi05_ros.model import Pi05Config

try:
    compiler.nvrtc()
    NVRTC = True
except compiler.KernelError:
    NVRTC = False

needs_nvrtc = pytest.mark.skipif(not NVRTC, reason="NVRTC is not installed")


def numbered(rows: int, columns: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(rows + columns)
    return torch.randint(0, 256, (rows, columns), generator=g, dtype=torch.uint8)


@pytest.mark.parametrize("rows", [1, 10, 50, 64])
def test_activation_image_is_what_layout_cuh_says(rows):
    matrix = numbered(rows, 384)
    image = packing.to_image(matrix).flatten()
    for row, column in [(0, 0), (rows - 1, 383), (rows // 2, 129), (rows // 3, 255)]:
        inner = (column & 127) ^ ((row & 7) << 4)
        assert image[(column >> 7) * 8192 + row * 128 + inner] == matrix[row, column]
    assert torch.equal(packing.from_image(packing.to_image(matrix), rows), matrix)


def test_weights_come_back_and_pairs_share_a_thread():
    weight = numbered(192, 256)
    packed = packing.pack_weight(weight)
    assert packed.shape == (3, 2, 64, 128)
    assert torch.equal(packing.unpack_weight(packed), weight)
    # accumulator rows g and g + 8 of warp w belong to one thread
    tile = packing.from_image(packed[1])
    for warp, g in ((0, 0), (2, 5), (3, 7)):
        pair = 64 + 2 * (8 * warp + g)
        assert torch.equal(tile[16 * warp + g], weight[pair])
        assert torch.equal(tile[16 * warp + 8 + g], weight[pair + 1])


def test_gate_and_up_of_two_neighbors_share_a_thread():
    weight = numbered(512, 256)
    packed = packing.pack_pairs(weight)
    assert packed.shape == (8, 2, 64, 128)
    assert torch.equal(packing.unpack_pairs(packed), weight)
    tiles = packing.unpack_weight(packed)  # row 2 p + i of a tile: pair p, gate or up
    for block, group, p in ((0, 0, 0), (0, 1, 5), (1, 0, 31), (1, 1, 17)):
        first = 256 * block + 128 * group + 4 * p
        for i in range(2):
            at = 64 * (4 * block + 2 * group + i) + 2 * p
            assert torch.equal(tiles[at : at + 2], weight[first + 2 * i : first + 2 * i + 2])


def test_fp8_keeps_its_type():
    weight = torch.randn(64, 128).to(torch.float8_e4m3fn)
    packed = packing.pack_weight(weight)
    assert packed.dtype == torch.float8_e4m3fn
    back = packing.unpack_weight(packed)
    assert torch.equal(back.view(torch.uint8), weight.view(torch.uint8))


def test_damaged_cache_files_are_not_used(tmp_path):
    path = tmp_path / "deep" / "kernel.cubin"
    assert compiler.read_cached(path) is None
    compiler.write_cached(path, b"\x7fELF\n\n binary")
    assert compiler.read_cached(path) == b"\x7fELF\n\n binary"
    assert [p.name for p in path.parent.iterdir()] == ["kernel.cubin"]
    stored = bytearray(path.read_bytes())
    stored[-1] ^= 1
    path.write_bytes(bytes(stored))
    assert compiler.read_cached(path) is None
    path.write_bytes(b"")
    assert compiler.read_cached(path) is None


def test_a_cache_that_cannot_be_written_is_none(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    compiler.write_cached(blocker / "kernel.cubin", b"x")  # no error


def test_the_cache_is_used_and_depends_on_defines(tmp_path, monkeypatch):
    calls = []

    class Fake:
        version = (13, 0)

        def compile(self, name, source, headers, options):
            calls.append(options)
            return hashlib.sha256(repr(options).encode()).digest()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiler, "nvrtc", Fake)
    source = next(compiler.SOURCES.glob("*.cu*")).name
    first = compiler.cubin(source, {"ROWS": 8})
    assert compiler.cubin(source, {"ROWS": 8}) == first
    assert len(calls) == 1
    assert compiler.cubin(source, {"ROWS": 16}) != first
    assert len(calls) == 2
    Fake.version = (13, 1)
    compiler.cubin(source, {"ROWS": 8})
    assert len(calls) == 3


def test_without_nvrtc_the_error_says_so(monkeypatch):
    monkeypatch.setattr(compiler, "library_candidates", lambda: iter(["libnvrtc-missing.so.13"]))
    with pytest.raises(compiler.KernelError, match="NVRTC"):
        compiler.Nvrtc()


def test_arguments_become_c_values():
    tensor = torch.zeros(3)
    values = launch.pack_arguments((tensor, None, 3, 0.5, True))
    assert [ctypes.sizeof(v) for v in values] == [8, 8, 4, 4, 4]
    assert values[0].value == tensor.data_ptr()
    assert (values[2].value, values[3].value, values[4].value) == (3, 0.5, 1)
    with pytest.raises(launch.KernelError, match="argument 1"):
        launch.pack_arguments((1, 2**31))
    with pytest.raises(launch.KernelError, match="argument 0"):
        launch.pack_arguments(("text",))


@needs_nvrtc
def test_errors_of_the_compiler_are_passed_on():
    with pytest.raises(compiler.KernelError, match="nonsense"):
        compiler.nvrtc().compile("a.cu", "nonsense", {}, compiler.OPTIONS)


@needs_nvrtc
@pytest.mark.parametrize(
    "header",
    ["layout.cuh", "ptx.cuh", "wgmma.cuh", "wgmma_bf16.cuh", "operands.cuh", "product.cuh"],
)
def test_headers_compile_alone(header):
    constants = defines(Pi05Config.preset("pi05").expert, ProductOptions(), 16)
    options = (*compiler.OPTIONS, *(f"-D{name}={value}" for name, value in constants.items()))
    text = f'#include "{header}"\nextern "C" __global__ void nothing() {{}}\n'
    image = compiler.nvrtc().compile("a.cu", text, compiler._headers(), options)
    assert image[:4] == b"\x7fELF"


@needs_nvrtc
@pytest.mark.parametrize(
    ("rows", "options"),
    [
        (8, ProductOptions()),
        (16, ProductOptions()),
        (56, ProductOptions()),
        (64, ProductOptions()),
        (16, ProductOptions(qkv=1, qkv_split=4, coded=False)),
        (64, ProductOptions(qkv=1, qkv_split=4, coded=False)),
    ],
)
def test_the_products_compile_for_sm_90a(rows, options, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    image = compiler.cubin("products.cu", defines(Pi05Config.preset("pi05").expert, options, rows))
    assert image[:4] == b"\x7fELF"
    for name in (b"qkv_rope", b"out_residual", b"gate_up", b"down_residual"):
        assert name in image


@needs_nvrtc
@pytest.mark.parametrize("width", euler.WIDTHS)
@pytest.mark.parametrize("coded", [0, 1])
def test_the_kernel_between_steps_compiles_for_sm_90a(width, coded, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    image = compiler.cubin("euler.cu", {"WIDTH": width, "CODED": coded})
    assert b"euler_step" in image


@needs_nvrtc
@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("columns", [16, 144, vision_products.MAX_COLUMNS])
def test_the_products_of_vision_compile_for_sm_90a(columns, coded, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tiles = vision_products.VisionTiles(columns, 1, 1, coded)
    source = "vision/vision_fp8.cu" if coded else "vision/vision.cu"
    image = compiler.cubin(
        source, {"COLS": columns, "STAGES": tiles.stages(), "EARLY": int(coded)}
    )
    assert image[:4] == b"\x7fELF"
    assert b"vision_product" in image


@needs_nvrtc
@pytest.mark.parametrize("columns", [16, 112, vision_products.MAX_COLUMNS])
@pytest.mark.parametrize("form", ["narrow", "normed"])
def test_the_products_around_a_folded_norm_compile(form, columns, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tiles = vision_products.VisionTiles(columns, 1, 1, form=form)
    defines = {"COLS": columns, "STAGES": tiles.stages(), "EARLY": 1}
    assert f"vision_{form}".encode() in compiler.cubin(f"vision/vision_{form}.cu", defines)


@needs_nvrtc
@pytest.mark.parametrize("coded", [0, 1])
def test_attention_of_vision_compiles_for_sm_90a(coded, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert b"attend_vision" in compiler.cubin("vision/vision_attention.cu", {"CODED": coded})


def test_attention_of_vision_takes_only_the_tower_of_pi05():
    vision = Pi05Config.preset("pi05").vision
    assert vision_attention.unsupported(vision) is None
    for sizes in ({"image_size": 448}, {"num_attention_heads": 8}):
        assert "72" in vision_attention.unsupported(dataclasses.replace(vision, **sizes))
