"""JSON Web Tokens as credentials: `Server(bus, authenticate=jwt_verifier(...))`. Needs the extra `jwt` (joserfc).

The library checks signatures and claims; here stands what it is asked for, so that nothing is left to the token: which
algorithms and which kind of key, who must have issued it and for whom, that it ends, and how long a token may be.
Keys are typed: a public key is never taken for a secret (HS256 signed with the text of an RSA key).

Whatever is wrong with a token, its sender hears the same: it is not authorized to connect. The server's log has the
kind of error, without a word of the token. Keys are fetched by the caller: no network is used here.
"""

from __future__ import annotations

import base64
import inspect
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias, get_args

import msgspec

from .access import Action, Authenticate, Credentials, Grant, May

if TYPE_CHECKING:
    from joserfc.jwk import Key, KeySet

__all__ = ("JwtKeys", "JwtRules", "jwt_verifier")

JwtKeys: TypeAlias = str | bytes | Mapping[str, Any]
"""A key or several: a PEM text, a JWK or a JWKS (as a mapping, or its JSON), or, for HS algorithms, the secret."""

MOST: Final = 16 * 1024  # characters of a token: four times what the largest identity providers send
SECRET: Final = 32  # bytes at least of an HS secret, as RFC 7518 asks for: shorter ones can be guessed
KINDS: Final = {"HS": "oct", "RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}  # of keys, by the algorithm's beginning
ALGORITHMS: Final = (
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512",
    "ES256", "ES384", "ES512", "EdDSA", "Ed25519",
)  # fmt: skip
logger: Final = logging.getLogger("eventstream.remote")


class JwtRules(msgspec.Struct, frozen=True, kw_only=True):
    """What a token must be, and what it says.

    Args:
        algorithms: That may have signed it, all for one kind of key; such as `["RS256"]`.
        issuer: Its `iss`.
        audience: In its `aud`.
        principal: The claim that names the principal.
        permissions: The claim that lists what the client may do, such as "scope": texts `ACTION:TOPIC`, in one text
            with spaces or in a list. `*` in place of the action is every one; at the end of the topic, whatever
            follows. What is not of this form is passed over. None: tokens say nothing of it.
        leeway: Seconds by which clocks may differ.

    Raises:
        ValueError: if the algorithms are none, unknown, or for several kinds of keys; or if a text is empty.
    """

    algorithms: Sequence[str]
    issuer: str
    audience: str
    principal: str = "sub"
    permissions: str | None = None
    leeway: int = 30

    def __post_init__(self) -> None:
        unknown = [name for name in self.algorithms if name not in ALGORITHMS]
        if isinstance(self.algorithms, str) or unknown or not self.algorithms:
            raise ValueError(f"algorithms are some of {', '.join(ALGORITHMS)}, not {self.algorithms!r}")
        if len({KINDS[name[:2]] for name in self.algorithms}) > 1:
            raise ValueError(f"algorithms for different kinds of keys: {self.algorithms!r}; make one verifier for each")
        if not (self.issuer and self.audience and self.principal) or self.permissions == "" or self.leeway < 0:
            raise ValueError("issuer, audience, principal and permissions are not empty, and leeway is not negative")

    @property
    def kind(self) -> str:
        """Of the keys: oct, RSA, EC or OKP."""
        return KINDS[self.algorithms[0][:2]]


def jwt_verifier(
    keys: JwtKeys | Callable[[], JwtKeys | Awaitable[JwtKeys]],
    rules: JwtRules,
    *,
    clock: Callable[[], float] = time.time,
) -> Authenticate:
    """Makes an `authenticate` for a `Server` whose clients show a JSON Web Token.

        rules = JwtRules(algorithms=["RS256"], issuer="https://id.example.com", audience="events")
        Server(bus, authenticate=jwt_verifier(fetch_jwks, rules))

    A token must be signed by one of the keys, and have `iss`, `aud`, `exp` and the principal's claim. `nbf` and `iat`
    count if they are there. When it expires, its connection ends: the client asks its token callable for another, and
    goes on where it was; with the same token again it gets `NotAuthorized`, as do its subscriptions.

    Args:
        keys: The key or keys, or a callable, async or not, that gives them; it is asked for each client that comes, so
            let it keep what it has fetched. In a set with several keys a token names its own (`kid`).
        rules: What a token must be, and what it says.
        clock: The time in POSIX seconds.

    Raises:
        RuntimeError: if joserfc is not installed.
        ValueError: if a key cannot be used with the algorithms. (Of a callable, only when a client comes: that is
            logged, and the client comes again later.)
    """
    try:
        import joserfc  # noqa: F401
    except ImportError:
        raise RuntimeError("jwt_verifier needs joserfc: pip install 'eventstream[jwt]'") from None
    given = None if callable(keys) else _imported(keys, rules.kind)

    async def authenticate(credentials: Credentials) -> Grant | None:
        token = credentials.token
        if not token or len(token) > MOST:
            return None
        found = given
        if found is None:
            assert callable(keys)
            fetched = keys()
            found = _imported(await fetched if inspect.isawaitable(fetched) else fetched, rules.kind)
        return _verify(token, found, rules, clock())

    return authenticate


def _verify(token: str, keys: Key | KeySet, rules: JwtRules, now: float) -> Grant | None:
    from joserfc import jwt
    from joserfc.errors import JoseError

    registry = jwt.JWTClaimsRegistry(
        now=lambda: int(now),
        leeway=rules.leeway,
        iss={"essential": True, "value": rules.issuer},
        aud={"essential": True, "value": rules.audience},
        exp={"essential": True},
    )
    try:
        claims = jwt.decode(token, keys, algorithms=list(rules.algorithms)).claims
        registry.validate(claims)
        principal = claims[rules.principal]
        if not isinstance(principal, str) or not principal:
            raise TypeError
        may = None if rules.permissions is None else _permissions(claims.get(rules.permissions))
        return Grant(principal, float(claims["exp"]) + rules.leeway, may)
    except (JoseError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        logger.info("a token is refused: %s", type(error).__name__)  # its text may show what the token says
        return None


def _permissions(claim: object) -> May:
    """What a claim allows; nothing, if it is missing or of another form."""
    texts = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else []
    exact: set[tuple[str, str]] = set()
    beginnings: list[tuple[str, str]] = []
    for text in texts:
        action, separator, topic = text.partition(":") if isinstance(text, str) else ("", "", "")
        if separator and topic and (action == "*" or action in get_args(Action)):
            if topic.endswith("*"):
                beginnings.append((action, topic[:-1]))
            else:
                exact.add((action, topic))

    def may(action: Action, topic: str, key: str | None) -> bool:
        if (action, topic) in exact or ("*", topic) in exact:
            return True
        return any(allowed in ("*", action) and topic.startswith(beginning) for allowed, beginning in beginnings)

    return may


def _imported(keys: JwtKeys, kind: str) -> Key | KeySet:
    from joserfc.errors import JoseError
    from joserfc.jwk import ECKey, KeySet, OctKey, OKPKey, RSAKey

    types: dict[str, Any] = {"oct": OctKey, "RSA": RSAKey, "EC": ECKey, "OKP": OKPKey}
    try:
        jwk = _as_jwk(keys)
        if jwk is None:
            if kind == "oct":
                _check_secret(keys)
            found: Key | KeySet = types[kind].import_key(keys)
        else:
            fitting = [one for one in jwk.get("keys", [jwk]) if one.get("kty") == kind]
            for one in fitting:
                if kind == "oct":
                    _check_secret(base64.urlsafe_b64decode(one["k"] + "=="))
            several = KeySet.import_key_set({"keys": fitting})
            found = several if "keys" in jwk or not several.keys else several.keys[0]  # which is meant in any case
    except (JoseError, ValueError, TypeError, KeyError, AttributeError):
        found = KeySet([])
    if isinstance(found, KeySet) and not found.keys:
        # Not a word of what was given, and no cause: it may be a secret.
        least = f" of at least {SECRET} bytes" if kind == "oct" else ""
        raise ValueError(
            f"no {kind} key{least}: give PEM, a JWK or JWKS, or a secret, as the algorithms need"
        ) from None
    return found


def _as_jwk(keys: JwtKeys) -> Mapping[str, Any] | None:
    """A JWK or JWKS, if it is one; else it is PEM or a secret."""
    if isinstance(keys, Mapping):
        return keys
    try:
        decoded = json.loads(keys)
    except ValueError:
        return None
    return decoded if isinstance(decoded, dict) and ("keys" in decoded or "kty" in decoded) else None


def _check_secret(secret: Any) -> None:
    data = secret.encode() if isinstance(secret, str) else secret
    if len(data) < SECRET or data.lstrip().startswith((b"-----BEGIN", b"ssh-", b"ecdsa-")):
        raise ValueError  # too short, or a key of another kind, which is no secret
