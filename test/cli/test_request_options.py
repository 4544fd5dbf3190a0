"""Fields of a request are the options of a command, and the request comes back from them."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import pytest

from pi05_ros.cli.common_options import add_options
from pi05_ros.request_options import REQUIRED, filled, option, positive


@dataclass(frozen=True)
class Where:
    place: str = option(REQUIRED, "a place")
    out: Path | None = option(None, "folder")


@dataclass(frozen=True)
class Asked:
    where: Where
    names: tuple[str, ...] = option((), "names", "--name", action="append")
    sizes: tuple[int, ...] = option((1, 2), "sizes", nargs="+")
    share: float = option(0.5, "share")
    loud: bool = option(False, "say more")
    check: bool = option(True, "do not check")
    count: int | None = option(None, "count", type=positive)
    silent: int = 3


def parse(*words: str) -> Asked:
    parser = argparse.ArgumentParser()
    add_options(parser, Asked)
    return filled(Asked, parser.parse_args(words))


def test_without_options_a_request_has_its_defaults():
    assert parse("here") == Asked(Where("here"))


def test_every_option_arrives_in_its_field_and_type():
    words = "here --out o --name a --name b --sizes 3 --share 1 --loud --no-check --count 4"
    assert parse(*words.split()) == Asked(
        Where("here", Path("o")), ("a", "b"), (3,), 1.0, True, False, 4
    )
    assert parse("here") == Asked(Where("here"))  # nothing is left of the call before


@pytest.mark.parametrize("words", [[], ["here", "--count", "0"], ["here", "--silent", "1"]])
def test_what_is_missing_wrong_or_no_option_is_refused(words):
    with pytest.raises(SystemExit):
        parse(*words)


def test_fields_of_other_names_are_given():
    assert filled(Where, object(), place="there") == Where("there")
