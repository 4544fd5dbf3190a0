"""What README.md and docs/ tell a reader to type or to write is accepted by the code."""

import argparse
import itertools
import re
import shlex
from pathlib import Path

import pytest
from launch_stand_ins import arguments, load_with_stand_ins

from pi05_ros.cli.main import COMMANDS, build_parser
from pi05_ros.execution.limits import limits_from_yaml
from pi05_ros.execution.outputs import read_outputs
from pi05_ros.execution.space.space_file import read_space
from pi05_ros.policy.robots.profile_yaml import load_profile
from pi05_ros.ros import executor_parameters
from pi05_ros.ros.recorder import recorder_parameters
from pi05_ros.runtime import parameters
from pi05_ros.runtime.task import task_parameters
from pi05_ros.sim.arm import driver_parameters

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / n for n in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ROOT / "BENCHMARKS.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
NODES = {
    "policy_node": parameters.SPECS,
    "executor_node": executor_parameters.SPECS,
    "task_node": task_parameters.SPECS,
    "episode_recorder": recorder_parameters.SPECS,
    "sim_driver_node": driver_parameters.SPECS,
}


def blocks(page: Path) -> list[str]:
    """Code blocks of a page, fenced and indented."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    rest = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.M | re.S)
    return fenced + re.findall(r"(?:^    .*\n)+", rest, re.M)


def commands(page: Path, start: str) -> list[list[str]]:
    """Words of each command of a page's code blocks that begins with `start`."""
    found = []
    for block in blocks(page):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            line = re.sub(r"\$\(.*\)(/\S*)?", "FILE", line).strip()
            if line.startswith(start):
                words = shlex.split(re.sub(r"( &| > .*)$", "", line), comments=True)
                found.append(
                    [
                        word
                        for before, word in zip(["", *words], words, strict=False)
                        if word != "..." or before.startswith("--")
                    ]
                )
    return found


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    heads = (
        re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", h) for h in re.findall(r"^#+ (.*)$", text, re.M)
    )
    return {re.sub(r"[^\w\- ]", "", head.strip().lower()).replace(" ", "-") for head in heads}


def options(parser: argparse.ArgumentParser) -> set[str]:
    """Options of a parser and of those below it."""
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                found |= options(sub)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if link.startswith("http"):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_code_blocks_are_accepted(page, capsys):
    refused = []
    for words in commands(page, "pi05 "):
        try:
            build_parser(words[1]).parse_args(words[1:])
        except SystemExit:
            refused.append((words, capsys.readouterr().err))
    assert refused == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_that_the_text_names_exist(page):
    unknown = []
    for code in re.findall(r"`(pi05 [^`]+)`", page.read_text(encoding="utf-8")):
        words = code.split()
        if words[1] not in COMMANDS:
            assert not words[1].isalpha() or words[1].isupper(), code
            continue
        accepted = options(build_parser(words[1]))
        for word in words[2:]:
            if word.startswith("--") and word.partition("=")[0].rstrip(",;)") not in accepted:
                unknown.append(code)
    assert unknown == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_launch_arguments_exist(page, monkeypatch):
    for words in commands(page, "ros2 launch pi05_ros "):
        accepted = arguments(load_with_stand_ins(words[3].removesuffix(".launch.py"), monkeypatch))
        given = {word.partition(":=")[0] for word in words[4:] if ":=" in word}
        assert given <= set(accepted), words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_parameters_of_nodes_exist(page):
    for words in commands(page, "ros2 run pi05_ros "):
        given = {
            value.partition(":=")[0] for flag, value in itertools.pairwise(words) if flag == "-p"
        }
        if given:
            assert given <= set(NODES[words[3]]), words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_of_code_blocks_compiles(page):
    for code in re.findall(
        r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S
    ):
        compile(code, page.name, "exec")


def yaml_block(name: str, first: str) -> str:
    """The YAML block of a page whose text holds `first`, without its indentation."""
    (block,) = [b for b in blocks(ROOT / "docs" / name) if re.search(first, b, re.M)]
    return re.sub(r"^    ", "", block, flags=re.M) if block.startswith("    ") else block


def test_the_robot_profile_of_the_page_loads(tmp_path):
    file = tmp_path / "my_arm.yaml"
    file.write_text(yaml_block("robots.md", "^# my_arm.yaml"))
    profile = load_profile(file)
    assert profile.control_hz == 20.0
    assert profile.camera_roles == ("base", "wrist")


def test_the_files_of_the_executor_are_accepted(tmp_path):
    file = tmp_path / "file.yaml"
    file.write_text(yaml_block("executor.md", r"^ *joint_limits:"))
    assert len(limits_from_yaml(file).names) == 3
    (tmp_path / "arm.srdf").write_text("<robot name='arm'/>")
    file.write_text(yaml_block("space.md", r"^ *space:"))
    assert read_space(file).stop == 0.02
    file.write_text(yaml_block("outputs.md", "kind: trajectory_chunk"))
    joints = ["left_1", "left_2", "right_1", "right_2", "left_hand", "right_hand"]
    assert len(read_outputs(file, joints)) == 4
    file.write_text(yaml_block("outputs.md", "kind: twist"))
    assert len(read_outputs(file, [f"j{i}" for i in range(1, 7)])) == 1


def test_the_pages_have_commands_that_these_tests_see():
    assert sum(len(commands(page, "pi05 ")) for page in PAGES) > 40
    assert sum(len(commands(page, "ros2 launch pi05_ros ")) for page in PAGES) > 8
