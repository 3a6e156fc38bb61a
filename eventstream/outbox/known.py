"""The topics that an outbox knows: by their declarations, or only by what its file says of them."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from ..codec import Keyed, TopicCodec
from ..errors import InvalidPayload, TopicConflict
from ..events import Topic
from .entry import Content
from .file import Shape
from .lanes import Record

__all__ = ("KnownTopics",)

T = TypeVar("T")


class KnownTopics:
    """By name.

    Attributes:
        codecs: Of the topics that were declared; shared with who sends.
        shapes: As the file has them.
    """

    def __init__(self) -> None:
        self.codecs: dict[str, TopicCodec[Any]] = {}
        self.shapes: dict[str, Shape] = {}

    def add(self, topic: Topic[T]) -> TopicCodec[T]:
        """Declares a topic; of equal declarations the first one stays.

        Raises:
            TypeError: if it is no topic.
            TopicConflict: if another declaration of its name was used.
        """
        if not isinstance(topic, Topic):
            raise TypeError(f"topic must be a Topic, not {topic!r}")
        known = self.codecs.get(topic.name)
        if known is None:
            known = self.codecs[topic.name] = TopicCodec(topic)
        elif difference := known.topic.differs_in(topic):
            raise TopicConflict(topic.name, difference)
        return known

    def content(self, record: Record, body: tuple[bytes | None, dict[str, str]] | None) -> Content:
        """What an entry would publish.

        Raises:
            InvalidPayload: if it is not of the topic's type, or damaged.
        """
        if body is None:
            raise InvalidPayload(record.topic, "damaged in the file")
        payload, headers = body
        if payload is None:
            return Content(None, headers)
        codec = self.codecs.get(record.topic)
        if codec is None or codec.topic.type is Keyed:
            return Content(msgspec.msgpack.decode(payload), headers)
        return Content(codec.decode_payload(record.key, payload), headers)

    def untyped(self) -> list[Topic[Keyed]]:
        """Declarations, without their types, of the topics that the file knows."""
        return [
            Topic(
                shape.name,
                Keyed,
                key="key" if shape.keyed else None,
                compacted=shape.compacted,
                retain=shape.retain,
                max_lag=shape.max_lag,
            )
            for shape in self.shapes.values()
        ]
