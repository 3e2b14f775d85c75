"""Alerts on a gateway: `fedmq watch`, `alert`, `machine` and `replay`."""
