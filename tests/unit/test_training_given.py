"""What training is given: budgets, positions, held-out prompts, numbers, the score's options."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dlm
from dlm.cli.corpus import read_user_examples
from dlm.data import Example, generate_examples, load_examples
from dlm.models.tokenizers import read_tokenizer
from dlm.training import score
from dlm.training.batches import Batches, rows_within
from dlm.training.loop import Recipe
from dlm.training.run import Shape, new_network, train

ASSETS = Path(dlm.__file__).parent / "assets" / "tiny"
BATCH: dict[str, Any] = {"tokens_per_batch": 400, "max_extra": 8, "seed": 0}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return read_tokenizer(str(ASSETS))


@given(st.integers(1, 60), st.lists(st.integers(1, 90), min_size=1))
def test_rows_are_as_many_as_fit(budget: int, lengths: list[int]) -> None:
    rows = rows_within(budget, lengths)
    assert 1 <= rows <= len(lengths)
    assert rows == 1 or rows * max(lengths[:rows]) <= budget
    assert rows == len(lengths) or (rows + 1) * max(lengths[: rows + 1]) > budget


def test_a_batch_stays_within_its_tokens_or_is_one_row(tokenizer: Any) -> None:
    mixed = [Example("own", "a", "b")] * 30 + [Example("own", "a", "1" * 300)]
    batches = Batches(tokenizer, {"file": 1.0}, examples=mixed, **BATCH)
    shapes = [batches[step].tokens.shape for step in range(120)]
    assert max(length for _, length in shapes) > 300
    assert any(rows > 20 for rows, _ in shapes)
    assert all(rows * length <= 400 or rows == 1 for rows, length in shapes)


def test_a_row_longer_than_the_tokens_comes_alone(tokenizer: Any) -> None:
    long = [Example("own", "a", "1" * 600)]
    batch = Batches(tokenizer, {"file": 1.0}, examples=long, **BATCH)[0]
    assert batch.tokens.shape[0] == 1
    assert batch.tokens.shape[1] > 600


def fit(tokenizer: Any, out: Path, *, positions: int = 64, **options: Any) -> None:
    """Train a step with a network of some positions."""
    recipe: dict[str, Any] = {"tasks": {"file": 1.0}, "steps": 1, "tokens_per_batch": 90}
    examples = options.pop("examples", ())
    shape = Shape(width=32, layers=1, heads=2, mlp_width=64, max_length=positions)
    network = new_network(shape, tokenizer, 0)
    train(Recipe(**(recipe | options)), network, tokenizer, out, examples=examples)


def test_own_rows_fit_the_positions(tokenizer: Any, tmp_path: Path) -> None:
    data = tmp_path / "own.jsonl"
    rows = [{"prompt": "a", "response": "1" * length} for length in (3, 54, 55)]
    data.write_text("\n".join(map(json.dumps, rows)))  # 9 tokens are around a response
    examples = load_examples(data)
    fit(tokenizer, tmp_path / "fits", examples=examples[:2], max_extra=0)
    told = r"own\.jsonl:3: a row must fit the network's 64 positions, got 65 tokens and 0 of max_e"
    with pytest.raises(ValueError, match=told):
        fit(tokenizer, tmp_path / "long", examples=examples, max_extra=0)
    told = r"own\.jsonl:2: .* got 64 tokens and 1 of max_extra=1$"
    with pytest.raises(ValueError, match=told):
        fit(tokenizer, tmp_path / "extra", examples=examples[:2], max_extra=1)
    assert not (tmp_path / "long").exists()


def test_generated_rows_fit_the_positions(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"task 'sudoku': .* 512 .* and 3000 of max_extra=3000"):
        fit(tokenizer, tmp_path, positions=512, max_extra=3000, tasks={"sudoku": 1.0})


def test_rows_that_come_later_fit_the_positions(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlm.training.batches.SAMPLE", 1)
    made = iter([Example("sudoku", "a", "b"), *[Example("sudoku", "a", "1" * 90)] * 30])
    monkeypatch.setattr("dlm.training.batches.generate_examples", lambda *_: made)
    batches = Batches(tokenizer, {"sudoku": 1.0}, max_length=64, **BATCH)
    with pytest.raises(ValueError, match="task 'sudoku': a row must fit the network's 64"):
        batches[0]


@pytest.mark.parametrize("name", ["weight_decay", "max_extra", "warmup"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, True])
def test_numbers_of_a_recipe(name: str, value: float) -> None:
    rule = "a finite number" if name == "weight_decay" else "an int"
    with pytest.raises(ValueError, match=f"{name} must be {rule} >= 0, got {value!r}"):
        Recipe(**{"tasks": {"sudoku": 1.0}, name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(("held", "own"), [("a", "a \n"), (" a", "a")])
def test_blanks_do_not_make_a_held_out_prompt_another(
    tokenizer: Any, tmp_path: Path, held: str, own: str
) -> None:
    examples = [Example("own", own, "1"), Example("own", "b", "2")]
    batches = Batches(
        tokenizer, {"file": 1.0}, examples=examples, held_out=frozenset({held}), **BATCH
    )
    assert batches.examples == examples[1:]
    data = tmp_path / "own.jsonl"
    data.write_text(json.dumps({"prompt": own, "response": "1"}))
    with pytest.raises(ValueError, match="holds no example to train on"):
        read_user_examples(data, frozenset({held}))


def test_generated_prompts_are_held_out_without_their_blanks(tokenizer: Any) -> None:
    names = {example.prompt for example in generate_examples("functions", 0, count=400)}
    assert all(name != name.strip() for name in names)
    held = frozenset(name.strip() for name in names)
    batches = Batches(tokenizer, {"functions": 1.0}, held_out=held, **BATCH)
    text = "".join(tokenizer.decode(row) for step in range(20) for row in batches[step].tokens)
    assert "def " in text
    assert not [name for name in held if name in text]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "0"], "--count must be an int >= 1, got 0"),
        (["--count=-3"], "--count must be an int >= 1, got -3"),
        (["--decoder", "nope"], "argument --decoder: invalid choice: 'nope'"),
    ],
)
def test_bad_options_of_the_score(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["score", *arguments])
    with pytest.raises(SystemExit) as left:
        score.main()
    out, err = capsys.readouterr()
    assert (left.value.code, out) == (2, "")
    assert message in err
