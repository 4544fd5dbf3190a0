"""The LIBERO benchmark (package hf-libero, imported as ``libero``) as openpi's client drives it.

Conventions of openpi's examples/libero: both cameras at 256 x 256, turned by 180 degrees; state
is end-effector position, axis-angle and two finger positions; ten steps of a no-op with the
gripper opening before the policy looks; actions are handed over as they are (gripper -1 opens,
1 closes). Nothing of LIBERO is imported before it is asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pi05_ros.errors import InvalidValueError, Pi05Error
from pi05_ros.policy import Observation, Policy
from pi05_ros.strict_yaml import dump_yaml

SUITES = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
"""Suite -> control steps of an episode; a little above its longest demonstration (openpi)."""
CONTROL_HZ = 20
PICTURE = 256
SETTLING_STEPS = 10
"""Steps before the policy looks: objects are dropped onto the table and come to rest."""
DEFAULT_SEED = 7
"""openpi's."""
DEFAULT_REPLAN = 5
DEFAULT_TRIALS = 50
"""Initial states that LIBERO has for each task."""
ACTIONS, STATES = 7, 8
NO_OP = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)
CAMERAS = {"base": "agentview_image", "wrist": "robot0_eye_in_hand_image"}
"""Role -> key of LIBERO's observation."""
RENDERERS = ("egl", "osmesa")
INSTALL = "pip install hf-libero"
_PATHS = {
    "benchmark_root": ".",
    "bddl_files": "bddl_files",
    "init_states": "init_files",
    "datasets": "../datasets",
    "assets": "assets",
}


class LiberoError(Pi05Error, ValueError):
    """LIBERO is missing or incomplete, or something was asked for that it does not have."""


@dataclass(frozen=True)
class LiberoTask:
    """One task of a suite; ``index`` is LIBERO's own number of it."""

    suite: str
    index: int
    name: str
    language: str

    @property
    def label(self) -> str:
        """Unique over all suites, for tables."""
        return f"{self.suite}/{self.index}: {self.language}"


def installed() -> Path:
    """Directory of the package ``libero.libero``, found without importing it.

    Raises:
        LiberoError: it is not installed; with the command that installs it.

    """
    spec = importlib.util.find_spec("libero")
    for place in (spec.submodule_search_locations if spec else None) or ():
        root = Path(place) / "libero"
        if (root / "benchmark").is_dir():
            return root
    raise LiberoError(f"LIBERO is not installed; try: {INSTALL}")


def prepare(out: Path, renderer: str | None = None) -> None:
    """Set up this process, and those it starts, for importing LIBERO; call before `Libero`.

    LIBERO asks questions on the terminal when it has no config.yaml: one is written below
    ``out`` unless the user has one.

    Raises:
        LiberoError: it is not installed, or MuJoCo does not start with this renderer.
        ValueError: unknown renderer.

    """
    root = installed()
    if renderer is not None:
        if renderer not in RENDERERS:
            raise InvalidValueError(f"renderer {renderer!r}; accepted: {', '.join(RENDERERS)}")
        os.environ["MUJOCO_GL"] = renderer
    try:
        importlib.import_module("mujoco")  # looks for the OpenGL library that MUJOCO_GL names
    except Exception as error:  # PyOpenGL raises whatever the missing library leads to
        raise LiberoError(
            f"MuJoCo does not start with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')} ({error}); "
            "egl needs libegl1, osmesa needs libosmesa6"
        ) from error
    folder = Path(os.environ.get("LIBERO_CONFIG_PATH", Path.home() / ".libero"))
    if (folder / "config.yaml").is_file():
        return
    folder = (out / "libero_config").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: str((root / place).resolve()) for name, place in _PATHS.items()}
    (folder / "config.yaml").write_text(dump_yaml(paths), encoding="utf-8")
    os.environ["LIBERO_CONFIG_PATH"] = str(folder)


class Libero:
    """LIBERO's suites and environments; `prepare` must have been called in this process tree."""

    def __init__(self) -> None:
        installed()
        with _speaking_on_stderr():
            try:
                self._core = importlib.import_module("libero.libero")
                benchmark = importlib.import_module("libero.libero.benchmark")
            except ImportError as error:
                raise LiberoError(
                    f"LIBERO cannot be imported ({error}); try: {INSTALL}"
                ) from error
        self._classes: Mapping[str, Any] = benchmark.get_benchmark_dict()
        self._suites: dict[str, Any] = {}

    def tasks(self, suite: str) -> list[LiberoTask]:
        """All tasks of a suite, in LIBERO's order.

        Raises:
            LiberoError: no such suite.

        """
        loaded = self._suite(suite)
        given = [loaded.get_task(index) for index in range(loaded.n_tasks)]
        return [LiberoTask(suite, i, str(t.name), str(t.language)) for i, t in enumerate(given)]

    def initial_states(self, task: LiberoTask) -> np.ndarray:
        """Flattened simulator states ``[trials, n]`` that episodes start from."""
        return np.asarray(self._suite(task.suite).get_task_init_states(task.index))

    def environment(self, task: LiberoTask) -> Any:
        """LIBERO's OffScreenRenderEnv of a task.

        Raises:
            LiberoError: its meshes and textures are missing, or it cannot render here.

        """
        given = self._suite(task.suite).get_task(task.index)
        folder = Path(self._core.get_libero_path("bddl_files"))
        bddl = folder / given.problem_folder / given.bddl_file
        if not bddl.is_file():
            raise LiberoError(f"{bddl} is missing; LIBERO's config.yaml names the folder")
        with _speaking_on_stderr():
            self._check_assets()
            try:
                envs = importlib.import_module("libero.libero.envs")
                return envs.OffScreenRenderEnv(
                    bddl_file_name=str(bddl), camera_heights=PICTURE, camera_widths=PICTURE
                )
            except Exception as error:  # MuJoCo, PyOpenGL and robosuite raise what they like
                reason = str(error).strip() or type(error).__name__
                raise LiberoError(
                    f"LIBERO cannot open {task.label} with MUJOCO_GL="
                    f"{os.environ.get('MUJOCO_GL') or 'egl'} ({reason}); if it is about OpenGL, "
                    "try --renderer osmesa"
                ) from error

    def _suite(self, name: str) -> Any:
        if name not in SUITES or name not in self._classes:
            raise LiberoError(f"suite {name!r}; accepted: {', '.join(SUITES)}")
        if name not in self._suites:
            with _speaking_on_stderr():
                self._suites[name] = self._classes[name]()
        return self._suites[name]

    def _check_assets(self) -> None:
        """Meshes and textures are not in the wheel; LIBERO fetches them when first asked."""
        where = getattr(self._core, "get_assets_path", None)
        folder = Path(where() if where else self._core.get_libero_path("assets"))
        if not folder.is_dir():
            raise LiberoError(
                "LIBERO's meshes and textures are not here and could not be downloaded from the "
                f"Hugging Face Hub; they belong into {folder}"
            )


def choose(tasks: Iterable[LiberoTask], text: str) -> list[LiberoTask]:
    """Tasks by "all", or by numbers and names separated by commas.

    Raises:
        LiberoError: something that is neither.

    """
    every = list(tasks)
    if text == "all":
        return every
    chosen = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        found = [task for task in every if word in (str(task.index), task.name)]
        if not found:
            raise LiberoError(
                f"task {word!r}; accepted: all, names, or numbers from 0 to {len(every) - 1}"
            )
        chosen += found
    return chosen


def check_policy(policy: Policy) -> None:
    """Refuse a policy that does not speak LIBERO's language.

    Raises:
        LiberoError: number of states or actions, cameras, or images that would be turned twice.

    """
    robot = policy.robot
    sizes = (len(robot.state_names), len(robot.action_names))
    if sizes != (STATES, ACTIONS):
        raise LiberoError(
            f"robot {robot.name!r} has {sizes[0]} state values and {sizes[1]} actions; LIBERO "
            f"has {STATES} and {ACTIONS}"
        )
    unknown = [role for role in robot.required_roles if role not in CAMERAS]
    if unknown:
        raise LiberoError(
            f"robot {robot.name!r} needs the camera {unknown[0]!r}; LIBERO has "
            f"{', '.join(CAMERAS)}"
        )
    if any(camera.rotate_180 for camera in robot.cameras):
        raise LiberoError(
            f"robot {robot.name!r} turns images by 180 degrees, and this client does so too; "
            "remove rotate_180"
        )


def pictures(raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Role -> image uint8 ``[256, 256, 3]``, turned by 180 degrees as in the training data."""
    return {
        role: np.ascontiguousarray(np.asarray(raw[key])[::-1, ::-1])
        for role, key in CAMERAS.items()
    }


def observation(raw: Mapping[str, Any], prompt: str) -> Observation:
    """LIBERO's observation as the policy takes it.

    The images keep their 256 pixels: the policy fits them into the model's square the way its
    checkpoint's family does, which for openpi is what its client does (224, with padding).
    """
    state = libero_state(
        np.asarray(raw["robot0_eef_pos"], dtype=np.float64),
        np.asarray(raw["robot0_eef_quat"], dtype=np.float64),
        np.asarray(raw["robot0_gripper_qpos"], dtype=np.float64),
    )
    return Observation(images=pictures(raw), state=state, prompt=prompt)


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """Rotation vector ``[3]`` in radians of a quaternion (x, y, z, w); zero for no rotation."""
    x, y, z, w = (float(v) for v in quaternion)
    w = min(1.0, max(-1.0, w))
    length = math.sqrt(1.0 - w * w)
    if math.isclose(length, 0.0):
        return np.zeros(3)
    return np.array([x, y, z]) * 2.0 * math.acos(w) / length


def libero_state(
    position: np.ndarray, quaternion: np.ndarray, gripper_qpos: np.ndarray
) -> np.ndarray:
    """State ``[8]``: end-effector position (m), axis-angle (rad), two finger positions (m)."""
    return np.concatenate([position, axis_angle(quaternion), gripper_qpos])


@contextlib.contextmanager
def _speaking_on_stderr() -> Iterator[None]:
    """LIBERO and robosuite print notices; results have standard output for themselves."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
