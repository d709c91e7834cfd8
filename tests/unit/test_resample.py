"""The counts of a schedule at other lengths, against the rule in exact fractions."""

from fractions import Fraction
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm.decoders.artefact import ModelFacts, ScheduleArtefact
from dlm.decoders.resample import MAX_LENGTH, apportion, apportion_table, fractions

reveals = st.lists(st.integers(1, 40), min_size=1, max_size=24).map(tuple)
weight_lists = st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=40)


def scheduled(reveal: tuple[int, ...]) -> ScheduleArtefact:
    """A schedule of one block with these counts."""
    return ScheduleArtefact(
        model=ModelFacts(vocab=9, mask_id=8),
        gen_length=sum(reveal),
        block_length=sum(reveal),
        steps=len(reveal),
        reveal=reveal,
        cum_fraction=fractions(reveal),
        logit_scale=tuple(0.5 + k / 64 for k in range(len(reveal))),
    )


def increasing(weights: list[float]) -> tuple[float, ...]:
    total = sum(weights)
    reached = [part / total for part in accumulate(weights)]
    return (*reached[:-1], 1.0)


def quota_rule(masks: int, steps: int) -> tuple[int, ...]:
    """LLaDA's quota, less the forwards that reveal nothing."""
    each = (masks // steps + (k < masks % steps) for k in range(steps))
    return tuple(n for n in each if n)


def exact_quotas(reveal: tuple[int, ...], masks: int) -> list[Fraction]:
    """Fix what falls below 1 at 1 and share out the rest again, until nothing does. For m >= N."""
    fixed: set[int] = set()
    while True:
        spare = sum(n for k, n in enumerate(reveal) if k not in fixed)
        rate = Fraction(masks - len(fixed), spare) if spare else Fraction(0)
        low = {k for k, n in enumerate(reveal) if k not in fixed and rate * n < 1}
        if not low:
            return [Fraction(1) if k in fixed else rate * n for k, n in enumerate(reveal)]
        fixed |= low


def exact_counts(reveal: tuple[int, ...], masks: int) -> tuple[int, ...]:
    """The rule of `dlm.decoders.resample` in fractions of ints."""
    if masks < len(reveal):
        return (1,) * masks
    quotas = exact_quotas(reveal, masks)
    counts = [int(q) for q in quotas]
    by_remainder = sorted(range(len(counts)), key=lambda k: (counts[k] - quotas[k], k))
    for k in by_remainder[: masks - sum(counts)]:
        counts[k] += 1
    return tuple(counts)


@given(reveals, st.integers(0, 300))
def test_counts_equal_the_rule_in_exact_fractions(reveal: tuple[int, ...], masks: int) -> None:
    assert apportion(fractions(reveal), masks) == exact_counts(reveal, masks)


@given(weight_lists, st.integers(0, 500))
def test_resampled_counts_sum_exactly_and_never_stall(weights: list[float], masks: int) -> None:
    counts = apportion(increasing(weights), masks)
    assert sum(counts) == masks
    assert len(counts) == min(len(weights), masks)
    assert all(n >= 1 for n in counts)
    reached = [0, *accumulate(counts)]
    assert reached == sorted(set(reached))


@given(weight_lists, st.integers(0, 500))
def test_a_larger_step_never_reveals_less(weights: list[float], masks: int) -> None:
    c = increasing(weights)
    counts = apportion(c, masks)
    shares = [now - before for before, now in zip((0.0, *c), c, strict=False)]
    for share, n in zip(shares, counts, strict=False):
        assert all(n >= m for s, m in zip(shares, counts, strict=False) if share > s + 1e-6)


@given(reveals)
def test_own_length_gives_the_counts_back(reveal: tuple[int, ...]) -> None:
    schedule = scheduled(reveal)
    assert schedule.counts(sum(reveal)) == reveal
    assert apportion(schedule.cum_fraction, sum(reveal)) == reveal


@settings(max_examples=40)
@given(reveals, st.integers(0, 90))
def test_tables_equal_the_plans(reveal: tuple[int, ...], most: int) -> None:
    schedule = scheduled(reveal)
    counts, scales = schedule.counts_table(most), schedule.scales_table(most)
    assert counts.dtype == torch.int64
    assert scales.dtype == torch.float32
    assert counts.shape == scales.shape == (most + 1, len(reveal))
    for m, (n, a) in enumerate(zip(counts.tolist(), scales.tolist(), strict=True)):
        plan = schedule.plan(m)
        padding = len(reveal) - len(plan[0])
        assert n == [*plan[0], *[0] * padding]
        assert a == [*plan[1], *[1.0] * padding]  # multiples of 1 / 64: exact in float32


def test_a_rare_forward_keeps_one_token() -> None:
    assert scheduled((97, 1, 1, 1)).counts(8) == (5, 1, 1, 1)
    assert scheduled((1, 1, 1, 97)).counts(8) == (1, 1, 1, 5)
    assert scheduled((6, 3, 1)).counts(5) == (3, 1, 1)


def test_counts_at_large_lengths() -> None:
    reveal = (2, 1, 9, 6, 5, 4, 3, 2)
    for masks in (4095, 65535, MAX_LENGTH):
        assert scheduled(reveal).counts(masks) == exact_counts(reveal, masks)


@given(st.integers(1, 300), st.integers(1, MAX_LENGTH))
def test_equal_steps_tie_at_any_length(steps: int, masks: int) -> None:
    assert apportion(fractions((1,) * steps), masks) == quota_rule(masks, steps)


def test_a_large_table_has_every_sum() -> None:
    table = apportion_table(increasing([1.0 + (k * 37 % 101) for k in range(256)]), 1024)
    assert table.sum(-1).tolist() == list(range(1025))


@pytest.mark.parametrize("masks", [1, 2, 7, 12, 32, 60])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7, 12, 31, 32, 64, None])
def test_identity_is_the_quota_rule(masks: int, steps: int | None) -> None:
    schedule = ScheduleArtefact.identity(masks, 9, 8, steps)
    assert schedule.reveal == quota_rule(masks, steps or masks)
    assert set(schedule.logit_scale) == {1.0}
    assert schedule.steps == len(schedule.reveal) == min(steps or masks, masks)
    assert (schedule.gen_length, schedule.block_length) == (masks, masks)
    schedule.check_model(9, 8)


@given(st.integers(1, 64), st.integers(1, 64), st.integers(0, 200))
def test_identity_stays_the_quota_rule_at_other_lengths(own: int, steps: int, masks: int) -> None:
    steps = min(steps, own)
    equal = ScheduleArtefact.identity(own - own % steps, 9, 8, steps)
    assert equal.counts(masks) == quota_rule(masks, steps)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 0}, "length must be an int >= 1, got 0"),
        ({"steps": 0}, "steps must be an int >= 1, got 0"),
        ({"vocab": 7}, "model.mask_id must be an int <= 6, got 8"),
    ],
)
def test_bad_identities(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScheduleArtefact.identity(**({"length": 8, "vocab": 9, "mask_id": 8} | changes))
