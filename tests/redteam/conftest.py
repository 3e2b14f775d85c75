"""One federation under attack for all tests, and a record of what came of each attack.

A test is marked with the attack it makes, and says where that was stopped with `outcome`. Where the environment
variable FEDMQ_REDTEAM_TABLE names a file, the table goes there as JSON; `scripts/redteam` prints it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fedmq_broker_config.run import find_mosquitto
from redteam import ATTACKS, TABLE_VARIABLE, Outcome, Stand, table_of, write_table


class _Record:
    """Collects what tests say of their attacks, by way of their reports: these also come from other processes."""

    def __init__(self) -> None:
        self._reports: dict[str, tuple[str, bool, str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        said = dict(report.user_properties)
        attack = said.get("attack")
        if not isinstance(attack, str):
            return
        before = self._reports.get(report.nodeid, (attack, True, "", ""))
        self._reports[report.nodeid] = (
            attack,
            before[1] and not report.failed,
            str(said.get("result", "")),
            str(said.get("stopped_at", "")),
        )

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        wanted = os.environ.get(TABLE_VARIABLE)
        if wanted and not hasattr(session.config, "workerinput"):
            write_table(Path(wanted), table_of(list(self._reports.values())))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "attack(name): the attack that a test makes, as the table names it")
    config.pluginmanager.register(_Record())


@pytest.fixture(autouse=True)
def _attack(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    marker = request.node.get_closest_marker("attack")
    if marker is not None:
        (name,) = marker.args
        assert name in ATTACKS, f"no attack {name!r} in the table"
        record_property("attack", name)


@pytest.fixture
def outcome(record_property: Callable[[str, object], None]) -> Outcome:
    """`outcome("broker: ACL")`: the attack was stopped there. To be said once all of it is shown."""

    def stopped(at: str, result: str = "refused") -> None:
        record_property("stopped_at", at)
        record_property("result", result)

    return stopped


@pytest.fixture(scope="session")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """The plant that all share. What would break it for others starts a plant of its own."""
    if find_mosquitto() is None:
        pytest.skip("needs Mosquitto: apt-get install mosquitto")
    with Stand(tmp_path_factory.mktemp("stand")) as stand:
        yield stand
