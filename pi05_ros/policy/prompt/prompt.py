"""Prompt text of pi0.5 and its token ids, cheap enough to be renewed at every tick.

The normalized state is part of the prompt (unless the checkpoint says otherwise), so the ids
change with every observation while the task does not. The template and the bins are those of
openpi's ``PaligemmaTokenizer`` (models/tokenizer.py).
"""

from __future__ import annotations

import logging

import numpy as np

from pi05_ros.policy.errors import PolicyError
from pi05_ros.policy.prompt.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

STATE_BINS = 256


def clean_prompt(text: str) -> str:
    """Strip, then turn underscores and newlines into spaces; case is kept."""
    return text.strip().replace("_", " ").replace("\n", " ")


def discretize_state(state: np.ndarray) -> np.ndarray:
    """Bin index -1..255 of each normalized state value, int64 ``[n]``.

    Equal to ``np.digitize(state, np.linspace(-1, 1, 257)[:-1]) - 1`` for every float: edge k is
    -1 + k/128, and the multiplication by a power of two is exact. Values below -1 give -1,
    values from 0.9921875 on give 255; nothing is clipped before.

    Raises:
        PolicyError: a value is NaN.

    """
    values = np.asarray(state, dtype=np.float64)
    if np.isnan(values).any():
        bad = ", ".join(str(i) for i in np.flatnonzero(np.isnan(values)))
        raise PolicyError(f"state value {bad} is NaN; all state values must be numbers")
    half = STATE_BINS // 2
    # +-2 is far outside the edges and keeps huge values from overflowing.
    floor = np.floor(np.clip(values, -2.0, 2.0) * half)
    return (np.clip(floor, -half - 1, half - 1) + half).astype(np.int64)


def state_prompt(text: str, bins: np.ndarray) -> str:
    """Prompt with the state in it, for a cleaned text and bins ``[n]``."""
    return _head(text) + "".join(f" {b}" for b in bins.tolist()) + _TAIL


def _head(text: str) -> str:
    return f"Task: {text}, State:"


_TAIL = ";\nAction: "
# Characters on both sides of the places where the prompt is cut into separately encoded pieces:
# "...State:" | " 12" | " -1" | ... | ";\nAction: "
_CUTS = tuple((left, " ") for left in ":0123456789") + tuple((d, ";") for d in "0123456789")
_REMEMBERED_PROMPTS = 16


class PromptEncoder:
    """Token ids of one robot's prompts.

    Pieces that do not change (the task, the tail, the 257 possible state values) are encoded
    once. Gluing them is the same as encoding the whole prompt when no token of the vocabulary
    can reach over a cut; the tokenizer proves that from its own tables (`Tokenizer.can_cut`).
    Where it cannot, the whole prompt is encoded every time.

    Args:
        tokenizer: text to ids.
        discrete_state: write the state into the prompt. Without it the ids are those of openpi's
            pi0 prompt: the text with BOS, then a newline encoded on its own.
        max_tokens: longer prompts lose their tail, with one warning per prompt, as in openpi.

    """

    def __init__(self, tokenizer: Tokenizer, discrete_state: bool, max_tokens: int = 200) -> None:
        self.tokenizer = tokenizer
        self.discrete_state = discrete_state
        self.max_tokens = max_tokens
        self._heads: dict[str, list[int]] = {}
        self._values: list[list[int]] = []  # of the bins -1..255
        self._tail: list[int] = []
        self.incremental = discrete_state and tokenizer.can_cut(_CUTS)
        if self.incremental:
            self._values = [tokenizer.encode(f" {b}") for b in range(-1, STATE_BINS)]
            self._tail = tokenizer.encode(_TAIL)
            # Neighboring unknown characters are joined to one id, also over a cut.
            self.incremental = not any(map(self._has_unknown, (*self._values, self._tail)))
        self._warned: set[str] = set()

    def encode(self, prompt: str, state: np.ndarray) -> np.ndarray:
        """Ids of a prompt with a normalized, unpadded state ``[n]``: int64 ``[<= max_tokens]``.

        Raises:
            PolicyError: empty prompt, or NaN in the state.

        """
        text = clean_prompt(prompt)
        if not text:
            raise PolicyError("the prompt is empty; accepted: a text that says what to do")
        bins = discretize_state(state)
        if not self.discrete_state:
            ids = self._cached_head(text, text, suffix="\n")
        elif self.incremental:
            ids = self._glue(text, bins)
        else:
            ids = self.encode_whole(text, bins)
        if len(ids) > self.max_tokens:
            self._warn(text, len(ids))
            ids = ids[: self.max_tokens]
        return np.array(ids, dtype=np.int64)

    def encode_whole(self, text: str, bins: np.ndarray) -> list[int]:
        """Ids of the whole prompt in one go, with BOS; the definition that gluing must equal."""
        return [self.tokenizer.bos_id, *self.tokenizer.encode(state_prompt(text, bins))]

    def _glue(self, text: str, bins: np.ndarray) -> list[int]:
        ids = list(self._cached_head(text, _head(text)))
        for value in bins.tolist():
            ids += self._values[value + 1]
        ids += self._tail
        return ids

    def _has_unknown(self, ids: list[int]) -> bool:
        return self.tokenizer.unknown_id is not None and self.tokenizer.unknown_id in ids

    def _cached_head(self, key: str, text: str, suffix: str = "") -> list[int]:
        head = self._heads.get(key)
        if head is None:
            if len(self._heads) >= _REMEMBERED_PROMPTS:
                self._heads.clear()
            head = [self.tokenizer.bos_id, *self.tokenizer.encode(text)]
            if suffix:
                head += self.tokenizer.encode(suffix)
            self._heads[key] = head
        return head

    def _warn(self, text: str, length: int) -> None:
        if text in self._warned:
            return
        if len(self._warned) >= _REMEMBERED_PROMPTS:
            self._warned.clear()
        self._warned.add(text)
        logger.warning(
            "the prompt needs %d tokens and is cut to %d; its end (state, 'Action:') is lost: "
            "%.80r",
            length,
            self.max_tokens,
            text,
        )
