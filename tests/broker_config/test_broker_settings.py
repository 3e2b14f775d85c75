"""What `broker.toml` may say, and what it comes to."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedmq_broker_config.render import BrokerSettings, Certificates, Guarded, Passwords, Site
from fedmq_broker_config.settings import BrokerTable
from fedmq_protocol.settings import SettingsError, document, load

EXAMPLE = Path(__file__).parents[2] / "broker_config" / "broker.example.toml"

CERTIFICATES: dict[str, object] = {
    "access": "certificates",
    "ca_file": Path("/tls/ca"),
    "certificate_file": Path("/tls/crt"),
    "key_file": Path("/tls/key"),
}


def test_the_example_file_is_what_is_rendered() -> None:
    assert EXAMPLE.read_text() == document(BrokerTable)


def test_the_example_file_loads_to_the_defaults() -> None:
    table = load(BrokerTable, EXAMPLE)
    assert table == BrokerTable()
    assert table.broker() == BrokerSettings()


def test_certificates_and_sites_come_to_what_is_rendered() -> None:
    table = BrokerTable(
        access="certificates",
        address="0.0.0.0",
        port=8883,
        ca_file=Path("/tls/ca"),
        certificate_file=Path("/tls/crt"),
        key_file=Path("/tls/key"),
        sites=("north: press-1 press-2",),
    )
    settings = table.broker()
    assert settings.access == Certificates(
        ca_file=Path("/tls/ca"), cert_file=Path("/tls/crt"), key_file=Path("/tls/key")
    )
    assert settings.sites == (Site(user="north", gateways=("press-1", "press-2")),)
    assert BrokerTable(access="passwords", password_file=Path("/p")).broker().access == Passwords(Path("/p"))


def test_revocation_bounds_and_observers_come_to_what_is_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table = BrokerTable(
        **CERTIFICATES,  # type: ignore[arg-type]
        revoked_file=Path("revoked.crl"),
        guard_dir=Path("/run/guard"),
        observers=("auditor",),
        max_connections=7,
        max_keepalive_seconds=600,
    )
    settings = table.broker()
    assert settings.guarded == Guarded(revoked_file=tmp_path / "revoked.crl", directory=Path("/run/guard"))
    assert (settings.observers, settings.max_connections, settings.max_keepalive_seconds) == (("auditor",), 7, 600)


@pytest.mark.parametrize(
    ("given", "keys"),
    [
        ({"access": "passwords"}, ["password_file"]),
        ({"access": "certificates", "ca_file": Path("x")}, ["certificate_file", "key_file"]),
        ({"address": "0.0.0.0"}, ["address"]),
        ({"address": "broker.example"}, ["address"]),
        ({"federation": "a/b"}, ["federation"]),
        ({"sites": ("north",)}, ["sites"]),
        ({"sites": ("north: g1",)}, ["sites"]),
        ({"max_packet_bytes": 100}, ["max_packet_bytes"]),
        ({"revoked_file": Path("x")}, ["guard_dir"]),
        ({"guard_dir": Path("x")}, ["revoked_file"]),
        ({"observers": ("auditor",)}, ["observers"]),
        ({"access": "passwords", "password_file": Path("p"), "observers": ("a/b",)}, ["observers"]),
        (CERTIFICATES | {"revoked_file": Path("x"), "guard_dir": Path("/" + "x" * 98)}, ["guard_dir"]),
    ],
)
def test_what_does_not_go_together_is_a_mistake_with_its_key(given: dict[str, object], keys: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        BrokerTable(**given)  # type: ignore[arg-type]
    assert [mistake.key for mistake in caught.value.mistakes] == keys
