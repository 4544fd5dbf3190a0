"""`pi05 replay BAG`: the policy over a recorded bag, live through the node or offline."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pi05_ros.errors import InvalidValueError

if TYPE_CHECKING:
    from pi05_ros.bags.bag import Bag
    from pi05_ros.bags.chunk_record import ChunkRecord
    from pi05_ros.replay.run import Outcome
    from pi05_ros.runtime.parameters import PolicyParameters

from pi05_ros.cli.checkpoint_options import add_checkpoint_options, checkpoint_parameters

EQUAL, DIFFERENT = 0, 1
TIME_BASES = ("auto", "clock", "log", "header")
"""Those of `bags.timeline`, which --help does not import."""
MIRRORED = (
    "checkpoint", "robot", "tokenizer", "prompt", "seed", "backend", "device", "denoise_steps",
)  # fmt: skip
"""Options with the names of the node's parameters."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "bag",
        type=Path,
        help="rosbag2 folder, .mcap or .db3 file; LeRobot dataset, or DATASET/episode_N",
    )
    parser.add_argument(
        "--offline",
        action="store_true",
        help="no DDS, no ROS, no waiting: deterministic, bit-equal from run to run",
    )
    parser.add_argument("--out", type=Path, default=Path("out/replay"), help="folder for results")
    policy = parser.add_argument_group("policy")
    policy.add_argument(
        "--checkpoint", default="random:tiny", help="path, or random:tiny (the default)"
    )
    policy.add_argument("--robot", help="robot profile: name or YAML file")
    policy.add_argument("--tokenizer", help="tokenizer file")
    policy.add_argument("--prompt", help="language instruction; wins over the bag's prompt topic")
    policy.add_argument("--rate", type=float, help="inferences per second (default 10)")
    policy.add_argument("--seed", type=int, help="seed of the flow noise")
    policy.add_argument("--backend", help="auto, eager, cuda, onnx, tensorrt")
    policy.add_argument("--device", help="auto, cpu, cuda")
    policy.add_argument("--denoise-steps", type=int, help="flow steps per chunk")
    add_checkpoint_options(policy)
    policy.add_argument(
        "-p",
        "--param",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other parameter of the policy node, e.g. max_age_s=0.3",
    )
    topics = parser.add_argument_group("topics and time")
    topics.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="INPUT=TOPIC",
        help="topic of an input, e.g. base_camera=/cam/image_raw, joint_states=/arm/joints",
    )
    topics.add_argument("--namespace", default="", help="look for topics below this namespace")
    topics.add_argument(
        "--time",
        default="auto",
        choices=TIME_BASES,
        help="clock that header stamps are judged against: the bag's /clock, log times, or the "
        "stamps themselves (default: clock if recorded, else log)",
    )
    topics.add_argument("--loop", type=int, default=1, help="play the bag this often")
    topics.add_argument("--speed", type=float, default=1.0, help="live: bag seconds per second")
    checks = parser.add_argument_group("checks")
    one = checks.add_mutually_exclusive_group()
    one.add_argument(
        "--against",
        type=Path,
        metavar="CHUNKS",
        help="compare with this recording; exit code 1 if different",
    )
    one.add_argument(
        "--verify",
        type=Path,
        metavar="CHUNKS",
        help="compute the chunks of this recording again from the bag, instead of replaying",
    )
    one.add_argument(
        "--against-demonstration",
        action="store_true",
        help="compare the policy with what the demonstrator did in this bag (or in all bags of a "
        "folder) and name the convention that is wrong; exit code 1 if they differ",
    )
    checks.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        help="accepted difference of an action in robot units (default 0: equal bits)",
    )
    checks.add_argument(
        "--partial",
        action="store_true",
        help="with --against: compare only chunks that answer the same samples (always so in a "
        "live replay)",
    )
    checks.add_argument(
        "--require-rate",
        type=float,
        metavar="SHARE",
        help="exit code 1 if fewer than this share of the asked chunks came, e.g. 0.9",
    )
    parser.add_argument("--no-plot", action="store_true", help="do not draw replay.png")


def node_values(args: argparse.Namespace) -> dict[str, Any]:
    """Parameters of the policy node from the options, by ROS name.

    Raises:
        ParameterError: unknown name or wrong value.

    """
    from pi05_ros.runtime.parameters import SPECS, ParameterError

    options = {"rate_hz": args.rate} | {name: getattr(args, name) for name in MIRRORED}
    values = {name: value for name, value in options.items() if value is not None}
    values.update(checkpoint_parameters(args))
    for entry in args.param:
        name, separator, text = entry.partition("=")
        if not separator:
            raise ParameterError(f"--param {entry!r} is not NAME=VALUE")
        if name not in SPECS:
            close = difflib.get_close_matches(name, SPECS, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ParameterError(f"--param names {name!r}{hint}; accepted: {', '.join(SPECS)}")
        values[name] = text if SPECS[name].kind is str else _yaml(name, text)
    for name, value in values.items():
        values[name] = SPECS[name].convert(value)
    try:
        values.get("prompt", "").encode()
    except UnicodeEncodeError as error:
        raise ParameterError("prompt is not text in UTF-8") from error
    return values


def _yaml(name: str, text: str) -> Any:
    from pi05_ros.runtime.parameters import ParameterError
    from pi05_ros.small_files import FileError
    from pi05_ros.strict_yaml import parse_yaml

    try:
        return parse_yaml(text, f"{name}={text!r:.60}")
    except FileError as error:
        raise ParameterError(f"--param {error}") from error


def run(args: argparse.Namespace) -> int:
    """Replay, report, compare; exit code 2 (from `main`) where it cannot run."""
    from pi05_ros.bags.chunk_record import read_chunks
    from pi05_ros.bags.lerobot_recording import open_recording
    from pi05_ros.bags.topics import parse_map
    from pi05_ros.replay.out_claim import claim
    from pi05_ros.replay.plots import require_matplotlib
    from pi05_ros.replay.run import choose, robot_of, run_offline, run_online, write_files
    from pi05_ros.runtime.parameters import PolicyParameters

    _check_options(args)
    if not args.no_plot and args.verify is None:
        require_matplotlib()
    values = node_values(args)
    parameters = PolicyParameters.from_values(values)
    mapping = parse_map(args.map)
    if args.against_demonstration:
        return _against_demonstration(args, parameters, mapping)
    robot = robot_of(parameters)
    with open_recording(args.bag, robot) as bag:
        chosen = choose(
            bag,
            robot,
            mapping,
            args.namespace,
            parameters.roles,
            with_prompt=not parameters.prompt,
        )
        if args.verify is not None:
            return _verify(args, bag, chosen.sources, parameters)
    reference = read_chunks(args.against) if args.against is not None else None
    if parameters.checkpoint.startswith("random:"):
        print(f"weights are random ({parameters.checkpoint}): the actions mean nothing")
    for name, source in chosen.sources.items():
        print(f"{name:15} {source.topic} ({source.msgtype})")
    for name in chosen.absent:
        print(f"{name:15} not in the bag, so the model sees none; --map names another topic")
    with claim(args.out):
        if args.offline:
            outcome = run_offline(args.bag, chosen, parameters, args.out, args.time, args.loop)
        else:
            outcome = run_online(
                args.bag,
                chosen,
                values,
                parameters,
                args.out,
                args.time,
                args.speed,
                args.loop,
                print,
            )
        title = f"{args.bag}, {parameters.checkpoint}, {outcome.summary.mode}"
        written = write_files(outcome, args.out, chosen, args.bag, not args.no_plot, title)
    print("\n".join(outcome.summary.lines()))
    print("wrote           " + ", ".join(str(path) for path in written))
    return _verdict(args, outcome, reference)


def _check_options(args: argparse.Namespace) -> None:
    share = args.require_rate
    for option, value, right, accepted in (
        ("--loop", args.loop, args.loop >= 1, "from 1"),
        ("--speed", args.speed, 0.01 <= args.speed <= 100.0, "0.01 to 100"),
        ("--tolerance", args.tolerance, args.tolerance >= 0.0, "from 0"),
        ("--require-rate", share, share is None or 0.0 < share <= 1.0, "above 0, up to 1"),
    ):
        if not right:
            raise InvalidValueError(f"{option} is {value:g}; accepted: {accepted}")
    if args.partial and args.against is None:
        raise InvalidValueError("--partial is for --against CHUNKS")


def _verdict(
    args: argparse.Namespace, outcome: Outcome, reference: list[ChunkRecord] | None
) -> int:
    """Exit code of a replay, and why it is not 0."""
    from pi05_ros.replay.compare import compare

    code = EQUAL
    if reference is not None:
        partial = args.partial or not args.offline
        comparison = compare(outcome.chunks, reference, args.tolerance, partial)
        print(comparison.report())
        code = EQUAL if comparison.equal else DIFFERENT
    if not outcome.chunks:
        print("pi05 replay: no chunk came; the skipped ticks above say why", file=sys.stderr)
        code = DIFFERENT
    if args.require_rate is not None and not outcome.summary.rate_kept(args.require_rate):
        print(
            f"pi05 replay: {len(outcome.chunks)} chunks, asked for at least "
            f"{args.require_rate * outcome.summary.expected:.0f}",
            file=sys.stderr,
        )
        code = DIFFERENT
    return code


def _against_demonstration(
    args: argparse.Namespace, parameters: PolicyParameters, mapping: Mapping[str, str]
) -> int:
    """Compare with what the demonstrator did."""
    from pi05_ros.bags.bag import BagError
    from pi05_ros.bags.bag_files import bags_in
    from pi05_ros.bags.lerobot_recording import episodes_in
    from pi05_ros.replay.against_demonstration import compare_bags
    from pi05_ros.replay.out_claim import claim
    from pi05_ros.replay.plots import plot_agreement
    from pi05_ros.runtime.policy_loading import load_policy

    policy = load_policy(parameters)
    with claim(args.out):
        agreement = compare_bags(
            [episode for path in bags_in(args.bag) for episode in episodes_in(path)],
            policy,
            mapping,
            args.namespace,
            parameters.prompt,
            say=lambda text: print(f"{'...':15} {text}"),
        )
        written = [args.out / "agreement.json"]
        try:
            agreement.write(written[0])
            if not args.no_plot:
                written.append(args.out / "agreement.png")
                title = f"{args.bag}, {parameters.checkpoint}"
                plot_agreement(written[1], agreement.windows, agreement.errors, title)
        except OSError as error:
            raise BagError(f"cannot write {written[-1]}: {error.strerror or error}") from error
    print("\n".join(agreement.lines()))
    print("wrote           " + ", ".join(str(path) for path in written))
    return EQUAL if agreement.agrees else DIFFERENT


def _verify(args: argparse.Namespace, bag: Bag, sources: Any, parameters: PolicyParameters) -> int:
    """Recompute recorded chunks."""
    from pi05_ros.bags.chunk_record import read_chunks
    from pi05_ros.replay.recompute import policy_for, verify

    chunks = read_chunks(args.verify)
    on_change = [name for name in parameters.on_change_joints if name]
    policy = policy_for(parameters, chunks)
    comparison = verify(bag, sources, policy, chunks, args.tolerance, on_change)
    if comparison.compared < len(chunks):
        left_out = len(chunks) - comparison.compared
        print(f"{left_out} chunks reuse the KV cache of an earlier one and are left out")
    print(comparison.report())
    return EQUAL if comparison.equal else DIFFERENT
