"""`pi05 serve`: a policy server on openpi's websocket protocol."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pi05_ros.cli.checkpoint_options import add_checkpoint_options, load_keywords

if TYPE_CHECKING:
    from pi05_ros.serving.server import ServerOptions

LOADED_WITH = (
    "robot", "tokenizer", "backend", "precision", "horizon", "device", "prompt", "threads",
)  # fmt: skip
"""Options that are keywords of `Policy.load`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the policy, then of the server."""
    policy = parser.add_argument_group("policy")
    policy.add_argument("checkpoint", help="openpi or LeRobot directory, or random:tiny")
    policy.add_argument("--robot", help="shipped profile or YAML file")
    policy.add_argument("--tokenizer", help="file, directory, or bytes")
    policy.add_argument("--backend", default="auto", help="auto, eager, cuda, onnx, tensorrt")
    policy.add_argument("--precision", help="of all stages: auto, fp32, bf16, fp16, fp8")
    policy.add_argument("--denoise-steps", type=int, help="flow steps per chunk")
    policy.add_argument("--horizon", type=int, help="steps kept of each chunk")
    policy.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    policy.add_argument("--seed", type=int, default=0, help="first seed of each session")
    policy.add_argument("--prompt", help="of requests that bring none")
    policy.add_argument("--threads", type=int, help="CPU threads of torch")
    add_checkpoint_options(policy)
    server = parser.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1", help="address (default 127.0.0.1)")
    server.add_argument("--port", type=int, default=8000, help="default 8000; 0: a free one")
    server.add_argument("--keys-file", type=Path, help="API keys, one a line; mode 0600")
    server.add_argument("--cert", type=Path, help="TLS certificate chain, PEM")
    server.add_argument("--key", type=Path, help="TLS private key, PEM")
    server.add_argument("--max-frame-mib", type=int, default=32, help="largest request")
    server.add_argument("--max-sessions", type=int, default=64, help="connections at a time")
    server.add_argument("--deadline-ms", type=float, help="of requests that name none")
    server.add_argument("--chunk-mode", default="plain", metavar="MODE",
                        help="of sessions that name none: how chunks continue")  # fmt: skip
    server.add_argument("--kv-reuse", default="1", metavar="N",
                        help="of sessions that name none: prefill every n-th time")  # fmt: skip
    fleet = parser.add_argument_group("fleet (pi05_ros[fleet])")
    fleet.add_argument("--ray", metavar="ADDRESS",
                       help="replicas on this Ray cluster: auto, host:6379, or local")  # fmt: skip
    fleet.add_argument("--replicas", type=int, default=1, help="at least")
    fleet.add_argument("--max-replicas", type=int, default=0, help="at most; scales in between")
    fleet.add_argument("--gpus", type=float, default=0.0, help="of each replica; 0.25 shares one")
    fleet.add_argument("--cpus", type=float, default=1.0, help="of each replica")
    fleet.add_argument("--update", action="store_true",
                       help="change the checkpoint of a running fleet and end")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Load, warm up, serve until SIGINT or SIGTERM."""
    from pi05_ros.policy.remote.key_file import read_keys
    from pi05_ros.serving.access import Access, check_exposure, is_loopback, tls_context
    from pi05_ros.serving.chunk_rules import NO_KV_REUSE, ChunkRules
    from pi05_ros.serving.errors import ServingError
    from pi05_ros.serving.server import ServerOptions

    logging.getLogger("pi05_ros.serving").setLevel(logging.INFO)
    for name, value, least, accepted in (
        ("--max-frame-mib", args.max_frame_mib, 1, "1 or more"),
        ("--max-sessions", args.max_sessions, 1, "1 or more"),
        ("--port", args.port, 0, "0 to 65535"),
    ):
        if value < least or (name == "--port" and value > 65535):
            raise ServingError(f"{name} is {value}; accepted: {accepted}")
    access = Access(read_keys(args.keys_file)) if args.keys_file else Access()
    check_exposure(args.host, access)
    options = ServerOptions(
        host=args.host,
        port=args.port,
        access=access,
        tls=tls_context(args.cert, args.key),
        max_frame=args.max_frame_mib * 1024 * 1024,
        max_sessions=args.max_sessions,
        deadline_ms=args.deadline_ms,
    )
    if options.tls is None and not is_loopback(args.host):
        print("without --cert and --key, keys and images cross the network unencrypted",
              file=sys.stderr)  # fmt: skip
    load = {name: getattr(args, name) for name in LOADED_WITH} | load_keywords(args)
    if args.denoise_steps is not None:
        load["denoise_steps"] = args.denoise_steps
    rules = ChunkRules(args.chunk_mode, args.kv_reuse)
    if args.ray:
        if rules.reuse != "1":
            raise ServingError(f"--ray: {NO_KV_REUSE}")
        return _serve_fleet(args, options, load)
    if args.update:
        raise ServingError("--update changes a fleet; name its cluster with --ray")
    from pi05_ros.policy import Policy
    from pi05_ros.serving.service import policy_server, serve_until_signal, warm_up

    policy = Policy.load(args.checkpoint, seed=args.seed, **load)
    try:
        warm_up(policy, rules)
        server = policy_server(policy, options, args.seed, rules)
        what = f"{policy.info.checkpoint} for {policy.info.robot}"
        clean = serve_until_signal(server, lambda port: _say(what, options, port))
    finally:
        policy.close()
    return 0 if clean else 1


def _serve_fleet(args: argparse.Namespace, options: ServerOptions, load: dict[str, Any]) -> int:
    """Start replicas on a Ray cluster and the front here, or change a running fleet."""
    from pi05_ros.serving.fleet.ray_fleet import FleetOptions, deploy, fleet_server, join_cluster
    from pi05_ros.serving.service import serve_until_signal

    fleet = FleetOptions(
        "" if args.ray == "local" else args.ray,
        args.replicas,
        args.max_replicas,
        args.gpus,
        args.cpus,
        {name: value for name, value in load.items() if value is not None},
        args.chunk_mode,
    )
    join_cluster(fleet.address)
    handle = deploy(args.checkpoint, fleet, options.max_frame)
    if args.update:
        print(f"all replicas answer with {args.checkpoint}")
        return 0
    front = dataclasses.replace(options, workers=2 * fleet.most)
    server = fleet_server(handle, front, args.robot, args.seed, args.chunk_mode)
    what = f"{args.checkpoint} on {fleet.replicas} replicas"
    return 0 if serve_until_signal(server, lambda port: _say(what, options, port)) else 1


def _say(what: str, options: ServerOptions, port: int) -> None:
    scheme = "ws" if options.tls is None else "wss"
    print(f"serving {what} on {scheme}://{options.host}:{port}", flush=True)
