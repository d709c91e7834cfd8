"""Under a constraint every decoder ends with a text of the language, alone and in any batch."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import dlm
from dlm.constraints.drawing import Joint
from dlm.decoders import DECODERS
from dlm.execution import Execution
from dlm.job import generation_job
from dlm.models.model import Model
from dlm.prompts import tokenizer_of
from dlm.settings import Settings
from dlm.traits import Traits

Decoding = Callable[[str], dict[str, Any]]
Traced = Callable[..., Execution]

PAIRS = [(name, cache) for name, make in DECODERS.items() for cache in Traits.of(make()).caches]
ROWS = [[1, 2, 3, 4, 0, 1, 2], [3], [4, 1, 0]]
PATTERN = r"(on|off)( [0-9]{1,4}(,[0-9]{1,4})*)?|never"


@pytest.fixture(scope="session")
def speaking(golden: Model) -> Model:
    """The small LLaDA with a tokenizer of bytes and pairs of digits."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{a}{b}" for a in range(10) for b in range(10))]
    numbers = {word: place for place, word in enumerate(words)}
    merges = [(str(a), str(b)) for a in range(10) for b in range(10)]
    backend = Tokenizer(models.BPE(numbers, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return replace(golden, tokenizer=PreTrainedTokenizerFast(tokenizer_object=backend))


@pytest.fixture(scope="session")
def constraint(speaking: Model) -> dlm.Constraint:
    return dlm.Constraint.regex(speaking, PATTERN)


def decoded(
    model: Model,
    constraint: dlm.Constraint | list[dlm.Constraint],
    rows: list[list[int]] = ROWS,
    **options: Any,
) -> dlm.Generation:
    usual: dict[str, Any] = {"gen_length": 11, "block_length": 4, "seed": 3, "temperature": 0.8}
    usual |= {"row_keys": [40, 41, 42][: len(rows)], "constraint": constraint}
    return dlm.generate(model, rows, **{**usual, **options})


def check(out: dlm.Generation) -> None:
    assert out.texts is not None
    for text in out.texts:
        assert re.fullmatch(PATTERN, text), text


@pytest.mark.one_in(12)
@pytest.mark.parametrize(("decoder", "cache"), PAIRS)
def test_every_decoder_ends_with_a_text(
    speaking: Model, constraint: dlm.Constraint, decoding: Decoding, decoder: str, cache: str
) -> None:
    """Drawn and greedy; each row as it would be alone."""
    options = {**decoding(decoder), "cache": cache}
    together = decoded(speaking, constraint, **options)
    check(together)
    for row, prompt in enumerate(ROWS):
        alone = decoded(speaking, constraint, [prompt], **options, row_keys=[40 + row])
        assert alone.tokens[0] == together.tokens[row]
    check(decoded(speaking, constraint, **options, temperature=0.0, stop_at_eos=False))


@pytest.mark.one_in(8)
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("block_length", [3, None])
def test_shapes_that_stay_and_recorded_steps_change_nothing(
    speaking: Model,
    constraint: dlm.Constraint,
    decoding: Decoding,
    traced: Traced,
    decoder: str,
    block_length: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for execution in (Execution(), Execution(static=True), traced()):
        monkeypatch.setattr(Execution, "of", lambda model, execution=execution: execution)
        out = decoded(speaking, constraint, **decoding(decoder), block_length=block_length)
        found.append((out.tokens, out.forwards))
    check(out)
    assert found[0] == found[1] == found[2]


ALONE: dict[str, Any] = {"gen_length": 11, "block_length": 4, "seed": 3}
PATTERNS = ["[a-c]{2,6}", r"[0-9]{3}-[0-9]+", PATTERN]


@pytest.fixture(scope="session")
def several(speaking: Model) -> list[dlm.Constraint]:
    """One for each row, of unlike sizes."""
    return [dlm.Constraint.regex(speaking, pattern) for pattern in PATTERNS]


@pytest.mark.one_in(48)
@pytest.mark.parametrize(("decoder", "cache"), PAIRS)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_every_row_has_its_own(
    speaking: Model,
    several: list[dlm.Constraint],
    decoding: Decoding,
    traced: Traced,
    decoder: str,
    cache: str,
    temperature: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tokens it has alone, also in shapes that stay, in recorded steps, and where rows join."""
    options = {**decoding(decoder), "cache": cache, "temperature": temperature}
    alone = [
        decoded(speaking, one, [prompt], **options, row_keys=[40 + row]).tokens[0]
        for row, (prompt, one) in enumerate(zip(ROWS, several, strict=True))
    ]
    for execution in (Execution(), Execution(static=True), traced()):
        monkeypatch.setattr(Execution, "of", lambda model, execution=execution: execution)
        for batch_size in (None, 2):
            out = decoded(speaking, several, **options, batch_size=batch_size)
            assert out.tokens == alone
    for text, pattern in zip(out.texts or [], PATTERNS, strict=True):
        assert re.fullmatch(pattern, text), text


MIXED = [
    (name, temperature)
    for name, make in DECODERS.items()
    for temperature in (0.0, 0.8)
    if Settings(decoder=make(), temperature=temperature).mixes
]


@pytest.mark.one_in(24)
@pytest.mark.parametrize("more", [{}, {"top_p": 0.9}, {"cache": "dual"}], ids=str)
@pytest.mark.parametrize(("decoder", "temperature"), MIXED)
def test_rows_that_are_free_are_as_they_are_alone(
    speaking: Model,
    several: list[dlm.Constraint],
    decoding: Decoding,
    traced: Traced,
    decoder: str,
    temperature: float,
    more: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Among others that are held to a language; and those as they are among their like."""
    options = {**decoding(decoder), "temperature": temperature, **more}
    if "cache" in more and "dual" not in Traits.of(DECODERS[decoder]()).caches:
        pytest.skip("it takes no cache")
    given = [several[0], None, several[1]]
    alone = [
        dlm.generate(speaking, [prompt], **ALONE, **options, constraint=one, row_keys=[row])
        for row, (prompt, one) in enumerate(zip(ROWS, given, strict=True))
    ]
    for execution in (Execution(), Execution(static=True), traced()):
        monkeypatch.setattr(Execution, "of", lambda model, execution=execution: execution)
        for batch_size in (None, 2):
            out = dlm.generate(
                speaking, ROWS, **ALONE, **options, constraint=given, batch_size=batch_size
            )
            assert out.tokens == [one.tokens[0] for one in alone]
            assert out.forwards == [one.forwards[0] for one in alone]


def test_where_rows_that_are_free_do_not_mix(speaking: Model, several: Any) -> None:
    """Decoders that take tokens back, and those whose path has a probability."""
    given = [several[0], None, several[1]]
    for decoder, temperature in (("saber", 0.0), ("wino", 0.0), ("random", 1.0)):
        options = {**ALONE, "decoder": decoder, "temperature": temperature}
        with pytest.raises(ValueError, match="constraint must be there for all prompts or for no"):
            dlm.generate(speaking, ROWS, **options, constraint=given)
    for last in (False, True):
        more: dict[str, Any] = {"confidence_eos_eot_inf": last}
        free = dlm.generate(speaking, ROWS, **ALONE, **more, constraint=[None] * 3)
        assert free.tokens == dlm.generate(speaking, ROWS, **ALONE, **more).tokens


def test_languages_count_as_memory_that_is_kept(
    speaking: Model, several: list[dlm.Constraint], traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    execution = traced()
    monkeypatch.setattr(Execution, "of", lambda model: execution)
    assert execution.lanes is not None
    decoded(speaking, several)
    (lane,) = execution.lanes.unused
    joints = [work.loop.meter.joint for work in lane.kept]
    assert all(joint is not None and joint.size > 10_000 for joint in joints)
    assert [work.loop.size for work in lane.kept] == [joint.size for joint in joints if joint]


def test_recordings_are_of_some_languages(
    speaking: Model, several: list[dlm.Constraint], traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever order rows have them; other ones are recorded anew."""
    execution = traced()
    monkeypatch.setattr(Execution, "of", lambda model: execution)
    one, two, three = several
    for given in ([one, two, two], [two, one, one], [one, three, three], [three] * 3, [two] * 3):
        free = dlm.generate(speaking, ROWS, gen_length=11, seed=9)
        for row, text in enumerate(decoded(speaking, given, gen_length=8).texts or []):
            assert re.fullmatch(given[row].name, text), text
        assert dlm.generate(speaking, ROWS, gen_length=11, seed=9).tokens == free.tokens


@pytest.mark.parametrize("decoder", ["low_confidence", "threshold", "random", "saber", "dream"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_host_waits_for_one_report_a_step(
    speaking: Model,
    several: list[dlm.Constraint],
    decoder: str,
    temperature: float,
    waiting: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Execution, "of", lambda model: Execution(static=True))
    out = decoded(speaking, several, decoder=decoder, temperature=temperature)
    assert waiting["steps"] == waiting["reads"] == max(out.forwards)


def test_rows_that_join_are_held_to_it(speaking: Model, constraint: dlm.Constraint) -> None:
    rows = [[row, 5] for row in range(7)]
    options: dict[str, Any] = {"gen_length": 11, "block_length": 4, "temperature": 1.0}
    options |= {"constraint": constraint, "decoder": "threshold"}
    few = dlm.generate(speaking, rows, batch_size=2, **options)
    check(few)
    assert few.tokens == dlm.generate(speaking, rows, **options).tokens


@pytest.mark.parametrize(
    "facts", [{"block_size": 4}, {"shift": True}, {"causal": True}, {"anchored": True}], ids=str
)
@pytest.mark.parametrize("cache", ["none", "dual"])
def test_other_attention(
    speaking: Model, constraint: dlm.Constraint, facts: dict[str, Any], cache: str
) -> None:
    """Blocks on a grid begin in front of what is generated."""
    if {"causal", "anchored"} & {*facts}:
        facts = {"block_size": 4, **facts}
    model = Model(speaking.network, speaking.tokenizer, replace(speaking.spec, **facts))
    check(decoded(model, constraint, cache=cache))


def test_later_blocks_are_counted_in(speaking: Model, decoding: Decoding) -> None:
    """Also by decoders whose window reaches back: a text may take all of them."""
    made = dlm.Constraint.regex(speaking, "(1a|2b|3c){4}")
    for decoder in ("saber", "wino", "left_to_right", "multi_block", "d2f"):
        options = {**decoding(decoder), "gen_length": 8, "block_length": 3, "temperature": 1.0}
        (text,) = dlm.generate(speaking, [ROWS[0]], constraint=made, **options).texts or [""]
        assert re.fullmatch("(1a|2b|3c){4}", text), decoder


def test_tokens_that_are_never_sampled_close_ways(speaking: Model) -> None:
    """Before a block is left from which nothing else would lead to an end."""
    made = dlm.Constraint.regex(speaking, "(1a|2b){2}")
    never = tokenizer_of(speaking, "a test").encode("a", add_special_tokens=False)
    options: dict[str, Any] = {"gen_length": 4, "block_length": 1, "temperature": 2.0}
    for seed in range(4):
        options |= {"seed": seed, "suppress_tokens": never, "constraint": made}
        assert dlm.generate(speaking, [ROWS[0]], **options).texts == ["2b2b"]


def test_all_that_is_open_is_looked_at(
    speaking: Model, constraint: dlm.Constraint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for decisions that read no logits: what else is open weighs what they take."""
    seen: list[tuple[int, int]] = []
    statistics = Joint.statistics

    def watched(self: Joint, *given: Any) -> Any:
        seen.append((len(given[0]), int(given[2].window.masked.sum())))
        return statistics(self, *given)

    monkeypatch.setattr(Joint, "statistics", watched)
    check(decoded(speaking, constraint, decoder="random", temperature=2.0))
    assert seen
    assert all(looked == open_ for looked, open_ in seen)


def test_what_is_written_leaves_a_text_at_every_forward(
    speaking: Model, constraint: dlm.Constraint, decoding: Decoding
) -> None:
    """Whichever of the drawn tokens the decoder takes, and takes back."""
    automaton = constraint.automaton
    mask = speaking.spec.mask_id
    for decoder in ("random", "remdm", "saber", "wino"):
        options = {**decoding(decoder), "gen_length": 9, "block_length": 3, "temperature": 1.0}
        settings = Settings(**options, constraint=constraint)
        for step in generation_job(speaking, [ROWS[0]], settings).steps():
            states = {automaton.start}
            for token in step.tokens[0, 7:].tolist():
                classes = (
                    range(automaton.following.shape[1])
                    if token == mask
                    else [int(automaton.class_of[token])]
                )
                states = {int(automaton.following[q, c]) for q in states for c in classes}
            assert any(int(automaton.left[state]) == 0 for state in states)


def test_a_path_has_no_probability_of_its_own(speaking: Model, constraint: dlm.Constraint) -> None:
    out = decoded(speaking, constraint, decoder="random", stop_at_eos=False)
    assert out.path_log_probability is None
