"""A page of metrics for each program that runs, where its settings ask for one. Each function imports what it needs."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fedmq_coordinator.service import Coordinator
    from fedmq_coordinator.settings import CoordinatorSettings
    from fedmq_edge_node.service import Gateway
    from fedmq_edge_node.settings import GatewaySettings
    from fedmq_firmware_bridge.service import Bridge
    from fedmq_protocol.observing import MetricsSettings

    from fedmq.bridge.settings import BridgeSettings
    from fedmq.metrics.families import Sample
    from fedmq.watch.settings import WatchSettings

__all__ = ["check", "of_bridge", "of_coordinator", "of_gateway", "of_watch"]


def check(settings: MetricsSettings) -> None:
    """Before anything is begun: raises MissingExtraError where a page is asked for and cannot be made."""
    if settings.listen is not None:
        from fedmq.metrics.serving import require

        require()


def of_coordinator(settings: CoordinatorSettings, coordinator: Coordinator) -> AbstractContextManager[object]:
    wanted = settings.metrics
    if wanted.listen is None:
        return nullcontext()
    from fedmq.metrics.gathering import FromLedger
    from fedmq.metrics.serving import Endpoint

    return Endpoint(wanted.listen, FromLedger(settings.state_dir, wanted.gateways_most, lambda: coordinator.connected))


def of_gateway(settings: GatewaySettings, gateway: Gateway) -> AbstractContextManager[object]:
    if settings.metrics.listen is None:
        return nullcontext()
    from fedmq.metrics.gateway import samples
    from fedmq.metrics.serving import Endpoint
    from fedmq.programs import vitals_reader

    # Its own: what the gateway has measured between two rounds is none of ours.
    reader = vitals_reader(settings)

    def make() -> Iterable[Sample]:
        return samples(gateway.figures(), reader.read(), settings.gates, datetime.now())

    return Endpoint(settings.metrics.listen, make)


def of_bridge(settings: BridgeSettings, bridge: Bridge) -> AbstractContextManager[object]:
    if settings.metrics.listen is None:
        return nullcontext()
    from fedmq_firmware_bridge.store import Store

    from fedmq.bridge.showing import gather
    from fedmq.metrics.bridge import samples
    from fedmq.metrics.serving import Endpoint

    store = Store(settings.store)

    def make() -> Iterable[Sample]:
        return samples(gather(bridge.reports(), store.sample_bytes(), time.time()))

    return Endpoint(settings.metrics.listen, make)


def of_watch(settings: WatchSettings) -> AbstractContextManager[object]:
    if settings.metrics.listen is None:
        return nullcontext()
    from fedmq.metrics.serving import Endpoint
    from fedmq.watch.showing import from_book

    return Endpoint(settings.metrics.listen, lambda: from_book(settings.book))
