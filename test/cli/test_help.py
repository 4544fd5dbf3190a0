"""`pi05 ... --help` answers without torch, numpy or ROS, and lists what is really accepted."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pi05_ros.bench import bench_requests
from pi05_ros.cli import replay
from pi05_ros.cli.main import COMMANDS, build_parser

HEAVY = (
    "torch", "numpy", "scipy", "yaml", "safetensors", "PIL", "rich", "matplotlib", "mujoco",
    "rosbags", "rclpy", "onnx", "onnxruntime", "tensorrt", "triton", "transformers", "tokenizers",
    "sentencepiece", "websockets",
)  # fmt: skip
CODE = f"""
import sys
from pi05_ros.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert end.code == 0, end.code
loaded = [name for name in {HEAVY!r} if name in sys.modules]
loaded += [name for name in sys.modules if name.startswith("pi05_ros.ros")]
print("LOADED", *loaded)
"""


def nested(parser: argparse.ArgumentParser, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The words of every subcommand below a parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield (*words, name)
                yield from nested(sub, (*words, name))


def all_commands() -> list[tuple[str, ...]]:
    """`()` for pi05 itself, then every command with its nested ones."""
    found: list[tuple[str, ...]] = [()]
    for command in COMMANDS:
        parser = build_parser(command)
        found += [words for words in nested(parser, ()) if words[0] == command]
    return found


@pytest.mark.parametrize("words", all_commands(), ids=lambda words: "-".join(words) or "pi05")
def test_help_needs_no_heavy_package(words):
    done = subprocess.run(
        [sys.executable, "-c", CODE, *words, "--help"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: pi05")
    assert done.stdout.splitlines()[-1] == "LOADED"


def without_help(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Options of a parser, and of those below it, that say nothing about themselves."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from without_help(sub)
        elif not action.help:
            yield f"{parser.prog} {action.dest}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_what_it_is(command):
    assert list(without_help(build_parser(command))) == []


def test_nested_commands_are_among_them():
    assert ("bench", "node") in all_commands()
    assert len(all_commands()) >= len(COMMANDS) + 4


def test_words_that_help_repeats_are_those_of_the_packages():
    from pi05_ros.backends.quantization.presets import PRESETS
    from pi05_ros.backends.staged.shapes import LAYOUTS
    from pi05_ros.backends.workload import MIXES
    from pi05_ros.bags.timeline import TIME_BASES
    from pi05_ros.model import config
    from pi05_ros.workflows import engine_requests

    assert replay.TIME_BASES == TIME_BASES
    assert tuple(MIXES) == bench_requests.MIXES
    assert tuple(config.PRESETS) == bench_requests.MODEL_PRESETS
    assert tuple(LAYOUTS) == engine_requests.LAYOUTS
    help_text = " ".join(build_parser("calibrate").format_help().split())
    sub = next(a for a in build_parser("quantize")._actions if a.dest == "command")
    help_text = " ".join(sub.choices["quantize"].format_help().split())
    assert [name for name in PRESETS if name not in help_text] == []
