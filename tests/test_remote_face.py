"""The public face of the bus, over the network: the tests of the bus itself, run against a `RemoteBus`.

The tests are those of test_bus.py, test_subscription.py and test_view.py, as they stand there. Over a network one has
to wait where the bus itself answers at once, so three words are read as their waiting counterparts:

    bus.publish_nowait(...)          await bus.publish(...)
    drain(subscription)              await drain(subscription)
    subscription.receive_nowait()    await receive_now(subscription)

and `bus` and `EventBus()` are a client together with a server of its own.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import anyio
import pytest
from _pytest.assertion.rewrite import rewrite_asserts
from remote_support import drain, receive_now, settle

import support
from eventstream import BusStatistics, EventBus, Topic
from eventstream.bus import OnError
from eventstream.remote import RemoteBus, Server
from eventstream.remote.house import Shelf
from eventstream.testing import Network

HERE = Path(__file__).parent

NOT_REMOTE = {
    "authorize= and principal= are the server's": (
        "test_authorize_may_use_the_bus",
        "test_authorize_is_asked_for_each_event",
        "test_where_authorize_raises_the_read_does_and_nothing_is_lost",
        "test_a_reader_of_frames_past_whom_events_go_gets_bookmarks",
        "test_the_first_reason_stays",
        "test_it_closes_all_of_a_principal_and_no_others",
        "test_a_waiting_reader_learns_of_it",
    ),
    "what is unread is known where it is: the lag of a client is what has arrived": (
        "test_a_burst_that_went_over_a_link_is_one_list",
        "test_the_bus_counts_its_topics",
    ),
    "publish_nowait in a plain function": (
        "test_a_key_function_may_use_the_bus",
        "test_a_publisher_may_read_and_publish_from_its_own_subscription",
    ),
    "a source, a log and statistics are the server's": (
        "test_a_source_for_another_declaration_is_refused",
        "test_serves_everything_but_publish_nowait",
        "test_is_a_Log",
        "test_the_bus_shows_its_state",
        "test_equal_views_share_one_mirror",
        "test_who_waits_for_the_first_state_learns_of_its_failure",
        "test_a_channel_lives_as_long_as_a_reader_of_its_key",
        "test_bad_arguments_publish_nothing",
        "test_the_bus_counts_its_topics",
    ),
    "a client's subscription has its place in the protocol to keep as well": (
        "test_while_it_waits_less_than_2_KiB_with_its_task",
    ),
    "how far behind a reader may be is measured at the server, which reads ahead": (
        "test_where_there_is_no_snapshot_a_laggard_goes_on_from_now",
        "test_the_bound_is_exact",
        "test_a_reader_that_keeps_up_is_not_touched_by_one_that_does_not",
        "test_the_chunk_in_hand_is_still_handed_out_in_order",
        "test_a_stuck_reader_that_never_comes_back_holds_nothing",
        "test_a_laggard_view_is_whole_again",
        "test_who_resumes_from_far_behind_may_catch_up",
        "test_other_keys_do_not_count",
    ),
    "a list is what has come up to now": (
        "test_the_position_follows_from_one_way_to_the_next",
        "test_the_list_of_a_batch_is_the_readers_own",
        "test_a_burst_that_went_over_a_link_is_one_list",
    ),
    "objects of one process": ("test_every_reader_gets_the_same_objects", "test_an_idle_reader_keeps_no_event_alive"),
    "what passes a reader by it learns from bookmarks alone": (
        "test_that_of_an_idle_reader_of_one_key_follows_the_topic",
    ),
    "only the server knows whether a topic has a state": ("test_a_topic_without_state_has_none",),
    "the same code, and slow over a network": ("test_a_reader_with_a_backlog_lets_others_run",),
    "of the package, not of a bus": (
        "test_it_hands_on_what_is_documented_and_nothing_else",
        "test_all_of_each_module_is_what_its_package_hands_on",
    ),
}


class ServedBus(RemoteBus):
    """A client with a server of its own, which knows each topic as soon as the client does."""

    def __init__(self, *, on_error: OnError | None = None, random: Random | None = None, **options: Any) -> None:
        self._network = Network()
        super().__init__(self._network.dial, on_error=on_error, random=random or Random(1), **options)
        self.served = EventBus(random=Random(2))
        self.server = Server(self.served, random=Random(3))

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[RemoteBus, None]:
        failure: BaseException | None = None
        async with self.served, anyio.create_task_group() as tasks:
            await tasks.start(self.server.serve, self._network.listen())
            try:
                async with super().__asynccontextmanager__():
                    yield self
            except BaseException as error:
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def _known(self, topic: Topic[Any]) -> Any:
        shelves = self.server.shelves
        if getattr(topic, "name", None) not in (None, *shelves):
            shelves[topic.name] = Shelf(topic, topic.key is not None, *self.server._kept)
        return super()._known(topic)

    def snapshot(self, topic: Topic[Any]) -> Any:
        """Sources stand at the server."""
        return self.served.snapshot(topic)

    def statistics(self) -> BusStatistics:
        """The server's."""
        return self.served.statistics()


class _Waiting(ast.NodeTransformer):
    """Reads the words that answer at once as those that wait."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return node  # nothing can be waited for there

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        match node.func:
            case ast.Attribute(attr="publish_nowait"):
                node.func.attr = "publish"
            case ast.Name(id="drain"):
                pass
            case ast.Attribute(attr="receive_nowait", value=subscription):
                node.func, node.args = ast.copy_location(ast.Name("receive_now", ast.Load()), node), [subscription]
            case _:
                return node
        return ast.copy_location(ast.Await(node), node)


def read_remotely(name: str) -> ModuleType:
    """A module of tests, as it reads over the network."""
    path = HERE / f"{name}.py"
    source = path.read_text()
    tree = ast.fix_missing_locations(_Waiting().visit(ast.parse(source)))
    rewrite_asserts(tree, source.encode(), str(path))
    module = ModuleType(f"{name}_over_the_network")
    sys.modules[module.__name__] = module
    exec(compile(tree, path, "exec"), module.__dict__)
    words = {"drain": drain, "receive_now": receive_now, "settle": settle, "EventBus": ServedBus}
    module.__dict__.update(words)
    return module


def _spare(test: Any) -> None:
    """Five hundred readers take ten seconds here."""
    for mark in getattr(test, "pytestmark", ()):
        if mark.args[0] == "readers":
            mark.args[1].remove(500)


def _collect(name: str, left_out: set[str]) -> Iterator[tuple[str, type]]:
    for group, tests in vars(read_remotely(name)).items():
        if group.startswith("Test_"):
            for test in [test for test in vars(tests) if test in left_out]:
                delattr(tests, test)
                left_out.discard(test)
            for test in vars(tests).values():
                _spare(test)
            yield f"{group}_of_{name.removeprefix('test_')}", tests


_left_out = {test for tests in NOT_REMOTE.values() for test in tests}
for _name in ("test_bus", "test_subscription", "test_view"):
    globals().update(_collect(_name, _left_out))


def test_what_is_left_out_is_there() -> None:
    assert not _left_out, "tests that are named above and do not exist"


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What settles has to pass a network."""
    monkeypatch.setattr(support, "TURNS", 100)


@pytest.fixture
async def bus() -> AsyncIterator[RemoteBus]:
    async with ServedBus() as running:
        yield running
