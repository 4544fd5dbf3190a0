"""Text to token ids: SentencePiece model, Hugging Face tokenizer.json, or plain bytes.

Real checkpoints were trained with PaliGemma's vocabulary. Bytes serve seeded random weights and
checkpoints that say so; they are a stand-in and mean nothing to a real checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from pi05_ros.policy.errors import PolicyError
from pi05_ros.policy.prompt.sentencepiece_proto import read_settings
from pi05_ros.small_files import MIB, FileError, parse_json, read_bytes, read_text, require_regular

BYTES = "bytes"
Cut = tuple[str, str]
_SPACE = "\u2581"  # how both libraries write a space inside a piece


class Tokenizer(Protocol):
    """What the prompt needs."""

    name: str
    bos_id: int
    unknown_id: int | None
    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS and EOS."""

    def can_cut(self, cuts: Sequence[Cut]) -> bool:
        """Whether encode(a + b) == encode(a) + encode(b) at places between these characters.

        True only if it follows from the tables; False where that is not known.
        """


MAX_SIZE = 128 * MIB
"""Limit of a tokenizer file; the largest of Gemma's have 35 MB."""


class ByteTokenizer:
    """One id per UTF-8 byte: 0 pad, 1 EOS, 2 BOS, 3 + byte (folded into small vocabularies)."""

    bos_id = 2
    unknown_id: int | None = None

    def __init__(self, vocab_size: int) -> None:
        if vocab_size < 4:
            raise PolicyError(f"a vocabulary of {vocab_size} is too small for the byte tokenizer")
        self.vocab_size = min(vocab_size, 259)
        self.name = BYTES

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS and EOS."""
        return [3 + byte % (self.vocab_size - 3) for byte in text.encode("utf-8", "replace")]

    def can_cut(self, cuts: Sequence[Cut]) -> bool:
        """Bytes never join."""
        return True


class SentencePieceTokenizer:
    """A SentencePiece ``.model`` file such as ``paligemma_tokenizer.model``."""

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        self._processor = SentencePieceProcessor()
        try:
            proto = read_bytes(path, MAX_SIZE)
            self._processor.LoadFromSerializedProto(proto)
            self._settings = read_settings(proto)
        except (OSError, RuntimeError, ValueError) as error:
            raise PolicyError(
                f"tokenizer {path} is not a readable SentencePiece model: {error}"
            ) from error
        self.name = str(path)
        self.bos_id = int(self._processor.bos_id())
        if self.bos_id < 0:
            raise PolicyError(f"tokenizer {path} has no BOS token; pi0.5 prompts start with one")
        self.unknown_id: int | None = int(self._processor.unk_id())
        self.vocab_size = int(self._processor.GetPieceSize())

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS and EOS."""
        ids: list[int] = self._processor.EncodeAsIds(text)
        return ids

    def can_cut(self, cuts: Sequence[Cut]) -> bool:
        """True for byte-pair models that leave the text as it is and have no piece over a cut.

        A byte-pair merge builds a piece of the vocabulary, so nothing can grow over a cut whose
        two neighboring characters stand together in no piece. Unigram models weigh whole
        segmentations by floating-point sums; they are always encoded whole.
        """
        if not self._settings.cuttable:
            return False
        processor = self._processor
        pieces = (
            processor.IdToPiece(i)
            for i in range(self.vocab_size)
            if not (processor.IsControl(i) or processor.IsByte(i) or processor.IsUnknown(i))
        )
        return _no_piece_spans(pieces, cuts)


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
        if bos is None:
            raise PolicyError(f"tokenizer {path} has no <bos> token; pi0.5 prompts start with one")
        self.bos_id = int(bos)
        unknown = self._json.get("model", {}).get("unk_token")
        self.unknown_id = self._backend.token_to_id(unknown) if unknown else None
        # PaliGemma's file has <image> as the special token 257152, one more than the embedding of
        # pi0.5 has rows; no prompt needs it. Of the special tokens each prompt needs <bos>.
        special = {t.get("id") for t in self._json.get("added_tokens", []) if t.get("special")}
        vocabulary = self._backend.get_vocab(with_added_tokens=True).values()
        self.vocab_size = max(self.bos_id, *(i for i in vocabulary if i not in special)) + 1

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

    def can_cut(self, cuts: Sequence[Cut]) -> bool:
        """True for plain byte-pair models that at most rewrite spaces; see SentencePiece above."""
        model = self._json.get("model", {})
        plain = (
            model.get("type") == "BPE"
            and not model.get("dropout")
            and not model.get("ignore_merges")
            and not model.get("continuing_subword_prefix")
            and not model.get("end_of_word_suffix")
            and _rewrites_spaces_only(self._json.get("normalizer"))
            and _keeps_text_whole(self._json.get("pre_tokenizer"))
        )
        if not plain:
            return False
        return _no_piece_spans(self._backend.get_vocab(with_added_tokens=True), cuts) and not any(
            token.get("lstrip") or token.get("rstrip") or token.get("single_word")
            for token in self._json.get("added_tokens", [])
        )


def _no_piece_spans(pieces: Iterable[str], cuts: Sequence[Cut]) -> bool:
    pairs = {left + right for left, right in cuts}
    pairs |= {pair.replace(" ", _SPACE) for pair in pairs}
    return not any(piece[i : i + 2] in pairs for piece in pieces for i in range(len(piece) - 1))


def _rewrites_spaces_only(normalizer: Any) -> bool:
    """Whether a normalizer works character by character (nothing, or space -> U+2581)."""
    if normalizer is None:
        return True
    if normalizer.get("type") == "Sequence":
        return all(_rewrites_spaces_only(n) for n in normalizer.get("normalizers", []))
    return normalizer.get("type") == "Replace" and normalizer.get("pattern") == {"String": " "}


def _keeps_text_whole(pre_tokenizer: Any) -> bool:
    """Whether nothing is split; Gemma's split on " " finds none after its normalizer."""
    if pre_tokenizer is None:
        return True
    return pre_tokenizer.get("type") == "Split" and pre_tokenizer.get("pattern") == {"String": " "}


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
    """Open a tokenizer: a ``.model`` or ``.json`` file, a directory with one, or "bytes".

    Args:
        tokenizer: what the user asked for; None looks in `tokenizer_candidates`.
        checkpoint: the checkpoint's path, searched first.
        vocab_size: rows of the model's embedding; see `check_vocabulary`.

    Raises:
        PolicyError: not found (says where it was looked for and how to get it) or not readable.

    """
    if tokenizer == BYTES:
        return ByteTokenizer(vocab_size)
    if tokenizer is None:
        candidates = tokenizer_candidates(checkpoint)
        path = next((p for p in candidates if p.is_file()), None)
        if path is None:
            raise PolicyError(
                "paligemma_tokenizer.model not found; looked for: "
                + ", ".join(str(p) for p in candidates)
                + ". Get it with `gsutil cp gs://big_vision/paligemma_tokenizer.model .`"
                " or tokenizer.json of huggingface.co/google/paligemma-3b-pt-224, and put it into"
                " the checkpoint directory or name it with the parameter tokenizer"
            )
    else:
        path = Path(os.path.expanduser(tokenizer))
        if os.path.isdir(path):
            names = ("paligemma_tokenizer.model", "tokenizer.model", "tokenizer.json")
            path = next((path / n for n in names if (path / n).is_file()), path)
        try:
            require_regular(path)
        except FileError as error:
            raise PolicyError(
                f"tokenizer {error}; accepted: a SentencePiece .model file, a "
                f"tokenizer.json, a directory with one of them, or {BYTES!r}"
            ) from error
    opened: Tokenizer = (
        HuggingFaceTokenizer(path) if path.suffix == ".json" else SentencePieceTokenizer(path)
    )
    check_vocabulary(opened, vocab_size)
    return opened


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raise PolicyError if a tokenizer has ids that the model's embedding lacks."""
    if tokenizer.vocab_size > vocab_size:
        raise PolicyError(
            f"tokenizer {tokenizer.name} has {tokenizer.vocab_size} tokens, but the checkpoint "
            f"only {vocab_size}; it belongs to another model"
        )
