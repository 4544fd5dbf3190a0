"""Images of the simulated world without a display.

Three renderers, tried in this order unless one is asked for (argument, or the environment
variable MUJOCO_GL): "egl" (OpenGL on a GPU or Mesa), "osmesa" (OpenGL in software), "ray"
(MuJoCo's own ray casting at low resolution with flat shading: no OpenGL at all, coarse images).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from pi05_ros.errors import InvalidValueError, Pi05Error

# Importing mujoco looks for OpenGL, and fails where MUJOCO_GL names a library that is missing or a
# renderer that only we have. OpenGL is opened below, and an error says what is missing.
_asked = os.environ.get("MUJOCO_GL")
os.environ["MUJOCO_GL"] = "disable"
try:
    import mujoco
finally:
    if _asked is None:
        del os.environ["MUJOCO_GL"]
    else:
        os.environ["MUJOCO_GL"] = _asked

BACKENDS = ("egl", "osmesa", "ray")
RENDER_SIZE = 224
"""Width and height of the images that the policy of the arm is trained and run with."""
RAY_WIDTH = 64
"""Widest image that is really cast by "ray"; larger ones are enlarged from it."""

_PACKAGES = {"egl": "apt-get install -y libegl1", "osmesa": "apt-get install -y libosmesa6"}


class RenderError(Pi05Error, ValueError):
    """The renderer that was asked for does not exist or does not work on this machine."""


class Renderer(Protocol):
    """Draws one camera of a model."""

    backend: str
    note: str

    def render(self, data: Any, camera: str, width: int, height: int) -> np.ndarray:
        """RGB image, uint8 ``[height, width, 3]``."""

    def close(self) -> None:
        """Free the GL context."""


class GlRenderer:
    """OpenGL offscreen renderer on one GL context; use it from one thread at a time."""

    def __init__(self, model: Any, backend: str) -> None:
        self.backend = backend
        self.note = ""
        self._model = model
        self._width = int(model.vis.global_.offwidth)
        self._height = int(model.vis.global_.offheight)
        module = importlib.import_module(f"mujoco.{backend}")
        self._gl = module.GLContext(self._width, self._height)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._scene = mujoco.MjvScene(model=model, maxgeom=200)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW.value] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION.value] = 0
        self._option = mujoco.MjvOption()
        self._perturb = mujoco.MjvPerturb()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED.value

    def render(self, data: Any, camera: str, width: int, height: int) -> np.ndarray:
        """RGB image, uint8 ``[height, width, 3]``."""
        if not (0 < width <= self._width and 0 < height <= self._height):
            raise InvalidValueError(
                f"image of {width}x{height}: up to {self._width}x{self._height} is possible"
            )
        self._gl.make_current()
        self._camera.fixedcamid = camera_id(self._model, camera)
        mujoco.mjv_updateScene(
            self._model,
            data,
            self._option,
            self._perturb,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL.value,
            self._scene,
        )
        rect = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(rect, self._scene, self._context)
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(pixels, None, rect, self._context)
        return np.ascontiguousarray(pixels[::-1])

    def close(self) -> None:
        """Free the GL context."""
        self._gl.make_current()
        self._context.free()
        self._gl.free()


class RayRenderer:
    """Image by casting one ray per pixel of a coarse grid; needs no OpenGL.

    Color = geom color times (ambient + headlight + one directional light), like the GL
    renderers' diffuse shading, without antialiasing.
    """

    backend = "ray"

    def __init__(self, model: Any, note: str = "") -> None:
        self.note = note
        self._model = model

    def render(self, data: Any, camera: str, width: int, height: int) -> np.ndarray:
        """RGB image, uint8 ``[height, width, 3]``."""
        model = self._model
        factor = max(1, -(-width // RAY_WIDTH))
        w, h = -(-width // factor), -(-height // factor)
        index = camera_id(model, camera)
        half = np.tan(np.deg2rad(model.cam_fovy[index]) / 2)
        ys = (1 - (2 * np.arange(h) + 1) / h) * half
        xs = ((2 * np.arange(w) + 1) / w - 1) * half * width / height
        local = np.stack(np.broadcast_arrays(xs[None, :], ys[:, None], -1.0), axis=-1)
        rotation = data.cam_xmat[index].reshape(3, 3)
        rays = local.reshape(-1, 3) @ rotation.T
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        n = rays.shape[0]
        geom = np.full(n, -1, dtype=np.int32)
        distance = np.empty(n)
        normal = np.zeros(3 * n)
        mujoco.mj_multiRay(
            model,
            data,
            data.cam_xpos[index].copy(),
            rays.reshape(-1).copy(),
            None,
            1,
            -1,
            geom,
            distance,
            normal,
            n,
            10.0,
        )
        normals = normal.reshape(n, 3)
        facing = np.abs(np.sum(normals * rays, axis=1))
        sun = np.clip(-normals @ model.light_dir[0] / np.linalg.norm(model.light_dir[0]), 0, 1)
        head = model.vis.headlight
        light = head.ambient[0] + head.diffuse[0] * facing + model.light_diffuse[0][0] * sun
        color = np.where((geom >= 0)[:, None], model.geom_rgba[geom, :3] * light[:, None], 0.0)
        coarse = np.round(np.clip(color, 0, 1) * 255).astype(np.uint8).reshape(h, w, 3)
        return np.ascontiguousarray(
            coarse.repeat(factor, axis=0).repeat(factor, axis=1)[:height, :width]
        )

    def close(self) -> None:
        """Nothing to free."""


def camera_id(model: Any, name: str) -> int:
    """Index of a camera of the model; ValueError names the cameras there are."""
    index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA.value, name)
    if index < 0:
        names = [model.camera(i).name for i in range(model.ncam)]
        raise InvalidValueError(f"no camera {name!r}; the model has {', '.join(names)}")
    return int(index)


def make_renderer(model: Any, backend: str | None = None) -> Renderer:
    """First renderer that works here; its ``backend`` and ``note`` say which and why.

    Args:
        model: mujoco.MjModel.
        backend: one of `BACKENDS`; None takes MUJOCO_GL, else tries all of them in order.

    Raises:
        RenderError: unknown name, or the one asked for does not work here (with the package that
            brings it).

    """
    variable = os.environ.get("MUJOCO_GL", "").strip().lower()  # MuJoCo reads it so too
    asked = backend or variable
    if asked and asked not in BACKENDS:
        where = "renderer" if backend else "environment variable MUJOCO_GL:"
        raise RenderError(f"{where} {asked!r}; accepted: {', '.join(BACKENDS)}")
    failures: list[str] = []
    for name in [asked] if asked else BACKENDS:
        if name == "ray":
            note = f"OpenGL is missing, coarse images ({'; '.join(failures)})" if failures else ""
            return RayRenderer(model, note)
        try:
            with _leaving_no_trace():
                return GlRenderer(model, name)
        except Exception as error:  # PyOpenGL raises whatever the missing library leads to
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            failures.append(f"{name}: {reason}; try: {_PACKAGES[name]}")
    raise RenderError(f"the renderer asked for does not work here ({'; '.join(failures)})")


@contextlib.contextmanager
def _leaving_no_trace() -> Iterator[None]:
    """Undo what a failed import of OpenGL leaves behind: PyOpenGL decides once per process."""
    platform, modules = os.environ.get("PYOPENGL_PLATFORM"), set(sys.modules)
    try:
        yield
    except Exception:
        if platform is None:
            os.environ.pop("PYOPENGL_PLATFORM", None)
        for name in set(sys.modules) - modules:
            if name.partition(".")[0] in ("OpenGL", "mujoco"):
                del sys.modules[name]
        raise
