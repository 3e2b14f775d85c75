"""Why a gateway does not answer a plan with an update: the numbers that a decline carries.

The values are fixed for ever, because gateways and coordinators of different ages meet: a new reason gets a new
number, and a number is never given another meaning. 0 is no reason, so that a zeroed byte cannot pass for one.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Reason"]


class Reason(IntEnum):
    """A reason to decline. `name` stands in reports, `about` explains it to people."""

    BATTERY = 1
    MAINS = 2
    CPU = 3
    MEMORY = 4
    TEMPERATURE = 5
    LINK = 6
    METERED = 7
    DATA_BUDGET = 8
    TIME_WINDOW = 9
    SAMPLES = 10
    NO_MODEL = 11
    TASK = 12
    PENDING = 13
    ERROR = 14
    LATE = 15

    @property
    def about(self) -> str:
        return _ABOUT[self]


_ABOUT = {
    Reason.BATTERY: "the battery's charge is below the limit, or unknown where it must be known",
    Reason.MAINS: "the gateway runs on its battery and its settings ask for mains",
    Reason.CPU: "other work leaves too little of the CPU",
    Reason.MEMORY: "too little memory is free",
    Reason.TEMPERATURE: "the gateway is too hot",
    Reason.LINK: "the network link is down, or of a kind that the settings exclude",
    Reason.METERED: "the network link is metered",
    Reason.DATA_BUDGET: "the data budget of the day or of the month is used up",
    Reason.TIME_WINDOW: "the local time is outside the hours in which training is allowed",
    Reason.SAMPLES: "there are fewer training windows than the task asks for, or a sensor behind them is silent",
    Reason.NO_MODEL: "the model version that the plan builds on is not at hand",
    Reason.TASK: "this gateway cannot run the task: an unknown feature set, model or initial model",
    Reason.PENDING: "an earlier update has no verdict yet",
    Reason.ERROR: "training failed; the gateway's log has the cause",
    Reason.LATE: "the round's closing time came before training was done",
}
