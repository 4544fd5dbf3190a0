"""Parts of the stand-in for `tensorrt` that are the same whatever goes wrong: enumerations,
interfaces to derive from, and plain values."""

from __future__ import annotations

import enum
from typing import Any


class BuilderFlag(enum.Enum):
    TF32 = 0


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT32 = 3


class ExecutionContextAllocationStrategy(enum.Enum):
    USER_MANAGED = 2


class LayerInformationFormat(enum.Enum):
    JSON = 1


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class ProfilingVerbosity(enum.Enum):
    DETAILED = 2


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class LayerType(enum.Enum):
    SOFTMAX = 17
    REDUCE = 12
    UNARY = 11
    DEQUANTIZE = 36
    MATRIX_MULTIPLY = 14


class UnaryOperation(enum.Enum):
    SQRT = 2
    RECIP = 3
    EXP = 0
    COS = 7
    SIN = 6


class ILayer:
    """The fake parses nothing: its networks have no layers. Parsing is tested on the real one."""

    name = ""
    type = LayerType.SOFTMAX

    def get_input(self, index: int) -> Any:
        raise NotImplementedError

    def get_output(self, index: int) -> Any:
        raise NotImplementedError


class IUnaryLayer(ILayer):
    op = UnaryOperation.SQRT


class ITensor:
    name = ""
    dtype = DataType.FLOAT
    shape = ()


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def __init__(self) -> None: ...

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class ErrorCodeTRT(enum.IntEnum):
    FAILED_EXECUTION = 5
    INTERNAL_ERROR = 2
    UNSPECIFIED_ERROR = 1


class IErrorRecorder:
    def __init__(self) -> None: ...

    def report_error(self, arg0: Any, arg1: str) -> bool:
        raise NotImplementedError

    def num_errors(self) -> int:
        raise NotImplementedError

    def get_error_code(self, arg0: int) -> Any:
        raise NotImplementedError

    def get_error_desc(self, arg0: int) -> str:
        raise NotImplementedError

    def has_overflowed(self) -> bool:
        raise NotImplementedError

    def clear(self) -> None:
        raise NotImplementedError


def report(recorder: Any, logger: Any, code: Any, text: str) -> None:
    """Errors go to the recorder, and to the log only where there is none."""
    if recorder is None:
        logger.log(ILogger.Severity.ERROR, text)
    else:
        assert isinstance(recorder, IErrorRecorder)
        assert recorder.report_error(code, text)
        assert recorder.get_num_errors() > 0  # the name that C++ looks up


class IProgressMonitor:
    def __init__(self) -> None: ...

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError


class IHostMemory(bytearray):
    """A buffer, not bytes."""

    @property
    def nbytes(self) -> int:
        return len(self)


class ITimingCache:
    def __init__(self, blob: bytes) -> None:
        self.blob = blob

    def serialize(self) -> IHostMemory:
        return IHostMemory(self.blob or b"measured")


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.path = ""

    @property
    def num_layers(self) -> int:
        return 0

    def get_layer(self, index: int) -> ILayer:
        raise IndexError(index)


class ParserError:
    def __init__(self, node: str, text: str) -> None:
        self._node, self._text = node, text

    def desc(self) -> str:
        return self._text

    def node(self) -> int:
        return 7 if self._node else -1  # errors of the file have no node

    def node_name(self) -> str:
        return self._node

    def node_operator(self) -> str:
        return "MatMul"
