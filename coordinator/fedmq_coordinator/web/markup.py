"""Markup that escapes by itself: whatever is not `Markup` is text, in an element or in an attribute.

So a name that came from a gateway cannot become an element, wherever it is put. There is no way round it but to make a
`Markup` by hand, and only this module does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TypeAlias

__all__ = ["Child", "Markup", "columns", "page", "tag"]

_EMPTY = frozenset({"br", "hr", "img", "input", "link", "meta"})
"""Elements that have no end."""

Child: TypeAlias = "str | Markup | Iterable[Child] | None"
"""Text, elements, nothing, or several of these."""


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, /, *children: Child, **attributes: str | int | float | bool | None) -> Markup:
    """An element. `class_` and `for_` lose their underscore, others become hyphens (`aria_label`, `data_at`); True is
    an attribute without value, False and None are none."""
    said = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _EMPTY:
        return Markup(f"<{name}{said}>")
    return Markup(f"<{name}{said}>{''.join(_texts(children))}</{name}>")


def columns(shares: Sequence[float], *, even: float) -> Markup:
    """A small chart of parts of 1, a column each, and a line where they would be even. Its figures are its name."""
    scale = 24 / max(*shares, 2 * even)
    bars = [
        tag("rect", x=10 * at + 1, y=f"{24 - share * scale:.1f}", width=8, height=f"{share * scale:.1f}")
        for at, share in enumerate(shares)
    ]
    level = f"{24 - even * scale:.1f}"
    return tag(
        "svg",
        bars,
        tag("line", x1=0, x2=10 * len(shares), y1=level, y2=level),
        class_="columns",
        viewBox=f"0 0 {10 * len(shares)} 24",
        role="img",
        aria_label=", ".join(f"{100 * share:.0f} %" for share in shares),
    )


def page(root: Markup) -> str:
    return f"<!doctype html>\n{root}\n"


def _attribute(key: str, value: str | int | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value), quote=True)}"'


def _texts(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        if child is None:
            continue
        if isinstance(child, Markup):
            yield child
        elif isinstance(child, str):
            yield escape(child, quote=False)
        else:
            yield from _texts(child)
