"""Presets are what papers report, decoder and prompt included, and what the user gives wins."""

import re
from collections.abc import Mapping
from typing import Any

import pytest

from dlm.decoders import DECODERS, Threshold, make
from dlm.eval.plan import GROWTH, choose_options, choose_templates
from dlm.eval.task import Preset, Task
from dlm.eval.tasks import TASKS
from dlm.published import PUBLISHED, Published
from dlm.settings import Settings

PRESETS = [(task, preset) for task in TASKS.values() for preset in task.presets]
NAMES = [f"{task.name}-{preset.name}" for task, preset in PRESETS]
ELSEWHERE = {"GPQA", "IFEval", "ARC-E"}  # tasks that settings are complete for, but not ours
DEFAULTS = {
    "gsm8k": (256, 32), "humaneval": (256, 32), "mbpp": (256, 32), "math500": (512, 64),
    "sudoku": (20, None), "countdown": (24, None), "word_problems": (36, None),
    "functions": (36, None), "arithmetic": (42, None),
    "humaneval_infill": (None, None), "humaneval_infill_multi": (None, None),
}  # fmt: skip
OURS = {"built-in", "usual"}  # presets of no paper


def settings(options: Mapping[str, Any]) -> Settings:
    """Options but for those of blanks that may grow."""
    return Settings.of({name: each for name, each in options.items() if name not in GROWTH})


@pytest.mark.parametrize(("task", "preset"), PRESETS, ids=NAMES)
def test_a_preset_makes_its_decoder(task: Task, preset: Preset) -> None:
    assert {"decoder", "decoder_options"} <= set(preset.options) or preset.name == "built-in"
    made = settings(preset.options)
    assert made.policy == make(preset.decoder, **preset.decoder_options)
    assert settings(choose_options(task, preset.name, {})).policy == made.policy


@pytest.mark.parametrize(("task", "preset"), PRESETS, ids=NAMES)
def test_a_preset_has_the_solved_examples_of_its_paper(task: Task, preset: Preset) -> None:
    (runs,) = choose_templates(task, [], chat=True, preset=preset.name)
    assert runs.name == (preset.template or task.default_template(chat=True).name)
    told = re.search(r"(\d+)-shot", preset.source)
    if told is not None and runs.shots != int(told[1]):
        assert f"with {told[1]} solved examples" in preset.reported


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_without_a_preset_a_task_runs_as_ever(task: Task) -> None:
    """Runs that were begun before presets had decoders go on."""
    options = choose_options(task, None, {})
    assert (options["decoder"], options["decoder_options"]) == ("low_confidence", None)
    assert (options.get("gen_length"), options["block_length"]) == DEFAULTS[task.name]
    usual = (options[name] for name in ("steps", "temperature", "confidence_eos_eot_inf"))
    assert tuple(usual) == (None, 0.0, False)
    assert task.presets[0].template is None


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row.decoder}-{row.task}")
def test_a_published_setting_is_one_of_its_decoder(row: Published) -> None:
    settings({"decoder": row.decoder, "decoder_options": row.decoder_options, **row.options})
    assert row.decoder in DECODERS
    assert row.source
    if row.preset is not None:
        infills = row.task in TASKS and TASKS[row.task].infills
        assert set(row.options) >= {"max_gen_length" if infills else "gen_length", "block_length"}
        assert row.task in TASKS or row.task in ELSEWHERE


def test_the_published_settings_of_tasks_are_their_presets() -> None:
    runnable = [row for row in PUBLISHED if row.preset is not None and row.task in TASKS]
    assert len({(row.task, row.preset) for row in runnable}) == len(runnable)
    for row in runnable:
        preset = TASKS[row.task].preset(row.preset)
        assert (preset.decoder, preset.decoder_options) == (row.decoder, row.decoder_options)
        assert (preset.generation, preset.template) == (row.options, row.template)
        assert (preset.source, preset.reported) == (row.source, row.reported)
    named = {(task.name, preset.name) for task, preset in PRESETS if preset.name not in OURS}
    assert named == {(row.task, row.preset) for row in runnable}


@pytest.mark.parametrize(
    ("preset", "task", "decoder", "options"),
    [
        ("wino", "gsm8k", "wino", {"threshold": 0.6, "threshold_back": 0.9}),
        ("wino", "math500", "wino", {"threshold": 0.7, "threshold_back": 0.9}),
        ("wino", "mbpp", "wino", {"threshold": 0.8, "threshold_back": 0.9}),
        ("wino", "countdown", "wino", {"threshold": 0.5, "threshold_back": 0.9}),
        ("klass", "gsm8k", "klass", {"threshold": 0.6, "kl_threshold": 0.015}),
        ("klass", "mbpp", "klass", {"threshold": 0.7, "kl_threshold": 0.01}),
        ("saber", "humaneval", "saber", {"n": 2, "mu": 8}),
        ("dparallel", "mbpp", "entropy_threshold", {"threshold": 0.45}),
        ("pc-sampler", "sudoku", "pc_sampler", {"lambda_": 0.0, "alpha": 10}),
        ("pc-sampler", "countdown", "pc_sampler", {"lambda_": 0.5, "alpha": 10}),
        ("fast-dllm", "gsm8k", "threshold", {"threshold": 0.9}),
        (
            "local-leap", "mbpp", "local_leap",
            {"threshold": 0.9, "relaxed_threshold": 0.75, "radius": 4},
        ),
        (
            "remdm", "countdown", "remdm",
            {"init_unmask_ratio": 1.0, "unmask_k": 1, "loop_steps": 0},
        ),
    ],
)  # fmt: skip
def test_presets_are_those_of_the_papers(
    preset: str, task: str, decoder: str, options: dict[str, Any]
) -> None:
    chosen = choose_options(TASKS[task], preset, {})
    assert (chosen["decoder"], chosen["decoder_options"]) == (decoder, options)


@pytest.mark.parametrize(
    ("given", "decoder", "options"),
    [
        ({}, "wino", {"threshold": 0.7, "threshold_back": 0.9}),
        ({"decoder": "wino"}, "wino", {"threshold": 0.7, "threshold_back": 0.9}),
        (
            {"decoder_options": {"threshold": 0.5}},
            "wino",
            {"threshold": 0.5, "threshold_back": 0.9},
        ),
        ({"decoder_options": {}}, "wino", {"threshold": 0.7, "threshold_back": 0.9}),
        ({"decoder": "threshold"}, "threshold", None),
        (
            {"decoder": "threshold", "decoder_options": {"threshold": 0.8}},
            "threshold",
            {"threshold": 0.8},
        ),
        ({"decoder": Threshold(0.3)}, Threshold(0.3), None),
    ],
)
def test_what_is_given_wins_over_the_preset(
    given: dict[str, Any], decoder: object, options: dict[str, Any] | None
) -> None:
    preset = TASKS["sudoku"].preset("wino")
    before = dict(preset.decoder_options)
    chosen = choose_options(TASKS["sudoku"], "wino", given)
    assert (chosen["decoder"], chosen["decoder_options"]) == (decoder, options)
    assert (chosen["gen_length"], chosen["block_length"]) == (256, 128)
    assert preset.decoder_options == before


def test_decoder_options_that_are_none_are_refused_as_ever() -> None:
    chosen = choose_options(TASKS["sudoku"], "wino", {"decoder_options": ["threshold"]})
    with pytest.raises(ValueError, match="decoder_options must map names to values"):
        Settings.of(chosen)


def test_templates_given_win_over_that_of_the_preset() -> None:
    task = TASKS["gsm8k"]

    def names(given: list[str], preset: str | None, *, chat: bool = True) -> list[str]:
        return [each.name for each in choose_templates(task, given, chat=chat, preset=preset)]

    assert names([], "fast-dllm") == names([], "fast-dllm", chat=False) == ["base_5shot"]
    assert names(["chat_boxed"], "fast-dllm") == ["chat_boxed"]
    assert names(["all"], "fast-dllm") == [each.name for each in task.templates]
    assert names([], "wino") == names([], None) == ["chat_cot"]
