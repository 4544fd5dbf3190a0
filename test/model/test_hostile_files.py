"""200 mutated files: each is CheckpointError or, where the mutation is harmless, a whole model."""

import json
import os
import random

import pytest
from model_fixtures import WEIGHTS, config, model, same_parameters

from pi05_ros.model import CheckpointError, load_checkpoint
from pi05_ros.model.checkpoint import load
from pi05_ros.model.checkpoint.safetensors_file import MAX_HEADER

RAW = WEIGHTS.read_bytes()
LENGTH = int.from_bytes(RAW[:8], "little")
HEADER = json.loads(RAW[8 : 8 + LENGTH])
DATA = RAW[8 + LENGTH :]


def join(header, data=DATA, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    count = len(text) if length is None else length
    return count.to_bytes(8, "little") + text + data


def copy():
    return json.loads(json.dumps(HEADER))


def flip_bytes(rng):
    raw = bytearray(RAW)
    for _ in range(rng.choice([1, 3, 40])):
        raw[rng.randrange(8 + LENGTH)] = rng.randrange(256)
    return bytes(raw)


def flip_data(rng):
    raw = bytearray(RAW)
    for _ in range(20):
        raw[rng.randrange(8 + LENGTH, len(raw))] = rng.randrange(256)
    return bytes(raw)


def cut(rng):
    return RAW[: rng.choice([0, 1, 7, 8, 9, LENGTH, LENGTH + 8, rng.randrange(len(RAW))])]


def grow(rng):
    return RAW + bytes(rng.randrange(1, 1000))


def wrong_length(rng):
    length = rng.choice([0, 1, LENGTH - 1, LENGTH + 1, MAX_HEADER + 1, 2**31, 2**63, 2**64 - 1])
    return join(RAW[8 : 8 + LENGTH], length=length)


def not_json(rng):
    texts = [b"", b"{", b"[]", b"null", b"1", b'"x"', b"[" * 200_000, b'{"a":' * 50_000]
    texts += [b"\xff\xfe{}", b"{}" * 5, b'{"a": 1e999}', b'{"a": ' + b"9" * 6000 + b"}", b"{}"]
    texts += [b'{"__metadata__": 3}', b'{"__metadata__": {"a": [1]}}', b'{"a": NaN}']
    return join(rng.choice(texts))


def wrong_offsets(rng):
    header = copy()
    name = rng.choice(sorted(header))
    begin, end = header[name]["data_offsets"]
    header[name]["data_offsets"] = rng.choice(
        [
            [end, begin],
            [begin + 4, end + 4],
            [begin, end - 4],
            [-4, end - begin - 4],
            [0, end - begin],
            [2**62, 2**62 + end - begin],
            [2**70, 2**70 + end - begin],
            [begin],
            [begin, end, end],
            [float(begin), float(end)],
            [str(begin), str(end)],
            [True, False],
            None,
            {},
        ]
    )
    return join(header)


def wrong_shape(rng):
    header = copy()
    name = rng.choice(sorted(header))
    shape = header[name]["shape"]
    header[name]["shape"] = rng.choice(
        [
            [*shape[::-1], 1],
            [1, *shape],
            [-1, *shape[1:]],
            [2**40, 2**40],
            [2**63],
            [0],
            [],
            [1] * 1000,
            [0, 2**62, 2**62],
            "x",
            [1.5],
            [[1]],
            None,
            {"a": 1},
        ]
    )
    return join(header)


def wrong_dtype(rng):
    header = copy()
    name = rng.choice(sorted(header))
    dtypes = [
        "F16",
        "BF16",
        "F64",
        "I32",
        "U32",
        "F8_E4M3",
        "F4",
        "",
        "f32",
        "\0",
        3,
        None,
        [],
        {},
    ]
    header[name]["dtype"] = rng.choice(dtypes)
    return join(header)


def wrong_entry(rng):
    header = copy()
    name = rng.choice(sorted(header))
    header[name] = rng.choice([None, 3, [], {}, "x", {"dtype": "F32"}, {**header[name], "x": 1}])
    return join(header)


def renamed(rng):
    header = copy()
    name = rng.choice(sorted(header))
    entry = header.pop(name)
    new = rng.choice(
        ["", "x" * 100_000, name + ".", "model." + name, "\n", "../../x", name.upper()]
    )
    new = rng.choice([new, name.replace("layers.0", "layers.99999999999999999999")])
    header[new] = entry
    return join(header)


def dropped(rng):
    header = copy()
    for name in rng.sample(sorted(header), rng.choice([1, 5, 100, 112])):
        del header[name]
    return join(header)


def duplicated(rng):
    name = rng.choice(sorted(HEADER))
    text = json.dumps(HEADER)[:-1] + f", {json.dumps(name)}: {json.dumps(HEADER[name])}" + "}"
    return join(text.encode())


def swapped(rng):
    """Two tensors of the same size trade places: a valid file with other contents."""
    header = copy()
    a, b = rng.sample([n for n in sorted(header) if header[n]["shape"] == [128, 64]], 2)
    header[a], header[b] = header[b], header[a]
    return join(header)


def swapped_shapes(rng):
    header = copy()
    a, b = rng.sample(sorted(header), 2)
    header[a], header[b] = header[b], header[a]
    return join(header)


MUTATIONS = [
    flip_bytes, flip_data, cut, grow, wrong_length, not_json, wrong_offsets, wrong_shape,
    wrong_dtype, wrong_entry, renamed, dropped, duplicated, swapped, swapped_shapes,
]  # fmt: skip


@pytest.mark.parametrize("case", range(210))
def test_mutated_file(case, tmp_path):
    mutate = MUTATIONS[case % len(MUTATIONS)]
    path = tmp_path / "model.safetensors"
    path.write_bytes(mutate(random.Random(case)))
    explicit = config() if case % 2 else None
    try:
        loaded = load_checkpoint(path, explicit)
    except CheckpointError:
        return
    assert mutate in (flip_data, swapped, swapped_shapes, flip_bytes, dropped, renamed), mutate
    if mutate is renamed:  # "model." before one name is LeRobot's prefix
        assert same_parameters(loaded, model())
    assert [p.shape for p in loaded.parameters()] == [p.shape for p in model().parameters()]
    assert not any(p.is_meta for p in loaded.parameters())


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"a": 1, "a": 2}', b"3", b"{}"]
)
def test_mutated_json(name, text, tmp_path):
    if name == "config.json":
        (tmp_path / "model.safetensors").write_bytes(RAW)
        if text == b"{}":
            text = (
                b'{"vision": [], "vlm": 3, "image_resolution": {}, "horizon": [], "type": "pi05"}'
            )
    (tmp_path / name).write_bytes(text)
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path)


def test_file_that_shrinks_after_the_header_was_read(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(RAW)

    def shrink(checkpoint, cfg):
        path.write_bytes(RAW[:-1000])

    monkeypatch.setattr(load, "check_tensors", shrink)
    with pytest.raises(CheckpointError, match="became shorter"):
        load_checkpoint(path)


def test_special_files_are_refused(tmp_path):
    fifo = tmp_path / "model.safetensors"
    os.mkfifo(fifo)
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="not a regular file"):
        load_checkpoint(fifo)
    with pytest.raises(CheckpointError):
        load_checkpoint("/dev/zero")


def test_not_finite_weights_are_refused(tmp_path):
    raw = bytearray(RAW)
    begin = HEADER["time_mlp_in.bias"]["data_offsets"][0] + 8 + LENGTH
    raw[begin : begin + 4] = b"\x00\x00\xc0\x7f"
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"hold NaN or infinity: time_mlp_in\.bias"):
        load_checkpoint(tmp_path)
