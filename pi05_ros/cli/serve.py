"""`pi05 serve`: a policy server on openpi's websocket protocol."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path


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
    policy.add_argument("--control-hz", type=float, help="replaces the profile's rate")
    server = parser.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1", help="address (default 127.0.0.1)")
    server.add_argument("--port", type=int, default=8000, help="default 8000; 0: a free one")
    server.add_argument("--keys-file", type=Path, help="API keys, one a line; mode 0600")
    server.add_argument("--cert", type=Path, help="TLS certificate chain, PEM")
    server.add_argument("--key", type=Path, help="TLS private key, PEM")
    server.add_argument("--max-frame-mib", type=int, default=32, help="largest request")
    server.add_argument("--max-sessions", type=int, default=64, help="connections at a time")
    server.add_argument("--deadline-ms", type=float, help="of requests that name none")


def run(args: argparse.Namespace) -> int:
    """Load, warm up, serve until SIGINT or SIGTERM."""
    from pi05_ros.policy import Policy
    from pi05_ros.policy.remote.key_file import read_keys
    from pi05_ros.serving.access import Access, check_exposure, is_loopback, tls_context
    from pi05_ros.serving.errors import ServingError
    from pi05_ros.serving.server import ServerOptions
    from pi05_ros.serving.service import policy_server, serve_until_signal

    logging.getLogger("pi05_ros.serving").setLevel(logging.INFO)
    for name, value, low in (
        ("--port", args.port, 0),
        ("--max-frame-mib", args.max_frame_mib, 1),
        ("--max-sessions", args.max_sessions, 1),
    ):
        if value < low or (name == "--port" and value > 65535):
            raise ServingError(f"{name} is {value}; accepted: {low} or more")
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
    chosen = {} if args.denoise_steps is None else {"denoise_steps": args.denoise_steps}
    policy = Policy.load(
        args.checkpoint,
        robot=args.robot,
        tokenizer=args.tokenizer,
        backend=args.backend,
        precision=args.precision,
        horizon=args.horizon,
        device=args.device,
        seed=args.seed,
        prompt=args.prompt,
        threads=args.threads,
        control_hz=args.control_hz,
        **chosen,
    )
    try:
        policy.warm_up()
        scheme = "ws" if options.tls is None else "wss"
        clean = serve_until_signal(
            policy_server(policy, options, args.seed),
            lambda port: print(
                f"serving {policy.info.checkpoint} for {policy.info.robot} on "
                f"{scheme}://{args.host}:{port}",
                flush=True,
            ),
        )
    finally:
        policy.close()
    return 0 if clean else 1
