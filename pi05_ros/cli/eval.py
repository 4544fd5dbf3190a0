"""`pi05 eval`: success rates of a policy over settings, tasks and seeds.

On the simulated arm, or with `pi05 eval libero` on the LIBERO benchmark.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pi05_ros.sim.episodes import Setting
    from pi05_ros.sim.evaluation import EpisodeRunner, Job, MakeRunner
    from pi05_ros.sim.ros_grid import RosJob

T = TypeVar("T")
S = TypeVar("S", bound="Setting")
BENCHMARKS = ("arm", "libero")
DEFAULT_SEEDS = "0:50"
OWN_OPTIONS = {
    "arm": ("seeds", "nudge", "wrong_prompts", "ros", "rate"),
    "libero": ("suite", "trials", "scene_seed", "robot", "tokenizer"),
}
"""Options that only one benchmark has; None or False when they are not given."""


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
        help="keep the episodes that are in --out already (default); else start over",
    )
    parser.add_argument(
        "--tasks", default="all", help="names, for LIBERO also numbers; or all (default)"
    )
    parser.add_argument("--backend", default="eager")
    parser.add_argument("--precision", default="fp32", help="fp32, bf16, fake-fp8, ...")
    parser.add_argument(
        "--engines", help="instead of these two, pairs: eager/fp32,cuda/bf16,cuda/auto"
    )
    parser.add_argument("--steps", default="10", help="denoise steps, e.g. 1,3,10")
    parser.add_argument(
        "--chunking",
        default="naive",
        help="naive, ensemble, rtc-vjp, rtc-vjp-scaled, rtc-identity, rtc-trained",
    )
    parser.add_argument("--max-guidance", help="clip of the gain of rtc-vjp... and rtc-identity")
    parser.add_argument(
        "--replan", help="control steps between observations (default 8, for LIBERO 5)"
    )
    parser.add_argument("--delay-ms", default="0", help="injected inference delay, 0 to 2000")
    parser.add_argument("--kv-reuse", default="1", help="1, 2, 3, ..., dynamic")
    parser.add_argument("--drop-wrist", default="0", help="probability of a missing wrist picture")
    parser.add_argument(
        "--max-steps", help="control steps an episode may take (default 160, for LIBERO its own)"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--renderer", choices=("egl", "osmesa", "ray"), help="LIBERO: not ray")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--latency",
        action=argparse.BooleanOptionalAction,
        help="measure inferences alone afterwards (default: for the arm, where settings differ "
        "in what an inference costs)",
    )
    parser.add_argument(
        "--gif", default="", help="seeds or trials whose episodes become GIFs, e.g. 0,3"
    )
    arm = parser.add_argument_group("only for the arm")
    arm.add_argument("--seeds", help="FIRST:END or a list (default 0:50)")
    arm.add_argument("--nudge", help="probability that the block is moved once")
    arm.add_argument(
        "--wrong-prompts", action="store_true", help="also give each task the others' prompts"
    )
    arm.add_argument(
        "--ros",
        action="store_true",
        help="through real ROS 2 nodes in wall time: consecutive seeds; lists of --rate, --steps, "
        "--chunking, --kv-reuse, --backend, --precision",
    )
    arm.add_argument("--rate", help="inferences per second, with --ros (default 4)")
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


def run(args: argparse.Namespace) -> int:
    """Evaluate and write results.{csv,json}, summary.md and plots; exit code 2 for bad options."""
    from pi05_ros.backends.errors import BackendError
    from pi05_ros.policy.errors import PolicyError

    try:
        _refuse_foreign(args)
        if args.ros:
            return _run_ros(args)
        plan = _plan_libero(args) if args.benchmark == "libero" else _plan_arm(args)
        return _run(args, plan)
    except (ValueError, PolicyError, BackendError) as error:
        print(f"pi05 eval: {error}", file=sys.stderr)
        return 2


@dataclass(frozen=True)
class _Plan:
    """What one benchmark brings to the common run."""

    out: Path
    checkpoint: str
    todo: Sequence[Job]
    films: Sequence[Job]
    make: MakeRunner
    setting_type: type[Setting]
    totals: Callable[[list[dict[str, object]]], list[dict[str, object]]]
    facts: Mapping[str, str | int] = field(default_factory=dict)


def _plan_arm(args: argparse.Namespace) -> _Plan:
    from pi05_ros.sim.episodes import Setting
    from pi05_ros.sim.evaluation import Runner, jobs

    settings, tasks = _settings(args, Setting), _tasks(args.tasks)
    return _Plan(
        out=args.out or Path("out/eval"),
        checkpoint=_checkpoint(args.checkpoint),
        todo=jobs(settings, tasks, _seeds(args.seeds or DEFAULT_SEEDS), args.wrong_prompts),
        films=jobs(settings[:1], tasks, _seeds(args.gif)) if args.gif else (),
        make=Runner,
        setting_type=Setting,
        totals=lambda rows: [],
    )


def _plan_libero(args: argparse.Namespace) -> _Plan:
    from pi05_ros.sim import libero

    out = args.out or Path("out/libero")
    libero.prepare(out, args.renderer)
    if args.checkpoint is None:
        raise ValueError(
            "--checkpoint is needed: LIBERO takes weights trained for it, as pi05_libero "
            "(random:tiny only shows that everything runs)"
        )
    from pi05_ros.sim.evaluation import jobs
    from pi05_ros.sim.libero_episodes import LiberoRunner, LiberoSetting, suite_totals

    settings = _settings(args, LiberoSetting)
    trials = _trials(args.trials, libero.DEFAULT_TRIALS)
    loaded = libero.Libero()
    suites = _list(args.suite or "libero_spatial", str)
    tasks = [task for name in suites for task in libero.choose(loaded.tasks(name), args.tasks)]
    labels = [task.label for task in tasks]
    robot = args.robot or "libero"
    seed = libero.DEFAULT_SEED if args.scene_seed is None else args.scene_seed
    if not labels:
        raise ValueError(f"no task is asked for with --suite {args.suite} --tasks {args.tasks}")
    return _Plan(
        out=out,
        checkpoint=args.checkpoint,
        todo=jobs(settings, labels, trials),
        films=jobs(settings[:1], labels, _seeds(args.gif)) if args.gif else (),
        make=partial(
            LiberoRunner, tasks=tuple(tasks), robot=robot, tokenizer=args.tokenizer, seed=seed
        ),
        facts={"robot": robot, "scene_seed": seed},
        setting_type=LiberoSetting,
        totals=suite_totals,
    )


def _run(args: argparse.Namespace, plan: _Plan) -> int:
    from pi05_ros.sim import eval_plots, evaluation, latency, paired
    from pi05_ros.sim.run_identity import claim

    claim(plan.out, plan.checkpoint, args.resume, benchmark=args.benchmark, **plan.facts)
    rows = evaluation.evaluate(
        plan.todo,
        plan.out,
        plan.checkpoint,
        max(1, args.workers),
        args.renderer,
        args.device,
        _progress(),
        plan.make,
    )
    summary, totals = evaluation.summarise(rows), plan.totals(rows)
    if _wants_latency(args, plan.todo):
        times = latency.measure(
            plan.todo, plan.out, partial(plan.make, plan.checkpoint, args.renderer, args.device)
        )
        for entry in summary:
            entry["latency_ms"] = times[latency.engine_key(entry)]["mean_ms"]
    comparisons = paired.compare(rows, plan.setting_type)
    evaluation.write_csv(rows, plan.out / "results.csv")
    (plan.out / "summary.json").write_text(json.dumps(summary + totals, indent=1) + "\n", "utf-8")
    table = evaluation.markdown(summary + totals, plan.setting_type)
    if len(comparisons) > 1:
        table += "\nAll tasks, against the first setting on the same episodes:\n\n"
        table += paired.markdown(comparisons)
        (plan.out / "paired.json").write_text(
            json.dumps([item.row() for item in comparisons], indent=1) + "\n", "utf-8"
        )
    (plan.out / "summary.md").write_text(table, "utf-8")
    print(table)
    try:
        for path in eval_plots.draw(summary, plan.out):
            print(f"wrote {path}")
    except ModuleNotFoundError as error:
        print(f"no plots: {error}", file=sys.stderr)
    if plan.films:
        with contextlib.closing(plan.make(plan.checkpoint, args.renderer, args.device)) as runner:
            for job in plan.films:
                print(f"wrote {_film(runner, job, plan.out)}")
    return 0


def _wants_latency(args: argparse.Namespace, todo: Sequence[Job]) -> bool:
    """Asked for, or (arm) settings differ in what an inference costs."""
    if args.latency is not None or args.benchmark != "arm":
        return bool(args.latency)
    from pi05_ros.sim.latency import engine_key

    return len({engine_key(vars(job.setting)) for job in todo}) > 1


def _film(runner: EpisodeRunner, job: Job, out: Path) -> Path:
    from pi05_ros.sim import report

    frames: list[Any] = []
    result = runner.run(job, frames)
    name = re.sub(r"\W+", "_", job.task)
    path = out / f"{name}-{job.seed}-{'done' if result.success else 'failed'}.gif"
    report.write_gif(frames, path)
    return path


def _refuse_foreign(args: argparse.Namespace) -> None:
    """Raise ValueError for an option of the other benchmark."""
    other = "arm" if args.benchmark == "libero" else "libero"
    given = [name for name in OWN_OPTIONS[other] if getattr(args, name) not in (None, False)]
    if given:
        option = "--" + given[0].replace("_", "-")
        raise ValueError(f"{option} is only for pi05 eval {other}, not for {args.benchmark}")


def _run_ros(args: argparse.Namespace) -> int:
    from pi05_ros.replay.live import RosMissingError, ros_environment
    from pi05_ros.replay.processes import ChildError
    from pi05_ros.sim import ros_grid
    from pi05_ros.sim.episodes import Setting

    out = args.out or Path("out/eval")
    try:
        rates = _list(args.rate or str(ros_grid.DEFAULT_RATE_HZ), float)
        tasks, seeds = _tasks(args.tasks), _seeds(args.seeds or DEFAULT_SEEDS)
        todo = ros_grid.ros_jobs(_settings(args, Setting), rates, tasks, seeds)
        checkpoint = _checkpoint(args.checkpoint)
        ros_environment()  # says what is missing before rclpy is imported
        from pi05_ros.ros.bring_up import BringUpError
    except (ValueError, RosMissingError) as error:
        print(f"pi05 eval: {error}", file=sys.stderr)
        return 2
    if not args.resume:
        (out / ros_grid.RESULTS).unlink(missing_ok=True)
    try:
        rows = ros_grid.run_grid(
            todo, out, partial(_session, out=out, checkpoint=checkpoint, args=args), print
        )
    except (ValueError, ChildError, BringUpError) as error:
        print(f"pi05 eval: {error}", file=sys.stderr)
        return 1
    print(ros_grid.markdown(todo, rows))
    return 0


def _session(
    job: RosJob, *, out: Path, checkpoint: str, args: argparse.Namespace
) -> dict[str, Any]:
    from pi05_ros.sim import report
    from pi05_ros.sim.ros_session import run_session

    setting = job.setting
    guided = setting.chunking.startswith("rtc-")
    print(f"{job.name}:", flush=True)
    session = run_session(
        checkpoint,
        job.task,
        job.seeds,
        out / "logs" / job.name.removeprefix("ros-"),
        rate_hz=job.rate_hz,
        denoise_steps=setting.denoise_steps,
        strategy="ensemble" if setting.chunking == "ensemble" else "rtc",
        chunk_mode=setting.chunking.removeprefix("rtc-") if guided else "plain",
        kv_reuse=setting.kv_reuse,
        backend=setting.backend,
        precision=setting.precision,
        renderer=args.renderer,
        progress=lambda seed, done: print(f"seed {seed}: {'done' if done else 'failed'}"),
    )
    print(f"{job.task}: {session.text}")
    path = out / f"{job.name}.json"
    path.write_text(json.dumps(session.row(), indent=1) + "\n", "utf-8")
    report.latency_plot(session.to_command_ms, session.stages_ms, Path(f"{out / job.name}.png"))
    report.write_gif(session.film, Path(f"{out / job.name}.gif"))
    print(f"wrote {path}, {job.name}.png, {job.name}.gif", flush=True)
    return session.row()


def _list(text: str, convert: Callable[[str], T]) -> list[T]:
    try:
        return [convert(item.strip()) for item in text.split(",") if item.strip()]
    except ValueError as error:
        raise ValueError(f"{text!r} is not a list separated by commas: {error}") from error


def _settings(args: argparse.Namespace, kind: type[S]) -> list[S]:
    """All combinations of the lists; an option that is left out has the setting's own default."""
    engines = [tuple(item.split("/", 1)) for item in _list(args.engines or "", str)]
    if any(len(pair) != 2 for pair in engines):
        raise ValueError(f"--engines {args.engines}: accepted are BACKEND/PRECISION pairs")
    given = {
        "denoise_steps": (args.steps, int),
        "chunking": (args.chunking, str),
        "max_guidance": (args.max_guidance, float),
        "replan": (args.replan, int),
        "delay_ms": (args.delay_ms, int),
        "kv_reuse": (args.kv_reuse, str),
        "drop_wrist": (args.drop_wrist, float),
        "max_steps": (args.max_steps, int),
        "nudge": (args.nudge, float),
    }
    columns: dict[str, list[Any]] = {
        name: _list(text, convert) for name, (text, convert) in given.items() if text is not None
    }
    backends, precisions = _list(args.backend, str), _list(args.precision, str)
    return [
        kind(backend=backend, precision=precision, **dict(zip(columns, values, strict=True)))
        for backend, precision in engines or itertools.product(backends, precisions)
        for values in itertools.product(*columns.values())
    ]


def _tasks(text: str) -> list[str]:
    from pi05_ros.sim.tasks import TASKS, task_by_name

    return list(TASKS) if text == "all" else [task_by_name(name).name for name in _list(text, str)]


def _seeds(text: str) -> list[int]:
    first, colon, end = text.partition(":")
    seeds = list(range(int(first), int(end))) if colon else _list(text, int)
    if not seeds or min(seeds) < 0:
        raise ValueError(f"seeds {text!r}; accepted: FIRST:END or a list of numbers from 0")
    return seeds


def _trials(text: str | None, default: int) -> list[int]:
    if text is not None and ":" in text:
        return _seeds(text)
    if text is not None and not (text.isascii() and text.isdecimal() and int(text)):
        raise ValueError(f"trials {text!r}; accepted: a number from 1, or FIRST:END")
    return list(range(default if text is None else int(text)))


def _checkpoint(given: str | None) -> str:
    from pi05_ros.sim.shipped import CHECKPOINT

    if given is None and not (CHECKPOINT / "model.safetensors").is_file():
        raise ValueError(f"no trained policy in {CHECKPOINT}; name one with --checkpoint")
    return given or str(CHECKPOINT)


def _progress() -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done}/{total} episodes", end="\n" if done == total else "", file=sys.stderr)
        elif done == total or done % 50 == 0:
            print(f"{done}/{total} episodes", file=sys.stderr)

    return show
