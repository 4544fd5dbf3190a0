"""The few settings of a SentencePiece model file that the library does not tell.

Reads the protobuf wire format directly (sentencepiece_model.proto: ModelProto.trainer_spec = 2,
ModelProto.normalizer_spec = 3), which spares the protobuf dependency.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_BPE = 2


@dataclass(frozen=True)
class SentencePieceSettings:
    """How a model treats the text around its pieces; the defaults are those of the .proto file."""

    model_type: int = 1
    whitespace_as_suffix: bool = False
    charsmap: bool = False
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True

    @property
    def cuttable(self) -> bool:
        """Byte-pair model that neither adds, removes nor rewrites characters (as Gemma's)."""
        return (
            self.model_type == _BPE
            and not self.whitespace_as_suffix
            and not self.charsmap
            and not self.add_dummy_prefix
            and not self.remove_extra_whitespaces
            and self.escape_whitespaces
        )


def read_settings(proto: bytes) -> SentencePieceSettings:
    """Settings of a serialized ModelProto.

    Raises:
        ValueError: not a protobuf message.

    """
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(proto):
        if number == 2 and isinstance(value, bytes):
            trainer.update(_fields(value))
        elif number == 3 and isinstance(value, bytes):
            normalizer.update(_fields(value))
    return SentencePieceSettings(
        model_type=int(trainer.get(3, 1)),
        whitespace_as_suffix=bool(trainer.get(24, 0)),
        charsmap=bool(normalizer.get(2, b"")),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        escape_whitespaces=bool(normalizer.get(5, 1)),
    )


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, varint or raw bytes) of one message; fixed-width values as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            number, at = _varint(data, at)
            yield key >> 3, number
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"unknown wire type {kind}")
        if at + size > len(data):
            raise ValueError("the file is cut off")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("the file is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
