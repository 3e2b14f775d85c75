"""The broker in memory, under the names that the tests know it by."""

from fedmq.simulate.broker import Broker as FakeBroker
from fedmq.simulate.broker import BrokerSession as FakeSession
from fedmq.simulate.broker import Published, matches

__all__ = ["FakeBroker", "FakeSession", "Published", "matches"]
