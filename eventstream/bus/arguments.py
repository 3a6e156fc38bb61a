"""Checks what users give to the bus's methods, in one place, so that each wrong value gets the same clear error."""

from __future__ import annotations

from collections.abc import Mapping

from ..events import MAX_INDEX, Earliest, Position, check_headers, check_name
from ..logs import Terms

__all__ = ("check_after", "check_filter", "terms")


def terms(
    expect: int | None,
    id: str | None,
    headers: Mapping[str, str] | None,
    index: int | None,
) -> Terms | None:
    """What a publish asks for, checked; None if it asks for nothing."""
    if expect is None and id is None and headers is None and index is None:
        return None
    if expect is not None:
        _check_index("expect", expect, least=0)
    if index is not None:
        _check_index("index", index, least=1)
    if id is not None:
        id = check_name("id", id)
    return Terms(id, expect, index, check_headers(headers))


def _check_index(name: str, value: object, *, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MAX_INDEX:
        raise ValueError(f"{name} must be a whole number from {least} to 2**63 - 1, not {value!r}")


def check_filter(key: str | None, prefix: str | None) -> tuple[str | None, str | None]:
    """What narrows a subscription down, as plain text.

    Raises:
        InvalidName, ValueError: see `EventBus.subscribe`.
    """
    if key is not None and prefix is not None:
        raise ValueError("give key= or prefix=, not both")
    if key is not None:
        key = check_name("key", key)
    if prefix is not None:
        prefix = check_name("prefix", prefix)
    return key, prefix


def check_after(after: object) -> Position | Earliest | None:
    """What a subscription starts after; the text of a position is read.

    Raises:
        InvalidPosition: if it is a text, but of no position, or a position of impossible parts.
        TypeError: if it is nothing of the kind.
    """
    if isinstance(after, str):
        return Position.parse(after)
    if isinstance(after, Position):
        return Position.parse(str(after))
    if after is None or isinstance(after, Earliest):
        return after
    raise TypeError(f"after must be a Position, the text of one, EARLIEST or None, not {after!r}")
