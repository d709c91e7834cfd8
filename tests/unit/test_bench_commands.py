"""`dlm bench`: every benchmark runs, and tells its results to people and to machines. No times."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from dlm.bench import serve
from dlm.bench.result import Result
from dlm.bench.sampling import SamplingOptions
from dlm.bench.serve import requests_of
from dlm.bench.shapes import SHAPES, build
from dlm.bench.work import Work
from dlm.cli import app
from dlm.models.model import Model
from dlm.serving.engine import Engine

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


TRIED = {
    "dual and 2 around",
    "dual, answers every 7",
    "dual, prompts every 9",
    "dual, all of these",
}


@pytest.mark.parametrize("name", ["step", "decode", "cache", "batch", "serve", "quantize"])
def test_every_benchmark_of_decodings_runs(name: str, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    args = [name, "--shape=tiny", *MINIMAL, f"--out={out}"]
    more = {"serve": ["--requests=3", "--load=9"], "cache": ["--refresh-around=2"]}
    more["cache"] += ["--refresh-prompt-every=9", "--refresh-answer-every=7"]
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
        if name == "cache":
            assert {*row["seconds"]} >= TRIED
        if name == "quantize":
            assert {*row["seconds"]} == {"float32", "w8a8"}
            whole, rounded = (row["found"][f"bytes of the weights, {n}"] for n in row["seconds"])
            assert rounded < whole
    equal = [row["found"].get("share of equal tokens", 1.0) for row in found]
    assert equal == [1.0, 1.0]


def test_a_block_may_be_longer_than_what_is_decoded() -> None:
    found = bench("decode", "--shape=tiny", *MINIMAL, "--block-length=9", "--json")
    assert json.loads(found.stdout)["found"]["share of equal tokens"] == 1.0


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
    assert (heard[-3], *heard[-2:]) == (last[command[0]], "", "")
    assert json.loads(found.stdout)["bench"] == command[0]


def test_an_error_has_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(work: Work) -> Iterator[Result]:
        work.told("batch", 0, 4)
        raise ValueError("the machine is on fire")
        yield

    monkeypatch.setattr("dlm.cli.bench.on_terminal", lambda: True)
    monkeypatch.setattr("dlm.bench.batch.measure", measure)
    found = bench("batch", "--shape=tiny", *MINIMAL)
    before, after = found.stderr.split("batch, 1 of 4\r")
    assert "on fire" not in before
    assert "on fire" in after


@pytest.mark.parametrize("name", ["step", "decode", "cache", "batch", "serve", "quantize"])
def test_decoders_take_options(name: str) -> None:
    own = ["--decoder=threshold", "--option=threshold=0"]
    args = [name, "--shape=tiny", *MINIMAL, "--batch-size=1", *own]
    (found,) = lines(*args, *(["--requests=1"] if name == "serve" else []))
    assert found["case"]["decoder_options"] == {"threshold": 0}
    if name == "decode":
        assert found["found"]["forwards"] == 2  # one a block
    wrong = bench(name, "--decoder=threshold", "--option=treshold=0")
    assert wrong.exit_code == 2
    assert "'treshold'" in wrong.stderr


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
