"""The bounds of every text that names something: topics, keys, publish ids, headers. One rule, checked in one place."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from ..errors import InvalidName
from .event import NO_HEADERS

__all__ = ("MAX_HEADER_BYTES", "MAX_NAME_BYTES", "check_headers", "check_name")

MAX_NAME_BYTES: Final = 255  # what file systems and NATS subjects are content with
MAX_HEADER_BYTES: Final = 8192  # the bound that HTTP servers have for all headers of a request
_ALWAYS_SHORT: Final = MAX_NAME_BYTES // 4  # a character has at most four UTF-8 bytes


def check_name(what: str, value: object) -> str:
    """Returns `value`, or says why it cannot be a `what`.

    Raises:
        InvalidName: if it is no text, empty, over 255 UTF-8 bytes, or has control characters or lone surrogates.
    """
    if type(value) is str and 0 < len(value) <= _ALWAYS_SHORT and value.isprintable():
        return value
    if not isinstance(value, str):
        raise InvalidName(what, value, f"must be text, not {type(value).__name__}")
    if not value:
        raise InvalidName(what, value, "must not be empty")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidName(what, value, "is not valid Unicode") from None
    if size > MAX_NAME_BYTES:
        raise InvalidName(what, value, f"has {size} UTF-8 bytes, the bound is {MAX_NAME_BYTES}")
    if any(_is_control(character) for character in value):
        raise InvalidName(what, value, "must not hold control characters")
    return str.__str__(value)  # of a subclass, such as a text that is also an Enum, the text


def check_headers(headers: Mapping[str, str] | None) -> Mapping[str, str]:
    """An immutable copy of `headers`.

    Raises:
        InvalidName: if a header's name breaks the rule of names, a value is no text, or all are over 8 KiB.
    """
    if not headers:
        return NO_HEADERS
    if not isinstance(headers, Mapping):
        raise InvalidName("headers", headers, "must be a mapping from names to texts")
    copy = dict(headers)
    size = 0
    for name, value in copy.items():
        check_name("header name", name)
        if not isinstance(value, str):
            raise InvalidName("header value", value, f"must be text, not {type(value).__name__}")
        size += len(name.encode()) + len(value.encode(errors="surrogatepass"))
    if size > MAX_HEADER_BYTES:
        raise InvalidName("headers", list(copy), f"have {size} UTF-8 bytes, the bound is {MAX_HEADER_BYTES}")
    return MappingProxyType(copy)


def _is_control(character: str) -> bool:
    # C0, DEL, C1, and the two separators that line-based formats such as server-sent events would break at.
    return character < " " or "\x7f" <= character <= "\x9f" or character in "\u2028\u2029"
