"""Who may connect and do what: tokens, certificates, rules, revocation, expiry, limits, payloads that do not fit."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Hashable
from typing import Any

import anyio
import msgspec
import pytest
from anyio.streams.tls import TLSListener
from remote_support import Town, drain, settle, simulated, stranger, take

from eventstream import EARLIEST, Append, EventBus, NotAuthorized, NotCompacted, Topic, TopicConflict
from eventstream.errors import InvalidPayload, LimitReached, ReconnectFailed, UnknownTopic
from eventstream.pipes import Retry
from eventstream.remote import Action, Credentials, Grant, RemoteBus, Server, ServerLimits, open_bus
from eventstream.remote.messages import Failed, Goodbye, OpenTopic, Publish
from support import Price

prices = Topic("prices", Price, key="symbol", compacted=True)
words = Topic("words", str)


def by_token(credentials: Credentials) -> Grant | None:
    return Grant(credentials.token) if credentials.token in ("alice", "bob") else None


async def by_token_slowly(credentials: Credentials) -> Grant | None:
    await anyio.sleep(1)
    return by_token(credentials)


class Told(logging.Handler):
    """What was logged, with its tracebacks."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += logging.Formatter().format(record)


class Test_authentication:
    @pytest.mark.parametrize("authenticate", [by_token, by_token_slowly])
    @simulated
    async def test_a_right_token_is_welcome(self, authenticate: Any) -> None:
        """Given as a text, or by a callable of either kind."""

        async def fetch() -> str:
            await anyio.sleep(1)
            return "bob"

        async with Town(words, authenticate=authenticate).open() as town:
            for token in ("alice", lambda: "alice", fetch):
                async with town.client(token=token) as bus:
                    await bus.wait_connected()
                    await bus.publish(words, "a")

    @pytest.mark.parametrize("authenticate", [by_token, by_token_slowly])
    @pytest.mark.parametrize("token", [None, "mallory", ""])
    @simulated
    async def test_a_wrong_token_fails_every_call(self, authenticate: Any, token: str | None) -> None:
        """Those under way and all later ones; nothing was done, and nothing was heard."""
        async with Town(words, prices, authenticate=authenticate).open() as town:
            town.bus.publish_nowait(words, "secret")
            async with town.client(token=token) as bus:
                subscription = bus.subscribe(words, after=EARLIEST)
                with pytest.raises(NotAuthorized):
                    await bus.publish(words, "x")
                for call in (bus.wait_connected, lambda: bus.head(words), bus.topics, subscription.receive):
                    with pytest.raises(NotAuthorized):
                        await call()
                for refused in (bus.subscribe, bus.view):
                    with pytest.raises(NotAuthorized):
                        refused(prices)
            assert await drain(town.bus.subscribe(words, after=EARLIEST)) == ["secret"]
            assert town.server.statistics().connections == 0

    @simulated
    async def test_what_authenticate_raises_is_logged_and_the_client_comes_again(self, caplog: Any) -> None:
        """A directory that is down for a moment must not end clients for good."""
        failures = [OSError("directory"), ValueError("no token")]

        def authenticate(credentials: Credentials) -> Grant:
            if failures:
                raise failures.pop()
            return Grant("alice")

        async with Town(words, authenticate=authenticate).open() as town, town.client(token="alice") as bus:
            with caplog.at_level(logging.CRITICAL, "eventstream.remote"):
                await bus.wait_connected()
            assert not failures

    @simulated
    async def test_what_authenticate_gives_has_to_be_a_grant(self) -> None:
        """Else its author is told in the log, and the client comes again."""
        answers: list[Any] = ["alice", Grant("alice")]
        logger = logging.getLogger("eventstream.remote")
        async with (
            Town(words, authenticate=lambda _: answers.pop(0)).open() as town,
            town.client(token="alice") as bus,
        ):
            told = Told()
            logger.addHandler(told)
            try:
                await bus.wait_connected()
            finally:
                logger.removeHandler(told)
            assert not answers
            assert "authenticate gave 'alice', not a Grant or None" in told.text

    @simulated
    async def test_who_raises_NotAuthorized_refuses(self) -> None:
        """With a reason of its own."""

        def authenticate(credentials: Credentials) -> Grant:
            raise NotAuthorized("mallory", "come in")

        async with Town(words, authenticate=authenticate).open() as town, town.client() as bus:
            with pytest.raises(NotAuthorized, match="'mallory' is not authorized to come in"):
                await bus.wait_connected()

    @simulated
    async def test_a_token_callable_that_fails_is_asked_again(self, caplog: pytest.LogCaptureFixture) -> None:
        """What it asks may be away for as long as the server is: that must not be the end of a client."""
        failures: list[Exception] = [OSError("away"), LookupError("no token yet")]

        async def token() -> str:
            if failures:
                raise failures.pop(0)
            return "alice"

        async with Town(words, authenticate=by_token).open() as town, town.client(token=token) as bus:
            await bus.wait_connected()
            assert not failures
        assert [record.message for record in caplog.records].count(
            "the token callable failed; it is asked again until it gives one"
        ) == 1

    @simulated
    async def test_a_token_callable_may_give_up(self) -> None:
        """By itself, or when the schedule says so; its error is the cause."""

        def refuse() -> str:
            raise NotAuthorized("alice", "sign in")

        def fail() -> str:
            raise LookupError("no token file")

        async with Town(words).open() as town:
            async with town.client(token=refuse) as bus:
                with pytest.raises(NotAuthorized, match="sign in"):
                    await bus.wait_connected()
            async with town.client(token=fail, retry=Retry(give_up_after=5.0)) as bus:
                with pytest.raises(ReconnectFailed) as caught:
                    await bus.wait_connected()
            assert isinstance(caught.value.__cause__, LookupError)

    def test_credentials_do_not_show_themselves(self) -> None:
        assert "secret" not in repr(Credentials("secret", {"subject": "secret"}))

    @simulated
    async def test_a_greeting_that_comes_too_late_may_be_said_again(self) -> None:
        """A client whose link broke just then comes in with the next one."""
        limits = ServerLimits(greeting_seconds=2.0)
        async with Town(words, limits=limits).open() as town:
            async with stranger(town, greet=False) as other:
                goodbye = await other.hear(Goodbye)
                assert (goodbye.again, goodbye.fault and goodbye.fault.fields["limit"]) == (True, "greeting_seconds")
            town.network.on_link = lambda link: link.cut_after(150, direction="up")
            async with town.client() as bus:
                await anyio.sleep(0.1)
                town.network.on_link = None
                town.network.refuse_dials()
                await anyio.sleep(10)
                town.network.heal()
                await bus.publish(words, "a")

    @simulated
    async def test_a_grant_that_expires_is_asked_for_again(self) -> None:
        """With a new token everything goes on; with the old one it ends."""
        tokens = ["first", "second"]
        granted: list[str | None] = []

        def authenticate(credentials: Credentials) -> Grant | None:
            granted.append(credentials.token)
            return Grant("alice", expires=anyio.current_time() + 10 if credentials.token == "first" else None)

        town = Town(words, authenticate=authenticate, clock=anyio.current_time)
        async with town.open(), town.client(token=lambda: tokens.pop(0)) as bus:
            subscription = bus.subscribe(words)
            await bus.publish(words, "a")
            await anyio.sleep(20)
            await bus.publish(words, "b")
            assert await take(subscription, 2) == ["a", "b"]
            assert granted == ["first", "second"]

    @simulated
    async def test_a_grant_expires_by_the_clock_though_that_is_set_meanwhile(self) -> None:
        """Or runs on while the machine sleeps: its event loop counts the seconds that it is awake."""
        ahead = 0.0
        granted: list[str | None] = []

        def authenticate(credentials: Credentials) -> Grant | None:
            granted.append(credentials.token)
            return Grant("alice", expires=36_000.0 if len(granted) == 1 else None)

        town = Town(words, authenticate=authenticate, clock=lambda: anyio.current_time() + ahead)
        async with town.open(), town.client(token="t") as bus:
            await bus.publish(words, "a")
            ahead = 36_000.0
            await anyio.sleep(90)
            await bus.publish(words, "b")
            assert granted == ["t", "t"]

    @simulated
    async def test_an_expired_grant_is_none(self) -> None:
        """A reader learns of it at once, not with its next event."""

        def authenticate(credentials: Credentials) -> Grant:
            return Grant("alice", expires=10.0)

        town = Town(words, authenticate=authenticate, clock=anyio.current_time)
        async with town.open(), town.client(token="old") as bus:
            subscription = bus.subscribe(words)
            with anyio.fail_after(15), pytest.raises(NotAuthorized):
                await subscription.receive()

    async def test_a_client_certificate_reaches_authenticate(self, tmp_path: Any) -> None:
        """Mutual TLS, over real sockets: the certificate names the principal, and no certificate is no link."""
        trustme = pytest.importorskip("trustme")
        authority, stranger_authority = trustme.CA(), trustme.CA()
        server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("localhost").configure_cert(server_context)
        authority.configure_trust(server_context)
        server_context.verify_mode = ssl.CERT_REQUIRED
        seen: list[Any] = []

        def authenticate(credentials: Credentials) -> Grant | None:
            seen.append(credentials)
            assert credentials.certificate is not None
            return Grant(credentials.certificate["subjectAltName"][0][1])

        def client_context(issuer: Any) -> ssl.SSLContext:
            context = ssl.create_default_context()
            authority.configure_trust(context)
            issuer.issue_cert("alice@example.org").configure_cert(context)
            return context

        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        tls = TLSListener(listener, server_context, standard_compatible=False)
        async with EventBus() as bus, anyio.create_task_group() as tasks:
            server = Server(bus, [words], authenticate=authenticate)
            await tasks.start(server.serve, tls)
            async with open_bus(f"tls://localhost:{port}", ssl_context=client_context(authority)) as client:
                with anyio.fail_after(10):
                    await client.publish(words, "a")
            assert [connection for connection in seen if connection.token] == []
            assert len(seen) == 1
            async with open_bus(f"tls://localhost:{port}", ssl_context=client_context(stranger_authority)) as client:
                with anyio.move_on_after(0.3) as scope:
                    await client.publish(words, "b")
                assert scope.cancelled_caught
            assert len(seen) == 1
            tasks.cancel_scope.cancel()


class Test_authorization:
    @simulated
    async def test_each_action_topic_and_key_is_asked_for(self) -> None:
        """And what is refused did not happen."""
        asked: list[tuple[Hashable, Action, str, str | None]] = []

        def authorize(principal: Hashable, action: Action, topic: str, key: str | None) -> bool:
            asked.append((principal, action, topic, key))
            return key == "X"

        town = Town(prices, words, authenticate=by_token, authorize=authorize)
        async with town.open(), town.client(token="alice") as bus:
            mine = bus.subscribe(prices, key="X")
            await bus.publish(prices, Price("X", 1.0))
            await bus.delete(prices, "X")
            assert len([(await mine.receive()) for _ in range(2)]) == 2
            with pytest.raises(NotAuthorized, match="'alice' is not authorized to publish prices/Y"):
                await bus.publish(prices, Price("Y", 1.0))
            with pytest.raises(NotAuthorized):
                await bus.publish_many(prices, [Price("X", 1.0), Price("Y", 1.0)])
            with pytest.raises(NotAuthorized, match="delete"):
                await bus.delete(prices, "Y")
            with pytest.raises(NotAuthorized, match="refresh"):
                await bus.refresh(prices)
            with pytest.raises(NotAuthorized):
                await bus.head(prices)
            for filters in ({}, {"key": "Y"}, {"prefix": "X"}):
                with pytest.raises(NotAuthorized, match="subscribe"):
                    await bus.subscribe(prices, **filters).receive()  # type: ignore[arg-type]
            assert await bus.topics() == {}
            assert (await town.bus.head(prices)).index == 2
            assert {action for _, action, _, _ in asked} >= {"subscribe", "publish", "delete", "refresh", "list"}
            assert {principal for principal, *_ in asked} == {"alice"}

    @simulated
    async def test_a_batch_of_nothing_is_asked_for_too(self) -> None:
        """Its answer is the topic's head, which is not for everybody."""
        async with Town(words, authorize=lambda *_: False).open() as town, stranger(town) as other:
            await other.say(OpenTopic(1, "words", False, 1024, 65_536), Publish(1, 1, [], "id", form="many"))
            assert (await other.hear(Failed)).fault.name == "NotAuthorized"

    @simulated
    async def test_a_rule_that_raises_refuses(self, caplog: Any) -> None:
        """And the connection lives on."""

        def authorize(principal: Hashable, action: Action, topic: str, key: str | None) -> bool:
            if topic == "prices":
                raise LookupError("no such rule")
            return True

        async with Town(prices, words, authorize=authorize).open() as town, town.client() as bus:
            with caplog.at_level(logging.CRITICAL, "eventstream.remote"):
                with pytest.raises(NotAuthorized):
                    await bus.subscribe(prices).receive()
            await bus.publish(words, "a")

    @simulated
    async def test_creating_topics_is_an_action_too(self) -> None:
        """Who may not is told that there is none."""

        def authorize(principal: Hashable, action: Action, topic: str, key: str | None) -> bool:
            return action != "create" or topic == "mine"

        async with Town(create=True, authorize=authorize).open() as town, town.client() as bus:
            await bus.publish(Topic("mine", str), "a")
            with pytest.raises(UnknownTopic):
                await bus.publish(Topic("yours", str), "a")

    @simulated
    async def test_server_revoke_ends_everything_of_a_principal_at_once(self) -> None:
        """Its calls, readers and views, and what it has said and was not done; not those of others."""
        town = Town(words, prices, authenticate=by_token)
        async with town.open(), town.client(token="alice") as alice, town.client(token="bob") as bob:
            hers, his = alice.subscribe(words), bob.subscribe(words)
            await alice.head(words)
            await bob.head(words)
            town.bus.publish_nowait(words, "before")
            async with anyio.create_task_group() as tasks:
                for number in range(5):
                    tasks.start_soon(_refused, alice, str(number))
                assert town.server.revoke("alice") == 1
            town.bus.publish_nowait(words, "after")
            await settle()
            with pytest.raises(NotAuthorized):
                assert await take(hers, 1) == ["before"]
                await take(hers, 1)
            with pytest.raises(NotAuthorized):
                await alice.head(words)
            assert await take(his, 2) == ["before", "after"]
            with pytest.raises(ValueError, match="nobody"):
                town.server.revoke(None)
            assert town.server.revoke("carol") == 0

    @simulated
    async def test_server_revoke_meets_who_is_just_being_authenticated(self) -> None:
        """What `authenticate` had looked up before was older than the revocation, and let her in after it."""
        town = Town(words, authenticate=by_token_slowly)
        async with town.open(), town.client(token="alice") as alice, town.client(token="bob") as bob:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(bob.wait_connected)
                await anyio.sleep(0.5)
                assert town.server.statistics().connections == 2
                assert town.server.revoke("alice") == 0
            with pytest.raises(NotAuthorized):
                await alice.wait_connected()
            await bob.publish(words, "a")
            async with town.client(token="alice") as later:  # it is for `authenticate` to say again
                await later.wait_connected()

    @simulated
    async def test_bus_revoke_ends_a_principals_subscriptions(self) -> None:
        """At once; the client's bus goes on, and may be asked again."""
        async with Town(words, authenticate=by_token).open() as town, town.client(token="alice") as bus:
            subscription = bus.subscribe(words)
            await bus.head(words)
            assert town.bus.revoke("alice") == 1
            town.bus.publish_nowait(words, "after")
            with pytest.raises(NotAuthorized):
                await subscription.receive()
            await bus.publish(words, "b")

    @simulated
    async def test_a_handler_whose_client_is_revoked_tells_on_error(self) -> None:
        """And does not take the program down."""
        told: list[Exception] = []
        town = Town(words, authenticate=by_token)
        async with town.open():
            async with town.client(token="alice", on_error=lambda error, event: told.append(error)) as bus:

                @bus.on(words)
                async def handler(event: Any) -> None:
                    raise AssertionError

                await bus.head(words)
                town.server.revoke("alice")
                await settle()
        assert [type(error) for error in told] == [NotAuthorized]


async def _refused(bus: RemoteBus, word: str) -> None:
    with pytest.raises(NotAuthorized):
        await bus.publish(words, word)


class Test_limits:
    @simulated
    async def test_of_subscriptions(self) -> None:
        """The one too many is refused; a place that becomes free can be had."""
        async with Town(words, limits=ServerLimits(subscriptions=2)).open() as town, town.client() as bus:
            one, two, three = bus.subscribe(words), bus.subscribe(words), bus.subscribe(words)
            with pytest.raises(LimitReached) as caught:
                await three.receive()
            assert (caught.value.limit, caught.value.bound) == ("subscriptions", 2)
            one.close()
            four = bus.subscribe(words)  # at once: both go over the network together
            for _ in range(10):
                four.close()
                four = bus.subscribe(words)
            await bus.publish(words, "a")
            assert await take(two, 1) == await take(four, 1) == ["a"]

    @simulated
    async def test_of_topics(self) -> None:
        """The one too many is refused; the others work."""
        topics = [Topic(f"t{number}", int) for number in range(3)]
        async with Town(*topics, limits=ServerLimits(topics=2)).open() as town, town.client() as bus:
            for topic in topics[:2]:
                await bus.publish(topic, 1)
            for _ in range(2):
                with pytest.raises(LimitReached, match="2 topics"):
                    await bus.publish(topics[2], 1)
            await bus.publish(topics[0], 2)

    @simulated
    async def test_of_message_bytes(self) -> None:
        """A publish that is too large is refused at the client, whether it was said before or after the welcome."""
        async with Town(words, limits=ServerLimits(message_bytes=1000)).open() as town, town.client() as bus:
            for _ in range(2):
                with pytest.raises(LimitReached) as caught:
                    await bus.publish(words, "x" * 1000)
                assert (caught.value.limit, caught.value.bound) == ("message_bytes", 1000)
            await bus.publish(words, "x" * 900)

    @simulated
    async def test_of_created_topics(self) -> None:
        """All clients together; and what they retain has a bound, whatever they ask for."""
        limits = ServerLimits(created_topics=2, created_retain=5)
        async with Town(words, create=True, limits=limits).open() as town, town.client() as bus:
            for number in range(2):
                greedy = Topic(f"t{number}", int, retain=10**9, max_lag=10**9)
                for payload in range(1000):
                    await bus.publish(greedy, payload)
                assert town.bus.statistics().topics[greedy.name].retained < 200
            with pytest.raises(LimitReached, match="2 created topics"):
                await bus.publish(Topic("t2", int), 1)
            await bus.publish(words, "a")

    def test_limits_are_positive(self) -> None:
        for wrong in ({"topics": 0}, {"greeting_seconds": 0}):
            with pytest.raises(ValueError):
                ServerLimits(**wrong)


class Quote(msgspec.Struct):
    symbol: str
    bid: list[int]


class Test_topics:
    @simulated
    async def test_a_topic_that_the_server_does_not_have(self) -> None:
        """Every use says so; other topics are not touched."""
        async with Town(words).open() as town, town.client() as bus:
            for _ in range(2):
                with pytest.raises(UnknownTopic, match="'other'"):
                    await bus.publish(Topic("other", str), "a")
            with pytest.raises(UnknownTopic):
                await bus.subscribe(Topic("other", str)).receive()
            await bus.publish(words, "a")

    @simulated
    async def test_a_topic_that_is_declared_otherwise_there(self) -> None:
        """Compacted or not, and where the key comes from: else keys would silently be lost."""
        async with Town(words, prices, create=True).open() as town, town.client() as bus:
            with pytest.raises(TopicConflict, match="compacted"):
                await bus.publish(Topic("prices", Price, key="symbol"), Price("X", 1.0))
            with pytest.raises(TopicConflict, match="key"):
                await bus.publish(Topic("words", str, key=str.lower), "a")

    @simulated
    async def test_a_view_of_a_topic_without_a_state_says_so(self) -> None:
        """Only the server knows; a mapping of the keys that happened to change would be no state."""
        keyed = Topic("keyed", Price, key="symbol")
        async with Town(keyed).open() as town, town.client() as bus:
            await bus.publish(keyed, Price("X", 1.0))
            async with bus.view(keyed) as view:
                await bus.publish(keyed, Price("Y", 1.0))
                with pytest.raises(NotCompacted, match="cannot view topic 'keyed'"):
                    await view.ready()
                assert dict(view) == {}

            @town.bus.snapshot(keyed)
            async def source(key: str | None, append: Append) -> int:
                append(Price("X", 1.0))
                append(Price("Y", 1.0))
                return 2

            async with bus.view(keyed) as view:
                await view.ready()
                assert set(view) == {"X", "Y"}

    @simulated
    async def test_a_created_topic_passes_payloads_on(self) -> None:
        """Keys, tombstones and all; the server knows nothing of them."""
        async with Town(create=True).open() as town, town.client() as one, town.client() as two:
            for number in range(3):
                await one.publish(prices, Price(f"s{number}", number))
            await one.delete(prices, "s1")
            await one.publish(words, "no key")
            await one.publish(words, "a key", key="k")
            async with two.view(prices) as view:
                await view.ready()
                assert dict(view) == {"s0": Price("s0", 0.0), "s2": Price("s2", 2.0)}
            assert await take(two.subscribe(words, key="k", after=EARLIEST), 1) == ["a key"]
            assert await take(two.subscribe(words, after=EARLIEST), 2) == ["no key", "a key"]

    @simulated
    async def test_a_payload_that_does_not_fit_is_told_to_its_publisher(self) -> None:
        """With the path; nothing was published."""
        async with Town(prices).open() as town, town.client() as bus:
            wrong = Topic("prices", Quote, key="symbol", compacted=True)
            with pytest.raises(InvalidPayload, match=r"\$\.bid"):
                await bus.publish(wrong, Quote("X", [1]))
            assert (await town.bus.head(prices)).index == 0

    @simulated
    async def test_a_subscription_of_another_type_ends_alone(self) -> None:
        """With the path; the connection and its other subscriptions live on."""
        async with Town(prices, words).open() as town, town.client() as bus, town.client() as right:
            wrong = bus.subscribe(Topic("prices", Quote, key="symbol", compacted=True))
            other = bus.subscribe(words)
            await right.publish(prices, Price("X", 1.0))
            with pytest.raises(InvalidPayload, match=r"\$\[0\]\[3\]\.bid"):
                await wrong.receive()
            await right.publish(words, "a")
            assert await take(other, 1) == ["a"]
            await settle()
            assert town.bus.statistics().topics["prices"].subscribers == 0

    @simulated
    async def test_the_list_of_topics(self) -> None:
        """With their numbers."""
        async with Town(words).open() as town, town.client() as bus:
            head = await bus.publish(words, "a")
            listed = await bus.topics()
            assert (listed["words"]["epoch"], listed["words"]["head"]) == (head.epoch, 1)
