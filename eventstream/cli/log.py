"""`eventstream log …`: looks after the file of a log. No server is asked: each command opens the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
from anyio import from_thread, to_thread
from cyclopts import App, Parameter

from ..errors import InvalidPayload
from ..logs.sqlite.transfer import export_lines, import_lines
from ..logs.sqlite.upkeep import FileInfo, backup, compact, info, verify
from .lines import Line, read_lines
from .running import DONE, FAILED, Failure, Output, counted, run, tell

__all__ = ("log",)

GROUP: Final = 256  # lines that are written at once

log: App = App(name="log", help="Look after the file of a log: sqlite, as `serve --log sqlite:///PATH` makes it.")


@log.command(name="info")
def info_command(path: Path, /, *, json: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Tell what is in a file. A bus may be using it.

    Parameters
    ----------
    path:
        The file.
    json:
        One JSON object.
    """

    async def command() -> int:
        found = await to_thread.run_sync(info, str(path))
        text = msgspec.json.encode(found).decode() if json else "\n".join(_told(found))
        await Output().write(f"{text}\n".encode())
        return DONE

    return run("log info", command)


@log.command(name="verify")
def verify_command(path: Path, /) -> int:
    """Read everything in a file and say what is wrong with it. A bus may be using it. Exit code 1: something is.

    Parameters
    ----------
    path:
        The file.
    """

    async def command() -> int:
        wrong = await to_thread.run_sync(lambda: list(verify(str(path))))
        await Output().write("".join(f"{line}\n" for line in wrong).encode())
        tell(f"{path}: {len(wrong) or 'nothing'} wrong")
        return FAILED if wrong else DONE

    return run("log verify", command)


@log.command(name="compact")
def compact_command(path: Path, /) -> int:
    """Give the unused space of a file back to the disk. No bus may be using it.

    Parameters
    ----------
    path:
        The file.
    """

    async def command() -> int:
        before, after = await to_thread.run_sync(compact, str(path))
        tell(f"{path}: {before:,} bytes before, {after:,} now")
        return DONE

    return run("log compact", command)


@log.command(name="backup")
def backup_command(path: Path, target: Path, /) -> int:
    """Copy a log as it is at one moment, while a bus may be using it. The copy is a log.

    Parameters
    ----------
    path:
        The file.
    target:
        Where the copy goes; nothing may be there.
    """

    async def command() -> int:
        await to_thread.run_sync(backup, str(path), str(target))
        tell(f"{target}: complete")
        return DONE

    return run("log backup", command)


@log.command(name="export")
def export_command(path: Path, topics: Annotated[list[str] | None, Parameter(negative=())] = None, /) -> int:
    """Print a log as lines of JSON, which `eventstream log import` takes. A bus may be using it.

    Parameters
    ----------
    path:
        The file.
    topics:
        Only these topics; all if there are none.
    """

    async def command() -> int:
        output = Output()
        if topics:
            _check_topics(path, topics, await to_thread.run_sync(info, str(path)))
        lines = export_lines(str(path), frozenset(topics or ()))

        def some() -> bytes:
            return b"".join([line + b"\n" for line, _ in zip(lines, range(GROUP), strict=False)])

        while data := await to_thread.run_sync(some):
            await output.write(data)
        return DONE

    return run("log export", command)


@log.command(name="import")
def import_command(path: Path, files: Annotated[list[Path] | None, Parameter(negative=())] = None, /) -> int:
    """Add what was exported to a log, which is made if there is none. Positions stay valid. No bus may be using it.

    Parameters
    ----------
    path:
        The file.
    files:
        Files with the lines; standard input if there are none.
    """

    async def command() -> int:
        reading = read_lines(files or ())
        last: Line | None = None

        async def following() -> bytes | None:
            nonlocal last
            async for line in reading:
                last = line
                return line.data
            return None

        def lines() -> Iterator[bytes]:
            while (line := from_thread.run(following)) is not None:
                yield line

        try:
            counts = await to_thread.run_sync(lambda: import_lines(str(path), lines()))
        except InvalidPayload as error:
            if last is None:
                raise
            raise last.failure(f"this does not fit into what `eventstream log export` prints: {error.why}") from None
        for topic, count in counts.items():
            tell(f"{topic}: {counted(count, 'event')}")
        return DONE

    return run("log import", command)


def _told(found: FileInfo) -> Iterator[str]:
    """For eyes."""
    yield f"{found.path}: {found.size:,} bytes, {found.unused:,} of them unused"
    for one in found.topics:
        kind = "compacted, " if one.compacted else ""
        after = f"{counted(one.events, 'event')} after {one.floor}, {one.bytes:,} bytes"
        yield f"{one.topic}: {kind}head {one.epoch}.{one.head}, {after}"


def _check_topics(path: Path, wanted: Sequence[str], found: FileInfo) -> None:
    """An export that leaves out what was asked for is not to be taken for a whole one.

    Raises:
        Failure: if a topic is not there.
    """
    there = [one.topic for one in found.topics]
    if missing := [repr(name) for name in wanted if name not in there]:
        raise Failure(f"{path} has no topic {', '.join(missing)}; it has: {', '.join(sorted(there)) or 'none'}")
