"""The serving engine: one model, and one thread that decodes requests with continuous batching."""

import logging
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from typing import Final

import torch

from dlm.host import check
from dlm.models.model import Model
from dlm.options import integer
from dlm.prompt_cache import PromptCache
from dlm.serving.group import Group, Laid, Line, Waiter
from dlm.serving.work import Busy, Event, Failed, Request, Tell

LOG: Final = logging.getLogger("dlm.serving")
GROUPS: Final = 16
"""Most groups that take turns: each has its own recordings, and torch has few streams for them."""
OVERTAKING: Final = 64
"""Most rows that overtake a row waiting for a group, and most rows considered behind it."""


class Engine:
    """Decodes requests in a thread of its own until it is closed.

    Rows wait in the order of their requests and are decoded as soon as there is room. Rows that
    agree on how they are decoded form a group and share forward passes, whenever they arrived.
    Groups take turns. A row that would need one group too many waits until a group ends; meanwhile,
    some of the rows behind it may join existing groups. A row's result is what `dlm.generate` gives
    for it alone. The engine ends if an error leaves the GPU, or a process that has a part of the
    model, unusable.

    Args:
        model: the model, from `dlm.load`.
        batch_size: most rows decoded at a time.
        queue_size: most rows that wait.
        prompt_cache: a prompt cache of the model. Rows that are decoded with a KV cache and without
            guidance reuse what it has, and store their own in it.

    Raises:
        ValueError: a size is not an int or below 1, or the prompt cache is of another model.
    """

    def __init__(
        self,
        model: Model,
        *,
        batch_size: int = 16,
        queue_size: int = 256,
        prompt_cache: PromptCache | None = None,
    ) -> None:
        if prompt_cache is not None:
            PromptCache.checked(prompt_cache, model)
        self.prompt_cache = prompt_cache
        self.model = model
        self.batch_size = integer("batch_size", batch_size, least=1)
        self.queue_size = integer("queue_size", queue_size, least=1)
        self.waiting: deque[Waiter] = deque()
        self.groups: list[Group] = []
        self.begun = 0  # groups started so far
        self.given_up: list[tuple[int, int | None]] = []  # tickets and rows
        self.numbers = count(1)
        self.news = threading.Condition()  # guards everything but the groups
        self.running = True
        self.thread = threading.Thread(target=self.run, name="dlm engine", daemon=True)
        self.thread.start()

    def submit(self, request: Request, tell: Tell) -> int:
        """Queue the rows of a request; returns a ticket to cancel them with.

        Args:
            request: what to decode.
            tell: called with each event, in the engine's thread; must not block.

        Raises:
            Busy: the queue has no room for the rows.
            RuntimeError: the engine is closed.
            ValueError: there are more rows than may ever wait.
        """
        rows = len(request.rows)
        if rows > self.queue_size:
            raise ValueError(f"a request must hold at most {self.queue_size} rows, got {rows}")
        with self.news:
            if not self.running:
                raise RuntimeError("the engine is closed")
            if len(self.waiting) + rows > self.queue_size:
                raise Busy(
                    f"{len(self.waiting)} rows wait and {rows} more do not fit the "
                    f"{self.queue_size} that may: ask again later"
                )
            ticket = next(self.numbers)
            for row in range(rows):
                name = next(self.numbers)
                line = Line.of(self.model, name, ticket, row, request, tell)
                self.waiting.append(Waiter(line))
            self.news.notify()
            return ticket

    def cancel(self, ticket: int, row: int | None = None) -> None:
        """Cancel one row of a request or all rows: this forward pass is the last to report them."""
        with self.news:
            self.given_up.append((ticket, row))
            self.news.notify()

    @property
    def alive(self) -> int:
        """Number of engines that run: 1 or 0."""
        return int(self.running)

    def kept(self, prompt: Sequence[int]) -> int:
        """Tokens of a prompt that the prompt cache holds at present."""
        return 0 if self.prompt_cache is None else self.prompt_cache.known(prompt)

    def load(self) -> tuple[int, int]:
        """Rows being decoded, and rows that wait."""
        with self.news:
            return sum(len(group.lines) for group in list(self.groups)), len(self.waiting)

    def stop(self) -> None:
        """Fail unfinished requests after the current forward pass, and end."""
        with self.news:
            self.running = False
            self.news.notify()

    def close(self) -> None:
        """Stop, and wait for the thread to end."""
        self.stop()
        self.thread.join()

    def run(self) -> None:
        """Decode requests until the engine is stopped."""
        error: Exception = RuntimeError("the engine is closed")
        if self.model.device.type == "cuda":
            torch.cuda.set_device(self.model.device)  # for this thread
        try:
            with torch.inference_mode():
                while self.busy():
                    self.leave()
                    self.admit()
                    for group in list(self.groups):
                        self.advance(group)
                        self.leave()  # a failed request may have rows in other groups
        except BaseException as broken:
            error = RuntimeError(f"the engine broke down: {broken!r}")
            raise
        finally:
            with torch.inference_mode():  # rows store what they have in the prompt cache
                self.end(error)

    def busy(self) -> bool:
        """Wait for something to do; returns whether to continue."""
        with self.news:
            while self.running and not (self.waiting or self.groups or self.given_up):
                self.news.wait()
            return self.running

    def leave(self) -> None:
        """Drop the rows that were cancelled."""
        with self.news:
            given_up, self.given_up = self.given_up, []
            for ticket, row in given_up:
                kept = [each for each in self.waiting if not each.line.is_of(ticket, row)]
                self.waiting = deque(kept)
        for ticket, row in given_up:
            for group in list(self.groups):
                for line in [each for each in group.lines.values() if each.is_of(ticket, row)]:
                    group.drop(line)
                if not group.lines:
                    self.remove(group)

    def admit(self) -> None:
        """Let rows join while there is room, those first that have waited longest.

        If a row has to wait for a new group, rows behind it may join existing groups. It still gets
        the next new group, because no row behind it can start one before.
        """
        place = 0  # in the queue; the rows before it wait for groups
        while sum(len(group.lines) for group in self.groups) < self.batch_size:
            waiter = self.next(place)
            if waiter is None:
                return
            try:
                placed = self.place(waiter)
            except Exception as error:
                self.fail([waiter.line], error.with_traceback(None))
                self.leave()
                self.check()
                place = 0  # other rows may have left, and a group with them
                continue
            if placed:
                self.passed(place)
            else:
                place += 1

    def next(self, place: int) -> Waiter | None:
        """The row that waits at a place; None if there is none, or it may not overtake."""
        with self.news:
            if place >= len(self.waiting):
                return None
            stays = place > 0 and self.waiting[0].passed >= OVERTAKING
            return None if stays or place > OVERTAKING else self.waiting[place]

    def passed(self, place: int) -> None:
        """Take the row at a place out of the queue; it overtakes those before it."""
        with self.news:
            for number in range(place):
                self.waiting[number].passed += 1
            del self.waiting[place]

    def place(self, waiter: Waiter) -> bool:
        """Add a row to a group, or start a group with it; returns whether there was room."""
        laid = waiter.laid = waiter.laid or Laid.of(self.model, waiter.line)
        new = self.begun - waiter.met  # the older groups have refused it
        for group in self.groups[max(0, len(self.groups) - new) :]:
            if group.accepts(laid):
                group.add(laid)
                return True
        waiter.met = self.begun
        if len(self.groups) == GROUPS:
            return False
        self.groups.append(Group(laid, self.say, self.prompt_cache))
        self.begun += 1
        return True

    def advance(self, group: Group) -> None:
        """Run one forward pass of a group; a group that fails or has no rows left is removed."""
        if group not in self.groups:
            return
        try:
            group.advance()
        except Exception as error:
            LOG.exception("a forward failed")
            # No request is to blame, whatever the type. A new error holds no frame with a cache.
            told = RuntimeError(f"{type(error).__name__}: {error}")
            self.fail([*group.lines.values(), *group.moved], told)
            group.lines.clear()
            group.moved.clear()
            self.check()
        for line in group.moved:
            self.go_on(Waiter(line))
        if not group.lines:
            self.remove(group)

    def go_on(self, waiter: Waiter) -> None:
        """Continue a row whose length has changed, ahead of all rows that wait."""
        try:
            placed = self.place(waiter)
        except Exception as error:
            self.fail([waiter.line], error.with_traceback(None))
            self.check()
            return
        if not placed:
            with self.news:
                self.waiting.appendleft(waiter)

    def remove(self, group: Group) -> None:
        """Remove a group."""
        self.groups.remove(group)
        try:
            group.close()
        except Exception:  # while it stores what it has in the prompt cache
            LOG.exception("a group was not ended well")
            self.check()

    def check(self) -> None:
        """Find out, after a failed forward pass, whether more can be run.

        Raises:
            RuntimeError: the device no longer works.
            ChildProcessError: a process that has a part of the model no longer works.
        """
        check(self.model.device)
        if self.model.leader is not None:
            self.model.leader.check()

    def say(self, line: Line, event: Event) -> None:
        """Report an event of a row; if nobody listens, its request is cancelled."""
        try:
            line.tell(event)
        except Exception:  # such as a closed event loop
            self.cancel(line.ticket)

    def fail(self, lines: Sequence[Line], error: Exception) -> None:
        """Report an error to the requests of some rows, once each, and cancel them."""
        for line in {line.ticket: line for line in lines}.values():
            self.say(line, Failed(error))
            self.cancel(line.ticket)

    def end(self, error: Exception) -> None:
        """Fail all requests that are left."""
        with self.news:
            self.running = False
            groups, self.groups = self.groups, []
            left = [each.line for each in self.waiting]
            left += [line for group in groups for line in group.lines.values()]
            self.waiting.clear()
        self.fail(left, error)
        for group in groups:
            with suppress(Exception):  # the device may no longer work
                group.close()
