"""Infilling tasks from their problems to their reports, where blanks stay as many and where not."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import typer
from transformers import AutoTokenizer
from typer.testing import CliRunner, Result

import dlm
from dlm.cli.errors import Commands
from dlm.eval.cli import attach
from dlm.eval.comparison import compare
from dlm.eval.folder import Run, read_run
from dlm.eval.plan import Plan, choose_options, choose_templates, make_plan
from dlm.eval.report import write_report
from dlm.eval.report.heat import GROWN
from dlm.eval.runner import evaluate
from dlm.eval.sample import Sample
from dlm.eval.task import Check
from dlm.eval.tasks import TASKS
from dlm.models.facts import resolve
from dlm.models.model import Model
from dlm.outputs import Generation
from dlm.training.run import Shape, new_network

EXPAND = 300
LINES = [
    ("double", "x", ["    y = x\n", "\n", "    y += x\n", "    return y\n"]),
    ("three", "", ["    return 3\n"]),
]
TESTS = {"double": "    assert f(4) == 8\n", "three": "    assert f() == 3\n"}
TASK = TASKS["humaneval_infill"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Problems of our own, of which four have a line to fill."""
    path = tmp_path_factory.mktemp("data") / "own.jsonl"
    records = [
        {
            "task_id": f"Own/{number}", "entry_point": name, "prompt": f"def {name}({given}):\n",
            "canonical_solution": "".join(lines), "test": f"def check(f):\n{TESTS[name]}",
        }
        for number, (name, given, lines) in enumerate(LINES)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def talker() -> Model:
    """A random network that asks for blanks, with the built-in tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(Path(dlm.__file__).parent / "assets" / "tiny")
    shape = Shape(width=32, layers=1, heads=2, mlp_width=64)
    network = new_network(shape, tokenizer, 0).eval().double()  # its logits are near each other
    model = Model(network, tokenizer, resolve(network.config, [], tokenizer))
    return replace(model, spec=replace(model.spec, expand_id=EXPAND))


@dataclass(frozen=True, slots=True)
class Ran:
    passed: bool
    kind: str = "ran"
    detail: str = ""


class Box:
    """Stands in for the sandbox: whatever returns three passes."""

    def __init__(self) -> None:
        self.programs: list[str] = []

    def run_all(self, checks: list[Check]) -> list[Ran]:
        self.programs += [each.solution for each in checks]
        return [Ran("return 3" in each.solution) for each in checks]

    def facts(self) -> dict[str, Any]:
        return {"sandbox": "none", "python": "3"}


def plan(data: Path, *, templates: tuple[str, ...] = ("blanks_4",), **more: Any) -> Plan:
    samples, limit = more.pop("samples", 1), more.pop("limit", None)
    preset = more.pop("preset", None)
    options = choose_options(TASK, preset, more)
    chosen = choose_templates(TASK, list(templates), chat=True)
    return make_plan(TASK, chosen, options, data=data, samples=samples, limit=limit)


def grown(data: Path, model: Model, **more: Any) -> Plan:
    """Blanks that become more and fewer now and then."""
    bias = {EXPAND: 4.5, model.spec.eos_id: 3.5}
    options: dict[str, Any] = {"max_gen_length": 9, "temperature": 1.0, "logit_bias": bias}
    return plan(data, **{**options, **more})


def run(model: Model, made: Plan, folder: Path, **more: Any) -> Run:
    return evaluate(model, made, folder, name="m", sandbox=more.pop("box", Box()), **more)


def facts(found: Run) -> list[tuple[Any, ...]]:
    """All of a run's samples but the time they took."""
    names = [name for name in Sample.__dataclass_fields__ if name != "seconds"]
    return [tuple(getattr(each, name) for name in names) for each in found.samples]


def test_a_run_tells_what_it_filled(talker: Model, data: Path, tmp_path: Path) -> None:
    box, made = Box(), plan(data, templates=("oracle", "blanks_8"))
    found = run(talker, made, tmp_path, box=box)
    assert found.complete
    assert (found.problems, len(found.samples)) == (4, 8)
    assert plan(data, templates=("all",)).templates == TASK.templates
    assert talker.tokenizer is not None
    for each, item in zip(found.samples, made.items(talker), strict=True):
        assert (each.id, each.template) == (item.problem.id, item.template.name)
        (whole,) = dlm.infill(talker, each.prompt, block_length=None, row_keys=[each.index]).tokens
        assert item.blanks is not None
        assert each.tokens == whole[item.blanks.start : item.blanks.stop]
        assert each.output == talker.tokenizer.decode(each.tokens, skip_special_tokens=True)
        assert sorted(each.order) == list(range(len(item.blanks)))
        assert each.forwards == each.decoded_tokens == len(item.blanks)
        assert each.query_tokens == each.forwards * len(whole)
        assert each.prompt_tokens + len(each.tokens) == len(whole)
        program = item.problem.fields["prefix"] + each.output + item.problem.fields["suffix"]
        assert each.extracted == {"pass@1": program, "exact match": each.output}
        assert program in box.programs


@pytest.mark.parametrize("kind", ["stays", "grows"])
def test_batches_and_a_stop_in_between_change_nothing(
    talker: Model, data: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make: Callable[..., Plan] = plan if kind == "stays" else lambda d, **o: grown(d, talker, **o)
    made = make(data, samples=3, temperature=1.0)
    whole = run(talker, made, tmp_path / "whole", batch_size=16)
    assert facts(run(talker, made, tmp_path / "alone", batch_size=1)) == facts(whole)

    class Stop(Exception):
        pass

    def stop(progress: Any) -> None:
        raise Stop

    with pytest.raises(Stop):
        run(talker, make(data, samples=2, temperature=1.0), tmp_path / "parts", batch_size=3,
            report=stop)  # fmt: skip
    there = {each.key for each in read_run(tmp_path / "parts").samples}
    assert len(there) == 3
    calls: list[int] = []
    each = dlm.infill_each

    def counted(model: Model, rows: Any, **options: Any) -> Any:
        calls.extend(options.get("row_keys", ()))
        return each(model, rows, **options)

    monkeypatch.setattr(dlm, "infill_each", counted)
    assert facts(run(talker, made, tmp_path / "parts", batch_size=3)) == facts(whole)
    assert len(calls) == len(set(calls)) == len(whole.samples) - len(there)


def test_blanks_that_grow_have_outputs_of_their_own_lengths(
    talker: Model, data: Path, tmp_path: Path
) -> None:
    found = run(talker, grown(data, talker, samples=8), tmp_path / "a")
    assert talker.tokenizer is not None
    lengths = {len(each.tokens) for each in found.samples}
    assert min(lengths) < 4 < max(lengths) <= 9
    for each in found.samples:
        assert not {EXPAND, talker.spec.mask_id, talker.spec.eos_id} & set(each.tokens)
        assert each.order == []
        assert each.decoded_tokens == len(each.tokens)
        assert each.output == talker.tokenizer.decode(each.tokens, skip_special_tokens=True)
        before, behind = str(each.prompt).split("[MASK:4]")
        assert each.extracted["pass@1"] == before + each.output + behind
    assert found.settings["generation"]["max_gen_length"] == 9
    fixed = run(talker, plan(data, temperature=1.0, samples=8), tmp_path / "b")
    (pair,) = compare([found, fixed])
    assert pair.pairs == 4
    write_report([found, fixed], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count(GROWN) == 1  # the other run has a map
    assert "Commit order of" in page


def test_what_does_not_fit_counts_as_failed(talker: Model, data: Path, tmp_path: Path) -> None:
    """Though a program without the line might pass."""

    class Passes(Box):
        def run_all(self, checks: list[Check]) -> list[Ran]:
            return [Ran(passed=True) for _ in checks]

    made = plan(data, templates=("blanks_4", "blanks_64"))
    longest = max(item.given for item in made.items(talker)) + 4
    short = replace(talker, spec=replace(talker.spec, max_length=longest))
    found = run(short, made, tmp_path / "a", box=Passes())
    scores = {each.template: each.score for each in found.samples}
    assert scores == {"blanks_4": 1.0, "blanks_64": 0.0}
    assert all((each.forwards > 0) == (each.score == 1) for each in found.samples)
    details = [each.detail for each in found.samples if not each.score]
    assert f"64 to decode exceed the model's {longest} positions" in details[0]
    again = run(short, grown(data, short, templates=("blanks_4",)), tmp_path / "b", box=Passes())
    assert {each.forwards > 0 for each in again.samples} == {True, False}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"templates": ("blanks_16",)},
            "must hold the blanks of each problem, got 9 for the 16 of 'SingleLineInfilling/Own/0",
        ),
        ({"steps": 3}, "steps is not for blanks that grow"),
        ({"decoder": "wino"}, "decoder must not take tokens back where blanks grow"),
        ({"max_gen_length": 0}, "max_gen_length must hold the blanks of each problem, got 0"),
        ({"max_gen_length": 512}, "max_gen_length must be below the model's 512 positions"),
    ],
)
def test_what_cannot_be_is_refused_before_there_is_a_folder(
    talker: Model, data: Path, tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(talker, grown(data, talker, **more), tmp_path / "out")
    fixed = replace(talker, spec=replace(talker.spec, expand_id=None))
    with pytest.raises(ValueError, match="max_gen_length is for networks that ask for blanks"):
        run(fixed, plan(data, preset="dreamon"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_references_pass_in_the_sandbox(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a network that knows them: with one line wrong, one program fails."""
    app = typer.Typer(cls=Commands)
    attach(app)

    def dlm_eval(*given: str) -> Result:
        return CliRunner().invoke(app, ["eval", *given], prog_name="dlm")

    answers = [line for _, _, lines in LINES for line in lines if line.strip()]
    answers[1] = "    y -= x\n"

    def each(
        model: Model, rows: list[list[int]], **options: Any
    ) -> Iterator[tuple[int, Generation]]:
        for place, row in enumerate(rows):
            key = options.get("row_keys", [0] * len(rows))[place]
            assert model.tokenizer is not None
            inside = model.tokenizer(answers[key], add_special_tokens=False)["input_ids"]
            first, count = row.index(model.spec.mask_id), row.count(model.spec.mask_id)
            made = [*row[:first], *inside, *row[first + count :]]
            yield place, Generation([made], ["?"], [count], [2], [9], order=[[0] * len(made)])

    monkeypatch.setattr(dlm, "infill_each", each)
    given = ("humaneval_infill", "--data", str(data), "--output", str(tmp_path / "out"))
    result = dlm_eval(*given, "--json")
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout)
    assert (row["score"], row["samples"], row["template"]) == (0.75, 4, "oracle")
    assert row["scores"] == {"pass@1": 0.75, "exact match": 0.75}
    samples = read_run(tmp_path / "out").samples
    assert [each.score for each in samples] == [1.0, 0.0, 1.0, 1.0]
    assert "AssertionError" in samples[1].detail
    result = dlm_eval("humaneval_infill", "--list")
    for told in ("oracle", "blanks_64", "blanks", "dreamon", "max_gen_length=64"):
        assert told in result.stdout
