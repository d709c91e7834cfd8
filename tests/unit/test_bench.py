"""Benchmarks: what they count, that they compare the same work, and that they run. No times."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import dlm
from dlm.bench import batch, memory, serve
from dlm.bench.baselines import float64_path, plain_loop, quotas
from dlm.bench.count import forward_flops, layer_weights, parameters, read_weights
from dlm.bench.machine import commit, processor
from dlm.bench.profile import by_function
from dlm.bench.replay import Recorder, replay
from dlm.bench.result import Result, shown
from dlm.bench.sampling import SamplingOptions
from dlm.bench.serve import requests_of
from dlm.bench.shapes import SHAPES, Shape, build, shape_of
from dlm.bench.step import count_flops, count_forwards
from dlm.bench.timing import Spread, ratio, take_turns
from dlm.bench.work import Work, agreement, random_prompts
from dlm.cli import app
from dlm.models.model import Model
from dlm.serving.engine import Engine

CPU = torch.device("cpu")
SMALL = Shape(8, 2, 2, 1, 12, 32, 64, 10000.0)
MINIMAL = ["--layers=1", "--prompt-length=20", "--gen-length=4", "--block-length=2", "--repeats=1"]


@pytest.fixture(scope="module")
def tiny() -> Model:
    return build(SHAPES["tiny"])


def bench(*args: str) -> Any:
    return CliRunner().invoke(app, ["bench", *args], prog_name="dlm")


def lines(*args: str) -> list[dict[str, Any]]:
    found = bench(*args, "--json")
    assert found.exit_code == 0, found.output
    return [json.loads(line) for line in found.stdout.splitlines()]


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


# Commands


@pytest.mark.parametrize("name", ["step", "decode", "cache", "batch", "serve"])
def test_every_benchmark_of_decodings_runs(name: str, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    args = [name, "--shape=tiny", *MINIMAL, f"--out={out}"]
    more = {"serve": ["--requests=3", "--load=9"], "cache": ["--refresh-around=2"]}
    args += more.get(name, [])
    found = lines(*args, "--batch-size=1", "--batch-size=2")
    assert [row["case"]["batch_size"] for row in found] == [1, 2]
    assert [json.loads(line) for line in out.read_text().splitlines()] == found
    for row in found:
        assert row["bench"] == name
        assert row["case"]["shape"] == "tiny"
        assert row["case"]["dtype"] == "float32"
        assert row["machine"]["threads"] == torch.get_num_threads()
        assert row["versions"]["torch"] == torch.__version__
        assert row["date"][:2] == "20"
        assert all(spread["median"] > 0 for spread in row["seconds"].values())
    equal = [row["found"].get("share of equal tokens", 1.0) for row in found]
    assert equal == [1.0, 1.0]


@pytest.mark.parametrize("command", [["batch", "--shape=tiny", *MINIMAL], ["sampling", "--rows=1"]])
def test_a_terminal_sees_what_is_timed(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On stderr, and nothing is left of it when the result is there; others see nothing."""
    small = ["--positions=2", "--vocabulary=50", "--dtype=float32", "--temperature=0"]
    args = [*command, *(small if command[0] == "sampling" else []), "--repeats=1", "--json"]
    assert not bench(*args).stderr
    monkeypatch.setattr("dlm.cli.bench.on_terminal", lambda: True)
    found = bench(*args)
    heard = found.stderr.split("\r")  # the runner takes colours and the like away
    last = {"batch": "one by one, 4 of 4", "sampling": "maximum and log-sum-exp, 8 of 8"}
    assert (heard[-2], heard[-1]) == (last[command[0]], "")
    assert json.loads(found.stdout)["bench"] == command[0]


@pytest.mark.parametrize("command", [["step", "--shape=tiny", *MINIMAL], ["sampling"]])
def test_results_that_cannot_be_kept_are_not_measured(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(options: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr(f"dlm.bench.{command[0]}.measure", measure)
    for path in (tmp_path, tmp_path / "nowhere" / "results.jsonl"):
        found = bench(*command, f"--out={path}")
        assert found.exit_code == 2
        assert f"--out must be a file that can be written, got {str(path)!r}: " in found.stderr
    found = bench(*command, f"--out={tmp_path / 'new'}")
    assert isinstance(found.exception, AssertionError)
    assert not list(tmp_path.iterdir())


def test_the_sampling_benchmark_runs() -> None:
    small = ["--rows=2", "--positions=4", "--vocabulary=3000", "--repeats=1", "--threads=1"]
    found = lines("sampling", *small)
    cases = [(row["case"]["dtype"], row["case"]["temperature"]) for row in found]
    assert cases == [(d, t) for d in ("bfloat16", "float32") for t in (0.0, 1.0)]
    assert found[0]["counted"]["least bytes, one read of the logits"] == 2 * 3000 * 2
    for row in found:
        assert row["found"]["largest relative error of confidence"] < 1e-5
        assert row["found"]["peak extra bytes, float64"] >= 2 * 3000 * 8


def test_requests_are_unlike_and_batches_take_what_waits(
    tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work("tiny", (4,), prompt_length=40, gen_length=16, block_length=8)
    requests = requests_of(work, tiny, 6)
    blanks = [end - begin for ((begin, end),) in (request.spans for request in requests)]
    assert (min(blanks), max(blanks), len({*blanks})) == (4, 16, 6)
    assert sorted(begin for ((begin, _),) in (request.spans for request in requests)) == [
        16, 20, 25, 30, 35, 40,
    ]  # fmt: skip
    taken: list[int] = []
    monkeypatch.setattr(serve, "answer", lambda model, some: taken.append(len(some)))
    now = time.perf_counter()
    over = serve.batched(tiny, 4, requests, [now] * 5 + [now + 0.05])
    assert taken == [4, 1, 1]
    assert over[-1] > now + 0.05
    engine = Engine(tiny)
    assert min(serve.joined(engine, requests, [now] * 6)) > now
    engine.close()
    with pytest.raises(RuntimeError, match="the engine is closed"):
        serve.joined(engine, requests, [now] * 6)


def test_tables_for_people() -> None:
    found = bench("step", "--shape=tiny", *MINIMAL, "--batch-size=1")
    assert found.exit_code == 0
    assert "(decode - network) / network" in found.stdout
    profiled = bench("step", "--shape=tiny", *MINIMAL, "--profile")
    assert "the network" in profiled.stdout
    assert "kernels.canvas" in profiled.stdout


@pytest.mark.parametrize(
    ("message", "args"),
    [
        ("unknown shape 'x'", ["step", "--shape=x"]),
        ("unknown decoder 'x'", ["decode", "--shape=tiny", *MINIMAL, "--decoder=x"]),
        ("block_length must divide gen_length", ["decode", "--gen-length=5", "--block-length=2"]),
        ("steps must be a multiple of the 2 blocks", ["decode", "--steps=3"]),
        ("steps must be an int >= 1", ["step", "--shape=tiny", *MINIMAL, "--steps=0"]),
        ("positions must be an int >= 32", ["sampling", "--positions=4"]),
        ("dtype must be one of", ["sampling", "--dtype=auto"]),
        ("torch sees no CUDA device", ["sampling", "--device=cuda"]),
        (
            "'--requests': must be an int >= 1, got '0'",
            ["serve", "--shape=tiny", *MINIMAL, "--requests=0"],
        ),
        (
            "load must be a finite number >= 1e-06, got 0.0",
            ["serve", "--shape=tiny", *MINIMAL, "--load=0"],
        ),
        ("must fit the model's 512 positions", ["batch", "--prompt-length=600", "--layers=1"]),
    ],
)
def test_bad_options_end_in_one_line(message: str, args: list[str]) -> None:
    if "--device=cuda" in args and torch.cuda.is_available():
        pytest.skip("there is one here")
    found = bench(*args)
    assert found.exit_code == 2
    assert message in found.stderr
    assert found.stderr.count("\n") == 1


def test_rows_refuse_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="temperature must be a finite number >= 0"):
        SamplingOptions(temperatures=(-1.0,))
