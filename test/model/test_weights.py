"""Every layout loads to the same model; everything else is one clear error."""

import dataclasses
import hashlib
import json
import os

import pytest
import torch
from layouts import LAYOUTS, LEROBOT_CONFIG, bf16, lerobot, write, write_layout
from model_fixtures import WEIGHTS, config, model, same_parameters, weights
from safetensors.torch import load_file, save_file

from pi05_ros.model import (
    CheckpointError,
    Pi05,
    Pi05Config,
    checkpoint_hash,
    infer_config,
    load_checkpoint,
    open_checkpoint,
    save_openpi,
)
from pi05_ros.model.checkpoint.file_hash import file_states
from pi05_ros.model.dtypes import parameter_dtype
from pi05_ros.model.layout import EXPERT, EXPERT_LM_HEAD, LANGUAGE, VISION, VISION_TOWER

Q0 = LANGUAGE + "layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_model(layout, tmp_path):
    directory = write_layout(tmp_path / "checkpoint", layout)
    assert open_checkpoint(directory).family == (
        "lerobot" if "model." in layout else "openpi"
    ) or ("lerobot" in layout)
    for source in (directory, directory / "model.safetensors", str(directory)):
        loaded = load_checkpoint(source, config())
        expected = model()
        if "bf16" in layout or "mixed" in layout:
            expected = Pi05.random(config(), 0)
            for name, p in expected.named_parameters():
                kind = torch.bfloat16 if "bf16" in layout else None
                kind = kind or parameter_dtype(name, torch.bfloat16)
                p.copy_(p.to(kind).float())
        assert same_parameters(loaded, expected)
        assert not loaded.training
        assert not any(p.requires_grad for p in loaded.parameters())
    half = load_checkpoint(directory, config(), torch.bfloat16)
    if "bf16" not in layout:  # a file rounded once has lost what the float32 tensors had
        assert same_parameters(half, Pi05.random(config(), 0, torch.bfloat16))


def test_both_names_of_the_image_tower_in_one_file_are_refused(tmp_path):
    name = VISION + "post_layernorm.bias"
    both = {**weights(), name.replace(VISION, VISION_TOWER): weights()[name] + 1}
    with pytest.raises(CheckpointError, match="mean the same tensor"):
        open_checkpoint(write(tmp_path, both))


@pytest.mark.parametrize("layout", ["openpi fp32", "lerobot 0.5"])
def test_families_are_told_apart(layout, tmp_path):
    assert open_checkpoint(write_layout(tmp_path, layout)).family == layout.split()[0]


def test_save_and_load(tmp_path):
    for dtype in (torch.float32, torch.bfloat16):
        before = Pi05.random(config(), 7, dtype)
        path = save_openpi(before, tmp_path / str(dtype))
        assert path.name == "model.safetensors"
        after = load_checkpoint(path.parent, dtype=dtype)
        assert same_parameters(before, after)
        assert after.config == config()
        assert EXPERT_LM_HEAD in load_file(path)
    single = save_openpi(before, tmp_path / "single.safetensors")
    assert same_parameters(load_checkpoint(single, config(), torch.bfloat16), before)
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


def test_shards(tmp_path):
    names = sorted(weights())
    half = len(names) // 2
    index = {"weight_map": {}}
    for file, part in (("a.safetensors", names[:half]), ("b.safetensors", names[half:])):
        save_file({n: weights()[n].clone() for n in part}, tmp_path / file)
        index["weight_map"].update(dict.fromkeys(part, file))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert same_parameters(load_checkpoint(tmp_path, config()), model())
    assert checkpoint_hash(tmp_path).startswith("sha256:")
    for bad in ("../a.safetensors", "/etc/passwd", 3, "none.safetensors"):
        index["weight_map"][names[0]] = bad
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(CheckpointError):
            load_checkpoint(tmp_path)


def test_one_shard_of_several_is_no_checkpoint(tmp_path):
    for alone in (tmp_path, tmp_path / "model-00001-of-00002.safetensors"):
        save_file(weights(), tmp_path / "model-00001-of-00002.safetensors")
        with pytest.raises(CheckpointError, match=r"one of 2 shards; accepted: .*index\.json"):
            open_checkpoint(alone)
    only = tmp_path / "model-00001-of-00001.safetensors"
    save_file(weights(), only)
    assert open_checkpoint(only).files == (only,)


def test_hash_follows_the_bytes(tmp_path):
    directory = write_layout(tmp_path, "openpi fp32")
    file = directory / "model.safetensors"
    expected = "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()
    assert checkpoint_hash(directory) == checkpoint_hash(file) == expected
    write_layout(tmp_path, "openpi bf16")
    assert checkpoint_hash(directory) != expected


def test_meta_device_reads_no_data(tmp_path):
    loaded = load_checkpoint(WEIGHTS, config(), torch.bfloat16, "meta")
    assert all(p.is_meta for p in loaded.parameters())


# config -----------------------------------------------------------------------------------


def test_config_from_weights_alone():
    found = infer_config(open_checkpoint(WEIGHTS))
    assert found.config == dataclasses.replace(config(), horizon=50)
    assert found.sources["vlm.width"] == "weights"
    assert found.sources["horizon"] == "assumed"
    assert any("horizon" in note for note in found.notes)


def test_precedence(tmp_path):
    plain = write_layout(tmp_path / "openpi", "openpi fp32", {"action_horizon": 15})
    assert load_checkpoint(plain).config.horizon == 15
    assert load_checkpoint(plain, config()).config.horizon == 10
    assert load_checkpoint(plain, config().to_dict(), rope="openpi-bf16").config.rope != "fp32"
    theirs = write_layout(tmp_path / "lerobot", "lerobot 0.5", LEROBOT_CONFIG)
    found = infer_config(open_checkpoint(theirs))
    assert (found.config.horizon, found.config.max_prompt_tokens) == (30, 180)
    assert found.config.vision == config().vision
    assert any("image_resolution" in note for note in found.notes)
    assert any("gemma_2b" in note for note in found.notes)


ODD = Pi05Config.from_dict(
    {
        "vision": {
            "hidden_size": 36,
            "intermediate_size": 40,
            "num_hidden_layers": 1,
            "num_attention_heads": 3,
            "image_size": 40,
            "patch_size": 10,
        },
        "vlm": {"width": 20, "depth": 2, "mlp_dim": 30, "num_heads": 6, "head_dim": 8},
        "expert": {"width": 12, "depth": 2, "mlp_dim": 14, "num_heads": 6, "head_dim": 8},
        "vocab": 33,
        "action_dim": 9,
    }
)


def test_config_of_other_sizes(tmp_path):
    odd = Pi05.random(ODD, 2)
    directory = save_openpi(odd, tmp_path).parent
    assert load_checkpoint(directory).config == ODD
    (directory / "config.json").unlink()
    with pytest.raises(CheckpointError, match="vision heads"):
        load_checkpoint(directory)
    (directory / "config.json").write_text('{"vision": {"num_attention_heads": 3}}')
    assert load_checkpoint(directory).config == ODD


def test_assumed_vision_heads_are_warned_about(tmp_path, caplog):
    wide = dataclasses.replace(ODD, vision=dataclasses.replace(ODD.vision, hidden_size=144))
    directory = save_openpi(Pi05.random(wide, 2), tmp_path).parent
    assert load_checkpoint(directory).config.vision.num_attention_heads == 3
    assert not caplog.records
    (directory / "config.json").unlink()
    assert load_checkpoint(directory).config.vision.num_attention_heads == 2
    assert "number of vision heads; 2 of 72 are assumed" in caplog.text


def test_two_kv_heads_need_a_config(tmp_path):
    two = dataclasses.replace(
        ODD,
        vlm=dataclasses.replace(ODD.vlm, num_kv_heads=2),
        expert=dataclasses.replace(ODD.expert, num_kv_heads=2),
    )
    directory = save_openpi(Pi05.random(two, 2), tmp_path).parent
    assert load_checkpoint(directory).config == two


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"action_dim": 31}, "action_dim 31 but the weights show 32"),
        ({"max_action_dim": 14}, "action_dim 14"),
        ({"action_horizon": 10, "chunk_size": 50}, "contradicts itself"),
        ({"action_horizon": "ten"}, "not a positive integer"),
        ({"action_horizon": 0}, "not a positive integer"),
        ({"vlm": {"width": 128}}, "vlm.width 128"),
        ({"vision": {"image_size": 224}}, "image_size 224"),
        ({"vlm": {"num_heads": 4}}, "query"),
        ({"vision": {"num_attention_heads": 5}}, "5 vision heads"),
        ({"rope": "quick"}, "rope"),
        ({"type": "act"}, "'act'"),
        ({"type": "pi0"}, "'pi0'"),
        ([1], "not a JSON object"),
    ],
)
def test_contradictions(said, text, tmp_path):
    with pytest.raises(CheckpointError, match=text) as error:
        load_checkpoint(write_layout(tmp_path, "openpi fp32", said))
    assert str(error.value).count(str(tmp_path)) == 1


# errors -----------------------------------------------------------------------------------


def pi0(tensors):
    out = {}
    for name, tensor in tensors.items():
        if name.startswith(EXPERT) and ".dense." in name:
            if name.endswith("weight"):
                out[name.replace(".dense", "")] = torch.ones(32)
        elif name.startswith("time_mlp"):
            out["action_" + name] = tensor
        else:
            out[name] = tensor
    out["action_time_mlp_in.weight"] = torch.ones(32, 64)
    return out | {"state_proj.weight": torch.ones(32, 32), "state_proj.bias": torch.ones(32)}


def lora(tensors):
    return {f"base_model.model.{Q0[:-7]}.lora_{x}.weight": torch.ones(4, 4) for x in "AB"}


def changed(**changes):
    def change(tensors):
        out = dict(tensors)
        for name, value in changes.items():
            if value is None:
                del out[name]
            else:
                out[name] = value
        return out

    return change


KINDS = {
    "pi0": (pi0, "pi0, not pi0.5"),
    "lerobot pi0": (lambda t: lerobot(pi0(t)), "pi0, not pi0.5"),
    "lora": (lora, "LoRA"),
    "lora and base": (lambda t: t | lora(t), "LoRA"),
    "missing": (changed(**{Q0: None}), f"1 missing: {Q0}"),
    "missing head": (changed(**{"action_in_proj.weight": None}), "1 missing: action_in_proj"),
    "unexpected": (changed(surprise=torch.ones(2)), "1 unexpected: surprise"),
    "memory": (
        changed(**{"proprio_history_proj.weight": torch.ones(2)}),
        "unexpected: proprio_history_proj",
    ),
    "shape": (changed(**{Q0: torch.ones(128, 63)}), r"1 of another shape: .*\[128, 63\]"),
    "rank": (changed(**{Q0: torch.ones(128)}), r"\[128\]"),
    "scalar": (changed(**{"time_mlp_in.bias": torch.tensor(1.0)}), r"time_mlp_in.bias has \[\]"),
    "integer": (changed(**{Q0: torch.ones(128, 64, dtype=torch.int32)}), "not of a dtype"),
    "fp8": (changed(**{Q0: torch.ones(128, 64).to(torch.float8_e4m3fn)}), "not of a dtype"),
    "no expert": (lambda t: {n: x for n, x in t.items() if "expert.gemma" not in n}, "PaliGemma"),
    "no vision": (lambda t: {n: x for n, x in t.items() if VISION not in n}, "vision_tower"),
    "no language": (lambda t: {n: x for n, x in t.items() if LANGUAGE not in n}, "missing"),
    "another model": (
        lambda t: {"transformer.h.0.weight": torch.ones(2)},
        "no model that is known",
    ),
    "empty": (lambda t: {}, "no model that is known"),
    "twice": (lambda t: t | {"model." + Q0: t[Q0]}, "mean the same tensor"),
}


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_wrong_files(kind, explicit, tmp_path):
    change, text = KINDS[kind]
    directory = write(tmp_path, change(weights()))
    with pytest.raises(CheckpointError, match=text) as caught:
        load_checkpoint(directory, config() if explicit else None)
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)
    if kind != "twice":
        assert "accepted" in str(caught.value)


def test_ten_names_and_the_count(tmp_path):
    kept = {n: t for n, t in weights().items() if ".mlp." not in n or "encoder" not in n}
    gone = len(weights()) - len(kept)
    directory = write(tmp_path, kept)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(directory, config())
    text = str(caught.value)
    assert text.count("encoder.layers") == 8 == gone
    many = write(tmp_path, weights() | {f"extra.{i}": torch.ones(1) for i in range(25)})
    with pytest.raises(CheckpointError, match=r"\(25 in all\)") as caught:
        load_checkpoint(many, config())
    assert str(caught.value).count("extra.") == 10


def test_explicit_config_of_another_model():
    with pytest.raises(CheckpointError, match="of another shape"):
        load_checkpoint(WEIGHTS, Pi05Config.preset("pi05"))


def test_places_without_weights(tmp_path):
    def make(name, *files):
        for file in files:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_bytes(b"x")
        return tmp_path / name

    (tmp_path / "void").mkdir()
    (tmp_path / "dot.pt").write_bytes(b"\x80\x02")
    (tmp_path / "zip").write_bytes(b"PK\x03\x04....")
    script = "examples/convert_jax_model_to_pytorch.py"
    for path, text in (
        (tmp_path / "nowhere", "no such file"),
        (tmp_path / "void", "holds nothing"),
        (tmp_path / "dot.pt", "pickle"),
        (tmp_path / "zip", "pickle"),
        (tmp_path / ("x" * 5000), "cannot be looked at|no such file"),
        (make("orbax", "params/_METADATA", "assets/x"), script),
        (make("orbax2", "_CHECKPOINT_METADATA"), script),
        (make("orbax3", "params/ocdbt.process_0/d"), script),
        (make("bin", "pytorch_model.bin"), "pytorch_model.bin.*pickle"),
        (make("lora", "adapter_model.safetensors"), "LoRA adapter without adapter_config.json"),
        (make("two", "a.safetensors", "b.safetensors"), "2 safetensors files"),
        (make("outer", "pretrained_model/model.safetensors"), "did you mean"),
        (make("junk", "model.safetensors"), "not a safetensors file"),
    ):
        with pytest.raises(CheckpointError, match=text):
            load_checkpoint(path)


def test_float64_and_float16_files(tmp_path):
    double = write(tmp_path / "d", {n: t.double() for n, t in weights().items()})
    assert same_parameters(load_checkpoint(double, config()), model())
    half = write(tmp_path / "h", {n: t.half() for n, t in weights().items()})
    loaded = dict(load_checkpoint(half, config()).named_parameters())
    assert torch.equal(loaded["action_in_proj.weight"], weights()["action_in_proj.weight"].half())


def test_bf16_file_is_read_exactly(tmp_path):
    directory = write(tmp_path, bf16(weights()))
    loaded = dict(load_checkpoint(directory, config()).named_parameters())
    for name in ("action_in_proj.weight", "time_mlp_out.bias"):
        assert torch.equal(loaded[name], weights()[name].bfloat16().float())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value, stored, dtype):
    tensors = {name: tensor.to(stored) for name, tensor in weights().items()}
    tensors[Q0] = tensors[Q0].clone()
    tensors[Q0].view(-1)[7] = value
    with pytest.raises(CheckpointError, match=r"1 of \d+ tensors hold NaN or infinity: .*q_proj"):
        load_checkpoint(write(tmp_path, tensors), config(), dtype)


def test_weights_whose_sum_overflows_are_finite(tmp_path):
    tensors = dict(weights())
    tensors[Q0] = torch.full_like(tensors[Q0], 3e38)
    loaded = load_checkpoint(write(tmp_path, tensors), config())
    assert all(bool(p.isfinite().all()) for p in loaded.parameters())


def test_a_value_too_large_for_the_model_s_dtype_is_refused(tmp_path):
    tensors = {name: tensor.double() for name, tensor in weights().items()}
    tensors[Q0] = torch.full_like(tensors[Q0], 1e300)
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        load_checkpoint(write(tmp_path, tensors), config())


@pytest.mark.parametrize("how", ["replaced", "written"])
def test_weights_that_change_while_they_are_read_are_refused(tmp_path, how):
    directory = write_layout(tmp_path, "openpi fp32")
    file = directory / "model.safetensors"
    states = file_states(directory)
    digest = checkpoint_hash(directory, since=states)
    stamp = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    if how == "replaced":
        other = tmp_path / "other"
        other.write_bytes(content)
        other.replace(file)
    else:
        file.write_bytes(content)
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as `cp -p` and rsync do
    with pytest.raises(CheckpointError, match=r"model\.safetensors: changed while it was read"):
        checkpoint_hash(directory, since=states)
    assert checkpoint_hash(directory) != digest
