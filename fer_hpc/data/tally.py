"""Counts by reason, with the first example of each: what preprocess did not take, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Kind:
    """How many things a reason holds for, and one of them."""

    n: int
    example: str
    limited: bool  # whether they count towards --max-rejects


class Tally:
    """Counts by reason."""

    def __init__(self) -> None:
        self.kinds: dict[str, Kind] = {}

    def add(self, reason: str, example: str, n: int = 1, limited: bool = False) -> None:
        """Count `n` more things; the first example of a reason is kept."""
        if n and reason not in self.kinds:
            self.kinds[reason] = Kind(0, example, limited)
        if n:
            self.kinds[reason].n += n

    def update(self, other: Tally) -> None:
        """Count all that another tally has counted."""
        for reason, kind in other.kinds.items():
            self.add(reason, kind.example, kind.n, kind.limited)

    @property
    def total(self) -> int:
        return sum(kind.n for kind in self.kinds.values())

    @property
    def limited(self) -> int:
        """Those that count towards --max-rejects."""
        return sum(kind.n for kind in self.kinds.values() if kind.limited)

    def worst(self) -> list[tuple[str, Kind]]:
        """All reasons, the most frequent first."""
        return sorted(self.kinds.items(), key=lambda item: -item[1].n)

    def as_json(self) -> dict[str, Any]:
        """{n, reasons: {reason: {n, example}}}, for the manifest."""
        reasons = {r: {"n": k.n, "example": k.example} for r, k in self.worst()}
        return {"n": self.total, "reasons": reasons}
