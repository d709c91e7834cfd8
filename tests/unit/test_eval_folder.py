"""The folder of a run: what is on disk after a kill, and what is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dlm.eval.folder import (
    SAMPLES,
    SETTINGS,
    Appender,
    Folder,
    digest,
    merged,
    read_run,
    replace_file,
    sample_files,
)
from dlm.eval.sample import Sample
from dlm.eval.tasks import TASKS

LAUNCH = {"started": "2026-01-01T00:00:00Z", "batch_size": 4}


def settings(**more: Any) -> dict[str, Any]:
    return {
        "task": "sudoku", "templates": ["plain", "words"], "decoder": "threshold",
        "decoder_options": {"threshold": 0.9}, "seed": 0, "task_version": 1, "model": "tiny",
        "data": {"sha256": "aa"}, "dtype": "float32", "device": "cpu", "dlm": "0.9",
        "generation": {"seed": 0},
    } | more  # fmt: skip


def sample(index: int = 0, template: str = "plain", **more: Any) -> Sample:
    made = Sample(
        task="sudoku", template=template, id=f"p{index}", index=index, prompt="?",
        prompt_tokens=1, output="caf\u00e9\n\ud800", tokens=[1, 2], order=[0, -1],
        response_tokens=1,
        decoded_tokens=2, forwards=3, query_tokens=9, seconds=0.5, answer="a",
        extracted={"solved": None}, scores={"solved": 1.0}, score=1.0, detail="", seed=0,
        settings=digest(settings()),
    )  # fmt: skip
    return replace(made, **more)


def begin(path: Path, problems: int = 3, **more: Any) -> Path:
    with Folder(path) as folder:
        folder.open(settings(**more), problems, LAUNCH)
    return path


def test_samples_come_back_in_the_order_of_templates_and_problems(tmp_path: Path) -> None:
    begin(tmp_path)
    appender = Appender(tmp_path / SAMPLES)
    made = [sample(2), sample(1, "words"), sample(0)]
    appender.add(made)
    appender.close()
    run = read_run(tmp_path)
    assert run.samples == [made[2], made[0], made[1]]
    assert (run.settings, run.problems, run.complete) == (settings(), 3, False)
    assert run.name == "threshold(threshold=0.9)"
    assert run.launches == [LAUNCH]


def test_a_run_is_complete_when_every_template_has_every_problem(tmp_path: Path) -> None:
    begin(tmp_path, problems=1)
    appender = Appender(tmp_path / SAMPLES)
    appender.add([sample(0)])
    assert not read_run(tmp_path).complete
    appender.add([sample(0, "words")])
    appender.close()
    assert read_run(tmp_path).complete


@pytest.mark.parametrize("cut", [1, 10, -2, -1])
def test_a_line_that_a_kill_cut_off_does_not_count(tmp_path: Path, cut: int) -> None:
    begin(tmp_path)
    path = tmp_path / SAMPLES
    path.write_text(sample(0).line() + sample(1).line()[:cut])
    assert read_run(tmp_path).samples == [sample(0)]
    appender = Appender(path)
    appender.add([sample(1)])
    appender.close()
    assert path.read_text() == sample(0).line() + sample(1).line()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{}\n", "missing"),
        ("nonsense\n", "damaged"),
        ("[1]\n", "damaged"),
        (sample(1).line().replace('"forwards"', '"fords"'), "fords"),
        (sample(1, settings="0" * 12).line(), "must be of settings"),
    ],
)
def test_damage_in_the_middle_is_told_not_dropped(tmp_path: Path, line: str, reason: str) -> None:
    begin(tmp_path)
    (tmp_path / SAMPLES).write_text(sample(0).line() + line + sample(2).line())
    with pytest.raises(ValueError, match=rf"samples.jsonl:2.*{reason}"):
        read_run(tmp_path)


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    begin(tmp_path)
    changes: dict[str, Any] = {"decoder": "saber", "seed": 1, "extra": "x", "templates": ["plain"]}
    for name, value in changes.items():
        with pytest.raises(ValueError, match=rf"holds a run with {name} "):
            begin(tmp_path, **{name: value})
    fewer = settings()
    del fewer["seed"]
    with (
        pytest.raises(ValueError, match="holds a run with seed 0, got unset"),
        Folder(tmp_path) as f,
    ):
        f.open(fewer, 3, LAUNCH)
    assert read_run(tmp_path).settings == settings()


def test_of_a_setting_with_entries_only_what_differs_is_named(tmp_path: Path) -> None:
    begin(tmp_path, generation={"steps": None, "seed": 0, "top_k": None}, data={"sha256": "a"})
    for changed, told in (
        ({"generation": {"steps": 5, "seed": 0, "top_k": None}}, "with steps None, got 5: give"),
        (
            {"generation": {"steps": 5, "seed": 1, "top_k": None}},
            "with steps None, got 5 and seed 0, got 1: give",
        ),
        ({"decoder_options": {}}, "with decoder_options threshold 0.9, got unset: give"),
        ({"generation": {"seed": 0, "top_k": None}}, "with steps None, got unset: give"),
        ({"unknown": None}, "with unknown unset, got None: give"),
        ({"data": {"sha256": "b"}}, "with data sha256 'a', got 'b': give"),
        ({"data": None}, "with data {'sha256': 'a'}, got None: give"),
    ):
        same: dict[str, Any] = {
            "generation": {"steps": None, "seed": 0, "top_k": None},
            "data": {"sha256": "a"},
        }
        with pytest.raises(ValueError, match=re.escape(f"holds a run {told} another folder")):
            begin(tmp_path, **same | changed)


def test_what_a_kill_left_of_a_file_is_removed(tmp_path: Path) -> None:
    begin(tmp_path)
    for name in (".run.json.4711", ".samples.jsonl.4711", ".kept"):
        (tmp_path / name).write_text("{")
    begin(tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {"lock", "run.json", ".kept"}


def test_a_file_that_cannot_be_replaced_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        replace_file(tmp_path / "folder", "text")
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]


def test_problems_may_grow_but_not_shrink(tmp_path: Path) -> None:
    begin(tmp_path, problems=3)
    begin(tmp_path, problems=5)
    assert read_run(tmp_path).problems == 5
    assert len(read_run(tmp_path).launches) == 2
    with pytest.raises(ValueError, match=r"--limit must be at least the 5 problems .*got 4"):
        begin(tmp_path, problems=4)


def test_samples_of_a_problem_may_grow_but_not_shrink(tmp_path: Path) -> None:
    with Folder(tmp_path) as folder:
        folder.open(settings(), 1, LAUNCH)
    appender = Appender(tmp_path / SAMPLES)
    appender.add([sample(0), sample(0, "words")])
    appender.close()
    assert read_run(tmp_path).complete
    with Folder(tmp_path) as folder:
        folder.open(settings(), 1, LAUNCH, samples=2)
    run = read_run(tmp_path)
    assert (run.repeats, run.complete, len(run.launches)) == (2, False, 2)
    appender = Appender(tmp_path / SAMPLES)
    appender.add([sample(0, "words", repeat=1), sample(0, repeat=1)])
    appender.close()
    run = read_run(tmp_path)
    assert run.complete
    assert [each.key for each in run.samples] == [
        ("plain", 0, 0), ("plain", 0, 1), ("words", 0, 0), ("words", 0, 1)
    ]  # fmt: skip
    told = r"--samples must be at least the 2 samples of each problem of the run in .*, got 1: or"
    with pytest.raises(ValueError, match=told), Folder(tmp_path) as folder:
        folder.open(settings(), 1, LAUNCH)


def test_a_folder_from_before_there_were_several_samples_goes_on(tmp_path: Path) -> None:
    begin(tmp_path, problems=1)
    record = json.loads((tmp_path / SETTINGS).read_text())
    del record["samples"]
    (tmp_path / SETTINGS).write_text(json.dumps(record))
    line = json.loads(sample(0).line())
    del line["repeat"], line["vote"]
    (tmp_path / SAMPLES).write_text(json.dumps(line) + "\n")
    run = read_run(tmp_path)
    assert (run.repeats, [each.repeat for each in run.samples]) == (1, [0])
    assert read_run(begin(tmp_path, problems=2)).samples == run.samples


def test_samples_of_another_time_vote_as_those_to_come(tmp_path: Path) -> None:
    begin(tmp_path, problems=2)
    scores = {"flexible": 1.0, "strict": 0.0}
    told = {"flexible": "$1,000.", "strict": None}
    old = json.loads(sample(0, extracted=told, scores=scores).line())
    del old["repeat"], old["vote"]
    again = {"flexible": "1,000", "strict": None}
    raw = sample(0, extracted=again, scores=scores, repeat=1, vote="1,000")
    none = sample(1, extracted={"flexible": None, "strict": "7"}, scores=scores)
    (tmp_path / SAMPLES).write_text(json.dumps(old) + "\n" + raw.line() + none.line())
    vote = TASKS["gsm8k"].metrics[0].vote
    with Folder(tmp_path) as folder:
        folder.open(settings(), 2, LAUNCH, samples=2, vote=vote)
    found = read_run(tmp_path).samples
    assert [each.vote for each in found] == ["1000", "1000", None]
    assert [each.reading for each in found] == ["$1,000.", "1,000", None]


def test_two_processes_do_not_write_to_one_folder(tmp_path: Path) -> None:
    with (
        Folder(tmp_path),
        pytest.raises(ValueError, match="is in use by another run"),
        Folder(tmp_path),
    ):
        pass
    begin(tmp_path)  # the lock is gone with its holder


def test_the_files_of_all_processes_become_one(tmp_path: Path) -> None:
    begin(tmp_path)
    (tmp_path / SAMPLES).write_text(sample(2).line())
    (tmp_path / "samples.rank1.jsonl").write_text(sample(1).line() + sample(0).line()[:5])
    # A kill between merging and deleting leaves samples in two files.
    (tmp_path / "samples.rank2.jsonl").write_text(sample(2).line() + sample(0, "words").line())
    before = read_run(tmp_path).samples
    begin(tmp_path)
    assert sample_files(tmp_path) == [tmp_path / SAMPLES]
    assert read_run(tmp_path).samples == before
    assert [each.key for each in before] == [("plain", 1, 0), ("plain", 2, 0), ("words", 0, 0)]
    assert list(merged([tmp_path / SAMPLES], digest(settings()))) == [s.key for s in before]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be the folder of a run"):
        read_run(tmp_path)
    (tmp_path / SETTINGS).write_text("{")
    with pytest.raises(ValueError, match=r"run\.json must be JSON"):
        read_run(tmp_path)
    (tmp_path / SETTINGS).write_text('{"format": "other"}')
    with pytest.raises(ValueError, match='must have "format": "dlm-eval"'):
        read_run(tmp_path)


def test_settings_changed_by_hand_are_noticed(tmp_path: Path) -> None:
    begin(tmp_path)
    record = json.loads((tmp_path / SETTINGS).read_text())
    record["settings"]["decoder"] = "saber"
    (tmp_path / SETTINGS).write_text(json.dumps(record))
    with pytest.raises(ValueError, match="was changed by hand"):
        read_run(tmp_path)


def test_a_sample_is_a_line_whatever_its_texts_hold() -> None:
    wild = sample(output="a\nb\u2028c\ud800\x00", prompt=[{"role": "user", "content": "\r\n"}])
    assert wild.line().count("\n") == 1
    assert wild.line().isascii()
    assert Sample.of(json.loads(wild.line())) == wild
