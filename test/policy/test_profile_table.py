"""The table of the shipped profiles in docs/robots.md says what the profiles say."""

import itertools
from pathlib import Path

from pi05_ros.policy import available_robots, load_profile

DOC = Path(__file__).resolve().parents[2] / "docs" / "robots.md"
BEGIN, END = "<!-- columns -->\n", "<!-- end of columns -->"


def how(unit_map):
    """The map of a column in words."""
    parts = []
    if unit_map.model_at or abs(unit_map.model_span) != 1:
        model = unit_map.model_at, unit_map.model_at + unit_map.model_span
        robot = unit_map.robot_at, unit_map.robot_at + unit_map.robot_span
        parts.append(f"{model[0]:g} to {model[1]:g} -> {robot[0]:g} to {robot[1]:g}")
    elif unit_map.scale != 1 or unit_map.offset:
        parts.append(f"x {unit_map.scale:g}" + (f" + {unit_map.offset:g}" * bool(unit_map.offset)))
    if unit_map.clip:
        parts.append(f"clip {unit_map.clip[0]:g} to {unit_map.clip[1]:g}")
    if unit_map.threshold is not None:
        parts.append(f"threshold {unit_map.threshold:g}")
    return ", ".join(parts) or "-"


def rows(robot):
    """(columns, meaning, model's unit, robot's unit, map), neighbors of one kind joined."""
    deltas = robot.delta_mask + (False,) * len(robot.action_names)
    columns = [
        (name, "state", model, wire, how(m))
        for name, model, wire, m in zip(
            robot.state_names, robot.state_units, robot.observed_units, robot.state_maps,
            strict=True,
        )
    ] + [
        (name, "action, " + meaning.name.lower() + ", relative" * delta, model, wire, how(m))
        for name, meaning, delta, model, wire, m in zip(
            robot.action_names, robot.action_meanings, deltas[: len(robot.action_names)],
            robot.action_units, robot.command_units, robot.action_maps, strict=True,
        )
    ]  # fmt: skip
    for kind, group in itertools.groupby(columns, key=lambda c: c[1:]):
        names = [column[0] for column in group]
        shown = f"{names[0]} .. {names[-1]} ({len(names)})" if len(names) > 2 else ", ".join(names)
        what, model, wire, words = kind
        yield shown, what, model.name.lower(), wire.name.lower(), words


def table():
    lines = ["| profile | columns | what | model | robot | map |", "|---|---|---|---|---|---|"]
    sources = []
    for name in available_robots():
        robot = load_profile(name)
        assert robot.source, f"{name} does not say where its units come from"
        sources.append(f"- `{name}`: {robot.source}.")
        lines += [f"| {' | '.join((f'`{name}`', *row))} |" for row in rows(robot)]
    return "\n".join([*lines, "", "Where they come from:", "", *sources, ""])


def test_the_table_in_the_documents_is_that_of_the_profiles():
    text = DOC.read_text(encoding="utf-8")
    written = text[text.index(BEGIN) + len(BEGIN) : text.index(END)]
    assert written == table(), f"put this between the two marks:\n{table()}"
