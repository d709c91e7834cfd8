"""What decides the results of a run is in its settings, and nothing else is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.normalizers import Lowercase

import dlm
from dlm.decoders import PCSampler, Threshold
from dlm.eval.plan import (
    Plan,
    check_preset,
    choose_options,
    choose_templates,
    make_plan,
    settings_of,
)
from dlm.eval.task import Template
from dlm.eval.tasks import TASKS
from dlm.models.loading import silence
from dlm.models.model import Model

Changed = Callable[[Plan, Model], tuple[Plan, Model, str]]


@pytest.fixture(scope="module")
def built_in() -> Model:
    with silence():
        return dlm.load()


def plan(*, templates: tuple[str, ...] = ("plain",), limit: int = 3, **options: Any) -> Plan:
    task = TASKS["sudoku"]
    chosen = choose_templates(task, list(templates), chat=True)
    return make_plan(task, chosen, choose_options(task, None, options), limit=limit)


def of(model: Model, made: Plan | None = None, name: str = "m") -> dict[str, Any]:
    return settings_of(made or plan(), model, name)


def differing(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if one[name] != other[name]}


def test_the_same_plan_has_the_same_settings(built_in: Model) -> None:
    assert of(built_in) == of(built_in, plan())
    assert not differing(of(built_in), of(built_in, plan(limit=5)))  # a run may grow


@pytest.mark.parametrize(
    ("options", "named"),
    [({"decoder": "saber"}, {"decoder"}),
     ({"decoder": "threshold", "decoder_options": {"threshold": 0.5}},
      {"decoder", "decoder_options"}),
     ({"seed": 1}, {"generation"}), ({"gen_length": 21}, {"generation"}),
     ({"temperature": 0.5}, {"generation"}), ({"cache": "dual"}, {"generation"}),
     ({"templates": ("explained",)}, {"templates", "template_texts", "shots"}),
     ({"templates": ("base_5shot",)}, {"templates", "template_texts", "shots"})],
)  # fmt: skip
def test_options_are_settings(built_in: Model, options: dict[str, Any], named: set[str]) -> None:
    assert differing(of(built_in), of(built_in, plan(**options))) == named


def test_a_bias_is_a_setting_where_there_is_one(built_in: Model) -> None:
    """As JSON holds it; a folder of before there was such an option goes on."""
    assert "logit_bias" not in of(built_in)["generation"]
    found = of(built_in, plan(logit_bias={10: 1, 9: -2.5}))["generation"]
    assert found.pop("logit_bias") == {"10": 1, "9": -2.5}
    assert found == of(built_in)["generation"]


@pytest.mark.parametrize(
    "option",
    [
        "refresh_around",
        "refresh_answer_every",
        "refresh_prompt_every",
        "refresh_decoded_every",
        "suffix_window",
    ],
)
def test_what_a_cache_makes_anew_is_a_setting_where_it_is_asked_for(
    built_in: Model, option: str
) -> None:
    """As a folder of before there was such an option goes on."""
    assert option not in of(built_in)["generation"]
    more: dict[str, Any] = {"cache": "dual", option: 8}
    found = of(built_in, plan(**more))["generation"]
    assert found.pop(option) == 8
    assert found == of(built_in, plan(cache="dual"))["generation"]


def test_filters_that_cut_nothing_are_no_settings(built_in: Model) -> None:
    """Of a folder of before there was `min_p`, too, which has no such setting."""
    assert "min_p" not in of(built_in)["generation"]
    assert not differing(of(built_in), of(built_in, plan(top_p=1.0, min_p=0)))
    assert of(built_in, plan(min_p=0.1))["generation"]["min_p"] == 0.1


def test_the_words_of_a_template_are_settings(built_in: Model) -> None:
    made = plan()
    (template,) = made.templates
    assert isinstance(template, Template)
    other = replace(made, templates=(replace(template, prompt="Sudoku: {puzzle}!"),))
    assert differing(of(built_in), of(built_in, other)) == {"template_texts"}


def test_problems_and_examples_are_settings(built_in: Model) -> None:
    made = plan(templates=("base_5shot",))
    other = replace(made, data={**made.data, "sha256": "0"})
    assert differing(of(built_in, made), of(built_in, other)) == {"data"}
    assert not differing(
        of(built_in, made), of(built_in, replace(made, data={**made.data, "origin": "elsewhere"}))
    )
    turned = replace(made, shots={k: row[::-1] for k, row in made.shots.items()})
    assert differing(of(built_in, made), of(built_in, turned)) == {"shots"}


def test_the_model_is_a_setting(built_in: Model) -> None:
    assert differing(of(built_in), of(built_in, name="n")) == {"model"}
    with silence():
        half = dlm.load(dtype="bfloat16")
        other = dlm.load()
    assert differing(of(built_in), of(half)) == {"dtype", "weights"}
    with torch.no_grad():
        weight = other.network.model.layers[-1].mlp.down_proj.weight
        weight.add_(1e-3)
    assert differing(of(built_in), of(other)) == {"weights"}


def test_what_the_network_computes_beside_its_weights_is_a_setting(built_in: Model) -> None:
    with silence():
        other = dlm.load()
    other.network.config.rope_theta = 50.0
    assert differing(of(built_in), of(other)) == {"network"}


def test_what_is_done_to_prompts_is_a_setting(built_in: Model) -> None:
    with silence():
        other = dlm.load()
    assert other.tokenizer is not None
    other.tokenizer.backend_tokenizer.normalizer = Lowercase()
    assert differing(of(built_in), of(other)) == {"tokens"}


def test_what_makes_ids_of_prompts_is_a_setting(built_in: Model) -> None:
    with silence():
        other = dlm.load()
    assert other.tokenizer is not None
    other.tokenizer.chat_template = other.tokenizer.chat_template + " "
    assert differing(of(built_in), of(other)) == {"tokens"}
    spec = replace(built_in.spec, stop_ids=(1,))
    assert differing(of(built_in), of(replace(built_in, spec=spec))) == {"tokens"}


def test_the_files_that_options_name_are_settings(built_in: Model, tmp_path: Path) -> None:
    path = tmp_path / "counts.json"
    made = plan(decoder="pc_sampler", decoder_options={"frequencies": str(path)})
    path.write_text("[1, 2]")
    before = of(built_in, made)
    path.write_text("[1, 3]")
    assert differing(before, of(built_in, made)) == {"decoder_files"}


@pytest.mark.parametrize("text", ["~nosuchuser/x", "a" * 9999, "nul\0"])
def test_a_text_need_not_be_a_path(built_in: Model, text: str) -> None:
    made = plan(decoder="pc_sampler", decoder_options={"frequencies": text})
    assert of(built_in, made)["decoder_files"] == {}


def test_decoders_of_the_library_are_told_apart(built_in: Model) -> None:
    one, two = (plan(decoder=Threshold(value)) for value in (0.5, 0.6))
    assert differing(of(built_in, one), of(built_in, two)) == {"decoder_options"}
    counts = torch.full((2000,), 0.25)
    first = of(built_in, plan(decoder=PCSampler(frequencies=counts)))
    counts = counts.clone()
    counts[1000] = 0.5
    second = of(built_in, plan(decoder=PCSampler(frequencies=counts)))
    assert differing(first, second) == {"decoder_options"}

    class Mine:
        def step(self) -> None: ...

    with pytest.raises(ValueError, match="decoder must be a name or an instance of a dataclass"):
        of(built_in, replace(plan(), options={**plan().options, "decoder": Mine()}))


def test_a_preset_of_another_vocabulary_is_refused_by_name(built_in: Model) -> None:
    task = TASKS["humaneval"]
    told = "preset 'llada-pure' of humaneval must be for a model with token 126081"
    with pytest.raises(ValueError, match=told):
        check_preset(task, "llada-pure", {}, built_in)
    check_preset(task, "llada-pure", {"suppress_tokens": (1,)}, built_in)
    large = replace(built_in.spec, vocab_size=126464)
    check_preset(task, "llada-pure", {}, replace(built_in, spec=large))
    check_preset(task, None, {}, built_in)


def test_templates_that_a_model_cannot_take_are_refused() -> None:
    task = TASKS["sudoku"]
    with pytest.raises(ValueError, match="the model has no chat template, got 'plain' of sudoku"):
        choose_templates(task, ["plain"], chat=False)
    assert [t.name for t in choose_templates(task, ["all"], chat=False)] == ["base_5shot"]
    only_chat = replace(task, templates=task.templates[:2])
    with pytest.raises(ValueError, match="only templates for models with a chat template"):
        choose_templates(only_chat, ["all"], chat=False)
    with pytest.raises(ValueError, match="the model has no chat template"):
        choose_templates(only_chat, [], chat=False)
