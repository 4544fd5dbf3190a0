"""Read and write YAML without surprises.

Reading: PyYAML's safe loader, stricter. A key twice in one mapping and a key that is not text are
refused with their lines; numbers are those of YAML 1.2 (``1e1`` is 10, ``1:30`` and dates are
text); depth, and the size after all aliases and merge keys are expanded, are limited. Writing:
strings are always quoted, so that no reader takes them for a number, a date or a truth value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from pi05_ros.small_files import FileError, read_text

MAX_SIZE = 256 * 1024
"""Limit of a file in bytes; reading this much takes about 2 s."""
MAX_DEPTH = 32
"""Limit of lists and mappings inside one another."""
MAX_NODES = 50_000
"""Limit of keys and values with every alias and merge key expanded."""

Tags = Mapping[str, Callable[[float], float]]
_PREFIX = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z|0x[0-9a-fA-F]+\Z|0o[0-7]+\Z")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?\Z"
    r"|[-+]?[0-9]+[eE][-+]?[0-9]+\Z"
    r"|[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z"
)


def read_yaml(path: str | Path, limit: int = MAX_SIZE, tags: Tags | None = None) -> Any:
    """Value of a YAML file.

    Raises:
        FileError: the file is refused by `small_files.read_text`, or the text by `parse_yaml`.

    """
    return parse_yaml(read_text(path, limit), str(path), tags)


def parse_yaml(text: str, where: str, tags: Tags | None = None) -> Any:
    """Value of a YAML text of one document; None if it is empty.

    Args:
        text: the document.
        where: what it is or where it comes from, for the error.
        tags: accepted tags of numbers, as ``{"!degrees": math.radians}``.

    Raises:
        FileError: the text names ``where``, the line and the reason.

    """
    try:
        loader = _Loader(text, tags or {})
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        what = error.problem or error.context or "not YAML"
        raise FileError(f"{where} is not valid YAML: {place}{what}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise FileError(
            f"{where} is not valid YAML: line {line}: the character "
            f"{chr(error.character)!a} is not allowed"
        ) from None


def check_nesting(text: str, loader: Any) -> None:
    """Look at a text that PyYAML's fast loader shall read: libyaml recurses until the stack ends.

    Raises:
        ValueError: nested deeper than MAX_DEPTH, or aliases, of which few make a large value.
        yaml.YAMLError: it is not YAML.

    """
    depth = 0
    for event in yaml.parse(text, loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            raise ValueError("aliases are not accepted")
        if depth > MAX_DEPTH:
            raise ValueError(f"nested too deeply; accepted: at most {MAX_DEPTH} levels")


def dump_yaml(data: Any, *, sort_keys: bool = False) -> str:
    """YAML of plain values, with every string in double quotes."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=sort_keys, allow_unicode=True, width=10**6)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar(f"{_PREFIX}str", text, style='"')
)


class _Loader(yaml.SafeLoader):
    """Safe loader with limits; raises MarkedYAMLError for everything it refuses."""

    def __init__(self, text: str, tags: Tags) -> None:
        super().__init__(text)
        self.depth = 0
        self.tags = tags

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.depth > MAX_DEPTH:
            self.refuse(
                self.peek_event(),  # type: ignore[no-untyped-call]
                f"nested too deeply; accepted: at most {MAX_DEPTH} levels",
            )
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_document(self, node: yaml.Node) -> Any:
        _Sizes(self).of(node)
        return super().construct_document(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=True)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
            what = f"{node.value!r:.60} is not a value of {node.tag.removeprefix(_PREFIX)}"
            self.refuse(node, f"{what}: {error}")

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        if not isinstance(node, yaml.MappingNode):
            self.refuse(node, "a mapping was expected")
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag not in (f"{_PREFIX}str", f"{_PREFIX}merge"):
                text = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                self.refuse(key, f"the key {text!r:.60} is not text; quote it if it is meant so")
            if key.value in lines:
                self.refuse(
                    key,
                    f"the key {key.value!r:.60} is there twice; first in line {lines[key.value]}",
                )
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep=True)

    def construct_tagged(self, node: Any) -> Any:
        """Number with one of the accepted tags, else refuse the tag."""
        if node.tag not in self.tags:
            accepted = f"; accepted: {', '.join(self.tags)}" if self.tags else ""
            self.refuse(node, f"the tag {node.tag.removeprefix(_PREFIX)!r} is not known{accepted}")
        if not isinstance(node, yaml.ScalarNode):
            self.refuse(node, f"{node.tag} is for numbers")
        return self.tags[node.tag](float(node.value))

    def construct_int(self, node: Any) -> int:
        return int(self.construct_scalar(node), 0)

    def construct_float(self, node: Any) -> float:
        text = str(self.construct_scalar(node)).lower()
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))

    def refuse(self, place: Any, text: str) -> Any:
        """Raise what `parse_yaml` turns into its error."""
        raise yaml.constructor.ConstructorError(None, None, text, place.start_mark)


class _Sizes:
    """Size and depth of nodes with everything expanded that is referred to."""

    def __init__(self, loader: _Loader) -> None:
        self.loader = loader
        self.known: dict[int, tuple[int, int]] = {}  # of a node: (count, depth)
        self.open: set[int] = set()

    def of(self, node: yaml.Node) -> tuple[int, int]:
        """Count and depth; recursion is as deep as the text, which is limited already."""
        key = id(node)
        if key in self.open:
            self.loader.refuse(node, "an anchor holds itself")
        if key not in self.known:
            self.open.add(key)
            children: list[yaml.Node] = []
            if isinstance(node, yaml.SequenceNode):
                children = node.value
            elif isinstance(node, yaml.MappingNode):
                children = [part for pair in node.value for part in pair]
            below = [self.of(child) for child in children]
            self.open.discard(key)
            count = 1 + sum(size for size, _ in below)
            depth = 1 + max((depth for _, depth in below), default=0)
            if count > MAX_NODES:
                self.loader.refuse(node, f"more than {MAX_NODES} values with aliases expanded")
            if depth > MAX_DEPTH + 1:
                self.loader.refuse(node, f"nested deeper than {MAX_DEPTH} with aliases expanded")
            self.known[key] = count, depth
        return self.known[key]


_KEPT = {f"{_PREFIX}{name}" for name in ("bool", "null", "merge")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _KEPT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_PREFIX}int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver(f"{_PREFIX}float", _FLOAT, list("-+0123456789."))
_Loader.add_constructor(f"{_PREFIX}int", _Loader.construct_int)
_Loader.add_constructor(f"{_PREFIX}float", _Loader.construct_float)
_Loader.add_constructor(None, _Loader.construct_tagged)
