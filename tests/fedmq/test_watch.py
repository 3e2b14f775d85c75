"""A watch over a store: from samples to alerts, and from verdicts and events back to labels."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from fedmq_coordinator.ledger import Ledger
from fedmq_coordinator.tasks import AlertWish
from fedmq_edge_node.alarms import Kind, Raised
from fedmq_edge_node.alertbook import Alert, Alertbook, BookError
from fedmq_edge_node.samples import Samples, list_recordings, load
from fedmq_edge_node.sensors import Sensors
from fedmq_edge_node.watching import Opinion, learnt
from fedmq_firmware_bridge.store import Store
from fedmq_protocol.condition import QUANTILES
from fedmq_protocol.task import Windowing
from machine_rows import a_watch, an_alert
from numpy.typing import NDArray
from watched import BEGIN, EVERY, MACHINE, PUMP, Plant, finish

from fedmq.cli import main
from fedmq.watch.outputs import evidence_line
from fedmq.watch.program import build_watch
from fedmq.watch.settings import WatchSettings

WINDOWING = Windowing(samples=1024, hop=1024, sampling_rate_hz=12_000.0, held_out=0.25)


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    made = Plant(tmp_path)
    yield made
    made.recorder.close()


def anomaly(plant: Plant) -> Alertbook:
    """Thirty healthy windows and four faulty ones, judged."""
    plant.hear(30)
    plant.hear(4, "outer_race")
    book = plant.book()
    finish(plant.watch(book))
    return book


def raised_meanwhile(first: Alert, kind: Kind) -> Raised:
    """Another alert of the machine, while the first one goes on."""
    return Raised(
        machine=PUMP,
        kind=kind,
        at=first.from_at + 30,
        from_at=first.from_at + 20,
        level=1.2,
        severity="warning",
        evidence=first.evidence,
        sensor=first.sensor,
    )


def labels(plant: Plant, machine: str = PUMP) -> list[str]:
    """Of the machine's runs, each a second every ten."""
    store = Store(plant.store)
    found = [piece.label for run in store.runs(machine=machine) for piece in store.pieces(run)]
    store.close()
    return found


def test_a_fault_in_the_store_becomes_one_alert_with_its_evidence(plant: Plant) -> None:
    book = anomaly(plant)
    (alert,) = book.alerts()
    assert (alert.machine, alert.kind, alert.state, alert.to_at) == (PUMP, "anomaly", "open", None)
    assert alert.from_at == pytest.approx(BEGIN + 30 * EVERY)
    assert alert.evidence[0].value > alert.evidence[0].limit
    assert book.steps(alert.id)[0].what == "raised"


def test_a_watch_that_starts_again_goes_on_where_it_was(plant: Plant) -> None:
    book = anomaly(plant)
    before = book.positions()
    finish(plant.watch(plant.book()))
    assert book.positions() == before
    plant.hear(2, "outer_race")
    finish(plant.watch(plant.book()))
    plant.hear(8)
    finish(plant.watch(plant.book()))
    (alert,) = book.alerts()
    assert alert.state == "cleared"
    assert alert.to_at == pytest.approx(BEGIN + 35 * EVERY + 1)


def test_a_confirmed_alert_labels_its_windows_and_what_is_kept(plant: Plant) -> None:
    book = anomaly(plant)
    plant.hear(6)
    watch = plant.watch(book)
    finish(watch)
    assert not list((plant.directory / "watch" / "kept").glob("[!.]*"))
    book.decide(1, "outer_race", who="ann", at=plant.now)
    finish(watch)
    assert labels(plant) == ["unlabelled"] * 30 + ["outer_race"] * 4 + ["unlabelled"] * 6
    kept = list_recordings(plant.directory / "watch" / "kept")
    assert {path.parent.name for path in kept} == {"outer_race"}
    samples = load(plant.directory / "watch" / "kept", WINDOWING, ("normal", "outer_race"))
    assert samples.train_windows > 10
    assert set(samples.train_y) == {1}
    assert book.orders() == []


def test_a_dismissed_alert_labels_its_windows_healthy(plant: Plant) -> None:
    book = anomaly(plant)
    watch = plant.watch(book)
    book.decide(1, None, who="ann", at=plant.now)
    finish(watch)
    assert labels(plant)[30:] == ["normal"] * 4
    plant.hear(5)
    plant.hear(4, "outer_race")
    finish(watch)
    assert len(book.alerts()) == 1


def test_another_verdict_moves_the_recordings(plant: Plant) -> None:
    book = anomaly(plant)
    plant.hear(6)
    watch = plant.watch(book)
    finish(watch)
    for fault in ("ball", None, "outer_race"):
        book.decide(1, fault, who="ann", at=plant.now)
        finish(watch)
    kept = list_recordings(plant.directory / "watch" / "kept")
    assert {path.parent.name for path in kept} == {"outer_race"}
    assert labels(plant)[30:34] == ["outer_race"] * 4


def test_a_cause_that_is_no_class_is_confirmed_and_nothing_is_learnt_from_it(plant: Plant) -> None:
    book = anomaly(plant)
    book.take_only(("outer_race", "ball"))
    plant.hear(6)
    watch = plant.watch(book)
    finish(watch)
    limits = book.parts()[PUMP]["state"]
    assert main(["alert", "confirm", "--other", "loose foot", "1", "--book", str(book.path)]) == 0
    finish(watch)
    assert (book.alert(1).state, book.alert(1).verdict) == ("confirmed", "other: loose foot")
    assert labels(plant) == ["unlabelled"] * 30 + ["set-aside"] * 4 + ["unlabelled"] * 6
    assert Sensors(plant.store, unix=lambda: plant.now).signal_samples() == {"unlabelled": 36 * 12_000}
    kept = plant.directory / "watch" / "kept"
    assert {path.parent.name for path in kept.rglob("*.npy")} == {".set-aside"}
    assert b'"allowed":{}' in limits
    assert b'"allowed":{}' in book.parts()[PUMP]["state"]
    plant.hear(4, "outer_race")
    finish(watch)
    assert len(book.alerts()) == 2, "it was not nothing: the same again is another alert"


@pytest.mark.parametrize("first", ["outer_race", None, "other: unbalance"])
@pytest.mark.parametrize("then", ["outer_race", None, "other: unbalance"])
@pytest.mark.parametrize("at_once", [True, False])
def test_the_last_of_two_verdicts_holds_in_store_and_folder(
    plant: Plant, first: str | None, then: str | None, at_once: bool
) -> None:
    book = anomaly(plant)
    plant.hear(6)
    watch = plant.watch(book)
    finish(watch)
    book.decide(1, first, who="ann", at=plant.now)
    if not at_once:
        finish(watch)
    book.decide(1, then, who="ann", at=plant.now)
    finish(watch)
    label, folder = {
        "outer_race": ("outer_race", "outer_race"),
        None: ("normal", "normal"),
        "other: unbalance": ("set-aside", ".set-aside"),
    }[then]
    assert labels(plant)[30:34] == [label] * 4
    assert {path.parent.name for path in (plant.directory / "watch" / "kept").rglob("*.npy")} == {folder}


def test_of_overlapping_alerts_the_later_verdict_holds_for_the_time_that_they_share(plant: Plant) -> None:
    book = anomaly(plant)
    first = book.alert(1)
    book.step(
        at=plant.now,
        outcomes=[raised_meanwhile(first, "vibration")],
    )
    watch = plant.watch(book)
    book.decide(1, "outer_race", who="ann", at=plant.now)
    book.decide(2, "other: unbalance", who="ann", at=plant.now)
    finish(watch)
    assert labels(plant)[30:34] == ["outer_race"] * 2 + ["set-aside"] * 2


def test_what_was_set_aside_by_a_verdict_stays_so_after_an_event(plant: Plant) -> None:
    book = anomaly(plant)
    watch = plant.watch(book)
    book.decide(1, "other: unbalance", who="ann", at=plant.now)
    finish(watch)
    book.event(PUMP, "maintenance", who="ann", at=plant.now, noted_at=plant.now)
    plant.hear(3)
    finish(watch)
    assert labels(plant) == ["set-aside"] * 34 + ["unlabelled"] * 3
    book.decide(1, "outer_race", who="ann", at=plant.now)
    finish(watch)
    assert labels(plant)[30:34] == ["outer_race"] * 4, "faults from before an event are learnt from"


def trained_on(plant: Plant, classes: tuple[str, ...] = ()) -> Samples:
    return Sensors(plant.store, unix=lambda: plant.now).load(WINDOWING, classes, "normal")


def test_an_event_leaves_out_what_was_before_of_that_machine_alone(tmp_path: Path) -> None:
    plant = Plant(tmp_path, (PUMP, "fan-1"))
    book = plant.book()
    for machine in (PUMP, "fan-1"):
        plant.hear(5, machine=machine)
    plant.hear(4, "outer_race")
    Store(plant.store).label(PUMP, BEGIN + 100, BEGIN + 140, "outer_race", noted_at=0.0)
    Store(plant.store).label(PUMP, BEGIN, BEGIN + 20, "normal", noted_at=0.0)
    before = Sensors(plant.store, unix=lambda: plant.now).signal_samples()
    assert before == {"normal": 24_000, "unlabelled": 96_000, "outer_race": 48_000}
    watch = plant.watch(book)
    finish(watch)
    book.event(PUMP, "bearing-changed", who="ann", at=plant.now, noted_at=plant.now)
    finish(watch)
    assert labels(plant) == ["set-aside"] * 5 + ["outer_race"] * 4
    assert labels(plant, "fan-1") == ["unlabelled"] * 5
    assert Sensors(plant.store, unix=lambda: plant.now).signal_samples() == {"unlabelled": 60_000, "outer_race": 48_000}
    assert set(trained_on(plant, ("normal", "outer_race")).train_y) == {1}
    plant.hear(3)
    finish(watch)
    standing = book.standings()[PUMP]
    assert standing["event"] == "bearing-changed"
    assert standing["learning"]["done"] is False
    plant.recorder.close()


def test_a_moved_sensor_leaves_nothing_of_before_in_training(plant: Plant) -> None:
    book = anomaly(plant)
    watch = plant.watch(book)
    book.decide(1, "outer_race", who="ann", at=plant.now)
    finish(watch)
    book.event(PUMP, "sensor-moved", who="ann", at=plant.now + 1, noted_at=plant.now)
    finish(watch)
    assert set(labels(plant)) == {"set-aside"}
    assert not list((plant.directory / "watch" / "kept").glob("[!.]*/*.npy"))


def test_an_event_twice_in_the_store_is_the_same_as_once(plant: Plant) -> None:
    plant.hear(6)
    Store(plant.store).label(PUMP, BEGIN + 20, BEGIN + 40, "ball", noted_at=0.0)
    book = plant.book()
    for _ in range(2):
        book.event(PUMP, "replaced", who="ann", at=BEGIN + 50, noted_at=plant.now)
    finish(plant.watch(book))
    assert labels(plant) == ["set-aside"] * 2 + ["ball"] * 2 + ["set-aside", "unlabelled"]


def test_an_event_ends_what_was_open_and_starts_to_learn_anew(plant: Plant) -> None:
    book = anomaly(plant)
    watch = plant.watch(book)
    book.event(PUMP, "bearing-changed", who="ann", at=plant.now, noted_at=plant.now)
    finish(watch)
    assert [alert.state for alert in book.alerts()] == ["cleared"]
    plant.hear(12)
    plant.hear(4, "inner_race")
    finish(watch)
    assert [alert.state for alert in book.alerts()] == ["open", "cleared"]
    assert book.standings()[PUMP]["learning"]["done"] is False


def test_damaged_samples_are_passed_over(plant: Plant) -> None:
    plant.hear(10)
    db = sqlite3.connect(plant.store)
    db.execute("UPDATE samples SET crc = crc + 1 WHERE batch = 4")
    db.commit()
    db.close()
    book = plant.book()
    finish(plant.watch(book))
    assert next(iter(book.positions().values())).at == pytest.approx(BEGIN + 91)


def test_of_overlapping_alerts_each_command_names_the_others_and_one_verdict_will_do(
    plant: Plant, capsys: pytest.CaptureFixture[str]
) -> None:
    book = anomaly(plant)
    first = book.alert(1)
    book.step(at=plant.now, outcomes=[raised_meanwhile(first, "defect")])
    where = ["--book", str(book.path)]
    assert main(["alert", "list", *where]) == 0
    assert [line.rpartition("; ")[2] for line in capsys.readouterr().out.splitlines()] == [
        "at the same time: 1",
        "at the same time: 2",
    ]
    assert main(["alert", "show", "1", *where]) == 0
    assert "at the same time, with no verdict yet: 2 (defect)" in capsys.readouterr().out
    assert main(["alert", "confirm", "1", "outer_race", "--overlapping", *where]) == 0
    said = capsys.readouterr().out
    assert f"alert 1 of {PUMP}: confirmed" in said
    assert f"alert 2 of {PUMP}: confirmed" in said
    assert "the watch labels their windows outer_race" in said
    assert main(["alert", "show", "1", *where]) == 0
    assert "at the same time" not in capsys.readouterr().out
    finish(plant.watch(book))
    assert labels(plant)[30:] == ["outer_race"] * 4


def test_the_book_is_read_and_written_by_the_command_line(plant: Plant, capsys: pytest.CaptureFixture[str]) -> None:
    book = anomaly(plant)
    where = ["--book", str(book.path)]
    assert main(["alert", "list", *where]) == 0
    assert "open, " in capsys.readouterr().out
    assert main(["alert", "ack", "1", "--who", "ann", *where]) == 0
    assert main(["alert", "confirm", "1", "outer_race", "--who", "ben", *where]) == 0
    assert main(["machine", "event", PUMP, "maintenance", "--at", "1m", *where]) == 0
    capsys.readouterr()
    assert main(["alert", "show", "1", *where]) == 0
    shown = capsys.readouterr().out
    assert "acknowledged" in shown
    assert "by ann" in shown
    assert "confirmed" in shown
    assert "by ben: outer_race" in shown
    assert "limit" in shown
    assert main(["watch", "status", *where]) == 0
    assert "maintenance" in capsys.readouterr().out
    assert main(["alert", "ack", "1", *where]) == 1
    assert main(["alert", "show", "7", *where]) == 1
    assert "there is no alert 7" in capsys.readouterr().err
    assert main(["alert", "list", "--book", str(plant.directory / "none.sqlite")]) == 1


class NamesBalls:
    """A classifier that names a fault in whatever it hears."""

    name, mark = "bearings", "1"

    def opinion(self, signal: NDArray[np.float64], rate_hz: float) -> Opinion:
        return Opinion(classes={"normal": 0.1, "ball": 0.9})


def test_the_status_says_what_a_model_names_at_a_speed_that_it_is_not_known_to_know(
    plant: Plant, capsys: pytest.CaptureFixture[str]
) -> None:
    book = plant.book()
    plant.hear(30)
    finish(plant.watch(book))
    plant.hear(12, shaft_hz=36.0)
    finish(plant.watch(book, models=lambda: [NamesBalls()]))
    assert main(["watch", "status", "--book", str(book.path)]) == 0
    said = capsys.readouterr().out
    assert "ball by bearings at 1.21 x speed: not counted before it has been quiet there" in said
    assert book.alerts() == []
    plant.hear(12)
    finish(plant.watch(book, models=lambda: [NamesBalls()]))
    assert [(alert.kind, alert.label) for alert in book.alerts()] == [("fault", "ball")]
    assert main(["watch", "status", "--book", str(book.path)]) == 0
    assert "not counted" not in capsys.readouterr().out


def test_a_book_of_another_schema_or_program_is_refused(tmp_path: Path) -> None:
    for name, statement in (("newer", "PRAGMA user_version = 9"), ("other", "CREATE TABLE x (y)")):
        db = sqlite3.connect(tmp_path / name)
        db.execute(statement)
        db.commit()
        db.close()
        with pytest.raises(BookError):
            Alertbook(tmp_path / name)


def test_one_machine_has_one_alert_of_a_kind_at_a_time(plant: Plant) -> None:
    book = plant.book()
    plant.hear(30)
    watch = plant.watch(book)
    for _ in range(3):
        plant.hear(5, "outer_race")
        finish(watch)
        plant.hear(2)
        finish(watch)
    assert len(book.alerts()) == 1
    plant.hear(8)
    plant.hear(5, "outer_race")
    finish(watch)
    assert [alert.state for alert in book.alerts()] == ["open", "cleared"]


def test_a_machine_that_is_not_in_the_file_is_not_judged(tmp_path: Path) -> None:
    plant = Plant(tmp_path, (PUMP, "fan-1"))
    plant.hear(3, machine="fan-1")
    book = plant.book()
    finish(plant.watch(book, machines=(MACHINE,)))
    assert book.positions() == {}
    plant.recorder.close()


def test_what_comes_after_a_verdict_is_not_kept_under_its_name(plant: Plant) -> None:
    """An alert that was dismissed and goes on may become a fault that nobody has looked at."""
    book = anomaly(plant)
    watch = plant.watch(book)
    finish(watch)
    book.decide(1, None, who="ann", at=plant.now)
    decided_at = plant.now
    plant.hear(8, "inner_race")
    plant.hear(6)
    finish(watch)
    assert labels(plant)[34:] == ["unlabelled"] * 14
    kept = list((plant.directory / "watch" / "kept" / "normal").glob("1--*.npy"))
    assert len(kept) == 4
    assert all(int(path.stem.rpartition("-")[2]) <= round(1000 * decided_at) for path in kept)


def test_kept_recordings_are_bounded(plant: Plant) -> None:
    from fedmq.watch.kept import Kept

    kept = Kept(plant.directory / "few", seconds=60.0, most_bytes=100_000)
    book = anomaly(plant)
    plant.hear(6)
    finish(plant.watch(book, kept=kept))
    sizes = [path.stat().st_size for path in (plant.directory / "few").glob("*/*.npy")]
    assert sum(sizes) <= 100_000
    assert np.load(next((plant.directory / "few").glob("*/*.npy")), allow_pickle=False).dtype == np.float32


def test_a_gateway_learns_from_what_is_kept_once_the_ring_has_gone_round(plant: Plant) -> None:
    book = anomaly(plant)
    plant.hear(6)
    watch = plant.watch(book)
    finish(watch)
    book.decide(1, "outer_race", who="ann", at=plant.now)
    finish(watch)

    def look() -> Sensors:
        return Sensors(plant.store, unix=lambda: plant.now, kept=plant.directory / "watch" / "kept")

    classes = ("normal", "outer_race")
    both = look()
    assert both.signal_samples()["outer_race"] == 4 * 12_000
    in_store = both.load(WINDOWING, classes, "normal")
    db = sqlite3.connect(plant.store)
    db.executescript("DELETE FROM samples WHERE batch <= 34; DELETE FROM batches WHERE id <= 34;")
    db.close()
    later = look()
    assert later.signal_samples()["outer_race"] == 4 * 12_000
    from_kept = later.load(WINDOWING, classes, "normal")
    assert len(in_store.train_x) == len(from_kept.train_x) > 10
    np.testing.assert_allclose(from_kept.train_x, in_store.train_x, atol=1e-5)


def test_a_verdict_names_a_fault_that_is_a_class(plant: Plant) -> None:
    book = anomaly(plant)
    book.take_only(("outer_race", "ball"))
    with pytest.raises(BookError, match=r"expected one of outer_race, ball.*`other: worn out` says that it was none"):
        book.decide(1, "worn out", who="ann", at=plant.now)
    with pytest.raises(BookError, match="expected what it was behind `other:`"):
        book.decide(1, "other:", who="ann", at=plant.now)
    assert book.orders() == []
    assert [one.verdict for one in book.decide(1, "ball", who="ann", at=plant.now)] == ["ball"]


def test_two_watches_do_not_work_in_one_folder(plant: Plant) -> None:
    plant.hear(1)
    (plant.directory / "machines.toml").write_text(f'[[machine]]\nname = "{PUMP}"\n')
    settings = WatchSettings(
        store=plant.store,
        machines=plant.directory / "machines.toml",
        state_dir=plant.directory / "watch",
        window_seconds=1.0,
    )
    first = build_watch(settings)
    with pytest.raises(BookError, match="another watch works in"):
        build_watch(settings)
    assert first.turn()


def test_a_verdict_that_the_store_does_not_take_waits(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    book = anomaly(plant)
    watch = plant.watch(book)
    book.decide(1, "outer_race", who="ann", at=plant.now)
    with monkeypatch.context() as full:
        full.setattr("fedmq_firmware_bridge.store.MAX_LABELS", 0)
        finish(watch)
    assert [order.detail for order in book.orders()] == ["outer_race"]
    finish(watch)
    assert book.orders() == []
    assert labels(plant)[30:] == ["outer_race"] * 4


@pytest.mark.parametrize("told", [False, True])
def test_a_fault_that_is_there_from_the_first_window_is_told_by_the_fleets_limits_alone(
    tmp_path: Path, told: bool
) -> None:
    elsewhere = Plant(tmp_path / "elsewhere")
    elsewhere.hear(40)
    other = elsewhere.book()
    finish(elsewhere.watch(other))
    normals = learnt(other.normals(PUMP))
    assert {one.measure for one in normals} >= {"acceleration", "kurtosis"}
    plant = Plant(tmp_path / "here")
    plant.hear(12, "outer_race")
    book = plant.book()
    if told:
        book.keep_fleet_limits(
            [
                {
                    "kind": kind,
                    "band": one.band,
                    "measure": one.measure,
                    "quantiles": [one.summary.quantile(share) for share in QUANTILES],
                }
                for one in normals
                for kind in ("motor", "something else")
            ]
        )
    finish(plant.watch(book))
    alerts = book.alerts()
    if not told:
        assert alerts == []
        return
    (alert,) = alerts
    assert alert.kind == "anomaly"
    assert {one.by for one in alert.evidence} == {"fleet"}
    assert "the fleet's limit" in evidence_line(alert.evidence[0])
    other.close()
    book.close()


def test_what_the_book_has_of_the_fleet_and_cannot_be_read_changes_nothing(plant: Plant) -> None:
    book = plant.book()
    book.keep_fleet_limits([{"kind": "motor", "quantiles": "none"}])
    plant.hear(6)
    finish(plant.watch(book))
    assert book.alerts() == []


def test_at_the_coordinator_an_alert_is_named_by_gateway_and_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.save_watch(a_watch("g0"))
    ledger.save_alert(an_alert("g0", 12))
    ledger.save_alert(an_alert("g0", 11, state="confirmed", verdict="ball"))
    ledger.commit()
    ledger.close()
    at = ("--state", str(tmp_path))
    assert main(["alert", "list", *at]) == 0
    listed = capsys.readouterr().out
    assert "g0/12" in listed
    assert "g0/11" not in listed
    assert main(["alert", "list", "--all", *at]) == 0
    assert "g0/11" in capsys.readouterr().out
    assert main(["alert", "show", "g0/12", *at]) == 0
    assert "velocity 3.4 mm/s at a limit of 2.8, typically 1.1" in capsys.readouterr().out
    assert main(["alert", "confirm", "g0/12", "ball", "--who", "bob", *at]) == 0
    assert "g0 carries it out once it hears of it" in capsys.readouterr().err
    assert main(["alert", "ack", "12", *at]) != 0
    assert "expected an alert as GATEWAY/NUMBER" in capsys.readouterr().err
    assert main(["alert", "ack", "g0/12"]) != 0
    with closing(Ledger(tmp_path / "ledger.sqlite")) as again:
        (order,) = again.orders_of_alert("g0", 12)
    assert (order.verb, order.done) == ("confirm", None)


def test_at_the_coordinator_one_verdict_is_ordered_of_all_that_overlap(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(Ledger(tmp_path / "ledger.sqlite")) as ledger:
        ledger.save_watch(a_watch("g0"))
        for number, more in {11: {"to_at": 1.0}, 12: {}, 13: {"kind": "defect"}, 14: {"machine": "fan-2"}}.items():
            ledger.save_alert(an_alert("g0", number, **{"from_at": 100.0 * (number != 11), "to_at": None} | more))
        ledger.commit()
    at = ("--state", str(tmp_path))
    assert main(["alert", "list", *at]) == 0
    assert [line.partition("; ")[2] for line in capsys.readouterr().out.splitlines()] == [
        "",
        "at the same time: g0/12",
        "at the same time: g0/13",
        "",
    ]
    assert main(["alert", "confirm", "g0/12", "--other", "unbalance", "--overlapping", *at]) == 0
    assert "alert g0/13: ordered" in capsys.readouterr().err
    with closing(Ledger(tmp_path / "ledger.sqlite")) as again:
        assert [order.task for order in again.alert_orders_waiting()] == ["g0/12", "g0/13"]
        assert {AlertWish.read(order).fault for order in again.alert_orders_waiting()} == {"other: unbalance"}
