"""The `fedmq` command, the demo, and `fedmq.run` for notebooks: joins all other packages, and is imported by none."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedmq.authoring.building import build
    from fedmq.notebook import run

__all__ = ["__version__", "build", "run"]

__version__ = version("fedmq")


def __getattr__(name: str) -> Any:
    """`run` and `build` are loaded when asked for: a gateway's process must not carry a workstation's parts."""
    if name == "run":
        from fedmq.notebook import run

        return run
    if name == "build":
        from fedmq.authoring.building import build

        return build
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
