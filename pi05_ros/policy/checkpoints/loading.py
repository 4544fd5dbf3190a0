"""From a checkpoint's name to a running engine with its recipe and tokenizer."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pi05_ros.backends import Engine, Precision, create_engine, parse_precision
from pi05_ros.backends.create import check_backend
from pi05_ros.model import Pi05, Pi05Config, load_checkpoint
from pi05_ros.model.checkpoint.file_hash import RunningHash, file_states
from pi05_ros.model.checkpoint.hub import locate
from pi05_ros.model.checkpoint.infer_config import infer_config
from pi05_ros.model.checkpoint.open import open_checkpoint
from pi05_ros.phases import phase
from pi05_ros.policy.checkpoints.hash_memory import remembered
from pi05_ros.policy.checkpoints.lerobot import is_lerobot, lerobot_recipe
from pi05_ros.policy.checkpoints.recipe import (
    RANDOM_PREFIX,
    RANDOM_WEIGHTS,
    Recipe,
    openpi_recipe,
    random_recipe,
)
from pi05_ros.policy.errors import PolicyError
from pi05_ros.policy.policy_config import PolicyConfig
from pi05_ros.policy.prompt.prompt import PromptEncoder
from pi05_ros.policy.prompt.tokenizer import Tokenizer, load_tokenizer, tokenizer_doubts

logger = logging.getLogger(__name__)
PRESETS = ("tiny", "pi05")
_NOT_LEROBOT = (
    "the tensors are named as LeRobot names them, but its config.json and processor files are not "
    "there: numbers are read as openpi's"
)
MAX_SEED_DIGITS = 18  # of the weights' seed: fits into what torch takes


@dataclass(frozen=True)
class Loaded:
    """Everything `Policy` is made of."""

    engine: Engine
    recipe: Recipe
    tokenizer: Tokenizer
    checkpoint_hash: str | RunningHash
    horizon: int
    image_size: int
    action_dim: int
    random_weights: bool


def read_recipe(
    checkpoint: str | Path,
    robot: str | Path | None = None,
    *,
    camera_roles: Mapping[str, str] | None = None,
    lerobot_era: str = "auto",
    control_hz: float | None = None,
) -> Recipe:
    """Resolve what a checkpoint's numbers mean, without loading its weights.

    Raises:
        PolicyError: see `Policy.load`.

    """
    name = str(checkpoint)
    if name.startswith(RANDOM_PREFIX):
        recipe = random_recipe(robot)
    else:
        path = locate(checkpoint)
        if not os.path.lexists(path):  # False also for a name that is too long
            raise PolicyError(
                f"checkpoint {name} does not exist; accepted: a directory, a .safetensors file, a "
                "hub id (hf://ORGANIZATION/NAME), or "
                f"{' / '.join(RANDOM_PREFIX + p for p in PRESETS)}"
            )
        if is_lerobot(path):
            return lerobot_recipe(path, robot, camera_roles, lerobot_era, control_hz)
        try:
            recipe = openpi_recipe(path, robot)
        except PolicyError:
            if path.is_dir() and not any(path.rglob("*.safetensors*")):
                open_checkpoint(path)  # says that there are no weights, which explains more
            raise
    if camera_roles is not None or lerobot_era != "auto":
        raise PolicyError(
            "camera_map (camera_roles) and lerobot_era are for LeRobot checkpoints; for others "
            "write the cameras into a robot profile"
        )
    if control_hz is None:
        return recipe
    return dataclasses.replace(
        recipe, profile=dataclasses.replace(recipe.profile, control_hz=control_hz)
    )


def load(config: PolicyConfig) -> Loaded:
    """Load what a configuration asks for; cheap checks first, weights last."""
    stages = parse_precision(config.precision)
    check_backend(config.backend)
    target = _device(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    preset, weight_seed = _random_name(str(config.checkpoint))
    recipe = read_recipe(
        config.checkpoint,
        config.robot,
        camera_roles=config.camera_roles,
        lerobot_era=config.lerobot_era,
        control_hz=config.control_hz,
    )
    log_findings(recipe.assumptions, recipe.doubts)
    dtype = _dtype(stages, target)
    words = recipe.tokenizer if config.tokenizer is None else config.tokenizer
    random_weights = preset is not None
    digest: str | RunningHash
    if preset is not None:
        sizes = Pi05Config.preset(preset)
        vocabulary = load_tokenizer(words, None, sizes.vocab)
        _begin(target)
        with phase("random weights"):
            model, digest = _random_model(preset, weight_seed, dtype, target)
    else:
        path = locate(config.checkpoint)
        # From the headers alone: a wrong tokenizer shows before gigabytes are read.
        states = file_states(path)
        opened = open_checkpoint(path)
        if opened.family == "lerobot" and recipe.family != "lerobot":
            recipe = with_doubt(recipe, _NOT_LEROBOT)
        if opened.random_weights:
            recipe = dataclasses.replace(recipe, assumptions=(*recipe.assumptions, RANDOM_WEIGHTS))
            random_weights = True
        sizes = infer_config(opened).config
        vocabulary = load_tokenizer(words, path, sizes.vocab)
        recipe = with_tokenizer(recipe, vocabulary, sizes.vocab)
        clock = "exact" if recipe.family == "lerobot" else None
        digest = RunningHash(path, states, remembered(states))
        _begin(target)
        with phase("weights"):
            model = load_checkpoint(path, sizes, dtype=dtype, device=target, clock=clock)
    horizon = recipe.profile.horizon or model.config.horizon
    recipe = dataclasses.replace(
        recipe, profile=dataclasses.replace(recipe.profile, horizon=horizon)
    )
    if len(recipe.profile.action_names) > model.config.action_dim:
        raise PolicyError(
            f"robot {recipe.profile.name!r} has {len(recipe.profile.action_names)} actions, the "
            f"checkpoint only {model.config.action_dim}"
        )
    with phase("engine"):
        engine = create_engine(
            model,
            config.backend,
            stages,
            views=len(recipe.profile.cameras),
            horizon=horizon,
            max_prompt_tokens=recipe.max_prompt_tokens,
            **(config.backend_options or {}),
        )
    return Loaded(
        engine=engine,
        recipe=recipe,
        tokenizer=vocabulary,
        checkpoint_hash=digest,
        horizon=horizon,
        image_size=model.config.vision.image_size,
        action_dim=model.config.action_dim,
        random_weights=random_weights,
    )


def _random_model(
    preset: str, seed: int, dtype: torch.dtype, device: torch.device
) -> tuple[Pi05, str]:
    """Model of seeded random weights and what stands for its hash.

    The full size is drawn by the GPU where it shall run: in seconds rather than a minute, with
    other numbers than on the CPU.
    """
    sizes = Pi05Config.preset(preset)
    if preset == "pi05" and device.type == "cuda":
        return Pi05.random_on_device(sizes, seed, dtype, device), f"random:{preset}:{seed}:cuda"
    return Pi05.random(sizes, seed, dtype, device), f"random:{preset}:{seed}"


def prompt_encoder(recipe: Recipe, tokenizer: Tokenizer) -> PromptEncoder:
    """Encoder of the prompts that a recipe asks for."""
    return PromptEncoder(
        tokenizer, recipe.profile.discrete_state, recipe.max_prompt_tokens, recipe.prompt_bos
    )


def with_doubt(recipe: Recipe, doubt: str) -> Recipe:
    """Recipe with one more doubt, which is logged."""
    log_findings((), (doubt,))
    return dataclasses.replace(recipe, doubts=(*recipe.doubts, doubt))


def with_tokenizer(recipe: Recipe, tokenizer: Tokenizer, vocab_size: int) -> Recipe:
    """Recipe with what its tokenizer decides: whether prompts begin with BOS, and doubts of it.

    Raises:
        PolicyError: an openpi checkpoint and a tokenizer that has no BOS.

    """
    doubts, assumptions = tokenizer_doubts(tokenizer, vocab_size), []
    bos = tokenizer.adds_bos
    if not bos and recipe.family != "lerobot":
        if tokenizer.bos_id is None:
            raise PolicyError(
                f"tokenizer {tokenizer.name} has no <bos> token; pi0.5 prompts start with one"
            )
        bos = True  # as openpi does whatever the file says
    if not bos:
        assumptions.append(
            f"prompts begin without BOS: tokenizer {tokenizer.name} adds none, and LeRobot uses "
            "it as it is"
        )
    log_findings(assumptions, doubts)
    return dataclasses.replace(
        recipe,
        prompt_bos=bos,
        assumptions=(*recipe.assumptions, *assumptions),
        doubts=(*recipe.doubts, *doubts),
    )


def log_findings(assumptions: Sequence[str], doubts: Sequence[str]) -> None:
    """Log what had to be assumed, and warn of what may be wrong."""
    for assumption in assumptions:
        logger.info("assumed: %s", assumption)
    for doubt in doubts:
        logger.warning("%s", doubt)


def _random_name(checkpoint: str) -> tuple[str | None, int]:
    """Preset and weight seed of "random:<preset>[:<seed>]"; (None, 0) for a path."""
    if not checkpoint:
        raise PolicyError("checkpoint is empty; accepted: a path, or random:tiny / random:pi05")
    if not checkpoint.startswith(RANDOM_PREFIX):
        return None, 0
    preset, _, seed = checkpoint.removeprefix(RANDOM_PREFIX).partition(":")
    whole = seed.isascii() and seed.isdecimal() and len(seed) <= MAX_SEED_DIGITS
    if preset not in PRESETS or not (seed == "" or whole):
        accepted = ", ".join(RANDOM_PREFIX + p for p in PRESETS)
        raise PolicyError(
            f"checkpoint {checkpoint!r} is unknown; accepted: {accepted} (with :<seed> of up to "
            f"{MAX_SEED_DIGITS} digits for other weights), or a path"
        )
    return preset, int(seed or 0)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise PolicyError(
            f"device {name!r} is unknown; accepted: auto, cpu, cuda, cuda:<n>"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise PolicyError(f"device {name!r} is not supported; accepted: auto, cpu, cuda, cuda:<n>")
    if device.type == "cuda" and (
        not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()
    ):
        raise PolicyError(
            f"device {name!r} is not here: torch sees {torch.cuda.device_count()} CUDA devices; "
            "use device cpu or auto"
        )
    return device


def _begin(device: torch.device) -> None:
    """Make the CUDA context, so that its seconds are not taken for those of the weights."""
    if device.type == "cuda":
        with phase("CUDA context"):
            torch.zeros(1, device=device)


def _dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Dtype to load weights in: the widest any stage needs; "auto" is bf16 on CUDA, else fp32."""
    words = {precision.vision, precision.prefill, precision.denoise}
    if "fp32" in words:
        return torch.float32
    if "auto" in words:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16
