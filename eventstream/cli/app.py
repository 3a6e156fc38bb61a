"""What can be typed: the commands, their options and their help. What they do stands in modules of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError
from cyclopts.validators import Number

from .. import __version__
from .bench import Load
from .bench import bench as run_bench
from .demo import Options
from .demo import run as run_demo
from .links import Link, Positive
from .listening import Certificates
from .log import log
from .look import snapshot as run_snapshot
from .look import topics as run_topics
from .outbox import discard as run_discard
from .outbox import drain as run_drain
from .outbox import list_entries as run_list
from .outbox import retry as run_retry
from .outbox import show as run_show
from .publish import Input
from .publish import publish as run_publish
from .running import USAGE, run, tell
from .serve import Setup
from .serve import serve as run_serve
from .tail import Selection
from .tail import tail as run_tail

__all__ = ("app", "call")

Count = Annotated[int, Parameter(validator=Number(gte=1, lt=10**9))]
Flag = Annotated[bool, Parameter(negative=())]

app: App = App(
    name="eventstream",
    help="An event bus with history, resume and snapshots: serve one, publish to it, read from it.",
    version=__version__,
)


app.command(log)


def call(arguments: list[str]) -> int | None:
    """Runs the command that the arguments name; returns its exit code."""
    try:
        code: int | None = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        command = " ".join(["eventstream", *(error.command_chain or ())])
        tell(f"{command}: {_what_is_wrong(error)} See: {command} --help")
        return USAGE
    return code


def _what_is_wrong(error: CycloptsError) -> str:
    """In one line."""
    if isinstance(error, UnusedCliTokensError):
        return f"This is more than it takes: {' '.join(error.unused_tokens or ())}."
    return " ".join(str(error).split())


@app.command
def serve(
    *,
    listen: Annotated[list[str], Parameter(negative=())],
    config: Path | None = None,
    log: str = "memory://",
    token_file: Path | None = None,
    cert: Path | None = None,
    key: Path | None = None,
    client_ca: Path | None = None,
    until_eof: Flag = False,
) -> int:
    """Run a bus that other programs publish to and read from, until Ctrl-C or SIGTERM.

    It prints the addresses when it is ready. The first signal lets it say goodbye to its clients, the second ends it at
    once. What was published is kept in memory, and clients of a restarted server are told that its history began anew;
    or in a file, and then they go on where they were.

    Parameters
    ----------
    listen:
        Where: tcp://HOST:PORT (port 0 is any that is free), tls://HOST:PORT or unix:///PATH. May be repeated.
    config:
        A TOML file with topics: [[topics]] with name, and compacted, keyed, retain, max_lag if not as usual. Clients
        may make other topics. [jwt] lets in who shows a JSON Web Token: keys (a file with PEM, JWKS or a secret),
        algorithms, issuer, audience, and principal, permissions, leeway if not as usual.
    log:
        Where events are kept: memory://, or sqlite:///PATH for a file.
    token_file:
        A file with the token that clients have to show; without it everybody may come in.
    cert:
        For tls://: the certificate.
    key:
        For tls://: its private key, if that is not in the same file.
    client_ca:
        For tls://: clients must show a certificate that this authority has signed.
    until_eof:
        Stop also when standard input ends: for a program that runs a server for itself, through a pipe.
    """
    certificates = Certificates(cert, key, client_ca)
    setup = Setup(
        listen=listen,
        config=config,
        log=log,
        token_file=token_file,
        certificates=certificates,
        until_eof=until_eof,
    )
    return run("serve", run_serve, setup)


@app.command
def publish(
    url: str,
    topic: str,
    files: Annotated[list[Path] | None, Parameter(negative=())] = None,
    /,
    *,
    key: str | None = None,
    key_field: str | None = None,
    compacted: Flag = False,
    rate: Positive | None = None,
    link: Link = Link(),  # noqa: B008  frozen
) -> int:
    """Publish each line of JSON as an event, in order.

    A line that is no JSON ends it, with exit code 1: what stands before it was published, and nothing after it.

    Parameters
    ----------
    url:
        The server: tcp://HOST:PORT, tls://HOST:PORT or unix:///PATH.
    topic:
        The topic; it is made if the server has none of this name.
    files:
        Files with one JSON value a line; standard input if there are none.
    key:
        The key of all events.
    key_field:
        The field of each value that is its key.
    compacted:
        A topic that is made becomes a compacted one: it keeps the newest event of each key. null deletes a key.
    rate:
        At most so many events a second.
    """
    input = Input(files=files or (), key=key, key_field=key_field, compacted=compacted, rate=rate)
    return run("publish", run_publish, url, topic, input, link)


@app.command
def tail(
    url: str,
    topic: str,
    /,
    *,
    key: str | None = None,
    prefix: str | None = None,
    after: str | None = None,
    count: Count | None = None,
    json: Flag = False,
    link: Link = Link(),  # noqa: B008
) -> int:
    """Print a topic's events as they come.

    Without --after a compacted topic begins with its state, and another one with what comes next. When the connection
    is lost it goes on as soon as the server is back, and says on standard error whether anything was missed.

    Parameters
    ----------
    url:
        The server: tcp://HOST:PORT, tls://HOST:PORT or unix:///PATH.
    topic:
        The topic.
    key:
        Only the events of this key.
    prefix:
        Only the events of keys that begin so.
    after:
        Begin after this position, as --json prints it, or with the earliest event that is kept: earliest.
    count:
        End after so many events.
    json:
        One JSON object a line: topic, key, index, position, time, payload, headers.
    """
    return run("tail", run_tail, url, topic, Selection(key=key, prefix=prefix, after=after, count=count), link, json)


@app.command
def topics(url: str, /, *, json: Flag = False, link: Link = Link()) -> int:  # noqa: B008
    """List a server's topics.

    Parameters
    ----------
    url:
        The server: tcp://HOST:PORT, tls://HOST:PORT or unix:///PATH.
    json:
        One JSON object a line.
    """
    return run("topics", run_topics, url, link, json)


@app.command
def snapshot(
    url: str,
    topic: str,
    /,
    *,
    key: str | None = None,
    prefix: str | None = None,
    json: Flag = False,
    link: Link = Link(),  # noqa: B008
) -> int:
    """Print the state of a compacted topic: the newest payload of each key, and the position at which it holds.

    Parameters
    ----------
    url:
        The server: tcp://HOST:PORT, tls://HOST:PORT or unix:///PATH.
    topic:
        The topic.
    key:
        Only this key.
    prefix:
        Only keys that begin so.
    json:
        One JSON object: topic, position, and state with the payload of each key.
    """
    return run("snapshot", run_snapshot, url, topic, key, prefix, link, json)


@app.command
def bench(
    url: str,
    /,
    *,
    subscribers: Annotated[int, Parameter(validator=Number(gte=1, lte=1000))] = 1,
    seconds: Positive = 5.0,
    payload: Annotated[int, Parameter(validator=Number(gte=0, lte=10**6))] = 100,
    link: Link = Link(),  # noqa: B008
) -> int:
    """Measure how fast events go through a server, there and back.

    Half of the time little is published, for the latency; then as much as goes through. It uses the topic
    eventstream.bench, and leaves nothing in it. Publisher and subscribers share this one process.

    Parameters
    ----------
    url:
        The server: tcp://HOST:PORT, tls://HOST:PORT or unix:///PATH.
    subscribers:
        How many read everything, each over a connection of its own.
    seconds:
        How long to measure.
    payload:
        Bytes in an event; at least 8.
    """
    return run("bench", run_bench, url, Load(subscribers=subscribers, seconds=seconds, payload=payload), link)


@app.command
def demo(
    *,
    seconds: Positive = 20.0,
    speed: Positive | None = None,
    file: Path | None = None,
    plain: Flag = False,
    backend: Literal["asyncio", "trio"] = "asyncio",
) -> int:
    """Play a week of New York's flights through a server, cut its connections, and count what each subscriber got.

    Some subscribers leave and come back, one gets stuck, two join late. The table at the end is counted from what was
    published and what was received. The exit code is 0 if nobody lost anything or got it twice, else 1; 2 if the
    flights cannot be read, 130 after Ctrl-C.

    Parameters
    ----------
    seconds:
        How long the week takes.
    speed:
        Seconds of the week that pass in a second, in place of --seconds.
    file:
        Flights to play, one JSON object a line, as in examples/flights-2013-01-week1.ndjson.gz.
    plain:
        Print plain lines also on a terminal.
    backend:
        The event loop to run on.
    """
    return run_demo(Options(seconds=seconds, speed=speed, file=file, plain=plain, backend=backend))


outbox: App = App(
    name="outbox",
    help="See and decide about what a program's outbox has kept, and drain it. The program must not run meanwhile.",
)
app.command(outbox)


@outbox.command(name="list")
def outbox_list(
    file: Path,
    /,
    *,
    state: Literal["pending", "held", "conflict", "unknown", "dead"] | None = None,
    json: Flag = False,
) -> int:
    """List the entries, oldest first.

    Parameters
    ----------
    file:
        The outbox's file.
    state:
        Only those in this state.
    json:
        One JSON object a line: id, topic, key, state, reason, attempts, queued, size, expect.
    """
    return run("outbox list", run_list, file, state, json)


@outbox.command(name="show")
def outbox_show(file: Path, id: str, /, *, json: Flag = False) -> int:
    """Print an entry with its payload and headers.

    Parameters
    ----------
    file:
        The outbox's file.
    id:
        The entry's, as list prints it.
    json:
        One JSON object, with payload and headers beside what list gives.
    """
    return run("outbox show", run_show, file, id, json)


@outbox.command(name="retry")
def outbox_retry(
    file: Path, ids: Annotated[list[str], Parameter(negative=())], /, *, expect: Literal["same", "any"] | int = "same"
) -> int:
    """Let entries be tried again, at their places, when the outbox is drained next.

    Parameters
    ----------
    file:
        The outbox's file.
    ids:
        The entries', as list prints them.
    expect:
        For a conflict: the index that the key is to have now, or any.
    """
    return run("outbox retry", run_retry, file, ids, expect)


@outbox.command(name="discard")
def outbox_discard(file: Path, ids: Annotated[list[str], Parameter(negative=())], /) -> int:
    """Give entries up. They are gone; those of their keys that waited for them go on.

    Parameters
    ----------
    file:
        The outbox's file.
    ids:
        The entries', as list prints them.
    """
    return run("outbox discard", run_discard, file, ids)


@outbox.command(name="drain")
def outbox_drain(file: Path, url: str, /, *, json: Flag = False, link: Link = Link()) -> int:  # noqa: B008
    """Publish everything that can be published. The exit code is 0 if nothing is left, else 1.

    Parameters
    ----------
    file:
        The outbox's file.
    url:
        The server: tcp://HOST:PORT, tls://HOST:PORT or unix:///PATH.
    json:
        At the end, the outbox's statistics as a JSON object.
    """
    return run("outbox drain", run_drain, file, url, link, json)
