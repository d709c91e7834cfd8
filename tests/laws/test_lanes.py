"""What is kept of a generation serves later ones, which decode what they would without it."""

import json
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

import dlm
from dlm.decoders import DECODERS
from dlm.decoders.base import Stateless
from dlm.execution import STRIDE, Execution
from dlm.job import generation_job
from dlm.lanes import Lanes
from dlm.models.model import Model
from dlm.recording import Steps
from dlm.settings import Settings
from dlm.traits import Traits
from dlm.types import Decision, StepView

Decoding = Callable[[str], dict[str, Any]]
Traced = Callable[..., Execution]
Rows = list[list[int]]

ROWS = [[1, 2, 3, 4, 0, 1, 2], [3], [4, 1, 0]]
CAUSAL, BEHIND = ({"block_size": 5, x: True} for x in ("causal", "anchored"))
OTHERS = [[9, 8], [30, 31, 32, 33, 34, 35, 36, 37, 38], [5, 5, 5, 5]]
PAIRS = [(name, cache) for name, make in DECODERS.items() for cache in Traits.of(make()).caches]


@pytest.fixture
def recordings(trace: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Those that were made."""
    made: list[Any] = []
    make = trace.__init__

    def counted(self: Any, *given: Any) -> None:
        made.append(self)
        make(self, *given)

    monkeypatch.setattr(trace, "__init__", counted)
    return made


def run(model: Model, execution: Execution, rows: Rows = ROWS, **options: Any) -> dlm.Generation:
    usual: dict[str, Any] = {"gen_length": 10, "block_length": 5, "seed": 3, "temperature": 0.8}
    usual |= {"return_order": True, "row_keys": range(40, 40 + len(rows))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Execution, "of", lambda model: execution)
        return dlm.generate(model, rows, **{**usual, **options})


def check(model: Model, execution: Execution, rows: Rows = ROWS, **options: Any) -> None:
    one, other = (run(model, each, rows, **options) for each in (execution, Execution()))
    for name in ("tokens", "decoded", "forwards", "query_tokens", "order"):
        assert getattr(one, name) == getattr(other, name), name


@pytest.mark.one_in(18)
@pytest.mark.parametrize(("decoder", "cache"), PAIRS)
def test_later_generations_decode_what_they_would_alone(
    golden: Model,
    execution: Execution,
    recordings: list[Any],
    trace: Any,
    decoding: Decoding,
    decoder: str,
    cache: str,
) -> None:
    """And in the end play every step, those that compute only some rows as a whole included."""
    options = {**decoding(decoder), "cache": cache, "stop_at_eos": cache != "dual"}
    for rows in (ROWS, OTHERS, ROWS[::-1], ROWS):
        check(golden, execution, rows, **options)
    made, played = len(recordings), trace.plays
    check(golden, execution, ROWS, **options)
    assert len(recordings) == made
    assert trace.plays - played == max(run(golden, Execution(), ROWS, **options).forwards)


@pytest.mark.one_in(6)
@pytest.mark.parametrize("facts", [{}, {"block_size": 5}, {"shift": True}, CAUSAL, BEHIND], ids=str)
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_prompts_of_other_lengths_share_recordings(
    golden: Model, execution: Execution, recordings: list[Any], cache: str, facts: dict[str, Any]
) -> None:
    """Of rows alone, up to the length of the canvas: from it on there are others.

    An exact cache computes all of a prompt in the first forward, rounded up to a power of two.
    """
    model = Model(golden.network, None, replace(golden.spec, **facts))
    for length in (3, 7, 3, 7):
        check(model, execution, [[5] * length], cache=cache)
    before = len(recordings)
    for length in (1, 6) if "block_size" in facts else (1, 20, STRIDE - 11):
        check(model, execution, [[7] * length], cache=cache)
    assert len(recordings) == before
    for length in (STRIDE - 10, STRIDE - 9):  # no padding, and a longer canvas
        check(model, execution, [[7] * length], cache=cache)
    assert len(recordings) > before


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_padding_is_masked_after_rows_that_had_none(
    golden: Model, execution: Execution, cache: str
) -> None:
    for length in (STRIDE - 10, STRIDE - 10, 20):
        check(golden, execution, [[7] * length], cache=cache)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_a_batch_that_shrinks_meets_what_smaller_ones_left(
    golden: Model, execution: Execution, recordings: list[Any], cache: str
) -> None:
    """Rows with fewer blanks are done earlier: of 6 rows 2 go on, and one makes up for half."""
    shapes: set[tuple[int, bool]] = set()
    call = Steps.__call__

    def seen(self: Steps, canvas: Any, progress: Any, plan: Any) -> Any:
        shapes.add((canvas.shape[0], plan.packing is not None))
        return call(self, canvas, progress, plan)

    rows = [[5 + n, *[511] * blanks, 6] for n, blanks in enumerate((3, 3, 20, 9, 3, 3))]
    options: dict[str, Any] = {"cache": cache, "block_length": 4, "temperature": 1.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Steps, "__call__", seen)
        patch.setattr(Execution, "of", lambda model: execution)
        for options["seed"] in (1, 1, 2):
            before = len(recordings)
            found = dlm.infill(golden, rows, **options)
        assert len(recordings) == before
        assert shapes == {(6, True), (3, True), (1, cache == "none")}
        patch.setattr(Execution, "of", lambda model: Execution())
        plain = dlm.infill(golden, rows, **options)
    assert found.tokens == plain.tokens
    assert found.forwards == plain.forwards
    assert found.query_tokens == plain.query_tokens


@pytest.mark.one_in(14)
@pytest.mark.parametrize("facts", [{}, {"shift": True}], ids=str)
@pytest.mark.parametrize("more", [{}, {"cfg_scale": 0.7}, {"refresh_every": 2}], ids=str)
@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("done_first", [True, False])
def test_rows_whose_blocks_end_apart_are_played_too(
    golden: Model,
    execution: Execution,
    trace: Any,
    cache: str,
    more: Any,
    facts: Any,
    done_first: bool,
) -> None:
    """Steps that compute 1, 2 or 3 of 5 rows as a whole, the third in room for 4; one is done."""
    model = Model(golden.network, None, replace(golden.spec, **facts))
    done, late = [1, 0, 0], [2, 4, 1]
    between = [[1, 3, 4], [1, 3, 4], [1, 4, 4]]
    blanks = [done, *between, late] if done_first else [late, *between, done]
    rows = [
        [5 + row, *(token for n in each for token in ([511] * n + [9] * (4 - n)))]
        for row, each in enumerate(blanks)
    ]
    shapes: set[Any] = set()
    call = Steps.__call__

    def seen(self: Steps, canvas: Any, progress: Any, plan: Any) -> Any:
        shapes.add((plan.rooms[1], plan.scopes.count(2)))
        return call(self, canvas, progress, plan)

    options: dict[str, Any] = {"cache": cache, "block_length": 4, "temperature": 1.0, **more}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Steps, "__call__", seen)
        patch.setattr(Execution, "of", lambda model: execution)
        for _ in range(3):
            before = trace.plays
            found = dlm.infill(model, rows, **options)
        assert trace.plays - before == max(found.forwards)
        patch.setattr(Execution, "of", lambda model: Execution())
        plain = dlm.infill(model, rows, **options)
    assert (found.tokens, found.forwards) == (plain.tokens, plain.forwards)
    assert found.query_tokens == plain.query_tokens
    rooms = {(room, count) for room, count in shapes if room}
    assert rooms >= {(1, 1), (2, 2), (4, 3)} or more
    assert rooms


@pytest.mark.one_in(9)
@pytest.mark.parametrize("option", [
    {"seed": 4}, {"temperature": 0.7}, {"top_k": 3}, {"top_p": 0.6}, {"cfg_scale": 0.5},
    {"stop_at_eos": False}, {"suppress_tokens": range(0, 512, 2)}, {"steps": 4},
    {"begin_suppress_tokens": [*range(0, 512, 2)]}, {"position_temperature": 2.0},
    {"confidence_eos_eot_inf": True}, {"cache": "dual"}, {"cache": "dual", "refresh_every": 2},
    {"decoder": "threshold", "decoder_options": {"threshold": 0.01}}, {"block_length": 3},
    {"decoder": "threshold", "decoder_options": {"threshold": 0.003}}, {"gen_length": 9},
    {"block_length": None}, {"return_trajectory": True}, {"row_keys": [1, 2, 3]},
    {"decoder": "saber", "block_length": 6}, {"cache": "dual", "refresh_prompt_every": 2},
], ids=str)  # fmt: skip
def test_other_options_are_heeded(
    golden: Model, execution: Execution, option: dict[str, Any]
) -> None:
    usual: dict[str, Any] = {"cache": "dual"} if len(option) == 2 and "cache" in option else {}
    usual["decoder"] = option.get("decoder", "low_confidence")
    for _ in range(2):
        check(golden, execution, **usual)
    check(golden, execution, **{**usual, **option})


@pytest.mark.parametrize("option", ["confidence_eos_eot_inf", "stop_at_eos"])
def test_options_of_stop_tokens_are_heeded(
    golden: Model, execution: Execution, option: str
) -> None:
    model = Model(golden.network, None, replace(golden.spec, stop_ids=tuple(range(0, 511, 2))))
    for asked in (False, False, True):
        options: dict[str, Any] = {"stop_at_eos": False, option: asked}
        check(model, execution, **options)


def test_trajectories_have_confidences_that_were_not_measured_before(
    golden: Model, execution: Execution
) -> None:
    options: dict[str, Any] = {"decoder": "left_to_right"}
    for _ in range(2):
        run(golden, execution, **options)
    found, plain = (
        run(golden, each, return_trajectory=True, **options).trajectory
        for each in (execution, Execution())
    )
    assert found is not None
    assert plain is not None
    for one, other in zip(found, plain, strict=True):
        sure = [change.confidence for change in one.commits]
        assert sure == pytest.approx([change.confidence for change in other.commits], rel=1e-4)


def test_wider_windows_are_others(golden: Model, execution: Execution) -> None:
    for gen_length in (7, 7, 10):
        check(golden, execution, block_length=20, gen_length=gen_length)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("decoder", ["low_confidence", "random", "first_hitting"])
def test_other_seeds_are_no_other_recordings(
    golden: Model, execution: Execution, recordings: list[Any], decoder: str
) -> None:
    check(golden, execution, decoder=decoder)
    before = len(recordings)
    for seed in (17, -1, (1 << 64) - 2):
        check(golden, execution, decoder=decoder, seed=seed)
    assert len(recordings) == before


def test_other_facts_of_the_same_network_are_heeded(golden: Model, execution: Execution) -> None:
    first = run(golden, Execution(), gen_length=3).tokens[0]
    other = Model(golden.network, None, replace(golden.spec, stop_ids=tuple(set(first))))
    for model in (golden, golden, other, golden):
        check(model, execution)


def test_weights_that_change_in_place_are_seen(
    model: Model, execution: Execution, recordings: list[Any]
) -> None:
    """As they do in training."""
    for _ in range(2):
        check(model, execution)
    before = len(recordings)
    with torch.no_grad():
        for weight in model.network.parameters():
            weight.mul_(1.5)
    check(model, execution)
    assert len(recordings) == before


def moved(network: Any) -> None:
    for weight in network.parameters():
        weight.data = 1.5 * weight.data


def hooked(network: Any) -> None:
    network.model.layers[0].register_forward_hook(lambda *given: 2.0 * given[-1])


def replaced(network: Any) -> None:
    network.model.layers[0].mlp.forward = lambda x: torch.zeros_like(x)


def eager(network: Any) -> None:
    network.config._attn_implementation = "eager"


def trained(network: Any) -> None:
    network.train()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("change", [moved, hooked, replaced, eager, trained])
def test_a_network_that_was_changed_is_recorded_anew(
    model: Model, execution: Execution, recordings: list[Any], change: Callable[[Any], None]
) -> None:
    for _ in range(2):
        check(model, execution)
    before = len(recordings)
    kept = [weakref.ref(each) for each in recordings]
    recordings.clear()
    change(model.network)
    for _ in range(2):
        check(model, execution)
    assert len(recordings) >= before
    assert not any(each() for each in kept)


def test_tables_of_a_decoder_are_told_apart(
    golden: Model, execution: Execution, recordings: list[Any], tmp_path: Path
) -> None:
    """Frequencies are a tensor that bound decoders do not compare, here of a file of one name."""
    some = torch.rand(512, generator=torch.Generator().manual_seed(1)).softmax(-1)
    place = tmp_path / "table.json"
    options = {"frequencies": place, "weight": "exponential"}
    for table in (some, some, some.flip(0), some.flip(0), some):
        place.write_text(json.dumps(table.tolist()))
        check(golden, execution, decoder="pc_sampler", decoder_options=options)
    assert len(recordings) == 2


@dataclass
class Moody(Stateless):
    """A decoder that is not what a frozen dataclass is."""

    backwards: bool = False
    paper = "none"

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        place = torch.arange(view.masked.shape[1])
        order = place if self.backwards else -place
        score = torch.where(view.masked, order, -999)
        return None, Decision(view.masked & (score == score.amax(-1, keepdim=True)))


def test_a_decoder_that_may_change_is_recorded_anew(golden: Model, execution: Execution) -> None:
    decoder = Moody()
    for backwards in (False, False, True):
        decoder.backwards = backwards
        check(golden, execution, decoder=decoder, temperature=0.0)


def test_generations_by_turns_have_lanes_of_their_own(golden: Model, execution: Execution) -> None:
    for _ in range(2):
        check(golden, execution, temperature=0.0)
    options: dict[str, Any] = {"gen_length": 10, "block_length": 5}
    alone = [dlm.generate(golden, rows, **options).tokens for rows in (ROWS, OTHERS)]
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(Execution, "of", lambda model: execution)
        jobs = [generation_job(golden, rows, Settings(**options)) for rows in (ROWS, OTHERS)]
        for one, other in zip(*(job.steps() for job in jobs), strict=True):
            last = [step.tokens.clone() for step in (one, other)]
    for tokens, rows, right in zip(last, (ROWS, OTHERS), alone, strict=True):
        begun = [len(row) for row in rows]
        assert [row[n : n + 10] for row, n in zip(tokens.tolist(), begun, strict=True)] == right
    lanes = cast("Lanes", execution.lanes)
    first, second = lanes.unused
    lanes.budget.most = first.size + second.size - 1
    lanes.give(lanes.unused.pop())
    assert lanes.unused == [second]
    lanes.unused.append(first)
    with lanes.taken("another state of the network"):
        assert not lanes.unused


def test_a_stream_that_nobody_asks_for_more_gives_its_lane_back(
    golden: Model, execution: Execution
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Execution, "of", lambda model: execution)
        stream = dlm.stream(golden, ROWS[0], gen_length=10, block_length=5)
        for _ in range(4):
            next(stream)
        assert not cast("Lanes", execution.lanes).unused
        del stream
    assert len(cast("Lanes", execution.lanes).unused) == 1
    check(golden, execution, ROWS[:1], temperature=0.0)


def test_what_was_raised_leaves_nothing_behind(golden: Model, execution: Execution) -> None:
    for _ in range(2):
        check(golden, execution)
    assert cast("Lanes", execution.lanes).unused

    def broken(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dlm.runtime.Loop.step", broken)
        with pytest.raises(RuntimeError, match="memory"):
            run(golden, execution, block_length=4)
    assert not cast("Lanes", execution.lanes).unused
    check(golden, execution)
