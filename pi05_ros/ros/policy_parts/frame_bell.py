"""Says at once when the middleware has received a message, and costs nothing until it is asked.

A bell is an eventfd that the middleware's own thread writes: libc's `eventfd_write` is the
callback, so that thread never waits for Python. The process is not woken by messages that nobody
waits for, and what rang before can be forgotten without taking a message.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
from collections.abc import Collection
from typing import Any

from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.subscription import Subscription

from pi05_ros.errors import Pi05Error
from pi05_ros.runtime.inputs.observation_buffer import NS


class NoBellError(Pi05Error):
    """This middleware or this machine has no bells; the text says why."""


class FrameBell:
    """Rings when a subscription receives a message.

    Args:
        subscription: of any type; has one bell at most.

    Raises:
        NoBellError: its middleware calls nothing.

    """

    def __init__(self, subscription: Subscription) -> None:
        # (const void *, size_t) is called as (int, uint64_t), the same in registers of 64 bits.
        if ctypes.sizeof(ctypes.c_void_p) != 8:
            raise NoBellError("this machine has no addresses of 64 bits")
        try:
            rcl = ctypes.CDLL(rclpy_implementation.__file__)
            self._set: Any = rcl.rcl_subscription_set_on_new_message_callback
            self._reset_error: Any = rcl.rcutils_reset_error
            ring = ctypes.cast(ctypes.CDLL(None).eventfd_write, ctypes.c_void_p)
            self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except (OSError, AttributeError) as error:
            raise NoBellError(f"{type(error).__name__}: {error}") from error
        self._set.argtypes, self._set.restype = [ctypes.c_void_p] * 3, ctypes.c_int
        self._reset_error.argtypes, self._reset_error.restype = [], None
        self._subscription = subscription
        with subscription.handle:
            code = self._set(subscription.handle.pointer, ring, self._descriptor)
        if code:
            self._reset_error()
            os.close(self._descriptor)
            raise NoBellError(f"rcl error {code}")

    def fileno(self) -> int:
        """Descriptor that is readable from a ring until `silence`."""
        return self._descriptor

    def silence(self) -> None:
        """Forget what rang."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._descriptor)

    def close(self) -> None:
        """Take it away; before the subscription is destroyed."""
        with contextlib.suppress(rclpy_implementation.InvalidHandle), self._subscription.handle:
            self._set(self._subscription.handle.pointer, None, None)
        os.close(self._descriptor)  # nobody writes it any more


def rings(bells: Collection[FrameBell], wait_ns: int = 0) -> bool:
    """Whether one of the bells has rung, or rings within a time; waits without the GIL."""
    asked = select.poll()
    for bell in bells:
        asked.register(bell, select.POLLIN)
    return bool(asked.poll(max(0, wait_ns) * 1000 / NS))
