"""A web or mail server that takes its time holds no judging up, and nothing is told twice for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from broker_fixtures import eventually
from fedmq_edge_node.alertbook import Alertbook
from paging import Pager
from watched import Plant

from fedmq.watch import telling
from fedmq.watch.outputs import Webhook
from fedmq.watch.service import Watch
from fedmq.watch.settings import WebhookSettings


class SlowPager(Pager):
    """Takes each request at once, and answers once it is let go."""

    def __init__(self) -> None:
        self.taken = threading.Semaphore(0)
        self.go_on = threading.Event()
        super().__init__()

    def finish_request(self, *arguments: Any) -> None:
        self.taken.release()
        self.go_on.wait(60.0)
        super().finish_request(*arguments)


class Running:
    """A watch that runs in a thread of its own, which alone has its files open."""

    def __init__(self, plant: Plant, outputs: list[Any]) -> None:
        self.failure: Exception | None = None
        self.watch: Watch | None = None
        self._plant, self._outputs = plant, outputs
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.watch = self._plant.watch(outputs=self._outputs, poll_seconds=0.05)
            self.watch.run()
        except Exception as error:
            self.failure = error

    def stop(self) -> None:
        eventually(lambda: self.watch is not None or not self._thread.is_alive(), "the watch")
        if self.watch is not None:
            self.watch.stopping = True
        self._thread.join(30.0)
        assert not self._thread.is_alive()

    def ended(self) -> bool:
        return not self._thread.is_alive()


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    made = Plant(tmp_path)
    yield made
    made.recorder.close()


@pytest.fixture
def pager() -> Iterator[SlowPager]:
    server = SlowPager()
    yield server
    server.go_on.set()
    server.shutdown()
    server.server_close()


def hook(pager: Pager, **more: Any) -> Webhook:
    return Webhook(WebhookSettings(name="pager", url=pager.url, least_seconds=0.0, timeout_seconds=60.0, **more))


def test_judging_goes_on_while_a_server_has_not_answered(plant: Plant, pager: SlowPager) -> None:
    plant.hear(30)
    plant.hear(4, "outer_race")
    plant.book().close()
    running = Running(plant, [hook(pager)])
    try:
        assert pager.taken.acquire(timeout=60.0)
        # It knows of the alert, and says nothing. Meanwhile the machine is well again.
        plant.hear(8)
        book = plant.book()
        eventually(lambda: [alert.state for alert in book.alerts()] == ["cleared"], "the end of the alert")
        assert pager.got == []
        assert [row[1] for row in book.outbox() if row[0] == "webhook pager"] != []
        pager.go_on.set()
        eventually(lambda: book.outbox() == [], "the pager's yes")
        book.close()
    finally:
        pager.go_on.set()
        running.stop()
    assert running.failure is None
    steps = [(key, step["step"]) for key, _, body in pager.got for step in body["steps"]]
    assert [step for _, step in steps] == ["raised", "cleared"]
    assert len({key for key, _ in steps}) == len(pager.got)


def test_a_watch_ends_though_a_server_never_answers_and_the_message_is_still_there(
    plant: Plant, pager: SlowPager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "STOP_SECONDS", 0.2)
    plant.hear(30)
    plant.hear(4, "outer_race")
    running = Running(plant, [hook(pager)])
    assert pager.taken.acquire(timeout=60.0)
    running.stop()
    book = plant.book()
    assert [row[:3] for row in book.outbox()] == [("webhook pager", "waiting", 1)]
    book.close()


class Broken:
    """An output with a mistake in it."""

    name, tells, least_seconds, most_per_hour = "broken", ("raised",), 0.0, 100

    def compose(self, key: str, notes: Any) -> bytes:
        raise RuntimeError("a mistake")

    def send(self, message: Any) -> bool:
        raise AssertionError("there is nothing to send")


def test_a_thread_that_fails_ends_the_watch_with_what_it_failed_of(plant: Plant) -> None:
    plant.hear(30)
    plant.hear(4, "outer_race")
    running = Running(plant, [Broken()])
    eventually(running.ended, "the end")
    running.stop()
    assert str(running.failure) == "a mistake"
    book = Alertbook.existing(plant.directory / "watch" / "alerts.sqlite")
    assert len(book.alerts()) == 1
    assert [row[:2] for row in book.outbox()] == [("broken", "to be composed")]
    book.close()
