"""A federation without a broker: the cells of a notebook, one after another (`python examples/in_a_notebook.py`).

Windows and labels come as arrays. Here they are cut from simulated bearings, of which each gateway has seen one fault
at most; put your own in their place. What you see is what the same task would come to on a fleet.
"""

# %% Windows (n, samples) and labels (n,), by gateway
from collections.abc import Iterable
from typing import Any

import numpy as np
from fedmq_coordinator.settings import TaskSettings, WindowingSettings

import fedmq
from fedmq.data import Recording
from fedmq.simulator import simulate_fleet

SAMPLES, HOP = 2048, 1024
Array = np.ndarray[Any, Any]


def cut(recordings: Iterable[Recording]) -> tuple[Array, Array]:
    windows, labels = [], []
    for one in recordings:
        signal = np.asarray(one.signal) * (one.scale or 1.0)
        windows.append(np.lib.stride_tricks.sliding_window_view(signal, SAMPLES)[::HOP])
        labels += [one.label] * len(windows[-1])
    return np.concatenate(windows), np.array(labels)


fleet = simulate_fleet(gateways=7)
datasets = {own.name: cut(own.recordings) for own in fleet.gateways}
test = cut(fleet.test or ())

# %% The task, as the coordinator would be told: 22 features of each window, and a small network
windowing = WindowingSettings(samples=SAMPLES, hop=HOP, sampling_rate_hz=fleet.sampling_rate_hz)
task = TaskSettings(name="bearings", kind="mlp", hidden=(16,), classes=fleet.classes, windowing=windowing)

# %% The federation
result = fedmq.run(task, datasets, test=test, rounds=15)
print(result)

# %% What it mistakes for what: rows are the labels, columns what the model says
truth = np.array([fleet.classes.index(label) for label in test[1]])
confusion = np.zeros((len(fleet.classes), len(fleet.classes)), dtype=int)
np.add.at(confusion, (truth, result.predict(test[0]).argmax(axis=1)), 1)
print(*fleet.classes)
print(confusion)

# %% Metrics and bytes by round, for a spreadsheet
result.to_csv("metrics.csv")
