"""A DDS domain id that nobody on this machine uses, for tests, demos and benchmarks."""

from __future__ import annotations

import os
import random
import socket
from collections import deque

from pi05_ros.errors import Pi05Error

# DDS-RTPS 9.6.2: discovery ports of a domain; participants of one host take pairs above.
PORT_BASE = 7400
DOMAIN_GAIN = 250
UNICAST_OFFSET = 10
CHECKED_PARTICIPANTS = 10
RESERVATIONS = 4
_reserved: deque[tuple[int, socket.socket]] = deque()


class DomainError(Pi05Error, RuntimeError):
    """No DDS domain id is free."""


def _is_free(domain_id: int) -> bool:
    base = PORT_BASE + DOMAIN_GAIN * domain_id
    unicast = (base + UNICAST_OFFSET + i for i in range(2 * CHECKED_PARTICIPANTS))
    for port in (base, base + 1, *unicast):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("", port))
            except OSError:
                return False
    return True


def _reserve(domain_id: int) -> bool:
    """Whether no other process of this user has the id: an abstract socket with its name."""
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        holder.bind(f"\0pi05_ros-{os.getuid()}-domain-{domain_id}")
    except OSError:
        holder.close()
        return False
    _reserved.append((domain_id, holder))
    while len(_reserved) > RESERVATIONS:
        _reserved.popleft()[1].close()
    return True


def free_domain_id() -> int:
    """Pick an id in 1..100 whose discovery ports are free here, in random order.

    The ids stay below 101 so that no port falls into Linux's ephemeral range. The newest ids of
    a process stay reserved among processes that ask here, until it ends: participants that are
    about to start do not meet those of others.

    Raises:
        DomainError: all hundred are in use.

    """
    ids = list(range(1, 101))
    random.SystemRandom().shuffle(ids)
    for domain_id in ids:
        if _is_free(domain_id) and _reserve(domain_id):
            return domain_id
    raise DomainError("the discovery ports of all domain ids from 1 to 100 are in use")
