"""Who may look and who may give orders: the rules alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from dashboards import OPERATOR, VIEWER, secret
from fedmq_coordinator.settings import HttpSettings
from fedmq_coordinator.web.access import (
    MOST_ADDRESSES,
    MOST_SESSIONS,
    MOST_WRONG_OF_ONE,
    SESSION_SECONDS,
    WRONG_SECONDS,
    Attempts,
    Sessions,
    TokenError,
    Tokens,
    is_own_host,
    is_own_origin,
    network,
)
from fedmq_protocol.secrets import SecretError
from fedmq_protocol.settings import SettingsError


def test_each_token_opens_what_it_is_for() -> None:
    tokens = Tokens(viewer=VIEWER, operator=OPERATOR)
    assert tokens.role_of(VIEWER) == "viewer"
    assert tokens.role_of(OPERATOR) == "operator"
    for wrong in ("", VIEWER[:-1], VIEWER + "x", OPERATOR.upper()):
        assert tokens.role_of(wrong) is None


def test_where_there_is_no_token_an_empty_one_fits_nothing() -> None:
    assert Tokens().role_of("") is None


def test_a_token_is_in_no_repr() -> None:
    assert VIEWER not in repr(Tokens(viewer=VIEWER))


def test_a_token_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = secret(tmp_path / "token", VIEWER)
    path.chmod(0o644)
    with pytest.raises(SecretError, match="chmod 600"):
        Tokens.read(path, None)


@pytest.mark.parametrize("text", ["", "too short", "x" * 23])
def test_a_token_that_can_be_guessed_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(TokenError, match="24 characters or more"):
        Tokens.read(secret(tmp_path / "token", text), None)


def test_one_token_for_both_is_refused(tmp_path: Path) -> None:
    path = secret(tmp_path / "token", VIEWER)
    with pytest.raises(TokenError, match="another token"):
        Tokens.read(path, path)


def test_a_session_ends_after_its_time_or_when_somebody_signs_out() -> None:
    sessions = Sessions(os.urandom)
    cookie = sessions.begin("operator", 1000.0)
    assert sessions.get(cookie, 1000.0 + SESSION_SECONDS - 1) is not None
    assert sessions.get(cookie, 1000.0 + SESSION_SECONDS) is None
    cookie = sessions.begin("viewer", 1000.0)
    sessions.end(cookie)
    assert sessions.get(cookie, 1000.0) is None


def test_sessions_do_not_pile_up() -> None:
    sessions = Sessions(os.urandom)
    cookies = [sessions.begin("viewer", 0.0) for _ in range(MOST_SESSIONS + 1)]
    assert sessions.get(cookies[0], 1.0) is None
    assert all(sessions.get(cookie, 1.0) for cookie in cookies[1:])


def test_who_brings_wrong_tokens_waits_and_others_do_not() -> None:
    attempts = Attempts()
    for _ in range(MOST_WRONG_OF_ONE):
        assert attempts.wait_seconds("192.0.2.1", 100.0) == 0
        attempts.failed("192.0.2.1", 100.0)
    assert attempts.wait_seconds("192.0.2.1", 101.0) == pytest.approx(WRONG_SECONDS - 1)
    assert attempts.wait_seconds("192.0.2.2", 101.0) == 0
    assert attempts.wait_seconds("192.0.2.1", 100.0 + WRONG_SECONDS) == 0


def test_addresses_of_wrong_tokens_do_not_pile_up() -> None:
    attempts = Attempts()
    for number in range(3 * MOST_ADDRESSES):
        attempts.failed(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", number / 10)
    assert len(attempts._of) == MOST_ADDRESSES


def test_one_customers_addresses_count_as_one() -> None:
    assert network("2001:db8::1") == network("2001:db8::ffff:1") != network("2001:db8:0:1::1")
    assert network("::ffff:192.0.2.1") == network("192.0.2.1")
    assert network("nonsense") == "?"


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1:8080", "[::1]:8080", "127.1.2.3"])
def test_the_loopback_knows_its_own_names(host: str) -> None:
    assert is_own_host(host)


@pytest.mark.parametrize(
    "host", ["", "evil.example", "localhost.evil.example:8080", "127.0.0.1.evil.example", "[::1", "192.0.2.1"]
)
def test_a_name_that_was_made_to_point_here_is_none_of_its_own(host: str) -> None:
    assert not is_own_host(host)


@pytest.mark.parametrize(
    ("origin", "own"),
    [
        ("http://plant:8080", True),
        ("https://PLANT:8080", True),
        ("http://plant", False),
        ("http://evil.example", False),
        ("http://plant:8080.evil.example", False),
        ("null", False),
        ("", False),
        ("ftp://plant:8080", False),
        ("http://[", False),
    ],
)
def test_an_order_comes_from_a_page_of_the_same_host(origin: str, own: bool) -> None:
    assert is_own_origin(origin, "plant:8080") is own


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("8080", ("127.0.0.1", 8080)),
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:80", ("::1", 80)),
        ("localhost:80", ("localhost", 80)),
    ],
)
def test_an_address_is_read_as_people_write_it(listen: str, address: tuple[str, int]) -> None:
    assert HttpSettings(listen=listen).address == address


@pytest.mark.parametrize("listen", ["", "here", "127.0.0.1:", "::1:80", "127.0.0.1:65536", "127.0.0.1:-1", "a:b:80"])
def test_what_is_no_address_is_refused(listen: str) -> None:
    with pytest.raises(SettingsError, match=r"http\.listen|listen: "):
        HttpSettings(listen=listen)


def test_beyond_this_machine_it_takes_a_token_or_a_proxy(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "[::]", "192.0.2.1", "plant.example"):
        with pytest.raises(SettingsError, match="token_file"):
            HttpSettings(listen=f"{host}:8080")
        with pytest.raises(SettingsError, match="token_file"):
            HttpSettings(listen=f"{host}:8080", operator_token_file=tmp_path / "token")
        HttpSettings(listen=f"{host}:8080", token_file=tmp_path / "token")
        HttpSettings(listen=f"{host}:8080", behind_proxy=True)
