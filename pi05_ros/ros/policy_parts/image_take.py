"""Takes image messages from the middleware without holding the GIL.

rclpy's take holds the GIL while it copies an image twice, into a C message and into a Python
array, and an inference in another thread waits for it. Here rcl fills the C message through
ctypes, which releases the GIL, and the pixels are a view of that message. The middleware's own
code reads the wire, as it does for rclpy: bounds, byte order and what is refused are the same.

Layouts are those that rosidl generates for C. They are compared with a message that rclpy's own
conversion wrote before anything is taken; where they do not fit, `NoImageTakeError` says why.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.subscription import Subscription
from sensor_msgs.msg import Image

from pi05_ros.errors import Pi05Error
from pi05_ros.runtime.large_buffers import LargeBuffersInHeap

KEPT = 3
"""Messages without a user that are kept for the next frames of a camera."""
MOST_TEXT = 64  # bytes of an encoding or format that are looked at
_TAKE_FAILED = 401  # RCL_RET_SUBSCRIPTION_TAKE_FAILED: nothing was there
_NO_SEQUENCE = 2**64 - 1


class NoImageTakeError(Pi05Error):
    """Images cannot be taken past rclpy here; the text says why."""


class TakeError(Pi05Error):
    """A message was there and could not be taken."""


class _Sequence(ctypes.Structure):
    """rosidl_runtime_c String, or a sequence of bytes."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("capacity", ctypes.c_size_t),
    ]

    def text(self) -> str:
        if not self.data:
            return ""
        raw = ctypes.string_at(self.data, min(self.size, MOST_TEXT))
        return raw.partition(b"\0")[0].decode("utf-8", "replace")


class _Header(ctypes.Structure):
    _fields_ = [
        ("sec", ctypes.c_int32),
        ("nanosec", ctypes.c_uint32),
        ("frame_id", _Sequence),
    ]


class CImage(ctypes.Structure):
    """sensor_msgs/Image."""

    _fields_ = [
        ("header", _Header),
        ("height", ctypes.c_uint32),
        ("width", ctypes.c_uint32),
        ("encoding", _Sequence),
        ("is_bigendian", ctypes.c_uint8),
        ("step", ctypes.c_uint32),
        ("data", _Sequence),
    ]


class CCompressedImage(ctypes.Structure):
    """sensor_msgs/CompressedImage."""

    _fields_ = [("header", _Header), ("format", _Sequence), ("data", _Sequence)]


class _MessageInfo(ctypes.Structure):
    """The beginning of rmw_message_info_t; what follows differs between releases."""

    _fields_ = [
        ("source_timestamp", ctypes.c_int64),
        ("received_timestamp", ctypes.c_int64),
        ("publication_sequence_number", ctypes.c_uint64),
        ("number_and_middleware", ctypes.c_uint64 * 2),
        ("publisher", ctypes.c_uint8 * 16),
        ("rest", ctypes.c_uint8 * 240),
    ]


@dataclass(frozen=True)
class TakenStamp:
    """builtin_interfaces/Time."""

    sec: int
    nanosec: int


@dataclass(frozen=True)
class TakenHeader:
    """The part of std_msgs/Header that is used."""

    stamp: TakenStamp


@dataclass(frozen=True)
class TakenImage:
    """sensor_msgs/Image; `data` is uint8 ``[n]``, a view of the C message."""

    header: TakenHeader
    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: np.ndarray


@dataclass(frozen=True)
class TakenCompressedImage:
    """sensor_msgs/CompressedImage; `data` is uint8 ``[n]``, a view of the C message."""

    header: TakenHeader
    format: str
    data: np.ndarray


@dataclass(frozen=True)
class Taken:
    """A message, when the middleware got it (system clock, ns; 0: unknown), and its publisher.

    The number counts at the publisher; 0 if the middleware has none.
    """

    message: Any
    received_ns: int
    sequence: int
    publisher: bytes = b""  # identifier, empty: unknown


class _Block:
    """The pixels of one C message; the message is free again when nothing refers to them."""

    def __init__(self, messages: CMessages, pointer: int, data: _Sequence) -> None:
        self.messages = messages
        self._pointer = pointer
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (int(data.size),),
            "data": (int(data.data or 0), False),
        }

    def __del__(self) -> None:
        self.messages.release(self._pointer)


class CMessages:
    """C messages of one type, used again; `obtain` and `release` from any thread."""

    def __init__(self, kind: Any) -> None:
        meta = type(kind)
        if getattr(meta, "_CREATE_ROS_MESSAGE", None) is None:
            meta.__import_type_support__()
        self._create = ctypes.CFUNCTYPE(ctypes.c_void_p)(_pointer(meta._CREATE_ROS_MESSAGE))
        self._destroy = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(
            _pointer(meta._DESTROY_ROS_MESSAGE)
        )
        self._fill = ctypes.PYFUNCTYPE(ctypes.c_bool, ctypes.py_object, ctypes.c_void_p)(
            _pointer(meta._CONVERT_FROM_PY)
        )
        self._free: deque[int] = deque()

    @property
    def idle(self) -> int:
        """How many messages are there without a user."""
        return len(self._free)

    def obtain(self) -> int:
        """Address of a message that nobody uses."""
        try:
            return self._free.pop()
        except IndexError:
            pointer = self._create()
            if not pointer:
                raise MemoryError("no memory for an image message") from None
            return int(pointer)

    def release(self, pointer: int) -> None:
        """Take a message back."""
        if len(self._free) < KEPT:
            self._free.append(pointer)
        else:
            self._destroy(pointer)

    def fill(self, message: Any, pointer: int) -> bool:
        """Write a Python message into a C message, as rclpy does to publish it."""
        return bool(self._fill(message, pointer))

    def __del__(self) -> None:
        while self._free:
            self._destroy(self._free.pop())


class ImageTake:
    """Takes the messages of one camera.

    Args:
        kind: Image or CompressedImage.

    Attributes:
        messages: the C messages that are filled.

    Raises:
        NoImageTakeError: the layouts of this ROS are others.

    """

    def __init__(self, kind: Any) -> None:
        self._raw = kind is Image
        try:
            # The symbols of rcl are found through what rclpy itself is linked with.
            library = ctypes.CDLL(rclpy_implementation.__file__)
            self._rcl_take = library.rcl_take
            self._reset_error = library.rcutils_reset_error
            self.messages = CMessages(kind)
        except (OSError, AttributeError, ValueError, TypeError) as error:
            raise NoImageTakeError(f"{type(error).__name__}: {error}") from error
        self._rcl_take.argtypes = [ctypes.c_void_p] * 4
        self._rcl_take.restype = ctypes.c_int
        self._reset_error.argtypes = []
        self._reset_error.restype = None
        self._info = _MessageInfo()
        # Compressed images differ in size: their buffers would leave holes.
        self._memory = LargeBuffersInHeap() if self._raw else contextlib.nullcontext()
        self._check(kind)

    def __call__(self, subscription: Subscription) -> Taken | None:
        """The next message that waits, None if none does.

        Raises:
            TakeError: the middleware could not read it.

        """
        pointer = self.messages.obtain()
        # The middleware frees the pixels of a message and takes as much memory again.
        with subscription.handle, self._memory:
            code = self._rcl_take(
                subscription.handle.pointer, pointer, ctypes.addressof(self._info), None
            )
        if code:
            self.messages.release(pointer)
            if code == _TAKE_FAILED:
                return None
            self._reset_error()
            raise TakeError(f"a message could not be read (rcl error {code})")
        sequence = self._info.publication_sequence_number
        return Taken(
            self.read(pointer),
            max(0, self._info.received_timestamp),
            0 if sequence == _NO_SEQUENCE else sequence,
            bytes(self._info.publisher),
        )

    def read(self, pointer: int) -> TakenImage | TakenCompressedImage:
        """C message at an address, which is given back when its pixels are no longer used."""
        found: Any = (CImage if self._raw else CCompressedImage).from_address(pointer)
        header = TakenHeader(TakenStamp(found.header.sec, found.header.nanosec))
        if not self._raw:
            text = found.format.text()
            return TakenCompressedImage(header, text, self._pixels(pointer, found.data))
        return TakenImage(
            header,
            found.height,
            found.width,
            found.encoding.text(),
            found.is_bigendian,
            found.step,
            self._pixels(pointer, found.data),
        )

    def _pixels(self, pointer: int, data: _Sequence) -> np.ndarray:
        if not data.data or not data.size:
            self.messages.release(pointer)
            return np.empty(0, np.uint8)
        return np.asarray(_Block(self.messages, pointer, data))

    def _check(self, kind: Any) -> None:
        """Compare the layouts with a message that rclpy wrote."""
        known = kind()
        known.header.stamp.sec, known.header.stamp.nanosec = -7, 987_654_321
        known.header.frame_id = "camera"
        known.data.frombytes(bytes(range(12)))
        if self._raw:
            known.height, known.width, known.encoding = 2, 258, "rgb8"
            known.is_bigendian, known.step = 1, 70_000
        else:
            known.format = "jpeg"
        pointer = self.messages.obtain()
        if not self.messages.fill(known, pointer):
            self.messages.release(pointer)
            raise NoImageTakeError("rclpy could not write a message to compare with")
        if not self._same(pointer, known):  # the message is not used again
            raise NoImageTakeError(f"this ROS lays out {kind.__name__} in another way")

    def _same(self, pointer: int, known: Any) -> bool:
        """Whether the C message reads as the known one; sizes before what they are sizes of."""
        there: Any = (CImage if self._raw else CCompressedImage).from_address(pointer)
        names = (
            ["encoding", "height", "width", "is_bigendian", "step"] if self._raw else ["format"]
        )
        text = names[0]
        sizes = (there.data.size, getattr(there, text).size)
        if sizes != (len(known.data), len(getattr(known, text))):
            return False
        found, stamp = self.read(pointer), known.header.stamp
        return (
            found.header.stamp == TakenStamp(stamp.sec, stamp.nanosec)
            and all(getattr(found, name) == getattr(known, name) for name in names)
            and found.data.tobytes() == bytes(known.data)
        )


def rclpy_take(subscription: Subscription) -> Taken | None:
    """The next message that waits as rclpy gives it, None if none does."""
    with subscription.handle:
        taken = subscription.handle.take_message(subscription.msg_type, False)
    if taken is None:
        return None
    message, info = taken
    return Taken(
        message,
        int(info.get("received_timestamp") or 0),
        int(info.get("publication_sequence_number") or 0),
    )


def _pointer(capsule: Any) -> int:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return int(get(capsule, None))
