"""Checks of what a caller of the policy gives: counts, seeds, prompts."""

from __future__ import annotations

from typing import Any

from pi05_ros.policy.errors import PolicyError
from pi05_ros.policy.interface import MAX_SEED


def check_count(name: str, value: Any, most: int, least: int = 1) -> int:
    """Return a whole number within limits; raises PolicyError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise PolicyError(f"{name} is {value!r}; accepted: a whole number from {least} to {most}")
    return value


def check_seed(value: Any) -> None:
    """Raise PolicyError for what is no seed of the flow noise."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_SEED:
        raise PolicyError(f"seed is {value!r}; accepted: a whole number from 0 to 2^63 - 1")


def check_text(prompt: object) -> str:
    """Return a prompt that is Unicode text; raises PolicyError for anything else."""
    if not isinstance(prompt, str):
        raise PolicyError(f"prompt is {type(prompt).__name__}; accepted: a text")
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:  # half of a surrogate pair: bytes that were no UTF-8
        raise PolicyError(f"prompt {prompt!r:.80} is not Unicode text: {error.reason}") from error
    return prompt
