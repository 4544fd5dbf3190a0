"""The report that lets a set of engines be used: written after a check, required before a load."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from pi05_ros.backends.files import write_atomically
from pi05_ros.backends.identity import engine_key, machine_facts
from pi05_ros.backends.quantization.presets import preset
from pi05_ros.backends.tensorrt.engine_set import (
    HOW_TO,
    EngineSet,
    UnverifiedEngineError,
    plan_digests,
    read_mapping,
    require_machine,
)
from pi05_ros.backends.verification.inspector import (
    EngineFacts,
    quantized_products,
    read_layers,
)
from pi05_ros.backends.verification.verify import REPORT_SCHEMA, Report
from pi05_ros.small_files import MIB, read_text


def kernel_facts(engines: EngineSet, export: Path) -> dict[str, tuple[EngineFacts, int]]:
    """What the kernels of engines say: stage -> (facts, quantized products it must have).

    Raises:
        UnverifiedEngineError: a list of kernels is missing or damaged.

    """
    chosen = engines.document["flags"]["preset"]
    kind = preset(chosen).weights if chosen else "fp8"
    facts = {}
    for stage in engines.graphs:
        expected = quantized_products(str(export / f"{stage}.onnx"))
        layers = engines.folder / f"layers_{stage}.json"
        try:
            found = read_layers(read_text(layers, 256 * MIB), expected, kind)
        except ValueError as error:
            raise UnverifiedEngineError(f"{layers} cannot be read ({error}); {HOW_TO}") from None
        facts[stage] = (found, len(expected))
    return facts


def write_report(
    engines: EngineSet,
    report: Report,
    golden: str,
    plans: dict[str, str],
    device: torch.device,
    retry: str = "",
    *,
    dry_run: bool = False,
) -> Path:
    """Keep a check with the plans it was made with; returns the file.

    Args:
        engines: what was checked.
        report: the result.
        golden: hash of the observations.
        plans: `plan_digests` of what was loaded.
        device: the GPU they ran on.
        retry: why the engines are not what was asked for; empty if they are.
        dry_run: observations or ranges were made up.

    """
    content = {
        **report.as_dict(),
        "key": engine_key(engines.document),
        "plans": plans,
        "golden": golden,
        "machine": machine_facts(device),
        "retry": retry,
        "dry_run": dry_run,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    path = engines.folder / "check.json"
    write_atomically(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
    return path


def retry_of(engines: EngineSet) -> str:
    """Why these engines are not what the build was asked for; empty if they are."""
    return str(_report(engines).get("retry", ""))


def dry_run_of(engines: EngineSet) -> bool:
    """Whether the check was a dry run: it says nothing about a robot."""
    return bool(_report(engines).get("dry_run"))


def _report(engines: EngineSet) -> dict[str, Any]:
    """Content of check.json; empty if it cannot be read."""
    try:
        return read_mapping(engines.folder / "check.json", "report")
    except UnverifiedEngineError:
        return {}


def require_verified(engines: EngineSet, device: torch.device) -> dict[str, Any]:
    """Return the passing report of exactly these plans on this machine.

    Raises:
        UnverifiedEngineError: no report, a refusing one, one of other plans or another machine.

    """
    report = read_mapping(engines.folder / "check.json", "report; it was never checked here")
    if report.get("schema") != REPORT_SCHEMA:
        raise UnverifiedEngineError(
            f"the report is from another version of this package; {HOW_TO}"
        )
    plans = plan_digests(engines)
    if report.get("key") != engines.folder.name or report.get("plans") != plans:
        raise UnverifiedEngineError(f"the report is not about these plans; {HOW_TO}")
    if report.get("verdict") != "pass":
        bad = [f["item"] for f in _findings(report) if not f["ok"] and f["level"] == "refuse"]
        first = bad[0] if bad else "unknown"
        raise UnverifiedEngineError(
            f"the engines failed their check ({len(bad)} findings, the first: {first}); see "
            f"{engines.folder / 'check.md'}. Build them again with --optimization-level 2 or "
            "--precision fp16"
        )
    machine = report.get("machine")
    if not isinstance(machine, dict):
        raise UnverifiedEngineError(f"the report does not say where it was made; {HOW_TO}")
    require_machine(machine, device, "the engines were checked on")
    return report


def _findings(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What a report judged, as far as it can be read."""
    found = report.get("findings")
    listed = found if isinstance(found, list) else []
    return [f for f in listed if isinstance(f, dict) and {"item", "ok", "level"} <= f.keys()]
