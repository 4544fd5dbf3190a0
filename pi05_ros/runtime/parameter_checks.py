"""What is wrong with a value of a parameter of the policy node, None if nothing is."""

from __future__ import annotations

from pi05_ros.policy.chunking.kv_reuse import make_rule


def check_roles(roles: tuple[str, ...]) -> str | None:
    """Camera roles, each once."""
    given = [role for role in roles if role]
    if len(set(given)) != len(given):
        return "every camera role may be named once"
    return None


def check_control_hz(value: float) -> str | None:
    """A rate, or 0."""
    return None if value == 0.0 or value >= 0.1 else "accepted: 0, or 0.1 to 1000"


def check_camera_map(pairs: tuple[str, ...]) -> str | None:
    """Pairs role=feature, each role once."""
    split = [pair.partition("=") for pair in pairs if pair]
    if not all(role and sign and feature for role, sign, feature in split):
        return "accepted: role=feature, for example base=observation.images.top"
    if len({role for role, _, _ in split}) != len(split):
        return "every camera role may be named once"
    return None


def check_reuse(word: str) -> str | None:
    """A rule of KV cache reuse."""
    try:
        make_rule(word)
    except ValueError:
        return "accepted: a number of observations from 1, or dynamic"
    return None
