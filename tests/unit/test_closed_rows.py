"""Families that close every row with an id, as BERT does: whoever lays out rows has room for it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import dlm
from dlm.distill.certainty_batches import Batches, check_targets
from dlm.distill.certainty_recipe import Recipe
from dlm.distill.certainty_targets import Target
from dlm.eval.plan import choose_options, choose_templates, make_plan
from dlm.eval.runner import evaluate
from dlm.eval.tasks import TASKS
from dlm.models.loading import silence
from dlm.models.model import Model

CLOSE = 3  # [SEP]
PLACES = 40


@pytest.fixture(scope="module")
def bert(written: Callable[[str], Path]) -> Model:
    with silence():
        return dlm.load(written("encoder"))


def test_the_family_closes_its_rows(bert: Model) -> None:
    assert (bert.spec.suffix, bert.spec.max_length) == ((CLOSE,), PLACES)


def test_a_prompt_that_fits_but_for_that_counts_as_failed(bert: Model, tmp_path: Path) -> None:
    (bare,) = dlm.encode_prompts(bert, "Question: \nAnswer:")
    gsm8k, lines = TASKS["gsm8k"], []
    for length in (PLACES - 8 - 1, PLACES - 8):
        question = " ".join(["the"] * (length - len(bare)))
        assert len(dlm.encode_prompts(bert, f"Question: {question}\nAnswer:")[0]) == length
        lines.append(json.dumps({"question": question, "answer": "#### 1"}))
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(lines))
    templates = choose_templates(gsm8k, ["base_0shot"], chat=False)
    options = choose_options(gsm8k, None, {"gen_length": 8, "block_length": None})
    plan = make_plan(gsm8k, templates, options, data=data)
    run = evaluate(bert, plan, tmp_path / "out", name="bert", batch_size=1)
    assert run.complete
    assert [each.forwards > 0 for each in run.samples] == [True, False]
    assert f"exceed the model's {PLACES - 1} positions" in run.samples[1].detail


def test_certainty_is_learned_on_rows_as_they_are_decoded(bert: Model) -> None:
    targets = [Target([2, 5, 6], [8, 9, 10, 11], None), Target([2, 5], [9, 9], None)]
    batch = Batches(bert.spec, targets, Recipe(rank=2, batch_size=2))[0]
    assert batch.valid is not None
    for tokens, inside, masked in zip(batch.tokens, batch.valid, batch.masked, strict=True):
        length = int(inside.sum())
        assert tokens[length - 1] == CLOSE
        assert not masked[length - 1 :].any()
    (full,) = [Target([5] * 30, [6] * (PLACES - 30), None)]
    with pytest.raises(ValueError, match="at most 40 together"):
        check_targets(bert.spec, [full])
    check_targets(bert.spec, [Target([5] * 30, [6] * (PLACES - 31), None)])
    with pytest.raises(ValueError, match="must have a prompt and a response"):
        check_targets(bert.spec, [Target([5], [], None)])


def test_lm_eval_scores_what_follows_the_context(
    bert: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    from dlm.eval.lm_eval_model import DLM

    monkeypatch.setattr(dlm, "load", lambda *_args, **_options: bert)
    lm = DLM(pretrained="bert", samples=2)
    asked: list[tuple[list[int], list[int]]] = []
    monkeypatch.setattr(lm, "scores", lambda pairs: asked.extend(pairs) or [])  # type: ignore[func-returns-value]
    assert lm.max_length == PLACES - 1
    context, whole = lm.tok_encode("the the"), lm.tok_encode("the the the")
    assert CLOSE not in [*context, *whole]
    assert whole[: len(context)] == context
    lm.check()
    assert not set(asked[0][0]) & set(bert.spec.banned)


def test_lm_eval_checks_and_rolls_over_texts(bert: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance  # type: ignore[import-untyped]

    from dlm.eval.lm_eval_model import DLM

    monkeypatch.setattr(dlm, "load", lambda *_args, **_options: bert)
    lm = DLM(pretrained="bert", samples=2)
    lm.check()
    given: tuple[Any, ...] = (" ".join(["the"] * 100),)
    asked = Instance("loglikelihood_rolling", {}, given, 0, ("task", 0, 1))
    (found,) = lm.loglikelihood_rolling([asked], disable_tqdm=True)
    assert torch.tensor(found).isfinite()
