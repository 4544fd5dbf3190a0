"""The simulated arm: seeded resets, tracking, limits, images."""

from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest

from pi05_ros.sim.arm.kinematics import inverse
from pi05_ros.sim.arm.render import RenderError, make_renderer
from pi05_ros.sim.arm.world import AREA_X, AREA_Y, BLOCKS, CAMERAS, World


@pytest.fixture(scope="module")
def world():
    world = World()
    yield world
    world.close()


def test_reset_is_a_function_of_the_seed(world):
    world.reset(5)
    first = world.data.qpos.copy()
    world.step(np.append(inverse(np.array([0.3, 0, 0.2])), 1.0))
    world.reset(6)
    assert not np.allclose(world.data.qpos, first)
    world.reset(5)
    assert np.array_equal(world.data.qpos, first)
    for name in BLOCKS:
        x, y, z = world.block(name)
        assert AREA_X[0] <= x <= AREA_X[1]
        assert AREA_Y[0] <= y <= AREA_Y[1]
        assert z == pytest.approx(0.02)


def test_arm_reaches_the_tip_position_of_the_inverse_kinematics(world):
    world.reset(1)
    goal = np.array([0.3, 0.05, 0.12])
    for _ in range(40):
        world.step(np.append(inverse(goal), 0.5))
    assert np.allclose(world.tip, goal, atol=2e-3)
    assert world.joint_positions[6] == pytest.approx(0.5, abs=0.02)
    assert world.time == pytest.approx(2.0)


def test_targets_are_clipped_to_the_joint_limits_and_bad_ones_refused(world):
    world.reset(1)
    for _ in range(60):
        world.step(np.array([9.0, 0, 1.5, 0, 1.5, 0, 7.0]))
    assert (world.joint_positions <= world.upper + 0.02).all()
    assert world.targets[6] == pytest.approx(1.0)
    for bad in (np.zeros(6), np.full(7, np.nan)):
        with pytest.raises(ValueError, match="7 finite numbers"):
            world.step(bad)


@pytest.mark.parametrize("renderer", [None, "ray"])
def test_both_cameras_show_the_colored_blocks(renderer):
    world = World(renderer)
    world.reset(2)
    base = world.render("base", 224, 224).astype(int)
    assert base.shape == (224, 224, 3)
    for channel in range(3):
        others = [i for i in range(3) if i != channel]
        assert (base[..., channel] > base[..., others].max(axis=-1) + 60).sum() > 100
    assert world.render("wrist", 320, 240).std() > 10
    assert world.renderer.backend == (renderer or world.renderer.backend)
    world.close()


def test_renderer_names_are_checked(world):
    with pytest.raises(ValueError, match="egl, osmesa, ray"):
        make_renderer(world.model, "vulkan")
    with pytest.raises(ValueError, match=", ".join(CAMERAS)):
        world.render("ceiling")


def test_missing_gl_names_the_package_or_falls_back_to_rays(world, monkeypatch):
    def missing(model, backend):
        os.environ["PYOPENGL_PLATFORM"] = backend
        sys.modules["OpenGL.of_the_test"] = ModuleType("OpenGL.of_the_test")
        raise ImportError(f"no {backend} here")

    monkeypatch.setattr("pi05_ros.sim.arm.render.GlRenderer", missing)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)
    fallback = make_renderer(world.model)
    assert fallback.backend == "ray"
    assert "libegl1" in fallback.note
    assert "PYOPENGL_PLATFORM" not in os.environ  # else OSMesa has no chance after EGL
    assert "OpenGL.of_the_test" not in sys.modules
    with pytest.raises(RenderError, match="apt-get install -y libosmesa6"):
        make_renderer(world.model, "osmesa")


def test_the_environment_variable_chooses_as_in_mujoco(world, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", " RAY")
    assert make_renderer(world.model).backend == "ray"
    monkeypatch.setenv("MUJOCO_GL", "vulkan")
    with pytest.raises(RenderError, match="MUJOCO_GL: 'vulkan'; accepted: egl, osmesa, ray"):
        make_renderer(world.model)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("pi05_ros.cli.main eval --seeds 0:1 --out", 2),
        ("pi05_ros.sim.training.record", 2),
        ("pi05_ros.sim.arm.driver_node", 1),
    ],
)
def test_opengl_that_does_not_start_is_one_line(command, code, tmp_path):
    """PyOpenGL on another platform fails as a missing library does: while it is imported."""
    words = [*command.split(), *([str(tmp_path / "out")] if code == 2 else [])]
    done = subprocess.run(
        [sys.executable, "-m", *words],
        env={**os.environ, "MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "egl"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "apt-get install -y libosmesa6" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
