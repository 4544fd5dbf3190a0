"""Runs cases in a process of its own: lines "TARGET SEED" in, a JSON line with the outcome out."""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[2])]

import torch  # noqa: F401  # a CUDA build maps gigabytes, which no case takes
from hostile_faults import settle
from hostile_targets import TARGETS, WrongError

from pi05_ros.errors import Pi05Error

MEMORY = 2 * 2**30
"""Bytes a case may take beyond what the process has when it begins."""


def outcome(name: str, seed: int) -> tuple[str, str]:
    """answered, refused, crashed or wrong, and the text of the error."""
    rng = random.Random(f"{name} {seed}")
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        try:
            TARGETS[name](rng, Path(folder))
        except WrongError as error:
            return "wrong", str(error)
        except (Pi05Error, OSError) as error:
            text = str(error)
            # Errors are printed and published: every one must be text that can be.
            text.encode("utf-8")
            return ("refused", text) if text.strip() else ("wrong", "an error without a text")
        except BaseException:
            return "crashed", traceback.format_exc()[-1500:]
        finally:
            settle()  # before the folder is removed
    return "answered", ""


def main() -> None:
    warnings.simplefilter("ignore")
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print is no answer
    for line in sys.stdin:
        name, seed = line.split()
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        size = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
        try:
            result, text = outcome(name, int(seed))
        except BaseException:  # an error whose text cannot be printed, a folder that stays
            result, text = "crashed", traceback.format_exc()[-1500:]
        out.write(json.dumps({"result": result, "text": text}) + "\n")


if __name__ == "__main__":
    main()
