"""Every promise quotes a page that says so, in the section it names."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pi05_ros.conformance.promises import EXECUTOR, NODE

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pi05_ros" / "conformance"


def quoted() -> Iterator[tuple[str, str, str, str]]:
    """Where it stands, page, heading and sentence of every promise in the source."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if name.endswith(("__main__", ".promises")):
            continue
        module = importlib.import_module(name)
        for call in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(call, ast.Call):
                continue
            kind = (
                call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
            )
            places = {"Promise": (1, 2, 3), "add": (1, 2, 3), "Fault": (3,), "Refusal": (2,)}
            if kind not in places or len(call.args) <= max(places[kind]):
                continue
            values = [
                eval(compile(ast.Expression(call.args[i]), str(path), "eval"), vars(module))
                for i in places[kind]
                if isinstance(call.args[i], ast.Constant | ast.Name)
            ]
            if len(values) != len(places[kind]):
                continue  # Promise(fault.name, ...): quoted where the fault stands
            where = f"{path.name}:{call.lineno}"
            if kind == "Fault":
                yield where, NODE, "Which samples are used", values[0]
            elif kind == "Refusal":
                yield where, EXECUTOR, "Which chunks are refused", values[0]
            else:
                yield where, *values


PROMISES = list(quoted())


def plain(text: str) -> str:
    """Without line breaks, comment signs and the bars of tables."""
    text = re.sub(r"^#+ ?", "", text, flags=re.MULTILINE)
    return re.sub(r"[\s|]+", " ", text).strip()


def section(page: str, heading: str) -> str:
    """Text below a heading, with the sections below it."""
    text = (ROOT / page).read_text("utf-8")
    if heading:
        found = re.search(rf"^(#+) {re.escape(heading)}\n", text, re.MULTILINE)
        assert found, f"{page} has no section {heading!r}"
        text = re.split(rf"^#{{1,{len(found[1])}}} ", text[found.end() :], flags=re.MULTILINE)[0]
    return plain(text)


def test_there_are_many():
    assert len(PROMISES) > 80


@pytest.mark.parametrize("promise", PROMISES, ids=[p[0] for p in PROMISES])
def test_the_page_says_so(promise):
    where, page, heading, sentence = promise
    assert plain(sentence) in section(page, heading), f"{where}: {page} does not say {sentence!r}"


def test_nothing_of_the_nodes_is_imported():
    forbidden = ("policy", "runtime", "execution", "ros", "backends", "model", "bags")
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert not name.startswith(tuple(f"pi05_ros.{room}" for room in forbidden)), path
