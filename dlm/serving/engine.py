"""One model and one thread that decodes what is asked of it, rows joining and leaving."""

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
"""That take turns, at most: each has recordings of its own, and torch few streams to make them."""
OVERTAKING: Final = 64
"""Rows that go before one that no group takes, at most, and as many are looked at behind it."""


class Engine:
    """Decodes requests in a thread of its own, until it is closed.

    Rows wait in the order of the requests and are decoded as soon as there is room. Those that
    agree on how to be decoded share their forwards, whenever they came; the forwards of others
    take turns. A row that would need one turn too many waits until there is one less, and lets some
    of those behind it go first that share the forwards of others. What a row yields is what
    `dlm.generate` gives for it alone. A GPU, or a process of a model that is cut, that does no more
    after an error ends the engine.

    Args:
        model: what `dlm.load` gave.
        batch_size: rows decoded at a time, at most.
        queue_size: rows that wait, at most.
        prompt_cache: of the model; what rows that are decoded with a cache and without guidance
            take from and leave to others.

    Raises:
        ValueError: a size is no int, or below 1, or the prompts are those of another model.
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
        self.begun = 0  # groups so far
        self.given_up: list[tuple[int, int | None]] = []  # tickets and rows
        self.numbers = count(1)
        self.news = threading.Condition()  # guards all but the groups
        self.running = True
        self.thread = threading.Thread(target=self.run, name="dlm engine", daemon=True)
        self.thread.start()

    def submit(self, request: Request, tell: Tell) -> int:
        """Ask for the rows of a request, and be told of them; a ticket to give them up with.

        Args:
            request: what to decode.
            tell: called in the engine's thread, and not to wait.

        Raises:
            Busy: other rows wait, and there is no room for these.
            RuntimeError: the engine is closed.
            ValueError: they are more than may ever wait.
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
        """Give up a row of a request, or all of them: this forward is the last to tell of them."""
        with self.news:
            self.given_up.append((ticket, row))
            self.news.notify()

    @property
    def alive(self) -> int:
        """How many engines decode: this one, or none."""
        return int(self.running)

    def kept(self, prompt: Sequence[int]) -> int:
        """Tokens of a prompt that need not be computed, as of now."""
        return 0 if self.prompt_cache is None else self.prompt_cache.known(prompt)

    def load(self) -> tuple[int, int]:
        """Rows being decoded, and rows that wait."""
        with self.news:
            return sum(len(group.lines) for group in list(self.groups)), len(self.waiting)

    def stop(self) -> None:
        """Fail what is not done, after this forward, and end."""
        with self.news:
            self.running = False
            self.news.notify()

    def close(self) -> None:
        """Stop, and wait for the end."""
        self.stop()
        self.thread.join()

    def run(self) -> None:
        """Decode whatever comes."""
        error: Exception = RuntimeError("the engine is closed")
        if self.model.device.type == "cuda":
            torch.cuda.set_device(self.model.device)  # of this thread
        try:
            with torch.inference_mode():
                while self.busy():
                    self.leave()
                    self.admit()
                    for group in list(self.groups):
                        self.advance(group)
                        self.leave()  # a request that failed may have rows in others
        except BaseException as broken:
            error = RuntimeError(f"the engine broke down: {broken!r}")
            raise
        finally:
            with torch.inference_mode():  # rows leave what they have to a prompt cache
                self.end(error)

    def busy(self) -> bool:
        """Wait for something to do; whether to go on."""
        with self.news:
            while self.running and not (self.waiting or self.groups or self.given_up):
                self.news.wait()
            return self.running

    def leave(self) -> None:
        """Let go of what was given up."""
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
        """Let those join that waited longest, as far as there is room.

        Where one of them has to wait for a group of its own, those behind it may join the groups
        that there are. It is the first to get the next one, as no other can begin before.
        """
        place = 0  # in the queue; those in front of it wait for groups
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
                place = 0  # others may have left, and a group with them
                continue
            if placed:
                self.passed(place)
            else:
                place += 1

    def next(self, place: int) -> Waiter | None:
        """Who waits at a place, if the first in the queue lets it go."""
        with self.news:
            if place >= len(self.waiting):
                return None
            stays = place > 0 and self.waiting[0].passed >= OVERTAKING
            return None if stays or place > OVERTAKING else self.waiting[place]

    def passed(self, place: int) -> None:
        """Take the one at a place out of the queue, past those in front of it."""
        with self.news:
            for number in range(place):
                self.waiting[number].passed += 1
            del self.waiting[place]

    def place(self, waiter: Waiter) -> bool:
        """Find others to decode a line with, or begin with it; whether there was room."""
        laid = waiter.laid = waiter.laid or Laid.of(self.model, waiter.line)
        new = self.begun - waiter.met  # the others have refused it
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
        """One forward of a group, which is over when it fails or has no lines left."""
        if group not in self.groups:
            return
        try:
            group.advance()
        except Exception as error:
            LOG.exception("a forward failed")
            # Nobody's fault who asked, whatever it is; and no frame that holds a cache is kept.
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
        """Decode a line further that had room, before all that wait."""
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
        """Forget a group."""
        self.groups.remove(group)
        try:
            group.close()
        except Exception:  # as it leaves what it has to others
            LOG.exception("a group was not ended well")
            self.check()

    def check(self) -> None:
        """Find out whether forwards can still be made, after one that failed.

        Raises:
            RuntimeError: the device does no more.
            ChildProcessError: a process that has a part of the model does no more.
        """
        check(self.model.device)
        if self.model.leader is not None:
            self.model.leader.check()

    def say(self, line: Line, event: Event) -> None:
        """Tell of a line; where nobody listens its request is given up."""
        try:
            line.tell(event)
        except Exception:  # such as an event loop that is closed
            self.cancel(line.ticket)

    def fail(self, lines: Sequence[Line], error: Exception) -> None:
        """Tell the requests of some lines that there is no answer, once each, and give them up."""
        for line in {line.ticket: line for line in lines}.values():
            self.say(line, Failed(error))
            self.cancel(line.ticket)

    def end(self, error: Exception) -> None:
        """Fail what is left."""
        with self.news:
            self.running = False
            groups, self.groups = self.groups, []
            left = [each.line for each in self.waiting]
            left += [line for group in groups for line in group.lines.values()]
            self.waiting.clear()
        self.fail(left, error)
        for group in groups:
            with suppress(Exception):  # of a device that does no more
                group.close()
