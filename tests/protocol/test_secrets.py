"""Which files settings and secrets are taken from, and which are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from certificates import Authority
from fedmq_protocol.secrets import SecretError, check_keys, credential, read_secret
from fedmq_protocol.session import Connection, MqttSession
from fedmq_protocol.settings import ConnectionSettings, SettingsError, load
from small_disk import SmallDisk

from fedmq.programs import connection_of

SECRET = "hunter2-and-more"


def written(path: Path, mode: int, text: str = SECRET) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440, 0o700])
def test_a_secret_for_its_owner_and_readers_of_its_group_is_read(tmp_path: Path, mode: int) -> None:
    assert read_secret(written(tmp_path / "password", mode), 100) == SECRET.encode()


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        (0o644, "everybody on this machine may read it"),
        (0o604, "everybody on this machine may read it"),
        (0o602, "everybody on this machine may write it"),
        (0o660, "its group may write it"),
    ],
)
def test_a_secret_that_others_may_touch_is_refused_with_what_to_do(tmp_path: Path, mode: int, why: str) -> None:
    path = written(tmp_path / "password", mode)
    with pytest.raises(SecretError) as caught:
        read_secret(path, 100)
    assert str(caught.value) == f"{path}: holds a secret and has mode {mode:04o}, so that {why}: chmod 600 {path}"
    with pytest.raises(SettingsError, match=f"password_file: .*mode {mode:04o}.*chmod 600 {path}"):
        ConnectionSettings(username="u", password_file=path).password()


def test_a_secret_has_a_bound_and_is_a_file(tmp_path: Path) -> None:
    path = written(tmp_path / "password", 0o600)
    with pytest.raises(SecretError, match="at most 5 bytes"):
        read_secret(path, 5)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for wrong in (pipe, tmp_path, tmp_path / "missing"):
        with pytest.raises(SecretError, match=str(wrong)):
            read_secret(wrong, 5)


def test_a_link_to_a_secret_is_judged_by_what_it_leads_to(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(written(tmp_path / "password", 0o644))
    with pytest.raises(SecretError, match="mode 0644"):
        read_secret(link, 100)


def test_every_key_of_an_identity_folder_is_judged(tmp_path: Path) -> None:
    written(tmp_path / "client.key", 0o600)
    written(tmp_path / "agreement.key", 0o600)
    written(tmp_path / "client.crt", 0o644)
    check_keys(tmp_path)
    (tmp_path / "agreement.key").chmod(0o644)
    with pytest.raises(SecretError, match=r"agreement\.key: .*chmod 600"):
        check_keys(tmp_path)
    (tmp_path / "agreement.key").chmod(0o600)
    tmp_path.chmod(0o777)
    with pytest.raises(SecretError, match=f"mode 0777: chmod o-w {tmp_path}"):
        check_keys(tmp_path)
    with pytest.raises(SecretError, match="nowhere: cannot be read"):
        check_keys(tmp_path / "nowhere")


def test_a_key_that_others_may_read_is_not_connected_with(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("g")
    words = {"host": "127.0.0.1", "port": 1, "client_id": "g", "ca_file": authority.ca_file, "cert_file": certificate}
    key.chmod(0o600)
    MqttSession(Connection(**words, key_file=key))
    key.chmod(0o644)
    with pytest.raises(ValueError, match=f"key_file {key}: .*mode 0644.*chmod 600"):
        MqttSession(Connection(**words, key_file=key))


# -- settings files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664])
def test_settings_that_a_group_may_change_are_loaded(tmp_path: Path, mode: int) -> None:
    assert load(ConnectionSettings, written(tmp_path / "a.toml", mode, "port = 7")).port == 7


def test_settings_that_everybody_may_change_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.toml", 0o666, "port = 7")
    with pytest.raises(SettingsError) as caught:
        load(ConnectionSettings, path)
    assert str(caught.value) == (
        f"{path}: has mode 0666, so that everybody on this machine may change these settings: chmod o-w {path}"
    )


def test_settings_in_a_folder_where_everybody_may_replace_them_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    path = written(folder / "a.toml", 0o644, "port = 7")
    folder.chmod(0o777)
    with pytest.raises(SettingsError, match=f"its folder has mode 0777.*chmod o-w {folder}$"):
        load(ConnectionSettings, path)
    link = tmp_path / "link.toml"
    link.symlink_to(path)
    with pytest.raises(SettingsError, match=f"its folder has mode 0777.*chmod o-w {folder}$"):
        load(ConnectionSettings, link)
    folder.chmod(0o1777)  # as /tmp is: nobody replaces what is another's
    assert load(ConnectionSettings, path).port == 7


def test_what_nobody_can_write_may_have_any_mode(small_disk: SmallDisk) -> None:
    """Kubernetes mounts settings read-only, in a folder of mode 0777."""
    path = written(small_disk.place / "a.toml", 0o666, "port = 7")
    small_disk.place.chmod(0o777)
    with pytest.raises(SettingsError, match="mode 0666"):
        load(ConnectionSettings, path)
    small_disk.make_read_only()
    assert load(ConnectionSettings, path).port == 7


# -- credentials of systemd ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides", [(), ("password_file=credential:broker",), ('password_file="credential:broker"',)]
)
def test_a_credential_is_a_file_that_systemd_hands_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    handed = tmp_path / "handed"
    handed.mkdir()
    written(handed / "broker", 0o400)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(handed))
    text = 'username = "u"\n' + ("" if overrides else 'password_file = "credential:broker"')
    settings = load(ConnectionSettings, written(tmp_path / "a.toml", 0o644, text), overrides)
    assert settings.password_file == handed / "broker"
    assert settings.password() == SECRET


def test_a_credential_without_systemd_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    path = written(tmp_path / "a.toml", 0o644, 'tls = true\nkey_file = "credential:k"\ncertificate_file = "c"')
    with pytest.raises(SettingsError, match=r"key_file: .*CREDENTIALS_DIRECTORY.*LoadCredential=k:FILE"):
        load(ConnectionSettings, path)


@pytest.mark.parametrize("text", ["credential:", "credential:..", "credential:a/b", "credential:../a"])
def test_a_credential_is_a_name_and_leads_nowhere_else(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/x")
    with pytest.raises(SecretError, match="expected the name of a systemd credential"):
        credential(text)
    assert credential("credential:.") == Path("/run/credentials/x")


def test_an_identity_may_be_handed_over_by_systemd_and_its_keys_are_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    written(tmp_path / "client.key", 0o400)
    path = written(tmp_path / "a.toml", 0o644, 'identity_dir = "credential:."')
    settings = load(ConnectionSettings, path)
    assert connection_of(settings, "g").key_file == tmp_path / "client.key"
    written(tmp_path / "agreement.key", 0o644)
    with pytest.raises(ValueError, match=r"agreement\.key: .*mode 0644.*chmod 600"):
        connection_of(settings, "g")
