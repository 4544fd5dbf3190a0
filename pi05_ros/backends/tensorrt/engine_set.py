"""A set of engines on disk: what it is for, and whether it is whole and fits a policy.

Plans are code: a set is only opened from a folder that nobody else can write to, and only if its
files are those that were built.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pi05_ros.backends.cache import require_private
from pi05_ros.backends.engine import Precision
from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.export.export_document import DTYPES
from pi05_ros.backends.files import sha256_file
from pi05_ros.backends.identity import KEY_SCHEMA, engine_key, machine_facts
from pi05_ros.backends.quantization.presets import preset
from pi05_ros.backends.staged.shapes import StageShapes, graphs_of
from pi05_ros.backends.tensorrt.binding import capability_of
from pi05_ros.backends.tensorrt.flavor import Flavor, flavor_named, sm
from pi05_ros.small_files import FileError, MissingFileError, read_json

HOW_TO = "run: pi05 build (it builds, checks and keeps the report)"
_KEY_FIELDS = (
    ("weights", str),
    ("flavor", str),
    ("tensorrt", str),
    ("target", str),
    ("graph_hash", str),
    ("machine", dict),
)


class UnverifiedEngineError(BackendError):
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
    def flavor(self) -> Flavor:
        """Which TensorRT built them."""
        return flavor_named(self.document["flavor"])

    @property
    def precision(self) -> Precision:
        """What each stage runs in."""
        return Precision(**self.document["flags"]["precision"])


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """A JSON mapping of an engine folder.

    Raises:
        UnverifiedEngineError: missing, damaged, or others may write into it.

    """
    try:
        content = read_json(path)
        require_private(path)
    except BackendError as error:
        raise UnverifiedEngineError(str(error)) from None
    except MissingFileError:
        raise UnverifiedEngineError(f"{path.parent.name[:12]} has no {what}; {HOW_TO}") from None
    except FileError as error:
        raise UnverifiedEngineError(f"{error}; {HOW_TO}") from None
    if not isinstance(content, dict):
        raise UnverifiedEngineError(f"{path} is damaged (not a mapping); {HOW_TO}")
    return content


def open_set(folder: Path) -> EngineSet:
    """Read an engine folder and check that its plans are the ones that were built.

    Raises:
        UnverifiedEngineError: files missing, altered or cut short; key and content disagree;
            others may write into the folder.

    """
    if not folder.is_dir():
        raise UnverifiedEngineError(f"{folder} is not a folder with engines; {HOW_TO}")
    try:
        require_private(folder)
    except BackendError as error:
        raise UnverifiedEngineError(str(error)) from None
    content = read_mapping(folder / "key.json", "finished build")
    document, plans = content.get("document"), content.get("plans")
    if not isinstance(document, dict) or not isinstance(plans, dict):
        raise UnverifiedEngineError(f"{folder / 'key.json'} is damaged; {HOW_TO}")
    if engine_key(document) != content.get("key") or content.get("key") != folder.name:
        raise UnverifiedEngineError(f"the key of {folder} does not match its content; {HOW_TO}")
    if document.get("schema") != KEY_SCHEMA:
        raise UnverifiedEngineError(
            f"the engines in {folder} are from another version of this package; {HOW_TO}"
        )
    engines = EngineSet(folder, document)
    try:
        _require_whole(engines)
    except (BackendError, KeyError, TypeError, ValueError) as error:
        raise UnverifiedEngineError(
            f"{folder / 'key.json'} is damaged ({type(error).__name__}: {error}); {HOW_TO}"
        ) from None
    for stage in engines.graphs:
        plan = folder / f"{stage}.plan"
        if not plan.is_file() or sha256_file(plan) != plans.get(stage):
            raise UnverifiedEngineError(f"{plan} is missing, cut short or altered; {HOW_TO}")
        try:
            require_private(plan)
        except BackendError as error:
            raise UnverifiedEngineError(str(error)) from None
    return engines


def _require_whole(engines: EngineSet) -> None:
    """Validate the schema of a key document; raises on missing fields."""
    document = engines.document
    for key, kind in _KEY_FIELDS:
        if not isinstance(document[key], kind):
            raise TypeError(f"{key} is {document[key]!r}")
    if document["flags"]["activation"] not in DTYPES:
        raise ValueError(f"activation {document['flags']['activation']!r}")
    if document["flags"]["preset"] is not None:
        preset(document["flags"]["preset"])
    Precision(**document["flags"]["precision"])
    flavor_named(document["flavor"])
    if engines.shapes.depth < 1 or not engines.graphs:
        raise ValueError("no layers")


def export_of(engines: EngineSet) -> Path:
    """Folder of the graphs that engines were built from.

    Raises:
        UnverifiedEngineError: key.json does not say.

    """
    export = read_mapping(engines.folder / "key.json", "finished build").get("export")
    if not isinstance(export, str):
        raise UnverifiedEngineError(f"{engines.folder / 'key.json'} is damaged; {HOW_TO}")
    path = Path(export)
    # Engines that were built elsewhere come with the folder of their graphs beside them.
    beside = engines.folder.parent.parent / "onnx" / path.name
    return beside if not path.is_dir() and beside.is_dir() else path


def require_match(engines: EngineSet, weights: str, device: torch.device) -> None:
    """The engines must be of these weights, of the TensorRT that is here, and for this machine.

    Raises:
        UnverifiedEngineError: naming the first difference.

    """
    document, flavor = engines.document, engines.flavor
    if document["weights"] != weights:
        raise UnverifiedEngineError(
            f"the engines are of weights {document['weights'][:23]}, the policy has "
            f"{weights[:23]}; {HOW_TO}"
        )
    try:
        version = flavor.require()
    except BackendError as error:
        raise UnverifiedEngineError(str(error)) from None
    if document["tensorrt"] != version:
        raise UnverifiedEngineError(
            f"the engines were built by {flavor.title} {document['tensorrt']}, this is {version}; "
            f"{HOW_TO}"
        )
    here = sm(capability_of(device))
    if document["target"] not in ("", here):
        raise UnverifiedEngineError(
            f"the engines are for {document['target']}, this GPU is {here}; "
            f"run: pi05 build --flavor rtx --target {here}"
        )
    require_machine(document["machine"], device, "the engines were built on")


def require_machine(facts: dict[str, Any], device: torch.device, what: str) -> None:
    """Facts about a machine must hold for this one.

    Raises:
        UnverifiedEngineError: naming the first difference.

    """
    machine = machine_facts(device)
    for name, value in facts.items():
        if machine.get(name) != value:
            raise UnverifiedEngineError(
                f"{what} a machine with {name} {value!r}, here it is {machine.get(name)!r}; "
                f"{HOW_TO}"
            )


def plan_digests(engines: EngineSet) -> dict[str, str]:
    """sha256 of each plan as it lies there now."""
    return {name: sha256_file(engines.folder / f"{name}.plan") for name in engines.graphs}


def require_fit(engines: EngineSet, shapes: StageShapes, precision: Precision) -> None:
    """The engines must have these shapes and precisions.

    Raises:
        UnverifiedEngineError: naming the first difference.

    """
    if engines.shapes != shapes:
        theirs, ours = engines.shapes.as_dict(), shapes.as_dict()
        name = next(key for key in ours if ours[key] != theirs[key])
        raise UnverifiedEngineError(
            f"the engines are for {name} {theirs[name]}, the policy needs {ours[name]}; {HOW_TO}"
        )
    chosen = engines.document["flags"]["preset"]
    int8 = chosen is not None and preset(chosen).weights == "int8"
    for stage in ("vision", "prefill", "denoise"):
        wanted, found = getattr(precision, stage), getattr(engines.precision, stage)
        if int8 and stage != "vision":
            found = "int8"  # which `Precision` has no word for
        if wanted not in ("auto", found):
            raise UnverifiedEngineError(
                f"the engines run {stage} in {found}, asked for is {wanted}; {HOW_TO}"
            )
