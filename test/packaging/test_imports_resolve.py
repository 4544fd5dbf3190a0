"""Names that code outside the package imports from it exist: scripts, and tests that need a GPU.

Neither type checker nor test run sees them on a machine without Triton or a GPU.
"""

from __future__ import annotations

import ast
import functools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
GENERATED = {
    "action",
    "msg",
    "srv",
    "pi05_ros.action",
    "pi05_ros.msg",
    "pi05_ros.srv",
}  # made by the build
USERS = sorted([*(ROOT / "scripts").glob("*.py"), *(ROOT / "test").rglob("*.py")])


@functools.cache
def names_of(module: str) -> set[str] | None:
    """Names that a module of ours defines or imports; None if there is no such module."""
    path = ROOT / pathlib.Path(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.is_file():
        return None
    names = {p.stem for p in path.glob("*")} if path.is_dir() else set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


@pytest.mark.parametrize("user", USERS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_from_the_package_exist(user: pathlib.Path) -> None:
    missing = []
    for node in ast.walk(ast.parse(user.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.level or not node.module:
            continue
        if node.module.split(".")[0] != "pi05_ros" or node.module in GENERATED:
            continue
        known = GENERATED | (names_of(node.module) or set())
        wanted = [alias.name for alias in node.names if alias.name not in known]
        missing += [f"{node.module}.{name}" for name in wanted]
    assert not missing
