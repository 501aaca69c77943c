"""One row of a bench's table, the same form for all of them."""

from __future__ import annotations

__all__ = ["row"]


def row(name: str, value: float, unit: str, goal: str | None = None, ok: bool = True) -> None:
    """Print ``name``, ``value`` in ``unit``, its goal and whether it was reached; without a goal it is information."""
    verdict = "" if goal is None else f"{goal:>8}  {'ok' if ok else 'MISSED'}"
    print(f"{name:<62} {value:>10.3f} {unit:<4} {verdict}".rstrip(), flush=True)
