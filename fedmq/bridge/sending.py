"""A model's image to one sensor, over a port that this program opens for itself."""

from __future__ import annotations

import errno
from collections.abc import Callable

from fedmq_firmware_bridge.downloads import Download, drive
from fedmq_firmware_bridge.frames import Decoder, Frame
from fedmq_firmware_bridge.port import PortError, Wire, open_wire

__all__ = ["open_alone", "send_image"]

TENTHS = 10


def open_alone(port: str, baud: int) -> Wire:
    """The port, which nobody else may have open. Raises PortError."""
    try:
        return open_wire(port, baud)
    except PortError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.EAGAIN, errno.EBUSY):
            raise PortError(
                f"{port} is busy: another program has it open, such as fedmq bridge run. Stop that while the model is "
                "sent, and start it again afterwards"
            ) from None
        raise


def send_image(
    wire: Wire, image: bytes, *, sensor: int, sequence: int, clock: Callable[[], float], show: Callable[[str], None]
) -> Download:
    """Until the download has ended, for better or worse. `show` is told each stage, and each tenth of the bytes.

    Raises OSError where the port goes.
    """
    download = Download(sensor=sensor, image=image, sequence=sequence)
    decoder = Decoder()
    shown = None

    def read(seconds: float) -> list[Frame]:
        nonlocal shown
        at = download.stage, download.received * TENTHS // len(image)
        if at != shown:
            shown = at
            show(f"{download.stage.value}: {download.received:,} of {len(image):,} bytes there")
        return decoder.feed(wire.read())

    # A zero ends what the sensor may have heard of somebody else.
    wire.write(b"\0")
    drive(download, wire.write, read, clock)
    return download
