"""Bytes from sensors to readings. `frames` is the native stream, `readings` what its frames mean in time."""
