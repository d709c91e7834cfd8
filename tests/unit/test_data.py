"""Generators, scorers, splits and readers of `dlm.data`."""

import itertools
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dlm.data import (
    TASKS,
    Example,
    countdown,
    functions,
    generate_examples,
    is_held_out,
    load_examples,
    make_task,
    read_held_out,
    sudoku,
    word_problems,
)
from dlm.data.function_kinds import KINDS

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
FILES = (SHARED / "sudoku_4x4.csv", SHARED / "countdown.jsonl")
needs_files = pytest.mark.skipif(
    not all(path.exists() for path in FILES), reason="needs the public test files in ../shared/data"
)
PROMPTS = {name: next(generate_examples(name, 0)).prompt for name in TASKS}
every_task = pytest.mark.parametrize("task", list(TASKS))


def draw(task: str, count: int = 200, seed: int = 0) -> list[Example]:
    return list(generate_examples(task, seed, count=count))


def output_of(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@every_task
def test_references_are_correct(task: str) -> None:
    for item in draw(task, 400):
        assert item.task == task
        assert TASKS[task].is_correct(item.prompt, item.response), item


@every_task
def test_prompt_may_be_stripped_by_a_chat_template(task: str) -> None:
    for item in draw(task, 100):
        assert TASKS[task].is_correct(item.prompt.strip(), item.response)
        assert TASKS[task].is_correct(item.prompt, f"\n{item.response}\n")


@every_task
def test_answers_of_other_problems_are_wrong(task: str) -> None:
    items = draw(task, 60)
    accepted = sum(
        TASKS[task].is_correct(a.prompt, b.response) for a, b in itertools.permutations(items, 2)
    )
    assert accepted < 0.05 * 60 * 59  # equal answers happen: "#### 12", `return x + 2`


@every_task
def test_generation_is_a_function_of_its_arguments(task: str) -> None:
    assert draw(task) == draw(task)
    assert draw(task, 50) == draw(task)[:50]
    assert draw(task) != draw(task, seed=1)


def test_generation_is_the_same_in_a_fresh_process() -> None:
    code = (
        "from dlm.data import TASKS, generate_examples as g\n"
        "print([e for t in TASKS for e in g(t, 3, count=5)])"
    )
    assert output_of(code) == repr([item for task in TASKS for item in draw(task, 5, seed=3)])


@every_task
def test_splits_are_disjoint(task: str) -> None:
    train = {item.prompt for item in draw(task, 400)}
    test = {item.prompt for item in generate_examples(task, 0, count=40, split="test")}
    assert not any(map(is_held_out, train))
    assert all(map(is_held_out, test))
    assert not train & test


@every_task
def test_held_out_prompts_never_come_out(task: str) -> None:
    before = draw(task)
    held_out = frozenset(item.prompt for item in before[::2])
    after = list(generate_examples(task, 0, count=300, held_out=held_out))
    assert not held_out & {item.prompt for item in after}
    kept = [item for item in before if item.prompt not in held_out]
    assert after[: len(kept)] == kept


@needs_files
def test_real_test_items_never_come_out() -> None:
    held_out = read_held_out(FILES)
    assert len(held_out) == 1500
    for task in ("sudoku", "countdown"):
        examples = generate_examples(task, 0, count=3000, held_out=held_out)
        assert not held_out & {item.prompt for item in examples}


@every_task
@given(junk=st.text(max_size=80))
@example(junk="")
@example(junk="\x00")
@example(junk="####")
@example(junk="#### -")
@example(junk="1/0=0,0/0=0")
@example(junk="\ud800")
@example(junk="(" * 900)
@example(junk="    return " + "-" * 1900 + "1")
@example(junk="9" * 5000)
@example(junk="    return '\\d'")
def test_junk_is_wrong_and_never_raises(task: str, junk: str) -> None:
    is_correct = TASKS[task].is_correct
    assert is_correct(PROMPTS[task], junk) is False
    assert is_correct(junk, junk) is False


def test_make_task_suggests_the_closest_name() -> None:
    assert make_task("sudoku") is TASKS["sudoku"]
    assert all(name == task.name and task.description for name, task in TASKS.items())
    with pytest.raises(
        ValueError, match=r"unknown task 'sudoko'. Did you mean 'sudoku'\? Known: arithmetic,"
    ):
        make_task("sudoko")


def test_generate_examples_refuses_bad_arguments_at_once() -> None:
    with pytest.raises(ValueError, match="unknown task"):
        generate_examples("chess", 0)
    with pytest.raises(ValueError, match="count must be at least 0, got -1"):
        generate_examples("sudoku", 0, count=-1)
    with pytest.raises(ValueError, match="split must be 'train' or 'test'"):
        generate_examples("sudoku", 0, split="dev")  # type: ignore[arg-type]


def test_there_are_288_grids() -> None:
    grids = sudoku.all_grids()
    assert len(set(grids)) == len(grids) == 288
    assert list(grids) == sorted(grids)
    assert all(map(sudoku.is_grid, grids))


def test_sudoku_mostly_has_8_empty_cells() -> None:
    empty = [item.prompt.count("0") for item in draw("sudoku", 2000)]
    assert set(empty) <= set(range(4, 11))
    assert 0.78 < empty.count(8) / 2000 < 0.88


def test_sudoku_accepts_every_completion_and_nothing_else() -> None:
    solution = "1234341221434321"
    every = "Sudoku: 0000000000000000"
    assert all(sudoku.is_correct(every, grid) for grid in sudoku.all_grids())
    assert sudoku.is_correct("Sudoku: 1000000000000000", "1234 3412 2143 4321")
    assert not sudoku.is_correct("Sudoku: 2000000000000000", solution)
    assert not sudoku.is_correct(every, "1234123412341234")
    assert not sudoku.is_correct(every, solution[:-1])
    assert not sudoku.is_correct(every, solution + "1")


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("44-15=29,79-29=50", True),
        ("15-44=-29,-29+79=50", True),
        ("44 - 15 = 29, 79 - 29 = 50", True),
        ("44-15=29,79-29=51", False),  # false
        ("44-15=28,79-28=51", False),
        ("79-29=50", False),  # 29 from nowhere
        ("44-15=29,79-15=64", False),  # 15 twice
        ("44-15=29,15+79=94", False),
        ("44-15=29,79-29=50,50+0=50", False),
        ("44-15=29;79-29=50", False),
        ("15+44=59,59+79=138", False),  # another target
    ],
)
def test_countdown_scoring(response: str, expected: bool) -> None:
    assert countdown.is_correct("Countdown: 15,44,79,50", response) is expected


def test_countdown_accepts_other_solutions_and_exact_division_only() -> None:
    assert countdown.is_correct("Countdown: 3,3,24,24", "3-3=0,24-0=24")
    assert countdown.is_correct("Countdown: 3,3,24,24", "24*3=72,72/3=24")
    assert not countdown.is_correct("Countdown: 3,7,20,22", "7/3=2,20+2=22")
    assert not countdown.is_correct("Countdown: 0,0,20,22", "0/0=2,20+2=22")


def test_countdown_numbers_and_targets_are_in_range() -> None:
    for item in draw("countdown", 500):
        *numbers, target = map(int, item.prompt.removeprefix("Countdown: ").split(","))
        assert len(numbers) == 3
        assert all(1 <= number <= 99 for number in numbers)
        assert 10 <= target <= 99


def test_countdown_quick_check_agrees_with_the_search() -> None:
    rng = random.Random(0)
    for _ in range(3000):
        largest = rng.choice((9, 30, 99))
        numbers = [rng.randint(1, largest) for _ in range(3)]
        target = rng.randint(10, 99)
        found = countdown.solve(numbers, target) is not None
        assert countdown._has_solution(numbers, target) is found, (numbers, target)


@needs_files
def test_countdown_search_writes_the_files_answers() -> None:
    for item in countdown.read_jsonl(FILES[1]):
        *numbers, target = map(int, item.prompt.removeprefix("Countdown: ").split(","))
        assert ",".join(countdown.solve(numbers, target) or ()) == item.response


def test_word_problems_are_recovered_by_exactly_one_template() -> None:
    for item in draw("word_problems", 600):
        prompt = item.prompt
        fitting = [p for p, _ in word_problems._patterns() if p.fullmatch(prompt)]
        assert len(fitting) == 1, prompt
        assert word_problems.reference(prompt) == item.response


def test_word_problem_steps_are_true_and_small() -> None:
    results = []
    for item in draw("word_problems", 600):
        steps = re.findall("([0-9]+)([-+*/])([0-9]+)=([0-9]+)", item.response)
        assert len(steps) in (2, 3)
        for a, operation, b, result in steps:
            left, right = int(a), int(b)
            true = {"+": left + right, "-": left - right, "*": left * right, "/": left / right}
            assert true[operation] == int(result)
            results.append(int(result))
        assert word_problems.final_answer(item.response) == results[-1]
    assert max(results) <= 99
    assert sum(result < 50 for result in results) > 0.9 * len(results)


def test_word_problems_hardly_repeat() -> None:
    assert len({item.prompt for item in draw("word_problems", 2000)}) > 1900


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5+3=8. 8-2=6. #### 6", 6),
        ("#### 3 then #### 4 toys", 4),
        ("####7.", 7),
        ("#### -2", -2),
        ("#### 6.5", None),
        ("#### 1/2", None),
        ("6", None),
        ("#### six", None),
    ],
)
def test_final_answer(text: str, expected: int | None) -> None:
    assert word_problems.final_answer(text) == expected


def complete(prompt: str) -> Callable[[str], bool]:
    return partial(functions.is_correct, prompt)


def test_functions_are_recovered_by_exactly_one_wording() -> None:
    for item in draw("functions", 600):
        prompt = item.prompt.strip()
        assert sum(bool(p.fullmatch(prompt)) for p, _ in functions._patterns()) == 1, prompt
        assert functions.references(prompt)[0] == item.response


def test_every_kind_of_function_is_generated_and_parses() -> None:
    seen = set()
    for item in draw("functions", 1500):
        compile(item.prompt + item.response, "example", "exec")
        seen.add(functions.references(item.prompt))
        assert all(complete(item.prompt)(body) for body in functions.references(item.prompt))
    assert len(seen) >= len(KINDS) >= 12


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("    return x + 3", True),
        ("return x+3\n", True),
        ("    return (3 + x)  # done", True),
        ("    return x + 4", False),
        ("    return x + 3.0", False),
        ("    return y + 3", False),
        ("    return x - 3", False),
        ("    return x + 3\n    return x", False),
        ("    return x + 3\nprint(x)", False),
        ("    return x +", False),
    ],
)
def test_function_scoring(response: str, expected: bool) -> None:
    prompt = 'def add_three(x):\n    """Return x plus 3."""\n'
    assert functions.is_correct(prompt, response) is expected


def test_function_scoring_sees_through_names_of_locals_only() -> None:
    correct = complete('def total(xs):\n    """Add up xs with a loop."""\n')
    loop = "    {0} = 0\n    for {1} in xs:\n        {2}\n    return {0}"
    assert correct(loop.format("total", "v", "total += v"))
    assert correct(loop.format("s", "item", "s = s + item"))
    assert not correct(loop.format("s", "item", "s = item"))
    assert not correct(loop.format("s", "s", "s += s"))
    for unbound in ("v", "v0", "v1"):
        assert not correct(loop.format("s", "item", f"s += {unbound}"))


def test_function_scoring_of_comparisons() -> None:
    correct = complete('def f(n):\n    """Return whether n is greater than 7."""\n')
    assert correct("    return n > 7")
    assert correct("    return 7 < n")
    assert not correct("    return 7 > n")
    assert not correct("    return n >= 7")


def test_load_examples(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(
        '{"prompt": "1+1", "response": "2", "id": 7}\n\n{"prompt": "a", "response": ""}\n'
    )
    assert load_examples(path) == [Example("mine", "1+1", "2"), Example("mine", "a", "")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not a line of JSON"),
        (b'"\xff"', "not a line of JSON in UTF-8"),
        (b"[1]", "expected a JSON object, got list"),
        (b'{"prompt": "a"}', "must have 'response', got the keys 'prompt'"),
        (b'{"prompt": 3, "response": "a"}', "'prompt' must be a string, got 3"),
        (rb'{"prompt": "a", "response": "\ud800"}', "'response' must be text that UTF-8 can"),
    ],
)
def test_load_examples_names_file_and_line(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b'{"prompt": "a", "response": "b"}\n\n' + line + b"\n")
    with pytest.raises(ValueError, match=re.escape(f"{path}:3: ") + message):
        load_examples(path)


def test_a_mark_of_utf_8_begins_no_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n', encoding="utf-8-sig")
    assert load_examples(path) == [Example("mine", "a", "b")]


def test_read_held_out_tells_formats_apart_by_content(tmp_path: Path) -> None:
    puzzles, rows = tmp_path / "a.txt", tmp_path / "b.txt"
    items = draw("sudoku", 20) + draw("countdown", 20)
    lines = [f"{e.prompt.removeprefix(sudoku.PREFIX)},{e.response}" for e in items[:20]]
    puzzles.write_text("\n".join(["Puzzle,Solution", *lines]) + "\n")
    records = [
        {"input": e.prompt.removeprefix(countdown.PREFIX), "output": e.response} for e in items[20:]
    ]
    rows.write_text("\n".join(map(json.dumps, records)))
    assert sudoku.read_csv(puzzles) + countdown.read_jsonl(rows) == items
    assert read_held_out([puzzles, rows]) == {e.prompt for e in items}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello\n", "neither a sudoku CSV nor a countdown JSONL, starts 'hello'"),
        ("", "neither a sudoku CSV"),
        ("Puzzle,Solution\n123,456\n", ":2: not a 4x4 sudoku with its solution"),
        ('{"input": "1,2,3,7", "output": "1+2=3"}\n', ":1: not a countdown row"),
        ('{"input": "1,2,3,7"}\n', ":1: must have 'output', got the keys 'input'"),
        ("\udcff\n", " must be UTF-8"),
    ],
)
def test_read_held_out_refuses_other_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "file"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=re.escape(str(path)) + ".*" + message):
        read_held_out([path])


def test_import_is_light() -> None:
    code = (
        "import sys; import dlm.data, dlm.data.tokenizer\n"
        "print(*sorted({'torch', 'transformers', 'tokenizers', 'numpy'} & set(sys.modules)))"
    )
    assert output_of(code) == ""
