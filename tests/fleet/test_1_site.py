"""1. From bare machines to a round: a server with broker and coordinator, three gateways, one playbook."""

from __future__ import annotations

import pytest
from fleetbed import Bed
from fleetbed.plant import Plant

MACHINES = ["hub", "gw1", "gw2", "gw3"]


@pytest.fixture(scope="module")
def plant(bed: Bed) -> Plant:
    plant = Plant(bed, gateways=["gw1", "gw2", "gw3"])
    plant.lay_out_recordings()
    plant.build()
    return plant


def test_site_yml_sets_up_all_of_it_and_its_second_run_changes_nothing(plant: Plant) -> None:
    first = plant.play("site.yml")
    assert {"hub", "gw1", "gw2", "gw3"} <= set(first.changed)
    second = plant.play("site.yml")
    assert second.tasks_that_changed() == []
    assert second.changed == {}


def test_a_round_ends_with_three_answers_and_its_bytes_are_in_the_report(plant: Plant) -> None:
    round_ = plant.wait_round(accepted=3)
    assert round_["outcome"] == "applied"
    assert (round_["drawn"], round_["answered"]) == (3, 3)
    assert round_["payload"]["up"] > 0
    # What the sockets took is told by gateways' next messages.
    plant.wait_round(after=round_["id"])
    report = plant.report()
    assert {line["name"] for line in report["gateways"] if line["wire"]["up"] > 0} == {"gw1", "gw2", "gw3"}
    assert next(one for one in report["rounds"] if one["id"] == round_["id"])["wire"]["up"] > round_["payload"]["up"]


def test_nobody_gets_in_without_a_certificate_and_messages_are_sealed(plant: Plant) -> None:
    """That it is mutual: the broker asks, and who has none is not let in."""
    gateway = plant.bed.machine("gw1")
    port = plant.variables.get("fedmq_broker_port", 8883)
    shake = (
        "import socket, ssl, sys\n"
        "context = ssl.create_default_context(cafile='/etc/fedmq/identity/ca.crt')\n"
        "with context.wrap_socket(socket.create_connection(('hub', {port}), 10), server_hostname='hub') as link:\n"
        "    link.sendall(bytes.fromhex('100d00044d5154540402003c000161'))\n"
        "    print(link.recv(4))\n"
    )
    refused = gateway.run(["python3", "-c", shake.replace("{port}", str(port))], check=False)
    assert refused.code != 0
    assert "CERTIFICATE_REQUIRED" in refused.err
    listening = plant.hub.run("ss -Hltnp").out
    assert ":1883 " not in listening, "no door beside it that speaks no TLS"


def test_units_are_such_as_a_reviewer_would_sign(plant: Plant) -> None:
    for machine, unit in (("gw1", "fedmq-gateway"), ("hub", "fedmq-coordinator"), ("hub", "fedmq-broker-guard")):
        run = plant.bed.machine(machine).run
        show = dict(
            line.split("=", 1)
            for line in run(
                f"systemctl show {unit} -p User,Type,WatchdogUSec,MemoryMax,NRestarts,ActiveState"
            ).out.split()
        )
        assert show["ActiveState"] == "active", (machine, unit, show)
        assert show["User"] not in ("", "root"), (machine, unit, show)
        assert show["NRestarts"] == "0", (machine, unit, show)
        assert show["WatchdogUSec"] not in ("0", "infinity"), (machine, unit, show)
        assert show["MemoryMax"] != "infinity", (machine, unit, show)
        scored = run(f"systemd-analyze security --no-pager {unit}.service").out.strip().splitlines()[-1]
        exposure = float(scored.partition(":")[2].split()[0])
        assert exposure <= 2.5, (machine, unit, scored)


def test_a_gateway_whose_power_is_cut_is_back_by_itself(plant: Plant) -> None:
    gateway = plant.bed.machine("gw2")
    gateway.power_cut()
    gateway.boot()
    plant.wait_round(accepted=3)
