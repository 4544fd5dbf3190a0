"""Prompt text of pi0.5 and its token ids, renewed at every tick.

The normalized state is part of the prompt (unless the checkpoint says otherwise), so the ids
change with every observation while the task does not. The template and the bins are those of
openpi's ``PaligemmaTokenizer`` (models/tokenizer.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import numpy as np

from pi05_ros.policy.errors import PolicyError

if TYPE_CHECKING:
    from pi05_ros.policy.prompt.tokenizer import Tokenizer

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
    values = "".join(f" {b}" for b in bins.tolist())
    return f"Task: {text}, State:{values};\nAction: "


_REMEMBERED = 16  # prompts


class PromptEncoder:
    """Token ids of one robot's prompts.

    Args:
        tokenizer: text to ids.
        discrete_state: write the state into the prompt. Without it the ids are those of openpi's
            pi0 prompt: the text with BOS, then a newline encoded on its own.
        max_tokens: longer prompts are refused: what would be cut off is the robot's state.
        bos: begin with BOS, as openpi does; LeRobot leaves that to the tokenizer.

    """

    def __init__(
        self, tokenizer: Tokenizer, discrete_state: bool, max_tokens: int = 200, bos: bool = True
    ) -> None:
        self.tokenizer = tokenizer
        self.discrete_state = discrete_state
        self.max_tokens = max_tokens
        self._begin = [tokenizer.bos_id] if bos and tokenizer.bos_id is not None else []
        self._constant: dict[str, list[int]] = {}  # of prompts without state

    def encode(self, prompt: str, state: np.ndarray) -> np.ndarray:
        """Ids of a prompt with a normalized, unpadded state ``[n]``: int64 ``[<= max_tokens]``.

        Raises:
            PolicyError: empty or too long prompt, or NaN in the state.

        """
        text = clean_prompt(prompt)
        if not text:
            raise PolicyError("the prompt is empty; accepted: a text that says what to do")
        bins = discretize_state(state)
        ids = self._with_state(text, bins) if self.discrete_state else self._text_only(text)
        if len(ids) > self.max_tokens:
            self._refuse(text, bins, len(ids))
        return np.array(ids, dtype=np.int64)

    def _with_state(self, text: str, bins: np.ndarray) -> list[int]:
        return [*self._begin, *self.tokenizer.encode(state_prompt(text, bins))]

    def _text_only(self, text: str) -> list[int]:
        ids = self._constant.get(text)
        if ids is None:
            if len(self._constant) >= _REMEMBERED:
                self._constant.clear()
            ids = [*self._begin, *self.tokenizer.encode(text), *self.tokenizer.encode("\n")]
            self._constant[text] = ids
        return ids

    def _refuse(self, text: str, bins: np.ndarray, length: int) -> NoReturn:
        rest = len(self._with_state("", bins)) if self.discrete_state else 2
        room = self.max_tokens - rest
        kept = " and the robot's state" if self.discrete_state else ""
        if room < 1:
            raise PolicyError(
                f"the robot's state alone needs {rest} of the {self.max_tokens} prompt tokens of "
                "the checkpoint; no prompt fits"
            )
        raise PolicyError(
            f"the prompt is too long: with it{kept} {length} tokens are needed, the checkpoint "
            f"takes {self.max_tokens}; shorten the text to about "
            f"{max(1, len(text) * room // (length - rest))} characters: {text:.80}"
        )
