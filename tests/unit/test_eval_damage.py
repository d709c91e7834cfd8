"""Files of a run that something damaged: one sentence names the field, and nothing else happens."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlm.eval.fields import misfit
from dlm.eval.folder import SAMPLES, SETTINGS, Folder, digest, read_run
from dlm.eval.sample import Sample

NAN, INF = float("nan"), float("inf")
SETTINGS_OF: dict[str, Any] = {
    "task": "sudoku", "task_version": 1, "data": {"sha256": "aa"}, "templates": ["plain"],
    "model": "tiny", "dtype": "float32", "device": "cpu", "decoder": "threshold",
    "decoder_options": {}, "generation": {"seed": 0}, "dlm": "0.9",
}  # fmt: skip


def sample(**more: Any) -> dict[str, Any]:
    return {
        "task": "sudoku", "template": "plain", "id": "p", "index": 0, "repeat": 0, "prompt": "?",
        "prompt_tokens": 1, "output": "1", "tokens": [1, 2], "order": [0, -1],
        "response_tokens": 1, "decoded_tokens": 2, "forwards": 3, "query_tokens": 9,
        "seconds": 0.5, "answer": "a", "extracted": {"solved": None, "cells": "x"}, "vote": None,
        "scores": {"solved": 1.0, "cells": 0.5}, "score": 1, "detail": "", "seed": -1,
        "settings": digest(SETTINGS_OF),
    } | more  # fmt: skip


@pytest.fixture
def change(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder whose run.json, or the settings in it, are other ones; their hash is right."""
    with Folder(tmp_path) as folder:
        folder.open(SETTINGS_OF, 2, {"started": "2026", "commit": None, "batch_size": 4})

    def changed(**more: Any) -> Path:
        path = tmp_path / SETTINGS
        record = json.loads(path.read_text()) | more
        record["hash"] = digest(record["settings"])
        path.write_text(json.dumps(record))
        return tmp_path

    return changed


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("problems", None), ("problems", "x"), ("problems", 0), ("problems", True),
        ("problems", -1), ("problems", 1.5), ("samples", "y"), ("samples", 0), ("samples", None),
        ("launches", 5), ("launches", [5]), ("launches", {}), ("launches", [{"torch": []}]),
        ("settings", []), ("settings", None), ("settings", {}),
        *(("settings", {k: SETTINGS_OF[k] for k in SETTINGS_OF if k != n}) for n in SETTINGS_OF),
        *(("settings", SETTINGS_OF | {name: 1.5}) for name in SETTINGS_OF),
        ("settings", SETTINGS_OF | {"templates": [1]}), ("settings", SETTINGS_OF | {"data": {}}),
        ("settings", SETTINGS_OF | {"generation": {}}),
        ("settings", SETTINGS_OF | {"execution": "bare"}),
    ],
)  # fmt: skip
def test_a_damaged_run_is_told(change: Callable[..., Path], name: str, value: Any) -> None:
    folder = change(**{name: value})
    with pytest.raises(ValueError, match=rf"run\.json is damaged: .*{name}") as told:
        read_run(folder)
    assert "\n" not in str(told.value)
    with pytest.raises(ValueError, match=r"run\.json is damaged"), Folder(folder) as opened:
        opened.open(SETTINGS_OF, 2, {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("order", "x"), ("order", [-2]), ("order", [True]), ("order", [0.5]), ("tokens", [-1]),
        ("tokens", None), ("extracted", []), ("extracted", {}), ("extracted", {"solved": 1}),
        ("extracted", {"other": None}), ("scores", None), ("scores", {}), ("scores", {"solved": 2}),
        ("scores", {"solved": 1, "cells": NAN}), ("scores", {"solved": True, "cells": 1}),
        ("scores", {"solved": 0, "cells": 1}), ("prompt", None), ("prompt", [1]),
        ("prompt", [{"role": 1}]), ("template", []), ("id", 7), ("seconds", INF), ("seconds", -1),
        ("seconds", "1"), ("seconds", 10**400), ("forwards", -1), ("forwards", 1.5),
        ("index", None), ("repeat", False), ("score", NAN), ("score", True), ("score", 0.5),
        ("score", 2), ("score", None), ("vote", 1), ("seed", None), ("detail", None),
    ],
)  # fmt: skip
def test_a_damaged_sample_is_told(change: Callable[..., Path], name: str, value: Any) -> None:
    folder = change()
    line = json.dumps(sample(**{name: value}))
    (folder / SAMPLES).write_text(f"{json.dumps(sample())}\n{line}\n")
    told = rf"samples\.jsonl:2 is damaged: .*'{name}'"
    with pytest.raises(ValueError, match=told) as error:
        read_run(folder)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(folder)) + 300


def test_a_sound_run_is_read(change: Callable[..., Path]) -> None:
    folder = change(settings=SETTINGS_OF | {"execution": {"python": "3.11", "sandbox": "x"}})
    record = json.loads((folder / SETTINGS).read_text())
    rows = [sample(score=0.5, scores={"solved": 0.5, "cells": 0}), sample(index=1, prompt=[{}])]
    lines = [json.dumps(each | {"settings": record["hash"]}) + "\n" for each in rows]
    (folder / SAMPLES).write_text("".join(lines))
    assert [each.score for each in read_run(folder).samples] == [0.5, 1]


def test_samples_of_other_metrics_are_told(change: Callable[..., Path]) -> None:
    folder = change()
    other = sample(index=1, extracted={"solved": None}, scores={"solved": 1})
    (folder / SAMPLES).write_text(f"{json.dumps(sample())}\n{json.dumps(other)}\n")
    with pytest.raises(ValueError, match="is damaged: its samples have metrics"):
        read_run(folder)


def test_json_that_is_too_deep_is_told(change: Callable[..., Path]) -> None:
    folder = change()
    (folder / SAMPLES).write_text("[" * 200_000 + "\n")
    with pytest.raises(ValueError, match=r"samples\.jsonl:1 is damaged"):
        read_run(folder)
    (folder / SETTINGS).write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"run\.json must be JSON"):
        read_run(folder)


def test_what_is_wrong_is_said_as_options_are() -> None:
    assert misfit("x", [0, "a"], list[int]) == "x must be list[int] >= 0, got [0, 'a']"
    assert misfit("x", 2, float, 0, 1) == "x must be float in [0, 1], got 2"
    assert misfit("x", None, str) == "x must be str, got None"
    assert misfit("x", {"a": None}, dict[str, str | None]) is None
    assert misfit("x", [], list[int]) is misfit("x", object(), Any) is None
    assert re.search(r"\.\.\.", str(misfit("x", "1" * 999, int)))


def test_all_fields_of_a_sample_are_looked_at() -> None:
    assert Sample.of(sample()).line() == json.dumps(sample(score=1)) + "\n"
    for name in sample():
        with pytest.raises(ValueError, match=f"'{name}'"):
            Sample.of(sample(**{name: object()}))
