"""MuJoCo, imported without the look for OpenGL that it takes on import.

With MUJOCO_GL naming a library that is missing, or a renderer that only we have, ``import mujoco``
fails. `render` opens OpenGL itself and says what is missing.
"""

from __future__ import annotations

import os

_asked = os.environ.get("MUJOCO_GL")
os.environ["MUJOCO_GL"] = "disable"
try:
    import mujoco
finally:
    if _asked is None:
        del os.environ["MUJOCO_GL"]
    else:
        os.environ["MUJOCO_GL"] = _asked

__all__ = ["mujoco"]
