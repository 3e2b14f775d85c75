"""Mail and web servers that speak TLS: believed by the plant's own CA, refused with a clear word by any other."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from fedmq_edge_node.alarms import Evidence, Raised
from fedmq_edge_node.alertbook import Alertbook
from fedmq_protocol.settings import SettingsError, load
from paging import Pager
from watched import PUMP

from fedmq.watch.outputs import Mail, SendError, Webhook, deliver
from fedmq.watch.settings import EmailSettings, WatchSettings, WebhookSettings

aiosmtpd = pytest.importorskip("aiosmtpd", reason="needs aiosmtpd: the extra dev brings it")

from aiosmtpd.smtp import SMTP, AuthResult  # noqa: E402

PASSWORD = "correct horse"
RAISED = Raised(
    machine=PUMP,
    kind="vibration",
    at=1.7e9,
    from_at=1.7e9 - 10,
    level=2.0,
    severity="alarm",
    evidence=(Evidence(name="velocity", value=9.0, limit=4.5),),
)


class Inbox:
    """What came, and how: over TLS or not, and as whom."""

    def __init__(self) -> None:
        self.got: list[tuple[list[str], bool, Any]] = []
        self.logins: list[tuple[bytes, bool]] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.got.append(
            (envelope.rcpt_tos, server.transport.get_extra_info("ssl_object") is not None, envelope.content)
        )
        return "250 taken"

    def login(self, server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        self.logins.append((data.password, server.transport.get_extra_info("ssl_object") is not None))
        return AuthResult(success=data.password == PASSWORD.encode())


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Authority]:
    folder = tmp_path_factory.mktemp("authorities")
    return {name: Authority(folder / name, name=name) for name in ("plant", "stranger")}


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Alertbook]:
    opened = Alertbook(tmp_path / "alerts.sqlite")
    yield opened
    opened.close()


def context_of(authority: Authority, address: str = "127.0.0.1") -> ssl.SSLContext:
    cert, key = authority.issue("mail", address=address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context


class Post:
    """A mail server in a thread: `security` is starttls, tls or none."""

    def __init__(self, security: str, context: ssl.SSLContext | None) -> None:
        self.inbox = Inbox()

        def protocol() -> SMTP:
            return SMTP(
                self.inbox,
                hostname="mail.test",
                tls_context=context if security == "starttls" else None,
                require_starttls=security == "starttls",
                authenticator=self.inbox.login,
                # A password in the open is taken, so that a test sees it.
                auth_require_tls=False,
                loop=self._loop,
            )

        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(
            self._loop.create_server(protocol, "127.0.0.1", 0, ssl=context if security == "tls" else None)
        )
        self.port = int(self._server.sockets[0].getsockname()[1])
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def mail(post: Post, security: str, ca_file: Path | None, password_file: Path | None = None) -> Mail:
    return Mail(
        EmailSettings(
            name="people",
            host="127.0.0.1",
            port=post.port,
            security=security,  # type: ignore[arg-type]
            username=None if password_file is None else "fedmq",
            password_file=password_file,
            ca_file=ca_file,
            sender="fedmq@plant.example",
            to=("ann@plant.example",),
            least_seconds=0.0,
        )
    )


def tell(book: Alertbook, output: Any) -> str:
    """One alert told; the error of what did not go."""
    book.tell({output.name: list(output.tells)})
    book.step(at=0.0, outcomes=[RAISED])
    deliver(book, [output], 1.0)
    return " ".join(row[3] for row in book.outbox())


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_mail_goes_over_tls_with_the_password_in_it(
    book: Alertbook, authorities: dict[str, Authority], tmp_path: Path, security: str
) -> None:
    secret = tmp_path / "password"
    secret.write_text(PASSWORD + "\n")
    secret.chmod(0o600)
    post = Post(security, context_of(authorities["plant"]))
    try:
        assert tell(book, mail(post, security, authorities["plant"].ca_file, secret)) == ""
    finally:
        post.close()
    ((to, encrypted, content),) = post.inbox.got
    assert to == ["ann@plant.example"]
    assert encrypted
    assert b"alert 1 raised" in content
    assert post.inbox.logins == [(PASSWORD.encode(), True)]


@pytest.mark.parametrize("security", ["starttls", "tls"])
@pytest.mark.parametrize(
    ("signed_by", "address", "trusted", "said"),
    [
        ("stranger", "127.0.0.1", True, "by the CAs in"),
        ("plant", "127.0.0.9", True, "IP address mismatch"),
        ("plant", "127.0.0.1", False, "by this system's CAs"),
    ],
    ids=["signed by another CA", "of another host", "of a CA that nobody named"],
)
def test_a_wrong_certificate_is_refused_with_a_clear_word_before_anything_is_said(
    book: Alertbook,
    authorities: dict[str, Authority],
    tmp_path: Path,
    security: str,
    signed_by: str,
    address: str,
    trusted: bool,
    said: str,
) -> None:
    secret = tmp_path / "password"
    secret.write_text(PASSWORD + "\n")
    secret.chmod(0o600)
    post = Post(security, context_of(authorities[signed_by], address))
    try:
        error = tell(book, mail(post, security, authorities["plant"].ca_file if trusted else None, secret))
    finally:
        post.close()
    assert "the server's certificate is not believed, and nothing was sent" in error
    assert said in error
    assert (post.inbox.got, post.inbox.logins) == ([], [])
    # It is not lost: it goes once the certificate is right.
    assert [row[1] for row in book.outbox()] == ["waiting"]


def test_a_server_without_starttls_gets_neither_password_nor_mail(book: Alertbook, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text(PASSWORD + "\n")
    secret.chmod(0o600)
    post = Post("none", None)
    try:
        error = tell(book, mail(post, "starttls", None, secret))
    finally:
        post.close()
    assert "STARTTLS" in error
    assert (post.inbox.got, post.inbox.logins) == ([], [])


def test_a_web_server_is_believed_by_the_plants_own_ca_and_by_no_other(
    book: Alertbook, authorities: dict[str, Authority]
) -> None:
    pager = Pager()
    pager.socket = context_of(authorities["plant"]).wrap_socket(pager.socket, server_side=True)
    url = pager.url.replace("http:", "https:")
    try:
        stranger = Webhook(WebhookSettings(name="pager", url=url, ca_file=authorities["stranger"].ca_file))
        assert "the server's certificate is not believed" in tell(book, stranger)
        assert pager.got == []
        own = Webhook(WebhookSettings(name="pager", url=url, ca_file=authorities["plant"].ca_file))
        deliver(book, [own], 100.0)
    finally:
        pager.shutdown()
        pager.server_close()
    assert len(pager.got) == 1
    assert book.outbox() == []


def test_a_ca_file_that_is_none_is_told_at_the_start(tmp_path: Path) -> None:
    wrong = tmp_path / "ca.crt"
    wrong.write_text("no certificate")
    for missing in (wrong, tmp_path / "absent"):
        with pytest.raises(SendError, match="ca_file"):
            Webhook(WebhookSettings(name="pager", url="https://127.0.0.1/", ca_file=missing))


def test_a_ca_file_without_use_is_told(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("")
    config = tmp_path / "watch.toml"
    config.write_text(
        'store = "s"\nmachines = "m"\nstate_dir = "d"\n'
        '[[webhook]]\nname = "pager"\nurl = "http://127.0.0.1/"\nca_file = "ca.crt"\n'
        '[[email]]\nname = "people"\nhost = "h"\nsecurity = "none"\nca_file = "ca.crt"\n'
        'sender = "a@b.example"\nto = ["a@b.example"]\n'
    )
    with pytest.raises(SettingsError) as told:
        load(WatchSettings, config)
    assert str(told.value).count("has no effect") == 2
