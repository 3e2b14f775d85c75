"""Benches that come with the `fedmq` command: `fedmq bench codec`."""
