"""The stand-in against the real hf-libero, and a short episode in it, where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

STAND_IN = Path(__file__).parent / "libero_stand_in" / "libero" / "libero"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libero") is None, reason="hf-libero is not installed"
)


def stand_in(part: str):
    name = f"libero_stand_in_{part}"
    spec = importlib.util.spec_from_file_location(name, STAND_IN / part / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    from pi05_ros.sim.libero import benchmark

    benchmark.prepare(tmp_path_factory.mktemp("libero"))
    return benchmark.Libero()


def test_the_stand_in_has_the_signatures_of_the_original(real):
    benchmark = importlib.import_module("libero.libero.benchmark")
    envs = importlib.import_module("libero.libero.envs")
    fake = stand_in("benchmark")
    assert fake.Task._fields == benchmark.Task._fields
    theirs = benchmark.get_benchmark_dict()["libero_spatial"]
    ours = fake.get_benchmark_dict()["libero_spatial"]
    for name in ("__init__", "get_task", "get_task_init_states"):
        given = inspect.signature(getattr(theirs, name))
        assert inspect.signature(getattr(ours, name)) == given, name
    ours = stand_in("envs").OffScreenRenderEnv
    for name in ("__init__", "seed", "reset", "set_init_state", "step", "close"):
        given = inspect.signature(getattr(envs.OffScreenRenderEnv, name))
        assert inspect.signature(getattr(ours, name)) == given, name


def test_suites_have_their_tasks_and_initial_states(real):
    from pi05_ros.sim.libero import benchmark

    sizes = {name: len(real.tasks(name)) for name in benchmark.SUITES}
    assert sizes == {name: 90 if name == "libero_90" else 10 for name in benchmark.SUITES}
    for name in benchmark.SUITES:
        states = real.initial_states(real.tasks(name)[0])
        assert len(states) == benchmark.DEFAULT_TRIALS


def test_a_short_episode_in_the_simulator(tmp_path):
    """In a process of its own: its meshes may be missing, and OpenGL stays with a process."""
    words = "eval libero --checkpoint random:tiny --device cpu --tasks 0 --trials 1 --steps 1"
    command = [sys.executable, "-m", "pi05_ros.cli.main", *words.split()]
    done = subprocess.run(
        [*command, "--max-steps", "6", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if "meshes and textures are not here" in done.stderr:
        pytest.skip("LIBERO's meshes are not installed")
    assert done.returncode == 0, done.stderr
    assert "| libero_spatial | same | 1 | 0.000 |" in done.stdout
