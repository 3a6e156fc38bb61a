"""The declaration of a topic: what it carries, how its key is found, how much of it is kept. It holds no state."""

from __future__ import annotations

import builtins
import types
import typing
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, Final, Generic, TypeVar, get_args, get_origin, overload

import msgspec

from ..errors import InvalidName, PayloadTypeError
from .names import check_name

__all__ = ("NO_KEY", "Topic")

T = TypeVar("T")

NO_KEY: Final = ""  # the key of every event of a topic without keys


class Topic(Generic[T]):
    """A frozen declaration, to be shared by all who publish or read the topic.

    Args:
        name: Non-empty text of at most 255 UTF-8 bytes, without control characters.
        type: What its payloads are: anything that msgspec can encode (a Struct, a dataclass, `dict`, `bytes`, `Any`).
        key: Where a payload's key is: the name of a field, a callable, or None for a topic without keys.
        compacted: The newest event of each key is the topic's state, kept for ever, and is its snapshot.
        retain: How many of the newest events can be resumed from, at least 0.
        max_lag: How many events a reader may be behind before it is reset, at least 1.

    Raises:
        InvalidName: if the name is out of bounds.
        TypeError: if msgspec has no codec for `type` (it takes any plain class, to be told how to encode it later), or
            `key` is neither text nor callable.
        ValueError: if `key` names no field of `type`, a compacted topic has no key, or a bound is too small.
    """

    __slots__ = ("_classes", "_key_of", "compacted", "key", "max_lag", "name", "retain", "type")

    name: str
    type: builtins.type[T] | Any
    key: str | Callable[[T], str] | None
    compacted: bool
    retain: int
    max_lag: int
    _classes: tuple[builtins.type, ...]
    _key_of: Callable[[T], object] | None

    @overload
    def __init__(
        self,
        name: str,
        type: builtins.type[T],
        *,
        key: str | Callable[[T], str] | None = None,
        compacted: bool = False,
        retain: int = 1024,
        max_lag: int = 65_536,
    ) -> None: ...

    @overload
    def __init__(
        self: Topic[Any],
        name: str,
        type: Any,
        *,
        key: str | Callable[[Any], str] | None = None,
        compacted: bool = False,
        retain: int = 1024,
        max_lag: int = 65_536,
    ) -> None: ...

    def __init__(
        self,
        name: str,
        type: Any,
        *,
        key: str | Callable[[Any], str] | None = None,
        compacted: bool = False,
        retain: int = 1024,
        max_lag: int = 65_536,
    ) -> None:
        msgspec.msgpack.Decoder(type)  # says with a TypeError what it cannot encode
        if compacted and key is None:
            raise ValueError(f"topic {name!r} cannot be compacted without a key: say where a payload's key is")
        _check_bound("retain", retain, least=0)
        _check_bound("max_lag", max_lag, least=1)
        values: dict[str, object] = {
            "name": check_name("topic name", name),
            "type": type,
            "key": key,
            "compacted": compacted,
            "retain": retain,
            "max_lag": max_lag,
            "_classes": _classes(type),
            "_key_of": _key_getter(type, key),
        }
        for field, value in values.items():
            object.__setattr__(self, field, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Topic is frozen: declare another instead of setting {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a Topic is frozen: {name!r} cannot be deleted")

    def __copy__(self) -> Topic[T]:
        return self

    def __deepcopy__(self, memo: object) -> Topic[T]:
        return self

    def __repr__(self) -> str:
        return f"Topic({self.name!r}, {getattr(self.type, '__name__', self.type)}, key={self.key!r})"

    def differs_in(self, other: Topic[Any]) -> str | None:
        """The first part of the declaration in which two topics of one name differ; None if they agree."""
        for field in ("type", "key", "compacted", "retain", "max_lag"):
            if getattr(self, field) != getattr(other, field):
                return field
        return None

    def key_for(self, payload: T, key: str | None = None) -> str:
        """Checks a payload and finds its key: the topic's key function's, or else the one given, or else "".

        Only the payload's class is checked, which is cheap; its inside is validated where it enters the process. Runs
        the key function, so never call it under a lock.

        Raises:
            PayloadTypeError: if the payload is not an instance of the topic's type.
            InvalidName: if the key is out of bounds, or missing. What a key callable raises passes.
            ValueError: if a key is given to a topic that finds it itself, or None is published to a compacted one.
        """
        if not isinstance(payload, self._classes):
            raise PayloadTypeError(self.name, self.type, payload)
        getter = self._key_of
        if getter is None:
            return NO_KEY if key is None or key == NO_KEY else check_name("key", key)
        if key is not None:
            raise ValueError(f"topic {self.name!r} finds the key in the payload: do not give key={key!r}")
        if payload is None and self.compacted:
            raise ValueError(f"None is a tombstone in the compacted topic {self.name!r}: use delete(topic, key)")
        return check_name("key", getter(payload))


def _check_bound(name: str, value: object, *, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")


def _classes(type_: Any) -> tuple[type, ...]:
    """The classes whose instances a payload may be: `object` where the class says nothing."""
    origin = get_origin(type_)
    if origin is typing.Annotated:
        return _classes(get_args(type_)[0])
    if origin in (typing.Union, types.UnionType):
        return tuple(dict.fromkeys(one for part in get_args(type_) for one in _classes(part)))
    if origin is typing.Literal:
        return tuple({type(value) for value in get_args(type_)})
    if hasattr(type_, "__supertype__"):  # NewType
        return _classes(type_.__supertype__)
    if type_ is None:
        return (types.NoneType,)
    if typing.is_typeddict(type_):
        return (dict,)
    found = origin or type_
    if found is Any or not isinstance(found, type) or getattr(found, "_is_protocol", False):
        return (object,)
    return (float, int) if found is float else (found,)


def _key_getter(type_: Any, key: str | Callable[[T], str] | None) -> Callable[[T], object] | None:
    if key is None or callable(key):
        return key
    if not isinstance(key, str):
        raise TypeError(f"key must be the name of a field, a callable or None, not {key!r}")
    if (get_origin(type_) or type_) in (dict, Mapping, Any) or typing.is_typeddict(type_):
        return _ItemGetter(key)
    fields = getattr(type_, "__struct_fields__", None) or getattr(type_, "__annotations__", None)
    if fields is not None and key not in fields and not hasattr(type_, key):
        raise ValueError(f"{getattr(type_, '__name__', type_)} has no field {key!r}; it has {', '.join(fields)}")
    return attrgetter(key)


class _ItemGetter:
    """Finds the key in payloads that are mappings, and says so when it is missing."""

    __slots__ = ("_field",)

    def __init__(self, field: str) -> None:
        self._field = field

    def __call__(self, payload: Any) -> object:
        try:
            return payload[self._field]
        except (KeyError, TypeError, IndexError):
            raise InvalidName("key", None, f"is missing: the payload has no {self._field!r}") from None
