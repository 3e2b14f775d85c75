"""The bed itself: what it promises to the stories must hold, or they would show nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fleetbed import Bed

MACHINES = ["one", "two"]
ANSIBLE = Path(sys.executable).parent / "ansible"


def test_a_machine_runs_systemd_to_the_end_and_has_its_own_name(bed: Bed) -> None:
    one = bed.machine("one")
    assert one.run("cat /proc/1/comm").out.strip() == "systemd"
    assert one.run("uname -n").out.strip() == "one"
    assert one.run("systemctl --failed --no-legend").out.strip() == ""


def test_units_limits_are_the_kernels(bed: Bed) -> None:
    one = bed.machine("one")
    hog = "systemd-run --quiet --wait --pipe --property=MemoryMax={} python3 -c 'x = bytearray(200 << 20)'"
    assert one.run(hog.format("300M"), check=False).code == 0
    assert one.run(hog.format("50M"), check=False).code != 0
    spin = "import time; end = time.monotonic() + 3\nwhile time.monotonic() < end: pass\nprint(time.process_time())"
    run = "systemd-run --quiet --wait --pipe --property=CPUQuota=20%"
    used = float(one.run([*run.split(), "python3", "-c", spin]).out)
    assert used < 1.5, f"3 s at 20 % of a CPU are 0.6 s of it, and it got {used}"


def test_sensors_are_edited_live(bed: Bed) -> None:
    one, two = bed.machine("one"), bed.machine("two")
    capacity = "cat /sys/class/power_supply/BAT0/capacity"
    one.set_battery(15)
    assert (one.run(capacity).out, two.run(capacity).out) == ("15\n", "100\n")
    one.set_temperature(81.5)
    assert one.run("cat /sys/class/thermal/thermal_zone0/temp").out == "81500\n"


def test_a_cable_that_is_pulled_cuts_this_machine_alone(bed: Bed) -> None:
    one, two = bed.machine("one"), bed.machine("two")
    inventory = bed.inventory({"machines": ["one", "two"]})
    ping = [ANSIBLE, "machines", "-i", str(inventory), "-m", "ping", "-T", "5"]
    one.link(False)
    assert one.run("cat /sys/class/net/eth0/carrier").out.strip() == "0"
    said = bed.control_run(*ping, check=False)
    assert "one | UNREACHABLE" in said
    assert "two | SUCCESS" in said
    one.link(True)
    one.wait("its link back", lambda: one.run("cat /sys/class/net/eth0/carrier").out.strip() == "1")
    assert "one | SUCCESS" in bed.control_run(*ping)
    assert two.is_on


def test_a_power_cut_keeps_disk_and_journal_and_nothing_else(bed: Bed) -> None:
    two = bed.machine("two")
    two.run("touch /var/lib/kept /run/lost; logger before-the-cut; journalctl --sync")
    two.power_cut()
    assert not two.is_on
    assert "before-the-cut" in two.journal()
    two.boot()
    assert two.run("ls /var/lib/kept /run/lost", check=False).out == "/var/lib/kept\n"


def test_a_playbook_is_counted_by_host(bed: Bed, tmp_path: Path) -> None:
    book = tmp_path / "book.yml"
    book.write_text(
        """
- hosts: machines
  gather_facts: false
  tasks:
    - name: A file on one
      ansible.builtin.copy: {content: x, dest: /root/x, mode: "0600"}
      when: inventory_hostname == "one"
"""
    )
    inventory = bed.inventory({"machines": ["one", "two"]})
    first = bed.playbook(book, inventory=inventory)
    assert first.changed == {"one": 1}
    assert first.tasks_that_changed() == ["one: A file on one"]
    assert bed.playbook(book, inventory=inventory).changed == {}


def test_what_a_killed_run_left_is_gone_with_the_next() -> None:
    code = (
        "import time; from fleetbed import Bed, Spec; bed = Bed([Spec('x', ('plant', 'north'))], name='kill');"
        " bed.__enter__(); print('up', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent, stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"up\n"
        run.kill()
    assert traces() != ([], [], [])
    with Bed([], name="kill"):
        pass
    assert traces() == ([], [], [])


def traces() -> tuple[list[str], list[str], list[str]]:
    """Namespaces, mounts and processes of the bed named "kill"."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    mounts = Path("/proc/mounts").read_text()
    running = subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True, check=True).stdout
    return (
        [line for line in listed.splitlines() if line.startswith("fleet-kill")],
        [line for line in mounts.splitlines() if "/bed-kill/" in line],
        [line for line in running.splitlines() if "systemd-nspawn" in line and "/bed-kill/" in line],
    )
