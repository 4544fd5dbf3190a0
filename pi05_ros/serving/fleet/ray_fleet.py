"""Many replicas of a policy on a Ray cluster behind one websocket.

Ray Serve places the replicas, restarts dead ones, scales them by their queues and changes the
checkpoint replica by replica. The front is the same `PolicyServer` as for one policy: it counts
the seeds of its sessions, so any replica can answer any request, and a request whose replica dies
is given to another one. What a chunk continues comes back with each answer and goes out with the
next request, so that a replica keeps nothing that could be lost with it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pi05_ros.policy.chunking.kv_reuse import MODES
from pi05_ros.policy.interface import MAX_SEED
from pi05_ros.policy.remote.array_codec import pack, unpack
from pi05_ros.policy.remote.errors import WireError
from pi05_ros.policy.remote.server_facts import read_metadata
from pi05_ros.policy.robots.profile_yaml import load_profile
from pi05_ros.serving.chunk_rules import NO_KV_REUSE
from pi05_ros.serving.errors import ServingError
from pi05_ros.serving.fleet.fleet_replica import FleetReplica
from pi05_ros.serving.requests import Request
from pi05_ros.serving.server import PolicyServer, ServerOptions

APPLICATION = "pi05"
DEPLOYMENT = "PolicyReplica"
TRIES = 4
"""How many replicas may die under one request before it is answered with an error."""
ANSWER_S = 60.0


@dataclass(frozen=True)
class FleetOptions:
    """How many replicas, and what each takes.

    Attributes:
        address: of the Ray cluster ("auto", "host:6379"); empty starts one on this machine.
        replicas: at least.
        max_replicas: at most; more than ``replicas`` scales by the length of the queues.
        gpus, cpus: of each replica; 0.25 GPUs puts four on one.
        load: further arguments of `Policy.load`.
        chunk_mode: of requests that name none.

    """

    address: str = ""
    replicas: int = 1
    max_replicas: int = 0
    gpus: float = 0.0
    cpus: float = 1.0
    load: Mapping[str, Any] = field(default_factory=dict)
    chunk_mode: str = MODES[0]

    def __post_init__(self) -> None:
        if self.replicas < 1 or (self.max_replicas and self.max_replicas < self.replicas):
            raise ServingError(
                f"replicas {self.replicas} to {self.max_replicas}; accepted: 1 or more, and no "
                "fewer at most than at least"
            )
        if self.gpus < 0 or self.cpus < 0:
            raise ServingError(
                f"gpus {self.gpus:g}, cpus {self.cpus:g} of a replica; accepted: 0 or more"
            )

    @property
    def most(self) -> int:
        """Replicas at most."""
        return self.max_replicas or self.replicas


def join_cluster(address: str) -> None:
    """Connect to a Ray cluster, or start one here.

    Raises:
        ServingError: Ray is not installed or the cluster cannot be reached.

    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports its use by default
    try:
        import ray
    except ImportError as error:
        raise ServingError('fleets need Ray: pip install "pi05_ros[fleet]"') from error
    if ray.is_initialized():
        return
    try:
        ray.init(
            address=address or None,
            include_dashboard=False,
            log_to_driver=False,
            **({} if address else {"num_cpus": max(4, os.cpu_count() or 1)}),
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ServingError(f"cannot use Ray cluster {address or 'of this machine'}: {error}"
                           ) from error  # fmt: skip


def deploy(checkpoint: str, options: FleetOptions, max_frame: int) -> Any:
    """Start the replicas, or change those of a running fleet one by one; returns their handle.

    Returns when all of them have answered a real inference.

    Raises:
        ServingError: the replicas do not start; the reason is Ray's.

    """
    from ray import serve

    scaling: dict[str, Any] = {"num_replicas": options.replicas}
    if options.most > options.replicas:
        scaling = {
            "autoscaling_config": {
                "min_replicas": options.replicas,
                "max_replicas": options.most,
                "target_ongoing_requests": 2,
            }
        }
    replica = serve.deployment(
        FleetReplica,
        name=DEPLOYMENT,
        ray_actor_options={"num_gpus": options.gpus, "num_cpus": options.cpus},
        max_ongoing_requests=4,
        health_check_period_s=10,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=30,
        **scaling,
    )
    try:
        return serve.run(
            replica.bind(checkpoint, dict(options.load), max_frame, options.chunk_mode),
            name=APPLICATION,
            route_prefix=None,
        )
    except RuntimeError as error:
        raise ServingError(f"the replicas of {checkpoint} do not start: {error}") from error


class FleetSession:
    """A connection of the front: counts seeds, sends requests to replicas, tries others on death.

    Args:
        handle: of the deployment.
        seed: request i without a seed of its own uses seed + i.
        chunk_mode: of requests that name none.
        lost: errors that say nothing of the request, which another replica may answer.

    """

    def __init__(
        self,
        handle: Any,
        seed: int = 0,
        chunk_mode: str = MODES[0],
        lost: tuple[type[BaseException], ...] = (TimeoutError,),
    ) -> None:
        self._handle = handle
        self._lost = lost
        self._seed = seed
        self._mode = chunk_mode
        self._count = 0
        self._carried = ("", b"")  # the mode, and what its next chunk continues

    def answer(self, request: Request) -> dict[str, Any]:
        """See `Session.answer`; also raises ServingError when replicas keep dying."""
        if request.reset:
            self._count = 0
            self._carried = ("", b"")
        if request.observation is None:
            return {"reset": True}
        if request.kv_reuse not in (None, "1"):
            raise WireError(NO_KV_REUSE)
        mode = request.chunk_mode or self._mode
        if mode != self._carried[0]:
            self._carried = (mode, b"")
        seed = request.seed
        if seed is None:
            seed = (self._seed + self._count) % (MAX_SEED + 1)
            self._count += 1
        asked = dataclasses.replace(request, seed=seed, chunk_mode=mode)
        answer, carried = self._ask(pack_request(asked), request.openpi)
        self._carried = (mode, carried)
        value = unpack(answer).value
        assert isinstance(value, dict)
        return value

    def _ask(self, frame: bytes, openpi: bool) -> tuple[bytes, bytes]:
        """Any replica's answer, and what the next one continues."""
        why = ""
        for _ in range(TRIES):
            try:
                asked = self._handle.infer.remote(frame, openpi, self._carried[1])
                answer, carried = asked.result(timeout_s=ANSWER_S)
                return bytes(answer), bytes(carried)
            except self._lost as error:
                why = _cause(error)
            except Exception as error:
                if isinstance(getattr(error, "cause", error), ServingError):  # not finite
                    self._carried = ("", b"")
                raise ServingError(_cause(error)) from error
        raise ServingError(f"{TRIES} replicas in a row did not answer: {why}")


def pack_request(request: Request) -> bytes:
    """A parsed request in our own form again."""
    obs = request.observation
    assert obs is not None
    value: dict[str, Any] = {
        "images": dict(obs.images), "state": obs.state, "seed": request.seed,
        "stamp_ns": obs.stamp_ns, "age_s": obs.age_s,
    }  # fmt: skip
    if obs.prompt is not None:
        value["prompt"] = obs.prompt
    for name in ("denoise_steps", "chunk_mode", "steps_since", "delay_steps"):
        if (said := getattr(request, name)) is not None:
            value[name] = said
    return pack(value)


def fleet_server(
    handle: Any,
    options: ServerOptions,
    robot: str | None = None,
    seed: int = 0,
    chunk_mode: str = MODES[0],
) -> PolicyServer:
    """The front of a running fleet.

    Raises:
        ServingError, RemoteError: see `PolicyServer`, or the replicas serve another robot.

    """
    from ray.exceptions import RayActorError

    lost = (RayActorError, TimeoutError)

    def describe() -> dict[str, Any]:
        found = unpack(handle.describe.remote().result(timeout_s=ANSWER_S)).value
        assert isinstance(found, dict)
        return found

    profile = read_metadata(describe(), None if robot is None else load_profile(robot)).robot
    return PolicyServer(
        profile, describe, lambda: FleetSession(handle, seed, chunk_mode, lost), options
    )


def _cause(error: BaseException) -> str:
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return (lines[-1] if lines else type(cause).__name__).strip()[:300]
