"""State and action normalization, as openpi (transforms.py) and LeRobot (normalize_processor.py).

The two agree in idea and differ in the small constant that keeps divisions finite, and in
arithmetic: openpi computes in float64, LeRobot in float32. Neither clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from pi05_ros.policy.errors import PolicyError

# kind -> the two statistics it needs
NEEDED = {
    "quantile": ("q01", "q99"),
    "quantile10": ("q10", "q90"),
    "minmax": ("min", "max"),
    "zscore": ("mean", "std"),
    "identity": (),
}
_REACH = 1e3
OPENPI_EPS = 1e-6
LEROBOT_EPS = 1e-8


@dataclass(frozen=True)
class Normalizer:
    """One vector's normalization (state, or actions).

    Attributes:
        kind: "quantile" (q01/q99 to [-1, 1]), "quantile10" (q10/q90), "minmax", "zscore",
            "identity".
        stats: statistic name -> ``[n]``; the ones that the kind needs.
        family: "openpi" (float64, 1e-6 added to the range or deviation, both ways) or "lerobot"
            (float32, ``eps`` in place of a zero range; added to the deviation one way only).
        eps: that constant.

    """

    kind: str
    stats: Mapping[str, np.ndarray] = field(default_factory=dict)
    family: str = "openpi"
    eps: float = OPENPI_EPS

    def __post_init__(self) -> None:
        if self.kind not in NEEDED:
            raise PolicyError(f"normalization {self.kind!r}; accepted: {', '.join(NEEDED)}")
        missing = [name for name in NEEDED[self.kind] if name not in self.stats]
        if missing:
            raise PolicyError(
                f"{self.kind} normalization needs the statistics {', '.join(NEEDED[self.kind])}; "
                f"missing: {', '.join(missing)} (there: {', '.join(self.stats) or 'none'})"
            )
        sizes = {name: self.stats[name].shape for name in NEEDED[self.kind]}
        if len(set(sizes.values())) > 1 or any(len(s) != 1 for s in sizes.values()):
            raise PolicyError(f"statistics of different or wrong shape: {sizes}")
        for name in NEEDED[self.kind]:
            if not np.isfinite(self.stats[name]).all():
                raise PolicyError(f"the statistic {name} holds NaN or infinite values")
        if self.kind != "identity":
            self._check_order()

    def _check_order(self) -> None:
        """Raise PolicyError where statistics would turn motion round or overflow."""
        first, second = NEEDED[self.kind]
        a, b = (self._array(self.stats[name]) for name in (first, second))
        if self.kind == "zscore":
            bad = np.flatnonzero(b < 0)
            if bad.size:
                raise PolicyError(
                    f"the statistic {second} is negative at value {bad[0]} ({b[bad[0]]:g})"
                )
        else:
            bad = np.flatnonzero(a > b)
            if bad.size:
                raise PolicyError(
                    f"the statistic {first} is above {second} at value {bad[0]} "
                    f"({a[bad[0]]:g} > {b[bad[0]]:g})"
                )
        with np.errstate(over="ignore", invalid="ignore"):
            span = b if self.kind == "zscore" else b - a
            # The model answers in about [-1, 1]; far outside there is still a number to report.
            reach = np.abs(a) + _REACH * np.abs(span)
        bad = np.flatnonzero(~np.isfinite(reach))
        if bad.size:
            raise PolicyError(
                f"the statistics {first} and {second} span more than can be computed with at "
                f"value {bad[0]} ({a[bad[0]]:g}, {b[bad[0]]:g})"
            )

    @property
    def size(self) -> int | None:
        """Values the statistics cover; None if any number will do."""
        needed = NEEDED[self.kind]
        return len(self.stats[needed[0]]) if needed else None

    def constant(self, count: int) -> np.ndarray:
        """Columns ``[count]`` whose statistics have no range, bool.

        There the small constant alone sets the scale: a millionth of a unit is the whole of it.
        """
        flat = np.zeros(count, dtype=bool)
        if self.kind != "identity":
            a, b = (self.stats[name][:count] for name in NEEDED[self.kind])
            flat[: len(a)] = np.abs(b if self.kind == "zscore" else b - a) <= OPENPI_EPS
        return flat

    def normalize(self, x: np.ndarray) -> np.ndarray:
        """Robot units ``[..., n]`` to the model's range; longer statistics are cut to n.

        Raises:
            PolicyError: x is longer than the statistics.

        """
        x = self._array(x)
        if self.kind == "identity":
            return x
        n = x.shape[-1]
        if n > (self.size or 0):
            raise PolicyError(f"{n} values, but the statistics cover only {self.size}")
        a, b = (self._array(self.stats[name])[:n] for name in NEEDED[self.kind])
        one, two = x.dtype.type(1), x.dtype.type(2)
        if self.kind == "zscore":
            found: np.ndarray = (x - a) / (b + x.dtype.type(self.eps))
            return found
        if self.family == "openpi":
            found = (x - a) / (b - a + self.eps) * two - one
            return found
        found = two * (x - a) / self._span(a, b) - one
        return found

    def unnormalize(self, y: np.ndarray) -> np.ndarray:
        """Inverse of `normalize` for ``[..., n]``.

        Columns beyond the statistics pass through (in openpi's z-score with mean 0, deviation 1).

        """
        y = self._array(y)
        if self.kind == "identity":
            return y
        n = min(y.shape[-1], self.size or 0)
        a, b = (self._array(self.stats[name])[:n] for name in NEEDED[self.kind])
        head, tail = y[..., :n], y[..., n:]
        one, two = y.dtype.type(1), y.dtype.type(2)
        if self.kind == "zscore":
            if self.family == "openpi":
                head, tail = head * (b + self.eps) + a, tail * (1.0 + self.eps)
            else:
                head = head * b + a
        elif self.family == "openpi":
            head = (head + one) / two * (b - a + self.eps) + a
        elif self.kind == "minmax":
            head = (head + one) / two * self._span(a, b) + a
        else:
            head = (head + one) * self._span(a, b) / two + a
        return np.concatenate([head, tail], axis=-1) if tail.shape[-1] else head

    def _array(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values, dtype=np.float32 if self.family == "lerobot" else np.float64)

    def _span(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        span = high - low
        found: np.ndarray = np.where(span == 0, span.dtype.type(self.eps), span)
        return found


IDENTITY = Normalizer("identity")


@dataclass(frozen=True)
class Normalization:
    """Normalization of one robot: the state on the way in, the actions on the way out.

    Attributes:
        state: see `Normalizer`.
        actions: see `Normalizer`.
        source: where the statistics are from.
        doubts: why they may be the wrong ones, in words; warned of when a policy is loaded.

    """

    state: Normalizer = IDENTITY
    actions: Normalizer = IDENTITY
    source: str = "none (values pass unchanged)"
    doubts: tuple[str, ...] = ()
