"""Files of every wrong kind are refused at once, by name; none hangs, none fills the memory."""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pi05_ros.errors import Pi05Error
from pi05_ros.small_files import (
    FileError,
    MissingFileError,
    parse_json,
    read_bytes,
    read_json,
    read_text,
    write_atomically,
)
from pi05_ros.strict_yaml import MAX_DEPTH, dump_yaml, parse_yaml, read_yaml


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "file")
    return folder / "file"


def endless_device(folder: Path) -> Path:
    (folder / "file").symlink_to("/dev/zero")
    return folder / "file"


def directory(folder: Path) -> Path:
    (folder / "file").mkdir()
    return folder / "file"


def unix_socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "file"))
    return folder / "file"


def broken_link(folder: Path) -> Path:
    (folder / "file").symlink_to(folder / "gone")
    return folder / "file"


def looping_link(folder: Path) -> Path:
    (folder / "file").symlink_to(folder / "file")
    return folder / "file"


def sparse(folder: Path) -> Path:
    with (folder / "file").open("wb") as file:
        file.truncate(5 * 10**9)
    return folder / "file"


def missing(folder: Path) -> Path:
    return folder / "file"


def long_name(folder: Path) -> Path:
    return folder / ("x" * 300)


def below_a_file(folder: Path) -> Path:
    (folder / "plain").write_text("{}")
    return folder / "plain" / "file"


def lfs_pointer(folder: Path) -> Path:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    (folder / "file").write_text(text)
    return folder / "file"


def latin(folder: Path) -> Path:
    (folder / "file").write_bytes(b"a: 1\nb: \xe9\n")
    return folder / "file"


KINDS = [
    (pipe, "is a named pipe; accepted: a regular file"),
    (endless_device, "is a device; accepted: a regular file"),
    (directory, "is a directory; accepted: a regular file"),
    (unix_socket, "is a socket; accepted: a regular file"),
    (broken_link, "is a link to .*gone, which does not exist"),
    (looping_link, "cannot be read: Too many levels"),
    (sparse, "has 4768.4 MiB; accepted: at most"),
    (missing, "does not exist"),
    (long_name, "cannot be read: File name too long"),
    (below_a_file, "does not exist"),
    (lfs_pointer, "is a Git LFS pointer.*git lfs pull"),
    (latin, "is not text in UTF-8: byte 0xe9 in line 2"),
]


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("make", "reason"), KINDS)
@pytest.mark.parametrize("read", [read_text, read_json, read_yaml])
def test_a_file_of_the_wrong_kind_is_named(make, reason, read, tmp_path):
    path = make(tmp_path)
    with pytest.raises(FileError, match=reason) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert isinstance(caught.value, Pi05Error)
    assert isinstance(caught.value, MissingFileError) == (
        make in (missing, broken_link, below_a_file)
    )


def test_a_null_character_is_no_path():
    with pytest.raises(FileError, match="null"):
        read_bytes("a\0b")


def test_files_of_the_system_without_a_size_are_read():
    assert read_text("/proc/self/status").startswith("Name:")


def test_the_limit_is_of_bytes(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(FileError, match="has 5 bytes; accepted: at most 4 bytes"):
        read_bytes(path, 4)


def test_a_byte_order_mark_does_not_count(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == read_yaml(path) == {"a": 1}


NESTED = [
    "[" * 100_000,
    "[" * 100_000 + "]" * 100_000,
    '{"a":' * 100_000,
    '{"a":' * 500 + "1" + "}" * 500,
]


@pytest.mark.parametrize("text", NESTED, ids=["cut", "lists", "objects", "below-the-interpreters"])
@pytest.mark.parametrize("parse", [parse_json, parse_yaml])
def test_deep_nesting_is_an_error_of_the_file(text, parse):
    with pytest.raises(FileError, match=r"the file.*nested too deeply; accepted: at most \d+"):
        parse(text, "the file")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "line 1, column 1"),
        ('{"a": 1,\n "b" 2}', "line 2, column 6: Expecting ':'"),
        ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        ('{"a": {"b": 1, "b": 1}}', "the key 'b' occurs twice"),
        ("9" * 6000, "digits"),
        ("{} {}", "Extra data"),
    ],
)
def test_json_that_is_none_is_named(text, reason):
    with pytest.raises(FileError, match=f"^run.json is not valid JSON: .*{reason}"):
        parse_json(text, "run.json")


def test_depth_up_to_the_limit_is_read():
    assert parse_json("[" * 64 + "]" * 64, "x")
    with pytest.raises(FileError):
        parse_json("[" * 66 + "]" * 66, "x")
    assert parse_json("[" * 66 + "]" * 66, "x", max_depth=None)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)
MERGE_BOMB = "a0: &a0 {k: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 2000))


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "values with aliases expanded"),
        (MERGE_BOMB, "values with aliases expanded"),
        (CHAIN, "nested deeper than 32 with aliases expanded"),
        ("a: &a [*a]", "line 1.*an anchor holds itself"),
        ("a: &a {b: *a}", "an anchor holds itself"),
        ("a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' is there twice; first in line 1"),
        ("x:\n  a: 1\n  a: 3", "line 3, column 3: the key 'a' is there twice; first in line 2"),
        ("l:\n- {a: 1, a: 1}", "line 2.*the key 'a' is there twice"),
        ("? 'a'\n: 1\na: 2", "the key 'a' is there twice"),
        ("5: x", "line 1, column 1: the key '5' is not text; quote it"),
        ("on: x", "the key 'on' is not text"),
        ("a:\n  1.5: x", "line 2, column 3: the key '1.5' is not text"),
        ("~: x", "the key '~' is not text"),
        ("? [a, b]\n: x", "the key 'a list or mapping' is not text"),
        (
            "a: !!python/object:os.system x",
            "line 1.*the tag 'python/object:os.system' is not known",
        ),
        ("a: !degrees 5", "the tag '!degrees' is not known"),
        ("a: !!int x", "'x' is not a value of int"),
        ("a: !!timestamp 2024-13-01", "is not a value of timestamp"),
        ("a: !!bool maybe", "'maybe' is not a value of bool"),
        ("a: [1, 2", "line 1, column 9"),
        ("a: b: c", "line 1, column 5"),
        ("a: 1\n---\nb: 2", "line 2"),
        ("a: *b", "undefined alias"),
        ("a: 1\nb: \x07", r"line 2: the character '\\x07' is not allowed"),
        ("a: " + "9" * 6000, "is not a value of int"),
        ("<<: 5", "line 1"),
    ],
)
def test_yaml_that_is_refused(text, reason):
    with pytest.raises(FileError, match=rf"(?s)^robot\.yaml is not valid YAML: .*{reason}"):
        parse_yaml(text, "robot.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e1", 10.0),
        ("1E-3", 0.001),
        ("-2e+1", -20.0),
        ("+.5", 0.5),
        ("1.", 1.0),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("0x10", 16),
        ("0o17", 15),
        ("-0", 0),
        ("12", 12),
        ("010", "010"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("12:30:45", "12:30:45"),
        ("2024-01-02", "2024-01-02"),
        ("1e", "1e"),
        ("e1", "e1"),
        (".e1", ".e1"),
        ("'1e1'", "1e1"),
        ("true", True),
        ("null", None),
        ("", None),
        ("=", "="),
    ],
)
def test_scalars(text, value):
    found = parse_yaml(text, "x")
    assert found == value
    assert type(found) is type(value)


def test_merge_keys_and_aliases_of_ordinary_size_work():
    text = "base: &b {x: 1, y: 2}\nc: {<<: *b, y: 3}\nd: *b"
    assert parse_yaml(text, "x")["c"] == {"x": 1, "y": 3}
    assert parse_yaml(text, "x")["d"] == {"x": 1, "y": 2}


def test_accepted_tags_convert_numbers():
    tags = {"!degrees": math.radians}
    assert parse_yaml("a: !degrees 180", "x", tags) == {"a": math.pi}
    for wrong in ("!degrees x", "!degrees [1]", "!grads 1"):
        with pytest.raises(FileError, match="line 1"):
            parse_yaml(f"a: {wrong}", "x", tags)


def test_depth_of_yaml_up_to_the_limit_is_read():
    assert parse_yaml("[" * MAX_DEPTH + "]" * MAX_DEPTH, "x")


@settings(max_examples=200, deadline=None)
@given(st.text() | st.binary().map(lambda b: b.decode("latin-1")))
def test_any_text_is_a_value_or_a_file_error(text):
    for parse in (parse_json, parse_yaml):
        with contextlib.suppress(FileError):
            parse(text, "x")


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(), PLAIN, max_size=4))
def test_what_is_written_is_read_again(data):
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    assert parse_yaml(dump_yaml(data), "x") == data


@pytest.mark.parametrize(
    "text", ["1e1", "on", "no", "2024-01-01", "~", "0x1", "1:30", "", " a", "#"]
)
def test_written_strings_are_quoted(text):
    written = dump_yaml({"key": text})
    assert written == f'"key": "{text}"\n'
    assert yaml.safe_load(written) == {"key": text}


@pytest.mark.timeout(60)
def test_memory_stays_small_while_a_huge_file_is_refused(tmp_path):
    path = sparse(tmp_path)
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))\n"
        "from pi05_ros.small_files import FileError, read_json\n"
        "try:\n    read_json(sys.argv[1])\nexcept FileError:\n    sys.exit(7)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 7


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file"
    write_atomically(path, "gr\u00fcn")
    assert path.read_bytes() == "gr\u00fcn".encode()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"other")
    assert path.read_bytes() == "gr\u00fcn".encode()
    assert list(path.parent.iterdir()) == [path]
