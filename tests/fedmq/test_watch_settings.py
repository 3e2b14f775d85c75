"""What a watch's settings may say."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedmq_protocol.settings import SettingsError, document, load

from fedmq.watch.settings import WatchSettings

EXAMPLE = Path(__file__).parents[2] / "edge_node" / "watch.example.toml"
HEAD = 'store = "s"\nmachines = "m"\nstate_dir = "d"\n'


def test_the_example_file_is_what_is_rendered() -> None:
    assert EXAMPLE.read_text() == document(WatchSettings)


def test_the_example_file_loads_and_tells_nobody() -> None:
    settings = load(WatchSettings, EXAMPLE)
    assert not settings.mqtt.enabled
    assert settings.webhook == settings.email == ()
    assert settings.judging.policy.learning_seconds == 86_400


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("every_seconds = 1", "every_seconds: expected at least window_seconds (2)"),
        ('[[webhook]]\nname = "a"\nurl = "file:///etc/passwd"', "expected an address that begins with http"),
        ('[[webhook]]\nname = "a"\nurl = "http://x"\n[[webhook]]\nname = "a"\nurl = "http://y"', "more than one"),
        ('[[email]]\nname = "a"\nhost = "h"\nsender = "Ann <ann@x>"\nto = ["b@x"]', "expected a bare address"),
        ('[[email]]\nname = "a"\nhost = "h"\nsender = "a@x"\nto = []', "email[1].to"),
        (
            '[[email]]\nname = "a"\nhost = "h"\nsender = "a@x"\nto = ["b@x"]\nsecurity = "none"\nusername = "u"'
            '\npassword_file = "p"',
            "a password does not go over an open connection",
        ),
        ('[mqtt]\nprefix = "plant/#"', "mqtt.prefix"),
        ('[[webhook]]\nname = "a"\nurl = "http://x"\ntell = ["nothing"]', "webhook[1].tell"),
    ],
)
def test_mistakes_are_told_with_their_keys(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "watch.toml"
    path.write_text(HEAD + text)
    with pytest.raises(SettingsError) as raised:
        load(WatchSettings, path)
    assert said in str(raised.value)
