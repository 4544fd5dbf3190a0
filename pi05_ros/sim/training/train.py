"""Train the small pi0.5 of the simulated arm by flow matching on the model's own code path.

    python -m pi05_ros.sim.training.train OUT [--episodes N] [--minutes M] ...

Target u = noise - action at x_t = t * noise + (1 - t) * action, t from openpi's Beta(1.5, 1)
(pi0_pytorch.py). Per picture several (noise, t) pairs are drawn, since the prefix is the dear
part. Part of them carry an already decided prefix of actions at time 0, which is what
training-time real-time chunking needs (arXiv 2512.05964).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pi05_ros.model import Pi05
from pi05_ros.model.checkpoint.load import openpi_tensors, save_openpi
from pi05_ros.model.checkpoint.safetensors_file import write_file
from pi05_ros.model.prefix import KVCache
from pi05_ros.policy.checkpoints.norm_stats import openpi_normalization
from pi05_ros.policy.prompt.prompt import PromptEncoder
from pi05_ros.policy.prompt.tokenizer import load_tokenizer
from pi05_ros.policy.robots.profile_yaml import load_profile
from pi05_ros.policy.transforms.normalize import Normalization
from pi05_ros.policy.transforms.transforms import absolute_to_delta, delta_to_absolute, pad_to
from pi05_ros.sim.arm.tasks import TASKS
from pi05_ros.sim.training.demonstrations import FACTS, Demonstrations, generate
from pi05_ros.sim.training.rollout import Act, rollout
from pi05_ros.sim.training.shipped import ASSET_ID, CONFIG, HORIZON
from pi05_ros.sim.training.vocabulary import train_tokenizer

SAVE_EVERY_S = 60.0
DELTA_MASK = (True,) * 6 + (False,)
PADDING_WEIGHT = 0.1
MIN_SPAN = 0.05
"""Smallest q99 - q01 that is used: a joint that hardly moves must not blow its noise up."""


@dataclass(frozen=True)
class Recipe:
    """What the shipped weights were trained with."""

    batch: int = 384
    draws: int = 4
    peak_lr: float = 1e-3
    warmup: int = 300
    weight_decay: float = 0.01
    ema: float = 0.999
    decided: float = 0.3
    """Share of draws with a decided prefix of 1..max_decided actions."""
    max_decided: int = 8
    drop_wrist: float = 0.04
    seed: int = 0


def initial_model(seed: int, device: torch.device) -> Pi05:
    """Fresh weights: normal with 1/sqrt(fan_in), residual outputs smaller, norms at identity."""
    torch.manual_seed(seed)
    model = Pi05(CONFIG)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and "norm" not in name:
            nn.init.zeros_(parameter)
        elif "position_embedding" in name:
            nn.init.normal_(parameter, std=0.02)
        elif "embed_tokens" in name:
            nn.init.normal_(parameter, std=CONFIG.vlm.width**-0.5)
        elif "dense" in name:  # adaRMS: gates of 1/2 rather than 0, so that all layers learn
            nn.init.normal_(parameter, std=0.02)
        elif parameter.ndim >= 2:
            fan_in = math.prod(parameter.shape[1:])
            depth = CONFIG.vision.num_hidden_layers + CONFIG.vlm.depth
            last = any(k in name for k in ("o_proj", "out_proj.weight", "down_proj", "fc2"))
            small = last and not name.startswith("action")
            nn.init.normal_(parameter, std=fan_in**-0.5 * (depth**-0.5 if small else 1.0))
    for layer in [*model.expert.layers]:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.dense.bias.data[2 * CONFIG.expert.width :] = 0.5
    return model.to(device).requires_grad_(True)


def write_stats(directory: Path, data: Demonstrations) -> None:
    """Write assets/sim_arm/norm_stats.json in openpi's form, over states and delta actions."""
    deltas = absolute_to_delta(data.actions, data.states, DELTA_MASK).reshape(-1, 7)
    stats = {"state": _stats(data.states), "actions": _stats(deltas)}
    path = directory / "assets" / ASSET_ID / "norm_stats.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"norm_stats": stats}, indent=1) + "\n", encoding="utf-8")


def _stats(values: np.ndarray) -> dict[str, list[float]]:
    low, high = np.quantile(values, 0.01, axis=0), np.quantile(values, 0.99, axis=0)
    short = np.maximum(0.0, MIN_SPAN - (high - low)) / 2
    rows = {
        "mean": values.mean(axis=0),
        "std": values.std(axis=0),
        "q01": low - short,
        "q99": high + short,
    }
    return {name: [round(float(v), 6) for v in row] for name, row in rows.items()}


def prepare(
    data: Demonstrations, encoder: PromptEncoder, normalization: Normalization
) -> dict[str, Tensor]:
    """Model inputs of all frames: images, tokens ``[N, L]`` (0 pads), actions ``[N, H, 32]``."""
    prompts = [task.prompt for task in TASKS.values()]
    states = normalization.state.normalize(data.states)
    tokens = np.zeros((len(states), CONFIG.max_prompt_tokens), dtype=np.int64)
    for i, (task, state) in enumerate(zip(data.tasks, states, strict=True)):
        ids = encoder.encode(prompts[task], state)
        tokens[i, : len(ids)] = ids
    deltas = absolute_to_delta(data.actions, data.states, DELTA_MASK)
    actions = pad_to(normalization.actions.normalize(deltas), CONFIG.action_dim)
    return {
        "images": torch.from_numpy(data.images),
        "tokens": torch.from_numpy(tokens[:, : int((tokens != 0).sum(axis=1).max())]),
        "actions": torch.from_numpy(actions.astype(np.float32)),
    }


def prefix(model: Pi05, images: Tensor, tokens: Tensor, seen: Tensor) -> KVCache:
    """KV cache of uint8 images ``[B, V, S, S, 3]``; ``seen`` [B, V] False masks a camera."""
    B, V = images.shape[:2]
    pixels = images.permute(0, 1, 4, 2, 3).to(torch.float32) / 255.0 * 2.0 - 1.0
    patches = model.embed_images(pixels.flatten(0, 1)).unflatten(0, (B, V)).flatten(1, 2)
    words = model.embed_prompt(tokens)
    mask = torch.cat((seen.repeat_interleave(CONFIG.vision.tokens, dim=1), tokens != 0), dim=1)
    return model.prefill_embedded(
        torch.cat((patches.to(words.dtype), words), dim=1), mask, compact=False
    )


def loss_of(
    model: Pi05,
    images: Tensor,
    tokens: Tensor,
    seen: Tensor,
    actions: Tensor,
    noise: Tensor,
    t: Tensor,
    decided: Tensor,
) -> Tensor:
    """Mean squared velocity error over the undecided actions, padding dimensions counting less.

    Args:
        model: being trained.
        images: uint8 ``[B, V, S, S, 3]``.
        tokens: ``[B, L]``, 0 at padding.
        seen: bool ``[B, V]``.
        actions: normalized ``[B, H, 32]``.
        noise: ``[B * draws, H, 32]``.
        t: flow time ``[B * draws]``.
        decided: number of leading actions that are given, int64 ``[B * draws]``.

    """
    kv = prefix(model, images, tokens, seen)
    draws = noise.shape[0] // images.shape[0]
    repeated = KVCache(
        [k.repeat_interleave(draws, 0) for k in kv.k],
        [v.repeat_interleave(draws, 0) for v in kv.v],
        kv.mask.repeat_interleave(draws, 0),
        kv.length.repeat_interleave(draws, 0),
    )
    clean = actions.repeat_interleave(draws, 0)
    given = torch.arange(clean.shape[1], device=clean.device)[None] < decided[:, None]
    time = torch.where(given, 0.0, t[:, None])
    x_t = time[..., None] * noise + (1 - time[..., None]) * clean
    square = (model.velocity(x_t, time, repeated) - (noise - clean)).square()
    n = len(DELTA_MASK)
    error = square[..., :n].mean(-1) + PADDING_WEIGHT * square[..., n:].mean(-1)
    free = (~given).float()
    return (error * free).sum() / free.sum()


class Trainer:
    """Weights, their moving average and the optimizer; saved and resumed as one safetensors."""

    def __init__(self, device: torch.device, recipe: Recipe, compiled: bool) -> None:
        self.device = device
        self.recipe = recipe
        self.model = initial_model(recipe.seed, device)
        self.average = {k: v.detach().clone() for k, v in self.model.named_parameters()}
        decay = [p for p in self.model.parameters() if p.ndim >= 2]
        plain = [p for p in self.model.parameters() if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decay, "weight_decay": recipe.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=recipe.peak_lr,
            betas=(0.9, 0.95),
            fused=device.type == "cuda",
        )
        self.step = 0
        self.seconds = 0.0  # of training, all runs together
        self.generator = torch.Generator(device).manual_seed(recipe.seed)
        self.loss: Callable[..., Tensor] = torch.compile(loss_of) if compiled else loss_of

    def train_step(self, data: dict[str, Tensor], progress: float) -> Tensor:
        """One optimizer step; ``progress`` 0..1 sets the cosine learning rate."""
        recipe, g, device = self.recipe, self.generator, self.device
        N, B, D = len(data["tokens"]), recipe.batch, recipe.batch * recipe.draws
        rows = torch.randint(0, N, (B,), generator=g, device=device)
        images = data["images"][rows]
        gain = 1 + 0.08 * (2 * torch.rand((B, 1, 1, 1, 1), generator=g, device=device) - 1)
        images = (images * gain).clamp(0, 255).to(torch.uint8)
        seen = torch.ones(B, images.shape[1], dtype=torch.bool, device=device)
        seen[:, -1] = torch.rand(B, generator=g, device=device) >= recipe.drop_wrist
        # Beta(1.5, 1) has the distribution function t^1.5
        t = torch.rand(D, generator=g, device=device) ** (1 / 1.5) * 0.999 + 0.001
        decided = torch.randint(1, recipe.max_decided + 1, (D,), generator=g, device=device)
        decided *= torch.rand(D, generator=g, device=device) < recipe.decided
        noise = torch.randn((D, HORIZON, CONFIG.action_dim), generator=g, device=device)
        warm = min(1.0, (self.step + 1) / recipe.warmup)
        lr = recipe.peak_lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = self.loss(
                self.model,
                images,
                data["tokens"][rows],
                seen,
                data["actions"][rows],
                noise,
                t,
                decided,
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        keep = min(recipe.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(
            list(self.average.values()),
            [p.detach() for p in self.model.parameters()],
            1 - keep,
        )
        return loss.detach()

    def averaged(self) -> Pi05:
        """Model with the moving average of the weights, without gradients."""
        model = Pi05(CONFIG, device=self.device)
        model.load_state_dict(self.average, strict=False)
        return model

    def save(self, path: Path) -> None:
        """Write everything needed to go on; whoever is killed here leaves the old file or this."""
        tensors = {f"model.{k}": v.detach() for k, v in self.model.named_parameters()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"adam.{key}.{name}"] = value
        tensors[f"generator.{self.device.type}"] = self.generator.get_state()
        facts = {"step": str(self.step), "seconds": str(self.seconds)}
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_name(path.name + ".new")
        save_file({k: v.contiguous() for k, v in tensors.items()}, whole, facts)
        whole.replace(path)

    def resume(self, path: Path) -> None:
        """Continue from a file that `save` wrote, with the same draws if the device is alike."""
        tensors = load_file(path, device=str(self.device))
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
                self.average[name].copy_(tensors[f"average.{name}"])
        for name, parameter in self.model.named_parameters():
            keys = {k: f"adam.{k}.{name}" for k in ("step", "exp_avg", "exp_avg_sq")}
            if keys["step"] in tensors:
                self.optimizer.state[parameter] = {k: tensors[key] for k, key in keys.items()}
        with safe_open(path, framework="pt") as file:
            facts = file.metadata()
        self.step, self.seconds = int(facts["step"]), float(facts.get("seconds", 0.0))
        state = tensors.get(f"generator.{self.device.type}")
        if state is None:
            self.generator.manual_seed(self.recipe.seed + self.step)
        else:
            self.generator.set_state(state.cpu())


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
    parser = argparse.ArgumentParser(description="train the simulated arm's small pi0.5")
    parser.add_argument("out", type=Path, help="checkpoint directory to write")
    parser.add_argument("--data", type=Path, help="demonstrations (default OUT/../demonstrations)")
    parser.add_argument("--episodes", type=int, default=6000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--renderer", default=None, help="egl, osmesa or ray")
    parser.add_argument(
        "--minutes", type=float, default=6.0, help="training time, resumed runs included"
    )
    parser.add_argument("--batch", type=int, default=Recipe.batch)
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
    began = time.monotonic()
    directory = args.data or args.out.parent / "demonstrations"
    if (directory / FACTS).is_file():
        facts = (directory / FACTS).read_text("utf-8").strip()
        print(f"demonstrations in {directory} are kept, whatever --episodes says: {facts}")
    else:
        frames = generate(directory, args.episodes, args.workers, args.renderer)
        print(f"{frames} frames in {time.monotonic() - began:.0f} s", flush=True)
    data = Demonstrations.read(directory)
    write_stats(args.out, data)
    train_tokenizer(args.out / "tokenizer.model")
    encoder = PromptEncoder(
        load_tokenizer(None, args.out, CONFIG.vocab), True, CONFIG.max_prompt_tokens
    )
    device = torch.device(args.device)
    normalization = openpi_normalization(args.out, load_profile("sim_arm"))
    tensors = {k: v.to(device) for k, v in prepare(data, encoder, normalization).items()}
    print(f"data ready after {time.monotonic() - began:.0f} s", flush=True)
    torch.backends.cuda.matmul.allow_tf32 = True
    trainer = Trainer(device, Recipe(batch=args.batch), args.compile)
    limit = args.minutes * 60
    if args.resume:
        trainer.resume(args.resume)
        done = f"step {trainer.step}, {trainer.seconds:.0f} s"
        print(f"resumed at {done} of {limit:.0f}, resumed runs included", flush=True)
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
    model = trainer.averaged()
    save_policy(trainer.averaged(), args.out)
    print(f"saved {args.out} after {time.monotonic() - began:.0f} s", flush=True)
    if args.eval_seeds:
        evaluate(model, args.out, range(args.eval_seeds), args.renderer)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
