"""How much of one gateway the coordinator reads, and sends because it asks. Pure: the time comes in.

A token bucket for each gateway and kind: it fills at a steady rate up to a burst, and what finds it empty is not taken.
What is served is known only once it is made, so that a bucket of bytes may go below nothing by the last thing served;
the next one waits until that is made up for. Over any time a gateway gets at most the burst, the rate times that time,
and one thing more.

Refuses to know messages, topics and what becomes of what is not taken. Memory: a bucket that is full again is the same
as none. Beyond MOST_NAMES gateways the one that was heard the longest ago is forgotten, which can only be kind to it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

__all__ = ["MOST_NAMES", "Bucket", "Rates", "Refused"]

MOST_NAMES = 20_000

JUNK_COST = 10
"""Messages that one counts for which is no message of the protocol."""

SAY_AGAIN_SECONDS = 60.0
"""Between two words in the log on one gateway."""


@dataclass
class Bucket:
    """`level` is what is left of `burst` at the time `at`."""

    rate: float
    """Per second."""
    burst: float
    level: float
    at: float

    def fill(self, now: float) -> None:
        """A clock that was set back fills nothing, and takes nothing away."""
        self.level = min(self.burst, self.level + max(0.0, now - self.at) * self.rate)
        self.at = now

    def take(self, cost: float, now: float) -> bool:
        """Whether there is enough for it; it is then gone."""
        self.fill(now)
        if self.level < cost:
            return False
        self.level -= cost
        return True


@dataclass(frozen=True)
class Refused:
    """What was not taken of gateways since the last look."""

    messages: int
    bytes: int


class _Gateway:
    def __init__(self) -> None:
        self.messages: Bucket | None = None
        self.births: Bucket | None = None
        self.questions: Bucket | None = None
        self.served: Bucket | None = None
        self.said_at: float | None = None
        self.unsaid = 0
        """Refused since the log had a word on it."""


class Rates:
    """Of all gateways of a federation.

    `serve_at_once` is how many bytes a gateway may be sent at once, which follows from what there is to fetch.
    """

    def __init__(
        self,
        *,
        messages_per_second: float,
        messages_burst: int,
        births_per_minute: float,
        served_bytes_per_minute: float,
        most_names: int = MOST_NAMES,
    ) -> None:
        self._messages = (messages_per_second, float(messages_burst))
        self._asked = (births_per_minute / 60.0, births_per_minute)
        self._served_rate = served_bytes_per_minute / 60.0
        self.serve_at_once = served_bytes_per_minute
        self._most_names = most_names
        self._gateways: OrderedDict[str, _Gateway] = OrderedDict()
        self._refused: dict[str, Refused] = {}

    def __len__(self) -> int:
        return len(self._gateways)

    def reads(self, name: str, now: float) -> bool:
        """Whether one more message of it is read."""
        gateway = self._of(name)
        if gateway.messages is None:
            gateway.messages = _full(self._messages, now)
        return gateway.messages.take(1.0, now)

    def blame(self, name: str, now: float) -> None:
        """What was read was junk: it counts as several, for each is worth a line in the log."""
        bucket = self._of(name).messages
        if bucket is not None:
            bucket.fill(now)
            bucket.level -= JUNK_COST - 1

    def welcomes(self, name: str, now: float) -> bool:
        """Whether one more birth of it is answered."""
        gateway = self._of(name)
        if gateway.births is None:
            gateway.births = _full(self._asked, now)
        return gateway.births.take(1.0, now)

    def hears_question(self, name: str, now: float) -> bool:
        """Whether one more question for a model is answered, which everybody hears."""
        gateway = self._of(name)
        if gateway.questions is None:
            gateway.questions = _full(self._asked, now)
        return self.serves(name, now) and gateway.questions.take(1.0, now)

    def serves(self, name: str, now: float) -> bool:
        """Whether anything more is made for it: `charge` says afterwards what that came to."""
        bucket = self._of(name).served
        if bucket is None:
            return True
        bucket.burst = self.serve_at_once
        bucket.fill(now)
        return bucket.level > 0

    def charge(self, name: str, size: int, now: float) -> None:
        """So many bytes go out because it asked."""
        gateway = self._of(name)
        if gateway.served is None:
            gateway.served = _full((self._served_rate, self.serve_at_once), now)
        gateway.served.fill(now)
        gateway.served.level -= size

    def refuse(self, name: str, channel: str, size: int, now: float) -> int | None:
        """Count what was not taken. How many there were since the last word on this gateway where it is time for one
        in the log, else None."""
        before = self._refused.get(channel, Refused(0, 0))
        self._refused[channel] = Refused(before.messages + 1, before.bytes + size)
        gateway = self._of(name)
        gateway.unsaid += 1
        if gateway.said_at is not None and 0 <= now - gateway.said_at < SAY_AGAIN_SECONDS:
            return None
        gateway.said_at = now
        said, gateway.unsaid = gateway.unsaid, 0
        return said

    def take_refused(self) -> dict[str, Refused]:
        """By channel; counting begins anew."""
        taken, self._refused = self._refused, {}
        return taken

    def _of(self, name: str) -> _Gateway:
        gateway = self._gateways.get(name)
        if gateway is None:
            gateway = self._gateways[name] = _Gateway()
            if len(self._gateways) > self._most_names:
                self._gateways.popitem(last=False)
        else:
            self._gateways.move_to_end(name)
        return gateway


def _full(of: tuple[float, float], now: float) -> Bucket:
    rate, burst = of
    return Bucket(rate=rate, burst=burst, level=burst, at=now)
