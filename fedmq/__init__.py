"""The `fedmq` command and the demo: joins all the other packages, and is imported by none."""

from importlib.metadata import version

__version__ = version("fedmq")
