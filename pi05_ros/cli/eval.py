"""`pi05 eval`: success rates of a policy over settings, tasks and seeds.

On the simulated arm, or with `pi05 eval libero` on the LIBERO benchmark.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pi05_ros.cli.common_options import progress
from pi05_ros.cli.eval_options import (
    DEFAULT_SEEDS,
    add_arguments,
    arm_tasks,
    films_of,
    listed,
    refuse_foreign,
    seeds_of,
    settings_of,
    trials_of,
)
from pi05_ros.errors import InvalidValueError

if TYPE_CHECKING:
    from pi05_ros.sim.evaluation.evaluate import EpisodeJob, EpisodeRunner, MakeRunner
    from pi05_ros.sim.evaluation.ros_grid import RosJob
    from pi05_ros.sim.evaluation.setting import Setting

PAIRED = "paired.json"
__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace) -> int:
    """Evaluate and write results.csv, summary.{json,md} and plots.

    Exit code 2 for what cannot be run, 1 if ROS nodes fail.
    """
    refuse_foreign(args)
    if args.ros:
        return _run_ros(args)
    return _run(args, _plan_libero(args) if args.benchmark == "libero" else _plan_arm(args))


@dataclass(frozen=True)
class _Plan:
    """What one benchmark brings to the common run."""

    out: Path
    checkpoint: str
    todo: Sequence[EpisodeJob]
    films: Sequence[EpisodeJob]
    make: MakeRunner
    setting_type: type[Setting]
    totals: Callable[[list[dict[str, object]]], list[dict[str, object]]]
    facts: Mapping[str, str | int] = field(default_factory=dict)


def _plan_arm(args: argparse.Namespace) -> _Plan:
    from pi05_ros.sim.evaluation.evaluate import ArmRunner, jobs
    from pi05_ros.sim.evaluation.setting import Setting

    settings, tasks = settings_of(args, Setting), arm_tasks(args.tasks)
    seeds = _seeds(args)
    return _Plan(
        out=args.out or Path("out/eval"),
        checkpoint=_checkpoint(args.checkpoint),
        todo=jobs(settings, tasks, seeds, args.wrong_prompts),
        films=jobs(settings[:1], tasks, films_of(args)),
        make=ArmRunner,
        setting_type=Setting,
        totals=lambda rows: [],
        facts={"pictures": _pictures(args.renderer)},
    )


def _pictures(renderer: str | None) -> str:
    """Whether OpenGL or ray casting draws the arm: success rates of the two are not alike.

    Raises:
        RenderError: the renderer does not work here.

    """
    from pi05_ros.sim.arm.world import World

    world = World(renderer)
    try:
        if world.renderer.note:
            print(world.renderer.note, file=sys.stderr)
        return world.pictures
    finally:
        world.close()


def _plan_libero(args: argparse.Namespace) -> _Plan:
    from pi05_ros.sim.libero import benchmark

    out = args.out or Path("out/libero")
    benchmark.prepare(out, args.renderer)
    if args.checkpoint is None:
        raise InvalidValueError(
            "--checkpoint is needed: LIBERO takes weights trained for it, as pi05_libero "
            "(random:tiny only shows that everything runs)"
        )
    from pi05_ros.sim.evaluation.evaluate import jobs
    from pi05_ros.sim.libero.libero_episode import LiberoRunner, LiberoSetting, suite_totals

    settings = settings_of(args, LiberoSetting)
    trials = trials_of(args.trials, benchmark.DEFAULT_TRIALS)
    loaded = benchmark.Libero()
    suites = listed("--suite", args.suite or "libero_spatial", str)
    tasks = [task for name in suites for task in benchmark.choose(loaded.tasks(name), args.tasks)]
    labels = [task.label for task in tasks]
    robot = args.robot or "libero"
    seed = benchmark.DEFAULT_SEED if args.scene_seed is None else args.scene_seed
    if not labels:
        raise InvalidValueError(f"--tasks {args.tasks} names no task")
    return _Plan(
        out=out,
        checkpoint=args.checkpoint,
        todo=jobs(settings, labels, trials),
        films=jobs(settings[:1], labels, films_of(args)),
        make=partial(
            LiberoRunner, tasks=tuple(tasks), robot=robot, tokenizer=args.tokenizer, seed=seed
        ),
        facts={"robot": robot, "scene_seed": seed},
        setting_type=LiberoSetting,
        totals=suite_totals,
    )


def _run(args: argparse.Namespace, plan: _Plan) -> int:
    from pi05_ros.sim.evaluation import evaluate, latency, paired, success_plots, success_rates
    from pi05_ros.sim.evaluation.run_identity import claim

    workers, device = 1 if args.workers is None else args.workers, args.device or "auto"
    if workers < 1:
        raise InvalidValueError(f"--workers {workers}; accepted: a number from 1")
    if args.ray_gpus is not None and (args.ray is None or not 0 <= args.ray_gpus <= 64):
        raise InvalidValueError(f"--ray-gpus {args.ray_gpus} goes with --ray; accepted: 0 to 64")
    pictures = plan.facts.get("pictures")
    cluster = (
        None
        if args.ray is None
        else evaluate.Cluster(
            args.ray,
            args.workers,
            args.ray_gpus or 0.0,
            None if pictures is None else str(pictures),
        )
    )
    claim(plan.out, plan.checkpoint, args.resume, benchmark=args.benchmark, **plan.facts)
    _say_what_is_kept(plan)
    rows = evaluate.evaluate(
        plan.todo,
        plan.out,
        plan.checkpoint,
        workers,
        args.renderer,
        device,
        progress("episodes"),
        plan.make,
        cluster,
    )
    summary, totals = success_rates.summarize(rows), plan.totals(rows)
    if _wants_latency(args, plan.todo):
        times = latency.measure(
            plan.todo, plan.out, partial(plan.make, plan.checkpoint, args.renderer, device)
        )
        for entry in summary:
            entry["latency_ms"] = times[latency.engine_key(entry)]["mean_ms"]
    comparisons = paired.compare(rows, plan.setting_type)
    success_rates.write_csv(rows, plan.out / "results.csv")
    (plan.out / "summary.json").write_text(json.dumps(summary + totals, indent=1) + "\n", "utf-8")
    table = success_rates.markdown(summary + totals, plan.setting_type)
    (plan.out / PAIRED).unlink(missing_ok=True)  # an earlier run's, of other settings
    if len(comparisons) > 1:
        table += "\nAll tasks, against the first setting on the same episodes:\n\n"
        table += paired.markdown(comparisons)
        (plan.out / PAIRED).write_text(
            json.dumps([item.row() for item in comparisons], indent=1) + "\n", "utf-8"
        )
    (plan.out / "summary.md").write_text(table, "utf-8")
    print(table)
    try:
        for path in success_plots.draw(summary, plan.out):
            print(f"wrote {path}")
    except ModuleNotFoundError as error:
        print(f"no plots: {error}", file=sys.stderr)
    if plan.films:
        with contextlib.closing(plan.make(plan.checkpoint, args.renderer, device)) as runner:
            for job in plan.films:
                print(f"wrote {_film(runner, job, plan.out)}")
    return 0


def _say_what_is_kept(plan: _Plan) -> None:
    from pi05_ros.sim.evaluation import evaluate, results_file

    path, asked = plan.out / evaluate.RESULTS, {job.key for job in plan.todo}
    known = results_file.read(path).keys()
    if known:
        others = len(known - asked)
        text = f"{path}: {len(asked & known)} of {len(asked)} episodes are kept"
        if others:
            text += f"; {others} others there belong to other options and are left out"
        print(text, file=sys.stderr)


def _wants_latency(args: argparse.Namespace, todo: Sequence[EpisodeJob]) -> bool:
    """Asked for, or (arm) settings differ in what an inference costs."""
    if args.latency is not None or args.benchmark != "arm":
        return bool(args.latency)
    from pi05_ros.sim.evaluation.latency import engine_key

    return len({engine_key(vars(job.setting)) for job in todo}) > 1


def _film(runner: EpisodeRunner, job: EpisodeJob, out: Path) -> Path:
    from pi05_ros.sim.evaluation import video

    frames: list[Any] = []
    result = runner.run(job, frames)
    name = re.sub(r"\W+", "_", job.task)
    path, other = (
        out / f"{name}-{job.seed}-{'done' if done else 'failed'}.gif"
        for done in (result.success, not result.success)
    )
    video.write_gif(frames, path)
    other.unlink(missing_ok=True)  # an earlier run's, of another setting
    return path


def _run_ros(args: argparse.Namespace) -> int:
    from pi05_ros.ros.processes.children import ChildError, ros_environment
    from pi05_ros.sim.evaluation import ros_grid
    from pi05_ros.sim.evaluation.run_identity import claim
    from pi05_ros.sim.evaluation.setting import Setting

    out = args.out or Path("out/eval")
    rate = str(ros_grid.DEFAULT_RATE_HZ) if args.rate is None else args.rate
    rates = listed("--rate", rate, float)
    tasks, seeds = arm_tasks(args.tasks), _seeds(args)
    checkpoint = _checkpoint(args.checkpoint, ros=True)
    todo = ros_grid.ros_jobs(
        settings_of(args, Setting), rates, tasks, seeds, args.real_time, checkpoint
    )
    ros_environment()  # says what is missing before rclpy is imported
    from pi05_ros.ros.processes.bring_up import BringUpError

    pictures = _pictures(args.renderer)
    claim(out, checkpoint, args.resume, benchmark=args.benchmark, pictures=pictures)
    try:
        rows = ros_grid.run_grid(
            todo, out, partial(_session, out=out, checkpoint=checkpoint, args=args), print
        )
    except (ChildError, BringUpError) as error:
        if args.debug:
            raise
        print(f"pi05 eval: {error}", file=sys.stderr)
        return 1
    print(ros_grid.markdown(todo, rows))
    return 0


def _session(
    job: RosJob, *, out: Path, checkpoint: str, args: argparse.Namespace
) -> dict[str, Any]:
    from pi05_ros.sim.evaluation.ros_session import run_session
    from pi05_ros.sim.evaluation.session_results import write_session

    print(f"{job.name}:", flush=True)
    session = run_session(
        checkpoint,
        job,
        out / "logs" / job.name.removeprefix("ros-"),
        renderer=args.renderer,
        progress=lambda seed, done: print(f"seed {seed}: {'done' if done else 'failed'}"),
    )
    print(f"{job.task}: {session.text}")
    written = write_session(session, out / job.name)
    print("wrote " + ", ".join(map(str, written)), flush=True)
    return session.row()


def _seeds(args: argparse.Namespace) -> list[int]:
    return seeds_of("--seeds", DEFAULT_SEEDS if args.seeds is None else args.seeds)


def _checkpoint(given: str | None, ros: bool = False) -> str:
    from pi05_ros.policy.remote.remote_options import is_remote
    from pi05_ros.sim.training.shipped import CHECKPOINT

    if given is not None and is_remote(given) and not ros:
        raise InvalidValueError(f"--checkpoint {given}: a policy server is for --ros")
    if given is None and not (CHECKPOINT / "model.safetensors").is_file():
        raise InvalidValueError(f"no trained policy in {CHECKPOINT}; name one with --checkpoint")
    return given or str(CHECKPOINT)
