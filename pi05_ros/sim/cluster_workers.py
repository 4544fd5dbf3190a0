"""Jobs over the machines of a Ray cluster, in the order in which they end."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from pi05_ros.errors import InvalidValueError, Pi05Error
from pi05_ros.serving.fleet.ray_fleet import join_cluster

T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)
AHEAD = 2
"""Jobs that a worker has at a time."""
RESTARTS = 3
"""How often a worker may die, and a job be tried again; then the run ends with the reason."""


class JobRunner(Protocol[R_co]):
    """What runs jobs in a worker."""

    def run(self, job: Any) -> R_co:
        """Run one."""


class ClusterWorker:
    """Process of the cluster with a runner of its own.

    Args:
        make: makes the runner.
        pictures: what draws where the results are kept, if it matters.

    """

    def __init__(self, make: Callable[[], JobRunner[Any]], pictures: str | None) -> None:
        self._make = make
        self._pictures = pictures
        self._runner: JobRunner[Any] | None = None

    def run(self, job: Any) -> tuple[Any, Any]:
        """Job and its result; the runner is made at the first, so that its error is raised."""
        if self._runner is None:
            self._runner = self._made()
        return job, self._runner.run(job)

    def _made(self) -> JobRunner[Any]:
        runner = self._make()
        world = getattr(runner, "world", None)
        if self._pictures is not None and world is not None and world.pictures != self._pictures:
            raise InvalidValueError(
                f"{socket.gethostname()} draws with {world.pictures}, the results are of "
                f"{self._pictures}; name one --renderer that every machine has"
            )
        return runner


def as_done_on_cluster(
    make: Callable[[], JobRunner[R_co]],
    jobs: Iterable[T],
    address: str,
    workers: int | None = None,
    gpus: float = 0.0,
    pictures: str | None = None,
) -> Iterator[tuple[T, R_co]]:
    """Jobs with their results.

    Args:
        make: makes the runner of a worker; what it needs must be on every machine.
        jobs: arguments of `JobRunner.run`.
        address: of the cluster ("auto", "host:6379"); "local" starts one here.
        workers: how many; None takes the CPUs of the cluster.
        gpus: of each worker.
        pictures: see `ClusterWorker`.

    Raises:
        ServingError: Ray is not installed or the cluster cannot be reached.
        Pi05Error: of a job or a runner, as it was raised there.
        ChildProcessError: workers keep dying, or a job failed in another way.

    """
    join_cluster("" if address == "local" else address)
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    count = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    remote = ray.remote(
        num_cpus=1, num_gpus=gpus, max_restarts=RESTARTS, max_task_retries=RESTARTS
    )(ClusterWorker)
    todo, running = iter(jobs), dict[Any, Any]()
    made = [remote.remote(make, pictures) for _ in range(count)]
    try:
        for job in itertools.islice(todo, AHEAD * count):
            worker = made[len(running) % count]
            running[worker.run.remote(job)] = worker
        while running:
            done, _ = ray.wait(list(running), num_returns=1)
            worker = running.pop(done[0])
            for job in itertools.islice(todo, 1):
                running[worker.run.remote(job)] = worker
            yield ray.get(done[0])
    except RayTaskError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, Pi05Error):
            raise cause from error
        raise ChildProcessError(f"a worker of the cluster failed: {error}") from error
    except RayActorError as error:
        raise ChildProcessError(f"a worker of the cluster died: {_last_line(error)}") from error
    finally:
        for worker in made:
            ray.kill(worker)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
