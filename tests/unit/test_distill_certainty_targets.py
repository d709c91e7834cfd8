"""Targets: the model's own outputs, on disk as they come."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import dlm
from dlm.data import Example
from dlm.distill import certainty_targets
from dlm.distill.certainty_targets import FILE, Target, Teacher, make_targets
from dlm.models.model import Model

TEACHER = Teacher(gen_length=5, block_length=3, batch_size=2)
PUZZLES = ["Sudoku: 3102200002100320", "Sudoku: 2400134030240000", "Sudoku: 0000000000000001"]


@pytest.fixture(scope="module")
def tiny() -> Model:
    return dlm.load()


def examples(count: int = 3) -> list[Example]:
    return [Example("sudoku", prompt, "not looked at") for prompt in PUZZLES[:count]]


def test_targets_are_what_the_model_decodes_one_by_one(tiny: Model, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    found = make_targets(tiny, examples(), TEACHER, tmp_path, report=lambda *n: told.append(n))
    chats = [[{"role": "user", "content": prompt}] for prompt in PUZZLES]
    expected = dlm.generate(tiny, chats, gen_length=5, block_length=3, steps=5)
    assert expected.forwards == [5, 5, 5]
    assert [each.response for each in found] == expected.tokens
    assert told == [(2, 3), (3, 3)]
    again = make_targets(tiny, examples(), TEACHER, tmp_path)
    assert again == found


def test_a_target_tells_whether_it_solves_its_task(tiny: Model, tmp_path: Path) -> None:
    own = Example("own", PUZZLES[0], "")
    found = make_targets(tiny, [*examples(1), own], Teacher(20, None), tmp_path / "long")
    assert [each.right for each in found] == [True, None]
    (short,) = make_targets(tiny, examples(1), TEACHER, tmp_path / "short")
    assert short.right is False


@pytest.mark.parametrize("kept", [0, 1, 2, 3, 3.5])
def test_a_file_that_was_cut_short_goes_on(kept: float, tiny: Model, tmp_path: Path) -> None:
    whole = make_targets(tiny, examples(), TEACHER, tmp_path / "whole")
    lines = (tmp_path / "whole" / FILE).read_text().splitlines(keepends=True)
    half = lines[int(kept)][:9] if kept % 1 else ""
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / FILE).write_text("".join(lines[: int(kept)]) + half)
    told: list[int] = []
    found = make_targets(
        tiny, examples(), TEACHER, tmp_path / "cut", report=lambda done, of: told.append(done)
    )
    assert found == whole
    assert (tmp_path / "cut" / FILE).read_text() == "".join(lines)
    assert told == ([2, 3] if kept < 3 else [3])


def test_batches_are_those_of_a_run_that_was_not_cut_short(
    tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_targets(tiny, examples(), TEACHER, tmp_path)
    lines = (tmp_path / FILE).read_text().splitlines(keepends=True)
    (tmp_path / FILE).write_text("".join(lines[:2]))
    sizes: list[int] = []

    def spy(model: Model, prompts: Sequence[list[int]], **options: Any) -> Any:
        sizes.append(len(prompts))
        return dlm.generate(model, prompts, **options)

    monkeypatch.setattr(certainty_targets, "generate", spy)
    make_targets(tiny, examples(), TEACHER, tmp_path)
    assert sizes == [2, 1]
    assert (tmp_path / FILE).read_text() == "".join(lines)


def test_a_file_of_other_settings_or_prompts_is_refused(tiny: Model, tmp_path: Path) -> None:
    make_targets(tiny, examples(), TEACHER, tmp_path, name="a")
    with pytest.raises(ValueError, match=r"these differ: \['model'\]"):
        make_targets(tiny, examples(), TEACHER, tmp_path, name="b")
    with pytest.raises(ValueError, match=r"these differ: \['gen_length'\]"):
        make_targets(tiny, examples(), Teacher(6, 3), tmp_path, name="a")
    with pytest.raises(ValueError, match="targets of other prompts, from line 2"):
        make_targets(tiny, examples()[::-1], TEACHER, tmp_path, name="a")
    with pytest.raises(ValueError, match=r"these differ: \['prompts'\]"):
        make_targets(tiny, examples(2), TEACHER, tmp_path, name="a")
    assert len(make_targets(tiny, examples(), Teacher(5, 3, 7), tmp_path, name="a")) == 3


def test_a_file_of_another_model_of_the_same_name_is_refused(tiny: Model, tmp_path: Path) -> None:
    make_targets(tiny, examples(1), TEACHER, tmp_path, name="a")
    other = replace(tiny, spec=replace(tiny.spec, mask_id=700, never=(3,)))
    with pytest.raises(ValueError, match=r"these differ: \['mask_id', 'never'\]"):
        make_targets(other, examples(1), TEACHER, tmp_path, name="a")
    moved = dlm.load()
    with torch.no_grad():
        list(moved.network.parameters())[-1].view(-1)[-1] += 1
    with pytest.raises(ValueError, match=r"these differ: \['weights'\]"):
        make_targets(moved, examples(1), TEACHER, tmp_path, name="a")
    with pytest.raises(ValueError, match=r"these differ: \['dtype', 'weights'\]"):
        make_targets(dlm.load(dtype="bfloat16"), examples(1), TEACHER, tmp_path, name="a")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (1, "[1]"), (1, "nonsense"), (1, "\xff"), (2, "nonsense"), (2, ""), (2, "[1]"),
        (3, '{"prompt": [1]}'), (3, '{"prompt": 1, "response": 2, "right": null}'),
        (3, '{"prompt": [1], "response": [1], "right": null}'),
        (3, '{"prompt": [1], "response": [1, 1, 1, 1, 9999], "right": null}'),
        (3, '{"prompt": [1], "response": [1, 1, 1, 1, 1], "right": "so"}'),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named(line: int, text: str, tiny: Model, tmp_path: Path) -> None:
    make_targets(tiny, examples(), TEACHER, tmp_path)
    path = tmp_path / FILE
    lines = path.read_bytes().split(b"\n")
    lines[line - 1] = text.encode("latin-1")
    path.write_bytes(b"\n".join(lines))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"{FILE} is damaged in line {line}, delete it: "):
        make_targets(tiny, examples(), TEACHER, tmp_path)
    assert path.read_bytes() == before


def test_nothing_is_written_for_targets_that_do_not_fit(tiny: Model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must fit the model's 512 positions"):
        make_targets(tiny, examples(), Teacher(512), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_targets_are_refused(tiny: Model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="need at least one prompt, got none"):
        make_targets(tiny, [], TEACHER, tmp_path)
    (found,) = make_targets(tiny, examples(1), TEACHER, tmp_path)
    with (tmp_path / FILE).open("a") as file:
        file.write(json.dumps(asdict(found)) + "\n")
    with pytest.raises(ValueError, match="damaged, delete it: it holds 2 targets of 1 prompts"):
        make_targets(tiny, examples(1), TEACHER, tmp_path)
    for options in ({"gen_length": 0}, {"block_length": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="must be an int >= 1, got 0"):
            Teacher(**options)


def test_prompts_may_stand_as_they_are(tiny: Model, tmp_path: Path) -> None:
    (found,) = make_targets(tiny, examples(1), TEACHER, tmp_path, chat=False)
    assert tiny.tokenizer is not None
    assert found == Target(tiny.tokenizer(PUZZLES[0])["input_ids"], found.response, False)
