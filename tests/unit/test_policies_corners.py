"""One example of each rule that only shows where a block begins, ends or is short."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import dlm
from dlm.decoders import (
    BlockRefinement,
    Klass,
    LocalLeap,
    MutualStability,
    PCSampler,
    Saber,
    Schedule,
    Wino,
    make,
)
from dlm.decoders.artefact import ModelFacts, ScheduleArtefact
from dlm.decoders.history import Summary, kl_divergence, log_ratio
from dlm.decoders.resample import fractions
from dlm.models.model import Model
from dlm.types import Facts, StepView

Toy = Callable[..., Model]
View = Callable[..., StepView]
Bind = Callable[..., Facts]
Picked = Callable[..., list[int]]


def test_mutual_stability_waits_for_quiet(view_of: View, picked: Picked) -> None:
    decoder = MutualStability(0.5, patience=1, drift=0.01)

    def view(p: float, step: int) -> StepView:
        ranked = {"top_tokens": [[0, 1]] * 2, "top_probabilities": [[p, 1 - p]] * 2}
        return view_of(confidence=[p] * 2, step=step, **ranked)

    state, _ = decoder.step(decoder.init_state(1, 2), view(0.6, 0))
    state, decision = decoder.step(state, view(0.9, 1))
    assert picked(decision.commit) == [0], "none is quiet: the best alone"
    assert picked(decoder.step(state, view(0.9, 2))[1].commit) == [0, 1]


def test_dream_begins_every_block_at_time_one(view_of: View) -> None:
    view = view_of(entropy=[0.1, 0.2, 0.3, 0.4], step=0)
    (index, _), decision = make("dream").step((torch.tensor([3]), torch.tensor([4])), view)
    assert int(decision.commit.sum()) == 1
    assert int(index) == 2


def test_post_steps_begin_anew_in_every_block(view_of: View) -> None:
    decoder = BlockRefinement(0.5, editing_threshold=0.5, max_post_steps=2)
    state, _ = decoder.step(torch.tensor([2]), view_of(confidence=[0.9], step=0))
    assert state.tolist() == [0]


def test_refinement_scores_by_the_sampling_law(toy: Toy) -> None:
    """Whose one token of top-k 1 is certain."""
    options: dict[str, Any] = {"temperature": 1.0, "top_k": 1, "stop_at_eos": False}
    model = toy(0, scale=0.1)
    out = dlm.generate(model, [[1]], decoder="block_refinement", gen_length=8, **options)
    assert out.forwards == [1]


def plan(folder: Path, reveal: Sequence[int], scales: Sequence[float]) -> Path:
    length = sum(reveal)
    made = ScheduleArtefact(
        model=ModelFacts(vocab=8, mask_id=7),
        gen_length=length,
        block_length=length,
        steps=len(reveal),
        reveal=tuple(reveal),
        cum_fraction=fractions(tuple(reveal)),
        logit_scale=tuple(scales),
    )
    made.save(folder / "schedule.json")
    return folder / "schedule.json"


def test_one_scale_of_several_counts(view_of: View, facts: Bind, tmp_path: Path) -> None:
    decoder: Any = Schedule(plan(tmp_path, (2, 2), (1.0, 2.0))).bind(facts(block_length=4))
    _, made = decoder.adjust(torch.tensor([4]), view_of(confidence=[0.5] * 4, step=1))
    assert made.scale.tolist() == [2.0]


def test_a_finished_row_goes_along_beyond_its_plan(
    view_of: View, facts: Bind, tmp_path: Path
) -> None:
    decoder: Any = Schedule(plan(tmp_path, (2, 2), (1.0, 2.0))).bind(facts(block_length=4))
    view = view_of(confidence=[0.5] * 4, masked=[False] * 4, step=9)
    decoder.adjust(torch.tensor([4]), view)
    assert not decoder.step(torch.tensor([4]), view)[1].commit.any()


def test_safe_saber_counts_earlier_blocks_once(view_of: View, picked: Picked) -> None:
    decoder = Saber(1, preset="safe")
    state = decoder.init_state(1, 2)
    for c in (0.5, 0.9):
        seen: dict[str, Any] = {"confidence": [c] * 2, "token_probability": [c] * 2}
        view = view_of(masked=[True, False], editable=[False] * 2, step=0, **seen)
        state, _ = decoder.step(state, view)
    seen = {"confidence": [0.75, 0.72], "token_probability": [0.75, 0.72]}
    decision = decoder.step(state, view_of(step=0, **seen))[1]
    assert picked(decision.commit) == [0, 1], "both are above the mean, 0.7"


def test_safe_saber_never_remasks_what_it_commits(view_of: View) -> None:
    decoder = Saber(2, preset="safe")
    state = decoder.init_state(1, 3)._replace(last=torch.full((1, 3), 0.9))
    view = view_of(confidence=[0.5, 0.4, 0.1], token_probability=[0.0] * 3)
    _, made = decoder.step(state, view)
    assert made.remask is not None
    assert made.commit.tolist() == [[True, True, False]]
    assert not made.remask.any()


def test_paper_saber_forgets_what_it_remasked(view_of: View, picked: Picked) -> None:
    decoder = Saber(2, preset="paper")
    state = decoder.init_state(1, 5)._replace(
        last=torch.tensor([[0.9, 0, 0, 0, 0]]), committed=torch.tensor([[0.9, -1, -1, -1, -1]])
    )
    view = view_of(
        confidence=[0, 0.5, 0.4, 0.1, 0.1],
        token_probability=[0.1, 0, 0, 0, 0],
        masked=[False, True, True, True, True],
        step=1,
    )
    state, made = decoder.step(state, view)
    assert picked(made.remask) == [0]
    assert (state.committed[0] >= 0).tolist() == [False, True, True, False, False]


def test_a_leap_reaches_over_a_short_window(view_of: View, picked: Picked) -> None:
    view = view_of(confidence=[0.95, 0.1, 0.1, 0.8])
    assert picked(LocalLeap(radius=3).step(None, view)[1].commit) == [0, 3]
    assert picked(LocalLeap(radius=2).step(None, view)[1].commit) == [0]


def test_pc_sampler_guards_tokens_that_never_occur(
    view_of: View, facts: Bind, picked: Picked
) -> None:
    decoder = PCSampler(lambda_=0.0).bind(facts([0.5, 0.0, 0.5, 1e-5, 0, 0, 0, 0.0]))
    view = view_of(confidence=[0.3, 0.7], sampled=[1, 3])
    assert picked(decoder.step(None, view)[1].commit) == [1], "0.3 ln 1e9 is below 0.7 ln 1e5"


def test_pc_sampler_far_into_a_block(view_of: View, facts: Bind, picked: Picked) -> None:
    """Weights are nothing in float32 there, but for where they are counted from."""
    decoder = PCSampler(lambda_=100.0).bind(facts())
    view = view_of(
        confidence=[0.9, 0.0, 0.5, 0.5],
        masked=[False, True, True, True],
        positions=[[0, 100, 101, 102]],
    )
    assert picked(decoder.step(None, view)[1].commit) == [2]


def test_linear_weights_leave_out_what_is_given(view_of: View, facts: Bind) -> None:
    decoder: Any = PCSampler(0.0, 10.0, [0.5, *[0.1] * 7], "linear").bind(facts())
    view = view_of(confidence=[0.5, 0.6, 0.0], masked=[True, True, False], editable=[False] * 3)
    assert decoder.linear(view)[0, :2].tolist() == [0.0, pytest.approx(1.0)]


@pytest.mark.parametrize(
    ("name", "own"),
    [("dream", {"alg": "maskgit_plus"}), ("entropy_bound", {"order": "confidence"})],
)
def test_what_looks_at_the_sample_has_no_path(toy: Toy, name: str, own: dict[str, str]) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "stop_at_eos": False, "gen_length": 4}
    out = dlm.generate(toy(1), [[1]], decoder=name, decoder_options=own, **options)
    assert out.path_log_probability is None


def test_remdm_rests_from_055_on(view_of: View) -> None:
    decoder = make("remdm", variant="loop")
    view = view_of(uniform=[0.01, 0.01], masked=[True, False], step=9, limit=20)
    remask = decoder.step(decoder.init_state(1, 2), view)[1].remask
    assert remask is not None
    assert remask.tolist() == [[False, True]]


def test_the_log_ratio_of_a_token_without_mass_is_zero() -> None:
    tokens = torch.tensor([[[0, 1]]])
    now, before = (Summary(tokens, torch.tensor([[p]])) for p in ([0.5, 0.5], [1.0, 0.0]))
    assert log_ratio(now, before).tolist() == [[[pytest.approx(math.log(0.5)), 0.0]]]


def test_risen_tokens_take_no_more_than_their_share() -> None:
    now = Summary(torch.tensor([[[0, 2]]]), torch.tensor([[[0.5, 0.3]]]))
    before = Summary(torch.tensor([[[0, 1]]]), torch.tensor([[[0.9, 0.08]]]))
    risen = 0.3 * math.log(0.3 / 0.06) + 0.2 * math.log(0.2 / 0.04)
    wanted = 0.5 * math.log(0.5 / 0.9) + risen
    assert float(kl_divergence(now, before)) == pytest.approx(wanted, rel=1e-5)


def test_wino_drafts_at_most_twenty(view_of: View) -> None:
    decoder = Wino()
    view = view_of(confidence=[0.9] * 40, leave_one_out=[0.0] * 40)
    assert int(decoder.step(decoder.init_state(1, 40), view)[1].commit.sum()) == 20


def test_lists_of_the_likeliest_tokens_are_as_long_as_told() -> None:
    for decoder, top in (
        (Klass(), 64),
        (MutualStability(), 8),
        (make("first_hitting", order=2), 64),
    ):
        assert getattr(decoder, "top", None) == top
