"""`pi05 eval`: success rates of a policy on the simulated arm over settings, tasks and seeds."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options; lists are separated by commas and combined with each other."""
    parser.add_argument(
        "--checkpoint", help="default: the trained policy that comes with pi05_ros"
    )
    parser.add_argument("--out", type=Path, default=Path("out/eval"), help="directory of results")
    parser.add_argument("--tasks", default="all", help="names, or all (default)")
    parser.add_argument("--seeds", default="0:50", help="FIRST:END or a list (default 0:50)")
    parser.add_argument("--backend", default="eager")
    parser.add_argument("--precision", default="fp32", help="fp32, bf16, fake-fp8, ...")
    parser.add_argument("--steps", default="10", help="denoise steps, e.g. 1,3,10")
    parser.add_argument(
        "--chunking",
        default="naive",
        help="naive, ensemble, rtc-vjp, rtc-identity, rtc-trained",
    )
    parser.add_argument("--replan", default="8", help="control steps between observations")
    parser.add_argument("--delay-ms", default="0", help="injected inference delay, 0 to 2000")
    parser.add_argument("--kv-reuse", default="1", help="1, 2, 3, ..., dynamic")
    parser.add_argument("--drop-wrist", default="0", help="probability of a missing wrist picture")
    parser.add_argument("--max-steps", default="160", help="control steps an episode may take")
    parser.add_argument("--nudge", default="0", help="probability that the block is moved once")
    parser.add_argument(
        "--wrong-prompts", action="store_true", help="also give each task the others' prompts"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--renderer", choices=("egl", "osmesa", "ray"))
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--ros",
        action="store_true",
        help="through real ROS 2 nodes in wall time: consecutive seeds, one setting",
    )
    parser.add_argument(
        "--rate", type=float, default=4.0, help="inferences per second, with --ros"
    )
    parser.add_argument("--gif", default="", help="seeds whose episodes become GIFs, e.g. 0,3")


def run(args: argparse.Namespace) -> int:
    """Evaluate and write results.{csv,json}, summary.md and plots; exit code 2 for bad options."""
    from pi05_ros.backends.errors import BackendError
    from pi05_ros.policy.errors import PolicyError
    from pi05_ros.sim import evaluation, report

    if args.ros:
        return _run_ros(args)
    try:
        settings, tasks, seeds = _settings(args), _tasks(args.tasks), _seeds(args.seeds)
        todo = evaluation.jobs(settings, tasks, seeds, args.wrong_prompts)
        checkpoint = _checkpoint(args.checkpoint)
        rows = evaluation.evaluate(
            todo,
            args.out,
            checkpoint,
            max(1, args.workers),
            args.renderer,
            args.device,
            _progress(),
        )
    except (ValueError, PolicyError, BackendError) as error:
        print(f"pi05 eval: {error}", file=sys.stderr)
        return 2
    summary = evaluation.summarise(rows)
    evaluation.write_csv(rows, args.out / "results.csv")
    (args.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", "utf-8")
    table = evaluation.markdown(summary)
    (args.out / "summary.md").write_text(table, "utf-8")
    print(table)
    for path in report.plots(summary, args.out):
        print(f"wrote {path}")
    if args.gif:
        runner = evaluation.Runner(checkpoint, args.renderer, args.device)
        for task, seed in itertools.product(tasks, _seeds(args.gif)):
            frames: list[Any] = []
            result = runner.run(evaluation.Job(settings[0], task, task, seed), frames)
            path = args.out / f"{task}-{seed}-{'done' if result.success else 'failed'}.gif"
            report.write_gif(frames, path)
            print(f"wrote {path}")
    return 0


def _run_ros(args: argparse.Namespace) -> int:
    from pi05_ros.replay.live import RosMissingError
    from pi05_ros.replay.processes import ChildError

    try:
        tasks, seeds = _tasks(args.tasks), _seeds(args.seeds)
        checkpoint = _checkpoint(args.checkpoint)
        settings = _settings(args)
        if len(settings) != 1:
            raise ValueError("with --ros every option takes one value")
        from pi05_ros.replay.live import ros_environment

        ros_environment()  # says what is missing before rclpy is imported
        from pi05_ros.ros.bring_up import BringUpError
        from pi05_ros.sim import report
        from pi05_ros.sim.ros_session import run_session
    except (ValueError, RosMissingError) as error:
        print(f"pi05 eval: {error}", file=sys.stderr)
        return 2
    setting = settings[0]
    guided = setting.chunking.startswith("rtc-")
    for task in tasks:
        try:
            session = run_session(
                checkpoint,
                task,
                seeds,
                args.out / "logs" / task,
                rate_hz=args.rate,
                denoise_steps=setting.denoise_steps,
                strategy="ensemble" if setting.chunking == "ensemble" else "rtc",
                chunk_mode=setting.chunking.removeprefix("rtc-") if guided else "plain",
                kv_reuse=setting.kv_reuse,
                renderer=args.renderer,
                progress=lambda seed, done: print(f"seed {seed}: {'done' if done else 'failed'}"),
            )
        except (ValueError, ChildError, BringUpError) as error:
            print(f"pi05 eval: {error}", file=sys.stderr)
            return 1
        print(f"{task}: {session.text}")
        path = args.out / f"ros-{task}.json"
        path.write_text(json.dumps(session.row(), indent=1) + "\n", "utf-8")
        report.latency_plot(session.to_command_ms, session.stages_ms, path.with_suffix(".png"))
        report.write_gif(session.film, path.with_suffix(".gif"))
        print(f"wrote {path}, {path.stem}.png, {path.stem}.gif")
    return 0


def _list(text: str, convert: Callable[[str], T]) -> list[T]:
    try:
        return [convert(item.strip()) for item in text.split(",") if item.strip()]
    except ValueError as error:
        raise ValueError(f"{text!r} is not a list separated by commas: {error}") from error


def _settings(args: argparse.Namespace) -> list[Any]:
    from pi05_ros.sim.episodes import Setting

    columns: Sequence[list[Any]] = (
        _list(args.backend, str),
        _list(args.precision, str),
        _list(args.steps, int),
        _list(args.chunking, str),
        _list(args.replan, int),
        _list(args.delay_ms, int),
        _list(args.kv_reuse, str),
        _list(args.drop_wrist, float),
        _list(args.max_steps, int),
        _list(args.nudge, float),
    )
    return [Setting(*values) for values in itertools.product(*columns)]


def _tasks(text: str) -> list[str]:
    from pi05_ros.sim.tasks import TASKS, task_by_name

    return list(TASKS) if text == "all" else [task_by_name(name).name for name in _list(text, str)]


def _seeds(text: str) -> list[int]:
    first, colon, end = text.partition(":")
    seeds = list(range(int(first), int(end))) if colon else _list(text, int)
    if not seeds or min(seeds) < 0:
        raise ValueError(f"seeds {text!r}; accepted: FIRST:END or a list of numbers from 0")
    return seeds


def _checkpoint(given: str | None) -> str:
    from pi05_ros.sim.shipped import CHECKPOINT

    if given is None and not (CHECKPOINT / "model.safetensors").is_file():
        raise ValueError(f"no trained policy in {CHECKPOINT}; name one with --checkpoint")
    return given or str(CHECKPOINT)


def _progress() -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        if sys.stderr.isatty() or done == total or done % 50 == 0:
            print(f"\r{done}/{total} episodes", end="\n" if done == total else "", file=sys.stderr)

    return show
