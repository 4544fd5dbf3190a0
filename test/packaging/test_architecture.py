"""The order of the packages, no import circles, short modules and folders, names used once.

Every rule prints what breaks it and where the code belongs.
"""

from __future__ import annotations

import ast
import functools
import pathlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "pi05_ros"

# Bottom up. A package imports only from lines above its own.
ORDER = (
    ("errors",),
    ("small_files", "resources", "tables", "phases", "request_options"),
    ("strict_yaml",),
    ("conformance",),
    ("model",),
    ("backends",),
    ("policy",),
    ("execution", "runtime", "bags", "serving"),
    ("view",),
    ("doctor",),
    ("ros",),
    ("sim",),
    ("replay",),
    ("bench", "workflows"),
    ("cli",),
)
RANK = {name: rank for rank, line in enumerate(ORDER) for name in line}
MAX_LINES = 350
MAX_FILES = 15

# Meant parallels: the same part of the network at several levels.
SAME_FILE_NAMES = {
    "prefill.py": "backends/cuda: stages, Triton kernels and Hopper kernels of the prefill",
    "denoise.py": "backends/cuda: stages and Triton kernels of the denoise loop",
    "attention.py": "backends/cuda: Triton and Hopper kernels of attention",
    "engine.py": "one for each backend, and the protocol",
    "errors.py": "one for each package that has its own exceptions",
}


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@functools.cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def imports_of(name: str) -> Iterator[str]:
    """Modules of ours that a module imports, in functions and under TYPE_CHECKING as well."""
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            found: Iterable[str] = (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found = [full if full in MODULES else node.module for full in names]
        else:
            continue
        yield from (target for target in found if target in MODULES and target != name)


@functools.cache
def all_imports() -> dict[str, set[str]]:
    """Every module, and those of ours that it imports."""
    return {name: set(imports_of(name)) for name in MODULES}


def room(module: str) -> str | None:
    """First package below pi05_ros; None for pi05_ros itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def folder(module: str) -> str:
    return MODULES[module].parent.relative_to(ROOT).as_posix()


def circles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Strongly connected components of more than one node (Tarjan, without recursion)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []
    for start in graph:
        work = [(start, iter(sorted(graph[start])))] if start not in index else []
        while work:
            node, following = work[-1]
            if node not in index:
                index[node] = low[node] = len(index)
                stack.append(node)
            for target in following:
                if target not in index:
                    work.append((target, iter(sorted(graph.get(target, ())))))
                    break
                if target in stack:
                    low[node] = min(low[node], index[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    part = set(stack[stack.index(node) :])
                    del stack[stack.index(node) :]
                    if len(part) > 1:
                        found.append(part)
    return found


def by_folder(values: Mapping[str, set[str]]) -> dict[str, set[str]]:
    return {name: where for name, where in values.items() if len(where) > 1}


def test_every_package_has_its_place():
    unknown = {room(name) for name in MODULES} - set(RANK) - {None}
    assert not unknown, f"give {unknown} a place in ORDER and in ARCHITECTURE.md"


def test_packages_import_downward_only():
    broken = sorted(
        (name, target)
        for name, targets in all_imports().items()
        for target in targets
        if (a := room(name)) and (b := room(target)) and a != b and RANK[b] >= RANK[a]
    )
    lines = " < ".join(", ".join(line) for line in ORDER)
    advice = f"the order is {lines}; move what is needed below both, or pass it as an argument: "
    assert not broken, advice + str(broken)


def test_no_modules_import_each_other_in_a_circle():
    broken = circles(all_imports())
    advice = "imports in functions count as well; move what both need into a third module: "
    assert not broken, advice + str(broken)


def test_no_folders_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = defaultdict(set)
    for name, targets in all_imports().items():
        for target in targets:
            here, there = folder(name), folder(target)
            # A folder and the folders inside it are one thing: its files are their base and top.
            if not (here + "/").startswith(there + "/") and not there.startswith(here + "/"):
                graph[here].add(there)
    broken = circles({name: graph[name] for name in sorted(graph)})
    advice = "of two folders only one may use the other: "
    assert not broken, advice + str(broken)


def test_file_names_stand_in_one_package():
    places: dict[str, set[str]] = defaultdict(set)
    for name, path in MODULES.items():
        # cli/ has one file a subcommand, named after it.
        if path.name != "__init__.py" and room(name) != "cli":
            places[path.name].add(folder(name))
    double = by_folder(places)
    advice = "the same file name in several packages; say in the name what is special about it: "
    broken = sorted(set(double) - set(SAME_FILE_NAMES))
    assert not broken, advice + str({name: double[name] for name in broken})
    assert set(SAME_FILE_NAMES) <= set(double), "a meant parallel that is none any more"


def test_class_names_stand_in_one_package():
    places: dict[str, set[str]] = defaultdict(set)
    for name, tree in ((name, tree_of(name)) for name in MODULES):
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                places[node.name].add(name)
    double = by_folder(places)
    broken = sorted(set(double))
    advice = "the same class name in several modules; say in the name what is special about it: "
    assert not broken, advice + str({name: double[name] for name in broken})


def test_modules_are_short():
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in MODULES.values()
    }
    broken = sorted(name for name, lines in lengths.items() if lines > MAX_LINES)
    advice = f"longer than {MAX_LINES} lines; split by what changes for different reasons: "
    assert not broken, advice + str({name: lengths[name] for name in broken})


def test_folders_are_small():
    counts: dict[str, int] = defaultdict(int)
    for path in PACKAGE.rglob("*"):
        if path.suffix in (".py", ".cu", ".cuh") and path.name != "__init__.py":
            counts[path.parent.relative_to(ROOT).as_posix()] += 1
    broken = sorted(name for name, count in counts.items() if count > MAX_FILES)
    advice = f"more than {MAX_FILES} files; make a folder of those that belong together: "
    assert not broken, advice + str({name: counts[name] for name in broken})


def outside_imports(name: str) -> set[str]:
    """First words of everything that a module imports."""
    found = set()
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.partition(".")[0])
    return found


def test_only_nodes_and_clients_import_rclpy():
    broken = [
        name
        for name in MODULES
        if room(name) not in ("conformance", "ros", "sim") and "rclpy" in outside_imports(name)
    ]
    assert not broken, f"rclpy belongs to conformance/, ros/ and sim/: {broken}"


def test_argparse_stops_in_the_command_line():
    """Below cli/ only programs of their own read a command line: they have a `main`."""
    broken = []
    for name, tree in ((name, tree_of(name)) for name in MODULES):
        if room(name) == "cli" or "argparse" not in outside_imports(name):
            continue
        mains = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)} & {"main"}
        if not mains:
            broken.append(name)
    assert not broken, f"take a frozen request instead of argparse.Namespace: {broken}"


def test_the_execution_side_of_the_wire_needs_no_torch():
    broken = [
        name
        for name in MODULES
        if room(name) == "execution" and {"torch", "safetensors"} & outside_imports(name)
    ]
    assert not broken, f"the robot side runs without torch: {broken}"


def test_the_architecture_page_names_every_package_and_only_what_exists():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    missing = {
        path
        for path in re.findall(r"`((?:pi05_ros|msg|config|launch|test|scripts)/[\w./]+)`", text)
        if not (ROOT / path).exists()
    }
    assert not missing, f"ARCHITECTURE.md names what is not there: {missing}"
    table = re.findall(r"^\| (`.*?) \|", text.partition("## Packages")[2], re.M)
    named = set(re.findall(r"`([\w.]+)/?`", " ".join(table[: len(ORDER) + 4])))
    packages = {name for line in ORDER for name in line}
    found = {name.removesuffix(".py") for name in named}
    assert packages <= found, f"ARCHITECTURE.md lacks {packages - found}"
