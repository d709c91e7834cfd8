"""The loop: quotas, stopping, guidance, suppression, dropped rows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dlm
from dlm.cache import View
from dlm.canvas import blanks_per_block, build, forwards_per_block
from dlm.decoders import DECODERS
from dlm.models.model import Model

MASK, EOS, EOT = 7, 6, 5
Toy = Callable[..., Model]


def commits_per_forward(out: dlm.Generation) -> list[int]:
    assert out.trajectory is not None
    steps = [change.step for change in out.trajectory[0].commits]
    return [steps.count(step) for step in range(out.forwards[0])]


@pytest.mark.parametrize("length", [1, 2, 5, 7, 10])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 9])
def test_quotas_are_the_reference_schedule(toy: Toy, length: int, steps: int) -> None:
    """T1.1: floor(m / S) + 1[k < m mod S], zeros left out."""
    out = dlm.generate(
        toy(), [[1]], gen_length=length, block_length=None, steps=steps, stop_at_eos=False,
        return_trajectory=True,
    )  # fmt: skip
    quotas = [length // steps + (k < length % steps) for k in range(steps)]
    assert commits_per_forward(out) == [quota for quota in quotas if quota]


def brute_force(model: Model, row: list[int], length: int, block: int) -> list[int]:
    """Most confident position first, one a forward, written as plainly as it can be."""
    row = [*row, *[MASK] * length]
    start = len(row) - length
    for first in range(start, len(row), block):
        inside = range(first, min(first + block, len(row)))
        while any(row[i] == MASK for i in inside):
            logits = model.raw_logits(torch.tensor([row]))[0].double()
            logits[:, MASK] = -torch.inf
            best, token = logits.softmax(-1).max(-1)
            spot = max((i for i in inside if row[i] == MASK), key=lambda i: float(best[i]))
            row[spot] = int(token[spot])
    return row[start:]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(1, 9), st.integers(1, 10))
def test_low_confidence_equals_brute_force(toy: Toy, seed: int, length: int, block: int) -> None:
    """T1.2."""
    model = toy(seed)
    out = dlm.generate(model, [[1, 2]], gen_length=length, block_length=block, stop_at_eos=False)
    assert out.tokens[0] == brute_force(model, [1, 2], length, block)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.integers(1, 9))
def test_blocks_of_one_are_left_to_right(toy: Toy, seed: int, length: int) -> None:
    """T1.2: K = 1 is left-to-right greedy decoding."""
    options: dict[str, Any] = {"gen_length": length, "stop_at_eos": False}
    one = dlm.generate(toy(seed), [[1]], block_length=1, **options)
    order = dlm.generate(toy(seed), [[1]], block_length=None, decoder="left_to_right", **options)
    assert one.tokens == order.tokens == [brute_force(toy(seed), [1], length, 1)]


@pytest.mark.parametrize(
    ("blanks", "steps", "expected"),
    [
        ([1, 1, 1, 1, 1, 1], 6, [2, 2, 2]),
        ([1, 1, 1, 1, 1, 1], 5, [2, 2, 1]),
        ([1, 1, 1, 1, 1, 1], 1, [1, 1, 1]),
        ([1, 1, 0, 0, 1, 1], 3, [2, 0, 1]),
        ([1, 1, 0, 0, 1, 1], 99, [2, 0, 2]),
        ([1, 1, 1, 1, 1, 0], 4, [2, 1, 1]),
        ([1, 1, 0, 0, 1, 1], None, [0, 0, 0]),
    ],
)
def test_budget_is_shared_by_blocks_with_blanks(
    blanks: list[int], steps: int | None, expected: list[int]
) -> None:
    blank = torch.tensor([blanks], dtype=torch.bool)
    counts = blanks_per_block(blank, torch.tensor([0]), 2)
    assert forwards_per_block(counts, steps).tolist() == [expected]


def test_a_surplus_of_forwards_goes_to_the_blocks_that_can_use_it() -> None:
    counts = torch.tensor([[3, 0, 2, 1]])
    assert forwards_per_block(counts, 12).tolist() == [[3, 0, 2, 1]]
    assert forwards_per_block(counts, 12, surplus=True).tolist() == [[6, 0, 4, 2]]


def test_guidance_mixes_with_the_masked_prompt(golden: Model) -> None:
    """T1.3: s = -1 is the unconditional model, and s -> 0 through guidance the plain one."""
    options: dict[str, Any] = {"gen_length": 8, "stop_at_eos": False}
    plain = dlm.generate(golden, [[5, 6, 7]], **options)
    nearly = dlm.generate(golden, [[5, 6, 7]], cfg_scale=1e-7, **options)
    assert nearly.tokens == plain.tokens
    assert nearly.query_tokens != plain.query_tokens, "guidance must have run"
    free = dlm.generate(golden, [[5, 6, 7]], cfg_scale=-1.0, **options)
    other_prompt = dlm.generate(golden, [[8, 9, 10]], cfg_scale=-1.0, **options)
    assert free.tokens == other_prompt.tokens
    assert free.tokens != plain.tokens
    assert free.query_tokens == [2 * n for n in plain.query_tokens]
    assert plain.query_tokens == [8 * 11]


@pytest.mark.parametrize("scale", [0.5, 1.5, -0.5])
def test_guidance_rounds_nothing_more_than_the_network_does(
    golden: Model, toy: Toy, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy((10 * torch.randn(97, 8, generator=torch.manual_seed(0))).bfloat16())
    met: list[Tensor] = []
    look_up = type(model).logits

    def noted(self: Any, hidden: Tensor) -> Tensor:
        met.append(look_up(self, hidden).double())
        return met[-1].bfloat16()

    monkeypatch.setattr(type(model), "logits", noted)
    options: dict[str, Any] = {"gen_length": 1, "stop_at_eos": False, "decoder": "random"}
    for key in range(8):
        met.clear()
        found = dlm.generate(
            model, [[1, key % 5]], temperature=1.0, cfg_scale=scale, row_keys=[key], **options
        )
        given, free = met
        mixed = free + (scale + 1) * (given - free)
        mixed[:, model.spec.mask_id] = -torch.inf
        expected = mixed.log_softmax(-1)[0, found.tokens[0][0]]
        assert found.path_log_probability == pytest.approx([float(expected)], rel=1e-5, abs=1e-6)


def by_position(toy: Toy, logits: Tensor) -> Model:
    """A model whose logits depend on the position alone."""
    base = toy(logits)

    class ByPosition(type(base)):  # type: ignore[misc]
        def hidden(self, tokens: Tensor, positions: Tensor, *_: Any) -> Tensor:
            return positions.expand(tokens.shape)[..., None]

    return ByPosition(None, None, base.spec, logits)


def script(tokens: list[int], sure: list[float]) -> Tensor:
    """Logits that predict `tokens` by position with rising certainty `sure`."""
    logits = torch.zeros(len(tokens), 8)
    logits[torch.arange(len(tokens)), torch.tensor(tokens)] = torch.tensor(sure).float()
    return logits


def test_end_of_text_waits_for_what_is_left_of_it(toy: Toy) -> None:
    # Position 3 says end of text first; positions 1 and 2 come later, then nothing more is needed.
    model = by_position(toy, script([0, 1, 2, EOS, 3, 4], [9, 3, 4, 8, 2, 1]))
    out = dlm.generate(model, [[0]], gen_length=5, block_length=None, return_trajectory=True)
    assert out.tokens == [[1, 2, EOS, EOS, EOS]]
    assert out.forwards == [3]
    whole = dlm.generate(model, [[0]], gen_length=5, block_length=None, stop_at_eos=False)
    assert whole.tokens == [[1, 2, EOS, 3, 4]]
    assert whole.forwards == [5]


def test_end_of_turn_is_followed_by_end_of_text(toy: Toy) -> None:
    # Position 4 is committed before the end of turn left of it, and is overwritten.
    model = by_position(toy, script([0, 1, EOT, 3, 4], [9, 5, 4, 3, 8]))
    out = dlm.generate(model, [[0]], gen_length=4, block_length=None)
    assert out.tokens == [[1, EOT, EOS, EOS]]


def test_rows_that_end_leave_the_forward(golden: Model) -> None:
    seen: list[int] = []

    class Counting(Model):
        def hidden(
            self,
            tokens: Tensor,
            positions: Tensor,
            valid: Tensor | None,
            cache: View | None = None,
            *,
            attend: Tensor | None = None,
        ) -> Tensor:
            seen.append(tokens.numel())
            return Model.hidden(self, tokens, positions, valid, cache, attend=attend)

    model = Counting(golden.network, golden.tokenizer, golden.spec)
    # Row 0 is done at its first forward: its only blank.
    rows = [[5, 6, 511], [5, 6, 7, 511, 511, 511]]
    out = dlm.infill(model, rows, block_length=2)
    assert seen == [3 + 6, 6, 6]
    assert out.forwards == [1, 3]


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_a_model_takes_tokens_positions_valid_and_cache(golden: Model, cache: str) -> None:
    """In this order; more only where queries have masks of their own."""

    class Four(Model):
        def hidden(  # type: ignore[override]
            self, tokens: Tensor, positions: Tensor, valid: Tensor | None, cache: View | None
        ) -> Tensor:
            return Model.hidden(self, tokens, positions, valid, cache)

    model = Four(golden.network, golden.tokenizer, golden.spec)
    options: dict[str, Any] = {"gen_length": 8, "block_length": 4, "cache": cache}
    rows = [[1, 2, 3], [4, 5, 6]]
    assert dlm.generate(model, rows, **options) == dlm.generate(golden, rows, **options)


def test_suppressed_tokens_never_come(toy: Toy) -> None:
    out = dlm.generate(
        toy(), [[1], [2]], gen_length=40, suppress_tokens=[0, 1, EOS], temperature=1.0,
        stop_at_eos=False,
    )  # fmt: skip
    assert not {0, 1, EOS, MASK} & {token for row in out.tokens for token in row}
    assert {2, 3, 4, EOT} <= {token for row in out.tokens for token in row}


def test_begin_suppressed_tokens_never_come_first(toy: Toy) -> None:
    table = torch.zeros(97, 8)
    table[:, 3] = 20.0
    out = dlm.generate(toy(table), [[1], [2, 2]], gen_length=4, begin_suppress_tokens=[3])
    assert all(row[0] != 3 and row[1:] == [3, 3, 3] for row in out.tokens)


def test_unused_rows_never_come(toy: Toy) -> None:
    model = toy(torch.zeros(97, 12), mask_id=3, unused=(8, 12), eos_id=0, stop_ids=(0,))
    out = dlm.generate(model, [[1]], gen_length=200, temperature=1.0, stop_at_eos=False)
    assert {token for row in out.tokens for token in row} == {0, 1, 2, 4, 5, 6, 7}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_stop_tokens_are_committed_last(toy: Toy, temperature: float) -> None:
    """T1.4: EOS is likeliest everywhere; positions that drew a word go first all the same."""
    table = torch.full((97, 8), -30.0)
    table[:, EOS] = 5.0
    table[::2, 1] = 5.0 if temperature else 6.0
    out = dlm.generate(
        toy(table), [[1]], gen_length=12, block_length=None, confidence_eos_eot_inf=True,
        temperature=temperature, stop_at_eos=False, return_trajectory=True,
    )  # fmt: skip
    assert out.trajectory is not None
    ends = [change.token == EOS for change in out.trajectory[0].commits]
    assert any(ends)
    for change in out.trajectory[0].commits:
        assert change.confidence == pytest.approx(0.0 if change.token == EOS else 1.0)


@pytest.mark.parametrize("temperature", [0.0, 1e-3])
@pytest.mark.parametrize("decoder", ["low_confidence", "entropy", "margin", "threshold"])
def test_a_word_outranks_a_surer_end(toy: Toy, decoder: str, temperature: float) -> None:
    """T1.4 on one canvas: the only word is committed first although every end is surer."""
    model = by_position(toy, script([0, EOS, EOT, 1], [9, 9, 9, 2]))
    options: dict[str, Any] = {
        "gen_length": 3, "block_length": None, "stop_at_eos": False, "return_trajectory": True,
        "decoder": decoder, "temperature": temperature,
    }  # fmt: skip
    if decoder == "threshold":
        options["decoder_options"] = {"threshold": 2.0}
    ranked = dlm.generate(model, [[0]], confidence_eos_eot_inf=True, **options)
    plain = dlm.generate(model, [[0]], **options)
    assert [c.token for c in ranked.trajectory[0].commits] == [1, EOS, EOT]  # type: ignore[index]
    assert [c.token for c in plain.trajectory[0].commits] == [EOS, EOT, 1]  # type: ignore[index]


def test_a_word_outside_of_the_nucleus_without_ends_outranks_an_end(toy: Toy) -> None:
    """Of p = (0.4, 0.35, 0.25 EOS) top-p 0.5 keeps two words, but one once EOS is gone."""
    table = torch.full((3, 8), -30.0)
    table[1, EOS] = 5.0
    table[2, [0, 1, EOS]] = torch.tensor([0.4, 0.35, 0.25]).log()
    options: dict[str, Any] = {
        "decoder": "block_refinement", "temperature": 1.0, "top_p": 0.5,
        "confidence_eos_eot_inf": True,
    }  # fmt: skip
    out = dlm.generate(
        by_position(toy, table), [[0]] * 40, gen_length=2, stop_at_eos=False, return_order=True,
        **options,
    )  # fmt: skip
    assert {row[1] for row in out.tokens} == {0, 1}
    assert out.order == [[1, 0]] * 40


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", DECODERS)
def test_broken_logits_are_refused(toy: Toy, name: str, bad: float) -> None:
    table = torch.zeros(97, 8)
    table[:, 2] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        dlm.generate(toy(table), [[1]], gen_length=4, decoder=name)


def test_guidance_is_no_more_than_its_formula(golden: Model) -> None:
    out = dlm.generate(golden, [[5, 6]], gen_length=1, cfg_scale=1.5)
    seen, free = (golden.raw_logits(torch.tensor([r]))[0, 2] for r in ([5, 6, 511], [511] * 3))
    mixed = free + 2.5 * (seen - free)
    mixed[511] = -torch.inf
    assert out.tokens == [[int(mixed.argmax())]]


def test_canvas_pads_to_the_right() -> None:
    canvas = build(
        [[1, MASK], [2, 3, 4, MASK, MASK]], mask_id=MASK, pad_id=EOS, block_length=2, steps=None,
        row_keys=[1 << 63, -1], seed=(1 << 64) - 2, temperature=0.7, device=torch.device("cpu"),
    )  # fmt: skip
    assert canvas.tokens.tolist() == [[1, MASK, EOS, EOS, EOS], [2, 3, 4, MASK, MASK]]
    assert canvas.start.tolist() == [1, 3]
    assert canvas.stop.tolist() == [2, 5]
    assert canvas.row_key.tolist() == [-(1 << 63), -1]
    assert canvas.seed.tolist() == [-2, -2]
    assert canvas.temperature.equal(torch.tensor([0.7, 0.7]))


@pytest.mark.parametrize("temperature", [5e-324, 1.7e308])
def test_temperatures_that_float32_has_not_are_taken(golden: Model, temperature: float) -> None:
    """As the arg max, and as a uniform law."""
    options: dict[str, Any] = {"decoder": "left_to_right", "gen_length": 5, "stop_at_eos": False}
    out = dlm.generate(golden, [[5, 6]], temperature=temperature, **options)
    likeliest = dlm.generate(golden, [[5, 6]], **options)
    assert (out.tokens == likeliest.tokens) == (temperature < 1)
