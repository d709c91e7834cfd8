"""What the first process of a cut model tells is enough for the others to do the same."""

import gc
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

import dlm
from dlm.batch import Change
from dlm.decoders import DECODERS
from dlm.decoders.orders import Random
from dlm.models.model import Model
from dlm.parallel.leader import Leader, kind_of, uninterrupted
from dlm.parallel.messages import Begin, Call, End, Go, Message, pack_terms
from dlm.parallel.worker import Worker


class Counted:
    """A network that counts its forwards."""

    def __init__(self, network: Any) -> None:
        self.network = network
        self.seen: list[torch.Tensor] = []

    def states(self, tokens: torch.Tensor, *given: Any) -> Any:
        self.seen.append(tokens.clone())
        return self.network.states(tokens, *given)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)


@dataclass
class Pipe:
    """Brings messages to a worker that has all of the model, in this process."""

    worker: Worker
    told: list[Message] = field(default_factory=list)

    def send(self, message: Message | None) -> None:
        if message is None:
            return
        self.told.append(pickle.loads(pickle.dumps(message)))
        self.worker.do(self.told[-1])

    def close(self) -> None:
        pass


@dataclass
class Pair:
    """A leader and a worker."""

    model: Model  # that is led
    pipe: Pipe
    ours: Counted
    theirs: Counted

    def check(self) -> None:
        """The worker made the same forwards, and has nothing left."""
        assert len(self.ours.seen) == len(self.theirs.seen) > 0
        for here, there in zip(self.ours.seen, self.theirs.seen, strict=True):
            assert torch.equal(here, there)
        assert not self.pipe.worker.runs


@pytest.fixture
def pair(golden: Model) -> Pair:
    return paired(golden)


def paired(golden: Model) -> Pair:
    ours, theirs = Counted(golden.network), Counted(golden.network)
    leader, pipe = Leader(1), Pipe(Worker(replace(golden, network=theirs)))
    leader.pipes, leader.kind = [pipe], kind_of(golden)  # type: ignore[list-item]
    return Pair(replace(golden, network=ours, leader=leader), pipe, ours, theirs)


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_is_followed(golden: Model, pair: Pair, decoding: Any, decoder: str) -> None:
    prompts = [[5, 6], [17, 3, 300, 44, 9]]
    options = {"gen_length": 12, "temperature": 0.7, "seed": 3, **decoding(decoder)}
    found = dlm.generate(pair.model, prompts, **options)
    assert found.tokens == dlm.generate(golden, prompts, **options).tokens
    pair.check()


def test_what_is_told_is_short(pair: Pair) -> None:
    """Of a forward, that is: the rows go over once."""
    dlm.generate(pair.model, [5] * 200, gen_length=4, steps=4)
    first, *others, last = pair.pipe.told
    assert isinstance(first, Begin)
    assert isinstance(last, End)
    assert {type(other) for other in others} == {Go}
    assert max(len(pickle.dumps(other)) for other in others) < 200


def test_rows_come_and_go(golden: Model, pair: Pair) -> None:
    """As `batch_size` has them, and a stop text."""
    options: dict[str, Any] = {"gen_length": 12, "batch_size": 2, "cache": "dual"}
    prompts = [[n + 1] * (n + 2) for n in range(5)]
    found = dlm.generate(pair.model, prompts, **options)
    assert found.tokens == dlm.generate(golden, prompts, **options).tokens
    pair.check()
    assert any(isinstance(told, Go) and told.join is not None for told in pair.pipe.told)


def test_a_stream_that_is_dropped_is_over(pair: Pair) -> None:
    stream = dlm.stream(pair.model, [5, 6], gen_length=12)
    next(stream)
    assert pair.pipe.worker.runs
    del stream
    gc.collect()
    pair.check()


def test_calls_are_made_by_all(golden: Model, pair: Pair) -> None:
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(pair.model.raw_logits(ids), golden.raw_logits(ids))
    assert {type(told) for told in pair.pipe.told} == {Call}
    pair.check()
    cached: Any = object()
    with pytest.raises(ValueError, match="cache must be None"):
        pair.model.states(ids, ids, None, cached)


def test_the_facts_of_the_model_go_along(
    golden: Model, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of attention are among them, which decide what a token sees."""
    ids = torch.tensor([[5, 6, 7, 8]])
    spec = replace(golden.spec, block_size=1)
    masks: list[Any] = []
    states = golden.network.states

    def watched(tokens: torch.Tensor, mask: Any, *rest: Any) -> Any:
        masks.append(mask)
        return states(tokens, mask, *rest)

    monkeypatch.setattr(golden.network, "states", watched)
    found = replace(pair.model, spec=spec).raw_logits(ids)
    ours, theirs = masks
    assert torch.equal(ours, theirs)
    assert not ours.all()
    assert torch.equal(found, replace(golden, spec=spec).raw_logits(ids))


def test_a_digest_of_the_weights_is_made_by_all(golden: Model, pair: Pair) -> None:
    assert pair.model.fingerprint() == golden.fingerprint()
    assert [type(told) for told in pair.pipe.told] == [Call]


def test_caches_are_listed_in_the_order_in_which_generations_are_told(
    golden: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is begun late must not have the others drop what was made meanwhile."""
    pair = paired(replace(golden, spec=replace(golden.spec, block_size=8)))
    options: dict[str, Any] = {"gen_length": 8, "block_length": 8, "cache": "prefix"}
    pack, slow, go = pack_terms, threading.Event(), threading.Event()

    def late(*given: Any) -> bytes:
        packed = pack(*given)
        if threading.current_thread().name == "late":
            slow.set()
            assert go.wait(60)
        return packed

    monkeypatch.setattr("dlm.parallel.leader.pack_terms", late)
    one, two = (dlm.PromptCache(pair.model, gib=0.01) for _ in range(2))

    def generate(cache: dlm.PromptCache) -> None:
        dlm.generate(pair.model, [7] * 80, prompt_cache=cache, **options)

    thread = threading.Thread(target=generate, args=(one,), name="late")
    thread.start()
    assert slow.wait(60)
    generate(two)
    go.set()
    thread.join()
    generate(two)
    pair.check()


class Louder(Model):
    """One whose logits are other ones."""

    __slots__ = ()


@pytest.mark.parametrize(("change", "message"), [
    (lambda model: Louder(model.network, None, model.spec, leader=model.leader), "got a Louder"),
    (lambda model: setattr(model.leader, "kind", "torch.float16 on cpu"), "stay as it was loaded"),
], ids=["subclass", "moved"])  # fmt: skip
def test_what_others_would_not_do_alike_is_refused(
    pair: Pair, change: Callable[[Model], Model | None], message: str
) -> None:
    model = change(pair.model) or pair.model
    with pytest.raises(ValueError, match=message):
        dlm.generate(model, [5], gen_length=4)
    with pytest.raises(ValueError, match=message):
        model.raw_logits(torch.tensor([[5]]))
    assert not pair.pipe.told


def test_autocast_is_refused(pair: Pair) -> None:
    refused = pytest.raises(ValueError, match="autocast must be off for a model that is cut")
    with torch.autocast("cpu", dtype=torch.bfloat16), refused:
        dlm.generate(pair.model, [5], gen_length=4)
    dlm.generate(pair.model, [5], gen_length=4)


def test_decoders_must_be_known_elsewhere(pair: Pair) -> None:
    """What cannot be told is refused before anything is."""

    @dataclass(frozen=True)
    class Local(Random):
        pass

    for decoder, message in (
        (Local(), "decoder must be such that it can be pickled"),
        (type("Mine", (Random,), {"__module__": "__main__"})(), "got Mine of the script itself"),
    ):
        with pytest.raises(ValueError, match=message):
            dlm.generate(pair.model, [5], gen_length=4, decoder=decoder)
    assert not [told for told in pair.pipe.told if isinstance(told, Begin)]
    dlm.generate(pair.model, [5], gen_length=4)


def test_a_signal_goes_where_it_went_before() -> None:
    code = (
        "import signal\nfrom dlm.parallel.leader import uninterrupted\n"
        "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
        "with uninterrupted():\n    signal.raise_signal(signal.SIGINT)\n    print('on')\n"
        "print('not here')"
    )
    done = subprocess.run([sys.executable, "-u", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "on\n")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_prompt_caches_go_with_those_of_the_first(golden: Model) -> None:
    pair = paired(replace(golden, spec=replace(golden.spec, block_size=8)))
    caches = pair.pipe.worker.caches
    kept = [dlm.PromptCache(pair.model, gib=0.01) for _ in range(2)]
    options: dict[str, Any] = {"gen_length": 8, "block_length": 8, "cache": "prefix"}
    for number in (0, 1, 0, 1):
        dlm.generate(pair.model, [7] * 80, prompt_cache=kept[number], **options)
    pair.check()
    assert len(caches) == 2
    assert {cache.tokens for cache in caches.values()} == {kept[0].tokens}
    assert [cache.bytes for cache in caches.values()] == [cache.bytes for cache in kept]
    kept[1].bytes = 0  # as where there was no room for it
    dlm.generate(pair.model, [5], **options)
    assert len(caches) == 1
    kept.pop(0)
    dlm.generate(pair.model, [5], prompt_cache=kept[0], **options)
    assert not caches
    pair.check()


def test_processes_that_differ_end(pair: Pair) -> None:
    """The worker does, by its error; the first one learns of it and gives the model up."""
    dlm.stream(pair.model, [5, 6], gen_length=12)
    stream = dlm.stream(pair.model, [5, 6], gen_length=12)
    next(stream)
    (run,) = pair.pipe.worker.runs.values()
    assert run.last is not None
    tokens = run.last.tokens.clone()
    tokens[0, 4:6] = tokens[0, 4:6].flip(0) + torch.tensor([1, -1])
    run.last = replace(run.last, tokens=tokens)
    with pytest.raises(RuntimeError, match="came to different results"):
        next(stream)
    with pytest.raises(ChildProcessError, match="load it again"):
        dlm.generate(pair.model, [5], gen_length=4)
    with pytest.raises(RuntimeError, match="came to different results"):  # one that is not there
        pair.pipe.worker.do(Go(99, frozenset(), None, 0))


def test_an_error_of_a_forward_ends_the_model(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """But a ValueError, which all of them raise."""
    leader = pair.model.leader
    assert leader is not None
    errors: list[Exception] = [ValueError("none"), MemoryError("none")]

    def broken(*given: Any, **named: Any) -> Any:
        raise errors[0]

    monkeypatch.setattr(pair.ours, "states", broken)
    monkeypatch.setattr(pair.theirs, "states", broken)
    with pytest.raises(ValueError, match="none"):
        dlm.generate(pair.model, [5], gen_length=4)
    assert not leader.lost
    monkeypatch.setattr(pair.theirs, "states", lambda *given, **named: torch.zeros(1, 5, 64))
    del errors[0]
    with pytest.raises(MemoryError):
        dlm.generate(pair.model, [5], gen_length=4)
    assert leader.lost


def test_ctrl_c_leaves_the_model_usable(
    golden: Model, pair: Pair, monkeypatch: pytest.MonkeyPatch, interruptible: None
) -> None:
    """In the middle of a forward of the first process, after that of the other one."""
    states = pair.ours.states

    def interrupted(*given: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return states(*given)

    monkeypatch.setattr(pair.ours, "states", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dlm.generate(pair.model, [5], gen_length=4)
    monkeypatch.undo()
    found = dlm.generate(pair.model, [5], gen_length=4)
    assert found.tokens == dlm.generate(golden, [5], gen_length=4).tokens
    pair.check()


def test_a_change_is_told_as_it_is() -> None:
    told = Go(3, frozenset({1}), None, 5)
    assert told.change(torch.device("cpu")) == Change(frozenset({1}))
