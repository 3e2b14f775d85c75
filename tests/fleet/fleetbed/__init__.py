"""A bed of booted test machines, and Ansible beside them.

    with Bed([Spec("hub"), Spec("gw1"), Spec("gw2")]) as bed:
        result = bed.playbook("site.yml", inventory=bed.inventory({"gateways": ["gw1", "gw2"]}))
        bed.machine("gw1").set_battery(15)

`python -m fleetbed hub gw1 gw2` boots one to look around in.
"""

from fleetbed.bed import Bed, Result, Spec, why_not
from fleetbed.machine import Machine, MachineError, Ran

__all__ = ["Bed", "Machine", "MachineError", "Ran", "Result", "Spec", "why_not"]
