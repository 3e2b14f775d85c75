"""Tests that hold for the codec hold for it with and without machine code."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fedmq_compression import compiled


@pytest.fixture(scope="module", params=["numpy", "compiled"])
def either_way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs a module twice. Of module scope, because hypothesis wants the same for all examples of a test."""
    with_numba = request.param == "compiled"
    if with_numba and not compiled.enabled:
        pytest.skip("needs numba, pip install 'fedmq[fast]', and it enabled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "enabled", with_numba)
        # Whoever measures memory is not to measure a compiler.
        assert compiled.active() == with_numba
        yield
