"""The `pi05` command itself: what it says when something is missing."""

from __future__ import annotations

import argparse

import pytest

from pi05_ros.cli import main as command


@pytest.mark.parametrize(
    ("module", "package"), [("mujoco.egl", "mujoco"), ("yaml", "pyyaml"), ("PIL.Image", "pillow")]
)
def test_a_missing_package_is_named_as_pip_knows_it(module, package, monkeypatch, capsys):
    def run(args: argparse.Namespace) -> int:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr("pi05_ros.cli.inspect.run", run)
    assert command.main(["inspect", "random:tiny"]) == 2
    error = capsys.readouterr().err
    assert "needs the Python package " + module.partition(".")[0] in error
    assert error.endswith(f": pip install {package}\n")


def test_a_mistake_in_the_package_itself_is_not_taken_for_a_missing_one(monkeypatch):
    def run(args: argparse.Namespace) -> int:
        raise ModuleNotFoundError("No module named 'pi05_ros.nowhere'", name="pi05_ros.nowhere")

    monkeypatch.setattr("pi05_ros.cli.inspect.run", run)
    with pytest.raises(ModuleNotFoundError):
        command.main(["inspect", "random:tiny"])
