"""Weights, moving average and optimizer of one training of the simulated arm's policy."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pi05_ros.model import Pi05
from pi05_ros.sim.training.objective import TrainingRecipe, initial_model, loss_of
from pi05_ros.sim.training.shipped import CONFIG, HORIZON


class Trainer:
    """Weights, their moving average and the optimizer; saved and resumed as one safetensors."""

    def __init__(self, device: torch.device, recipe: TrainingRecipe, compiled: bool) -> None:
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
        frozen = torch.randint(1, recipe.max_frozen + 1, (D,), generator=g, device=device)
        frozen *= torch.rand(D, generator=g, device=device) < recipe.frozen
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
                frozen,
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
        """Write everything needed to go on; after a crash the old or the new file exists."""
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
