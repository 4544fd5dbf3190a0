"""Text to token ids: SentencePiece model, Hugging Face tokenizer.json, or plain bytes.

Real checkpoints were trained with PaliGemma's vocabulary. Bytes serve seeded random weights and
checkpoints that say so; they are a stand-in and mean nothing to a real checkpoint.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

from pi05_ros.model import CheckpointError
from pi05_ros.model.checkpoint.hub import SCHEME, TOKENIZER_FILES, locate
from pi05_ros.policy.errors import PolicyError
from pi05_ros.small_files import MIB, FileError, parse_json, read_bytes, read_text, require_regular

BYTES = "bytes"
# PaliGemma's vocabulary, which every published pi0.5 was trained with: rows of the embedding (some
# files pad it), the least pieces of a file that fits, the ids of <bos> and of a newline.
_PALIGEMMA_ROWS = range(257_152, 257_216 + 1)
_GEMMA_PIECES = 256_000
_GEMMA_BOS = 2
_GEMMA_NEWLINE = 108
_FEW_PIECES = 0.9  # share of the embedding's rows that a vocabulary of that model fills


class MissingTokenizerError(PolicyError):
    """None was named, and none is where tokenizers are looked for."""


class Tokenizer(Protocol):
    """What the prompt needs.

    Attributes:
        name: its file, or "bytes".
        bos_id: id of the token that begins a text, or None.
        adds_bos: whether the file itself says that texts begin with it.
        vocab_size: one more than the largest id that texts can give.

    """

    name: str
    bos_id: int | None
    adds_bos: bool
    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS and EOS."""


MAX_SIZE = 128 * MIB
"""Limit of a tokenizer file; the largest of Gemma's have 35 MB."""


class ByteTokenizer:
    """One id per UTF-8 byte: 0 pad, 1 EOS, 2 BOS, 3 + byte (folded into small vocabularies)."""

    bos_id: int | None = 2
    adds_bos = True

    def __init__(self, vocab_size: int) -> None:
        if vocab_size < 4:
            raise PolicyError(f"a vocabulary of {vocab_size} is too small for the byte tokenizer")
        self.vocab_size = min(vocab_size, 259)
        self.name = BYTES

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS and EOS."""
        return [3 + byte % (self.vocab_size - 3) for byte in text.encode("utf-8", "replace")]


class SentencePieceTokenizer:
    """A SentencePiece ``.model`` file such as ``paligemma_tokenizer.model``."""

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        self._processor = SentencePieceProcessor()
        try:
            proto = read_bytes(path, MAX_SIZE)
            self._processor.LoadFromSerializedProto(proto)
        except (OSError, RuntimeError, ValueError) as error:
            raise PolicyError(
                f"tokenizer {path} is not a readable SentencePiece model: {error}"
            ) from error
        self.name = str(path)
        bos = int(self._processor.bos_id())
        if bos < 0:
            raise PolicyError(f"tokenizer {path} has no BOS token; pi0.5 prompts start with one")
        self.bos_id: int | None = bos
        self.adds_bos = True
        self.vocab_size = int(self._processor.GetPieceSize())

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS and EOS."""
        ids: list[int] = self._processor.EncodeAsIds(text)
        return ids


class HuggingFaceTokenizer:
    """A ``tokenizer.json`` of the tokenizers library, e.g. of google/paligemma-3b-pt-224."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as Backend

        try:
            text = read_text(path, MAX_SIZE)
            self._json: dict[str, Any] = parse_json(text, str(path), max_depth=None)
            self._backend = Backend.from_str(text)
        except Exception as error:  # the library raises plain Exception
            raise PolicyError(
                f"tokenizer {path} is not a readable tokenizer.json: {error}"
            ) from error
        self._backend.no_truncation()
        self._backend.no_padding()
        self.name = str(path)
        bos = next(
            (i for t in ("<bos>", "<s>") if (i := self._backend.token_to_id(t)) is not None), None
        )
        self.bos_id: int | None = bos
        begin = self._backend.encode("a", add_special_tokens=True).ids[:1]
        self.adds_bos = bos is not None and begin == [bos]
        # PaliGemma's file has <image> as the special token 257152, one more than the embedding of
        # pi0.5 has rows; no prompt needs it. Of the special tokens each prompt needs <bos>.
        special = {t.get("id") for t in self._json.get("added_tokens", []) if t.get("special")}
        vocabulary = self._backend.get_vocab(with_added_tokens=True).values()
        used = [i for i in vocabulary if i not in special]
        self.vocab_size = max([*used, -1 if bos is None else bos]) + 1

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS and EOS."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        beyond = [i for i in ids if i >= self.vocab_size]
        if beyond:
            raise PolicyError(
                f"the prompt holds {self._backend.id_to_token(beyond[0])!r}, a special token that "
                "the model does not know"
            )
        return ids


def tokenizer_candidates(checkpoint: Path | None) -> tuple[Path, ...]:
    """Files that are tried when no tokenizer is given, best first."""
    places: list[Path] = []
    if checkpoint is not None:
        folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
        places += [
            folder / name
            for name in ("paligemma_tokenizer.model", "tokenizer.model", "tokenizer.json")
        ]
    name = Path("big_vision") / "paligemma_tokenizer.model"
    if os.environ.get("OPENPI_DATA_HOME"):
        places.append(Path(os.path.expanduser(os.environ["OPENPI_DATA_HOME"])) / name)
    # Not Path.expanduser, which fails for a user without a home (as in some containers).
    places.append(Path(os.path.expanduser("~/.cache/openpi")) / name)
    return tuple(places)


def load_tokenizer(
    tokenizer: str | Path | None, checkpoint: Path | None, vocab_size: int
) -> Tokenizer:
    """Open a tokenizer: a ``.model`` or ``.json`` file, a directory or hub id with one, "bytes".

    Args:
        tokenizer: what the user asked for; None looks in `tokenizer_candidates`.
        checkpoint: the checkpoint's path, searched first.
        vocab_size: rows of the model's embedding; see `check_tokenizer`.

    Raises:
        PolicyError: not found (says where it was looked for and how to get it) or not readable.

    """
    if tokenizer == BYTES:
        return ByteTokenizer(vocab_size)
    if tokenizer is None:
        candidates = tokenizer_candidates(checkpoint)
        path = next((p for p in candidates if os.path.lexists(p)), None)
        if path is None:
            raise MissingTokenizerError(
                "paligemma_tokenizer.model not found; looked for: "
                + ", ".join(str(p) for p in candidates)
                + ". Get it with `gsutil cp gs://big_vision/paligemma_tokenizer.model .`"
                " or tokenizer.json of huggingface.co/google/paligemma-3b-pt-224, and put it into"
                " the checkpoint directory or name it with the parameter tokenizer"
            )
    else:
        path = Path(os.path.expanduser(tokenizer))
        if str(tokenizer).startswith(SCHEME):
            try:
                path = locate(tokenizer, TOKENIZER_FILES)
            except CheckpointError as error:
                raise PolicyError(f"tokenizer {error}") from error
        if os.path.isdir(path):
            names = ("paligemma_tokenizer.model", "tokenizer.model", "tokenizer.json")
            inside = next((path / n for n in names if os.path.lexists(path / n)), None)
            if inside is None:
                raise PolicyError(f"tokenizer {path} is a directory without {' or '.join(names)}")
            path = inside
        try:
            require_regular(path)
        except FileError as error:
            raise PolicyError(
                f"tokenizer {error}; accepted: a SentencePiece .model file, a "
                f"tokenizer.json, a directory or hub id (hf://...) with one of them, or {BYTES!r}"
            ) from error
    opened: Tokenizer = (
        HuggingFaceTokenizer(path) if path.suffix == ".json" else SentencePieceTokenizer(path)
    )
    check_tokenizer(opened, vocab_size)
    return opened


def check_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raise PolicyError if a tokenizer does not belong to the model.

    It has ids that the embedding lacks, or the embedding is PaliGemma's and the vocabulary is not.
    """
    name, wrong = tokenizer.name, ""
    if tokenizer.vocab_size > vocab_size:
        raise PolicyError(
            f"tokenizer {name} has {tokenizer.vocab_size} tokens, but the checkpoint only "
            f"{vocab_size}; it belongs to another model"
        )
    if name == BYTES or vocab_size not in _PALIGEMMA_ROWS:
        return
    if tokenizer.vocab_size < _GEMMA_PIECES:
        wrong = f"has {tokenizer.vocab_size} tokens, PaliGemma's has {_PALIGEMMA_ROWS[0]}"
    elif tokenizer.bos_id not in (None, _GEMMA_BOS):
        wrong = f"begins texts with token {tokenizer.bos_id}, PaliGemma's with {_GEMMA_BOS}"
    elif tokenizer.encode("\n") != [_GEMMA_NEWLINE]:
        wrong = f"encodes a newline as {tokenizer.encode(chr(10))}, PaliGemma's as [108]"
    if wrong:
        raise PolicyError(
            f"tokenizer {name} {wrong}; the checkpoint's embedding of {vocab_size} rows is "
            "PaliGemma's, so every prompt would be other tokens. Use paligemma_tokenizer.model or "
            "tokenizer.json of google/paligemma-3b-pt-224"
        )


def tokenizer_doubts(tokenizer: Tokenizer, vocab_size: int) -> tuple[str, ...]:
    """Sentences about a tokenizer that fits the embedding and may still be another model's."""
    if tokenizer.name == BYTES:
        if vocab_size not in _PALIGEMMA_ROWS:
            return ()
        return (
            f"prompts are encoded as bytes, but the embedding of {vocab_size} rows is "
            "PaliGemma's: the model was trained with another tokenizer",
        )
    if tokenizer.vocab_size < _FEW_PIECES * vocab_size:
        return (
            f"tokenizer {tokenizer.name} has {tokenizer.vocab_size} tokens for an embedding of "
            f"{vocab_size} rows: is it this model's?",
        )
    return ()
