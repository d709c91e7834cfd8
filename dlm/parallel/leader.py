"""The first process of a model that is cut: the one that is asked, and tells the others."""

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
"""Seconds that the other processes have to end by themselves."""
START: Final = "import sys; sys.path[:] = {}; from dlm.parallel.worker import main; main({})"


class Leader:
    """Lets all processes of a model do the same at the same time, this one among them.

    One thing at a time is done, in the order in which it was told, and the others are told before
    this process begins: it never waits for them but in the network itself. What a forward refuses
    with a ValueError it refuses everywhere, as decoders decide by their views alone. After any
    other error nobody knows where the processes are: they are ended, and the model does no more.
    """

    def __init__(self, size: int) -> None:
        """Start the others, and wait until they are there.

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
        """Start one of them: apart from the terminal, whose Ctrl-C is for this process."""
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
        """Hear from each of the others.

        Raises:
            ChildProcessError: one of them ended, or tells of an error.
        """
        for rank, pipe in enumerate(self.pipes, 1):
            try:
                error = pipe.recv()
            except (EOFError, OSError):
                error = "it ended"
            if error is not None:
                raise ChildProcessError(f"process {rank} of the model failed: {error}")

    def load(self, where: Sequence[str], facts: Mapping[str, Any]) -> Model:
        """Load all parts at once, each to its device; what stands for them here."""
        size = len(where)
        store = store_of(size)
        given = dict(facts)
        del given["tensor_parallel_size"], given["device"]  # that is the process's
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
        """Find out whether all processes are there.

        Raises:
            ChildProcessError: they are not.
        """
        if self.lost or any(process.poll() is not None for process in self.processes):
            self.close()
            raise ChildProcessError(GONE)

    def close(self) -> None:
        """End the others. The model does no more then."""
        from torch import distributed

        with self.lock:
            if self.lost:
                return
            self.lost = True
            for pipe in self.pipes:
                with suppress(OSError):  # it has gone
                    pipe.send(None)
                pipe.close()
            for process in self.processes:
                try:
                    process.wait(GRACE)
                except subprocess.TimeoutExpired:  # in the middle of a forward
                    process.kill()
                    process.wait()
            if distributed.is_initialized():
                distributed.destroy_process_group()

    @contextmanager
    def turn(self, message: Message) -> Iterator[None]:
        """Tell the others what this process does meanwhile, and nothing else.

        Raises:
            ChildProcessError: a process has ended.
        """
        with self.lock, uncollected(), uninterrupted():
            self.check()
            if isinstance(message, Begin):  # in the order in which they are told
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
        """`dlm.batch.denoise` in all processes."""
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
            if self.lost:  # nobody is there to be told
                steps.close()
            else:
                with self.turn(End(number)):
                    steps.close()

    def number_of(self, prompt_cache: PromptCache) -> int:
        """What the others know a prompt cache by."""
        with self.lock:
            return self.caches.setdefault(prompt_cache, next(self.numbers))

    def kept(self) -> dict[int, float]:
        """The prompt caches that there are by now, but for those there was no room for, GiB."""
        return {name: cache.bytes / GIB for cache, name in self.caches.items() if cache.bytes}

    def admit(self, model: Model) -> None:
        """Refuse what the other processes would not do alike.

        Raises:
            ValueError: a subclass of `Model`, a network that was moved or cast, or autocast.
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
        """Call a method of the model in all processes; what it gives here."""
        self.admit(model)
        with self.turn(Call(method, pack((model.spec, given, named)))):
            return getattr(replace(model, leader=None), method)(*given, **named)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait for the end, where it comes to this thread and Python learns of it."""
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
    """Refuse a direct call of a part of a network, in which it would wait for the others.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        "a network that is cut over processes must be called through its model: dlm.generate, "
        "model.raw_logits, network.generate ..."
    )


def kind_of(model: Model) -> str:
    """In what numbers a network computes, and where."""
    return f"{model.network.dtype} on {model.device}"


def devices(device: Any, size: int) -> list[str]:
    """Where the parts go.

    Raises:
        ValueError: one GPU is named, or there are fewer than parts, or one that is not to be used.
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
    """A model cut over so many processes, of which this is the first.

    Args:
        size: at least 2.
        facts: options of `dlm.load`.

    Raises:
        ChildProcessError: another process failed.
        ValueError: as `dlm.load`, or this process belongs to others already.
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
