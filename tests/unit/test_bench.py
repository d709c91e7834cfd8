"""Benchmarks: what they count, that they compare the same work, and that they run. No times."""

import time
from pathlib import Path

import pytest
import torch

import dlm
from dlm.bench import batch, memory
from dlm.bench.baselines import float64_path, plain_loop, quotas
from dlm.bench.count import forward_flops, layer_weights, parameters, read_weights
from dlm.bench.machine import commit, processor
from dlm.bench.profile import by_function
from dlm.bench.replay import Recorder, replay
from dlm.bench.result import Result, shown
from dlm.bench.shapes import SHAPES, Shape, build, shape_of
from dlm.bench.step import count_flops, count_forwards
from dlm.bench.timing import Spread, ratio, take_turns
from dlm.bench.work import Work, agreement, random_prompts
from dlm.models.model import Model

CPU = torch.device("cpu")
SMALL = Shape(8, 2, 2, 1, 12, 32, 64, 10000.0)


@pytest.fixture(scope="module")
def tiny() -> Model:
    return build(SHAPES["tiny"])


# Medians and ratios


def test_a_spread_holds_the_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(3.0, 1.0, 2.0, 4.0, 5.0)
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0, 2.0, 2.0)


def test_ratios_are_of_rounds_not_of_medians() -> None:
    slow_round = ratio([2.0, 20.0, 2.0], [1.0, 10.0, 2.0])
    assert slow_round == Spread(2.0, 1.0, 1.5, 2.0, 2.0)


def test_calls_take_turns_in_changing_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    made: list[str] = []
    calls = {name: lambda name=name: made.append(name) for name in "abc"}
    times = take_turns(calls, 3, CPU)
    assert "".join(made) == "abc" + "abc" + "acb" + "cab"
    assert times == {"a": [1, 1, 1], "b": [1, 1, 1], "c": [1, 1, 1]}


def test_every_call_is_told_before_it_is_made() -> None:
    made: list[str] = []
    calls = {name: lambda name=name: made.append(name) for name in "ab"}
    heard: list[tuple[str, int, int, int]] = []
    take_turns(calls, 2, CPU, told=lambda *what: heard.append((*what, len(made))))
    assert [name for name, *_ in heard] == made
    assert [rest for _, *rest in heard] == [[number, 6, number] for number in range(6)]


# Counting


def test_weights_counted_by_hand() -> None:
    layer = 8 * 8 * 2 + 8 * 4 * 2 + 8 * 12 * 3  # q and o, k and v of one head of two, SwiGLU
    assert layer_weights(SMALL) == layer
    assert parameters(SMALL) == 2 * layer + 5 * 8 + 2 * 32 * 8
    assert read_weights(SMALL) == 2 * layer + 32 * 8


@pytest.mark.parametrize("shape", [SMALL, SHAPES["tiny"], SHAPES["25m"]])
def test_a_network_has_as_many_parameters_as_counted(shape: Shape) -> None:
    network = build(shape).network
    assert sum(weight.numel() for weight in network.parameters()) == parameters(shape)


def test_sizes_that_names_promise() -> None:
    assert 8.0e9 < parameters(SHAPES["llada-8b"]) < 8.1e9
    assert 7.5e9 < parameters(SHAPES["dream-7b"]) < 7.7e9
    assert 27.0e6 < parameters(SHAPES["25m"]) < 27.2e6


def test_flops_counted_by_hand() -> None:
    layer = layer_weights(SMALL)
    attention = 2 * (4 * 5 * 5 * 8) * 2  # scores and sums, 2 rows, 2 layers
    assert forward_flops(SMALL, 2, 5, 7) == 2 * 2 * 5 * 2 * layer + attention + 2 * 7 * 8 * 32


def test_recorded_calls_count_every_forward_and_projection(tiny: Model) -> None:
    work = Work("tiny", (2,), prompt_length=3, gen_length=4, block_length=2)
    recorder = Recorder.of(tiny)
    work.decode(recorder, random_prompts(tiny, [3, 3]))
    assert count_forwards(recorder.calls) == 4
    assert [call.rows for call in recorder.calls] == [14, 4, 14, 2, 14, 4, 14, 2]
    shape = SHAPES["tiny"]
    assert count_flops(shape, recorder.calls) == 4 * forward_flops(shape, 2, 7, 3)


def test_a_replay_makes_the_same_calls(tiny: Model) -> None:
    recorder = Recorder.of(tiny)
    Work("tiny", (1,), 3, 4, 2).decode(recorder, random_prompts(tiny, [3]))
    again = Recorder.of(tiny)
    replay(again, recorder.calls)
    assert [c.rows for c in again.calls] == [c.rows for c in recorder.calls]
    assert len(again.seconds) == len(again.calls)


def test_peak_of_allocations() -> None:
    assert memory.peak([(3, -8), (1, 5), (2, 8), (4, 1)]) == 13
    rows = torch.zeros(4, 1000)
    assert memory.peak_extra_bytes(lambda: rows + rows, CPU) == rows.nbytes
    assert memory.peak_extra_bytes(lambda: rows.double().sum(), CPU) == 2 * rows.nbytes + 8


def test_profile_gives_c_code_to_its_callers() -> None:
    one, other, kernel = ("a.py", 1, "f"), ("b.py", 1, "g"), ("~", 0, "<mm>")
    stats = {
        one: (1, 1, 0.5, 9.0, {}),
        other: (2, 2, 0.25, 9.0, {one: (2, 2, 0.25, 9.0)}),
        kernel: (3, 3, 4.0, 4.0, {one: (1, 1, 1.0, 1.0), other: (2, 2, 3.0, 3.0)}),
    }
    seconds, calls = by_function(stats)
    assert seconds == {one: 1.5, other: 3.25}
    assert calls == {one: 1, other: 2}


# The same work


def test_the_plain_loop_decodes_the_same_tokens(tiny: Model) -> None:
    prompts = random_prompts(tiny, [7, 7])
    work = Work("tiny", (2,), prompt_length=7, gen_length=12, block_length=4, steps=9)
    out = work.decode(tiny, prompts)
    lengths = {"gen_length": 12, "block_length": 4, "steps": 9}
    apart = [plain_loop(tiny, [prompt], **lengths)[0] for prompt in prompts]
    assert out.tokens == apart
    assert plain_loop(tiny, prompts, **lengths) == apart
    assert apart[0] != apart[1]
    assert out.forwards == [9, 9]


def test_quotas_share_masks() -> None:
    assert quotas(8, 3) == [3, 3, 2]


def test_the_float64_path_follows_the_law() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0]).expand(20000, 3).contiguous()
    torch.manual_seed(0)
    tokens, shares = float64_path(logits, 0.5)
    found = tokens.bincount() / 20000
    torch.testing.assert_close(found, (2 * logits[0]).softmax(-1), atol=0.01, rtol=0)
    torch.testing.assert_close(shares[0], logits[0].double().softmax(-1)[tokens[0]])
    assert (float64_path(logits, 0.0)[0] == 1).all()


def test_agreement_counts_positions() -> None:
    assert agreement([[1, 2], [3, 4]], [[1, 2], [3, 5]]) == 0.75


def test_ragged_lengths() -> None:
    assert batch.lengths(8, 256)[0] == 16
    assert batch.lengths(8, 256)[-1] == 256
    assert batch.lengths(1, 256) == [128]


# Networks


def test_the_tiny_shape_is_the_built_in_model() -> None:
    network = dlm.load().network
    assert sum(w.numel() for w in network.parameters()) == parameters(SHAPES["tiny"])
    config, made = network.config, build(SHAPES["tiny"]).network.config
    for name in ("d_model", "n_layers", "n_heads", "mlp_hidden_size", "embedding_size"):
        assert getattr(config, name) == getattr(made, name)


def test_weights_are_repeatable_and_logits_differ() -> None:
    one, other = build(SMALL), build(SMALL)
    tokens = torch.arange(5)[None]
    logits = one.raw_logits(tokens)
    assert torch.equal(logits, other.raw_logits(tokens))
    assert logits.isfinite().all()
    assert 0.3 < logits.std() < 3
    assert build(SMALL, dtype="bfloat16").network.dtype == torch.bfloat16


def test_another_depth() -> None:
    assert shape_of("llada-8b", 2).layers == 2
    with pytest.raises(ValueError, match="Did you mean '25m'"):
        shape_of("26m")
    with pytest.raises(ValueError, match="layers must be an int >= 1"):
        shape_of("tiny", 0)


# Records


def test_a_result_as_json_and_as_rows() -> None:
    one = Spread.of([0.5])
    result = Result(
        "x", {"n": 1}, {"a": one}, {"a / b": one}, {"share of y": 0.25}, {"bytes": 4_100_000}
    )
    record = result.record({"commit": None})
    assert list(record) == ["bench", "case", "seconds", "ratios", "found", "counted", "commit"]
    assert record["seconds"]["a"]["median"] == 0.5
    assert result.rows() == [
        ["a", "500 ms", "500 .. 500"],
        ["a / b", "0.5", "0.5 .. 0.5"],
        ["share of y", "25%", ""],
        ["counted: bytes", "4.1 M", ""],
    ]
    assert [shown("same", True), shown("n", None), shown("n", 64)] == ["yes", "-", "64"]


def test_commit_of_a_checkout(tmp_path: Path) -> None:
    assert commit(tmp_path) is None
    main, tree = tmp_path / ".git", tmp_path / "tree"
    (main / "worktrees" / "w").mkdir(parents=True)
    tree.mkdir()
    (main / "HEAD").write_text("ref: refs/heads/main\n")
    (main / "packed-refs").write_text("# pack-refs\nabc refs/heads/main\n")
    assert commit(tmp_path) == "abc"
    (tree / ".git").write_text(f"gitdir: {main / 'worktrees' / 'w'}\n")
    (main / "worktrees" / "w" / "HEAD").write_text("ref: refs/heads/w\n")
    (main / "worktrees" / "w" / "commondir").write_text("../..\n")
    (main / "refs" / "heads").mkdir(parents=True)
    (main / "refs" / "heads" / "w").write_text("def\n")
    assert commit(tree) == "def"


def test_processor_names(tmp_path: Path) -> None:
    table = tmp_path / "cpuinfo"
    table.write_text("vendor_id : X\nmodel name\t: Some CPU\n")
    assert processor(table) == "Some CPU"
    assert processor(tmp_path / "none")
