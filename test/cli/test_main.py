"""The `pi05` command itself: what it says when something is missing."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import pkgutil

import pytest

import pi05_ros
from pi05_ros.backends import BackendError
from pi05_ros.cli import main as command
from pi05_ros.errors import InvalidValueError, Pi05Error, ResourceError
from pi05_ros.model import CheckpointError
from pi05_ros.policy import PolicyError


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


def raising(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(args: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr("pi05_ros.cli.inspect.run", run)


def all_errors() -> list[type[Exception]]:
    """Every exception class of the modules that can be imported here."""
    found: dict[str, type[Exception]] = {}
    for info in pkgutil.walk_packages(pi05_ros.__path__, "pi05_ros."):
        with contextlib.suppress(ImportError):
            module = importlib.import_module(info.name)
            for name, value in vars(module).items():
                if not (isinstance(value, type) and issubclass(value, Exception)):
                    continue
                if value.__module__.startswith("pi05_ros.") and not name.startswith("_"):
                    found[name] = value
    return list(found.values())


def test_every_exception_of_the_package_has_the_common_base():
    classes = all_errors()
    assert len(classes) > 15
    assert [c.__name__ for c in classes if not issubclass(c, Pi05Error)] == []


@pytest.mark.parametrize(
    "error",
    [
        PolicyError("the text"),
        CheckpointError("the text"),
        BackendError("the text"),
        InvalidValueError("the text"),
        ResourceError("the text"),
        OSError("the text"),
    ],
)
def test_errors_of_the_user_are_one_line(error, monkeypatch, capsys):
    raising(error, monkeypatch)
    assert command.main(["inspect", "random:tiny"]) == 2
    assert capsys.readouterr().err == "pi05 inspect: the text\n"


@pytest.mark.parametrize(
    "error", [ValueError("x"), RuntimeError("x"), KeyError("x"), TypeError("x"), AttributeError()]
)
def test_other_errors_keep_their_traceback(error, monkeypatch):
    raising(error, monkeypatch)
    with pytest.raises(type(error)):
        command.main(["inspect", "random:tiny"])


@pytest.mark.parametrize(
    "words",
    [["--debug", "inspect", "x"], ["inspect", "x", "--debug"], ["inspect", "--debug", "x"]],
)
@pytest.mark.parametrize(
    "error",
    [
        PolicyError("x"),
        CheckpointError("x"),
        OSError("x"),
        ModuleNotFoundError("x", name="mujoco"),
    ],
)
def test_debug_keeps_every_traceback(words, error, monkeypatch):
    raising(error, monkeypatch)
    with pytest.raises(type(error)):
        command.main(words)


def test_debug_keeps_the_traceback_where_a_command_has_its_own_exit_code():
    assert command.main(["inspect", "/no/such/checkpoint"]) == 1
    with pytest.raises(CheckpointError):
        command.main(["inspect", "/no/such/checkpoint", "--debug"])


@pytest.mark.parametrize(
    ("words", "levels"),
    [
        ([], ("WARNING", "ERROR")),
        (["-v"], ("INFO", "WARNING", "ERROR")),
        (["--debug"], ("DEBUG", "INFO", "WARNING", "ERROR")),
    ],
)
def test_library_logs_come_with_level_and_name(words, levels, monkeypatch, capsys):
    def run(args: argparse.Namespace) -> int:
        for level in ("debug", "info", "warning", "error"):
            getattr(logging.getLogger("pi05_ros.policy"), level)("the %s", "text")
        logging.getLogger("elsewhere").info("not ours")
        return 0

    monkeypatch.setattr("pi05_ros.cli.inspect.run", run)
    assert command.main([*words, "inspect", "x"]) == 0
    wanted = [f"{level} pi05_ros.policy: the text" for level in levels]
    assert capsys.readouterr().err.splitlines() == wanted


@pytest.mark.parametrize(
    "words",
    [
        ["--debug", "bench", "node", "--width", "0"],
        ["bench", "--debug", "node", "--width", "0"],
        ["bench", "node", "--width", "0", "--debug"],
    ],
)
def test_debug_is_taken_at_every_level(words):
    with pytest.raises(InvalidValueError, match="--width is 0"):
        command.main(words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("replay bag --ofline", "replay: there is no option --ofline (did you mean --offline?)"),
        ("bench node --gridd 3", "bench node: there is no option --gridd (did you mean --grid?)"),
        ("replay bag more", "replay: 'more' is one argument too many"),
        ("replay bag --rate fast", "replay: argument --rate: invalid float value: 'fast'"),
        ("replay bag --loop 0", "replay: --loop is 0; accepted: from 1"),
        (
            "replay bag -p max_age=1",
            "replay: --param names 'max_age' (did you mean 'max_age_s'?); ",
        ),
        ("serve random:tiny --port 99999", "serve: --port is 99999; accepted: 0 to 65535"),
        ("view --port 99999", "view: --port is 99999; accepted: 0 to 65535"),
        ("view nowhere", "view: nowhere does not exist"),
    ],
)
def test_wrong_words_are_named_in_the_first_line(words, said, capsys):
    try:
        code = command.main(words.split())
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert capsys.readouterr().err.startswith(f"pi05 {said}")


def test_commands_are_listed_in_order():
    assert list(command.COMMANDS) == sorted(command.COMMANDS)


def test_a_folder_without_weights_is_told_as_such_whatever_else_it_lacks(tmp_path, capsys):
    (tmp_path / "metadata.yaml").touch()
    bag = tmp_path / "bag.mcap"
    bag.touch()
    assert command.main(["serve", str(tmp_path)]) == 2
    assert "no weights in it (it holds bag.mcap, metadata.yaml)" in capsys.readouterr().err
