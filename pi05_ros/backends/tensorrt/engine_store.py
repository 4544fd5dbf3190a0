"""Build engines, keep them with their proof, and hand out only proven ones."""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pi05_ros.backends.cache import private_folder, require_private
from pi05_ros.backends.engine import Precision
from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.export.export import (
    DTYPES,
    read_export,
    stage_precision,
    verify_export,
)
from pi05_ros.backends.files import (
    model_folder,
    sha256_file,
    whole_folder,
    write_atomically,
)
from pi05_ros.backends.identity import (
    KEY_SCHEMA,
    engine_key,
    key_document,
    machine_facts,
)
from pi05_ros.backends.quantization.presets import preset
from pi05_ros.backends.staged.shapes import StageShapes, graphs_of, stage_spec
from pi05_ros.backends.tensorrt.binding import on_device, require_tensorrt
from pi05_ros.backends.tensorrt.preflight import require_room
from pi05_ros.backends.verification.verify import REPORT_SCHEMA, Report
from pi05_ros.small_files import MIB, FileError, MissingFileError, read_bytes, read_json

if TYPE_CHECKING:
    from pi05_ros.backends.tensorrt.compile import BuildFlags
    from pi05_ros.backends.tensorrt.runtime import TrtRunner

log = logging.getLogger(__name__)

HOW_TO = "run: pi05 build (it builds, checks and keeps the report)"


class UnprovenEngineError(BackendError):
    """An engine without a passing report for exactly this checkpoint, machine and build."""


@dataclass(frozen=True)
class EngineSet:
    """The engines of one build.

    Attributes:
        folder: where the plans lie; its name is the engine key.
        document: the key document.

    """

    folder: Path
    document: dict[str, Any]

    @property
    def shapes(self) -> StageShapes:
        """Static shapes of the engines."""
        return StageShapes(**self.document["shapes"])

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of the plans."""
        return graphs_of(self.document["flags"]["layout"], self.shapes.depth)

    @property
    def precision(self) -> Precision:
        """What each stage runs in."""
        return Precision(**self.document["flags"]["precision"])


def build_engines(
    export: Path,
    flags: BuildFlags,
    device: torch.device,
    *,
    root: Path | None = None,
    progress: Callable[[str, str, int, int], None] | None = None,
) -> EngineSet:
    """Compile the three stages of an export for this machine.

    Args:
        export: folder with ``export.json``.
        flags: build flags.
        device: the GPU.
        root: cache root.
        progress: called with (stage, phase, step, steps).

    Returns:
        The engines, all of them; if one fails nothing is kept. They have no report yet, so
        nothing will load them for a robot.

    Raises:
        BackendError: TensorRT missing or unable, graphs altered, no room.

    """
    version = require_tensorrt()
    from pi05_ros.backends.tensorrt.compile import compile_plan, trtexec_line
    from pi05_ros.backends.tensorrt.runtime import PlanFile

    source = read_export(export)
    verify_export(export, source)
    document = key_document(
        graph_hash=source["graph_hash"],
        weights=source["weights"],
        shapes=source["shapes"],
        tensorrt=version,
        machine=machine_facts(device),
        flags={
            **flags.as_dict(),
            "activation": source["activation"],
            "preset": source["preset"],
            "precision": stage_precision(source),
            "layout": source["layout"],
        },
    )
    key = engine_key(document)
    base = private_folder(model_folder(source["weights"], root))
    folder = base / "engines" / key
    if folder.exists():
        require_private(folder)
    require_room(export, source, base, device)
    cache_path = base / "timing.cache"
    lines = [f"engine key {key}", json.dumps(document, indent=1, sort_keys=True)]
    plans: dict[str, str] = {}
    with whole_folder(folder, "key.json", mode=0o700) as part:
        for stage in graphs_of(source["layout"], source["shapes"]["depth"]):
            onnx, target = export / f"{stage}.onnx", part / f"{stage}.plan"
            lines.append(trtexec_line(onnx, folder / target.name, flags))
            log.info("building %s; the same by hand: %s", stage, lines[-1])
            report = None if progress is None else functools.partial(progress, stage)
            timing = read_bytes(cache_path, 256 * MIB) if cache_path.is_file() else b""
            with on_device(device):
                plan = compile_plan(onnx, flags, timing_cache=timing, progress=report)
            write_atomically(target, plan.data)
            if plan.timing_cache:
                write_atomically(cache_path, plan.timing_cache)
            size = target.stat().st_size
            lines += [f"{stage}: {size} bytes in {plan.seconds:.1f} s", *plan.messages]
            with on_device(device):
                layers = PlanFile(target).layers_json()
            write_atomically(part / f"layers_{stage}.json", layers.encode())
            plans[stage] = sha256_file(target)
        lines.append(time.strftime("finished %Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        write_atomically(part / "build.log", ("\n".join(lines) + "\n").encode())
        content = {
            "key": key, "document": document, "plans": plans, "export": str(export.resolve()),
        }  # fmt: skip
        text = json.dumps(content, indent=1, sort_keys=True)
        write_atomically(part / "key.json", text.encode())
        (folder / "check.json").unlink(missing_ok=True)
    return EngineSet(folder, document)


def _read(path: Path, what: str) -> dict[str, Any]:
    try:
        content = read_json(path)
    except MissingFileError:
        raise UnprovenEngineError(f"{path.parent.name[:12]} has no {what}; {HOW_TO}") from None
    except FileError as error:
        raise UnprovenEngineError(f"{error}; {HOW_TO}") from None
    if not isinstance(content, dict):
        raise UnprovenEngineError(f"{path} is damaged (not a mapping); {HOW_TO}")
    return content


def open_set(folder: Path) -> EngineSet:
    """Read an engine folder and check that its plans are the ones that were built.

    Raises:
        UnprovenEngineError: files missing, altered or cut short; key and content disagree; others
            may write into the folder.

    """
    if not folder.is_dir():
        raise UnprovenEngineError(f"{folder} is not a folder with engines; {HOW_TO}")
    try:
        require_private(folder)
    except BackendError as error:
        raise UnprovenEngineError(str(error)) from None
    content = _read(folder / "key.json", "finished build")
    document, plans = content.get("document"), content.get("plans")
    if not isinstance(document, dict) or not isinstance(plans, dict):
        raise UnprovenEngineError(f"{folder / 'key.json'} is damaged; {HOW_TO}")
    if engine_key(document) != content.get("key") or content.get("key") != folder.name:
        raise UnprovenEngineError(f"the key of {folder} does not match its content; {HOW_TO}")
    if document.get("schema") != KEY_SCHEMA:
        raise UnprovenEngineError(
            f"the engines in {folder} are from another version of this package; {HOW_TO}"
        )
    engines = EngineSet(folder, document)
    try:
        _require_whole(engines)
    except (KeyError, TypeError, ValueError) as error:
        raise UnprovenEngineError(
            f"{folder / 'key.json'} is damaged ({type(error).__name__}: {error}); {HOW_TO}"
        ) from None
    for stage in engines.graphs:
        plan = folder / f"{stage}.plan"
        if not plan.is_file() or sha256_file(plan) != plans.get(stage):
            raise UnprovenEngineError(f"{plan} is missing, cut short or altered; {HOW_TO}")
    return engines


def _require_whole(engines: EngineSet) -> None:
    """Validate the schema of a key document; raises on missing fields."""
    document = engines.document
    for key, kind in (("weights", str), ("tensorrt", str), ("graph_hash", str), ("machine", dict)):
        if not isinstance(document[key], kind):
            raise TypeError(f"{key} is {document[key]!r}")
    if document["flags"]["activation"] not in DTYPES:
        raise ValueError(f"activation {document['flags']['activation']!r}")
    if document["flags"]["preset"] is not None:
        preset(document["flags"]["preset"])
    Precision(**document["flags"]["precision"])
    if engines.shapes.depth < 1 or not engines.graphs:
        raise ValueError("no layers")


def export_of(engines: EngineSet) -> Path:
    """Folder of the graphs that engines were built from.

    Raises:
        UnprovenEngineError: key.json does not say.

    """
    export = _read(engines.folder / "key.json", "finished build").get("export")
    if not isinstance(export, str):
        raise UnprovenEngineError(f"{engines.folder / 'key.json'} is damaged; {HOW_TO}")
    return Path(export)


def require_match(engines: EngineSet, weights: str, device: torch.device) -> None:
    """The engines must be of these weights, this TensorRT and this machine.

    Raises:
        UnprovenEngineError: naming the first difference.

    """
    document = engines.document
    if document["weights"] != weights:
        raise UnprovenEngineError(
            f"the engines are of weights {document['weights'][:23]}, the policy has "
            f"{weights[:23]}; {HOW_TO}"
        )
    version = require_tensorrt()
    if document["tensorrt"] != version:
        raise UnprovenEngineError(
            f"the engines were built by TensorRT {document['tensorrt']}, this is {version}; "
            f"{HOW_TO}"
        )
    machine = machine_facts(device)
    for name, value in document["machine"].items():
        if machine.get(name) != value:
            raise UnprovenEngineError(
                f"the engines were built on a machine with {name} {value!r}, here it is "
                f"{machine.get(name)!r}; {HOW_TO}"
            )


def plan_digests(engines: EngineSet) -> dict[str, str]:
    """sha256 of each plan as it lies there now."""
    return {name: sha256_file(engines.folder / f"{name}.plan") for name in engines.graphs}


def write_report(
    engines: EngineSet,
    report: Report,
    golden: str,
    plans: dict[str, str],
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
        retry: why the engines are not what was asked for; empty if they are.
        dry_run: observations or ranges were made up.

    """
    content = {
        **report.as_dict(),
        "key": engine_key(engines.document),
        "plans": plans,
        "golden": golden,
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
        return _read(engines.folder / "check.json", "report")
    except UnprovenEngineError:
        return {}


def require_proof(engines: EngineSet) -> dict[str, Any]:
    """Return the passing report of exactly these plans.

    Raises:
        UnprovenEngineError: no report, a refusing one, or one of other plans.

    """
    report = _read(engines.folder / "check.json", "report; it was never checked here")
    if report.get("schema") != REPORT_SCHEMA:
        raise UnprovenEngineError(f"the report is from another version of this package; {HOW_TO}")
    plans = plan_digests(engines)
    if report.get("key") != engines.folder.name or report.get("plans") != plans:
        raise UnprovenEngineError(f"the report is not about these plans; {HOW_TO}")
    if report.get("verdict") != "pass":
        bad = [f["item"] for f in _findings(report) if not f["ok"] and f["level"] == "refuse"]
        first = bad[0] if bad else "unknown"
        raise UnprovenEngineError(
            f"the engines failed their check ({len(bad)} findings, the first: {first}); see "
            f"{engines.folder / 'check.md'}. Build them again with --optimization-level 2 or "
            "--precision fp16"
        )
    return report


def _findings(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What a report judged, as far as it can be read."""
    found = report.get("findings")
    listed = found if isinstance(found, list) else []
    return [f for f in listed if isinstance(f, dict) and {"item", "ok", "level"} <= f.keys()]


def find_proven(
    weights: str,
    shapes: StageShapes,
    precision: Precision,
    device: torch.device,
    root: Path | None = None,
) -> EngineSet:
    """The newest proven engines for a policy.

    Raises:
        UnprovenEngineError: none, with the reason of the newest that nearly fits.

    """
    folder = model_folder(weights, root) / "engines"
    newest = sorted(
        (path for path in folder.glob("[!.]*") if path.is_dir()),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    reasons: list[str] = []
    for path in newest:
        try:
            engines = open_set(path)
            require_match(engines, weights, device)
            _require_fit(engines, shapes, precision)
            require_proof(engines)
        except UnprovenEngineError as error:
            reasons.append(str(error))
            continue
        return engines
    if reasons:
        raise UnprovenEngineError(
            f"none of {len(reasons)} engine sets may be used; the newest: {reasons[0]}"
        )
    raise UnprovenEngineError(f"no engines of this checkpoint in {folder}; {HOW_TO}")


def _require_fit(engines: EngineSet, shapes: StageShapes, precision: Precision) -> None:
    if engines.shapes != shapes:
        theirs, ours = engines.shapes.as_dict(), shapes.as_dict()
        name = next(key for key in ours if ours[key] != theirs[key])
        raise UnprovenEngineError(
            f"the engines are for {name} {theirs[name]}, the policy needs {ours[name]}; {HOW_TO}"
        )
    chosen = engines.document["flags"]["preset"]
    int8 = chosen is not None and preset(chosen).weights == "int8"
    for stage in ("vision", "prefill", "denoise"):
        wanted, found = getattr(precision, stage), getattr(engines.precision, stage)
        if int8 and stage != "vision":
            found = "int8"  # which `Precision` has no word for
        if wanted not in ("auto", found):
            raise UnprovenEngineError(
                f"the engines run {stage} in {found}, asked for is {wanted}; {HOW_TO}"
            )


def load_runners(engines: EngineSet, device: torch.device) -> dict[str, TrtRunner]:
    """Deserialize the plans with one scratch memory between them; by graph name."""
    from pi05_ros.backends.tensorrt.runtime import PlanFile, Scratch, TrtRunner

    dtype = DTYPES[engines.document["flags"]["activation"]]
    with on_device(device):
        plans = {stage: PlanFile(engines.folder / f"{stage}.plan") for stage in engines.graphs}
        scratch = Scratch(device)
        scratch.reserve(max(plan.engine.device_memory_size_v2 for plan in plans.values()))
        return {
            stage: TrtRunner(plan, stage_spec(stage, engines.shapes, dtype), scratch)
            for stage, plan in plans.items()
        }
