"""Which failures are told in one line, and in which words."""

from __future__ import annotations

from pi05_ros.errors import Pi05Error
from pi05_ros.runtime.text import first_line

# torch raises plain RuntimeError for these: the CUDA allocator, the CPU one, and oneDNN.
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "could not create a primitive",
    "could not create a memory object",
    "std::bad_alloc",
)


def is_plain_reason(error: BaseException) -> bool:
    """Whether an exception says what a user can change; any other keeps its traceback."""
    if isinstance(error, (Pi05Error, OSError, ImportError, MemoryError)):
        return True
    return _is_out_of_memory(error) or type(error).__module__.startswith("rclpy.")


def reason(error: BaseException) -> str:
    """One line for logs, status and diagnostics."""
    if _is_out_of_memory(error):
        return (
            "out of memory: the model needs more than this machine or device has free "
            f"({type(error).__name__}: {first_line(error)})"
        )
    return first_line(error)


def ruins_the_process(error: BaseException) -> bool:
    """Whether a process cannot go on computing after it: broken CUDA context, no memory."""
    name = f"{type(error).__module__}.{type(error).__name__}"
    cuda = "AcceleratorError" in name or "cuda error" in str(error).lower()
    return cuda or _is_out_of_memory(error) or isinstance(error, (SystemExit, SystemError))


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)
    )
