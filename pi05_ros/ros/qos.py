"""Quality of service of every topic of the nodes, in one place."""

from __future__ import annotations

import copy

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions, QoSPolicyKind

# Newest sample only. Best effort takes from reliable and from best-effort publishers.
INPUT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
# Joint states come from several publishers: the queue is deep enough that those of wheels do not
# push out those of the arm between two turns of the executor.
JOINTS = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)
# INPUT for images whose publishers are all reliable: with default settings Fast DDS loses
# most best-effort images above 0.5 MB between processes, and resends reliable ones.
INPUT_RELIABLE = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
# The same where nothing arrives at depth 1: Fast DDS puts the fragments of a large image together
# in the reader's queue, and where the next image begins before the one before is complete, a queue
# of one completes none. A deeper queue is taken whole, which costs a copy each.
INPUT_LARGE = QoSProfile(depth=3, reliability=ReliabilityPolicy.RELIABLE)
# For a film: every image counts, also where simulated time runs faster than they are read.
FILM = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)
# A late chunk is useless: volatile, and only the newest is resent.
CHUNK = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
# Late joiners get the last value.
LATCHED = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
PROMPT = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
DIAGNOSTICS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)


def own(profile: QoSProfile) -> QoSProfile:
    """Copy for one topic whose profile users may override: rclpy writes overrides into it."""
    return copy.copy(profile)


def overridable_depth() -> QoSOverridingOptions:
    """Let users set depth and history; reliability is a parameter of the node."""
    return QoSOverridingOptions((QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH))


def overridable() -> QoSOverridingOptions:
    """Let users set depth, history and reliability by ``qos_overrides.*`` parameters."""
    return QoSOverridingOptions.with_default_policies()
