"""LoRA adapters: PEFT's and openpi's are merged on load, what cannot be merged is refused."""

import json

import pytest
import torch
from layouts import write
from model_fixtures import config, weights
from safetensors.torch import save_file

from pi05_ros.model import CheckpointError, load_checkpoint, open_checkpoint
from pi05_ros.model.checkpoint.weight_report import describe
from pi05_ros.model.layout import EXPERT, LANGUAGE

Q = EXPERT + "layers.0.self_attn.q_proj"
OUT = LANGUAGE + "layers.0.self_attn.o_proj"
IN = "action_in_proj"
GENERATOR = torch.Generator().manual_seed(3)


def factors(name, rank=2):
    """PEFT's factors A [r, in] and B [out, r] of a weight."""
    rows, columns = weights()[f"{name}.weight"].shape
    return (
        torch.randn(rank, columns, generator=GENERATOR),
        torch.randn(rows, rank, generator=GENERATOR),
    )


def expected(scale, **updates):
    """State of the model with `scale * update` added to some weights."""
    changed = dict(weights())
    for name, update in updates.items():
        key = {"q": Q, "o": OUT, "i": IN}[name] + ".weight"
        changed[key] = changed[key] + scale * update
    return changed


def same(loaded, tensors, tmp_path):
    """Whether a model is the one of these tensors."""
    plain = load_checkpoint(write(tmp_path / "plain", tensors), config())
    others = dict(plain.named_parameters())
    return all(torch.allclose(p, others[n], atol=1e-6) for n, p in loaded.named_parameters())


def adapter(folder, tensors, **settings):
    """A directory as PEFT writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {k: v.clone().contiguous() for k, v in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    data = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(data))
    return folder


def peft(prefix="base_model.model.", name=Q, infix=""):
    a, b = factors(name)
    tensors = {
        f"{prefix}{name}.lora_A{infix}.weight": a,
        f"{prefix}{name}.lora_B{infix}.weight": b,
    }
    return tensors, b @ a


@pytest.mark.parametrize("prefix", ["base_model.model.", "base_model.model.model."])
@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4 / 2**0.5),
        ({"alpha_pattern": {"q_proj": 1}}, 0.5),
        ({"alpha_pattern": {r".*\.v_proj": 1}}, 2.0),
    ],
)
def test_a_directory_of_peft(tmp_path, prefix, settings, scale):
    """As PEFT and (with one more `model.`) LeRobot write it; the base is elsewhere."""
    base = write(tmp_path / "base", weights())
    tensors, update = peft(prefix)
    tensors[f"{prefix}{IN}.weight"] = weights()[f"{IN}.weight"] + 1  # modules_to_save
    folder = adapter(tmp_path / "a", tensors, base_model_name_or_path=str(base), **settings)
    for path in (folder, folder / "adapter_model.safetensors"):
        loaded = load_checkpoint(path, config())
        assert same(loaded, expected(scale, q=update, i=1 / scale), tmp_path)
    opened = open_checkpoint(folder)
    assert opened.directory == folder
    assert f"LoRA adapters of 1 weights are merged, scale {scale:g}" in opened.notes[-1]
    assert describe(folder).notes == opened.notes


def test_a_base_beside_the_adapter_wins_over_the_name_in_the_file(tmp_path):
    folder = write(tmp_path / "a", weights())
    tensors, update = peft()
    adapter(folder, tensors, base_model_name_or_path="nobody/nothing")
    assert same(load_checkpoint(folder, config()), expected(2.0, q=update), tmp_path)


def test_a_whole_model_with_adapters_in_it(tmp_path):
    """PEFT's model saved as it is: base_layer, an adapter's name, trained copies."""
    tensors, update = peft("", infix=".default")
    stored = {k: v for k, v in weights().items() if k not in (f"{Q}.weight", f"{IN}.weight")}
    stored |= tensors | {
        f"{Q}.base_layer.weight": weights()[f"{Q}.weight"],
        f"{IN}.original_module.weight": weights()[f"{IN}.weight"],
        f"{IN}.modules_to_save.default.weight": weights()[f"{IN}.weight"] + 1,
    }
    stored = {f"base_model.model.{k}": v for k, v in stored.items()}
    folder = write(tmp_path / "whole", stored)
    with pytest.raises(CheckpointError, match=r"no adapter_config.json, so their scale"):
        load_checkpoint(folder, config())
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    loaded = load_checkpoint(folder, config())
    assert same(loaded, expected(2.0, q=update, i=0.5), tmp_path)


def test_openpi_s_own(tmp_path):
    """Flat and per head, as in models/lora.py; the scale of its variants is 1."""
    heads, size = config().expert.num_heads, config().expert.head_dim
    width, vlm = config().expert.width, config().vlm.width
    q = (
        torch.randn(heads, width, 2, generator=GENERATOR),
        torch.randn(heads, 2, size, generator=GENERATOR),
    )
    h, d = config().vlm.num_heads, config().vlm.head_dim
    o = torch.randn(h, d, 2, generator=GENERATOR), torch.randn(h, 2, vlm, generator=GENERATOR)
    i, b = factors(IN)
    added = {
        f"{Q}.lora_a": q[0], f"{Q}.lora_b": q[1], f"{OUT}.lora_a": o[0], f"{OUT}.lora_b": o[1],
        f"{IN}.lora_a": i.T.contiguous(), f"{IN}.lora_b": b.T.contiguous(),
    }  # fmt: skip
    loaded = load_checkpoint(write(tmp_path / "c", weights() | added), config())
    # openpi's einsum of the input with w [N, D, H], and of the heads with w [N, H, D].
    update_q = torch.einsum("ndr,nrh->ndh", *q).permute(0, 2, 1).reshape(heads * size, width)
    update_o = torch.einsum("nhr,nrd->nhd", *o).reshape(h * d, vlm).T
    assert same(loaded, expected(1.0, q=update_q, o=update_o, i=b @ i), tmp_path)


def test_in_bfloat16_the_sum_is_rounded_once(tmp_path):
    base = write(tmp_path / "base", weights())
    tensors, update = peft()
    folder = adapter(tmp_path / "a", tensors, base_model_name_or_path=str(base))
    loaded = load_checkpoint(folder, config(), torch.bfloat16)
    weight = dict(loaded.named_parameters())["expert.layers.0.self_attn.q_proj.weight"]
    whole = (weights()[f"{Q}.weight"] + 2.0 * update).bfloat16()
    assert weight.dtype == torch.bfloat16
    assert torch.allclose(weight.float(), whole.float(), atol=1e-2)
    assert load_checkpoint(folder, config(), device="meta").config == config()


def _drop(tensors, part):
    return {k: v for k, v in tensors.items() if part not in k}


@pytest.mark.parametrize(
    ("change", "settings", "words"),
    [
        (lambda t: _drop(t, "lora_B"), {}, "has not both factors"),
        (lambda t: {k: v[:1] for k, v in t.items()}, {}, "do not fit"),
        (lambda t: {k.replace("q_proj", "x_proj"): v for k, v in t.items()}, {}, "without"),
        (lambda t: t | {k.replace("A.", "A.two."): v for k, v in t.items()}, {}, "several LoRA"),
        (
            lambda t: t | {f"base_model.model.{Q}.lora_magnitude_vector": torch.ones(4)},
            {}, "not supported here",
        ),
        (
            lambda t: t | {f"base_model.model.{Q}.lora_embedding_A": torch.ones(4)},
            {}, "not supported here.*merge_and_unload",
        ),
        (dict, {"use_dora": True}, "use_dora is not supported here"),
        (dict, {"fan_in_fan_out": True}, "fan_in_fan_out is not supported"),
        (dict, {"peft_type": "LOHA"}, "peft_type 'LOHA'; accepted: 'LORA'"),
        (dict, {"lora_alpha": None}, "lora_alpha is None; accepted: a number"),
        (dict, {"alpha_pattern": 3}, "alpha_pattern is 3"),
        (dict, {"base_model_name_or_path": None}, "no base_model_name_or_path"),
        (dict, {"base_model_name_or_path": "/nowhere"}, "the base model of this LoRA.*no such"),
    ],
)  # fmt: skip
def test_what_cannot_be_merged_is_named(tmp_path, change, settings, words):
    base = write(tmp_path / "base", weights())
    tensors, _ = peft()
    options = {"base_model_name_or_path": str(base), **settings}
    with pytest.raises(CheckpointError, match=words) as error:
        load_checkpoint(adapter(tmp_path / "a", change(tensors), **options), config())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["paligemma_variant", "action_expert_variant"])
def test_a_lora_variant_whose_adapters_the_converter_left_out(tmp_path, key):
    folder = write(tmp_path / "c", weights())
    (folder / "config.json").write_text(json.dumps({key: "gemma_2b_lora"}))
    with pytest.raises(CheckpointError, match="openpi's converter leaves them out") as error:
        load_checkpoint(folder)
    assert "write 'gemma_2b' into config.json" in str(error.value)
    with pytest.raises(CheckpointError, match="leaves them out"):
        describe(folder)


def test_use_peft_without_its_files(tmp_path):
    folder = write(tmp_path / "c", weights())
    (folder / "config.json").write_text(json.dumps({"type": "pi05", "use_peft": True}))
    with pytest.raises(CheckpointError, match="says use_peft, but there are no adapters"):
        open_checkpoint(folder)
