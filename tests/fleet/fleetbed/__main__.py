"""`python -m fleetbed NAME...`: a bed to look around in, until Enter or Ctrl-C."""

from __future__ import annotations

import signal
import sys

from fleetbed import Bed, Spec, why_not


def main() -> int:
    reason = why_not()
    if reason or not sys.argv[1:]:
        print(reason or "usage: python -m fleetbed NAME... (each may be NAME:NETWORK,NETWORK)", file=sys.stderr)
        return 1
    specs = []
    for word in sys.argv[1:]:
        name, _, networks = word.partition(":")
        specs.append(Spec(name, tuple(networks.split(",")) if networks else ("plant",)))
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    with Bed(specs) as bed:
        inventory = bed.inventory({"machines": [machine.name for machine in bed.machines]})
        for machine in bed.machines:
            print(f"{machine.name}  {machine.ip}")
        print(f"ip netns exec {bed.control} ssh -i {bed.key} admin@{bed.machines[0].ip}")
        print(f"ip netns exec {bed.control} ansible all -i {inventory} -m ping")
        try:
            input("Enter ends it. ")
        except (EOFError, KeyboardInterrupt):
            print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
