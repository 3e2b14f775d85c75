"""Which lists of revoked certificates may be put in Mosquitto's hands."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from certificates import Authority
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from fedmq_broker_config.revocation import (
    MAX_LIST_BYTES,
    NAME_OID,
    RevocationError,
    Revoked,
    name_extension,
    read_revocations,
)

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
EARLIER = NOW - timedelta(hours=1)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "revoked.crl"


def test_a_list_says_who_is_out_and_who_has_a_newer_certificate(authority: Authority, file: Path) -> None:
    data = authority.revoke(file, {1: "g1", 2: "g1", 3: None}, replaced={4: "g1", 5: "g2"}, begins=EARLIER)
    read = read_revocations(data, authority.ca_file.read_bytes(), NOW)
    assert read.entries == {
        Revoked(serial=1, name="g1", replaced=False),
        Revoked(serial=2, name="g1", replaced=False),
        Revoked(serial=3, name=None, replaced=False),
        Revoked(serial=4, name="g1", replaced=True),
        Revoked(serial=5, name="g2", replaced=True),
    }
    assert read.shut_out == {"g1"}
    assert read.expires == EARLIER + timedelta(days=30)


def test_a_list_of_a_stranger_or_changed_on_its_way_is_refused(
    authority: Authority, file: Path, tmp_path: Path
) -> None:
    trusted = authority.ca_file.read_bytes()
    # Of the same subject as the true one, but of another key.
    forged = Authority(tmp_path / "other").revoke(file, begins=EARLIER)
    with pytest.raises(RevocationError, match="'CN=test authority' is not signed by that CA"):
        read_revocations(forged, trusted, NOW)
    whole = x509.load_pem_x509_crl(authority.revoke(file, {1: "g1"}, begins=EARLIER))
    bits = bytearray(whole.public_bytes(serialization.Encoding.DER))
    bits[bits.index(b"\x0c\x02g1") + 3] ^= 3
    changed = x509.load_der_x509_crl(bytes(bits)).public_bytes(serialization.Encoding.PEM)
    assert b"g2" in bits
    with pytest.raises(RevocationError, match="is not signed by that CA"):
        read_revocations(changed, trusted, NOW)
    with pytest.raises(RevocationError, match="of no CA in ca_file"):
        read_revocations(
            whole.public_bytes(serialization.Encoding.PEM), named(tmp_path, "another").ca_file.read_bytes(), NOW
        )


def named(folder: Path, name: str) -> Authority:
    return Authority(folder / name, name=name)


@pytest.mark.parametrize(
    ("begins", "message"),
    [
        (NOW + timedelta(seconds=3), r"holds from 2026-05-04 12:00:03 UTC only; it is looked at again"),
        (NOW + timedelta(hours=3), r"only; are the clocks right\?"),
        (
            NOW - timedelta(days=30),
            r"has run out on 2026-05-04 12:00:00 UTC: with it Mosquitto would turn everybody away",
        ),
    ],
)
def test_a_list_that_does_not_hold_now_is_refused(
    authority: Authority, file: Path, begins: datetime, message: str
) -> None:
    data, trusted = authority.revoke(file, begins=begins), authority.ca_file.read_bytes()
    with pytest.raises(RevocationError, match=message):
        read_revocations(data, trusted, NOW)
    assert read_revocations(data, trusted, None).entries == frozenset()


def test_an_older_list_is_refused_and_the_same_one_is_not(authority: Authority, file: Path) -> None:
    trusted = authority.ca_file.read_bytes()
    first = read_revocations(authority.revoke(file, {1: "g1"}, number=7, begins=EARLIER), trusted, NOW)
    assert read_revocations(first.data, trusted, NOW, first) == first
    for number, begins in ((6, NOW), (7, NOW), (8, EARLIER - timedelta(seconds=1))):
        with pytest.raises(RevocationError, match=r"above 7|after that in force"):
            read_revocations(authority.revoke(file, number=number, begins=begins), trusted, NOW, first)
    # Two lists of one second: the number tells them apart.
    second = read_revocations(authority.revoke(file, number=8, begins=EARLIER), trusted, NOW, first)
    assert second.shut_out == frozenset()


def test_each_authority_may_have_its_list_and_none_may_lose_it(tmp_path: Path, file: Path) -> None:
    old, new = named(tmp_path, "old"), named(tmp_path, "new")
    both = old.ca_file.read_bytes() + new.ca_file.read_bytes()
    one, two = old.revoke(file, {1: "g1"}, begins=EARLIER), new.revoke(file, {1: "g2"}, begins=EARLIER)
    read = read_revocations(one + two, both, NOW)
    assert read.shut_out == {"g1", "g2"}
    with pytest.raises(RevocationError, match="has none here"):
        read_revocations(two, both, NOW, read)
    assert read_revocations(two, new.ca_file.read_bytes(), NOW, read).shut_out == {"g2"}
    with pytest.raises(RevocationError, match="two of the same one"):
        read_revocations(one + one, both, NOW)


@pytest.mark.parametrize("data", [b"", b"nonsense", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"])
def test_what_is_no_list_is_refused(authority: Authority, data: bytes) -> None:
    with pytest.raises(RevocationError, match=r"expected a list of revoked|not to be read"):
        read_revocations(data, authority.ca_file.read_bytes(), NOW)


def test_a_list_is_bounded(authority: Authority) -> None:
    with pytest.raises(RevocationError, match="at most 8,388,608 bytes"):
        read_revocations(bytes(MAX_LIST_BYTES + 1), authority.ca_file.read_bytes(), NOW)


def test_a_list_in_part_is_refused(authority: Authority) -> None:
    key = serialization.load_pem_private_key((authority.ca_file.with_name("ca.key")).read_bytes(), None)
    subject = x509.load_pem_x509_certificate(authority.ca_file.read_bytes()).subject
    builder = x509.CertificateRevocationListBuilder(subject, EARLIER, NOW + timedelta(days=1))
    builder = builder.add_extension(x509.DeltaCRLIndicator(1), True)
    data = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)  # type: ignore[arg-type]
    with pytest.raises(RevocationError, match="in part only"):
        read_revocations(data, authority.ca_file.read_bytes(), NOW)


def test_a_name_cannot_smuggle_a_line_into_the_acl(authority: Authority) -> None:
    with pytest.raises(ValueError, match="expected 1 to 63 letters"):
        name_extension("g1\nuser g2")
    key = serialization.load_pem_private_key((authority.ca_file.with_name("ca.key")).read_bytes(), None)
    subject = x509.load_pem_x509_certificate(authority.ca_file.read_bytes()).subject
    for value in (b"\x0c\x06g1\nu g", b"\x0c\x05g1", b"", b"\x13\x02g1"):
        entry = x509.RevokedCertificateBuilder(1, EARLIER)
        entry = entry.add_extension(x509.UnrecognizedExtension(NAME_OID, value), False)
        builder = x509.CertificateRevocationListBuilder(subject, EARLIER, NOW + timedelta(days=1))
        builder = builder.add_revoked_certificate(entry.build())
        data = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)  # type: ignore[arg-type]
        with pytest.raises(RevocationError, match="serial 1"):
            read_revocations(data, authority.ca_file.read_bytes(), NOW)
