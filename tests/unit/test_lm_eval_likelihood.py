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


def per_pair(lm: DLM, context: list[int], target: list[int]) -> tuple[float, bool]:
    """What a pair gets alone: its estimate, and a comparison with a decoding of its own."""
    options = lm.scoring if len(target) > 1 else {**lm.scoring, "samples": 1}
    found = dlm.log_likelihood(lm.model, context, target, **options)
    forwards = dlm.stream(
        lm.model,
        context,
        decoder="low_confidence",
        gen_length=len(target),
        block_length=None,
        cfg_scale=lm.scoring.get("cfg_scale", 0.0),
        stop_at_eos=False,
    )
    return found, all(one.tokens[i] == target[i] for one in forwards for i in one.committed)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "given",
    [
        {"decoder": "threshold", "temperature": 1.0},
        {"mc_batch_size": 3, "seed": 5, "cfg_scale": 0.5},
        {"estimator": "chain"},
    ],
    ids=str,
)
def test_results_are_those_of_pairs_alone(built_in: dlm.Model, given: dict[str, Any]) -> None:
    lm = DLM(samples=4, **given)
    shots = "".join(f"Compute: {n}+2\n{n + 2}\n" for n in range(20))
    requests, expected = [], []
    options: dict[str, Any] = {"block_length": None, "stop_at_eos": False}
    options["cfg_scale"] = lm.scoring.get("cfg_scale", 0.0)
    for number, context in enumerate(("Compute: 6*8", "Sudoku: 3102200002100320", shots)):
        prompt = [lm.tok_encode(context)]
        first, made = (
            dlm.generate(built_in, prompt, gen_length=n, **options).tokens[0] for n in (1, 3)
        )
        for target in ([70], [71], first, [70, 71], [72, 70], made, [*range(70, 77 + number)]):
            requests.append((("", str(target)), lm.tok_encode(context), target))
            expected.append(per_pair(lm, lm.tok_encode(context), target))
    values, flags = zip(*expected, strict=True)
    assert flags.count(True) >= 6
    for lm.batch_size in (1, 40):
        found = lm._loglikelihood_tokens(requests, disable_tqdm=True)
        assert [value for value, _ in found] == pytest.approx(values, abs=1e-4)
        assert [greedy for _, greedy in found] == [*flags]


def test_batch_size_is_rows_of_a_forward(
    built_in: dlm.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(dlm, "log_likelihoods", lambda *_, **options: asked.append(options) or [])  # type: ignore[func-returns-value]
    ways: list[dict[str, Any]] = [{}, {"batch_size": 40}, {"mc_batch_size": 4}]
    for given in (*ways, {"greedy": False, "mc_num": 2}):
        DLM(**given)._loglikelihood_tokens([], disable_tqdm=True)
    checked, asked = asked[::2], asked[1::2]
    assert [one["rows"] for one in asked] == [16, 40, 4, 16]
    assert [one["batch_size"] for one in asked] == [16, 16, 4, 16]
    assert [one["samples"] for one in asked] == [128, 128, 128, 2]
    assert [one["greedy"] for one in asked] == [True, True, True, False]
    assert [one["greedy"] for one in checked] == [False] * 4


def test_the_greedy_flag_can_be_left_out(
    built_in: dlm.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = "Sudoku: 3102200002100320"
    with_it = DLM(samples=2)
    (made,) = dlm.generate(
        built_in,
        [with_it.tok_encode(context)],
        gen_length=2,
        block_length=None,
        stop_at_eos=False,
    ).tokens
    request = [(("", ""), with_it.tok_encode(context), made)]
    ((value, flag),) = with_it._loglikelihood_tokens(request, disable_tqdm=True)
    assert flag is True
    without = DLM(samples=2, greedy=False)
    monkeypatch.setattr("dlm.job.denoise", None)  # nothing is decoded
    assert without._loglikelihood_tokens(request, disable_tqdm=True) == [(value, False)]
    assert without.get_model_info()["log_likelihood"]["greedy"] is False
    assert with_it.get_model_info()["log_likelihood"]["greedy"] is True


@pytest.fixture
def scored(lm: DLM, monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], list[int]]]:
    """What the estimator is asked for, in its place; it is done with the last pair first."""
    asked: list[tuple[list[int], list[int]]] = []

    def log_likelihoods(
        _: Any, pairs: Sequence[tuple[list[int], list[int]]], **options: Any
    ) -> Iterator[dlm.Likelihood]:
        asked.extend(pairs)
        for number in reversed(range(len(pairs))):
            yield dlm.Likelihood(number, -float(len(pairs[number][1])), options["greedy"])

    monkeypatch.setattr(dlm, "log_likelihoods", log_likelihoods)
    return asked


def test_spaces_before_a_continuation_belong_to_it(lm: DLM, scored: Any) -> None:
    lm.loglikelihood([score("one two ", "three"), score("one two", " three")], disable_tqdm=True)
    assert scored[0] == scored[1]
    context, target = scored[0]
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
    context, target = scored[0]
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


def test_results_are_cached_for_loglikelihood(lm: DLM, scored: Any, tmp_path: Any) -> None:
    caching = CachingLM(lm, str(tmp_path / "cache.db"))
    requests = [score("a", " b c"), score("a", " d")]
    kept: list[Any] = []
    lm.cache_hook.add_partial = lambda *found: kept.append(found)
    first = caching.loglikelihood(requests)
    assert first == [(-2.0, True), (-1.0, True)]
    done = [("loglikelihood", r.args, f) for r, f in zip(requests, first, strict=True)]
    assert kept == done[::-1]  # each as soon as it is known
    assert caching.loglikelihood(requests) == first
    assert len(scored) == 2
    caching.dbdict.close()


def test_rolling_scores_every_token_once(lm: DLM, scored: Any) -> None:
    text = "one two three four " * 200
    tokens = lm.tok_encode(text)
    assert len(tokens) > 1022
    (total,) = lm.loglikelihood_rolling([score(text)], disable_tqdm=True)
    assert total == -len(tokens)
    assert [token for _, target in scored for token in target] == tokens
    assert [len(context) + len(target) for context, target in scored] == len(scored) * [512]
    contexts = [context for context, _ in scored[:-1]]
    assert contexts == [[lm.prefix_token_id], [tokens[510]], [tokens[1021]]][: len(contexts)]


def test_rolling_is_dlms_estimate(built_in: dlm.Model) -> None:
    lm = DLM(samples=4)
    kept: list[Any] = []
    lm.cache_hook.add_partial = lambda *found: kept.append(found)
    found = lm.loglikelihood_rolling([score("one two"), score("")], disable_tqdm=True)
    start, tokens = [lm.prefix_token_id], lm.tok_encode("one two")
    one = dlm.log_likelihood(built_in, start, tokens, samples=4)
    assert found == [pytest.approx(one, abs=1e-4), 0.0]
    assert kept == [
        ("loglikelihood_rolling", ("one two",), found[0]),
        ("loglikelihood_rolling", ("",), 0.0),
    ]
