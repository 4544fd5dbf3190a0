"""Host side of the prefix attention: what it accepts, asks of the device and compiles."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest
import torch

from pi05_ros.backends.cuda.hopper import compile as compiler
from pi05_ros.backends.cuda.hopper.compile import KernelError
from pi05_ros.backends.cuda.hopper.prefix import prefix_attention
from pi05_ros.backends.cuda.hopper.prefix.prefix_attention import PrefixAttentionOptions


def test_every_prefix_of_the_model_is_taken():
    for rows in (1, 32, 257, 288, 384, 544, 712, 968):
        assert prefix_attention.unsupported(8, 256, rows) is None


@pytest.mark.parametrize(
    ("heads", "head_dim", "rows", "named"),
    [(4, 256, 544, "4 heads of 256"), (8, 64, 544, "8 heads of 64"), (8, 256, 0, "0 rows")],
)
def test_what_it_cannot_take_is_named(heads, head_dim, rows, named):
    assert named in prefix_attention.unsupported(heads, head_dim, rows)


def every_choice():
    for splits in range(1, prefix_attention.MAX_SPLITS + 1):
        for keys in prefix_attention.KEYS:
            yield PrefixAttentionOptions(splits, keys)


def test_a_block_has_room_for_two_stages_and_the_exchange():
    for options in every_choice():
        for rows in (1, 32, 288, 544, 968):
            assert options.stages(rows) >= 2
            assert options.ring_offset >= options.exchange_bytes
            assert options.ring_offset % 1024 == 0
            assert options.shared_bytes(rows) <= prefix_attention.MAX_SHARED


def test_the_choice_for_a_number_of_rows_is_one_there_is():
    for rows in range(1, 1200):
        assert prefix_attention.options_for(rows) in set(every_choice())
    assert prefix_attention.options_for(288) == PrefixAttentionOptions(3, 96)
    assert prefix_attention.options_for(544) == PrefixAttentionOptions(3, 96)
    assert prefix_attention.options_for(968) == PrefixAttentionOptions(2, 64)


def test_all_blocks_run_at_a_time():
    for processors in (78, 114, 132):
        for rows in range(1, 1200):
            splits = prefix_attention.options_for(rows, processors).splits
            blocks = -(-rows * 8 // prefix_attention.TILE) * splits
            assert blocks <= processors or splits == 1 or rows <= 384


class Recorder:
    """Stands for the driver, a loaded module and its kernel."""

    def __init__(self):
        self.defines, self.launches, self.shared, self.maps = {}, [], 0, []

    def load(self, source, defines, device):
        assert source == "prefix/prefix_attention.cu"
        self.defines = defines
        return SimpleNamespace(kernel=self.kernel)

    def kernel(self, name, shared):
        self.shared = shared
        record = self.launches.append
        return SimpleNamespace(launch=lambda *args, **named: record((args, named)))

    def call(self, name, result, *args):
        assert name == "cuTensorMapEncodeTiled"
        assert ctypes.addressof(result._obj) % 64 == 0
        self.maps.append([list(a) for a in args[3:6]])


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(prefix_attention.cuda, "load", recorder.load)
    monkeypatch.setattr(prefix_attention.cuda, "_call", recorder.call)
    prefix_attention._kernel.cache_clear()
    yield recorder
    prefix_attention._kernel.cache_clear()


def enqueue(rows=544, options=None, q_rows=None, head_dim=256, dtype=torch.bfloat16):
    q = torch.zeros(rows * 8 if q_rows is None else q_rows, head_dim, dtype=dtype)
    k = torch.zeros(rows + 64, head_dim, dtype=torch.bfloat16)
    prefix_attention.launch(
        q, k, k, torch.zeros(1, dtype=torch.int32), q, torch.ones(1), None, rows=rows,
        options=options or PrefixAttentionOptions(3, 96), dependent=True,
    )  # fmt: skip


def test_an_image_is_told_by_its_rows(recorder):
    q, k = torch.zeros(32 * 8, 256).bfloat16(), torch.zeros(96, 256).bfloat16()
    image = torch.zeros(16, 160, 128, dtype=torch.uint8)
    prefix_attention.launch(
        q, k, k, torch.zeros(1, dtype=torch.int32), image, torch.ones(1), None, rows=32,
        options=PrefixAttentionOptions(1, 64), dependent=True,
    )  # fmt: skip
    assert recorder.launches[0][0][2][-1] == 160


def test_a_launch_covers_all_query_rows(recorder):
    enqueue(968, PrefixAttentionOptions(2, 80))
    ((grid, threads, args), named) = recorder.launches[0]
    assert grid == (61 * 2,)  # 61 tiles of 128 rows
    assert threads == 384
    assert args[6:] == (None, 968, 7744, 0)
    assert named == {"cluster": 2, "dependent": True}
    assert recorder.defines == {"KEYS": 80, "STAGES": 4, "SPLITS": 2}
    assert recorder.shared == PrefixAttentionOptions(2, 80).shared_bytes(968)
    assert [ctypes.sizeof(m) for m in args[:3]] == [128, 128, 128]


def test_copies_end_with_the_prefix_and_take_what_the_kernel_expects(recorder):
    enqueue(544, PrefixAttentionOptions(3, 64))
    q, k, v = recorder.maps
    assert q == [[64, 4352, 4], [512, 128], [64, 128, 1]]
    assert k == [[64, 544, 4], [512, 128], [64, 64, 2]]
    assert v == [[64, 544, 4], [512, 128], [64, 64, 4]]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"head_dim": 128}, "8 heads of 128"),
        ({"q_rows": 4351}, "q is torch.bfloat16 \\(4351, 256\\)"),
        ({"dtype": torch.float16}, "q is torch.float16"),
        ({"options": PrefixAttentionOptions(9, 64)}, "9 splits; accepted: 1 to 8"),
        ({"options": PrefixAttentionOptions(3, 72)}, "72 keys in a tile"),
    ],
)
def test_a_refused_launch_says_why(recorder, change, named):
    with pytest.raises(KernelError, match=named):
        enqueue(**change)
    assert not recorder.launches


def has_nvrtc():
    try:
        compiler.nvrtc()
    except KernelError:
        return False
    return True


@pytest.mark.skipif(not has_nvrtc(), reason="NVRTC is not installed")
@pytest.mark.parametrize(
    "options",
    [PrefixAttentionOptions(1, 64), PrefixAttentionOptions(3, 96), PrefixAttentionOptions(2, 80)],
)
def test_it_compiles(options, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    defines = {
        "KEYS": options.keys, "STAGES": options.stages(544), "SPLITS": options.splits,
    }  # fmt: skip
    image = compiler.cubin("prefix/prefix_attention.cu", defines)
    assert image.startswith(b"\x7fELF")
    assert b"attend" in image
