"""What `fedmq doctor` does with its command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

from fedmq.doctor.findings import Finding, Status, as_json, as_text, failed
from fedmq.doctor.roles import check_broker, check_coordinator, check_gateway

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """1 where something has failed."""
    if arguments.config is None and not arguments.overrides:
        raise ValueError(f"expected settings to check: --config {arguments.role}.toml")
    findings = []
    try:
        for finding in _checks(arguments, datetime.now(UTC)):
            findings.append(finding)
    except OSError as error:
        # What was found until then is worth telling all the same.
        findings.append(
            failed("all the rest", f"was not checked: {error}", "run this as root or as the program's user")
        )
    if arguments.json:
        print(as_json(arguments.role, findings))
    else:
        print(as_text(findings))
    sys.stdout.flush()
    return 1 if any(finding.status is Status.FAIL for finding in findings) else 0


def _checks(arguments: argparse.Namespace, now: datetime) -> Iterator[Finding]:
    config, overrides, offline = arguments.config, arguments.overrides, arguments.offline
    if arguments.role == "broker":
        return check_broker(
            config,
            overrides,
            directory=arguments.directory,
            identities=arguments.identity,
            offline=offline,
            now=now,
            site=arguments.site,
        )
    check = check_gateway if arguments.role == "gateway" else check_coordinator
    return check(config, overrides, identity=arguments.identity, offline=offline, now=now)
