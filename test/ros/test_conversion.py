"""Message conversion: what each encoding means, and that nothing but ConversionError escapes."""

import array
import io
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PilImage

from pi05_ros.runtime.inputs import conversion
from pi05_ros.runtime.inputs.conversion import (
    ConversionError,
    compressed_to_rgb,
    image_to_rgb,
)


def image(data, width, height, encoding, step):
    return SimpleNamespace(
        data=array.array("B", bytes(data)), width=width, height=height, encoding=encoding,
        step=step, is_bigendian=0,
    )  # fmt: skip


DATA = Path(__file__).parents[1] / "data"
PLAIN = {"rgb8", "bgr8", "rgba8", "bgra8", "mono8", "8UC1"}


def compressed(data, kind="jpeg"):
    return SimpleNamespace(format=kind, data=array.array("B", bytes(data)))


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8", "mono8", "8UC1"])
def test_every_encoding_gives_the_same_picture(encoding, padding):
    rgb = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    alpha = np.full((7, 5, 1), 9, np.uint8)
    gray = rgb[..., :1]
    wire = {
        "rgb8": rgb,
        "bgr8": rgb[..., ::-1],
        "rgba8": np.concatenate([rgb, alpha], -1),
        "bgra8": np.concatenate([rgb[..., ::-1], alpha], -1),
        "mono8": gray,
        "8UC1": gray,
    }[encoding]
    rows = np.pad(wire.reshape(7, -1), ((0, 0), (0, padding)), constant_values=77)
    result = image_to_rgb(image(rows.tobytes(), 5, 7, encoding, rows.shape[1]))
    expected = np.repeat(gray, 3, -1) if encoding in ("mono8", "8UC1") else rgb
    np.testing.assert_array_equal(result, expected)
    assert result.flags.c_contiguous
    assert result.dtype == np.uint8


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("encoding", sorted(set(conversion.ENCODINGS) - PLAIN))
def test_other_encodings_equal_opencv(encoding, padding):
    name = {"uyvy": "yuv422", "yuyv": "yuv422_yuy2"}.get(encoding, encoding)
    with np.load(DATA / "images" / "encodings.npz") as golden:  # from OpenCV 5.0.0, random bytes
        raw, rgb = golden[f"{name}.raw"], golden[f"{name}.rgb"]
    height, width = rgb.shape[:2]
    rows = np.pad(raw, ((0, 0), (0, padding)), constant_values=77)
    message = image(rows.tobytes(), width, height, encoding, rows.shape[1])
    result = image_to_rgb(message)
    np.testing.assert_array_equal(result, rgb)
    assert result.flags.c_contiguous
    if encoding == "mono16":
        swapped = np.ascontiguousarray(raw).view("<u2").byteswap().tobytes()
        message = image(swapped, width, height, encoding, 2 * width)
        message.is_bigendian = 1
        np.testing.assert_array_equal(image_to_rgb(message), rgb)


@pytest.mark.parametrize(
    ("encoding", "size"), [("yuv422", (5, 4)), ("nv12", (4, 5)), ("bayer_rggb8", (2, 8))]
)
def test_sizes_that_an_encoding_cannot_have(encoding, size):
    with pytest.raises(ConversionError, match=f"cannot be {encoding}") as caught:
        image_to_rgb(image(bytes(1000), *size, encoding, 4 * size[0]))
    assert caught.value.code == "size"


@pytest.mark.parametrize("encoding", ["8UC3", "8UC4", "16UC1", "32FC1", "bayer_rggb16", "nv24"])
def test_encodings_without_a_defined_conversion_are_refused(encoding):
    with pytest.raises(ConversionError, match=r"accepted: rgb8, .*yuv422_yuy2") as caught:
        image_to_rgb(image(bytes(1000), 4, 4, encoding, 16))
    if encoding.startswith("8UC"):
        assert "channel order" in str(caught.value)


def test_last_row_may_lack_its_padding():
    assert image_to_rgb(image(bytes(10 + 6), 2, 2, "rgb8", 10)).shape == (2, 2, 3)


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        (image(b"", 4, 4, "16UC1", 8), "encoding", "rgb8, bgr8, rgba8, bgra8, mono8"),
        (image(bytes(48), 4, 4, "rgb8", 11), "step", "12 bytes"),
        (image(bytes(48), 4, 4, "rgb8", 0), "step", "step 0"),
        (image(bytes(47), 4, 4, "rgb8", 12), "short_data", "needs 48"),
        (image(b"", 0, 4, "rgb8", 0), "size", "0x4 pixels; accepted: 1 to 16384 per side"),
        (image(b"", 4, 0, "rgb8", 12), "size", "4x0"),
        (image(b"", 2**31, 2**31, "rgb8", 2**32 - 1), "size", "up to 33554432 in all"),
        (image(b"", 16384, 16384, "mono8", 16384), "size", "up to 33554432 in all"),
    ],
    ids=["unknown", "step", "no-step", "short", "no-width", "no-height", "absurd", "too-large"],
)
def test_bad_image_is_named(message, code, words):
    with pytest.raises(ConversionError, match=words) as caught:
        image_to_rgb(message)
    assert caught.value.code == code


@pytest.mark.parametrize(("kind", "tolerance"), [("JPEG", 6), ("PNG", 0)])
def test_compressed_pictures(kind, tolerance):
    picture = np.full((20, 30, 3), (200, 100, 20), np.uint8)
    buffer = io.BytesIO()
    PilImage.fromarray(picture).save(buffer, kind)
    result = compressed_to_rgb(compressed(buffer.getvalue()))
    assert np.abs(result.astype(int) - picture).max() <= tolerance


def _png(mode, size):
    buffer = io.BytesIO()
    PilImage.new(mode, size).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "encoding"),
        (b"GIF89a.....", "encoding"),
        (b"\xff\xd8\xff\xe0 not an image", "undecodable"),
        (_png("RGB", (64, 64))[:60], "undecodable"),
        (_png("I;16", (8, 8)), "encoding"),
        (_png("1", (6000, 6000)), "size"),
        (_png("1", (30000, 30000)), "size"),  # small file, 900 megapixels
    ],
    ids=["empty", "gif", "text", "cut", "16-bit", "large", "bomb"],
)
def test_bad_compressed_picture_is_named(data, code):
    with pytest.raises(ConversionError) as caught:
        compressed_to_rgb(compressed(data))
    assert caught.value.code == code


dimensions = st.one_of(st.integers(0, 40), st.integers(0, 2**32 - 1))
encodings = st.one_of(st.sampled_from(sorted(conversion.ENCODINGS)), st.text(max_size=8))


@settings(max_examples=500, deadline=None)
@given(
    width=dimensions, height=dimensions, step=dimensions, encoding=encodings,
    data=st.binary(max_size=5000),
)  # fmt: skip
def test_fuzz_images(width, height, step, encoding, data):
    try:
        result = image_to_rgb(image(data, width, height, encoding, step))
    except ConversionError:
        return
    assert result.shape == (height, width, 3)


heads = st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"])


@st.composite
def damaged_pictures(draw):
    kind = draw(st.sampled_from(["JPEG", "PNG"]))
    buffer = io.BytesIO()
    PilImage.new("RGB", (17, 13), (1, 2, 3)).save(buffer, kind)
    data = bytearray(buffer.getvalue())
    for _ in range(draw(st.integers(0, 5))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))])


@settings(max_examples=500, deadline=None)
@given(data=st.one_of(damaged_pictures(), st.builds(lambda h, t: h + t, heads, st.binary())))
def test_fuzz_compressed(data):
    try:
        result = compressed_to_rgb(compressed(data))
    except ConversionError:
        return
    assert result.shape[2] == 3


def test_refused_pictures_cost_no_memory():
    bomb = compressed(_png("1", (30000, 30000)))
    lie = image(bytes(100), 5000, 5000, "rgb8", 15000)
    tracemalloc.start()
    for message, convert in ((bomb, compressed_to_rgb), (lie, image_to_rgb)) * 20:
        with pytest.raises(ConversionError):
            convert(message)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6
