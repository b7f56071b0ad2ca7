"""A measured number as it is reported: with its interval and the number of cases behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ldm_tutor.errors import ConfigError


@dataclass(frozen=True)
class Measured:
    """A value, the interval that covers the truth in 95 of 100 such measurements (None: not known), and the count."""

    value: float
    interval: tuple[float, float] | None
    num: int

    def to_dict(self) -> dict[str, Any]:
        """Return {value, interval, num} for JSON, rounded to five digits."""
        interval = None if self.interval is None else [round(x, 5) for x in self.interval]
        return {"value": round(self.value, 5), "interval": interval, "num": self.num}


def share(hits: Sequence[bool]) -> Measured:
    """Return the share of True with Wilson's 95% interval (Wilson 1927)."""
    n = len(hits)
    if n == 0:
        raise ConfigError("share of nothing", given=0, expected="at least one case")
    p, z = sum(hits) / n, 1.96
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Measured(p, (max(0.0, centre - half), min(1.0, centre + half)), n)


def mean(values: Sequence[float]) -> Measured:
    """Return the mean with its normal 95% interval; no interval for a single value."""
    n = len(values)
    if n == 0:
        raise ConfigError("mean of nothing", given=0, expected="at least one value")
    m = sum(values) / n
    if n == 1:
        return Measured(m, None, 1)
    spread = math.sqrt(sum((v - m) ** 2 for v in values) / (n - 1) / n)
    return Measured(m, (m - 1.96 * spread, m + 1.96 * spread), n)
