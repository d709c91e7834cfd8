"""What lm-eval's requests for a likelihood get."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

import dlm
from dlm.models.loading import silence

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # type: ignore[import-untyped]
from lm_eval.api.model import CachingLM  # type: ignore[import-untyped]

from dlm.eval.lm_eval_model import DLM


@pytest.fixture(scope="module")
def built_in() -> Iterator[dlm.Model]:
    """The built-in model, loaded once for all the adapters here."""
    with silence():
        model = dlm.load()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dlm, "load", lambda *_args, **_options: model)
        yield model


@pytest.fixture
def lm(built_in: dlm.Model) -> DLM:
    return DLM(batch_size=2)


def score(*args: str) -> Any:
    kind = "loglikelihood" if len(args) == 2 else "loglikelihood_rolling"
    return Instance(kind, {}, args, 0, ("task", 0, 1))


def test_loglikelihood_is_dlms(built_in: dlm.Model) -> None:
    lm = DLM(samples=6, mc_batch_size=3, seed=5, cfg_scale=0.5)
    ((found, greedy),) = lm.loglikelihood([score("Compute: 6*8", " = 48")], disable_tqdm=True)
    context = lm.tok_encode("Compute: 6*8")
    target = lm.tok_encode("Compute: 6*8 = 48")[len(context) :]
    options: dict[str, Any] = {"samples": 6, "batch_size": 3, "seed": 5, "cfg_scale": 0.5}
    assert found == dlm.log_likelihood(built_in, context, target, **options)
    assert greedy is False


@pytest.fixture
def scored(lm: DLM, monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], list[int], int]]:
    """What the estimator is asked for, in its place."""
    asked: list[tuple[list[int], list[int], int]] = []

    def log_likelihood(_: Any, context: list[int], target: list[int], **options: Any) -> float:
        asked.append((context, target, options["samples"]))
        return -float(len(target))

    monkeypatch.setattr(dlm, "log_likelihood", log_likelihood)
    monkeypatch.setattr(lm, "is_greedy", lambda *_: False)
    return asked


def test_spaces_before_a_continuation_belong_to_it(lm: DLM, scored: Any) -> None:
    lm.loglikelihood([score("one two ", "three"), score("one two", " three")], disable_tqdm=True)
    assert len(scored) == 1  # the same pair, scored once
    context, target, _ = scored[0]
    assert read(lm, context) == "one two"
    assert read(lm, target) == " three"


def read(lm: DLM, tokens: Sequence[int]) -> str:
    return str(lm.tokenizer.decode(list(tokens)))


@pytest.mark.parametrize("context", ["", "  "])
def test_an_empty_context_is_scored_from_start_of_text(lm: DLM, scored: Any, context: str) -> None:
    lm.loglikelihood([score(context, "three")], disable_tqdm=True)
    assert scored[0][0] == [lm.tokenizer.bos_token_id] == [lm.prefix_token_id]
    assert read(lm, scored[0][1]) == context + "three"


def test_long_contexts_are_scored_from_their_end(
    lm: DLM, scored: Any, caplog: pytest.LogCaptureFixture
) -> None:
    long = "one two three four " * 200
    lm.loglikelihood([score(long, "five six"), score("a", " b c")], disable_tqdm=True)
    context, target, _ = scored[0]
    assert len(context) + len(target) == 512
    assert context == lm.tok_encode(long.rstrip())[-len(context) :]
    assert "1 of 2 contexts lost their beginning" in caplog.text


def test_continuations_that_cannot_be_scored_are_refused_first(lm: DLM, scored: Any) -> None:
    good = score("a", " b c")
    with pytest.raises(ValueError, match=r"at least one token, got \('a', ''\)"):
        lm.loglikelihood([good, score("a", "")], disable_tqdm=True)
    with pytest.raises(ValueError, match="a continuation must be below the model's 512 positions"):
        lm.loglikelihood([good, score("a", " b c d" * 300)], disable_tqdm=True)
    assert scored == []


def test_one_draw_tells_all_about_one_token(lm: DLM, scored: Any) -> None:
    token = str(lm.tokenizer.decode([70]))
    lm.loglikelihood([score("one.", token), score("one.", token * 2)], disable_tqdm=True)
    assert [(len(target), samples) for _, target, samples in scored] == [(1, 1), (2, 128)]
    model = lm.model
    several = [dlm.log_likelihood(model, [9], [70], samples=n, seed=n) for n in (1, 4)]
    assert several[0] == pytest.approx(several[1], abs=1e-5)


def test_results_are_cached_for_loglikelihood(lm: DLM, scored: Any, tmp_path: Any) -> None:
    caching = CachingLM(lm, str(tmp_path / "cache.db"))
    requests = [score("a", " b c"), score("a", " d")]
    kept: list[Any] = []
    lm.cache_hook.add_partial = lambda *found: kept.append(found)
    first = caching.loglikelihood(requests)
    assert kept == [("loglikelihood", r.args, f) for r, f in zip(requests, first, strict=True)]
    assert caching.loglikelihood(requests) == first
    assert len(scored) == 2
    caching.dbdict.close()


def test_greedy_is_one_most_confident_token_a_forward(lm: DLM) -> None:
    prompt = lm.tok_encode("Sudoku: 3102200002100320")
    out = dlm.generate(
        lm.model,
        [prompt],
        decoder="low_confidence",
        gen_length=12,
        block_length=None,
        stop_at_eos=False,
    )
    assert out.forwards == [12]
    tokens = out.tokens[0]
    assert lm.is_greedy(prompt, tokens)
    for place in (0, 5, 11):
        assert not lm.is_greedy(prompt, [*tokens[:place], 71, *tokens[place + 1 :]])


def test_greedy_takes_no_option_of_the_decoder_but_guidance(
    built_in: dlm.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = DLM(cfg_scale=0.5, decoder="threshold", temperature=1.0)
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(dlm, "stream", lambda *_, **options: seen.append(options) or [])  # type: ignore[func-returns-value]
    lm.is_greedy([9], [70, 71])
    assert seen == [
        {
            "decoder": "low_confidence",
            "gen_length": 2,
            "block_length": None,
            "cfg_scale": 0.5,
            "stop_at_eos": False,
        }
    ]


def test_greedy_ends_at_the_first_token_that_differs(
    lm: DLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards = []
    stream = dlm.stream

    def counted(*args: Any, **options: Any) -> Any:
        for snapshot in stream(*args, **options):
            forwards.append(snapshot.forward)
            yield snapshot

    monkeypatch.setattr(dlm, "stream", counted)
    assert not lm.is_greedy(lm.tok_encode("Sudoku: 3102200002100320"), 12 * [71])
    assert forwards == [1]


def test_rolling_scores_every_token_once(lm: DLM, scored: Any) -> None:
    text = "one two three four " * 200
    tokens = lm.tok_encode(text)
    assert len(tokens) > 1022
    (total,) = lm.loglikelihood_rolling([score(text)], disable_tqdm=True)
    assert total == -len(tokens)
    assert [token for _, target, _ in scored for token in target] == tokens
    assert [len(context) + len(target) for context, target, _ in scored] == len(scored) * [512]
    contexts = [context for context, _, _ in scored[:-1]]
    assert contexts == [[lm.prefix_token_id], [tokens[510]], [tokens[1021]]][: len(contexts)]


def test_rolling_is_dlms_estimate(built_in: dlm.Model) -> None:
    lm = DLM(samples=4)
    kept: list[Any] = []
    lm.cache_hook.add_partial = lambda *found: kept.append(found)
    found = lm.loglikelihood_rolling([score("one two"), score("")], disable_tqdm=True)
    start, tokens = [lm.prefix_token_id], lm.tok_encode("one two")
    one = dlm.log_likelihood(built_in, start, tokens, samples=4)
    assert found == [one, 0.0]
    assert kept == [
        ("loglikelihood_rolling", ("one two",), one),
        ("loglikelihood_rolling", ("",), 0.0),
    ]
