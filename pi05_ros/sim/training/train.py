"""Train the small pi0.5 of the simulated arm by flow matching on the model's own code path.

    python -m pi05_ros.sim.training.train OUT [--episodes N] [--minutes M] ...

`objective` has the loss. OUT is replaced as a whole once training has ended: statistics, tokenizer
and weights belong together. What was there is kept as OUT.previous.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pi05_ros.bags.lerobot_recording import is_dataset
from pi05_ros.model import Pi05
from pi05_ros.model.checkpoint.load import openpi_tensors, save_openpi
from pi05_ros.model.checkpoint.safetensors_file import write_file
from pi05_ros.policy.checkpoints.norm_stats import openpi_normalization
from pi05_ros.policy.prompt.prompt import PromptEncoder
from pi05_ros.policy.prompt.tokenizer import load_tokenizer
from pi05_ros.policy.robots.profile_yaml import load_profile
from pi05_ros.policy.transforms.transforms import delta_to_absolute
from pi05_ros.sim.arm.tasks import TASKS
from pi05_ros.sim.training.demonstrations import FACTS, Demonstrations, generate
from pi05_ros.sim.training.from_dataset import read_dataset
from pi05_ros.sim.training.objective import (
    DELTA_MASK,
    TrainingRecipe,
    loss_of,
    prefix,
    prepare,
    write_stats,
)
from pi05_ros.sim.training.rollout import Act, rollout
from pi05_ros.sim.training.shipped import CONFIG, HORIZON
from pi05_ros.sim.training.trainer import Trainer
from pi05_ros.sim.training.vocabulary import train_tokenizer
from pi05_ros.small_files import read_text

SAVE_EVERY_S = 60.0


def batched_policy(model: Pi05, directory: Path, steps: int = 10) -> Act:
    """Policy over batches for `rollout`, with the transforms of the real one."""
    profile = load_profile("sim_arm")
    normalization = openpi_normalization(directory, profile)
    encoder = PromptEncoder(
        load_tokenizer(None, directory, CONFIG.vocab), True, CONFIG.max_prompt_tokens
    )
    device = model.device

    @torch.no_grad()
    def act(images: np.ndarray, states: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        ids = [
            encoder.encode(prompt, state)
            for prompt, state in zip(prompts, normalization.state.normalize(states), strict=True)
        ]
        tokens = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.int64)
        for i, row in enumerate(ids):
            tokens[i, : len(row)] = torch.from_numpy(row)
        seen = torch.ones(images.shape[:2], dtype=torch.bool, device=device)
        kv = prefix(model, torch.from_numpy(images).to(device), tokens.to(device), seen)
        x = torch.randn(len(ids), HORIZON, CONFIG.action_dim).to(device)
        for i in range(steps):
            x = x - model.velocity(x, 1 - i / steps, kv) / steps
        actions = normalization.actions.unnormalize(x[..., :7].cpu().numpy())
        return delta_to_absolute(actions, states, DELTA_MASK)

    return act


def save_policy(model: Pi05, directory: Path) -> None:
    """Write config.json and the weights as float16 in openpi's layout."""
    save_openpi(model.cpu(), directory)
    tensors = {name: value.half().contiguous() for name, value in openpi_tensors(model).items()}
    write_file(directory / "model.safetensors", tensors, {"format": "pt"})


def put_in_place(new: Path, place: Path) -> None:
    """Make the directory ``new`` the one at ``place``; what was there becomes PLACE.previous.

    Atomic where the file system can exchange two directories: after a crash either the old or the
    new checkpoint is at ``place``, whole. Elsewhere none may be there, with both beside it.

    Raises:
        OSError: it cannot be moved.

    """
    previous = place.with_name(place.name + ".previous")
    if not place.exists():
        new.rename(place)
        return
    if previous.exists():
        shutil.rmtree(previous)
    if _exchange(new, place):
        new.rename(previous)
    else:
        place.rename(previous)
        new.rename(place)


def _exchange(one: Path, other: Path) -> bool:
    """Whether two paths were exchanged in one step (Linux, glibc 2.28 or newer)."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def evaluate(
    model: Pi05, directory: Path, seeds: Sequence[int], renderer: str | None = None
) -> dict[str, float]:
    """Success rate per task over the seeds, printed with the wrong tasks that were done."""
    act = batched_policy(model, directory)
    rates = {}
    for name, task in TASKS.items():
        outcomes = rollout(act, task, seeds, renderer=renderer)
        rates[name] = float(np.mean([name in o.done for o in outcomes]))
        wrong = sum(any(d != name for d in o.done) for o in outcomes)
        print(f"{name}: success {rates[name]:.3f} over {len(seeds)} seeds, wrong task {wrong}")
    return rates


def main(argv: Sequence[str] | None = None) -> int:
    """Generate demonstrations, train, save and evaluate."""
    args = _options(argv)
    began = time.monotonic()
    data = _data(args)
    staged = args.out.with_name(args.out.name + ".new")
    shutil.rmtree(staged, ignore_errors=True)  # of a run that was killed
    write_stats(staged, data)
    train_tokenizer(staged / "tokenizer.model")
    encoder = PromptEncoder(
        load_tokenizer(None, staged, CONFIG.vocab), True, CONFIG.max_prompt_tokens
    )
    device = torch.device(args.device)
    normalization = openpi_normalization(staged, load_profile("sim_arm"))
    tensors = {k: v.to(device) for k, v in prepare(data, encoder, normalization).items()}
    print(f"data ready after {time.monotonic() - began:.0f} s", flush=True)
    torch.backends.cuda.matmul.allow_tf32 = True
    trainer = Trainer(device, TrainingRecipe(batch=args.batch), args.compile)
    limit = args.minutes * 60
    if args.resume:
        trainer.resume(args.resume)
        done = f"step {trainer.step}, {trainer.seconds:.0f} s"
        print(f"resumed at {done} of {limit:.0f}, resumed runs included", flush=True)
    _train(trainer, tensors, limit, args)
    model = trainer.averaged()
    save_policy(trainer.averaged(), staged)
    put_in_place(staged, args.out)
    print(f"saved {args.out} after {time.monotonic() - began:.0f} s", flush=True)
    if args.eval_seeds:
        evaluate(model, args.out, range(args.eval_seeds), args.renderer)
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description="train the simulated arm's small pi0.5")
    parser.add_argument("out", type=Path, help="checkpoint directory to write")
    parser.add_argument(
        "--data",
        type=Path,
        help="demonstrations, made if they are not there (default OUT/../demonstrations), or a "
        "LeRobot dataset of the simulated arm",
    )
    parser.add_argument(
        "--leave-out-interventions",
        action="store_true",
        help="of a dataset: leave out frames in whose chunk a person had the arm, or the arm was "
        "disturbed",
    )
    parser.add_argument("--episodes", type=int, default=6000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--renderer", default=None, help="egl, osmesa or ray")
    parser.add_argument(
        "--minutes", type=float, default=6.0, help="training time, resumed runs included"
    )
    parser.add_argument("--batch", type=int, default=TrainingRecipe.batch)
    parser.add_argument("--eval-seeds", type=int, default=100)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile the loss")
    parser.add_argument("--resume", type=Path, help="state file of an earlier run")
    parser.add_argument(
        "--state", type=Path, help="write the state for --resume here, each minute"
    )
    args = parser.parse_args(argv)
    for name in ("episodes", "workers", "batch"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}; accepted: a number from 1")
    if args.resume and not args.resume.is_file():
        parser.error(f"--resume {args.resume}: no such file")
    return args


def _data(args: argparse.Namespace) -> Demonstrations:
    """Demonstrations of a folder or dataset, made if they are not there."""
    directory = args.data or args.out.parent / "demonstrations"
    if is_dataset(directory):
        print(f"demonstrations are those of the dataset {directory}")
    elif (directory / FACTS).is_file():
        facts = read_text(directory / FACTS).strip()
        print(f"demonstrations in {directory} are kept, whatever --episodes says: {facts}")
    else:
        began = time.monotonic()
        frames = generate(directory, args.episodes, args.workers, args.renderer)
        print(f"{frames} frames in {time.monotonic() - began:.0f} s", flush=True)
    if is_dataset(directory):
        return read_dataset(directory, args.leave_out_interventions)
    return Demonstrations.read(directory)


def _train(
    trainer: Trainer, tensors: dict[str, Tensor], limit: float, args: argparse.Namespace
) -> None:
    """Train until ``limit`` seconds are over, and keep the state where that is asked for."""
    if args.compile and trainer.seconds < limit:
        try:
            trainer.train_step(tensors, trainer.seconds / limit)
        except Exception as error:  # the compiler needs a C compiler and Triton
            print(f"not compiled: {str(error).splitlines()[0]}", flush=True)
            trainer.loss = loss_of
    start = time.monotonic() - trainer.seconds
    shown = saved = time.monotonic()
    while trainer.seconds < limit:
        loss = trainer.train_step(tensors, trainer.seconds / limit)
        now = time.monotonic()
        trainer.seconds = now - start
        if now - shown > 15 or trainer.step == 1:
            shown = now
            text = f"step {trainer.step} loss {float(loss):.4f} after {trainer.seconds:.0f} s"
            print(text, flush=True)
        if args.state and now - saved > SAVE_EVERY_S:
            trainer.save(args.state)
            saved = time.monotonic()
    if args.state:
        trainer.save(args.state)


if __name__ == "__main__":
    raise SystemExit(main())
