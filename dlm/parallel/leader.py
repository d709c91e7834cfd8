"""The leader: the first process of a split model, which takes calls and commands the others."""

import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Final

import torch

from dlm.batch import NO_CHANGE, Change, Rows, Terms, alone
from dlm.models.model import Model
from dlm.parallel.messages import Begin, Call, End, Go, Message, Place, pack, pack_terms
from dlm.parallel.worker import load_part, meet, store_of
from dlm.prompt_cache import GIB, PromptCache
from dlm.recording import uncollected
from dlm.runtime import Step

GONE: Final = "a process of the model has ended: load it again"
GRACE: Final = 10.0
"""Seconds that the other processes have to exit before they are killed."""
START: Final = "import sys; sys.path[:] = {}; from dlm.parallel.worker import main; main({})"


class Leader:
    """Makes all processes of a model, including this one, do the same work at the same time.

    All processes perform one action at a time, in the order in which messages are sent. This
    process sends the message before it starts, so it waits for the others only inside the network.

    A forward pass that raises a ValueError raises it in every process, because decoders decide by
    their views alone, and the model remains usable. After any other error the state of the
    processes is unknown: they are ended, and the model can no longer be used.
    """

    def __init__(self, size: int) -> None:
        """Start the other processes, and wait until they have imported everything.

        Raises:
            ChildProcessError: one of them ended.
        """
        self.lock = threading.RLock()
        self.numbers = count()
        self.caches: weakref.WeakKeyDictionary[PromptCache, int] = weakref.WeakKeyDictionary()
        self.lost = False
        self.kind = ""  # of the network, once it is loaded
        self.pipes: list[Connection] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(1, size):
                self.start(rank)
            self.gather()
        except BaseException:
            self.close()
            raise

    def start(self, rank: int) -> None:
        """Start one process, in a session of its own: Ctrl-C is for this process alone."""
        ours, theirs = Pipe()
        with theirs:
            code = START.format([os.fspath(place) for place in sys.path], theirs.fileno())
            self.pipes.append(ours)
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", code],
                    pass_fds=[theirs.fileno()],
                    env=os.environ | {"LOCAL_RANK": str(rank)},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )

    def gather(self) -> None:
        """Wait for a message from each of the other processes.

        Raises:
            ChildProcessError: one of them ended, or reports an error.
        """
        for rank, pipe in enumerate(self.pipes, 1):
            try:
                error = pipe.recv()
            except (EOFError, OSError):
                error = "it ended"
            if error is not None:
                raise ChildProcessError(f"process {rank} of the model failed: {error}")

    def load(self, where: Sequence[str], facts: Mapping[str, Any]) -> Model:
        """Load all parts in parallel, each to its device.

        Args:
            where: the device of each process.
            facts: the options of `dlm.load`.

        Returns:
            The model in this process, which calls all parts.

        Raises:
            ChildProcessError: another process failed.
            ValueError: as in `dlm.load`.
        """
        size = len(where)
        store = store_of(size)
        given = dict(facts)
        del given["tensor_parallel_size"], given["device"]  # each process has its own device
        places = [Place(rank, size, store.port, device, given) for rank, device in enumerate(where)]
        for pipe, place in zip(self.pipes, places[1:], strict=True):
            pipe.send(place)
        meet(places[0], store)
        model = load_part(places[0])
        self.gather()
        self.kind = kind_of(model)
        weakref.finalize(model.network, self.close)
        model.network._leader = self
        model.network.register_forward_pre_hook(refuse_call)
        return replace(model, leader=self)

    def check(self) -> None:
        """Check that all processes are running, and end them otherwise.

        Raises:
            ChildProcessError: one has ended.
        """
        if self.lost or any(process.poll() is not None for process in self.processes):
            self.close()
            raise ChildProcessError(GONE)

    def close(self) -> None:
        """End the other processes. The model can no longer be used."""
        from torch import distributed

        with self.lock:
            if self.lost:
                return
            self.lost = True
            for pipe in self.pipes:
                with suppress(OSError):  # the process has ended
                    pipe.send(None)
                pipe.close()
            for process in self.processes:
                try:
                    process.wait(GRACE)
                except subprocess.TimeoutExpired:  # it is in the middle of a forward pass
                    process.kill()
                    process.wait()
            if distributed.is_initialized():
                distributed.destroy_process_group()

    @contextmanager
    def turn(self, message: Message) -> Iterator[None]:
        """Send a message to the others; the body of the `with` does the same in this process.

        Raises:
            ChildProcessError: a process has ended.
        """
        with self.lock, uncollected(), uninterrupted():
            self.check()
            if isinstance(message, Begin):  # here, so that caches are listed in message order
                message = replace(message, caches=self.kept())
            try:
                for pipe in self.pipes:
                    pipe.send(message)
                yield
            except ValueError:
                raise
            except BaseException as error:
                gone = any(process.poll() is not None for process in self.processes)
                self.close()
                if gone:
                    raise ChildProcessError(GONE) from error
                raise

    def denoise(
        self,
        terms: Terms,
        rows: Rows,
        change: Callable[[], Change],
        prompt_cache: PromptCache | None,
    ) -> Generator[Step, None, None]:
        """Run `dlm.batch.denoise` in all processes."""
        self.admit(terms.model)
        number, now = next(self.numbers), NO_CHANGE
        terms = replace(terms, model=replace(terms.model, leader=None))
        steps = alone(terms, rows, lambda: now, prompt_cache)
        usable = prompt_cache is not None and prompt_cache.bytes
        cache = self.number_of(prompt_cache) if prompt_cache is not None and usable else None
        message: Message = Begin(number, pack_terms(terms, rows), cache)
        try:
            while True:
                with self.turn(message):
                    step = next(steps, None)
                if step is None:
                    return
                yield step
                now = change()
                message = Go.on(number, now, step)
        finally:
            if self.lost:  # the other processes have ended
                steps.close()
            else:
                with self.turn(End(number)):
                    steps.close()

    def number_of(self, prompt_cache: PromptCache) -> int:
        """The number that identifies a prompt cache to the other processes."""
        with self.lock:
            return self.caches.setdefault(prompt_cache, next(self.numbers))

    def kept(self) -> dict[int, float]:
        """The sizes of the existing prompt caches, GiB, without those that found no memory."""
        return {name: cache.bytes / GIB for cache, name in self.caches.items() if cache.bytes}

    def admit(self, model: Model) -> None:
        """Reject a model with which the other processes would compute something else.

        Raises:
            ValueError: it is a subclass of `Model`, its network was moved or cast, or autocast is
                on.
        """
        if type(model) is not Model:
            raise ValueError(
                f"a model that is cut over processes must be a plain Model, got a "
                f"{type(model).__name__}"
            )
        if kind_of(model) != self.kind:
            raise ValueError(
                "a network that is cut over processes must stay as it was loaded, "
                f"{self.kind}, got {kind_of(model)}"
            )
        if torch.is_autocast_enabled(model.device.type):
            raise ValueError("autocast must be off for a model that is cut over processes")

    def call(self, model: Model, method: str, *given: Any, **named: Any) -> Any:
        """Call a method of the model in all processes, and return this one's result."""
        self.admit(model)
        with self.turn(Call(method, pack((model.spec, given, named)))):
            return getattr(replace(model, leader=None), method)(*given, **named)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C to the end of the body, in the main thread and under a Python handler."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    caught: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if caught:
            signal.raise_signal(signal.SIGINT)


def refuse_call(network: Any, given: Any) -> None:
    """Reject a direct call of a part of a network, in which it would wait for the others.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        "a network that is cut over processes must be called through its model: dlm.generate, "
        "model.raw_logits, network.generate ..."
    )


def kind_of(model: Model) -> str:
    """The dtype and the device of a network."""
    return f"{model.network.dtype} on {model.device}"


def devices(device: Any, size: int) -> list[str]:
    """The device of each part.

    Args:
        device: the option `device` of `dlm.load`.
        size: number of parts.

    Raises:
        ValueError: `device` is neither "cpu", "cuda" nor None, there are fewer GPUs than parts, or
            the CPU is chosen on a machine with GPUs.
    """
    device = "cpu" if device is None else str(device)
    if device not in ("cpu", "cuda"):
        raise ValueError(
            f"device must be 'cuda', for GPUs 0 to {size - 1}, or 'cpu' with tensor_parallel_size "
            f"{size}, got {device!r}"
        )
    if device != "cuda":
        if torch.cuda.is_available():
            raise ValueError(
                f"device must be cuda with tensor_parallel_size {size} where there are GPUs, got "
                f"{device!r}: transformers takes them"
            )
        return ["cpu"] * size
    if torch.cuda.device_count() < size:
        raise ValueError(
            f"tensor_parallel_size must be at most the number of GPUs, got {size} where there are "
            f"{torch.cuda.device_count()}"
        )
    return [f"cuda:{rank}" for rank in range(size)]


def lead(size: int, facts: Mapping[str, Any]) -> Model:
    """Load a model split over processes, with this process as the first.

    Args:
        size: number of processes, at least 2.
        facts: the options of `dlm.load`.

    Raises:
        ChildProcessError: another process failed.
        ValueError: as in `dlm.load`, or this process is in a process group already.
    """
    from torch import distributed

    places = devices(facts["device"], size)
    if distributed.is_initialized():
        raise ValueError(
            f"tensor_parallel_size {size} starts processes of its own, and this one belongs to "
            "others already: to a model that is cut, or to torchrun's, where each passes "
            "distributed_config"
        )
    leader = Leader(size)
    try:
        return leader.load(places, facts)
    except BaseException:
        leader.close()
        raise
