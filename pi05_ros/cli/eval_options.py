"""Options of `pi05 eval`, and what their words mean."""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pi05_ros.errors import InvalidValueError

if TYPE_CHECKING:
    from pi05_ros.sim.evaluation.setting import Setting

T = TypeVar("T")
S = TypeVar("S", bound="Setting")
BENCHMARKS = ("arm", "libero")
DEFAULT_SEEDS = "0:50"
MOST_SEEDS, LAST_SEED = 10**6, 2**31 - 1
OWN_OPTIONS = {
    "arm": (
        "seeds",
        "nudge",
        "limiting",
        "limit_share",
        "actions",
        "wrong_prompts",
        "ros",
        "rate",
        "real_time",
    ),
    "libero": ("suite", "trials", "scene_seed", "robot", "tokenizer"),
}
"""Options that only one benchmark has; None or False when they are not given."""
ONLY_WITH_ROS = ("rate", "real_time")
NOT_WITH_ROS = ("wrong_prompts", "workers", "device", "latency", "gif", "limiting", "limit_share")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options; lists are separated by commas and combined with each other."""
    parser.add_argument(
        "benchmark",
        nargs="?",
        choices=BENCHMARKS,
        default="arm",
        help="arm: the simulated arm (default); libero: LIBERO, which needs hf-libero",
    )
    parser.add_argument(
        "--checkpoint", help="default for the arm: the trained policy that comes with pi05_ros"
    )
    parser.add_argument(
        "--out", type=Path, help="directory of results (default out/eval or out/libero)"
    )
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep the episodes that are in --out already (default); else put them aside",
    )
    parser.add_argument(
        "--tasks", default="all", help="names, for LIBERO also numbers; or all (default)"
    )
    parser.add_argument("--backend", help="default eager")
    parser.add_argument("--precision", help="fp32 (default), bf16, fake-fp8, ...")
    parser.add_argument(
        "--engines", help="instead of these two, pairs: eager/fp32,cuda/bf16,cuda/auto"
    )
    parser.add_argument("--steps", help="denoise steps, e.g. 1,3,10 (default 10)")
    parser.add_argument(
        "--chunking",
        help="naive (default), ensemble, rtc-vjp, rtc-vjp-scaled, rtc-identity, rtc-trained",
    )
    parser.add_argument("--max-guidance", help="clip of the gain of rtc-vjp... and rtc-identity")
    parser.add_argument(
        "--replan", help="control steps between observations (default 8, for LIBERO 5)"
    )
    parser.add_argument("--delay-ms", help="injected inference delay, 0 (default) to 2000")
    parser.add_argument("--kv-reuse", help="1 (default), 2, 3, ..., dynamic")
    parser.add_argument("--drop-wrist", help="probability of a missing wrist image (default 0)")
    parser.add_argument(
        "--max-steps", help="control steps an episode may take (default 160, for LIBERO its own)"
    )
    parser.add_argument("--workers", type=int, help="processes (default 1)")
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="workers on this Ray cluster: auto, host:6379, or local; as many as it has CPUs "
        "unless --workers says",
    )
    parser.add_argument("--ray-gpus", type=float, help="of each worker with --ray (default 0)")
    parser.add_argument("--renderer", choices=("egl", "osmesa", "ray"), help="LIBERO: not ray")
    parser.add_argument("--device", help="auto (default), cpu, cuda or cuda:<n>")
    parser.add_argument(
        "--latency",
        action=argparse.BooleanOptionalAction,
        help="measure inferences alone afterwards (default: for the arm, where settings differ "
        "in what an inference costs)",
    )
    parser.add_argument("--gif", help="seeds or trials whose episodes become GIFs, e.g. 0,3")
    arm = parser.add_argument_group("only for the arm")
    arm.add_argument("--seeds", help="FIRST:END or a list (default 0:50)")
    arm.add_argument("--nudge", help="probability that the block is moved once")
    arm.add_argument("--limiting", help="joint (default), path, ruckig: path with jerk limits")
    arm.add_argument(
        "--limit-share", help="part of the arm's limits that is allowed, 0.01 to 1 (default)"
    )
    arm.add_argument("--actions", help="joints, or libero: by way of LIBERO's end-effector deltas")
    arm.add_argument(
        "--wrong-prompts", action="store_true", help="also give each task the others' prompts"
    )
    arm.add_argument(
        "--ros",
        action="store_true",
        help="through real ROS 2 nodes on simulated time that waits for them: consecutive seeds; "
        "lists of --rate, --steps, --chunking, --kv-reuse, --backend, --precision",
    )
    arm.add_argument("--rate", help="inferences per second, with --ros (default 4)")
    arm.add_argument(
        "--real-time",
        action="store_true",
        help="with --ros, let time run whether the nodes keep up or not, and measure latencies",
    )
    libero = parser.add_argument_group("only for LIBERO")
    libero.add_argument(
        "--suite",
        help="libero_spatial (default), libero_object, libero_goal, libero_10, libero_90, or "
        "several separated by commas",
    )
    libero.add_argument(
        "--trials", help="initial states of each task: how many, or FIRST:END (default 50)"
    )
    libero.add_argument("--scene-seed", type=int, help="of what is drawn (default 7)")
    libero.add_argument("--robot", help="robot profile: a name or YAML file (default libero)")
    libero.add_argument("--tokenizer", help="default: the one beside the checkpoint")


ON_A_CLUSTER = ("ray", "ray_gpus")


def refuse_foreign(args: argparse.Namespace) -> None:
    """Raise ValueError for an option of the other benchmark, or of the other way of running."""

    def given(names: Sequence[str]) -> str | None:
        found = [name for name in names if getattr(args, name) not in (None, False)]
        return "--" + found[0].replace("_", "-") if found else None

    other = "arm" if args.benchmark == "libero" else "libero"
    if option := given(OWN_OPTIONS[other]):
        raise InvalidValueError(
            f"{option} is only for pi05 eval {other}, not for {args.benchmark}"
        )
    if option := given((*NOT_WITH_ROS, *ON_A_CLUSTER) if args.ros else ONLY_WITH_ROS):
        raise InvalidValueError(
            f"{option} is not for --ros" if args.ros else f"{option} needs --ros"
        )


def listed(option: str, text: str, convert: Callable[[str], T]) -> list[T]:
    """Values separated by commas, at least one."""
    try:
        found = [convert(item.strip()) for item in text.split(",") if item.strip()]
    except ValueError:
        found = []
    if not found:
        kind = {int: "whole numbers", float: "numbers"}.get(convert, "words")  # type: ignore[call-overload]
        raise InvalidValueError(f"{option} {text!r}; accepted: {kind} separated by commas")
    return found


def settings_of(args: argparse.Namespace, kind: type[S]) -> list[S]:
    """All combinations of the lists; an option that is left out has the setting's own default."""
    converters: dict[Any, Callable[[str], Any]] = {"str": str, "int": int, "float": float}
    columns: dict[str, list[Any]] = {}
    for item in fields(kind):
        name = "steps" if item.name == "denoise_steps" else item.name
        if (text := getattr(args, name)) is not None:
            option = "--" + name.replace("_", "-")
            columns[item.name] = listed(option, text, converters[item.type])
    engines: list[dict[str, Any]] = [{}]
    if args.engines is not None:
        if args.backend is not None or args.precision is not None:
            raise InvalidValueError("--engines takes the place of --backend and --precision")
        pairs = [item.partition("/") for item in listed("--engines", args.engines, str)]
        if not all(backend and precision for backend, _, precision in pairs):
            raise InvalidValueError(f"--engines {args.engines}; accepted: BACKEND/PRECISION pairs")
        engines = [{"backend": pair[0], "precision": pair[2]} for pair in pairs]
    return [
        kind(**engine, **dict(zip(columns, values, strict=True)))
        for engine in engines
        for values in itertools.product(*columns.values())
    ]


def arm_tasks(text: str) -> list[str]:
    """Names of the arm's tasks, from names or prompts, or all."""
    from pi05_ros.sim.arm.tasks import TASKS, task_by_name

    if text == "all":
        return list(TASKS)
    return [task_by_name(name).name for name in listed("--tasks", text, str)]


def seeds_of(option: str, text: str) -> list[int]:
    """Seeds of FIRST:END or of a list."""
    words = [word.strip() for word in re.split("[:,]", text) if word.strip()]
    seeds: Sequence[int] = ()
    if all(word.isascii() and word.isdecimal() and len(word) < 20 for word in words):
        numbers = [int(word) for word in words]
        if ":" not in text:
            seeds = numbers
        elif len(numbers) == 2 and "," not in text:
            seeds = range(*numbers)
    if not seeds or len(seeds) > MOST_SEEDS or min(seeds) < 0 or max(seeds) > LAST_SEED:
        raise InvalidValueError(
            f"{option} {text!r}; accepted: FIRST:END or a list, up to {MOST_SEEDS} numbers "
            f"from 0 to {LAST_SEED}"
        )
    return list(seeds)


def films_of(args: argparse.Namespace) -> list[int]:
    """Seeds or trials that become GIFs."""
    return [] if args.gif is None else seeds_of("--gif", args.gif)


def trials_of(text: str | None, default: int) -> list[int]:
    """LIBERO's initial states of a number or of FIRST:END."""
    if text is not None and ":" in text:
        return seeds_of("--trials", text)
    if text is not None and not (text.isascii() and text.isdecimal() and int(text)):
        raise InvalidValueError(f"--trials {text!r}; accepted: a number from 1, or FIRST:END")
    return seeds_of("--trials", f"0:{default if text is None else text}")
