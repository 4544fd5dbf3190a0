"""One image on two slots of the policy: in the recording, or on the way into the policy.

In a recording the two cameras then show the same, which is seen without the policy. On the way
into it, images of a camera make no difference to what the policy says, bit for bit. No correction
of the observations can mend either.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from pi05_ros.policy.interface import Observation
from pi05_ros.replay.faults.windows import Hypothesis

KIND = "one_image"


def same_images(
    observations: Sequence[Observation], roles: Sequence[str], errors: np.ndarray
) -> list[Hypothesis]:
    """Pairs of cameras that show the same, pixel by pixel, in all observations.

    Args:
        observations: of all moments that are compared.
        roles: of the cameras.
        errors: of the policy ``[A]``; nothing corrects them.

    """
    found = []
    for a, b in itertools.combinations(roles, 2):
        pairs = [(np.asarray(o.images[a]), np.asarray(o.images[b])) for o in observations]
        if all(_same(one, other) for one, other in pairs):
            text = f"{a} and {b} show the same: the images of one camera are on both slots"
            found.append(Hypothesis(KIND, text, (), 2.0, errors, corrected=False))
    return found


def unseen_images(
    unseen: Sequence[str], roles: Sequence[str], errors: np.ndarray
) -> list[Hypothesis]:
    """Cameras whose images the policy does not get.

    Args:
        unseen: those without an effect on its chunks.
        roles, errors: as of `same_images`.

    """
    others = [role for role in roles if role not in unseen]
    if not unseen or not others:
        return []
    lost, seen = " and ".join(unseen), " or ".join(others)
    slots = ", ".join(role for role in roles if role in unseen or len(others) == 1)
    text = (
        f"the images of {lost} make no difference to the policy: it gets those of {seen} on the "
        f"slots of both ({slots}), or none of {lost}"
    )
    return [Hypothesis(KIND, text, (), float(1 + len(unseen)), errors, corrected=False)]


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two pictures are one: two cameras agree in every pixel only where both are dark."""
    return np.array_equal(one, other) and bool(one.min() < one.max())
