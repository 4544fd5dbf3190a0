"""Read the list of kernels that a TensorRT builder prints for a finished engine.

With detailed profiling verbosity the builder logs every kernel at VERBOSE, so an engine can be
inspected on a machine that has no GPU to load it. The text is turned into the form of the engine
inspector's JSON.

Kernels are named after the operations fused into them, in order ("__myl_CastMulMeanAddSqrtDiv..."
ends where names get too long). What such a name says of its types is a deduction: a Cast changes
between half and single precision, so their number before an operation tells what that runs in.
"""

from __future__ import annotations

import re
from typing import Any

_FIELD = re.compile(r", [A-Z]\w*: ")
_OPERATION = re.compile(r"[A-Z][a-z0-9]*")
_COPIES = frozenset({"Cast", "Move", "Resh", "Tran", "Repl", "Slic", "Conc", "Copy"})
_TYPE_KEYS = ("Format/Datatype", "Datatype", "DataType")
FUSED_ATTENTION = ("mha", "fmha", "flash")


def kernels_in_log(text: str) -> list[dict[str, Any]]:
    """Kernels of lines "Name: ..., LayerType: ..., Inputs: [ {...}], ..."; empty if none."""
    return [_kernel(line) for line in text.splitlines() if line.startswith("Name: ")]


def _kernel(line: str) -> dict[str, Any]:
    found: dict[str, Any] = dict(_fields(line))
    for side in ("Inputs", "Constants", "Outputs"):
        if side in found:
            found[side] = [dict(_fields(part)) for part in _braced(found[side])]
    return found


def _fields(text: str) -> list[tuple[str, str]]:
    """Split "A: x, B: [ {C: y, D: z}], E: w" at its outermost commas."""
    parts, depth, start = [], 0, 0
    for index, char in enumerate(text):
        if char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        elif char == "," and depth == 0 and _FIELD.match(text, index):
            parts.append(text[start:index])
            start = index + 2
    parts.append(text[start:])
    pairs = [part.partition(": ") for part in parts]
    return [(key.strip(), value.strip()) for key, _, value in pairs]


def _braced(text: str) -> list[str]:
    """Contents of the outermost braces."""
    found, depth, start = [], 0, 0
    for index, char in enumerate(text):
        if char == "{":
            if depth == 0:
                start = index + 1
            depth += 1
        elif char == "}":
            depth -= 1
            if depth == 0:
                found.append(text[start:index].strip())
    return found


def operations(kernel: dict[str, Any]) -> list[str]:
    """Operations in the name of a fused kernel, in order; empty for a product."""
    name = str(kernel.get("Name", ""))
    if not name.startswith("__myl_"):
        return []
    return _OPERATION.findall(name.removeprefix("__myl_").partition("_")[0])


def is_fused_attention(kernel: dict[str, Any]) -> bool:
    """Whether both products of an attention and its softmax are one kernel."""
    name = f"{kernel.get('Name', '')} {kernel.get('TacticName', '')}".lower()
    return any(word in name for word in FUSED_ATTENTION)


def is_copy(kernel: dict[str, Any]) -> bool:
    """Whether a kernel only moves or converts values."""
    words = operations(kernel)
    kind = str(kernel.get("LayerType", "")).lower()
    return (bool(words) and _COPIES.issuperset(words)) or "reformat" in kind


def _precisions(kernel: dict[str, Any], side: str) -> set[str]:
    """Which of "half" and "single" the tensors of a side have, in the words of any release."""
    tensors = kernel.get(side)
    found = set()
    for tensor in tensors if isinstance(tensors, list) else []:
        if not isinstance(tensor, dict):
            continue
        word = " ".join(str(tensor.get(key, "")) for key in _TYPE_KEYS).lower()
        if "half" in word or "fp16" in word:
            found.add("half")
        elif "float" in word or "fp32" in word:
            found.add("single")
    return found


def half_island(kernel: dict[str, Any]) -> bool:
    """Whether a kernel computes a softmax or the statistics of a norm in half precision."""
    words = operations(kernel)
    inputs = _precisions(kernel, "Inputs")
    if "Maxr" in words and "Exp" in words:
        return _in_half(words, words.index("Maxr"), inputs)
    if "Mean" in words:
        place = words.index("Mean")
        back = words[place + 1 : place + 2] == ["Cast"]  # the mean is converted at once
        return back or _in_half(words, place, inputs)
    return False


def _in_half(words: list[str], place: int, inputs: set[str]) -> bool:
    casts = words[:place].count("Cast")
    if "half" in inputs:
        # Several half inputs may each have a Cast; only one right before the operation converts
        # what the others have made single.
        directly = words[place - 1 : place] == ["Cast"] and casts % 2 == 0
        return directly or (casts == 0 and "single" not in inputs)
    return inputs == {"single"} and casts % 2 == 1
