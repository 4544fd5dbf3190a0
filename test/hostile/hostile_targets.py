"""What is attacked: a valid input for each reader of the package, spoiled, and what must hold.

A target raises Pi05Error or OSError (refused), `WrongError` (it was accepted and is wrong),
anything else (a crash), or returns (answered).
"""

from __future__ import annotations

import contextlib
import functools
import io
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import yaml
from hostile_faults import (
    NOTATIONS,
    NUMBERS,
    WORDS,
    odd_file,
    spoil_bytes,
    spoil_file,
    spoil_text,
    spoil_tree,
    value,
)
from PIL import Image

from pi05_ros.resources import config_dir

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "pi05_ros" / "sim" / "checkpoint"
JOINTS = ("joint1", "joint2", "joint3", "joint4", "joint5", "joint6", "gripper")
Target = Callable[[random.Random, Path], None]


class WrongError(Exception):
    """Something was accepted that must not be, or a result is not what was promised."""


def require(condition: object, text: str) -> None:
    if not condition:
        raise WrongError(text)


def spoiled_copy(rng: random.Random, source: Path, folder: Path) -> Path:
    path = folder / source.name
    shutil.copyfile(source, path)
    spoil_file(rng, path)
    return path


def robot_profile(rng: random.Random, folder: Path) -> None:
    from pi05_ros.policy.robots.profile_yaml import load_profile

    source = rng.choice(sorted((config_dir() / "robots").glob("*.yaml")))
    path = spoiled_copy(rng, source, folder)
    if rng.random() < 0.4 and path.is_file() and not path.is_symlink():
        tree = spoil_tree(rng, yaml.safe_load(source.read_text()))
        path.write_bytes(yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "replace"))
    robot = load_profile(path)
    require(len(set(robot.state_names)) == len(robot.state_names), "state names repeat")
    require(robot.camera_roles, "no cameras")


def joint_limits(rng: random.Random, folder: Path) -> None:
    from pi05_ros.execution.executor import Executor
    from pi05_ros.execution.limit_sources.limits_yaml import limits_from_yaml
    from pi05_ros.execution.strategies import make_strategy

    path = spoiled_copy(rng, config_dir() / "sim_arm_limits.yaml", folder)
    limits = limits_from_yaml(path)  # NaN: not given here, perhaps in another file
    for values in (limits.velocity, limits.acceleration):
        require(not (values <= 0).any() and not np.isinf(values).any(), "a limit is not above 0")
    require(not (limits.lower >= limits.upper).any(), "lower is not below upper")
    Executor(limits, make_strategy("rtc", 1, 0.1))
    require(np.isfinite(limits.velocity).all(), "commands without a velocity limit")
    require(np.isfinite(limits.acceleration).all(), "commands without an acceleration limit")


def urdf(rng: random.Random, folder: Path) -> None:
    from pi05_ros.execution.limits import limits_from_urdf

    joint = (
        '<joint name="{}" type="revolute"><parent link="a"/><child link="b"/>'
        '<limit lower="-1" upper="1" velocity="2" effort="3"/></joint>'
    )
    text = "<robot name='r'>" + "".join(map(joint.format, JOINTS)) + "</robot>"
    if rng.random() < 0.6:
        for number in ("-1", "1", "2", "3"):
            if rng.random() < 0.4:
                text = text.replace(f'"{number}"', f'"{rng.choice((*NUMBERS, *WORDS))}"', 1)
        spoiled = text
    else:
        spoiled = spoil_bytes(rng, text.encode()).decode("utf-8", "replace")
    if rng.random() < 0.1:
        spoiled = '<!DOCTYPE r [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>' + spoiled
    limits = limits_from_urdf(spoiled, 0.2)
    require((limits.lower < limits.upper).all() and (limits.velocity > 0).all(), "bad limits")


def norm_stats(rng: random.Random, folder: Path) -> None:
    from pi05_ros.policy.checkpoints.norm_stats import openpi_normalization
    from pi05_ros.policy.robots.profile_yaml import load_profile

    source = CHECKPOINT / "assets" / "sim_arm" / "norm_stats.json"
    target = folder / "assets" / "sim_arm"
    target.mkdir(parents=True)
    spoiled_copy(rng, source, target)
    normalization = openpi_normalization(folder, load_profile("sim_arm"))
    state = normalization.state.normalize(np.zeros((1, 7), np.float32))
    actions = normalization.actions.unnormalize(np.zeros((1, 7), np.float32))
    require(np.isfinite(state).all() and np.isfinite(actions).all(), "not finite")


def checkpoint_headers(rng: random.Random, folder: Path) -> None:
    from pi05_ros.model import load_checkpoint

    shutil.copyfile(CHECKPOINT / "config.json", folder / "config.json")
    data = (CHECKPOINT / "model.safetensors").read_bytes()
    weights = folder / "model.safetensors"
    if rng.random() < 0.5:
        spoil_file(rng, folder / "config.json")
        weights.write_bytes(data)
    elif rng.random() < 0.2:
        weights.write_bytes(data[:100])
        odd_file(rng, weights)
    else:
        header = int.from_bytes(data[:8], "little")
        weights.write_bytes(spoil_bytes(rng, data[: 8 + header]) + data[8 + header :])
    load_checkpoint(folder, device="meta")


def tokenizer(rng: random.Random, folder: Path) -> None:
    from pi05_ros.policy.prompt.tokenizer import load_tokenizer

    path = spoiled_copy(rng, CHECKPOINT / "tokenizer.model", folder)
    ids = load_tokenizer(path, None, 640).encode("pick up the red block")
    require(all(0 <= i < 640 for i in ids), "token ids outside the vocabulary")


def recipe(rng: random.Random, folder: Path) -> None:
    from pi05_ros.policy.checkpoints.loading import read_recipe

    for name in ("config.json", "assets/sim_arm/norm_stats.json", "tokenizer.model"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(CHECKPOINT / name, folder / name)
    names = ("config.json", "assets/sim_arm/norm_stats.json", "train_config.json")
    odd_file(rng, folder / rng.choice(names))
    read_recipe(folder, "sim_arm" if rng.random() < 0.7 else None)


def results_file(rng: random.Random, folder: Path) -> None:
    from pi05_ros.sim.evaluation import results_file as file

    path = folder / "results.jsonl"
    for index in range(3):
        file.append(path, f"k{index}", {"success": True, "steps": index})
    spoil_file(rng, path)
    for row in file.read(path).values():
        require(isinstance(row, dict), "a row is no object")


def run_identity(rng: random.Random, folder: Path) -> None:
    from pi05_ros.sim.evaluation.run_identity import claim

    claim(folder, "random:tiny", True, benchmark="arm")
    spoil_file(rng, folder / "run.json")
    claim(folder, "random:tiny", True, benchmark="arm")


def calibration(rng: random.Random, folder: Path) -> None:
    import torch

    from pi05_ros.backends.quantization.calibration import Calibration

    amax = {"a": torch.tensor(1.0), "b": torch.tensor([0.5, 2.0])}
    Calibration("fp8", amax, {"b": torch.ones(2)}).save(folder)
    spoil_file(rng, folder / rng.choice(("calibration.json", "amax.safetensors")))
    loaded = Calibration.load(folder)
    for values in loaded.amax.values():
        require(torch.isfinite(values).all(), "a magnitude is not finite")


def cuda_scales(rng: random.Random, folder: Path) -> None:
    import torch

    from pi05_ros.backends.cuda.scales import ActivationScales

    path = folder / "scales.json"
    ActivationScales(("a", "b"), torch.tensor([1.0, 2.0]), "x", 3).save(path)
    spoil_file(rng, folder / rng.choice(("scales.json", "scales.safetensors")))
    loaded = ActivationScales.load(path)
    require(torch.isfinite(loaded.amax).all() and (loaded.amax >= 0).all(), "magnitudes")


@functools.cache
def bag_bytes() -> dict[str, bytes]:
    """Files of a small bag: names and contents."""
    import tempfile

    from pi05_ros.bags.bag import BagWriter
    from pi05_ros.bags.cdr_messages import JOINT_STATE, joint_state_message

    with tempfile.TemporaryDirectory() as made:
        place = Path(made) / "bag"
        with BagWriter(place) as writer:
            writer.add_topic("/joint_states", JOINT_STATE)
            for index in range(20):
                message = joint_state_message(list(JOINTS), np.full(7, 0.1), 10**9 * index)
                writer.write("/joint_states", 10**9 * index, message)
        return {path.name: path.read_bytes() for path in place.iterdir()}


def bag(rng: random.Random, folder: Path) -> None:
    from pi05_ros.bags.bag import Bag
    from pi05_ros.runtime.inputs.joint_states import JointStateMerger, merge_message

    for name, data in bag_bytes().items():
        (folder / name).write_bytes(data)
    spoil_file(rng, folder / rng.choice(sorted(bag_bytes())))
    joints = JointStateMerger(JOINTS)
    with Bag(folder) as opened:
        for message in opened.messages():
            if message.topic == "/joint_states":
                merged = merge_message(joints, message.decode(), stamp_ns=message.log_ns)
                if merged is not None:
                    require(np.isfinite(merged.positions).all(), "not finite")


def raw_image(rng: random.Random, folder: Path) -> None:
    from pi05_ros.runtime.inputs.conversion import image_to_rgb

    encoding = rng.choice(
        ("rgb8", "bgr8", "mono8", "rgba8", "mono16", "yuv422", "bayer_rggb8", "")
    )
    width, height = rng.choice((0, 1, 2, 7, 64)), rng.choice((0, 1, 2, 7, 48))
    message = SimpleNamespace(
        width=width, height=height, encoding=encoding, is_bigendian=rng.choice((0, 1, 7)),
        step=rng.choice((0, width, 3 * width, 4 * width, 2**32 - 1)),
        data=rng.randbytes(rng.choice((0, 1, width * height, 3 * width * height, 5000))),
    )  # fmt: skip
    if rng.random() < 0.2:
        setattr(message, rng.choice(("width", "height", "step", "encoding")), value(rng))
    pixels = image_to_rgb(message)
    require(pixels.shape == (message.height, message.width, 3), f"shape {pixels.shape}")
    require(pixels.dtype == np.uint8, f"dtype {pixels.dtype}")


@functools.cache
def encoded_image(kind: str) -> bytes:
    pixels = (np.mgrid[:48, :64].sum(0)[..., None] * (1, 2, 3) % 256).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def compressed_image(rng: random.Random, folder: Path) -> None:
    from pi05_ros.runtime.inputs.conversion import compressed_to_rgb

    data = spoil_bytes(rng, encoded_image(rng.choice(("JPEG", "PNG"))))
    pixels = compressed_to_rgb(SimpleNamespace(data=data, format=rng.choice(("jpeg", "png", ""))))
    require(pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8, "no RGB")


def joint_state(rng: random.Random, folder: Path) -> None:
    from pi05_ros.runtime.inputs.joint_states import JointStateMerger, merge_message

    names = [*JOINTS, "wheel"]
    rng.shuffle(names)
    positions = [rng.choice((0.1, float("nan"), float("inf"), 1e308)) if rng.random() < 0.2
                 else rng.uniform(-1, 1) for _ in names]  # fmt: skip
    if rng.random() < 0.3:
        del positions[rng.randrange(len(positions)) :]
    if rng.random() < 0.3:
        names[rng.randrange(len(names))] = rng.choice(names)
    message = SimpleNamespace(name=names, position=positions, velocity=[])
    merged = merge_message(JointStateMerger(JOINTS), message, stamp_ns=10**9)
    if merged is None:  # a joint is lacking or not finite
        return
    found = merged.positions
    require(found.shape == (7,) and np.isfinite(found).all(), "not seven finite positions")
    for joint, position in zip(JOINTS, found, strict=True):
        require(positions[names.index(joint)] == position, f"{joint} has another's position")


def executor(rng: random.Random, folder: Path) -> None:
    """Any sequence of chunks, states and times: commands stay within all limits."""
    from pi05_ros.execution.executor import Executor
    from pi05_ros.execution.limit_sources.limits_yaml import limits_from_yaml
    from pi05_ros.execution.strategies import make_strategy
    from pi05_ros.execution.timed_chunk import ChunkRefusedError, timed_chunk

    limits = limits_from_yaml(config_dir() / "sim_arm_limits.yaml")
    core = Executor(limits, make_strategy(rng.choice(("replace", "ensemble", "rtc")), 1, 0.1))
    period_s = core.settings.period_s
    now, at = 10**12, (limits.lower + limits.upper) / 2
    last, speed = None, None  # of commands that follow each other
    for _ in range(60):
        now += round(period_s * 1e9)
        if rng.random() < 0.02:
            now += rng.choice((-(10**9), 10**10, -(10**11), 3600 * 10**9))
            core.rewind()
        if rng.random() < 0.9:
            noise = rng.choice((0.0, 0.0, 0.01, 5.0, float("nan")))
            core.measure((at if last is None else last) + noise, now - rng.choice((0, 10**7)))
        if rng.random() < 0.3:
            steps = rng.choice((1, 5, 16))
            data = np.array([[rng.uniform(-9, 9) for _ in JOINTS] for _ in range(steps)])
            if rng.random() < 0.1:
                data[rng.randrange(steps), rng.randrange(7)] = rng.choice((np.nan, np.inf, 1e300))
            with contextlib.suppress(ChunkRefusedError):
                core.offer(
                    timed_chunk(
                        joints=core.joints, names=JOINTS, data=data.ravel(),
                        horizon=rng.choice((steps, steps, steps, 0, 2**31)),
                        step_ns=rng.choice((5 * 10**7, 5 * 10**7, 0, 1, 10**13)),
                        start_ns=now - rng.choice((0, 10**7, 10**9, -(10**8), -(10**12))),
                        meaning=[rng.choice((0, 0, 0, 1, 2, 9))] * 7,
                        reference=core.measured_at(now), policy_id="p", chunk_id=rng.randrange(99),
                    ),
                    now,
                )  # fmt: skip
        if rng.random() < 0.02:
            core.stop("asked")
        if rng.random() < 0.04:
            core.resume()
        command = core.tick(now).positions
        if command is None:
            last, speed = None, None
            continue
        require(np.isfinite(command).all(), "a command is not finite")
        if last is not None:
            velocity = (command - last) / period_s
            require((np.abs(velocity) <= limits.velocity * 1.001 + 1e-6).all(), "too fast")
            if speed is not None:  # the first command is a step from the measured joints already
                change = np.abs(velocity - speed) / period_s
                require((change <= limits.acceleration * 1.001 + 1e-3).all(), "too sudden")
            speed = velocity
        last = command


def parameters(rng: random.Random, folder: Path) -> None:
    from pi05_ros.runtime.parameters import SPECS, PolicyParameters

    names = rng.sample(sorted(SPECS), rng.randint(1, 4))
    made = PolicyParameters.from_values({name: value(rng) for name in names})
    require(0 < made.rate_hz < 1e4, f"rate_hz {made.rate_hz}")


def serving_request(rng: random.Random, folder: Path) -> None:
    from pi05_ros.policy.robots.profile_yaml import load_profile
    from pi05_ros.serving.requests import parse_request

    robot = load_profile("sim_arm")
    tree = {
        "images": dict.fromkeys(robot.camera_roles),
        "state": [0.0] * 7,
        "prompt": "pick up the red block",
        "seed": 3,
        "deadline_ms": 100.0,
    }
    request = spoil_tree(rng, tree)
    if isinstance(request, dict) and isinstance(request.get("images"), dict):
        for role in robot.camera_roles:
            shape = rng.choice(((48, 64, 3), (3, 48, 64), (0, 0, 3), (2, 2), (48, 64, 4)))
            request["images"][role] = np.zeros(shape, rng.choice((np.uint8, np.float64, object)))
    parse_request(request, robot)


def number_notation(rng: random.Random, folder: Path) -> None:
    """A limit is refused, or it is the number that Python or C reads in the text."""
    from pi05_ros.execution.limit_sources.limits_yaml import limits_from_yaml

    text = rng.choice((*NOTATIONS, *map(str, NUMBERS), "012", "1__0", "0x", "1e", "e1", "0.5.1"))
    path = folder / "limits.yaml"
    path.write_text(
        f"joint_limits:\n  joint1: {{min_position: -1, max_position: 1, max_velocity: {text}, "
        "max_acceleration: 5}\n"
    )
    found = limits_from_yaml(path).velocity[0]
    if np.isnan(found):
        return  # not given, as the file says with 0
    bare = text.partition(" ")[2] if text.startswith("!") else text
    read = int(bare, 0) if bare.lower().startswith(("0x", "0o")) else float(bare)
    due = np.radians(read) if text.startswith("!degrees") else read
    require(found == due, f"{text!r} was read as {found}")
    require("_" not in text and not text.startswith("0_"), f"{text!r} was read as {found}")


def chunk_message(rng: random.Random, folder: Path) -> None:
    """Extreme stamps, steps, sizes and names of a chunk: refused, or read as the comments say."""
    from pi05_ros.execution.arrival.wire import read_chunk
    from pi05_ros.execution.limits import JointLimits

    odd = ("", " ", "joint 1", "joint1\x00", "\ud800", "a" * 5000, "日本")
    message = SimpleNamespace(
        header=SimpleNamespace(stamp=SimpleNamespace(sec=9, nanosec=1), frame_id=""),
        published_stamp=SimpleNamespace(sec=9, nanosec=5),
        step=SimpleNamespace(sec=0, nanosec=10**8),
        steps_past=0,
        horizon=4,
        names=list(JOINTS[:3]),
        policy_id="p",
        chunk_id=7,
        meaning=[0] * 3,
        unit=[0] * 3,
        data=[0.1] * 12,
    )
    seconds, parts = (0, 1, -1, 2**31 - 1, -(2**31)), (0, 999_999, 10**9 - 1, 10**9, 2**32 - 1)
    for _ in range(rng.randint(1, 2)):
        kind = rng.randrange(8)
        if kind < 3:
            time = (message.header.stamp, message.published_stamp, message.step)[kind]
            time.sec, time.nanosec = rng.choice(seconds), rng.choice(parts)
        elif kind == 3:
            message.names[rng.randrange(3)] = rng.choice((*odd, *JOINTS[:3]))
        elif kind == 4:
            rng.shuffle(message.names)
        elif kind == 5:
            message.meaning = [rng.choice((0, 1, 2, 3, 255)) for _ in range(rng.choice((2, 3, 3)))]
        elif kind == 6:
            message.data = [rng.choice((0.1, float("nan"), 3e38))] * rng.choice((0, 11, 12, 12))
        elif rng.random() < 0.3:
            message.unit = [rng.choice((0, 1, 255))] * 3
        else:
            field = rng.choice(("horizon", "steps_past", "chunk_id"))
            setattr(message, field, rng.choice((0, 1, 4, 2**32 - 1)))
    limits = JointLimits(
        JOINTS[:3], np.full(3, -1.0), np.full(3, 1.0), np.full(3, 2.0), np.full(3, 9.0)
    )
    chunk = read_chunk(message, limits, lambda at_ns: np.zeros(3) if rng.random() < 0.8 else None)
    stamp = message.header.stamp
    require(chunk.positions.shape == (message.horizon, 3), f"shape {chunk.positions.shape}")
    require(np.isfinite(chunk.positions).all(), "positions are not finite")
    require(chunk.start_ns == stamp.sec * 10**9 + stamp.nanosec, "another start")
    require(10**6 <= chunk.step_ns <= 10**10, f"step {chunk.step_ns}")
    require(sorted(message.names) == sorted(limits.names), f"{message.names} were taken")


def trajectory_plan(rng: random.Random, folder: Path) -> None:
    from pi05_ros.sim.arm.trajectory import JointPlan

    plan = JointPlan(JOINTS, np.zeros(7))
    for _ in range(5):
        count = rng.choice((0, 1, 2, 5))
        names = [rng.choice((*JOINTS, "", "wheel")) for _ in range(rng.choice((0, 1, 7)))]
        times = np.cumsum([rng.choice((0.1, 0.0, -1.0, np.nan, 1e308)) for _ in range(count)])
        table = np.full((count, len(names)), rng.choice((0.5, np.nan, 1e308, -2.0)))
        with contextlib.suppress(ValueError):
            plan.command(tuple(names), rng.choice((0.0, 1.0)), times, table)
        require(np.isfinite(plan.at(0.5)).all(), "the plan is not finite")


def command_line(rng: random.Random, folder: Path) -> None:
    """The command as a user calls it: code 0, 1 or 2, and no traceback."""
    from pi05_ros.cli.main import main

    path = folder / "thing"
    if rng.random() < 0.5:
        odd_file(rng, path)
    else:
        path.write_bytes(spoil_text(rng, (config_dir() / "policy.yaml").read_text()))
    words = rng.choice(
        (
            ["inspect", str(path)],
            ["replay", str(path), "--offline", "--out", str(folder / "out")],
            ["eval", "--checkpoint", str(path), "--seeds", "0:1", "--out", str(folder / "out")],
            ["replay", str(path), "--robot", str(path), "--offline"],
        )
    )
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
    require(code in (0, 1, 2), f"exit code {code}")
    require("Traceback" not in said.getvalue(), said.getvalue()[-300:])


TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (
        robot_profile, joint_limits, urdf, norm_stats, checkpoint_headers, tokenizer, recipe,
        results_file, run_identity, calibration, cuda_scales, bag, raw_image, compressed_image,
        joint_state, chunk_message, executor, parameters, number_notation, serving_request,
        trajectory_plan, command_line,
    )
}  # fmt: skip
