"""The driver node's parameters: values it accepts and the documented table."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from pi05_ros.runtime.parameter_specs import ParameterError, markdown_table
from pi05_ros.sim.arm import world
from pi05_ros.sim.arm.driver_parameters import MOST_PIXELS, SPECS

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- parameters:begin -->", "<!-- parameters:end -->"


def test_documented_table_is_the_printed_one():
    text = (ROOT / "docs" / "closed_loop.md").read_text()
    (table,) = (part.split(END)[0].strip() for part in text.split(BEGIN)[1:])
    assert table == markdown_table(SPECS).strip()


def test_pictures_are_limited_by_the_models_buffer():
    model = ET.parse(Path(world.__file__).with_name("arm.xml"))
    size = model.find("./visual/global")
    assert (int(size.get("offwidth")), int(size.get("offheight"))) == MOST_PIXELS


def test_defaults_pass_their_own_checks():
    for spec in SPECS.values():
        assert spec.convert(spec.default) == spec.default
    assert SPECS["task"].convert("push the blue block to the left")
    assert SPECS["image_rate_hz"].convert(30) == 30.0


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("task", "dance", "pick_red, pick_green, push_blue, or one of their prompts"),
        ("renderer", "vulkan", "egl, osmesa, ray, or empty"),
        ("joint_rate_hz", 0.0, "1 to 1000"),
        ("width", 4000, "1 to 1280"),
        ("seed", -1, "0 to"),
    ],
)
def test_bad_value_is_refused_with_what_is_accepted(name, value, words):
    with pytest.raises(ParameterError, match=words):
        SPECS[name].convert(value)
