"""From a decoded frame to an observation, in openpi's keys of a robot or in our own form.

openpi's form is what its robots' clients send: flat keys such as ``observation/image``, values in
openpi's units; see `OPENPI_KEYS`. Our own form has ``images`` (camera role -> array, or
``{"jpeg": bytes}``) and ``state`` in the units of the robot profile, and may name ``stamp_ns``
and ``age_s``. Both may have the control keys of `CONTROL`.
"""

from __future__ import annotations

import difflib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pi05_ros.policy.interface import MAX_SEED, Observation
from pi05_ros.policy.remote.errors import WireError
from pi05_ros.policy.robots.openpi_keys import OPENPI_KEYS, OpenpiKeys
from pi05_ros.policy.robots.profile import RobotProfile

CONTROL = (
    "request_id", "seed", "denoise_steps", "deadline_ms", "reset",
    "chunk_mode", "kv_reuse", "steps_since", "delay_steps",
)  # fmt: skip
OWN = ("images", "state", "prompt", "stamp_ns", "age_s")
MAX_PROMPT = 4096
MAX_PIXELS = 4096 * 4096
MAX_DENOISE_STEPS = 1000
MAX_STEPS = 100_000
"""Control steps between two observations or of a delay; any chunk is shorter."""


@dataclass(frozen=True)
class Request:
    """One request of a session.

    Attributes:
        observation: None if only `reset` was asked for.
        openpi: the observation came in openpi's keys and units, and so must the answer be.
        request_id: returned with the answer; None if the client gave none.
        seed, denoise_steps: None takes the session's and the policy's own.
        deadline_ms: time the answer is worth waiting for, from arrival; None takes the server's.
        reset: forget what chunks continue and start the session's seeds over, first.
        chunk_mode, kv_reuse: how the chunk continues the session's one before, as the node's
            parameters of these names; None takes the server's.
        steps_since: control steps from the observation of the session's last answer to this one;
            None where stamps tell.
        delay_steps: control steps from this observation until the chunk can be used; None leaves
            it to the server, from ``age_s`` and its own times.

    """

    observation: Observation | None
    openpi: bool
    request_id: int | str | None = None
    seed: int | None = None
    denoise_steps: int | None = None
    deadline_ms: float | None = None
    reset: bool = False
    chunk_mode: str | None = None
    kv_reuse: str | None = None
    steps_since: float | None = None
    delay_steps: int | None = None


def parse_request(value: Any, robot: RobotProfile) -> Request:
    """Check and sort what a frame holds.

    Raises:
        WireError: not a map, an unknown key, or a value that is not accepted.

    """
    if not isinstance(value, dict):
        raise WireError(f"a request is a map, not {type(value).__name__}")
    found = _text_keys(value)
    control = {key: found.pop(key) for key in CONTROL if key in found}
    if not control:
        return Request(*_observation(found, robot))
    reset = control.get("reset", False)
    if not isinstance(reset, (bool, np.bool_)):
        raise WireError(f"reset is {reset!r:.40}; accepted: true or false")
    if not found and reset:
        observation, openpi = None, False
    else:
        observation, openpi = _observation(found, robot)
    return Request(
        observation,
        openpi,
        _request_id(control.get("request_id")),
        _integer("seed", control.get("seed"), 0, MAX_SEED),
        _integer("denoise_steps", control.get("denoise_steps"), 1, MAX_DENOISE_STEPS),
        _number("deadline_ms", control.get("deadline_ms"), 0.0, 3.6e6),
        bool(reset),
        _word("chunk_mode", control.get("chunk_mode")),
        _word("kv_reuse", _as_word(control.get("kv_reuse"))),
        _number("steps_since", control.get("steps_since"), 0.0, MAX_STEPS),
        _integer("delay_steps", control.get("delay_steps"), 0, MAX_STEPS),
    )


def _observation(found: dict[str, Any], robot: RobotProfile) -> tuple[Observation, bool]:
    keys = OPENPI_KEYS.get(robot.name)
    images = found.get("images")
    own = isinstance(images, dict) and _text_keys(images).keys() <= set(robot.camera_roles)
    if own or keys is None:
        return _own(found, robot), False
    return _openpi(found, keys, robot), True


def _own(found: dict[str, Any], robot: RobotProfile) -> Observation:
    _only(found, OWN)
    images = found.get("images")
    if not isinstance(images, dict):
        raise WireError(
            f"images is {type(images).__name__}; accepted: a map of camera role "
            f"({', '.join(robot.camera_roles)}) to an image"
        )
    roles = _text_keys(images)
    for role in roles:
        if role not in robot.camera_roles:
            raise WireError(
                f"camera role {role!r:.60} is not known; accepted: {', '.join(robot.camera_roles)}"
            )
    return Observation(
        images={role: _image(f"images.{role}", image) for role, image in roles.items()},
        state=_state("state", found.get("state"), len(robot.state_names)),
        prompt=_prompt(found.get("prompt")),
        stamp_ns=_integer("stamp_ns", found.get("stamp_ns"), 0, MAX_SEED) or 0,
        age_s=_number("age_s", found.get("age_s"), 0.0, 3600.0) or 0.0,
    )


def _openpi(found: dict[str, Any], keys: OpenpiKeys, robot: RobotProfile) -> Observation:
    for folder in {key.partition("/")[0] for key in keys.images.values() if "/" in key}:
        inner = found.get(folder)
        if isinstance(inner, dict):
            found |= {f"{folder}/{_text_key(name)}": image for name, image in inner.items()}
            del found[folder]
    known = {role: key for role, key in keys.images.items() if role in robot.camera_roles}
    _only(found, (*known.values(), *keys.state, "prompt"))
    images = {
        role: _image(key, found[key]) for role, key in known.items() if found.get(key) is not None
    }
    parts = [_state(key, found.get(key), None) for key in keys.state]
    state = np.concatenate(parts)
    if len(state) != len(robot.state_names):
        raise WireError(
            f"{' and '.join(keys.state)} have {len(state)} values; accepted: "
            f"{len(robot.state_names)} ({', '.join(robot.state_names)})"
        )
    return Observation(images=images, state=state, prompt=_prompt(found.get("prompt")))


def _only(found: Mapping[str, Any], accepted: tuple[str, ...]) -> None:
    for key in found:
        if key not in accepted:
            close = difflib.get_close_matches(key, (*accepted, *CONTROL), 1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise WireError(
                f"key {key!r:.80} is not known{hint}; accepted: {', '.join((*accepted, *CONTROL))}"
            )


def _image(where: str, value: Any) -> np.ndarray:
    if isinstance(value, dict):
        value = _text_keys(value)
        if set(value) != {"jpeg"} or not isinstance(value["jpeg"], (bytes, memoryview)):
            raise WireError(f'{where} is a map; accepted: an array, or {{"jpeg": bytes}}')
        return _jpeg(where, value["jpeg"])
    if not isinstance(value, np.ndarray):
        raise WireError(f"{where} is {type(value).__name__}; accepted: an array [H, W, 3]")
    if value.ndim != 3 or 3 not in (value.shape[0], value.shape[2]) or not value.size:
        raise WireError(f"{where} has shape {list(value.shape)}; accepted: [H, W, 3] or [3, H, W]")
    if value.dtype != np.uint8 and value.dtype.kind != "f":
        raise WireError(f"{where} is {value.dtype}; accepted: uint8, or floats in [0, 1]")
    if value.size > 3 * MAX_PIXELS:
        raise WireError(f"{where} has {value.size // 3} pixels; accepted: up to {MAX_PIXELS}")
    return value


def _jpeg(where: str, data: bytes | memoryview) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise WireError(f"{where} has more than {MAX_PIXELS} pixels")
            return np.asarray(image.convert("RGB"))
    except WireError:
        raise
    except Exception as error:  # Pillow raises several kinds for damaged data
        raise WireError(f"{where} is no JPEG that can be decoded: {error!s:.120}") from error


def _state(where: str, value: Any, size: int | None) -> np.ndarray:
    try:
        state = value if isinstance(value, np.ndarray) else np.atleast_1d(np.asarray(value))
        state = state if state.ndim else state[None]
    except ValueError:
        state = np.asarray(None)
    if value is None or state.dtype.kind not in "fiu" or state.ndim != 1:
        raise WireError(
            f"{where} is {_describe(value)}; accepted: {size if size else 'a list of'} numbers"
        )
    if size is not None and len(state) != size:
        raise WireError(f"{where} has {len(state)} values; accepted: {size}")
    if not all(map(math.isfinite, state.tolist())):  # a third of numpy's time for few numbers
        raise WireError(f"{where} holds a value that is not finite")
    return state


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return "missing" if value is None else type(value).__name__


def _prompt(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > MAX_PROMPT:
        raise WireError(f"prompt is {_describe(value)}; accepted: up to {MAX_PROMPT} characters")
    return value or None


def _as_word(value: Any) -> Any:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.bool_))
    return str(int(value)) if whole else value


def _word(where: str, value: Any) -> str | None:
    if value is None or (isinstance(value, str) and 0 < len(value) <= 100):
        return value
    raise WireError(f"{where} is {value!r:.40}; accepted: a word")


def _request_id(value: Any) -> int | str | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, str) and len(value) <= 128:
        return value
    raise WireError("request_id: accepted: a whole number or a text of up to 128 characters")


def _integer(where: str, value: Any, low: int, high: int) -> int | None:
    if value is None:
        return None
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not low <= value <= high:
        raise WireError(f"{where} is {value!r:.40}; accepted: a whole number, {low} to {high}")
    return int(value)


def _number(where: str, value: Any, low: float, high: float) -> float | None:
    if value is None:
        return None
    number = isinstance(value, (int, float, np.integer, np.floating))
    if not number or isinstance(value, bool) or not math.isfinite(value):
        raise WireError(f"{where} is {value!r:.40}; accepted: a number, {low:g} to {high:g}")
    if not low <= value <= high:
        raise WireError(f"{where} is {value:g}; accepted: {low:g} to {high:g}")
    return float(value)


def _text_keys(found: dict[Any, Any]) -> dict[str, Any]:
    """The same map, a new one, with keys as text."""
    return {key if type(key) is str else _text_key(key): part for key, part in found.items()}


def _text_key(key: Any) -> str:
    if isinstance(key, bytes):
        try:
            key = key.decode()
        except UnicodeDecodeError:
            key = None
    if not isinstance(key, str):
        raise WireError("a key is no text; accepted: UTF-8 text")
    return key
