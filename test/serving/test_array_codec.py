"""Arrays in all dialects, and what is refused."""

import contextlib

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pi05_ros.policy.remote.array_codec import DIALECTS, FramePacker, pack, unpack
from pi05_ros.policy.remote.errors import WireError
from pi05_ros.policy.remote.large_values import cut_out, stand_ins

DTYPES = st.sampled_from(["u1", "i1", "<i2", ">i4", "<i8", "<u8", "<f2", "<f4", ">f8", "?"])


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(DIALECTS), DTYPES.flatmap(
    lambda d: hnp.arrays(np.dtype(d), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0))
))  # fmt: skip
def test_arrays_come_back_and_the_dialect_is_known(dialect, array):
    decoded = unpack(pack({"a": array, "b": [1, "x", None]}, dialect))
    assert decoded.dialect == dialect
    assert decoded.value["a"].dtype == array.dtype
    np.testing.assert_array_equal(decoded.value["a"], array)
    assert decoded.value["b"] == [1, "x", None]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("value", [np.float32(1.5), np.int64(-3), np.uint8(7), np.bool_(True)])
def test_scalars_come_back(dialect, value):
    found = unpack(pack({"a": value}, dialect)).value["a"]
    assert found == value
    assert found.dtype == value.dtype


def test_the_real_libraries_agree(openpi_client):
    import msgpack_numpy

    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    theirs = openpi_client.msgpack_numpy
    np.testing.assert_array_equal(theirs.unpackb(pack({"a": array}))["a"], array)
    np.testing.assert_array_equal(unpack(theirs.packb({"a": array})).value["a"], array)
    packed = msgpack.packb({"a": array}, default=msgpack_numpy.encode)
    decoded = unpack(packed)
    assert decoded.dialect == "msgpack-numpy"
    np.testing.assert_array_equal(decoded.value["a"], array)
    back = msgpack.unpackb(
        pack({"a": array}, "msgpack-numpy"), object_hook=msgpack_numpy.decode, strict_map_key=False
    )
    np.testing.assert_array_equal(back["a"], array)


def array_map(**changes):
    parts = {"__ndarray__": True, "data": b"\0" * 8, "dtype": "<f4", "shape": [2], **changes}
    return msgpack.packb({key.encode(): value for key, value in parts.items()})


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (array_map(dtype="|O"), "dtype '|O' is not accepted"),
        (array_map(dtype="|V4"), "not accepted"),
        (array_map(dtype="<c8"), "not accepted"),
        (array_map(dtype="<U1"), "not accepted"),
        (array_map(dtype=[["a", "<f4"]]), "not accepted"),
        (array_map(dtype=None), "not accepted"),
        (array_map(shape=[3]), "has 8 bytes of data; accepted: 12"),
        (array_map(shape=[-1]), "array shape"),
        (array_map(shape=[2**62, 4]), "bytes of data"),
        (array_map(shape=[1] * 9), "array shape"),
        (array_map(shape=None), "array shape"),
        (array_map(shape=[True]), "array shape"),
        (array_map(data="text"), "accepted: binary"),
        (msgpack.packb({b"nd": True, b"type": "|O", b"kind": b"O", b"data": b"", b"shape": []}),
         "kind"),
        (msgpack.packb({b"nd": True, b"type": b"O", b"data": b"cposix", b"shape": [1]}), "dtype"),
        (msgpack.packb({b"complex": True, b"data": "1j"}), "complex"),
        (msgpack.packb({b"__npgeneric__": True, b"data": 300, b"dtype": "u1"}), "300 is no uint8"),
        (msgpack.packb({1: 2}), "no valid msgpack"),
        (b"", "no valid msgpack"),
        (b"\xc1", "no valid msgpack"),
        (b"\x91" * 100_000, "no valid msgpack"),
        (b"\xdd\xff\xff\xff\xff", "no valid msgpack"),
        (b"\xc6\xff\xff\xff\xff", "no valid msgpack"),
        (msgpack.packb([1]) + b"\0", "no valid msgpack"),
        (b"\xa2\xff\xfe", "no valid msgpack"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(frame, words):
    with pytest.raises(WireError) as refused:
        unpack(frame)
    assert words in str(refused.value)
    assert len(str(refused.value)) < 400


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_decoded_or_refused(frame):
    with contextlib.suppress(WireError):
        unpack(frame)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_frames_are_decoded_or_refused(data):
    frame = bytearray(pack({"a": np.arange(20, dtype=np.float32), "prompt": "x"},
                           data.draw(st.sampled_from(DIALECTS))))  # fmt: skip
    for _ in range(data.draw(st.integers(1, 6))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(frame)))
    with contextlib.suppress(WireError):
        unpack(bytes(frame[:cut]))


SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
VALUES = st.recursive(
    SCALARS | st.binary(max_size=300) | st.sampled_from([bytes(70_000), b"p" * 65_536]),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(), inner, max_size=20),
    max_leaves=60,
)


@settings(max_examples=60, deadline=None)
@given(value=VALUES, change=st.tuples(st.floats(0, 1), st.integers(0, 255)) | st.none())
def test_large_values_are_cut_out_without_a_difference(value, change):
    frame = bytearray(msgpack.packb({"pictures": bytes(70_000), "rest": value}))
    if change is not None:
        frame[int(change[0] * (len(frame) - 1))] = change[1]
    frame = bytes(frame)
    options = {"raw": False, "strict_map_key": True}
    try:
        expected = repr(msgpack.unpackb(frame, **options))
    except (ValueError, TypeError, msgpack.UnpackException):
        expected = None
    cut = cut_out(memoryview(frame))
    if change is None:
        assert cut is not None
        assert len(cut[0]) < len(frame) - 70_000 + 10
    if cut is None:
        return
    as_bytes = stand_ins([bytes(part) for part in cut[1]])
    try:
        found = repr(msgpack.unpackb(cut[0], ext_hook=as_bytes, **options))
    except (ValueError, TypeError, msgpack.UnpackException):
        found = None
    assert found == expected


def test_a_stand_in_of_a_client_shows_nothing_but_its_own_frame():
    frame = msgpack.packb(
        {
            "a": bytes(70_000),
            "b": msgpack.ExtType(0x35, b"\x07"),
            "c": msgpack.ExtType(0x35, b"xy"),
        }
    )
    value = unpack(frame).value
    assert isinstance(value["b"], msgpack.ExtType)
    assert isinstance(value["c"], msgpack.ExtType)
    assert bytes(value["a"]) == bytes(70_000)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_packer_that_keeps_its_memory_packs_the_same(dialect):
    packer = FramePacker(dialect)
    turned = np.arange(40_000, dtype=np.uint8).reshape(200, 200).T
    for value in (
        {"a": np.zeros((300, 300, 3), np.uint8), "b": turned, "c": np.float32(2)},
        {"a": np.arange(3.0), "b": np.zeros((0, 3)), "c": [1, "x"]},
    ):
        assert bytes(packer.pack(value)) == pack(value, dialect)
    with pytest.raises(WireError):
        packer.pack({"a": np.zeros(70_000), "b": object()})
    assert bytes(packer.pack(1)) == pack(1, dialect)


def test_a_view_that_is_still_held_keeps_no_frame_from_being_packed():
    packer = FramePacker()
    held = packer.pack({"a": 1})
    assert unpack(packer.pack({"b": 2})).value == {"b": 2}
    assert unpack(held).value == {"a": 1}
