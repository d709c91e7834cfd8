"""A worker: a process that holds a part of a model, and follows the leader's messages."""

import socket
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any, Final

import torch

from dlm.batch import NO_CHANGE, Change, alone
from dlm.models.model import Model
from dlm.parallel.messages import Begin, Call, End, Go, Message, Place, seen, unpack
from dlm.prompt_cache import PromptCache
from dlm.runtime import Step

HERE: Final = "127.0.0.1"
PATIENCE: Final = timedelta(minutes=30)
"""How long a process waits for others, in a forward pass and while they load their parts."""


def store_of(size: int, port: int = 0) -> Any:
    """The store through which processes find each other.

    Args:
        size: number of processes.
        port: where the leader listens; 0 in the leader itself, which listens at a free port.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    how: dict[str, Any] = {"timeout": PATIENCE, "wait_for_workers": False}
    if port:
        return TCPStore(HERE, port, size, False, **how)
    listener = socket.create_server((HERE, 0))  # TCPStore would listen at every address
    port = listener.getsockname()[1]
    return TCPStore(HERE, port, size, True, master_listen_fd=listener.detach(), **how)


def meet(place: Place, store: Any) -> None:
    """Join the process group of the model."""
    from torch import distributed

    cuda = place.device != "cpu"
    device = torch.device(place.device) if cuda else None
    if cuda:
        torch.cuda.set_device(device)
    distributed.init_process_group(
        "nccl" if cuda else "gloo",
        store=store,
        rank=place.rank,
        world_size=place.size,
        timeout=PATIENCE,
        device_id=device,
    )


def load_part(place: Place) -> Model:
    """Load this process's part of the model.

    Raises:
        ValueError: as in `dlm.load`.
    """
    from transformers.distributed.configuration_utils import DistributedConfig

    from dlm.models.loading import load

    return load(distributed_config=DistributedConfig(tp_size=place.size), **place.facts)


def main(descriptor: int) -> None:
    """Load a part and follow the leader, until it closes the pipe or ends.

    Args:
        descriptor: file descriptor of the pipe to the leader.
    """
    from dlm.models.loading import silence

    pipe = Connection(descriptor)
    with suppress(EOFError, BrokenPipeError):
        pipe.send(None)  # everything is imported
        place: Place = pipe.recv()
        meet(place, store_of(place.size, place.port))
        try:
            with silence():
                model = load_part(place)
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}")
            return
        pipe.send(None)
        with torch.no_grad():
            follow(Worker(model), pipe)


def follow(worker: "Worker", pipe: Connection) -> None:
    """Carry out messages, until the leader sends None.

    Raises:
        EOFError: the leader has ended without a message.
        RuntimeError: this process had another result than the leader.
    """
    while (message := pipe.recv()) is not None:
        worker.do(message)


@dataclass(slots=True)
class Run:
    """A running generation."""

    steps: Generator[Step, None, None]
    now: list[Change]  # rows that leave and join before the next forward pass; at most one change
    last: Step | None = None


@dataclass(slots=True)
class Worker:
    """A part of a model, its running generations, and its prompt caches."""

    model: Model
    runs: dict[int, Run] = field(default_factory=dict)
    caches: dict[int, PromptCache] = field(default_factory=dict)

    def do(self, message: Message) -> None:
        """Carry out one message.

        A ValueError is ignored here, because the leader raises the same one.
        """
        with suppress(ValueError):
            if isinstance(message, Begin):
                self.begin(message)
            elif isinstance(message, Go):
                self.go(message)
            elif isinstance(message, End):
                self.end(message.number)
            else:
                self.call(message)

    def begin(self, message: Begin) -> None:
        """Start a generation, and make its first forward pass."""
        spec, terms, rows = unpack(message.packed, self.model.device)
        self.keep(message.caches)
        now: list[Change] = []
        terms = replace(terms, model=replace(self.model, spec=spec))
        # Also None if there was no memory for the cache, as in the leader.
        cache = None if message.cache is None else self.caches.get(message.cache)
        steps = alone(terms, rows, lambda: now.pop() if now else NO_CHANGE, cache)
        self.runs[message.number] = Run(steps, now)
        self.step(message.number)

    def keep(self, caches: dict[int, float]) -> None:
        """Create and drop prompt caches, so that they are those of the leader."""
        for number in self.caches.keys() - caches.keys():
            del self.caches[number]
        for number in caches.keys() - self.caches.keys():
            self.caches[number] = PromptCache(self.model, gib=caches[number])

    def go(self, message: Go) -> None:
        """Make another forward pass of a generation.

        Raises:
            RuntimeError: the last one had another result here than in the leader.
        """
        run = self.runs.get(message.number)
        if run is None or run.last is None or seen(run.last) != message.seen:
            raise RuntimeError("the processes of a model came to different results")
        run.now.append(message.change(self.model.device))
        self.step(message.number)

    def step(self, number: int) -> None:
        """Make the next forward pass of a generation, if there is one."""
        run = self.runs[number]
        run.last = None
        run.last = next(run.steps, None)

    def end(self, number: int) -> None:
        """End a generation, if it was started."""
        if number in self.runs:
            self.runs.pop(number).steps.close()

    def call(self, message: Call) -> None:
        """Call a method of the model."""
        spec, given, named = unpack(message.packed, self.model.device)
        getattr(replace(self.model, spec=spec), message.method)(*given, **named)
