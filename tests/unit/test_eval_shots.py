"""Solved examples show no answer of a problem that is scored."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from dlm.eval.plan import Plan, choose_options, make_plan
from dlm.eval.tasks import TASKS

ROWS = [{"question": f"Question {n}?", "answer": f"It is {n}.\n#### {n}"} for n in range(9)]
REFUSED = "--shots must hold no problem that is scored, .* 'base_4shot' have problem '{}' of --data"


def write(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def plan(
    data: Path | None, shots: Path | None = None, limit: int | None = None, task: str = "gsm8k"
) -> Plan:
    name = "base_4shot" if task == "gsm8k" else "base_5shot"
    of = TASKS[task]
    options = choose_options(of, None, {})
    return make_plan(of, (of.template(name),), options, data=data, shots=shots, limit=limit)


def test_the_training_file_is_not_scored_with_its_own_examples(tmp_path: Path) -> None:
    train = write(tmp_path / "gsm8k_train.jsonl", ROWS)
    with pytest.raises(ValueError, match=REFUSED.format("0")):
        plan(train, limit=2)
    other = plan(write(tmp_path / "test.jsonl", ROWS[4:]))
    assert [each.fields for each in other.shots["base_4shot"]] == [
        {"question": row["question"]} for row in ROWS[:4]
    ]


def test_shots_may_not_be_a_copy_or_a_part_of_the_data(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", ROWS[3:])
    copy = write(tmp_path / "copy.jsonl", ROWS[3:])
    part = write(tmp_path / "part.jsonl", ROWS[:4])
    blanks = [{**row, "question": row["question"] + "\n"} for row in ROWS[:4]]
    for shots in (copy, part, write(tmp_path / "blanks.jsonl", blanks)):
        with pytest.raises(ValueError, match=REFUSED.format("0")):
            plan(data, shots)
    last = write(tmp_path / "last.jsonl", ROWS[-4:])
    with pytest.raises(ValueError, match=REFUSED.format("2")):
        plan(data, last)
    assert len(plan(data, last, limit=2).problems) == 2  # none of them is an example


def test_a_solution_worded_apart_makes_no_other_problem(tmp_path: Path) -> None:
    rows = [
        {"problem": f"Half of {n}?", "solution": f"It is {n / 2}.", "answer": str(n / 2),
         "subject": "Algebra", "level": 1, "unique_id": str(n)}
        for n in range(6)
    ]  # fmt: skip
    apart = [{**row, "solution": f"Clearly: {row['solution']}"} for row in rows]
    data, shots = tmp_path / "data.jsonl", tmp_path / "shots.jsonl"
    for path, lines in ((data, rows), (shots, apart)):
        path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    math = TASKS["math500"]
    template = next(each for each in math.templates if each.shots)
    with pytest.raises(ValueError, match="--shots must hold no problem that is scored"):
        make_plan(math, (template,), choose_options(math, None, {}), data=data, shots=shots)


@pytest.mark.parametrize("task", ["sudoku", "countdown"])
def test_built_in_examples_are_not_scored(task: str) -> None:
    made = plan(None, task=task)
    assert len(made.shots["base_5shot"]) == 5
