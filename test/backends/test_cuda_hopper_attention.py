"""Host side of the cluster attention: what it accepts, asks of the device and compiles."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pi05_ros.backends.cuda.hopper import attention
from pi05_ros.backends.cuda.hopper import compile as compiler
from pi05_ros.backends.cuda.hopper.compile import KernelError

OPTIONS = {"rows": 32, "cluster": 8, "groups": 2, "trigger": 1}


def test_every_horizon_and_prefix_of_the_model_is_taken():
    for horizon in (1, 10, 50, 64):
        for prefix in (1, 257, 544, 968):
            assert attention.unsupported(8, 256, prefix, horizon, OPTIONS) is None


@pytest.mark.parametrize(
    ("heads", "head_dim", "prefix", "change", "named"),
    [
        (4, 256, 544, {}, "4 heads of 256"),
        (8, 64, 544, {}, "8 heads of 64"),
        (8, 256, 4000, {}, "keys per block"),
        (8, 256, 544, {"rows": 48}, "rows 48"),
        (8, 256, 544, {"cluster": 5}, "cluster 5"),
        (8, 256, 544, {"groups": 3}, "groups 3"),
        (8, 256, 968, {"rows": 64, "cluster": 4}, "shared memory"),
    ],
)
def test_what_it_cannot_take_is_named(heads, head_dim, prefix, change, named):
    reason = attention.unsupported(heads, head_dim, prefix, 10, {**OPTIONS, **change})
    assert reason is not None
    assert named in reason


@pytest.mark.parametrize("horizon", [0, 65])
def test_horizons_beyond_the_action_rows_are_refused(horizon):
    assert "1 to 64" in attention.unsupported(8, 256, 544, horizon, OPTIONS)


def test_a_device_it_cannot_run_on_is_named(monkeypatch):
    assert "no CUDA device" in attention.unavailable(torch.device("cpu"))

    def no_compiler():
        raise KernelError("NVRTC was not found\nanywhere")

    for capability, named in (((8, 9), "8.9"), ((12, 0), "12.0"), ((9, 0), "NVRTC was not found")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        monkeypatch.setattr(compiler, "nvrtc", no_compiler)
        attention.unavailable.cache_clear()
        assert named in attention.unavailable(torch.device("cuda", 0))
    attention.unavailable.cache_clear()


def test_slices_have_room_for_every_key():
    for cluster in (4, 8, 16):
        for rows in (16, 32, 64):
            for horizon in (1, 7, 50, 64):
                for length in (1, 255, 532, 968):
                    options = {"rows": rows, "cluster": cluster}
                    room = attention.keys_of_a_block(length, horizon, options)
                    most = -(-length // cluster) + -(-horizon // cluster)
                    assert most <= room
                    assert room % 16 == 0
                    assert room >= rows


class Recorder:
    """Stands for a loaded module and its kernel."""

    def __init__(self):
        self.defines, self.launches, self.registers = {}, [], 106

    def load(self, source, defines, device):
        assert source == "attention.cu"
        self.defines = defines
        return SimpleNamespace(kernel=self.kernel)

    def kernel(self, name, shared):
        assert (name, shared) == ("attend", attention.MAX_SHARED)
        recorder = self

        class Kernel:
            def attribute(self, which):
                assert which == attention.REGISTERS_PER_THREAD
                return recorder.registers

            def launch(self, *args, **options):
                recorder.launches.append((self.shared, args, options))

        return Kernel()


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(attention.cuda, "load", recorder.load)
    attention._kernel.cache_clear()
    yield recorder
    attention._kernel.cache_clear()


def enqueue(horizon, prefix, options=OPTIONS, amax=None, head_dim=256):
    q = torch.zeros(512, head_dim, dtype=torch.bfloat16)
    k = torch.zeros(prefix + 64, head_dim, dtype=torch.bfloat16)
    attention.launch(
        q, k, k, torch.zeros(1, dtype=torch.int32), q, torch.ones(1), amax,
        horizon=horizon, prefix_rows=prefix, output="image", options=options, dependent=True,
    )  # fmt: skip


def test_a_launch_covers_all_query_rows(recorder):
    enqueue(horizon=50, prefix=544)
    shared, (grid, threads, args), options = recorder.launches[0]
    assert grid == (8, 13)  # 400 rows in blocks of 32
    assert threads == 256
    assert args[7:] == (400, 50)
    assert options == {"cluster": 8, "dependent": True}
    assert recorder.defines["KEYS"] == 80
    assert recorder.defines["OUT"] == 2
    assert recorder.defines["MONITOR"] == 0
    assert shared == attention.ALONE > attention.shared_bytes(80, OPTIONS)


def test_a_block_with_half_the_registers_is_alone_already(recorder):
    recorder.registers = 129
    enqueue(horizon=50, prefix=544)
    assert recorder.launches[0][0] == attention.shared_bytes(80, OPTIONS)


def test_many_clusters_share_processors(recorder):
    enqueue(horizon=64, prefix=544)
    assert recorder.launches[0][0] == attention.shared_bytes(80, OPTIONS)


def test_more_keys_take_more_warpgroups(recorder):
    enqueue(horizon=64, prefix=968)  # 121 + 8 keys per block
    shared, (_, threads, _), _ = recorder.launches[0]
    assert attention.ALONE < shared <= attention.MAX_SHARED
    assert recorder.defines["KEYS"] == 144
    assert recorder.defines["GROUPS"] == 4
    assert threads == 512


def test_the_monitor_is_compiled_in_where_it_is_asked_for(recorder):
    enqueue(horizon=1, prefix=257, amax=torch.zeros(1))
    assert recorder.defines["MONITOR"] == 1


def test_a_refused_launch_says_why(recorder):
    with pytest.raises(KernelError, match="8 heads of 128"):
        enqueue(horizon=1, prefix=257, head_dim=128)
    assert not recorder.launches


def has_nvrtc():
    try:
        compiler.nvrtc()
    except KernelError:
        return False
    return True


@pytest.mark.skipif(not has_nvrtc(), reason="NVRTC is not installed")
@pytest.mark.parametrize("rows", attention.ROWS)
@pytest.mark.parametrize("output", attention.OUTPUTS.values())
def test_it_compiles(rows, output, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    defines = {
        "ROWS": rows, "CLUSTER": 8, "KEYS": 80, "GROUPS": 2, "OUT": output,
        "MONITOR": 1, "TRIGGER": 1,
    }  # fmt: skip
    assert compiler.cubin("attention.cu", defines).startswith(b"\x7fELF")
