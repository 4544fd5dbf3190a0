"""A loaded policy as a server: metadata, sessions, health, signals."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from pi05_ros.policy.chunking.continuing import ContinuingPolicy
from pi05_ros.serving.chunk_rules import ChunkRules
from pi05_ros.serving.large_frames import keep_memory
from pi05_ros.serving.metadata import server_metadata, statistics_hash
from pi05_ros.serving.openpi_units import OpenpiUnits
from pi05_ros.serving.server import PolicyServer, ServerOptions
from pi05_ros.serving.session import Session, offered_modes

if TYPE_CHECKING:
    from pi05_ros.policy import Policy

log = logging.getLogger("pi05_ros.serving")


def policy_server(
    policy: Policy, options: ServerOptions, seed: int = 0, rules: ChunkRules | None = None
) -> PolicyServer:
    """The server of one policy; every connection starts its seeds at ``seed``.

    Args:
        policy: what is served.
        options: see `PolicyServer`.
        seed: first of each connection.
        rules: how chunks continue each other in sessions that do not say.

    Raises:
        ServingError: it would listen beyond this machine without keys.

    """
    openpi = OpenpiUnits(policy.recipe)
    metadata = server_metadata(
        policy.info, policy.robot, statistics_hash(policy.recipe), options.max_frame,
        offered_modes(policy),
    )  # fmt: skip
    return PolicyServer(
        policy.robot,
        lambda: metadata,
        lambda: Session(policy, seed, openpi, rules),
        options,
    )


def warm_up(policy: Policy, rules: ChunkRules) -> None:
    """Run a policy before it is served, the way its chunks will be asked for.

    Raises:
        Pi05Error: chunks cannot continue each other in this way.

    """
    if rules.continuing:
        ContinuingPolicy(policy, rules.mode, rules.reuse).warm_up()
    else:
        policy.warm_up()


def serve_until_signal(
    server: PolicyServer, listening: Callable[[int], None] = lambda port: None
) -> bool:
    """Serve until SIGINT or SIGTERM, drain; False if requests had to be left behind."""
    keep_memory()
    gc.collect()
    gc.freeze()  # the loaded program is not garbage; looking through it takes milliseconds

    async def run() -> bool:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        return await server.run(stop, listening)

    return asyncio.run(run())
