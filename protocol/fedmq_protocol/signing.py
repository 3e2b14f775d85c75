"""What one side may believe of the other: the federation's roots, gateways' cards, and the seals on messages.

Owns which message carries which seal, and what a seal is over. Refuses to know files, clocks and connections. A broker
that lies, and every gateway but the one spoken of, stand outside: they can withhold, and nothing else.

- A `Root` names the federation's keys. Gateways begin with one from a file, and go on to the next where both the
  root key that they know and the new one's own have signed it (after The Update Framework, specification 1.0.33,
  section 5.3). What is signed by the keys of an expired root is refused.
- A gateway's `Card` is its public X25519 key (RFC 7748), signed by the root's issuer for one name in one federation.
  From it and the coordinator's key of the root both sides make one key for each start of a gateway (RFC 5869), before
  the first message: what gateways send and what one gateway is sent carries a MAC of 8 bytes (keyed BLAKE2s, RFC 7693),
  and no signature is paid per gateway.
- What is for all is signed by the coordinator, 64 bytes once (Ed25519, RFC 8032), and so is a welcome, by which a
  gateway learns the time. Under a signature lie a domain, the root's version and the topic, which names the federation;
  and the message, which names lineage (the task), number (the sequence) and closing time or nonce (the freshness).
- No seal of its own carries a chunk of what is broadcast, whose digest is under a signature; `Roots`, which bring their
  signatures; and an unclean leave, which is the broker's word: who can forge it can cut the connection as well.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2s
from typing import Annotated, Any, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from msgspec import Meta

from fedmq_protocol.messages import (
    MAX_ROOTS,
    SEAL_BYTES,
    Birth,
    Chunk,
    Leave,
    Message,
    MessageError,
    Roots,
    Seal,
    Sealed,
    sealed,
)
from fedmq_protocol.topics import Direction, Topic, check_name

__all__ = [
    "Card",
    "Chain",
    "CoordinatorSeals",
    "GatewaySeals",
    "Root",
    "TrustError",
    "issue_card",
    "key_to_pem",
    "public_bytes",
    "read_card",
    "read_ed25519",
    "read_x25519",
    "seal_of",
    "session_key",
    "sign_root",
]

_ROOT = b"fedmq root 1\0"
_CARD = b"fedmq card 1\0"
_MESSAGE = b"fedmq message 1\0"
_SESSION = b"fedmq session 1\0"

MAX_TRUST_BYTES = 256 * 1024
"""A file of roots is read no further."""

DATES_LOOK_SECONDS = 60.0
"""How often it is looked whose card has expired; who speaks is looked at at once."""

Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]
UnixSeconds = Annotated[int, Meta(ge=0, le=1 << 34)]
StructT = TypeVar("StructT", bound=msgspec.Struct)


class TrustError(ValueError):
    """Keys, roots or a card that cannot be used."""


class Root(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The federation's public keys, from one version to the next."""

    federation: str
    version: Annotated[int, Meta(ge=1, le=1 << 31)]
    root: Key
    """Ed25519: signs the next root. It may lie in a safe."""
    issuer: Key
    """Ed25519: signs gateways' cards."""
    coordinator: Key
    """Ed25519: signs what is for all."""
    agreement: Key
    """X25519, the coordinator's: gateways make the key of their MACs with it."""
    begins: UnixSeconds
    expires: UnixSeconds

    def __post_init__(self) -> None:
        check_name(self.federation, "federation")
        if self.expires <= self.begins:
            raise ValueError(f"expected an end after the beginning {self.begins}, got {self.expires}")


class _SignedRoot(msgspec.Struct, frozen=True, array_like=True):
    body: Annotated[bytes, Meta(max_length=512)]
    own: Signature
    before: Signature | None = None
    """By the root key of the version before; None for the first."""


class Card(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A gateway's key. Its serial number is that of the certificate that was issued with it: one list revokes both."""

    serial: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
    agreement: Key
    """X25519."""
    begins: UnixSeconds
    expires: UnixSeconds


class _SignedCard(msgspec.Struct, frozen=True, array_like=True):
    card: Card
    signature: Signature


# -- roots ----------------------------------------------------------------------------------------------------------


def sign_root(root: Root, own: Ed25519PrivateKey, before: Ed25519PrivateKey | None = None) -> bytes:
    """The root as it is handed on. `own` is the key that it names, `before` that of the version before it."""
    if public_bytes(own) != root.root:
        raise TrustError(f"root {root.version} names another root key than the one that is to sign it")
    body = msgspec.msgpack.encode(root)
    signed = _SignedRoot(body, own.sign(_ROOT + body), None if before is None else before.sign(_ROOT + body))
    return msgspec.msgpack.encode(signed)


def _read_root(data: bytes, before: Root | None) -> Root:
    signed = _decoded(data, _SignedRoot, "a root")
    root = _decoded(signed.body, Root, "a root")
    _verified(root.root, signed.own, _ROOT + signed.body, f"root {root.version} is not signed by its own key")
    if before is None:
        return root
    if root.federation != before.federation:
        raise TrustError(f"expected a root of federation {before.federation}, got one of {root.federation}")
    if root.version != before.version + 1:
        raise TrustError(f"expected root {before.version + 1} behind root {before.version}, got {root.version}")
    if signed.before is None:
        raise TrustError(f"root {root.version} is not signed by the root key before it")
    text = f"root {root.version} is not signed by the key of root {before.version}"
    _verified(before.root, signed.before, _ROOT + signed.body, text)
    return root


class Chain:
    """Roots, each vouched for by the one before; of the first the caller must know that it is right.

    Raises TrustError for a chain that does not hold, or of another federation than is expected.
    """

    def __init__(self, signed: Sequence[bytes], federation: str | None = None) -> None:
        if not signed:
            raise TrustError("expected one root or more, got none")
        self._signed = tuple(signed)
        self._roots: list[Root] = []
        for data in signed:
            self._roots.append(_read_root(data, self._roots[-1] if self._roots else None))
        if federation is not None and self.newest.federation != federation:
            raise TrustError(f"expected roots of federation {federation}, got those of {self.newest.federation}")

    @property
    def newest(self) -> Root:
        return self._roots[-1]

    def after(self, version: int) -> tuple[bytes, ...]:
        """What leads on from a version: nothing from the newest one, or where this chain does not reach back so far."""
        if version + 1 < self._roots[0].version:
            return ()
        steps = (data for root, data in zip(self._roots, self._signed, strict=True) if root.version > version)
        return tuple(steps)[:MAX_ROOTS]

    def walk(self, signed: Sequence[bytes]) -> Chain:
        """With these behind it; those that it has already are passed over. Raises TrustError."""
        roots = [(_read_root(data, None), data) for data in signed]
        return Chain([*self._signed, *(data for root, data in roots if root.version > self.newest.version)])

    @staticmethod
    def read(text: str, federation: str | None = None) -> Chain:
        """From the text of a file `trust`. Raises TrustError."""
        if len(text) > MAX_TRUST_BYTES:
            raise TrustError(f"expected a file of roots of at most {MAX_TRUST_BYTES:,} bytes, got {len(text):,}")
        lines = [line.strip() for line in text.splitlines()]
        try:
            signed = [base64.b64decode(line, validate=True) for line in lines if line and not line.startswith("#")]
        except (binascii.Error, ValueError):
            raise TrustError("expected lines of base64, each a root of the federation") from None
        return Chain(signed, federation)

    def text(self) -> str:
        """As a file `trust` holds it."""
        lines = ["# The public keys that this federation's programs believe, oldest first. No secret."]
        for root, data in zip(self._roots, self._signed, strict=True):
            lines += [
                f"# {root.federation}, root {root.version}, {_day(root.begins)} to {_day(root.expires)}",
                base64.b64encode(data).decode(),
            ]
        return "\n".join(lines) + "\n"


# -- cards ----------------------------------------------------------------------------------------------------------


def issue_card(card: Card, *, federation: str, gateway: str, issuer: Ed25519PrivateKey) -> bytes:
    """The card as its gateway keeps it and shows it."""
    return msgspec.msgpack.encode(_SignedCard(card, issuer.sign(_card_text(card, federation, gateway))))


def read_card(data: bytes, *, federation: str, gateway: str, issuer: bytes) -> Card:
    """The card, where the issuer has signed it for this gateway. Raises TrustError. Dates are the caller's to check."""
    signed = _decoded(data, _SignedCard, "a card")
    text = f"the card is not signed by the federation's issuer for {gateway}"
    _verified(issuer, signed.signature, _card_text(signed.card, federation, gateway), text)
    return signed.card


def _card_text(card: Card, federation: str, gateway: str) -> bytes:
    return _CARD + msgspec.msgpack.encode((federation, gateway)) + msgspec.msgpack.encode(card)


def session_key(
    mine: X25519PrivateKey, theirs: bytes, *, federation: str, gateway: str, root: int, nonce: bytes
) -> bytes:
    """32 bytes that the coordinator and one start of one gateway share. Raises TrustError for a key that is none."""
    try:
        shared = mine.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError as error:
        raise TrustError(f"not a public X25519 key: {error}") from None
    info = _SESSION + msgspec.msgpack.encode((federation, gateway, root))
    return HKDF(algorithm=SHA256(), length=32, salt=nonce, info=info).derive(shared)


# -- seals ----------------------------------------------------------------------------------------------------------


def seal_of(where: Topic, message: Message) -> Seal:
    """Which seal a message carries on a topic, in a federation that seals."""
    if isinstance(message, Roots) or (isinstance(message, Leave) and not message.clean):
        return Seal.NONE
    if where.direction is Direction.DOWN:
        return Seal.NONE if isinstance(message, Chunk) else Seal.SIGNATURE
    if where.direction is Direction.CMD and where.channel.value == "welcome":
        return Seal.SIGNATURE
    return Seal.MAC


def _signed_text(root: int, topic: str, covered: bytes) -> bytes:
    return _MESSAGE + msgspec.msgpack.encode((root, topic)) + covered


def _mac(key: bytes, topic: str, covered: bytes) -> bytes:
    size = SEAL_BYTES[Seal.MAC]
    return blake2s(msgspec.msgpack.encode(topic) + covered, key=key, digest_size=size, person=b"fedmqMAC").digest()


def _expect(found: Sealed, seal: Seal) -> None:
    if found.seal is not seal:
        raise MessageError(f"{_said(found.seal)}, {_said(seal)} expected")


def _said(seal: Seal) -> str:
    return "no seal" if seal is Seal.NONE else f"a {'signature' if seal is Seal.SIGNATURE else 'MAC'}"


def _check_mac(key: bytes, topic: str, found: Sealed) -> None:
    _expect(found, Seal.MAC)
    if not hmac.compare_digest(_mac(key, topic, found.covered), found.trailer):
        raise MessageError("its MAC is not of the key of this gateway's start")


class GatewaySeals:
    """Seals what one start of a gateway sends, and checks what it hears.

    `unix` is this machine's clock, in seconds; it may be wrong, and is only asked whether a root has expired. `keep` is
    called with a longer chain before it is gone by. Raises TrustError for a card that is not this gateway's.
    """

    def __init__(
        self,
        *,
        federation: str,
        gateway: str,
        nonce: bytes,
        chain: Chain,
        card: bytes,
        agreement: X25519PrivateKey,
        unix: Callable[[], float],
        keep: Callable[[Chain], None] = lambda chain: None,
    ) -> None:
        self._federation = federation
        self._gateway = gateway
        self._nonce = nonce
        self._agreement = agreement
        self._unix = unix
        self._keep = keep
        self._chain = chain
        try:
            found = read_card(card, federation=federation, gateway=gateway, issuer=chain.newest.issuer)
        except TrustError as error:
            raise TrustError(
                f"{error}, as root {chain.newest.version} names it; a card of an earlier issuer is renewed with"
                " `fedmq gateway renew`"
            ) from None
        if found.agreement != public_bytes(agreement):
            raise TrustError(f"the card of {gateway} is for another key than its agreement.key")
        self.card = card
        self._take(chain)

    def _take(self, chain: Chain) -> None:
        self._key = session_key(
            self._agreement,
            chain.newest.agreement,
            federation=self._federation,
            gateway=self._gateway,
            root=chain.newest.version,
            nonce=self._nonce,
        )
        self._coordinator = _public(chain.newest.coordinator)
        self._chain = chain

    @property
    def root(self) -> Root:
        return self._chain.newest

    def seal(self, topic: str, where: Topic, message: Message, plain: bytes) -> bytes:
        """`plain`, as `to_bytes` gave it, with its seal behind it."""
        kind = seal_of(where, message)
        if kind is not Seal.MAC:
            return plain
        covered = sealed(plain, kind)
        return covered + _mac(self._key, topic, covered)

    def check(self, topic: str, where: Topic, message: Message, found: Sealed) -> None:
        """Raises MessageError for what the coordinator has not said, or said with keys that have expired."""
        kind = seal_of(where, message)
        _expect(found, kind)
        if kind is Seal.MAC:
            _check_mac(self._key, topic, found)
        elif kind is Seal.SIGNATURE:
            root = self.root
            try:
                self._coordinator.verify(found.trailer, _signed_text(root.version, topic, found.covered))
            except InvalidSignature:
                raise MessageError(f"not signed by the coordinator's key of root {root.version}") from None
            if self._unix() >= root.expires:
                raise MessageError(f"signed by keys of root {root.version}, which expired on {_day(root.expires)}")

    def walk(self, roots: Roots) -> bool:
        """Go on to newer roots; False where there were none. Raises TrustError, and stays where it is then."""
        longer = self._chain.walk(roots.roots)
        if longer.newest.version == self.root.version:
            return False
        self._keep(longer)
        self._take(longer)
        return True


@dataclass(frozen=True)
class _Start:
    """One start of a gateway, as the coordinator knows it."""

    nonce: bytes
    card: Card
    key: bytes


class CoordinatorSeals:
    """Seals what the coordinator says, and checks what gateways say.

    `unix` is the coordinator's clock, `revoked` gives the serial numbers that are revoked now. Raises TrustError where
    the keys are not those of the newest root.
    """

    def __init__(
        self,
        *,
        federation: str,
        chain: Chain,
        signing: Ed25519PrivateKey,
        agreement: X25519PrivateKey,
        unix: Callable[[], float],
        revoked: Callable[[], frozenset[int]] = frozenset,
    ) -> None:
        root = chain.newest
        for name, key, wanted in (("signing", signing, root.coordinator), ("agreement", agreement, root.agreement)):
            if public_bytes(key) != wanted:
                raise TrustError(f"{name}.key is not the coordinator's of root {root.version}")
        if unix() >= root.expires:
            raise TrustError(
                f"root {root.version} expired on {_day(root.expires)}: no gateway believes its keys any more; make the"
                " next one with `fedmq ca rotate`"
            )
        self._federation = federation
        self.chain = chain
        self._signing = signing
        self._agreement = agreement
        self._unix = unix
        self._revoked = revoked
        self._starts: dict[str, _Start] = {}
        self._dismissed: dict[str, str] = {}
        """Why a gateway is believed no more that was."""
        self._looked_at: tuple[frozenset[int], float] = (frozenset(), 0.0)

    @property
    def root(self) -> Root:
        return self.chain.newest

    def know(self, gateway: str, nonce: bytes, card: bytes) -> None:
        """Believe from now on what this start of a gateway says, and nothing else under its name. Raises TrustError."""
        found = read_card(card, federation=self._federation, gateway=gateway, issuer=self.root.issuer)
        self._starts[gateway] = self._start(gateway, nonce, found)
        self._dismissed.pop(gateway, None)

    def _start(self, gateway: str, nonce: bytes, card: Card) -> _Start:
        self._check_card(gateway, card)
        known = self._starts.get(gateway)
        if known is not None and (known.nonce, known.card) == (nonce, card):
            return known
        key = session_key(
            self._agreement,
            card.agreement,
            federation=self._federation,
            gateway=gateway,
            root=self.root.version,
            nonce=nonce,
        )
        return _Start(nonce, card, key)

    def _check_card(self, gateway: str, card: Card) -> None:
        now = self._unix()
        if card.serial in self._revoked():
            raise TrustError(f"the card of {gateway} is revoked (serial number {card.serial:x})")
        if not card.begins <= now < card.expires:
            raise TrustError(f"the card of {gateway} is for {_day(card.begins)} to {_day(card.expires)}")

    def dismiss(self) -> dict[str, str]:
        """Gateways that were believed and are no more, since their card was revoked or has expired: name and reason."""
        revoked, now = self._revoked(), self._unix()
        before, at = self._looked_at
        if revoked is before and abs(now - at) < DATES_LOOK_SECONDS:
            return {}
        self._looked_at = revoked, now
        gone = {}
        for gateway, start in self._starts.items():
            try:
                self._check_card(gateway, start.card)
            except TrustError as error:
                gone[gateway] = str(error)
        for gateway in gone:
            del self._starts[gateway]
        self._dismissed |= gone
        return gone

    def behind(self, birth: Birth) -> Roots | None:
        """What a gateway must hear before it can be understood, where it goes by an older root; else None."""
        if birth.root is None or birth.root >= self.root.version:
            return None
        steps = self.chain.after(birth.root)
        return Roots(nonce=birth.nonce, roots=steps) if steps else None

    def seal(self, topic: str, where: Topic, message: Message, plain: bytes) -> bytes:
        """`plain`, as `to_bytes` gave it, with its seal behind it. Raises MessageError for an unknown gateway."""
        kind = seal_of(where, message)
        if kind is Seal.NONE:
            return plain
        covered = sealed(plain, kind)
        if kind is Seal.SIGNATURE:
            return covered + self._signing.sign(_signed_text(self.root.version, topic, covered))
        start = self._starts.get(where.gateway or "")
        if start is None:
            raise MessageError(f"{where.gateway} has not shown a card that is good")
        return covered + _mac(start.key, topic, covered)

    def check(self, topic: str, where: Topic, message: Message, found: Sealed) -> None:
        """Raises MessageError for what the gateway of the topic has not said, or may say no more.

        A birth is checked by the card that it shows, and changes nothing: `know` does.
        """
        kind = seal_of(where, message)
        _expect(found, kind)
        if kind is Seal.NONE:
            return
        gateway = where.gateway or ""
        try:
            if isinstance(message, Birth):
                if message.card is None:
                    raise TrustError("a birth without a card")
                if message.root != self.root.version:
                    raise TrustError(f"sealed by root {message.root}, {self.root.version} expected")
                card = read_card(message.card, federation=self._federation, gateway=gateway, issuer=self.root.issuer)
                start = self._start(gateway, message.nonce, card)
            else:
                known = self._starts.get(gateway)
                if known is None:
                    raise TrustError(self._dismissed.get(gateway) or f"{gateway} has not shown a card that is good")
                start = known
                self._check_card(gateway, start.card)
        except TrustError as error:
            raise MessageError(str(error)) from None
        _check_mac(start.key, topic, found)


# -- keys -----------------------------------------------------------------------------------------------------------


def public_bytes(key: Ed25519PrivateKey | X25519PrivateKey) -> bytes:
    """32 bytes."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def key_to_pem(key: Ed25519PrivateKey | X25519PrivateKey) -> bytes:
    """PKCS #8 in PEM, without a passphrase: who may read the file has the key."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def read_ed25519(pem: bytes, where: str) -> Ed25519PrivateKey:
    """`where` is the file, for the message. Raises TrustError, which holds nothing of the key."""
    key = _read_key(pem, where)
    if not isinstance(key, Ed25519PrivateKey):
        raise TrustError(f"{where}: expected an Ed25519 key, got another kind")
    return key


def read_x25519(pem: bytes, where: str) -> X25519PrivateKey:
    """As `read_ed25519`."""
    key = _read_key(pem, where)
    if not isinstance(key, X25519PrivateKey):
        raise TrustError(f"{where}: expected an X25519 key, got another kind")
    return key


def _read_key(pem: bytes, where: str) -> Any:
    try:
        return load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise TrustError(f"{where}: expected a private key in PEM without a passphrase") from None


def _public(raw: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(raw)


def _verified(public: bytes, signature: bytes, text: bytes, otherwise: str) -> None:
    try:
        _public(public).verify(signature, text)
    except (InvalidSignature, ValueError):
        raise TrustError(otherwise) from None


def _decoded(data: bytes, kind: type[StructT], what: str) -> StructT:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise TrustError(f"not {what} of a federation: {error}") from None


def _day(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d")
