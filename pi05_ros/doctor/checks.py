"""The result of one check, and how checks that may crash are run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Level(str, Enum):
    """How a check went.

    ok: works. info: a fact without judgment. missing: an optional part is absent. warn: works,
    but look at it. fail: the basic job (messages in, action chunks out) cannot run.
    """

    OK = "ok"
    INFO = "info"
    MISSING = "missing"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was looked at.
        level: how it went.
        detail: what was found.
        fix: the command or step that changes it, "" if nothing needs to change.

    """

    name: str
    level: Level
    detail: str
    fix: str = ""


def ask(code: str, timeout_s: float = 60.0) -> Any:
    """Run Python code in a process of its own and return the JSON it prints last.

    A native library that aborts or hangs takes only that process with it.

    Raises:
        RuntimeError: it failed; the text is its last line of output.

    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"no answer within {timeout_s:.0f} s") from None
    except OSError as error:
        raise RuntimeError(str(error)) from error
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        try:
            return json.loads(lines[-1])
        except ValueError:
            pass
    noise = done.stderr.strip().splitlines()
    reason = noise[-1].strip() if noise else f"ended with code {done.returncode}"
    raise RuntimeError(reason)


def guarded(name: str, check: Callable[[], list[Check]], required: bool = False) -> list[Check]:
    """Run a check; whatever it raises becomes a line of the report."""
    try:
        return check()
    except Exception as error:  # a failing check must not abort the others
        level = Level.FAIL if required else Level.WARN
        return [Check(name, level, f"the check itself failed: {type(error).__name__}: {error}")]
