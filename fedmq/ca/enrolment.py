"""The gateway's side: it makes its keys, asks the CA for a certificate and a card, and later for the next ones.

Owns what a gateway sends and believes, and the order in which an identity folder changes. Keys are made here and stay
here. The rules:

- The token tells which CA is right. Its certificate is asked for over TLS that nothing vouches for, and compared with
  the token's fingerprint; the token itself is only shown over TLS that this certificate vouches for.
- What comes back is checked before it is written: name, key, CA, card, and that roots follow from those known here.
- A folder is complete with `client.crt`, which comes last. Asking again after a lost answer uses the same keys, and the
  CA gives the same answer.
- A renewal keeps the keys, so certificate and card change each by one rename, and whatever lies there between two of
  them belongs together.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec
from fedmq_protocol import identity
from fedmq_protocol.signing import Chain, TrustError, key_to_pem, public_bytes, read_card
from fedmq_protocol.topics import check_name

from fedmq.ca import certificates, folder, tokens
from fedmq.ca.exchange import Answer, Enrol, Refusal, Renew

__all__ = ["AGREEMENT_PUBLIC", "REQUEST", "EnrolmentError", "enrol", "renew", "request"]

REQUEST = "request.csr"
AGREEMENT_PUBLIC = "agreement.pub"

MAX_ANSWER = 512 * 1024
SECONDS = 30.0
DEFAULT_PORT = 8443

StructT = TypeVar("StructT", bound=msgspec.Struct)


class EnrolmentError(ValueError):
    """No identity, or no newer one: what was expected, what came, what to do. What was there is there still."""


def request(name: str, where: Path) -> list[Path]:
    """Keys, and what a CA needs of them, for a CA that is reached by hand. Raises ValueError."""
    check_name(name)
    folder.make(where)
    with folder.locked(where):
        csr, agreement = _keys(name, where)
        folder.put_all(where, {REQUEST: csr, AGREEMENT_PUBLIC: agreement})
    return [where / REQUEST, where / AGREEMENT_PUBLIC]


def enrol(url: str, token: str, name: str, where: Path) -> str:
    """Fill an identity folder by a one-time token; returns a sentence. Raises ValueError."""
    check_name(name)
    said = tokens.read(token)
    server = _Server(url)
    folder.make(where)
    with folder.locked(where):
        csr, agreement = _keys(name, where)
        ca = _ca_of(server, said.fingerprint)
        body = Enrol(token=said.text(), csr=csr.decode(), agreement=agreement.decode())
        answer = server.post("/enrol", body, _context(ca))
        files, chain, expires = _checked(answer, name, where, ca, None)
        folder.put_all(where, files)
        if identity.CARD not in files:
            # An observer or a site: nobody makes a secret with it.
            (where / identity.AGREEMENT_KEY).unlink()
    return f"{where} is the identity of {name} in federation {chain.newest.federation} until {expires:%Y-%m-%d}"


def renew(url: str, where: Path, *, if_days_left: int | None, clock: Callable[[], float] = time.time) -> str:
    """The next certificate and card, for the same keys; returns a sentence. Raises ValueError."""
    server = _Server(url)
    with folder.locked(where):
        ca = folder.read(where / identity.CA_CERTIFICATE, "`fedmq gateway enrol` makes an identity folder")
        held = certificates.read_certificate(
            folder.read(where / identity.CERTIFICATE), str(where / identity.CERTIFICATE)
        )
        chain = _walked(_chain(where), Chain.read(server.get("/trust", _context(ca)).decode("ascii", "replace")))
        left = (held.expires.timestamp() - clock()) / 86_400
        if if_days_left is not None and left > if_days_left and _card_holds(where, held.name, chain):
            if chain.newest.version > _chain(where).newest.version:
                folder.put(where / identity.TRUST, chain.text().encode())
            return f"{where}: good for {int(left)} more days, nothing to renew"
        context = _context(ca)
        try:
            context.load_cert_chain(where / identity.CERTIFICATE, where / identity.CERTIFICATE_KEY)
        except (ssl.SSLError, OSError) as error:
            raise EnrolmentError(f"{where}: client.crt and client.key cannot be used together: {error}") from None
        csr, agreement = _public_parts(held.name, where)
        body = Renew(csr=csr.decode(), agreement=None if agreement is None else agreement.decode())
        answer = server.post("/renew", body, context)
        files, chain, expires = _checked(answer, held.name, where, ca, chain)
        folder.put_all(where, files)
    return f"{where}: renewed for {held.name} until {expires:%Y-%m-%d} (root {chain.newest.version})"


# -- keys -----------------------------------------------------------------------------------------------------------


def _keys(name: str, where: Path) -> tuple[bytes, bytes]:
    """Request and public agreement key (PEM), of keys that are made where there are none. Raises EnrolmentError where
    the folder is an identity already."""
    if (where / identity.CERTIFICATE).exists():
        raise EnrolmentError(
            f"{where} is an identity already: `fedmq gateway renew` makes its certificate last; for a new one move the"
            " folder away first"
        )
    if not (where / identity.CERTIFICATE_KEY).exists():
        folder.put(where / identity.CERTIFICATE_KEY, certificates.to_pem(certificates.new_key()))
    if not (where / identity.AGREEMENT_KEY).exists():
        folder.put(where / identity.AGREEMENT_KEY, key_to_pem(certificates.new_agreement_key()))
    csr, agreement = _public_parts(name, where)
    assert agreement is not None
    return csr, agreement


def _public_parts(name: str, where: Path) -> tuple[bytes, bytes | None]:
    path = where / identity.CERTIFICATE_KEY
    csr = certificates.make_request(name, certificates.read_key(folder.read(path), str(path)))
    if not (where / identity.AGREEMENT_KEY).exists():
        return csr, None
    return csr, certificates.to_agreement_public(public_bytes(identity.read_agreement(where)))


# -- what came back -------------------------------------------------------------------------------------------------


def _checked(
    answer: Answer, name: str, where: Path, ca: bytes, known: Chain | None
) -> tuple[dict[str, bytes], Chain, certificates.Moment]:
    """The files of an identity, in the order in which they are to be written. Raises ValueError."""
    authority = certificates.read_certificate(ca, "the CA's certificate").certificate
    given = certificates.read_certificate(answer.certificate.encode(), "the new certificate", authority=authority)
    if given.name != name:
        raise EnrolmentError(f"expected a certificate for {name}, got one for {given.name}")
    key = certificates.read_key(folder.read(where / identity.CERTIFICATE_KEY), identity.CERTIFICATE_KEY)
    if not certificates.same_key(given.key, key.public_key()):
        raise EnrolmentError("the new certificate is for another key than client.key: ask again")
    chain = Chain.read(answer.trust)
    if known is not None:
        chain = _walked(known, chain)
    files = {identity.CA_CERTIFICATE: ca, identity.TRUST: chain.text().encode()}
    if answer.card is not None:
        card = _decoded(answer.card)
        root = chain.newest
        said = read_card(card, federation=root.federation, gateway=name, issuer=root.issuer)
        if said.agreement != public_bytes(identity.read_agreement(where)):
            raise EnrolmentError("the new card is for another key than agreement.key: ask again")
        if said.serial != given.serial:
            raise EnrolmentError(f"expected a card of serial {given.serial:x}, that of the certificate")
        files[identity.CARD] = card
    elif known is not None and (where / identity.CARD).exists():
        raise EnrolmentError("expected a card with the new certificate, got none")
    return files | {identity.CERTIFICATE: answer.certificate.encode()}, chain, given.expires


def _chain(where: Path) -> Chain:
    path = where / identity.TRUST
    return Chain.read(folder.read(path).decode("ascii", "replace"))


def _walked(known: Chain, told: Chain) -> Chain:
    """Where those roots lead that are known here. Raises TrustError: they may be another federation's, or forged."""
    while steps := told.after(known.newest.version):
        known = known.walk(steps)
    if told.newest.version == known.newest.version and told.newest != known.newest:
        raise TrustError(f"the CA's root {told.newest.version} is another than the one in trust: is it the right CA?")
    return known


def _card_holds(where: Path, name: str, chain: Chain) -> bool:
    """Whether the newest issuer has signed the card that is here; True for who has none."""
    if not (where / identity.CARD).exists():
        return True
    root = chain.newest
    try:
        read_card(identity.read_card_file(where), federation=root.federation, gateway=name, issuer=root.issuer)
    except TrustError:
        return False
    return True


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise EnrolmentError("expected a card in base64") from None


# -- the connection -------------------------------------------------------------------------------------------------


def _ca_of(server: _Server, fingerprint: bytes) -> bytes:
    """The CA's certificate in PEM, where it is the one of the token. Raises EnrolmentError."""
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.minimum_version = ssl.TLSVersion.TLSv1_2
    # Nobody is believed here: what comes is compared with the token, and nothing is told.
    blind.check_hostname = False
    blind.verify_mode = ssl.CERT_NONE
    pem = server.get(f"/{identity.CA_CERTIFICATE}", blind)
    found = certificates.read_certificate(pem, f"{server.url}/{identity.CA_CERTIFICATE}").certificate
    if certificates.fingerprint(found) != fingerprint:
        raise EnrolmentError(
            f"{server.url} is not the CA that made this token: its certificate has another fingerprint. The token was"
            " not shown. Is the address right, and is somebody between this machine and the CA?"
        )
    return certificates.to_pem(found)


def _context(ca: bytes) -> ssl.SSLContext:
    """TLS to a server that this CA, and no other, vouches for, by its host name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=ca.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise EnrolmentError("ca.crt: expected the CA's certificate in PEM") from None
    return context


class _Server:
    """One request a connection, bounded in time and size."""

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise EnrolmentError(f"--ca: {error}") from None
        if (
            parts.scheme != "https"
            or not parts.hostname
            or parts.path not in ("", "/")
            or parts.query
            or parts.username
        ):
            raise EnrolmentError(f"--ca: expected an address such as https://ca.plant.example:8443, got {url!r}")
        self._host, self._port = parts.hostname, DEFAULT_PORT if port is None else port
        self.url = f"https://{parts.netloc}"

    def get(self, path: str, context: ssl.SSLContext) -> bytes:
        return self._ask("GET", path, None, context)

    def post(self, path: str, body: msgspec.Struct, context: ssl.SSLContext) -> Answer:
        return _json(self._ask("POST", path, msgspec.json.encode(body), context), Answer, self.url)

    def _ask(self, method: str, path: str, body: bytes | None, context: ssl.SSLContext) -> bytes:
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=SECONDS, context=context)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            response = connection.getresponse()
            data = response.read(MAX_ANSWER + 1)
        except ssl.SSLCertVerificationError as error:
            raise EnrolmentError(
                f"{self.url} cannot be believed: {error.verify_message}; is this the right address, and this machine's"
                " clock right?"
            ) from None
        except ssl.SSLError as error:
            raise EnrolmentError(
                f"{self.url}: TLS failed: {error.reason or error}; where the certificate here has expired or is of"
                " another CA, enrol again with a token"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise EnrolmentError(f"{self.url} cannot be reached: {error}; try again, nothing is lost") from None
        finally:
            connection.close()
        if len(data) > MAX_ANSWER:
            raise EnrolmentError(f"{self.url}: expected at most {MAX_ANSWER:,} bytes, got more")
        if response.status != 200:
            said = _json(data, Refusal, self.url).error
            printable = "".join(letter if letter.isprintable() else "?" for letter in said[:500])
            raise EnrolmentError(f"the CA refuses: {printable}")
        return data


def _json(data: bytes, kind: type[StructT], url: str) -> StructT:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise EnrolmentError(
            f"{url} answers something else than `fedmq ca serve` does: is the address right?"
        ) from None
