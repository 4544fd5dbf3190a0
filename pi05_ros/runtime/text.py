"""Texts for people and for the model: what may go onto the wire, which prompt is in use."""

from __future__ import annotations

from pi05_ros.policy.prompt.prompt import clean_prompt


def printable(text: object) -> str:
    """The text with everything escaped that UTF-8 or a C string cannot hold.

    File names that are not UTF-8 and lone surrogates of JSON files get here inside error texts.
    rclpy raises for them, and cuts a text at its first NUL.
    """
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")


def first_line(error: BaseException | None) -> str:
    """First line of an exception's text, or the name of its kind; printable."""
    lines = str(error).strip().splitlines()
    return printable(lines[0] if lines else type(error).__name__)


def prompt_in_use(prompt: str, default: str | None) -> str:
    """The prompt, or the robot profile's default if it has no words in it; empty without both."""
    return prompt if clean_prompt(prompt) else default or ""
