"""Fixtures for all tests; what they do is in tests/support."""

pytest_plugins = ["broker_fixtures", "small_disk"]
