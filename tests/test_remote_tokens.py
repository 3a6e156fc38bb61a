"""JSON Web Tokens: which are accepted, what they allow, and what whoever sends another one learns (nothing)."""

from __future__ import annotations

import base64
import builtins
import hmac
import json
import logging
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from joserfc import jws, jwt
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from remote_support import Town, settle, simulated, stranger, take

from eventstream import NotAuthorized, Topic
from eventstream.remote import Credentials, Grant, JwtRules, jwt_verifier
from eventstream.remote.messages import VERSION, Greeting
from eventstream.remote.tokens import MOST

NOW = 1_700_000_000.0
ISSUER, AUDIENCE = "https://id.example.com", "events"
RSA = RSAKey.generate_key(2048, {"kid": "one"})
OTHER = RSAKey.generate_key(2048, {"kid": "one"})
SECRET = "a secret of more than thirty-two bytes"
RS256 = JwtRules(algorithms=["RS256"], issuer=ISSUER, audience=AUDIENCE)
HS256 = JwtRules(algorithms=["HS256"], issuer=ISSUER, audience=AUDIENCE)
CLAIMS = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": NOW + 600}
words, others = Topic("words", str), Topic("others", str)


def public(key: Any = RSA) -> dict[str, Any]:
    return dict(key.as_dict(private=False))


def pem(key: Any = RSA) -> bytes:
    return bytes(key.as_pem(private=False))


def signed(claims: dict[str, Any], key: Any = RSA, alg: str = "RS256", **header: Any) -> str:
    return jwt.encode({"alg": alg, **header}, claims, key, algorithms=[alg])


def raw(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"") -> str:
    """A token as an attacker writes it."""
    parts = [json.dumps(header).encode(), json.dumps(claims).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


async def shown(token: str | None, keys: Any = None, rules: JwtRules = RS256) -> Grant | None:
    """What the verifier says of a token."""
    verify: Callable[[Credentials], Any] = jwt_verifier(pem() if keys is None else keys, rules, clock=lambda: NOW)
    grant = await verify(Credentials(token, None))
    assert grant is None or isinstance(grant, Grant)
    return grant


class Test_a_good_token:
    @pytest.mark.parametrize(
        ("key", "algorithm"),
        [
            (RSA, "RS256"),
            (RSA, "PS512"),
            (ECKey.generate_key("P-256"), "ES256"),
            (OKPKey.generate_key("Ed25519"), "Ed25519"),
        ],
    )
    async def test_of_every_kind_of_key_names_its_principal(self, key: Any, algorithm: str) -> None:
        """As PEM, as a JWK, as its JSON."""
        rules = JwtRules(algorithms=[algorithm], issuer=ISSUER, audience=AUDIENCE)
        token = signed(CLAIMS, key, algorithm)
        for keys in (pem(key), pem(key).decode(), public(key), json.dumps(public(key))):
            assert await shown(token, keys, rules) == Grant("alice", NOW + 630)

    async def test_of_a_shared_secret(self) -> None:
        token = signed(CLAIMS, OctKey.import_key(SECRET), "HS256")
        for keys in (SECRET, SECRET.encode(), dict(OctKey.import_key(SECRET).as_dict())):
            assert await shown(token, keys, HS256) == Grant("alice", NOW + 630)

    async def test_of_one_key_of_a_set(self) -> None:
        """The one that the token names; keys of other kinds do not matter."""
        assert await shown(signed(CLAIMS, kid="unknown"), public()) is not None  # a single one is meant in any case
        second = RSAKey.generate_key(2048, {"kid": "two"})
        keys = {"keys": [public(), public(second), public(ECKey.generate_key("P-256")), {"kty": "new"}]}
        assert await shown(signed(CLAIMS, second, kid="two"), keys) is not None
        assert await shown(signed(CLAIMS, second, kid="one"), keys) is None
        assert await shown(signed(CLAIMS, second, kid="three"), keys) is None
        assert await shown(signed(CLAIMS, second), keys) is None  # it does not say which

    async def test_with_keys_that_are_asked_for_each_time(self) -> None:
        """A key may be replaced while the server runs; the callable may be async or not."""
        present = {"keys": [public()]}

        async def fetch() -> Any:
            await anyio.lowlevel.checkpoint()
            return present

        for keys in (fetch, lambda: present):
            present["keys"] = [public()]
            verify: Any = jwt_verifier(keys, RS256, clock=lambda: NOW)
            assert await verify(Credentials(signed(CLAIMS), None)) is not None
            present["keys"] = [public(OTHER)]
            assert await verify(Credentials(signed(CLAIMS), None)) is None

    async def test_may_be_for_several_audiences_and_name_another_claim(self) -> None:
        rules = JwtRules(algorithms=["RS256"], issuer=ISSUER, audience=AUDIENCE, principal="client_id", leeway=0)
        claims = {**CLAIMS, "aud": ["else", AUDIENCE], "client_id": "device 7", "nbf": NOW, "iat": NOW}
        assert await shown(signed(claims), rules=rules) == Grant("device 7", NOW + 600)


WRONG: dict[str, dict[str, Any]] = {
    "expired": {"exp": NOW - 31},
    "never ends": {"exp": None},
    "ends at no number": {"exp": "tomorrow"},
    "ends at an endless number": {"exp": 10**400},
    "not yet valid": {"nbf": NOW + 31},
    "of the future": {"iat": NOW + 31},
    "no issuer": {"iss": None},
    "another issuer": {"iss": "https://id.example.com.evil.org"},
    "a list of issuers": {"iss": [ISSUER]},
    "no audience": {"aud": None},
    "another audience": {"aud": "other"},
    "nobody": {"sub": None},
    "an empty name": {"sub": ""},
    "a number": {"sub": 7},
}


class Test_a_bad_token:
    @pytest.mark.parametrize("name", WRONG)
    async def test_whose_claims_are_not_as_asked_for_is_refused(self, name: str) -> None:
        claims = {claim: value for claim, value in {**CLAIMS, **WRONG[name]}.items() if value is not None}
        assert await shown(signed({**CLAIMS})) is not None
        assert await shown(signed(claims)) is None

    async def test_of_another_key_is_refused(self) -> None:
        assert await shown(signed(CLAIMS, OTHER)) is None

    async def test_without_a_signature_is_refused(self) -> None:
        """alg=none, in every spelling."""
        for algorithm in ("none", "None", "NONE", "nOnE", "", None):
            assert await shown(raw({"alg": algorithm, "typ": "JWT"}, CLAIMS)) is None
        assert await shown(raw({"typ": "JWT"}, CLAIMS)) is None

    async def test_signed_with_the_public_key_as_a_secret_is_refused(self) -> None:
        """The classic confusion: HS256 over the text of the RSA key, which everybody knows."""
        for text in (pem(), pem().strip(), json.dumps(public()).encode()):
            body = raw({"alg": "HS256", "typ": "JWT", "kid": "one"}, CLAIMS).rpartition(".")[0]
            signature = hmac.digest(text, body.encode(), "sha256")
            token = f"{body}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"
            for keys in (pem(), public(), {"keys": [public()]}):
                assert await shown(token, keys) is None

    async def test_of_another_algorithm_of_the_same_key_is_refused(self) -> None:
        """Only what was agreed."""
        for agreed, other in (("RS256", "RS512"), ("PS256", "RS256"), ("RS256", "PS256")):
            rules = JwtRules(algorithms=[agreed], issuer=ISSUER, audience=AUDIENCE)
            assert await shown(signed(CLAIMS, RSA, agreed), rules=rules) is not None
            assert await shown(signed(CLAIMS, RSA, other), rules=rules) is None

    async def test_that_brings_its_own_key_is_refused(self) -> None:
        """In its header, or where to find it."""
        assert await shown(signed(CLAIMS, OTHER, jwk=public(OTHER))) is None
        assert await shown(signed(CLAIMS, OTHER, jku="https://evil.org/keys")) is None

    @pytest.mark.parametrize(
        "token",
        [None, "", ".", "..", "a.b.c", "\x00", "é.é.é", "x" * 1000, "x" * (MOST + 1), "e30.e30.e30", "....."],
    )
    async def test_that_is_none_is_refused(self, token: str | None) -> None:
        assert await shown(token) is None

    async def test_that_is_nested_deeply_is_refused(self) -> None:
        """It costs a stranger nothing to write brackets."""
        deep = "[" * 5000 + "]" * 5000
        payload = f'{{"iss":"{ISSUER}","x":{deep}}}'.encode()
        token = jws.serialize_compact({"alg": "RS256"}, payload, RSA, algorithms=["RS256"])
        assert await shown(token) is None

    async def test_that_is_too_long_is_not_even_looked_at(self) -> None:
        """Though it is good otherwise."""
        assert await shown(signed({**CLAIMS, "padding": "x" * 1000})) is not None
        assert await shown(signed({**CLAIMS, "padding": "x" * MOST})) is None

    async def test_is_logged_without_a_word_of_it(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG, "eventstream")
        assert await shown(signed({**CLAIMS, "iss": "mallory"}, kid="mallory")) is None
        [record] = caplog.records
        assert record.getMessage() == "a token is refused: InvalidClaimError"


class Test_what_it_allows:
    @pytest.mark.parametrize(
        ("claim", "yes", "no"),
        [
            ("subscribe:words", [("subscribe", "words")], [("publish", "words"), ("subscribe", "words2")]),
            (["publish:w*", "x"], [("publish", "words"), ("publish", "w")], [("publish", "x"), ("subscribe", "words")]),
            ("openid *:words", [("refresh", "words"), ("subscribe", "words")], [("publish", "other")]),
            ("*:*", [("create", "anything")], []),
            ("subscribe:a:b subscribe: :words read:words", [("subscribe", "a:b")], [("subscribe", "words")]),
            (None, [], [("subscribe", "words")]),
            (7, [], [("subscribe", "words")]),
            ([7, None], [], [("subscribe", "words")]),
        ],
    )
    async def test_stands_in_a_claim(self, claim: Any, yes: list[Any], no: list[Any]) -> None:
        rules = JwtRules(algorithms=["RS256"], issuer=ISSUER, audience=AUDIENCE, permissions="scope")
        grant = await shown(signed({**CLAIMS, **({} if claim is None else {"scope": claim})}), rules=rules)
        assert grant is not None
        assert grant.may is not None
        assert all(grant.may(action, topic, None) for action, topic in yes)
        assert not any(grant.may(action, topic, "key") for action, topic in no)

    @simulated
    async def test_counts_besides_what_the_server_allows(self) -> None:
        """Both have to agree."""

        def authenticate(_: Credentials) -> Grant:
            return Grant("alice", may=lambda action, topic, key: action == "publish" or topic == "words")

        def authorize(principal: object, action: str, topic: str, key: str | None) -> bool:
            return action == "subscribe"

        async with (
            Town(words, others, authenticate=authenticate, authorize=authorize).open() as town,
            town.client() as bus,
        ):
            await bus.head(words)
            with pytest.raises(NotAuthorized):
                await bus.head(others)
            with pytest.raises(NotAuthorized):
                await bus.publish(words, "a")

    @simulated
    async def test_a_failure_of_it_means_no(self) -> None:
        def authenticate(_: Credentials) -> Grant:
            return Grant("alice", may=lambda action, topic, key: 1 // 0 == 0)

        async with Town(words, authenticate=authenticate).open() as town, town.client() as bus:
            with pytest.raises(NotAuthorized):
                await bus.head(words)


class Test_a_server_with_tokens:
    @simulated
    async def test_goes_on_with_who_has_a_new_token_and_ends_who_has_not(self) -> None:
        """When one expires: the next is asked for, and nothing is missed; the same again is refused."""
        start = anyio.current_time()

        def clock() -> float:
            return NOW + anyio.current_time() - start

        rules = JwtRules(algorithms=["HS256"], issuer=ISSUER, audience=AUDIENCE, leeway=0)
        key = OctKey.import_key(SECRET)
        asked = 0

        def fresh() -> str:
            nonlocal asked
            asked += 1
            return signed({**CLAIMS, "exp": clock() + 60}, key, "HS256")

        verify = jwt_verifier(SECRET, rules, clock=clock)
        async with Town(words, authenticate=verify, clock=clock).open() as town:
            async with town.client(token=fresh) as bus, town.client(token=fresh()) as old:
                subscription, ending = bus.subscribe(words), old.subscribe(words)
                for number in range(10):
                    await bus.publish(words, str(number))
                    await anyio.sleep(20)
                assert await take(subscription, 10) == [str(number) for number in range(10)]
                assert 5 <= asked <= 7  # one for the other client, and one a minute
                with pytest.raises(NotAuthorized):
                    await take(ending, 10)
                with pytest.raises(NotAuthorized):
                    await old.head(words)

    @simulated
    async def test_tells_a_stranger_nothing(self) -> None:
        """Whatever was wrong, the words are the same."""
        verify = jwt_verifier(pem(), RS256, clock=lambda: NOW)
        told = set()
        for token in (None, "a.b.c", signed(CLAIMS, OTHER), signed({**CLAIMS, "exp": NOW - 100}), "x" * 20_000):
            async with Town(words, authenticate=verify).open() as town, stranger(town, greet=False) as one:
                await one.say(Greeting(VERSION, token))
                told.add(await one.refusal())
        assert told == {"principal None is not authorized to connect"}

    @simulated
    async def test_does_not_listen_to_long_messages_of_strangers(self) -> None:
        """Sixty-four kilobytes are enough to say who one is."""
        async with Town(words).open() as town:
            async with stranger(town, greet=False) as one:
                await one.say(Greeting(VERSION, "x" * 70_000))
                assert "at most 65536" in await one.refusal()
            async with town.client() as bus:
                await bus.publish(words, "x" * 70_000)  # who is known may say more

    @simulated
    async def test_whose_keys_cannot_be_had_lets_clients_come_again(self) -> None:
        """It is not their fault."""
        calls = 0

        def fetch() -> Any:
            nonlocal calls
            calls += 1
            if calls < 3:
                raise OSError("the identity provider is away")
            return pem()

        verify = jwt_verifier(fetch, RS256, clock=lambda: NOW)
        async with (
            Town(words, authenticate=verify, clock=lambda: NOW).open() as town,
            town.client(token=signed(CLAIMS)) as bus,
        ):
            with anyio.fail_after(60):
                await bus.wait_connected()
            await settle()
            assert calls == 3


class Test_a_verifier:
    @pytest.mark.parametrize(
        "options",
        [
            {"algorithms": []},
            {"algorithms": ["none"]},
            {"algorithms": "RS256"},
            {"algorithms": ["RS256", "HS256"]},
            {"algorithms": ["XX256"]},
            {"issuer": ""},
            {"audience": ""},
            {"principal": ""},
            {"permissions": ""},
            {"leeway": -1},
        ],
    )
    def test_rules_that_say_too_little_are_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError):
            JwtRules(**{"algorithms": ["RS256"], "issuer": ISSUER, "audience": AUDIENCE, **options})

    @pytest.mark.parametrize(
        ("keys", "rules"),
        [
            ("no pem", RS256),
            (SECRET, RS256),
            (dict(OctKey.import_key(SECRET).as_dict()), RS256),
            ({"keys": []}, RS256),
            ({"keys": [{"kty": "RSA"}]}, RS256),
            ({"keys": 7}, RS256),
            (pem(ECKey.generate_key("P-256")), RS256),
            ("short", HS256),
            ("", HS256),
            ({"kty": "oct", "k": ""}, HS256),
            ({"kty": "oct", "k": "c2hvcnQ"}, HS256),
            ({"keys": [{"kty": "oct", "k": "c2hvcnQ"}]}, HS256),
            (pem(), HS256),
            (public(), HS256),
        ],
    )
    def test_keys_that_cannot_be_used_are_refused_without_showing_them(self, keys: Any, rules: JwtRules) -> None:
        with pytest.raises(ValueError) as caught:
            jwt_verifier(keys, rules)
        assert "key" in str(caught.value)
        assert "short" not in str(caught.value)
        assert SECRET not in str(caught.value)
        assert caught.value.__cause__ is None

    def test_without_the_library_it_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = builtins.__import__

        def without(name: str, *args: Any, **kwargs: Any) -> Any:
            if name.startswith("joserfc"):
                raise ImportError(name)
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(RuntimeError, match=r"pip install 'eventstream\[jwt\]'"):
            jwt_verifier(SECRET, HS256)
