"""The parameter dataclass: values it accepts, messages, and everything printed from it."""

from pathlib import Path

import pytest
import yaml

from pi05_ros.runtime.parameter_specs import markdown_table
from pi05_ros.runtime.parameters import SPECS, ParameterError, PolicyParameters

ROOT = Path(__file__).parents[2]


def test_defaults_pass_their_own_checks():
    assert PolicyParameters.from_values({}) == PolicyParameters()


def test_an_integer_is_taken_where_the_text_may_be_a_number():
    assert PolicyParameters.from_values({"kv_reuse": 3}).kv_reuse == "3"
    with pytest.raises(ParameterError, match="from 1"):
        PolicyParameters.from_values({"kv_reuse": 0})
    with pytest.raises(ParameterError, match="must be a string"):
        PolicyParameters.from_values({"kv_reuse": True})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("checkpoint", 5, "must be a string"),
        ("backend", "gpu", "accepted: auto, eager, cuda, onnx, tensorrt"),
        ("precision.vision", "int4", "accepted: auto, fp32, bf16, fp16, fp8"),
        ("precision.prefill", "", "accepted: auto"),
        ("precision.denoise", "FP8", "accepted: auto"),
        ("denoise_steps", -1, "0 to 20"),
        ("denoise_steps", 21, "0 to 20"),
        ("denoise_steps", 5.0, "must be an integer"),
        ("denoise_steps", True, "must be an integer"),
        ("rate_hz", 0.0, "0.1 to 200"),
        ("rate_hz", -1, "0.1 to 200"),
        ("rate_hz", float("nan"), "0.1 to 200"),
        ("rate_hz", float("inf"), "0.1 to 200"),
        ("rate_hz", "fast", "must be a double, 0.1 to 200"),
        ("max_age_s", 0.0, "0.001 to 3600"),
        ("max_skew_s", -0.1, "0.001 to 3600"),
        ("future_tolerance_s", -0.1, "0 to 3600"),
        ("max_answer_age_s", 0.0, "0.001 to 3600"),
        ("dead_source_timeout_s", 0.0, "0.05 to 3600"),
        ("camera_wait_s", 2.0, "0 to 1"),
        ("stop_timeout_s", 60.0, "0 to 3"),
        ("seed", -1, "0 to 2\\^63-1"),
        ("threads", -1, "0 to 1024"),
        ("horizon", -1, "0 to 1000"),
        ("zero_stamps", "now", "accepted: reject, receive_time"),
        ("camera_transport.base", "h264", "accepted: raw, compressed"),
        ("camera_roles", ["base", "base"], "named once"),
        ("camera_roles", "base", "must be a string\\[\\]"),
        ("prompt", None, "must be a string"),
    ],
)
def test_bad_value_is_refused_with_what_is_accepted(name, value, words):
    with pytest.raises(ParameterError, match=words) as caught:
        PolicyParameters.from_values({name: value})
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_integer_is_taken_for_a_double():
    assert PolicyParameters.from_values({"rate_hz": 10}).rate_hz == 10.0


def test_unknown_name_is_refused():
    with pytest.raises(ParameterError, match="rate"):
        PolicyParameters.from_values({"rate": 10.0})


def test_special_ages_fall_back_to_the_common_one():
    values = PolicyParameters(max_age_s=0.3, max_joint_age_s=0.1)
    assert values.max_age(source_is_camera=True) == 0.3
    assert values.max_age(source_is_camera=False) == 0.1


def test_every_parameter_is_described_and_units_are_in_the_name():
    for spec in SPECS.values():
        assert len(spec.text) > 10, spec.name
        if spec.kind is float:
            assert spec.name.endswith(("_s", "_hz")), spec.name
            assert spec.within is not None


def test_table_has_a_row_per_parameter():
    rows = markdown_table(SPECS).splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == list(SPECS)


BEGIN, END = "<!-- parameters:begin -->", "<!-- parameters:end -->"


@pytest.mark.parametrize("name", ["README.md", "docs/node.md"])
def test_documented_table_is_the_printed_one(name):
    path = ROOT / name
    text = path.read_text() if path.exists() else ""
    blocks = [part.split(END)[0].strip() for part in text.split(BEGIN)[1:]]
    assert blocks == [markdown_table(SPECS).strip()] * len(blocks)
    assert blocks


def flatten(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@pytest.mark.parametrize(
    "path", sorted((ROOT / "config").glob("policy*.yaml")), ids=lambda p: p.name
)
def test_parameter_files_fit_the_dataclass(path):
    tree = yaml.safe_load(path.read_text())
    assert list(tree) == ["/**"]
    values = dict(flatten(tree["/**"]["ros__parameters"]))
    read = PolicyParameters.from_values(values)
    if path.name == "policy.yaml":
        assert read == PolicyParameters()


@pytest.mark.parametrize("name", ["rate_hz", "seed", "threads", "prompt"])
def test_integers_beyond_64_bits_are_refused(name):
    with pytest.raises(ParameterError, match=rf"{name} is 1000.*64 bits"):
        PolicyParameters.from_values({name: 10**400})


@pytest.mark.parametrize("items", [[["a"]], ["base", 3], [None]])
def test_lists_hold_text_only(items):
    with pytest.raises(ParameterError, match=r"camera_map holds .* it must be a list of strings"):
        PolicyParameters.from_values({"camera_map": items})
