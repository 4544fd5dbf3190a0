"""The Hopper kernel between two steps against FP64, with poisoned memory behind the horizon."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from pi05_ros.backends.cuda import packing
from pi05_ros.backends.cuda.hopper.euler import EulerStep, unsupported
from pi05_ros.model import Pi05Config

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="needs a device of compute capability 9.0",
)

STEPS, ACTIONS = 3, 32
FULL = Pi05Config.preset("pi05")


def error(got, want):
    return float((got.double() - want).norm() / want.norm())


class Case:
    """Random tables and rows; rows behind the horizon are NaN."""

    def __init__(self, width, horizon, frozen, guided, coded):
        self.dtype = torch.float8_e4m3fn if coded else torch.bfloat16
        self.width, self.horizon, self.guided = width, horizon, guided
        self.g = torch.Generator(device="cuda").manual_seed(width + horizon)
        self.frozen = torch.tensor([frozen], dtype=torch.int32, device="cuda")
        self.kept = torch.arange(horizon, device="cuda") < frozen
        self.x, self.state = self.rows(width), self.rows(ACTIONS)
        self.out_w, self.in_w = self.normal(ACTIONS, width) / 32, self.normal(ACTIONS, width)
        self.in_b, self.velocity = self.normal(width), self.normal(STEPS + 1, ACTIONS)
        self.mod = self.normal(STEPS + 1, 2, 3, width)
        self.scale = torch.tensor([0.25], device="cuda")
        self.target, self.weight = self.rows(ACTIONS), self.rows(1)[:, 0].contiguous()
        self.clock = torch.rand(STEPS, 2, generator=self.g, device="cuda")
        config = dataclasses.replace(FULL, expert=dataclasses.replace(FULL.expert, width=width))
        self.kernel = EulerStep(config, torch.device("cuda", 0), coded)

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.g, device="cuda")

    def rows(self, columns):
        out = torch.full((64, columns), math.nan, device="cuda")
        out[: self.horizon] = self.normal(self.horizon, columns)
        return out

    def run(self, step):
        nan = torch.full((64, ACTIONS), math.nan, device="cuda")
        chunks = self.width * self.dtype.itemsize // 128
        mirror = torch.full((chunks, 64, 128), 0xFF, dtype=torch.uint8, device="cuda")
        sums = torch.full((self.width // 64, 64), math.nan, device="cuda")
        x, amax = self.x.clone(), torch.zeros(1, device="cuda")
        self.kernel.launch(
            self.horizon,
            (
                x, self.state, nan, self.out_w, self.velocity, self.mod[0, 1, 0], self.in_w,
                self.in_b, self.mod[0, 0, 0], self.mod.stride(0), self.frozen, mirror, self.scale,
                sums, amax, self.target, self.weight, self.clock, step, STEPS, self.horizon,
                1.0 / STEPS, int(self.guided),
            ),
            dependent=False,
        )  # fmt: skip
        torch.cuda.synchronize()
        return x, nan, mirror.view(self.dtype), sums, amax

    def expected(self, step):
        """New state, next x, next x times (1 + scale)."""
        H = self.horizon
        state, x = self.state[:H].double(), self.x[:H].double()
        if step >= 0:
            r = (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
            speed = (x * r * self.mod[step, 1, 0].double()) @ self.out_w.double().t()
            speed = speed + self.velocity[step].double()
            if self.guided:
                time, gain = self.clock[step].double()
                pull = self.target[:H].double() - (state - time * speed)
                speed = speed - gain * self.weight[:H, None].double() * pull
            state = torch.where(self.kept[:, None], state, state - speed / STEPS)
        following = state @ self.in_w.double() + self.in_b.double()
        entry = torch.where(self.kept, STEPS, step + 1)
        return state, following, following * self.mod[entry, 0, 0].double()


@pytest.mark.parametrize("width", [512, 1024])
@pytest.mark.parametrize(
    ("horizon", "frozen", "guided"),
    [(50, 0, False), (50, 5, True), (10, 3, False), (1, 0, True), (8, 8, False), (64, 1, False)],
)
@pytest.mark.parametrize("step", [-1, 0, 1, STEPS - 1])
@pytest.mark.parametrize("coded", [False, True])
def test_it_matches_fp64(width, horizon, frozen, guided, step, coded):
    case = Case(width, horizon, frozen, guided, coded)
    x, state, mirror, sums, amax = case.run(step)
    new, following, scaled = case.expected(step)
    assert error(state[:horizon], new) < 1e-5
    assert torch.isnan(state[horizon:]).all()
    again = case.run(step)
    assert torch.equal(again[1][:horizon], state[:horizon])
    if step == STEPS - 1:  # the last one leaves nothing for a layer behind
        assert torch.equal(x[:horizon], case.x[:horizon])
        assert (mirror.view(torch.uint8) == 0xFF).all()
        return
    assert error(x[:horizon], following) < 1e-5
    assert error(sums[:, :horizon].sum(0), following.square().sum(-1)) < 1e-5
    got = packing.from_image(mirror)
    want = (scaled / 0.25).clamp(-448, 448) if coded else scaled  # bf16 needs no scale
    want = want.float().to(case.dtype)
    assert error(got[:horizon].float(), want.double()) < 2e-2  # rounded the other way now and then
    assert error(amax, scaled.abs().max()) < 1e-4
    for kept in (x[horizon:], got[horizon:].float(), sums[:, horizon:]):
        assert torch.isnan(kept).all()


def test_sizes_it_does_not_take():
    assert unsupported(FULL) is None
    wide = dataclasses.replace(FULL, expert=dataclasses.replace(FULL.expert, width=768))
    assert "768" in unsupported(wide)
    short = dataclasses.replace(FULL, action_dim=16)
    assert "16 values" in unsupported(short)
