"""The folder of a CA, and what is done to it: issue, renew, revoke, hand out tokens, go on to the next root.

Owns the layout of the folder, the order in which its files are written, and who may have a name. Refuses to know the
command line and the net (see `command`, `serving`). The rules:

- What is issued is on record before anybody has it: nothing is in force that cannot be revoked.
- A name is one owner's and of one kind: while a certificate of it is in force it is renewed, not issued again.
- No key leaves this folder but where the caller names another one for a new identity; for a request that comes from
  elsewhere there is no key here at all.
- New keys of the federation are on disk, beside the old ones, before the root that names them is; they take their
  place at the next look into the folder, wherever a command was cut short.
- One program at a time works in the folder, and whatever it does is in `audit.log`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Literal

import msgspec
from fedmq_coordinator.audit import AUDIT_FILE, AuditLog, local_user
from fedmq_protocol import identity
from fedmq_protocol.signing import (
    Card,
    Chain,
    Root,
    issue_card,
    key_to_pem,
    public_bytes,
    read_ed25519,
    read_x25519,
    sign_root,
)
from fedmq_protocol.topics import check_name

from fedmq.ca import certificates, folder, tokens
from fedmq.ca.certificates import PublicKey, utc
from fedmq.ca.records import CLIENTS, Issued, Kind, Token, in_force, newest, read_lines, revoked, write_lines

__all__ = ["Authority", "AuthorityError", "Enrolled", "Request", "Rotated", "Serving", "TokenRefused"]

CA_KEY = "ca.key"
ROOT_KEY = "root.key"
ISSUER_KEY = "issuer.key"
ISSUED = "issued.jsonl"
TOKENS = "tokens.jsonl"
NAMES = "revoked.names"
CERTIFICATES = "certificates"
"""What was issued, by serial number: a renewal with the same key needs no more than this."""
IDENTITIES = "identities"
"""New identities, where no other folder was named."""
COORDINATOR = "coordinator"
BROKER = "broker"
BROKER_CERTIFICATE = "broker.crt"
BROKER_KEY = "broker.key"
SERVING = "enrolment"
"""Name and folder of the server of `fedmq ca serve`."""
SERVING_DAYS = 365
SERVING_LEFT = 60
NEXT = ".next"
"""Behind a key's name: drawn, and in force as soon as a root names it."""

AT_HOME = ("localhost", "127.0.0.1")
"""A broker's certificate is good on its own machine, too."""

OWN_DAYS = 730
"""Of the first certificates of broker and coordinator. Without them nothing works, and one person renews both."""

RENEWALS_A_DAY = 20
"""Of one name over the net: more is a mistake or mischief, and each one is kept."""

What = Literal["coordinator", "root", "issuer"]


class AuthorityError(ValueError):
    """What was asked for is not to be done: why, and what to do instead."""


class TokenRefused(AuthorityError):
    """A token that is not good, or no longer, or not for this."""

    def __init__(self, text: str, *, wrong: bool = False) -> None:
        super().__init__(text)
        self.wrong = wrong
        """Whether nobody ever made such a token: perhaps somebody tries them out."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What comes from a gateway: public parts alone."""

    csr: bytes
    agreement: bytes | None = None
    """PEM; a gateway has one, others have none."""
    where: str = "the request"
    """For messages."""
    agreement_where: str = "the agreement key"


@dataclass(frozen=True, kw_only=True)
class Enrolled:
    """What a name is given. Nothing in it is secret."""

    issued: Issued
    certificate: bytes
    """PEM."""
    card: bytes | None
    ca: bytes
    """PEM."""
    trust: bytes

    def files(self) -> dict[str, bytes]:
        """As an identity folder has them; the certificate last, for with it the folder is complete."""
        files = {identity.CA_CERTIFICATE: self.ca, identity.TRUST: self.trust}
        if self.card is not None:
            files[identity.CARD] = self.card
        return files | {identity.CERTIFICATE: self.certificate}


@dataclass(frozen=True, kw_only=True)
class Rotated:
    before: Root
    now: Root


@dataclass(frozen=True)
class Serving:
    """What a server of this CA shows, and whom it believes."""

    certificate: Path
    key: Path
    ca: Path


@dataclass(frozen=True)
class _State:
    """The records, as they are while the lock is held."""

    issued: list[Issued]
    tokens: list[Token]


class Authority:
    """A CA's folder. `asker` is the address of whoever asks over the net. Raises AuthorityError where there is none."""

    def __init__(self, directory: Path, *, clock: Callable[[], float] = time.time, asker: str | None = None) -> None:
        self._directory = directory
        self._clock = clock
        self._asker = asker
        if not (directory / identity.CA_CERTIFICATE).is_file():
            raise AuthorityError(
                f"{directory} holds no CA: make one with `fedmq ca init --federation NAME --dir {directory}`, or name"
                " its folder with --dir"
            )
        self._audit = AuditLog(directory / AUDIT_FILE, clock=clock)

    @classmethod
    def create(
        cls,
        directory: Path,
        *,
        federation: str,
        hosts: Sequence[str],
        years: int,
        clock: Callable[[], float] = time.time,
    ) -> Authority:
        """A new CA with the identities of broker and coordinator: all of it, or nothing. Raises ValueError."""
        check_name(federation, "federation")
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise AuthorityError(f"{directory} is there and not empty: name a new folder with --dir")
        now = utc(clock())
        ends = _years_on(now, years)
        building = directory.with_name(f".{directory.name}.{certificates.new_serial():x}")
        folder.make(building)
        try:
            cls._fill(building, federation, now, ends)
            made = cls(building, clock=clock)
            # A day less than the CA itself has, for the clock goes on between the two.
            days = min(OWN_DAYS, (ends - now).days - 1)
            made.issue(COORDINATOR, "coordinator", days=days)
            made.issue(BROKER, "broker", days=days, hosts=hosts)
            building.rename(directory)
        except OSError as error:
            raise AuthorityError(f"cannot make {directory}: {error.strerror}") from None
        finally:
            _remove(building)
        authority = cls(directory, clock=clock)
        authority._note("init", federation, "done")
        return authority

    @staticmethod
    def _fill(directory: Path, federation: str, now: datetime, ends: datetime) -> None:
        ca_key, root_key, issuer_key = certificates.new_key(), *(certificates.new_signing_key() for _ in range(2))
        signing, agreement = certificates.new_signing_key(), certificates.new_agreement_key()
        ca = certificates.make_authority(federation, ca_key, now=now, expires=ends)
        root = Root(
            federation=federation,
            version=1,
            root=public_bytes(root_key),
            issuer=public_bytes(issuer_key),
            coordinator=public_bytes(signing),
            agreement=public_bytes(agreement),
            begins=int(now.timestamp()),
            expires=int(ends.timestamp()),
        )
        own = directory / COORDINATOR
        folder.make(own)
        keys = {identity.SIGNING_KEY: key_to_pem(signing), identity.AGREEMENT_KEY: key_to_pem(agreement)}
        folder.put_all(own, keys)
        folder.put_all(
            directory,
            {
                CA_KEY: certificates.to_pem(ca_key),
                ROOT_KEY: key_to_pem(root_key),
                ISSUER_KEY: key_to_pem(issuer_key),
                identity.TRUST: Chain([sign_root(root, root_key)]).text().encode(),
                identity.REVOKED: certificates.revocation_list(
                    [], before=None, authority=ca, authority_key=ca_key, now=now
                ),
                NAMES: b"",
                identity.CA_CERTIFICATE: certificates.to_pem(ca),
            },
        )
        folder.put_all(directory, {ISSUED: b"", TOKENS: b""}, folder.SECRET)

    # -- looking ----------------------------------------------------------------------------------------------------

    @property
    def directory(self) -> Path:
        return self._directory

    @cached_property
    def certificate(self) -> certificates.Certificate:
        """The CA's."""
        return certificates.read_certificate(self._read(identity.CA_CERTIFICATE), identity.CA_CERTIFICATE).certificate

    def chain(self) -> Chain:
        return Chain.read(self._read(identity.TRUST).decode("ascii", "replace"))

    def issued(self) -> list[Issued]:
        """Oldest first."""
        return read_lines(self._read(ISSUED), Issued, ISSUED)

    def public(self, name: str) -> bytes:
        """`ca.crt`, `trust` or `revoked.crl`: what anybody may have."""
        if name not in (identity.CA_CERTIFICATE, identity.TRUST, identity.REVOKED):
            raise KeyError(name)
        return self._read(name)

    def now(self) -> float:
        return self._clock()

    # -- issuing ----------------------------------------------------------------------------------------------------

    def issue(
        self,
        name: str,
        kind: Kind,
        *,
        days: int,
        hosts: Sequence[str] = (),
        request: Request | None = None,
        out: Path | None = None,
    ) -> Path:
        """An identity for a name that has none, or what belongs to a request; returns its folder. Raises ValueError."""
        check_name(name)
        with self._work("issue", name) as state:
            self._check_free(state, name, kind)
            where = self._place(name, kind) if out is None else out
            if out is not None:
                _check_out(where, kind, with_keys=request is None)
            folder.make(where)
            keys: dict[str, bytes] = {}
            if request is None:
                key = certificates.new_key()
                keys[BROKER_KEY if kind == "broker" else identity.CERTIFICATE_KEY] = certificates.to_pem(key)
                public, agreement = key.public_key(), None
                if kind == "gateway":
                    secret = certificates.new_agreement_key()
                    keys[identity.AGREEMENT_KEY] = key_to_pem(secret)
                    agreement = public_bytes(secret)
                if kind == "coordinator" and where != self._directory / COORDINATOR:
                    keys |= self._coordinator_keys()
            else:
                public, agreement = _read_request(request, name, kind)
            enrolled = self._certify(state, name, kind, public, agreement, days, _hosts(kind, hosts))
            self._write_list_if_named(state, name)
            folder.put_all(where, keys | self._files(enrolled))
        return where

    def renew(
        self,
        name: str,
        *,
        days: int,
        hosts: Sequence[str] = (),
        request: Request | None = None,
        out: Path | None = None,
    ) -> Path:
        """A new certificate and card, for the same keys or for those of a request; returns where. Raises ValueError."""
        with self._work("renew", name) as state:
            last = self._last(state, name)
            if last.card_alone:
                raise AuthorityError(
                    f"the certificate of {name} is not from this CA: renew it there, then `fedmq ca card {name}` again"
                )
            if last.revoked is not None:
                raise AuthorityError(
                    f"{name} is revoked ({last.reason or 'unspecified'}): it needs new keys; `fedmq ca issue {name}` or"
                    f" `fedmq ca token {name}`"
                )
            before = certificates.read_certificate(self._stored(last, "crt"), f"{CERTIFICATES}/{last.serial}.crt")
            if request is None:
                public, agreement = before.key, self._agreement_of(last)
            else:
                public, agreement = _read_request(request, name, last.kind)
            where = self._place(name, last.kind) if out is None else out
            folder.make(where)
            wanted = _hosts(last.kind, hosts or before.hosts)
            enrolled = self._certify(state, name, last.kind, public, agreement, days, wanted)
            folder.put_all(where, self._files(enrolled))
        return where

    def card(self, name: str, agreement: bytes, *, where: str, serial: int | None, expires: float) -> bytes:
        """A card alone, for a gateway with a certificate of another CA. `agreement` is PEM. Raises ValueError."""
        check_name(name)
        raw = certificates.read_agreement_public(agreement, where)
        with self._work("card", name) as state:
            last = newest(state.issued, name)
            if last is not None and not last.card_alone and last.is_in_force(self.now()):
                raise AuthorityError(f"{name} has a certificate of this CA: `fedmq ca renew {name}` makes its card")
            if last is not None and last.kind != "gateway":
                raise AuthorityError(f"{name} is a {last.kind}: only gateways have cards")
            number = certificates.new_serial() if serial is None else serial
            if any(one.number == number and one.revoked is not None for one in state.issued):
                raise AuthorityError(f"the serial number {number:x} is revoked: issue a new certificate first")
            issued = Issued(
                name=name,
                serial=f"{number:x}",
                kind="gateway",
                begins=int(self.now() - certificates.BACKDATED.total_seconds()),
                expires=int(expires),
                card_alone=True,
            )
            card = self._make_card(issued, raw)
            self._store(state, issued, None, card, raw)
            self._write_list_if_named(state, name)
        return card

    def _check_free(self, state: _State, name: str, kind: Kind, *, replace: bool = False) -> None:
        last = newest(state.issued, name)
        if last is not None and last.kind != kind:
            raise AuthorityError(
                f"{name} is the name of a {last.kind}: a {kind} needs another one, for the broker knows them by name"
            )
        held = in_force(state.issued, name, self.now())
        if held and not replace:
            raise AuthorityError(
                f"{name} has a certificate until {utc(held[-1].expires):%Y-%m-%d}: `fedmq ca renew {name}` makes the"
                f" next one; if its keys are lost or stolen, `fedmq ca revoke {name}` first"
            )

    def _certify(
        self,
        state: _State,
        name: str,
        kind: Kind,
        public: PublicKey,
        agreement: bytes | None,
        days: int,
        hosts: Sequence[str],
        serial: int | None = None,
    ) -> Enrolled:
        """Make it and put it on record."""
        now = utc(self.now())
        certificate = certificates.issue(
            name,
            public,
            serial=certificates.new_serial() if serial is None else serial,
            hosts=hosts,
            authority=self.certificate,
            authority_key=self._ca_key(),
            now=now,
            expires=now + timedelta(days=days),
        )
        issued = Issued(
            name=name,
            serial=f"{certificate.serial_number:x}",
            kind=kind,
            begins=int(certificate.not_valid_before_utc.timestamp()),
            expires=int(certificate.not_valid_after_utc.timestamp()),
        )
        card = None if agreement is None else self._make_card(issued, agreement)
        pem = certificates.to_pem(certificate)
        self._store(state, issued, pem, card, agreement)
        return self._enrolled(issued, pem, card)

    def _most(self, days: int) -> int:
        """Nobody stands by who could ask for fewer days than are left to the CA."""
        return min(days, (self.certificate.not_valid_after_utc - utc(self.now())).days)

    def _make_card(self, issued: Issued, agreement: bytes) -> bytes:
        root = self.chain().newest
        issuer = read_ed25519(self._read(ISSUER_KEY), ISSUER_KEY)
        if public_bytes(issuer) != root.issuer:
            raise AuthorityError(f"{ISSUER_KEY} is not the issuer's key of root {root.version}: put back the right one")
        card = Card(serial=issued.number, agreement=agreement, begins=issued.begins, expires=issued.expires)
        return issue_card(card, federation=root.federation, gateway=issued.name, issuer=issuer)

    def _enrolled(self, issued: Issued, certificate: bytes, card: bytes | None) -> Enrolled:
        ca, trust = self._read(identity.CA_CERTIFICATE), self._read(identity.TRUST)
        return Enrolled(issued=issued, certificate=certificate, card=card, ca=ca, trust=trust)

    def _files(self, enrolled: Enrolled) -> dict[str, bytes]:
        """What goes into the folder of an identity, by its kind."""
        if enrolled.issued.kind == "broker":
            return {
                identity.CA_CERTIFICATE: enrolled.ca,
                identity.REVOKED: self._read(identity.REVOKED),
                BROKER_CERTIFICATE: enrolled.certificate,
            }
        files = enrolled.files()
        return (
            {identity.REVOKED: self._read(identity.REVOKED)} | files if enrolled.issued.kind == "coordinator" else files
        )

    def _coordinator_keys(self) -> dict[str, bytes]:
        own = self._directory / COORDINATOR
        names = (identity.SIGNING_KEY, identity.AGREEMENT_KEY)
        return {name: folder.read(own / name, "the coordinator's keys have left this folder") for name in names}

    def _place(self, name: str, kind: Kind) -> Path:
        if kind == "coordinator":
            return self._directory / COORDINATOR
        return self._directory / BROKER if (name, kind) == (BROKER, "broker") else self._directory / IDENTITIES / name

    def _last(self, state: _State, name: str) -> Issued:
        last = newest(state.issued, name)
        if last is None:
            raise AuthorityError(f"nothing was ever issued to {name!r}: `fedmq ca list` shows who there is")
        return last

    def _agreement_of(self, issued: Issued) -> bytes | None:
        if issued.kind != "gateway":
            return None
        return certificates.read_agreement_public(self._stored(issued, "pub"), f"{CERTIFICATES}/{issued.serial}.pub")

    # -- revoking ---------------------------------------------------------------------------------------------------

    def revoke(self, name: str, reason: str) -> list[Issued]:
        """All that is in force of a name, and its open tokens; returns what was revoked. Raises ValueError."""
        with self._work("revoke", name) as state:
            self._last(state, name)
            now = int(self.now())
            held = in_force(state.issued, name, now)
            open_tokens = [one for one in state.tokens if one.name == name and one.used is None and not one.withdrawn]
            if not held and not open_tokens:
                raise AuthorityError(f"nothing of {name} is in force: it is revoked already, or has expired")
            self._withdraw(state, name)
            self._revoke(state, held, reason)
            self._write_list(state)
        return held

    def _revoke(self, state: _State, those: Sequence[Issued], reason: str) -> None:
        at = int(self.now())
        serials = {one.serial for one in those}
        state.issued[:] = [
            msgspec.structs.replace(one, revoked=at, reason=reason)
            if one.serial in serials and one.revoked is None
            else one
            for one in state.issued
        ]
        self._save(ISSUED, state.issued)

    def _write_list_if_named(self, state: _State, name: str) -> None:
        """A name that was out is welcome again: the list has to say so."""
        if any(one.name == name and one.revoked is not None for one in state.issued):
            self._write_list(state)

    def _write_list(self, state: _State) -> None:
        """The next list, here and where identities of this folder have theirs."""
        now = self.now()
        out = revoked(state.issued)
        data = certificates.revocation_list(
            out,
            before=self._read(identity.REVOKED),
            replaced={one.name for one in state.issued if one.is_in_force(now)},
            authority=self.certificate,
            authority_key=self._ca_key(),
            now=utc(now),
        )
        names = "".join(f"{one.serial:x} {one.name}\n" for one in out).encode()
        folder.put_all(self._directory, {NAMES: names, identity.REVOKED: data})
        for place in (self._directory / COORDINATOR, self._directory / BROKER):
            if place.is_dir():
                folder.put(place / identity.REVOKED, data)

    def publish(self, to: Path) -> list[Path]:
        """The list and the names in it, into a folder that is there. Raises FolderError."""
        with self._work("publish", str(to)):
            if not to.is_dir():
                raise AuthorityError(f"{to}: no such folder; make it first, and let this user write in it")
            files = {name: self._read(name) for name in (NAMES, identity.REVOKED)}
            folder.put_all(to, files)
        return [to / name for name in files]

    # -- tokens -----------------------------------------------------------------------------------------------------

    def token(self, name: str, kind: Kind, *, hours: float, replace: bool) -> str:
        """A token that makes an identity of this name once; earlier ones of it are withdrawn. Raises ValueError."""
        check_name(name)
        if kind not in CLIENTS:
            raise AuthorityError(f"tokens are for {', '.join(CLIENTS)}: a {kind} is issued here")
        with self._work("token", name) as state:
            self._check_free(state, name, kind, replace=replace)
            drawn = tokens.draw(certificates.fingerprint(self.certificate))
            now = int(self.now())
            self._withdraw(state, name)
            state.tokens.append(
                Token(
                    hash=tokens.hashed(drawn.secret),
                    name=name,
                    kind=kind,
                    made=now,
                    expires=now + int(hours * 3600),
                    replace=replace,
                )
            )
            self._save(TOKENS, state.tokens)
        return drawn.text()

    def _withdraw(self, state: _State, name: str) -> None:
        now = int(self.now())
        state.tokens[:] = [
            msgspec.structs.replace(one, withdrawn=now)
            if one.name == name and one.used is None and one.withdrawn is None
            else one
            for one in state.tokens
        ]
        self._save(TOKENS, state.tokens)

    def redeem(self, text: str, request: Request, *, days: int) -> Enrolled:
        """What a token is good for, once. The same request again gets the same answer: the first may have been lost on
        the way. Raises TokenRefused, and ValueError for a request that is not what it should be."""
        try:
            said = tokens.read(text)
        except ValueError as error:
            raise TokenRefused(str(error), wrong=True) from None
        if said.fingerprint != certificates.fingerprint(self.certificate):
            raise TokenRefused("this token is of another CA", wrong=True)
        hashed = tokens.hashed(said.secret)
        with self._locked() as state:
            token = next((one for one in state.tokens if one.hash == hashed), None)
            if token is None:
                raise TokenRefused("no such token: ask for a new one (`fedmq ca token NAME`)", wrong=True)
            with self._audited("enrol", token.name):
                return self._redeem(state, token, request, days)

    def _redeem(self, state: _State, token: Token, request: Request, days: int) -> Enrolled:
        now = self.now()
        if token.withdrawn is not None:
            raise TokenRefused(f"this token for {token.name} was withdrawn: ask for a new one")
        if now >= token.expires:
            raise TokenRefused(f"this token for {token.name} was good until {utc(token.expires):%Y-%m-%d %H:%M} UTC")
        public, agreement = _read_request(request, token.name, token.kind)
        if token.used is not None and (done := self._done(state, token)) is not None:
            before = certificates.read_certificate(self._stored(done, "crt"), f"{CERTIFICATES}/{done.serial}.crt")
            if done.revoked is not None or not certificates.same_key(before.key, public):
                raise TokenRefused(f"this token for {token.name} has been used: ask for a new one")
            if self._agreement_of(done) != agreement:
                raise TokenRefused(f"this token for {token.name} has been used, with another agreement key")
            card = None if agreement is None else self._stored(done, "card")
            return self._enrolled(done, self._stored(done, "crt"), card)
        self._check_free(state, token.name, token.kind, replace=token.replace)
        held = in_force(state.issued, token.name, now)
        serial = certificates.new_serial()
        # Used before anything is issued; where it comes to no more than this, the serial is of nothing, and `_done`
        # says so.
        place = state.tokens.index(token)
        state.tokens[place] = msgspec.structs.replace(token, used=int(now), serial=f"{serial:x}")
        self._save(TOKENS, state.tokens)
        enrolled = self._certify(state, token.name, token.kind, public, agreement, self._most(days), (), serial)
        if held:
            self._revoke(state, held, "superseded")
        self._write_list_if_named(state, token.name)
        return enrolled

    def _done(self, state: _State, token: Token) -> Issued | None:
        return next((one for one in state.issued if one.serial == token.serial), None)

    def renew_held(self, certificate: bytes, request: Request, *, days: int) -> Enrolled:
        """A new certificate for whoever shows one in force (DER, checked by TLS). Raises ValueError."""
        held = certificates.read_certificate(
            certificates.pem_of(certificate), "the certificate", authority=self.certificate
        )
        with self._work("renew", held.name) as state:
            record = next((one for one in state.issued if one.number == held.serial), None)
            if record is None or record.name != held.name:
                raise AuthorityError("this certificate is not on record: enrol again with a token")
            if record.revoked is not None:
                raise AuthorityError(f"the certificate of {held.name} is revoked: enrol again with a token")
            now = self.now()
            if now >= record.expires:
                raise AuthorityError(f"the certificate of {held.name} has expired: enrol again with a token")
            if record.kind not in (*CLIENTS, "coordinator"):
                raise AuthorityError(f"a {record.kind} is renewed at the CA")
            lately = [one for one in state.issued if one.name == held.name and one.begins > now - 2 * 86_400]
            if len(lately) > RENEWALS_A_DAY:
                raise AuthorityError(f"{held.name} has been renewed {len(lately)} times of late: not again today")
            public, agreement = _read_request(request, held.name, record.kind)
            return self._certify(state, held.name, record.kind, public, agreement, self._most(days), ())

    def serving(self, hosts: Sequence[str]) -> Serving:
        """A certificate for enrolment over HTTPS on these hosts: the one that is there, or a new one in good time."""
        where = self._directory / SERVING
        own = Serving(where / "server.crt", where / "server.key", self._directory / identity.CA_CERTIFICATE)
        wanted = _hosts("broker", hosts)
        with self._locked() as state:
            if self._serves(state, own, wanted):
                return own
            with self._audited("serve", ", ".join(wanted)):
                self._check_free(state, SERVING, "broker", replace=True)
                key = certificates.new_key()
                enrolled = self._certify(
                    state, SERVING, "broker", key.public_key(), None, self._most(SERVING_DAYS), wanted
                )
                folder.make(where)
                folder.put_all(
                    where, {own.key.name: certificates.to_pem(key), own.certificate.name: enrolled.certificate}
                )
        return own

    def _serves(self, state: _State, own: Serving, hosts: Sequence[str]) -> bool:
        last, now = newest(state.issued, SERVING), self.now()
        if last is None or not last.is_in_force(now) or last.days_left(now) < SERVING_LEFT:
            return False
        if not (own.key.is_file() and own.certificate.is_file()):
            return False
        there = certificates.read_certificate(folder.read(own.certificate), str(own.certificate))
        return there.serial == last.number and set(there.hosts) == set(hosts)

    # -- roots ------------------------------------------------------------------------------------------------------

    def rotate(self, what: Sequence[What], *, years: int, root_key: Path | None = None) -> Rotated:
        """The next root, with new keys for `what`. `root_key` is where the root's key lies, if not here."""
        key_file = self._directory / ROOT_KEY if root_key is None else root_key
        with self._work("rotate", ", ".join(what)):
            self._settle(key_file)
            chain = self.chain()
            before = chain.newest
            old = read_ed25519(
                folder.read(key_file, "the root's key may lie in a safe: name it with --root-key"), "root"
            )
            if public_bytes(old) != before.root:
                raise AuthorityError(f"{key_file} is not the key of root {before.version}, which has to sign the next")
            own, drawn, public = old, {}, {}
            if "root" in what:
                own = certificates.new_signing_key()
                drawn[key_file], public["root"] = key_to_pem(own), public_bytes(own)
            if "issuer" in what:
                issuer = certificates.new_signing_key()
                drawn[self._directory / ISSUER_KEY], public["issuer"] = key_to_pem(issuer), public_bytes(issuer)
            if "coordinator" in what:
                folder.make(self._directory / COORDINATOR)
                signing, agreement = certificates.new_signing_key(), certificates.new_agreement_key()
                for name, key in ((identity.SIGNING_KEY, signing), (identity.AGREEMENT_KEY, agreement)):
                    drawn[self._directory / COORDINATOR / name] = key_to_pem(key)
                public |= {"coordinator": public_bytes(signing), "agreement": public_bytes(agreement)}
            now = utc(self.now())
            after = msgspec.structs.replace(
                before,
                version=before.version + 1,
                begins=int(now.timestamp()),
                expires=int(_years_on(now, years).timestamp()),
                **public,
            )
            for path, pem in drawn.items():
                folder.put(path.with_name(path.name + NEXT), pem)
            longer = chain.walk([sign_root(after, own, old)])
            folder.put(self._directory / identity.TRUST, longer.text().encode())
            self._settle(key_file)
        return Rotated(before=before, now=after)

    def _settle(self, root_key: Path | None = None) -> None:
        """Keys that were drawn take their place where the newest root names them, and are gone where none does."""
        own = self._directory / COORDINATOR
        root = None
        places = [
            (self._directory / ROOT_KEY if root_key is None else root_key, "root"),
            (self._directory / ISSUER_KEY, "issuer"),
            (own / identity.SIGNING_KEY, "coordinator"),
            (own / identity.AGREEMENT_KEY, "agreement"),
        ]
        for path, part in places:
            waiting = path.with_name(path.name + NEXT)
            if not waiting.exists():
                continue
            root = self.chain().newest if root is None else root
            read = read_x25519 if part == "agreement" else read_ed25519
            if public_bytes(read(folder.read(waiting), str(waiting))) == getattr(root, part):
                waiting.replace(path)
            else:
                waiting.unlink()
        trust = self._read(identity.TRUST)
        if own.is_dir() and (not (own / identity.TRUST).is_file() or folder.read(own / identity.TRUST) != trust):
            folder.put(own / identity.TRUST, trust)

    # -- the folder -------------------------------------------------------------------------------------------------

    @contextmanager
    def _work(self, action: str, subject: str) -> Iterator[_State]:
        with self._locked() as state, self._audited(action, subject):
            yield state

    @contextmanager
    def _locked(self) -> Iterator[_State]:
        with folder.locked(self._directory):
            self._settle()
            yield _State(self.issued(), read_lines(self._read(TOKENS), Token, TOKENS))

    @contextmanager
    def _audited(self, action: str, subject: str) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError) as error:
            self._note(action, subject, f"refused: {error}")
            raise
        self._note(action, subject, "done")

    def _note(self, action: str, subject: str, outcome: str) -> None:
        asked = "" if self._asker is None else f" (asked from {self._asker})"
        self._audit.record(who=local_user(), action=f"ca {action}", subject=subject, outcome=outcome + asked)

    def _read(self, name: str) -> bytes:
        return folder.read(self._directory / name, "put it back from a copy of this CA's folder")

    def _ca_key(self) -> certificates.PrivateKey:
        return certificates.read_key(self._read(CA_KEY), CA_KEY)

    def _save(self, name: str, records: Sequence[msgspec.Struct]) -> None:
        folder.put(self._directory / name, write_lines(records), folder.SECRET)

    def _store(
        self, state: _State, issued: Issued, certificate: bytes | None, card: bytes | None, agreement: bytes | None
    ) -> None:
        kept = self._directory / CERTIFICATES
        folder.make(kept)
        public = None if agreement is None else certificates.to_agreement_public(agreement)
        files = {f"{issued.serial}.crt": certificate, f"{issued.serial}.card": card, f"{issued.serial}.pub": public}
        folder.put_all(kept, {name: data for name, data in files.items() if data is not None})
        state.issued.append(issued)
        self._save(ISSUED, state.issued)

    def _stored(self, issued: Issued, kind: str) -> bytes:
        return self._read(f"{CERTIFICATES}/{issued.serial}.{kind}")


# -- below ----------------------------------------------------------------------------------------------------------


def _read_request(request: Request, name: str, kind: Kind) -> tuple[PublicKey, bytes | None]:
    public = certificates.read_request(request.csr, name, request.where)
    if kind != "gateway":
        return public, None
    if request.agreement is None:
        raise AuthorityError(f"{name} is a gateway: give its public agreement key as well (agreement.pub)")
    return public, certificates.read_agreement_public(request.agreement, request.agreement_where)


def _hosts(kind: Kind, hosts: Sequence[str]) -> tuple[str, ...]:
    if kind != "broker":
        if hosts:
            raise AuthorityError(f"hosts are for a broker's certificate; a {kind} has a name alone")
        return ()
    return tuple(dict.fromkeys((*hosts, *AT_HOME)))


def _check_out(where: Path, kind: Kind, *, with_keys: bool) -> None:
    names = [BROKER_CERTIFICATE] if kind == "broker" else [identity.CERTIFICATE]
    if with_keys:
        names += [BROKER_KEY] if kind == "broker" else [identity.CERTIFICATE_KEY, identity.AGREEMENT_KEY]
    there = [name for name in names if (where / name).exists()]
    if there:
        raise AuthorityError(f"{where} holds an identity already ({', '.join(there)}): name a new folder with --out")


def _years_on(now: datetime, years: int) -> datetime:
    return now + timedelta(days=365 * years + years // 4)


def _remove(directory: Path) -> None:
    """What is left of a CA that did not come to be: keys that nobody has used."""
    if directory.exists():
        shutil.rmtree(directory)
