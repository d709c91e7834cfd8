"""Bugs found in other decoding libraries (peers.md section 4), each beside our behaviour.

A control inside most tests does what the peer does; the assertion tells them apart.
Elsewhere: B8, B34 in laws/test_sampling.py (test_tail_keeps_its_mass, test_float32_noise_loses_the_
tail, test_minus_infinity_is_never_drawn); B9 in test_statistics.py (test_memory_stays_below_one_
percent_of_float64); B11 in laws/test_purity.py (test_neither_syncs_nor_leaves_the_device); B22,
B33 in laws/test_decoders.py (test_rows_are_independent) and golden/test_trajectories.py
(test_in_a_ragged_batch_in_any_order). B15, B20, B21, B27 and B29 to B31 and B35 are of other
programs' scripts and packages.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import dlm
from dlm.decoders import DECODERS, EntropyBound, Factor, LocalLeap, Saber, make
from dlm.kernels import NoiseKey, token_statistics
from dlm.models.model import Model
from dlm.traits import Traits
from dlm.types import Facts, StepView

MASK, EOS, EOT = 7, 6, 5
Toy = Callable[..., Model]
View = Callable[..., StepView]
Picked = Callable[..., list[int]]
Script = Callable[..., Any]


@pytest.fixture(scope="module")
def by_position(toy: Toy) -> Callable[[Tensor], Model]:
    def make_model(logits: Tensor) -> Model:
        base = toy(logits)

        class ByPosition(type(base)):  # type: ignore[misc]
            def hidden(self, tokens: Tensor, positions: Tensor, *_: Any) -> Tensor:
                return positions.expand(tokens.shape)[..., None]

        return ByPosition(None, None, base.spec, logits)

    return make_model


def order(out: dlm.Generation, row: int = 0) -> list[int]:
    assert out.trajectory is not None
    return [change.position for change in out.trajectory[row].commits]


@pytest.mark.parametrize("temperature", [0.0, 1e-3])
def test_stop_tokens_come_last_at_every_temperature(
    by_position: Callable[[Tensor], Model], temperature: float
) -> None:
    """B2: confidences change before positions are ranked, whichever tensor sampling used."""
    logits = torch.zeros(4, 8)
    logits[1:, EOS], logits[2, 1] = torch.tensor([9.0, 1.0, 9.0]), 3.0
    out = dlm.generate(
        by_position(logits), [[0]], gen_length=3, block_length=None, temperature=temperature,
        confidence_eos_eot_inf=True, stop_at_eos=False, return_trajectory=True,
    )  # fmt: skip
    assert order(out)[0] == 1

    def peer() -> int:
        noisy = logits.clone() if temperature else logits  # noise makes another tensor
        tokens = noisy.argmax(-1)
        noisy[:, [EOS, EOT]] = -torch.inf  # after the arg max
        chance = logits.softmax(-1).gather(-1, tokens[:, None])[1:, 0]
        return int(chance.argmax())

    assert (peer() == 1) == (not temperature)


def test_the_mask_is_never_a_token(toy: Toy) -> None:
    """B3: two positions of eight whose best token is the mask, then all of them."""
    table = torch.randn(97, 8, generator=torch.Generator().manual_seed(0))
    for rows in (slice(0, 97, 4), slice(None)):
        table[rows, MASK] = 20.0
        out = dlm.generate(toy(table), [[1]], gen_length=8, stop_at_eos=False)
        assert MASK not in out.tokens[0]
        assert out.forwards == [8]

    def peer() -> list[int]:
        canvas, model = torch.tensor([1] + [MASK] * 8), toy(table)
        for _ in range(8):
            logits = model.raw_logits(canvas[None])[0]
            chance, tokens = logits.softmax(-1).max(-1)  # the mask among them
            spot = int(chance.masked_fill(canvas != MASK, -1.0).argmax())
            canvas[spot] = tokens[spot]
        return canvas[1:].tolist()

    assert MASK in peer()


@pytest.mark.parametrize("name", DECODERS)
def test_wanting_only_masks_ends(toy: Toy, name: str) -> None:
    """B6, B3: every arg max is the mask, and no decoder waits for another."""
    table = torch.zeros(97, 8)
    table[:, MASK] = 50.0
    out = dlm.generate(toy(table), [[1], [2, 3]], decoder=name, gen_length=6, block_length=4)
    assert all(MASK not in row and len(row) == 6 for row in out.tokens)


def test_waiting_for_another_token_than_the_mask_would_not_end() -> None:
    """B6, the control: a transfer that leaves out masks takes none when all are."""
    tokens, open_ = torch.full((6,), MASK), torch.ones(6, dtype=torch.bool)
    for _ in range(100):
        open_ &= ~(open_ & (tokens != MASK))
    assert open_.all()


def factor_peer(confidence: list[float], factor: float) -> int:
    """B5: a scan that fails at its first or last candidate, and takes one more."""
    best = sorted(confidence, reverse=True)
    bounds = [-1.0, *(1 - factor / (n + 1) for n in range(2, len(best) + 1))]
    top = 0
    for top in range(len(best)):
        if best[top] < bounds[top]:
            break
    return top + 1 if top in (0, len(best) - 1) else top


def test_factor_does_not_take_the_last_candidate_along(view_of: View, picked: Picked) -> None:
    """B5: p = 0.022 against a bound of 0.75."""
    confidence = [0.99, 0.98, 0.022]
    _, decision = Factor(1.0).step(None, view_of(confidence=confidence))
    assert picked(decision.commit) == [0, 1]
    assert factor_peer(confidence, 1.0) == 3


def test_factor_takes_all_where_all_satisfy_it(view_of: View, picked: Picked) -> None:
    """B17: six of six."""
    confidence = [0.99] * 6
    _, decision = Factor(1.0).step(None, view_of(confidence=confidence))
    assert picked(decision.commit) == list(range(6))
    holds = [(n + 1) * (1 - c) < 1 for n, c in enumerate(confidence, 1)]
    peer = holds.index(False) if False in holds else len(holds) - 1
    assert peer == 5


@pytest.mark.parametrize("name", ["entropy", "margin"])
def test_orders_stay_in_their_block(by_position: Callable[[Tensor], Model], name: str) -> None:
    """B12: the surest positions stand in later blocks."""
    logits = torch.zeros(17, 8)
    logits[:, 1] = torch.arange(17) / 4
    out = dlm.generate(
        by_position(logits), [[0]], decoder=name, gen_length=16, block_length=4,
        stop_at_eos=False, return_trajectory=True,
    )  # fmt: skip
    assert [position // 4 for position in order(out)] == sorted(list(range(4)) * 4)
    score = logits[1:, :MASK].softmax(-1).amax(-1)
    assert int(score[:4].argmax()) == 3
    assert int(score.argmax()) == 15, "the peer's, which overwrites the cut at the block"


def test_saber_takes_no_position_that_is_not_masked(view_of: View, picked: Picked) -> None:
    """B13: fewer than n are left; the peer's top-n goes on with -inf."""
    masked = [False, False, True, False]
    view = view_of(
        confidence=[0.9, 0.9, 0.1, 0.9], token_probability=[0.9] * 4, masked=masked,
        editable=[False, True, False, False],
    )  # fmt: skip
    _, decision = Saber(2).step(Saber(2).init_state(1, 4), view)
    assert picked(decision.commit) == [2]
    level = view.want("confidence").masked_fill(~view.masked, -torch.inf)
    assert not view.masked[0, level.topk(2).indices[0]].all(), "the peer's second pick"


def test_rows_have_counts_of_their_own(toy: Toy) -> None:
    """B14: a row of 2 masks beside one of 10; no committed token turns back into a mask."""
    rows = [[1, *[MASK] * 2, *[2] * 8], [1, *[MASK] * 10]]
    options: dict[str, Any] = {"steps": 4, "block_length": None, "return_trajectory": True}
    out = dlm.infill(toy(), rows, decoder="dream", **options)
    assert out.trajectory is not None
    for row, one in zip(rows, out.trajectory, strict=True):
        alone = dlm.infill(toy(), [row], decoder="dream", **options).trajectory
        assert alone is not None
        assert one.commits == alone[0].commits
        for before, after in pairwise(one.canvases.tolist()):
            assert all(new == old or old == MASK for old, new in zip(before, after, strict=True))

    canvas = torch.tensor(rows)
    masked = canvas == MASK
    count = int(masked.sum() / len(rows))  # the peer's mean of the batch
    score = torch.rand(canvas.shape).masked_fill(~masked, -torch.inf)
    drafted = torch.full_like(canvas, MASK)  # its default for what is not sampled
    drafted[masked] = 3
    place = score.topk(count).indices
    after = canvas.scatter(1, place, drafted.gather(1, place))
    assert ((after == MASK) & ~masked).any()


def test_entropy_bounds_run_along_positions(view_of: View, picked: Picked) -> None:
    """B16: row A alone commits as many as beside B."""
    a, b = [0.02, 0.03, 0.04, 0.3, 0.5, 0.9], [0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    decoder = EntropyBound(0.1)
    alone = picked(decoder.step(None, view_of(entropy=a))[1].commit)
    assert alone == [0, 1, 2, 3]
    for rows, at in (([b, a], 1), ([a, b], 0)):
        together = decoder.step(None, view_of(entropy=rows))[1].commit
        assert picked(together, at) == alone

    def peer(rows: list[list[float]], at: int) -> int:
        entropy = torch.tensor(rows)
        return int(((entropy.cumsum(1) - entropy.cummax(0).values) <= 0.1)[at].sum())

    assert peer([b, a], 1) != len(alone)


def test_entropy_bounds_leave_out_the_largest(view_of: View, picked: Picked) -> None:
    """B18: sum - max <= gamma, ordered by entropy and not by confidence."""
    entropy, gamma = [0.05, 0.04, 0.8, 0.9], 0.1
    view = view_of(entropy=entropy, confidence=[0.1, 0.2, 0.9, 0.8])
    assert picked(EntropyBound(gamma).step(None, view)[1].commit) == [0, 1, 2]
    peer = int((torch.tensor(entropy).sort().values.cumsum(0) <= gamma).sum())
    assert peer == 2
    surest_first = torch.tensor(entropy)[[2, 3, 1, 0]]
    assert int((surest_first.cumsum(0) - surest_first.cummax(0).values <= gamma).sum()) == 1


def test_entropies_are_over_the_vocabulary(toy: Toy) -> None:
    """B4: not of the sampled token's probability alone."""
    logits = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    found = token_statistics(logits, ("entropy", "confidence"))
    p = logits.double().softmax(-1)
    assert found.entropy is not None
    assert found.confidence is not None
    assert found.entropy.tolist() == pytest.approx((-(p * p.log()).sum(-1)).tolist(), rel=1e-6)
    peer = -(found.confidence * found.confidence.log())
    assert not torch.allclose(peer, found.entropy, atol=0.1)


@pytest.mark.parametrize("name", DECODERS)
def test_what_is_not_open_is_never_chosen(
    view_of: View, facts: Callable[..., Facts], name: str
) -> None:
    """B19: committed and foreign positions stay ineligible, however good their stale scores."""
    masked = torch.tensor([[False, True, False, True], [True, False, False, False]])
    best = torch.where(masked, 0.1, 1.0)
    view = view_of(
        masked=masked, editable=torch.zeros_like(masked), confidence=best, margin=best, quota=3,
        entropy=1 - best, token_probability=best, leave_one_out=best, uniform=1 - best, limit=5,
        top_tokens=torch.arange(2).expand(2, 4, 2), branch_noise=best[:, None].repeat(1, 8, 1),
        top_probabilities=torch.stack((best, 0 * best), -1),
    )  # fmt: skip
    unbound: Any = make(name)
    decoder = unbound.bind(facts())
    _, decision = decoder.step(decoder.init_state(2, 4), view)
    assert not (decision.commit & ~masked).any()
    for change in (decision.remask, decision.edit):
        assert change is None or not change.any()
    eligible = torch.ones_like(masked)
    eligible[torch.tensor([0, 1])].logical_and_(masked)  # the peer's, of a copy
    assert eligible.all()


@pytest.mark.parametrize("name", DECODERS)
def test_no_length_has_to_divide_another(toy: Toy, name: str) -> None:
    """B23."""
    for length, block, steps in ((7, 3, 5), (5, 8, 3), (11, 4, 1), (1, 32, 128)):
        assert length % block or steps % -(-length // block), "which the peers assert"
        out = dlm.generate(
            toy(), [[1], [2, 2]], decoder=name, gen_length=length, block_length=block,
            steps=steps, stop_at_eos=False,
        )  # fmt: skip
        assert [len(row) for row in out.tokens] == [length] * 2


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", DECODERS)
def test_decoding_stops_at_the_end_of_text(toy: Toy, name: str) -> None:
    """B24: no block is decoded behind the one that ends the text."""
    table = torch.zeros(97, 8)
    table[:, EOS] = 30.0
    options: dict[str, Any] = {"decoder": name, "gen_length": 40, "block_length": 4}
    ends = dlm.generate(toy(table), [[1]], **options)
    peer = dlm.generate(toy(table), [[1]], stop_at_eos=False, **options)
    assert ends.tokens == [[EOS] * 40]
    if not Traits.of(make(name)).cross_block:  # which may come back to any block
        assert ends.forwards[0] < peer.forwards[0]


def test_requests_keep_their_own_frequencies(toy: Toy) -> None:
    """B26: a module's global would keep those of the first request."""
    tables = torch.rand(3, 8, generator=torch.Generator().manual_seed(0)).pow(4).tolist()
    options: dict[str, Any] = {
        "decoder": "pc_sampler", "gen_length": 9, "stop_at_eos": False, "return_trajectory": True
    }  # fmt: skip

    def decode(table: list[float]) -> list[int]:
        own = {"frequencies": table, "lambda_": 0.0}
        return order(dlm.generate(toy(3), [[1]], decoder_options=own, **options))

    first = [decode(table) for table in tables]
    assert len({tuple(found) for found in first}) == 3, "or a global would not show"
    assert [decode(table) for table in reversed(tables)] == first[::-1]


def test_requests_that_alternate_keep_their_own_options(toy: Toy) -> None:
    """B25: one decodes a forward of the other in between, as batching engines do."""
    requests: list[dict[str, Any]] = [
        {"decoder": "threshold", "decoder_options": {"threshold": 0.3}, "temperature": 0.0},
        {"decoder": "threshold", "decoder_options": {"threshold": 0.95}, "temperature": 1.0},
        {"decoder": "credit", "decoder_options": {"strength": 5.0}, "temperature": 0.0},
        {"decoder": "klass", "decoder_options": {"threshold": 0.2}, "temperature": 0.5},
    ]
    common: dict[str, Any] = {"gen_length": 12, "block_length": 6, "stop_at_eos": False}
    alone = [dlm.generate(toy(5), [[1]], **one, **common).tokens[0] for one in requests]
    assert len({tuple(tokens) for tokens in alone}) > 2
    streams = [dlm.stream(toy(5), [1], **one, **common) for one in requests]
    last: list[list[int]] = [[] for _ in requests]
    going = set(range(len(requests)))
    while going:
        for i in sorted(going):
            snapshot = next(streams[i], None)
            if snapshot is None:
                going.discard(i)
            else:
                last[i] = snapshot.tokens
    assert last == alone


def test_leaps_stay_in_their_block(by_position: Callable[[Tensor], Model]) -> None:
    """B32: anchors at the edge of a block, a radius beyond it, and a quota above what is left."""
    logits = torch.zeros(13, 8)
    logits[:, 1] = torch.tensor([0.0, *[1, 1, 1, 6] * 3])
    out = dlm.generate(
        by_position(logits), [[0]], decoder=LocalLeap(0.9, 0.2, 9), gen_length=12, block_length=4,
        steps=2, stop_at_eos=False, return_trajectory=True,
    )  # fmt: skip
    assert out.forwards == [3], "one a block, for all of it"
    assert order(out) == list(range(12))
    assert out.trajectory is not None
    for step, canvas in enumerate(out.trajectory[0].canvases.tolist()):
        assert canvas[4 * step :] == [MASK] * (12 - 4 * step)
    peer = torch.where(torch.arange(12) < 4, 0.5, -torch.inf).topk(6)
    assert int(peer.indices.max()) >= 4, "the top 6 of 4"


def test_guidance_needs_no_padding(toy: Toy) -> None:
    """B1: one row, equal rows and ragged ones."""

    def peer(scale: float, attention_mask: Tensor | None) -> Tensor | None:
        if scale > 0 and attention_mask is not None:
            both = torch.cat((attention_mask, attention_mask))
        return both

    with pytest.raises(UnboundLocalError):
        peer(0.5, None)
    options: dict[str, Any] = {"cfg_scale": 0.5, "gen_length": 5, "stop_at_eos": False}
    rows = [[1], [2], [3, 4, 1]]
    alone = [dlm.generate(toy(2), [row], **options).tokens[0] for row in rows]
    assert dlm.generate(toy(2), rows[:2], **options).tokens == alone[:2]
    assert dlm.generate(toy(2), rows, **options).tokens == alone


def test_peaked_rows_in_half_precision_are_sampled() -> None:
    """B7: not silently greedy, as behind a bare `except`."""
    rows = 40 * 64
    logits = 2 * torch.randn(rows, 512, generator=torch.Generator().manual_seed(0))
    logits[:, 3] = 8.5
    logits = logits.bfloat16()
    place = torch.arange(rows)
    key = NoiseKey(0, place, place, torch.zeros_like(place))
    found = token_statistics(logits, (), temperature=1.0, key=key).sampled
    greedy = float(logits.float().softmax(-1).amax(-1).mean())
    share = float((found == logits.argmax(-1)).float().mean())
    assert share == pytest.approx(greedy, abs=4 * math.sqrt(greedy * (1 - greedy) / rows))

    def peer(chance: Tensor) -> Tensor:
        try:
            law = torch.distributions.Categorical(probs=chance, validate_args=True)
            return torch.as_tensor(law.sample())
        except ValueError:
            return chance.argmax(-1)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = torch.cat([peer(part.softmax(-1)) for part in logits.split(64)])
    share = float((drawn == logits.argmax(-1)).float().mean())
    assert share > greedy + 4 * math.sqrt(greedy * (1 - greedy) / rows)


def test_confidence_has_the_digits_of_float32(by_position: Callable[[Tensor], Model]) -> None:
    """B10: bfloat16 logits of two positions whose bfloat16 softmax ties at 1."""
    logits = torch.zeros(3, 8, dtype=torch.bfloat16)
    logits[1, 1], logits[2, 1] = 9.0, 10.0
    out = dlm.generate(
        by_position(logits), [[0]], gen_length=2, block_length=None, return_trajectory=True
    )
    assert out.trajectory is not None
    found = [change.confidence for change in out.trajectory[0].commits]
    sure = logits[1:, :MASK].double().softmax(-1)[:, 1].tolist()
    assert order(out) == [1, 0]
    assert found == pytest.approx(sure[::-1], rel=1e-6)
    peer = logits[1:].softmax(-1).amax(-1)
    assert peer[0] == peer[1], "a tie, which goes to whichever comes first"
