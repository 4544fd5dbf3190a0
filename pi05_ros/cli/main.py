"""The `pi05` command: one subcommand per module of this package, imported only when asked for."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence

import pi05_ros
from pi05_ros.cli.common_options import CommandParser, add_common_options
from pi05_ros.cli.logs import library_logs
from pi05_ros.errors import Pi05Error

# name -> (module with add_arguments(parser) and run(args) -> exit code, one line of help)
COMMANDS: dict[str, tuple[str, str]] = {
    "bench": ("pi05_ros.cli.bench", "measure the node, the model and the machine"),
    "build": ("pi05_ros.cli.engines.build", "compile the stages with TensorRT and verify them"),
    "calibrate": (
        "pi05_ros.cli.engines.calibrate",
        "find a backend's FP8 scales or ranges from observations",
    ),
    "calibrate-delay": (
        "pi05_ros.cli.calibrate_delay",
        "measure the delays of commands and cameras on a robot",
    ),
    "check": ("pi05_ros.cli.engines.check", "compare engines or graphs with the plain model"),
    "dataset": ("pi05_ros.cli.dataset", "make a LeRobot dataset of recorded demonstrations"),
    "demo": ("pi05_ros.cli.demo", "run the main job on this machine, ROS nodes and all"),
    "doctor": ("pi05_ros.cli.doctor", "say what works here, what is missing and how to fix it"),
    "eval": ("pi05_ros.cli.eval", "success rates of a policy on the simulated arm or LIBERO"),
    "export": ("pi05_ros.cli.engines.export", "write the stages as checked ONNX graphs"),
    "inspect": ("pi05_ros.cli.inspect", "say what a checkpoint holds and what is assumed"),
    "quantize": ("pi05_ros.cli.engines.quantize", "earlier name of pi05 calibrate --for tensorrt"),
    "replay": ("pi05_ros.cli.replay", "run the policy over a recorded bag, live or offline"),
    "serve": ("pi05_ros.cli.serve", "serve a policy to robots on openpi's websocket protocol"),
    "tune": ("pi05_ros.cli.engines.tune", "choose the cuda backend's tile sizes on this GPU"),
    "view": ("pi05_ros.cli.view", "show images, chunks and states in Foxglove"),
}


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """Parser of the whole command; only the chosen subcommand's module is imported."""
    parser = CommandParser(prog="pi05", description="pi0.5 on ROS 2")
    parser.add_argument("--version", action="version", version=f"pi05_ros {pi05_ros.__version__}")
    add_common_options(parser, default=False)
    subparsers = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, (module, text) in COMMANDS.items():
        sub = subparsers.add_parser(name, help=text, description=text)
        if name == command:
            add_common_options(sub)
            loaded = importlib.import_module(module)
            loaded.add_arguments(sub)
            sub.set_defaults(run=loaded.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; exit code 2 for wrong usage, files and missing packages.

    Errors of the user (`Pi05Error`, OSError, a missing package) become one line on stderr. All
    other exceptions are faults of the program and keep their traceback, as every error does with
    ``--debug``.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Progress must show up in a pipe (CI log, parent process) when it is printed, and a file
        # name that is not text must not end the command.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    words = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in words if not word.startswith("-")), None)
    debug = "--debug" in words
    try:
        args = build_parser(command).parse_args(words)
        with library_logs(verbose=args.verbose, debug=args.debug):
            return int(args.run(args))
    except BrokenPipeError:
        # Nobody reads; the interpreter's last flush must not complain about it either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except (ModuleNotFoundError, Pi05Error, OSError) as error:
        text = _one_line(error)
        if debug or text is None:
            raise
        print(f"pi05 {command}: {text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if debug:
            raise
        return 130


def _one_line(error: ModuleNotFoundError | Pi05Error | OSError) -> str | None:
    """What the user is told; None for a module of our own that is not there."""
    if not isinstance(error, ModuleNotFoundError):
        return str(error)
    package = (error.name or "").partition(".")[0]
    if package in ("", "pi05_ros"):
        return None
    from pi05_ros.doctor.software import NEEDED  # module -> package, where names differ

    pip = NEEDED.get(package, package)
    return f"needs the Python package {package}, which is not installed: pip install {pip}"


if __name__ == "__main__":
    sys.exit(main())
