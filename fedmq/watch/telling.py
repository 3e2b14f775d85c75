"""An output told in a thread of its own: a web or mail server that takes its time holds nobody else up.

Owns the thread. What is told, how often and when again is `outputs.deliver`'s, and what is durable `alertbook`'s: the
thread has the book open by a connection of its own, as any other process may, so that nothing is shared but the file.
A message that is under way when the watch ends may go again, as after a kill: with the same key.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from fedmq_edge_node.alertbook import Alertbook

from fedmq.watch.outputs import Output, deliver

__all__ = ["Teller"]

LOOK_SECONDS = 1.0
"""Between two looks for what is due again."""
STOP_SECONDS = 10.0


class Teller:
    """Tells one output of what the book has for it, from `start` to `stop`."""

    def __init__(
        self,
        book: Path,
        output: Output,
        *,
        unix: Callable[[], float] = time.time,
        crash_point: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.output = output
        self._path = book
        self._unix = unix
        self._crash_point = crash_point
        self._changed = threading.Condition()
        self._asked = self._done = 0
        self._stopping = False
        self._failure: Exception | None = None
        # A daemon: a server that never answers must not keep the program from ending.
        self._thread = threading.Thread(target=self._run, name=f"tell {output.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def look(self) -> int:
        """There may be something new: look soon. The look's number, for `looked`. Raises what has ended the thread."""
        with self._changed:
            if self._failure is not None:
                raise self._failure
            self._asked += 1
            self._changed.notify_all()
            return self._asked

    def looked(self, number: int) -> bool:
        """Whether all that was there at that look has been tried. Raises what has ended the thread."""
        with self._changed:
            if self._failure is not None:
                raise self._failure
            return self._done >= number

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        try:
            book = Alertbook.existing(self._path)
            try:
                while (number := self._next()) is not None:
                    deliver(book, [self.output], self._unix(), self._crash_point)
                    with self._changed:
                        self._done = number
            finally:
                book.close()
        except Exception as error:
            # The watch raises it at its next turn: an alert that nobody hears of must not pass in silence.
            with self._changed:
                self._failure = error

    def _next(self) -> int | None:
        """The number of the next look, once it is asked for or due; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._asked > self._done, LOOK_SECONDS)
            return None if self._stopping else self._asked
