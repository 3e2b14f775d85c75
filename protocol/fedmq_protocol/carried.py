"""What a TCP connection has cost at the IP level, as the kernel counts it: what the bill of a SIM card is made from.

Owns the layout of Linux' `struct tcp_info` (include/uapi/linux/tcp.h) and the sizes of headers. Refuses to know MQTT
and who asks. Counted are segments with their headers, handshakes, bare acknowledgements and what was sent again. Not
counted: what lies below IP, name lookups, and attempts to connect that came to nothing.
"""

from __future__ import annotations

import socket
import struct
import sys

__all__ = ["CLOSING_SEGMENTS", "carried", "parse"]

TCP_INFO = 11
"""Of linux/tcp.h; the socket module has it on Linux alone."""

_INFO = struct.Struct("=5xB122xQII56xQ")
"""Options, and from where each stands: bytes received (128), segments out and in (136), bytes sent (200)."""

_INFO_BYTES = 256
"""More than is needed: the kernel gives as much of its structure as there is room for."""

_TIMESTAMPS = 1
"""Bit of the options: each segment carries the option of RFC 7323, 12 bytes with its padding."""

_IP4, _IP6, _TCP, _TIMESTAMP = 20, 40, 20, 12
_SYN_OPTIONS = 20
"""Of each SYN: segment size, selective acknowledgements, timestamps, window scale (RFC 9293, 2018, 7323)."""

CLOSING_SEGMENTS = 4
"""FIN and ACK of either side, which come after the last look."""


def parse(info: bytes, *, ipv6: bool) -> tuple[int, int] | None:
    """What `carried` gives, from the kernel's answer; None for one of an older kernel."""
    if len(info) < _INFO.size:
        return None
    options, received, segments_out, segments_in, sent = _INFO.unpack_from(info)
    timestamp = _TIMESTAMP if options & _TIMESTAMPS else 0
    header = (_IP6 if ipv6 else _IP4) + _TCP + timestamp
    return sent + received + (segments_out + segments_in) * header + 2 * (_SYN_OPTIONS - timestamp), header


def carried(sock: socket.socket) -> tuple[int, int] | None:
    """Bytes at the IP level of a TCP connection so far, both ways together, and the headers of one of its segments.

    None where the system does not tell: before Linux 4.19, and elsewhere.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, TCP_INFO, _INFO_BYTES)
    except OSError:
        return None
    return parse(info, ipv6=sock.family == socket.AF_INET6)
