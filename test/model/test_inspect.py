"""`pi05 inspect` on each family, on broken files, and as JSON."""

import json

import pytest
import yaml
from layouts import LEROBOT_CONFIG, write_layout
from model_fixtures import DATA, WEIGHTS, weights

from pi05_ros.cli.main import main
from pi05_ros.model.checkpoint.weight_report import describe


def as_json(capsys, *words):
    code = main(["inspect", *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_bare_weights(capsys):
    code, report = as_json(capsys, DATA)
    assert code == 0
    assert report["family"] == "openpi"
    assert report["embedding"] == "tied"
    assert report["dtypes"] == {"F32": {"tensors": 112, "parameters": 321296}}
    assert sum(report["parameters"].values()) == sum(t.numel() for t in weights().values())
    assert report["horizon"] == {"steps": 50, "source": "assumed"}
    assert report["robot"] is None
    assert any("robot" in text for text in report["open"])
    assert any("heads" in text for text in report["assumed"])
    assert "hash" not in report


def test_unknown_robot(capsys):
    assert main(["inspect", str(DATA), "--robot", "robby"]) == 2
    assert "robot 'robby' is not known" in capsys.readouterr().err


def test_openpi_with_a_robot(capsys, tmp_path):
    directory = write_layout(tmp_path, "openpi mixed", {"action_horizon": 10})
    stats = {"q01": [0.0] * 8, "q99": [1.0] * 8}
    place = directory / "assets" / "physical-intelligence" / "libero" / "norm_stats.json"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps({"norm_stats": {"state": stats, "actions": stats}}))
    _, report = as_json(capsys, directory)
    assert report["norm_stats"] == {"physical-intelligence/libero": ["libero", "libero_poses"]}
    code, report = as_json(capsys, directory, "--robot", "libero", "--hash")
    assert code == 0
    assert set(report["dtypes"]) == {"BF16", "F32"}
    assert report["horizon"] == {"steps": 10, "source": "config.json"}
    assert report["prompt"]["mode"] == "task only"
    assert report["normalisation"]["state"] == {"kind": "quantile", "values": 8}
    assert report["hash"].startswith("sha256:")
    assert report["open"] == []


def test_lerobot(capsys, tmp_path):
    features = {
        "input_features": {
            "observation.images.front": {"type": "VISUAL", "shape": [3, 56, 56]},
            "observation.state": {"type": "STATE", "shape": [6]},
        },
        "output_features": {"action": {"type": "ACTION", "shape": [6]}},
    }
    directory = write_layout(tmp_path, "lerobot 0.5", {**LEROBOT_CONFIG, **features})
    assert "policy_preprocessor.json is missing" in as_json(capsys, directory)[1]["open"][0]
    rename = {"rename_map": {"observation.images.hand": "observation.images.front"}}
    steps = [
        {"registry_name": "rename_observations_processor", "config": rename},
        {"registry_name": "normalizer_processor", "config": {}},
    ]
    (directory / "policy_preprocessor.json").write_text(json.dumps({"steps": steps}))
    steps = [{"registry_name": "unnormalizer_processor", "config": {}}]
    (directory / "policy_postprocessor.json").write_text(json.dumps({"steps": steps}))
    code, report = as_json(capsys, directory)
    assert code == 0
    assert report["robot"]["camera_sources"] == {"wrist": "observation.images.hand"}
    assert report["denoise_steps"] == {"steps": 10, "source": "openpi's default"}
    assert main(["inspect", str(directory)]) == 0
    way = "wrist -> observation.images.hand -> observation.images.front"
    assert way in capsys.readouterr().out
    flags = ("--camera-map", "base=observation.images.front", "--control-hz", "12.5")
    _, report = as_json(capsys, directory, *flags)
    assert report["robot"]["cameras"] == {"base": "observation.images.front"}
    assert report["robot"]["control_hz"] == 12.5
    assert (report["family"], report["embedding"]) == ("lerobot", "untied")
    assert report["horizon"] == {"steps": 30, "source": "config.json"}
    assert len(report["robot"]["actions"]) == 6
    assert any("lm_head" in name for names in report["unused"].values() for name in names)


def test_text(capsys, tmp_path):
    assert main(["inspect", str(DATA)]) == 0
    text = capsys.readouterr().out
    for words in ("openpi pi0.5", "112 tensors", "horizon", "assumed", "unused"):
        assert words in text


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_what_does_not_load(capsys, tmp_path, flags):
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "_METADATA").write_text("{}")
    assert main(["inspect", str(tmp_path), *flags]) == 1
    out = capsys.readouterr()
    assert "convert_jax_model_to_pytorch" in out.out + out.err


def test_random_weights_have_no_file(capsys):
    assert main(["inspect", "random:tiny"]) == 1
    error = capsys.readouterr().err
    for words in ("random:tiny", "made when they are loaded", "accepted: a pi0.5 safetensors"):
        assert words in error


def test_counts_add_up(tmp_path):
    for layout in ("openpi fp32", "lerobot 0.4 old names", "openpi no junk"):
        found = describe(write_layout(tmp_path / layout, layout))
        held = sum(elements for _, elements in found.dtypes.values())
        assert sum(found.parameters.values()) + found.unused_parameters == held
        assert found.parameters == describe(DATA).parameters


URDF = """<robot name="arm"><link name="a"/><link name="b"/>
<joint name="panda_joint1" type="revolute"><parent link="a"/><child link="b"/>
<limit lower="-0.1" upper="0.1" effort="1" velocity="1"/></joint></robot>"""


def test_units_and_limits(capsys, tmp_path):
    """Units of both sides, and statistics against the limits of a URDF or of a limits file."""
    (tmp_path / "arm.urdf").write_text(URDF)
    limits = {"panda_joint1": {"min_position": -0.1, "max_position": 0.1}}
    (tmp_path / "limits.yaml").write_text(yaml.safe_dump({"joint_limits": limits}))
    stats = {"q01": [-2.0, *[-1.0] * 7], "q99": [2.0, *[1.0] * 7]}
    place = tmp_path / "c" / "assets" / "droid"
    place.mkdir(parents=True)
    data = {"norm_stats": {"state": stats, "actions": stats}}
    (place / "norm_stats.json").write_text(json.dumps(data))
    (tmp_path / "c" / "model.safetensors").write_bytes(WEIGHTS.read_bytes())
    _, plain = as_json(capsys, tmp_path / "c", "--robot", "droid")
    assert plain["robot"]["action_units"][0] == {
        "model": "dimensionless", "robot": "radian_per_second",
    }  # fmt: skip
    for name in ("arm.urdf", "limits.yaml"):
        flags = ("--robot", "droid", "--limits", str(tmp_path / name))
        _, report = as_json(capsys, tmp_path / "c", *flags)
        more = set(report["doubts"]) - set(plain["doubts"])
        wanted = "state 'panda_joint1' reach from -2 to 2 radian, outside of its limits -0.1 to"
        assert any(wanted in doubt for doubt in more)
    assert main(["inspect", str(tmp_path / "c"), "--robot", "droid"]) == 0
    text = capsys.readouterr().out
    assert "panda_joint1 (velocity, dimensionless -> radian_per_second)" in text


def test_a_tokenizer_of_another_model_is_open(capsys, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(WEIGHTS.read_bytes())
    (tmp_path / "tokenizer.model").write_bytes(b"junk")
    config = {"robot": "libero"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    place = tmp_path / "assets" / "x"
    place.mkdir(parents=True)
    stats = {"q01": [-1.0] * 8, "q99": [1.0] * 8}
    data = {"norm_stats": {"state": stats, "actions": stats}}
    (place / "norm_stats.json").write_text(json.dumps(data))
    _, report = as_json(capsys, tmp_path)
    assert any("tokenizer.model is not a readable" in text for text in report["open"])
