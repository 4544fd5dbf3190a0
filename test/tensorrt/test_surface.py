"""Every TensorRT name we call exists, with these parameters, in the published bindings.

The wheels of two majors (see scripts/setup_export.sh) are imported against stub libraries that
are compiled here and define nothing but the nine C entry points: enough to look at classes and
signatures, useless for anything else.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUB = ROOT / "typings" / "tensorrt" / "__init__.pyi"
BINDINGS = ROOT / ".cache" / "tensorrt-bindings"
VERSIONS = ("10.13.3.9", "11.4.0.106")
LIBRARIES = ("libnvinfer", "libnvonnxparser", "libnvinfer_plugin")
ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
)
# Prints every class with its attributes: enum members, signatures (from pybind11's docstrings),
# properties.
DESCRIBE = """
import json, sys
import tensorrt_bindings as trt

def members(cls):
    found = {}
    for name in dir(cls):
        value = getattr(cls, name, None)
        if isinstance(value, type) and not name.startswith("__"):
            found[name] = {"class": members(value)}
        elif isinstance(value, property):
            found[name] = {"property": str(getattr(value.fget, "__doc__", "") or "")}
        elif callable(value):
            found[name] = {"method": str(getattr(value, "__doc__", "") or "")}
        else:
            found[name] = {"value": type(value).__name__}
    return found

classes = {n: members(v) for n, v in vars(trt).items() if isinstance(v, type)}
print(json.dumps({"version": trt.__version__, "classes": classes}))
"""
# Subclasses of the callback interfaces must really be made and called.
TRAMPOLINES = """
import logging, sys
import tensorrt_bindings
sys.modules["tensorrt"] = tensorrt_bindings
from pi05_ros.backends.tensorrt.callbacks import callbacks_of
Logger, ErrorRecorder, Progress = callbacks_of(tensorrt_bindings)
seen = []
logger = Logger()
logger.log(tensorrt_bindings.ILogger.Severity.ERROR, "broken")
progress = Progress(lambda *words: seen.append(words))
progress.phase_start("build", None, 3)
assert progress.step_complete("build", 0) is True
progress.phase_finish("build")
assert seen == [("build", 0, 3), ("build", 1, 3), ("build", 3, 3)], seen
assert logger.last_errors() == "ERROR: broken", logger.kept
recorder = ErrorRecorder(logger)
code = tensorrt_bindings.ErrorCodeTRT.FAILED_EXECUTION
base = tensorrt_bindings.IErrorRecorder
assert isinstance(recorder, base) and not base.has_overflowed(recorder)  # through C++
assert base.report_error(recorder, code, "lost") is True
assert base.num_errors(recorder) == 1
assert base.get_error_code(recorder, 0) == code
assert base.get_error_desc(recorder, 0) == "lost"
assert logger.last_errors(1) == "ERROR: FAILED_EXECUTION: lost", logger.kept
base.clear(recorder)
assert base.num_errors(recorder) == 0
from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.tensorrt.plan_compiler import BuildFlags, compile_plan
from pathlib import Path
try:
    compile_plan(Path("nothing.onnx"), BuildFlags())
except BackendError as error:
    assert "cannot create a builder" in str(error), error
else:
    raise AssertionError("a builder out of nothing")
print("ok")
"""


@pytest.fixture(scope="session")
def stub_libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stub_libraries")
    source = folder / "entry_points.c"
    lines = [f"void *{name}(void) {{ return 0; }}" for name in ENTRY_POINTS]
    source.write_text("\n".join(lines) + "\n")
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    for major in sorted({version.split(".")[0] for version in VERSIONS}):
        (folder / major).mkdir()
        for library in LIBRARIES:
            name = f"{library}.so.{major}"
            subprocess.run(
                [
                    compiler,
                    "-shared",
                    "-fPIC",
                    f"-Wl,-soname,{name}",
                    "-o",
                    str(folder / major / name),
                    str(source),
                ],
                check=True,
            )
    return folder


def run_with_bindings(version: str, libraries: Path, code: str) -> str:
    folder = BINDINGS / version
    assert (folder / "tensorrt_bindings").is_dir(), (
        f"the TensorRT {version} bindings are not in {folder}: run scripts/setup_export.sh dev"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "LD_LIBRARY_PATH": str(libraries / version.split(".")[0]),
            "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT))),
        },
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def described_surface() -> dict[str, Any]:
    """Class -> member -> parameter names (methods), or None (enum members and properties)."""

    def of_class(node: ast.ClassDef) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for item in node.body:
            if isinstance(item, ast.FunctionDef):
                if any(
                    isinstance(d, ast.Name) and d.id == "property" for d in item.decorator_list
                ):
                    found[item.name] = None
                elif not item.name.startswith("__"):
                    found[item.name] = [a.arg for a in item.args.args if a.arg != "self"]
            elif isinstance(item, ast.Assign):
                found[item.targets[0].id] = None  # type: ignore[attr-defined]
            elif isinstance(item, ast.AnnAssign):
                found[item.target.id] = None  # type: ignore[union-attr]
            elif isinstance(item, ast.ClassDef):
                found[item.name] = of_class(item)
        return found

    tree = ast.parse(STUB.read_text())
    return {node.name: of_class(node) for node in tree.body if isinstance(node, ast.ClassDef)}


def missing_in(surface: dict[str, Any], real: dict[str, Any], where: str) -> list[str]:
    problems = []
    for name, wanted in surface.items():
        if name not in real:
            problems.append(f"{where}.{name} does not exist")
        elif isinstance(wanted, dict):
            problems += missing_in(wanted, real[name]["class"], f"{where}.{name}")
        elif isinstance(wanted, list):
            text = real[name].get("method", "")
            signatures = re.findall(rf"{name}\((.*)\) ->", text)
            accepted = [re.findall(r"(\w+):", signature) for signature in signatures]
            if not any(all(word in names for word in wanted) for names in accepted):
                problems.append(f"{where}.{name} takes {accepted}, called with {wanted}")
    return problems


@pytest.mark.parametrize("version", VERSIONS)
def test_every_name_exists_in_the_published_bindings(version: str, stub_libraries: Path) -> None:
    described = json.loads(run_with_bindings(version, stub_libraries, DESCRIBE))
    assert described["version"] == version
    real = described["classes"]
    surface = described_surface()
    assert len(surface) >= 20
    problems = [
        problem
        for name, wanted in surface.items()
        for problem in (
            missing_in(wanted, real[name], name) if name in real else [f"{name} does not exist"]
        )
    ]
    assert problems == []


@pytest.mark.parametrize("version", VERSIONS)
def test_callbacks_work_and_a_null_builder_is_reported(version: str, stub_libraries: Path) -> None:
    assert run_with_bindings(version, stub_libraries, TRAMPOLINES).strip() == "ok"


def test_a_name_of_one_major_only_would_be_found(stub_libraries: Path) -> None:
    old, new = (
        json.loads(run_with_bindings(version, stub_libraries, DESCRIBE))["classes"]
        for version in VERSIONS
    )
    removed = {"ICudaEngine": {"device_memory_size": None}, "BuilderFlag": {"FP16": None}}
    assert [p for n, w in removed.items() for p in missing_in(w, old[n], n)] == []
    assert len([p for n, w in removed.items() for p in missing_in(w, new[n], n)]) == 2
    wrong = {"execute_async_v3": ["stream"]}
    assert missing_in(wrong, new["IExecutionContext"], "IExecutionContext")


def test_the_fake_has_exactly_the_described_surface(fake_module: ModuleType) -> None:
    fake = fake_module.make_fake("10.13.3.9", fake_module.Faults())

    def compare(wanted: dict[str, Any], cls: type, where: str) -> None:
        instance_attributes = {
            "profiling_verbosity",
            "builder_optimization_level",
            "progress_monitor",
            "engine_host_code_allowed",
            "error_recorder",
        }
        public = {
            n
            for n in vars(cls)
            if not n.startswith("_") and (n not in ("name", "value") or n in wanted)
        } | (instance_attributes & set(wanted))
        assert public == set(wanted), where
        for name, parameters in wanted.items():
            if isinstance(parameters, list):
                code = getattr(cls, name).__code__
                assert list(code.co_varnames[1 : code.co_argcount]) == parameters, (where, name)
            elif isinstance(parameters, dict):
                compare(parameters, getattr(cls, name), f"{where}.{name}")

    surface = described_surface()
    classes = {n: v for n, v in vars(fake).items() if isinstance(v, type)}
    assert set(classes) == set(surface)
    for name, wanted in surface.items():
        compare(wanted, classes[name], name)


def typed_bindings(described: dict[str, Any]) -> str:
    """A type stub made from the real bindings' docstrings."""
    known = set(described_surface())
    plain = {"int", "bool", "str", "float", "None"}

    def type_of(text: str) -> str:
        text = text.strip().removeprefix("tensorrt_bindings.tensorrt.")
        text = {"typing.SupportsInt": "int", "buffer": "Buffer", "capsule": "Any"}.get(text, text)
        if text == "typing_extensions.Buffer":
            return "Buffer"
        if text in plain or text in known or text == "Buffer":
            return text
        if text.split(".")[0] in known:
            return text
        match = re.fullmatch(r"(?:List|list)\[(.*)\]", text)
        return f"list[{type_of(match[1])}]" if match else "Any"

    def signature(name: str, text: str) -> str | None:
        match = re.search(rf"{name}\(self: [\w.]+(?:, )?(.*?)\) -> ([^\n]+)", text)
        if match is None:
            return None
        parameters = ["self"]
        given = re.sub(r" = <[^>]*>", " = 0", match[1])  # defaults that are enum members
        for part in re.findall(r"(\w+): ([^,=\[\]]+(?:\[[^\]]*\])?)( = [^,]+)?", given):
            default = " = ..." if part[2] else ""
            parameters.append(f"{part[0]}: {type_of(part[1])}{default}")
        result = type_of(match[2])
        # Documented to return None on failure, which pybind11 does not write down.
        if name in (
            "build_serialized_network",
            "deserialize_cuda_engine",
            "get_timing_cache",
            "create_execution_context",
        ):
            result = f"{result} | None"
        return f"def {name}({', '.join(parameters)}) -> {result}: ..."

    def of_class(name: str, members: dict[str, Any], indent: str) -> list[str]:
        enum_class = "__members__" in members
        lines = [f"{indent}class {name}{'(enum.IntEnum)' if enum_class else ''}:"]
        inner = indent + "    "
        for member, what in members.items():
            if member == "__init__" and not enum_class:
                text = signature("__init__", what.get("method", ""))
                lines.append(inner + (text or "def __init__(self, *args: Any) -> None: ..."))
            elif (
                member.startswith("_")
                or member in ("name", "value")
                or ("class" in what and enum_class)
            ):
                continue
            elif "class" in what:
                lines += of_class(member, what["class"], inner)
            elif "property" in what and not enum_class:
                lines.append(f"{inner}{member}: Any")
            elif "value" in what and enum_class:
                lines.append(f"{inner}{member} = ...")
            elif "method" in what and not enum_class:
                text = signature(member, what["method"])
                lines.append(
                    inner + (text or f"def {member}(self, *a: Any, **k: Any) -> Any: ...")
                )
        if name == "IHostMemory":
            lines.append(f"{inner}def __buffer__(self, flags: int, /) -> memoryview: ...")
        return [*lines, f"{inner}..."]

    head = [
        "import enum",
        "from typing import Any",
        "from typing_extensions import Buffer",
        "__version__: str",
    ]
    for name in sorted(known):
        head += of_class(name, described["classes"][name], "")
    return "\n".join(head) + "\n"


@pytest.mark.parametrize("version", VERSIONS)
def test_calls_type_check_against_each_major(
    version: str, stub_libraries: Path, tmp_path: Path
) -> None:
    described = json.loads(run_with_bindings(version, stub_libraries, DESCRIBE))
    package = tmp_path / "typings" / "tensorrt"
    package.mkdir(parents=True)
    (package / "__init__.pyi").write_text(typed_bindings(described))
    config = tmp_path / "mypy.ini"
    config.write_text(
        f"[mypy]\nmypy_path = {tmp_path / 'typings'}:{ROOT}\nnamespace_packages = True\n"
        "explicit_package_bases = True\ncheck_untyped_defs = True\nfollow_imports = silent\n"
        "[mypy-torch.*,numpy.*,safetensors.*,onnx.*,pi05_ros.model.*]\nfollow_imports = skip\n"
        "ignore_missing_imports = True\n"
    )
    folder = ROOT / "pi05_ros" / "backends" / "tensorrt"
    good = [str(folder / f"{name}.py") for name in ("callbacks", "plan_compiler", "runtime")]
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import tensorrt as trt\n"
        "def use(context: trt.IExecutionContext, engine: trt.ICudaEngine) -> None:\n"
        "    context.execute_async_v3('stream')\n"
        "    context.execute_async_v4(0)\n"
        "    engine.get_tensor_name('x')\n"
    )

    def check(files: list[str]) -> str:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "mypy",
                "--config-file",
                str(config),
                "--cache-dir",
                str(tmp_path / "cache"),
                "--no-error-summary",
                *files,
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        return done.stdout + done.stderr

    found = check(good)
    assert found.strip() == ""
    caught = check([str(wrong)])
    assert caught.count("error:") == 3, caught
