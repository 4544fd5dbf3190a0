"""JPEG: as Pillow on sound images, damage in the scan refused, webcam quirks accepted."""

import contextlib
import io
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageFile

from pi05_ros.runtime.inputs import jpeg, page_locked
from pi05_ros.runtime.inputs.conversion import (
    ConversionError,
    compressed_to_rgb,
    load_decoders,
)
from pi05_ros.runtime.inputs.jpeg import decode_jpeg
from pi05_ros.runtime.inputs.pixel_pool import KEPT, SIZES, PixelPool

pytestmark = pytest.mark.skipif(not jpeg.STRICT, reason="simplejpeg is not installed")


def picture(rng, height, width, kind):
    y, x = np.mgrid[:height, :width]
    if kind == 0:
        pixels = rng.integers(0, 256, (height, width, 3))
    elif kind == 1:
        pixels = np.stack([x * 3 % 256, y * 5 % 256, (x + y) % 256], -1)
    else:
        waves = [127 + 100 * np.sin(x / 17 + k) * np.cos(y / 23 + k) for k in range(3)]
        pixels = np.stack(waves, -1) + rng.normal(0, 4, (height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def encode(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_equal_to_pillow_bit_for_bit(monkeypatch):
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 1 << 24)
    rng = np.random.default_rng(0)
    for index in range(200):
        image = picture(rng, *rng.integers(1, 200, 2), index % 3)
        image = image.convert("L") if index % 5 == 4 else image
        options = {"restart_marker_rows": 1} if index % 4 == 0 else {}
        data = encode(
            image,
            quality=int(rng.choice([1, 5, 20, 50, 75, 90, 95, 100])),
            subsampling=int(rng.integers(3)),
            progressive=index % 7 == 0,
            optimize=index % 11 == 0,
            **options,
        )
        np.testing.assert_array_equal(decode_jpeg(data), pillow(data))


@pytest.fixture(scope="module")
def frame():
    image = picture(np.random.default_rng(1), 120, 160, 2)
    return encode(image, quality=90, restart_marker_rows=1)


def without_tables(data):
    kept, at = bytearray(data[:2]), 2
    while data[at + 1] != 0xDA:
        size = struct.unpack(">H", data[at + 2 : at + 4])[0]
        if data[at + 1] != 0xC4:
            kept += data[at : at + 2 + size]
        at += 2 + size
    return bytes(kept + data[at:])


def test_frames_of_webcams_are_read(frame):
    size = struct.unpack(">H", frame[4:6])[0]
    first = frame.index(b"\xff\xd0")
    frames = {
        "no Huffman tables": without_tables(frame),
        "AVI1": frame[:2] + b"\xff\xe0\x00\x10AVI1" + bytes(10) + frame[4 + size :],
        "bytes after the end": frame + bytes(300),
        "filled end": frame[:-2] + bytes(10) + frame[-2:],
        "filled marker": frame[:first] + b"\xff\xff" + frame[first:],
    }
    for count in range(1, 9):
        stray = bytes(range(17, 17 + count))
        frames[f"{count} stray bytes"] = frame[:first] + stray + frame[first:]
    for name, data in frames.items():
        np.testing.assert_array_equal(decode_jpeg(data), pillow(frame), err_msg=name)


@pytest.mark.parametrize("restarts", [{}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("lost", [188, 512, 1024])
def test_lost_packets_are_refused(restarts, lost):
    rng = np.random.default_rng(lost)
    refused = 0
    for _ in range(40):
        data = encode(picture(rng, 240, 320, 2), quality=85, **restarts)
        at = int(rng.integers(data.index(b"\xff\xda") + 60, len(data) - lost - 100))
        message = SimpleNamespace(
            data=np.frombuffer(data[:at] + data[at + lost :], np.uint8), format="jpeg"
        )
        with contextlib.suppress(ConversionError):
            compressed_to_rgb(message)
            continue
        refused += 1
    assert refused >= 38  # what happens to end at a byte that fits is not found


def test_cut_files_are_refused(frame):
    for end in (len(frame) - 2, len(frame) // 2, 400):
        with pytest.raises((ValueError, OSError)):
            decode_jpeg(frame[:end])


def test_decoded_images_keep_their_memory_while_anybody_uses_them():
    """Their memory is used again, but never under a view that is still held."""
    rng = np.random.default_rng(5)
    pool = PixelPool()
    kept = []
    for index in range(40):
        height, width = ((48, 64), (32, 40))[index % 3 == 2]
        shown = picture(rng, height, width, index % 3)
        data = encode(shown, quality=90)
        decoded = decode_jpeg(data, pool.lend(3 * height * width))
        np.testing.assert_array_equal(decoded, pillow(data))
        if index % 4 == 0:
            kept.append((decoded[::2], pillow(data)[::2]))
        del decoded
    for view, expected in kept:
        np.testing.assert_array_equal(view, expected)
    first = pool.lend(77)
    address = first.ctypes.data
    held = first[3:]
    del first
    assert pool.lend(77).ctypes.data != address
    del held
    assert any(pool.lend(77).ctypes.data == address for _ in range(2))


def test_a_cut_jpeg_gives_its_memory_back():
    data = encode(picture(np.random.default_rng(6), 48, 64, 2))
    pool = PixelPool()
    for _ in range(20):
        with pytest.raises(ValueError, match=""):
            decode_jpeg(data[: len(data) // 2], pool.lend(3 * 48 * 64))
    assert len({pool.lend(3 * 48 * 64).ctypes.data for _ in range(20)}) == 1


def test_a_pool_makes_memory_once_for_each_size_that_it_keeps():
    made = []

    def make(size):
        made.append(size)
        return np.empty(size, np.uint8)

    pool = PixelPool(make)
    for _ in range(3):
        held = [pool.lend(5000) for _ in range(KEPT)]  # none overlaps another
        for index, memory in enumerate(held):
            memory[:] = index
        assert [int(memory.max()) for memory in held] == list(range(KEPT))
        del held, memory
    assert len(made) == 1
    held = [pool.lend(5000) for _ in range(KEPT + 1)]
    assert len(made) == 2
    for size in range(1, SIZES + 1):
        pool.lend(size)
    made.clear()
    del held  # of a size that is forgotten
    pool.lend(5000)
    assert len(made) == 1


def test_jpegs_are_decoded_into_the_memory_that_was_asked_for():
    made = []

    def make(size):
        made.append(np.empty(size, np.uint8))
        return made[-1]

    shown = picture(np.random.default_rng(7), 48, 64, 0)
    data = encode(shown, quality=90)
    try:
        load_decoders(make)
        decoded = compressed_to_rgb(SimpleNamespace(format="jpeg", data=data))
        assert any(np.shares_memory(decoded, memory) for memory in made)
        np.testing.assert_array_equal(decoded, pillow(data))
    finally:
        load_decoders()


def test_memory_is_locked_up_to_a_bound_and_as_long_as_there_is_some(monkeypatch, caplog):
    def none_left(size, **kind):
        asked.append((size, kind["pin_memory"]))
        raise RuntimeError("out of memory\nmore")

    asked = []
    monkeypatch.setattr(page_locked.torch, "empty", none_left)
    most = page_locked.MOST_BYTES
    assert [page_locked.page_locked(size).size for size in (most, most + 1)] == [most, most + 1]
    assert asked == [(most, True)]
    assert [r.getMessage() for r in caplog.records] == [
        "images are decoded into pageable memory: out of memory"
    ]
