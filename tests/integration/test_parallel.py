"""A model that is cut over two processes decodes what one does, by the same calls."""

import runpy
import signal
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.distributed.configuration_utils import DistributedConfig

import dlm
from dlm.constraints.automaton import Arrows, Automaton
from dlm.constraints.constraint import usage_of
from dlm.decoders import DECODERS
from dlm.models.model import Model
from dlm.parallel.leader import devices, uninterrupted
from dlm.parallel.worker import store_of
from dlm.serving.engine import Engine

TESTS = Path(__file__).parent.parent
CASES = SimpleNamespace(**runpy.run_path(str(TESTS / "unit" / "engine_cases.py")))
SDAR = TESTS / "golden" / "families" / "sdar"
TWO = DistributedConfig(tp_size=2)
PROMPTS = [[5, 6], [17, 3, 300, 44, 9], [8], [2, 2, 2]]
BROKEN = """
from dataclasses import dataclass

from dlm.decoders.base import Stateless
from dlm.types import Decision


@dataclass(frozen=True, slots=True)
class Idle(Stateless):
    needs = frozenset()

    def step(self, state, view):
        return None, Decision(view.masked & False)
"""


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A decoder that commits nothing, in a module that other processes can import."""
    folder = tmp_path_factory.mktemp("decoders")
    (folder / "idle_decoder.py").write_text(BROKEN)
    sys.path.append(str(folder))
    yield __import__("idle_decoder").Idle()
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def whole() -> Model:
    return dlm.load(SDAR, dtype="float32")


@pytest.fixture(scope="module")
def cut(broken: Any) -> Iterator[Model]:
    model = dlm.load(SDAR, dtype="float32", tensor_parallel_size=2)
    assert model.leader is not None
    yield model
    processes = model.leader.processes
    model.leader.close()
    assert [process.returncode for process in processes] == [0]
    with pytest.raises(ChildProcessError, match="has ended: load it again"):
        dlm.generate(model, PROMPTS, gen_length=4)


def same(whole: Model, cut: Model, prompts: Any, **options: Any) -> None:
    """Both decode alike."""
    expected = dlm.generate(whole, prompts, **options)
    found = dlm.generate(cut, prompts, **options)
    assert found.tokens == expected.tokens, options
    assert found.query_tokens == expected.query_tokens


def test_it_is_cut(whole: Model, cut: Model) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    shape = dict(whole.network.named_parameters())[name].shape
    part = dict(cut.network.named_parameters())[name].to_local()
    assert part.shape == (shape[0] // 2, shape[1])
    assert (cut.spec, cut.identity()) == (whole.spec, whole.identity())


def test_it_decodes_what_one_process_does(whole: Model, cut: Model) -> None:
    options: list[dict[str, Any]] = [
        {}, {"temperature": 0.9, "seed": 3, "decoder": "threshold", "cache": "dual"},
        {"batch_size": 2, "cache": "prefix"}, {"decoder": "pc_sampler"}, {"cfg_scale": 0.5},
        {"decoder": "klass", "block_length": None}, {"row_keys": [4, 5, 6, 7], "temperature": 1.0},
    ]  # fmt: skip
    for each in options:
        same(whole, cut, PROMPTS, gen_length=20, **each)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_does(whole: Model, cut: Model, decoder: str, decoding: Any) -> None:
    same(whole, cut, PROMPTS, gen_length=12, temperature=0.7, **decoding(decoder))


@pytest.mark.slow
def test_every_row_is_held_to_its_own_language(whole: Model, cut: Model) -> None:
    """Three tokens, one more than the last; which way is told with the rows that join."""
    languages = []
    for step in (1, 2):
        source, label = torch.cartesian_prod(torch.arange(30), torch.arange(30)).unbind(1)
        allowed = (label == source + step) | (source == 0)
        arrows = Arrows(source[allowed], label[allowed], label[allowed])
        automaton = Automaton.of(arrows, torch.arange(30) > 20, 0, whole.spec)
        languages.append(dlm.Constraint(str(step), "ids", usage_of(whole.spec), automaton))
    several = [languages[0], *languages, languages[1]]
    options: dict[str, Any] = {"gen_length": 12, "temperature": 1.0, "constraint": several}
    for batch_size in (None, 2):
        same(whole, cut, PROMPTS, batch_size=batch_size, **options)


@pytest.mark.slow
@pytest.mark.parametrize("gib", [1e-2, 1e-4])
def test_what_is_kept_of_prompts_is_kept_in_all(whole: Model, cut: Model, gib: float) -> None:
    """Also where pages make room for others, of which half as many have room in one process."""
    prompt = list(range(5, 25)) * 4
    caches = [dlm.PromptCache(model, gib=gib) for model in (whole, cut)]
    for seed, own in enumerate((prompt, prompt[:70] + [3] * 30, prompt)):
        options: dict[str, Any] = {"gen_length": 8, "cache": "prefix", "seed": seed}
        expected, found = (
            dlm.generate(model, own, prompt_cache=cache, **options)
            for model, cache in zip((whole, cut), caches, strict=True)
        )
        assert found.tokens == expected.tokens
        assert gib < 1e-3 or found.query_tokens == expected.query_tokens
    assert caches[1].tokens >= caches[0].tokens > 0


@pytest.mark.slow
def test_streams_take_turns_and_may_be_left(whole: Model, cut: Model) -> None:
    streams = [
        [dlm.stream(model, PROMPTS[n], gen_length=12, seed=n, temperature=0.8) for n in range(3)]
        for model in (whole, cut)
    ]
    for expected, found in zip(*streams, strict=True):  # one forward, and another of the next one
        assert list(islice(found, 1)) == list(islice(expected, 1))
    del streams[1][1]
    for expected, found in zip(streams[0][::2], streams[1], strict=True):
        assert list(found) == list(expected)


@pytest.mark.slow
def test_rows_that_join_and_are_given_up(whole: Model, cut: Model) -> None:
    engine = Engine(cut, batch_size=3, prompt_cache=dlm.PromptCache(cut, gib=0.01))
    options: list[dict[str, Any]] = [{}, {"cache": "dual"}, {"cache": "dual", "gen_length": 5}]
    try:
        clients = [
            CASES.Client(whole, [[n + 1] * (40 * n + 2), [9]], n % 2 == 0, block_length=4, **each)
            for n, each in enumerate(options * 2)
        ]
        left = CASES.Client(whole, [[7, 7]], gen_length=400, steps=400)
        for client in (left, *clients):
            client.ask(engine)
        engine.cancel(left.ticket)
        for client in clients:
            client.check()
    finally:
        engine.close()


@pytest.mark.slow
def test_all_else_that_forwards_are_made_for(whole: Model, cut: Model) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(cut.raw_logits(ids), whole.raw_logits(ids), atol=1e-4, rtol=0)
    found, expected = (
        model.network.generate(ids, max_new_tokens=8, do_sample=False) for model in (cut, whole)
    )
    assert found.tolist() == expected.tolist()
    scores = [dlm.log_likelihood(model, [5, 6, 7], [8, 9], samples=4) for model in (cut, whole)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_its_network_alone_is_refused(cut: Model, tmp_path: Path) -> None:
    """It would wait for the others."""
    with pytest.raises(ValueError, match="must be called through its model"):
        cut.network(torch.tensor([[5, 6]]))
    with pytest.raises(ValueError, match="save_pretrained must get a whole network"):
        cut.network.save_pretrained(tmp_path)


def test_nobody_else_reaches_where_the_processes_meet() -> None:
    """A server's address is one thing; this has no key at all."""
    tables = [path for path in map(Path, ("/proc/net/tcp", "/proc/net/tcp6")) if path.exists()]
    if not tables:
        pytest.skip("needs Linux")
    store = store_of(2)
    listening = [
        line.split()[1]
        for table in tables
        for line in table.read_text().splitlines()[1:]
        if line.split()[1].endswith(f":{store.port:04X}") and line.split()[3] == "0A"
    ]
    assert listening == [f"0100007F:{store.port:04X}"]


def test_what_is_refused_leaves_it_usable(whole: Model, cut: Model, broken: Any) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="Idle at forward 0"):
            dlm.generate(cut, PROMPTS, gen_length=8, decoder=broken)
        same(whole, cut, PROMPTS[:2], gen_length=8)
    with pytest.raises(ValueError, match="starts processes of its own"):
        dlm.load(SDAR, tensor_parallel_size=2)


@pytest.mark.parametrize(("options", "message"), [
    ({"device": "cuda:1"}, "device must be 'cuda', for GPUs 0 to 1, or 'cpu'"),
    ({"device_map": "auto"}, "device_map does not go with tensor_parallel_size 2, got 'auto'"),
    ({"direct": True}, "direct does not go with tensor_parallel_size 2, got True"),
    ({"adapter": "some/where"}, "adapter does not go with tensor_parallel_size 2"),
    ({"tensor_parallel_size": 0}, "tensor_parallel_size must be an int >= 1, got 0"),
    ({"tensor_parallel_size": 3}, "tensor_parallel_size must divide num_attention_heads, got 3"),
    ({"tensor_parallel_siez": 3}, "Did you mean 'tensor_parallel_size'"),
    ({"name_or_path": SDAR.parent / "mdlm"}, "which nobody knows how to cut, got 2"),
    ({"tensor_parallel_size": 1, "distributed_config": 2}, "DistributedConfig with a tp_size"),
    ({"tensor_parallel_size": 1, "device": "cpu", "distributed_config": TWO},
     "it excludes device, direct and device_map, got 'cpu', False and None"),
], ids=str)  # fmt: skip
def test_what_cannot_be_cut_is_said_before_processes_start(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("dlm.parallel.leader.Leader", None)
    with pytest.raises(ValueError, match=message):
        dlm.load(**{"name_or_path": SDAR, "tensor_parallel_size": 2, **options})


def test_gpus_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert devices("cuda", 2) == ["cuda:0", "cuda:1"]
    assert devices(None, 2) == devices(torch.device("cpu"), 2) == ["cpu", "cpu"]
    with pytest.raises(ValueError, match="got 8 where there are 4"):
        devices("cuda", 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="device must be cuda with tensor_parallel_size 2"):
        devices(None, 2)


def test_ctrl_c_waits_for_the_end_of_a_forward(interruptible: None) -> None:
    seen: list[int] = []

    def forward() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            seen.extend(range(1000))

    with pytest.raises(KeyboardInterrupt):
        forward()
    assert len(seen) == 1000
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
