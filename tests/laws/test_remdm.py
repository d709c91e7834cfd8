"""ReMDM: rates that are probabilities, marginals that stay, loops that end.

Shapes: B rows, L canvas, N grid steps.
"""

from collections.abc import Callable
from functools import partial
from math import sqrt
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

import dlm
from dlm.decoders import ReMDM
from dlm.decoders.remdm import ETAS, LOOPED
from dlm.decoders.remdm_loops import Remasking
from dlm.job import generation_job
from dlm.models.model import Model
from dlm.settings import Settings

MASK = 7
Toy = Callable[..., Model]
Look = Callable[[list[int]], Tensor]

law = examples(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
every_variant = pytest.mark.parametrize("variant", [*ETAS, *LOOPED])
prompts = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=4), min_size=1, max_size=3)


def decode(
    model: Model, decoder: ReMDM, rows: list[list[int]], **options: Any
) -> tuple[dlm.Generation, list[Any]]:
    shared: dict[str, Any] = {"block_length": None, "stop_at_eos": False, "temperature": 1.0}
    out = dlm.generate(model, rows, decoder=decoder, return_trajectory=True, **shared | options)
    assert out.trajectory is not None
    return out, list(out.trajectory)


def alpha(variant: str, time: float) -> float:
    """Survival probability: 1 - t, or with a rest at 0.9 from t = 0.55 to 0.05."""
    if variant != "loop":
        return 1 - time
    if time > 0.55:
        return 0.9 * (1 - time) / 0.45
    return max(0.9, 0.9 + 0.1 * (0.05 - time) / 0.05)


def sigma(variant: str, eta: float, time: float, then: float) -> float:
    """Remasking probability from time t to s (all but "conf", which depends on the tokens)."""
    now = alpha(variant, time)
    most = 1.0 if now == 0 else min(1.0, (1 - alpha(variant, then)) / now)
    if variant == "rescale":
        return eta * most
    if variant == "loop":
        return min(eta, most) if 0.05 < time <= 0.55 else 0.0
    return min(eta, most)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("variant", ["cap", "rescale", "conf"])
@law
@given(
    rows=prompts,
    seed=st.integers(0, 99),
    length=st.integers(1, 10),
    steps=st.integers(1, 15),
    temperature=st.sampled_from([0.0, 1.0]),
)
def test_without_remasking_is_ancestral(
    toy: Toy,
    variant: str,
    rows: list[list[int]],
    seed: int,
    length: int,
    steps: int,
    temperature: float,
) -> None:
    """C3, eta = 0: the same canvases, and then full ones to the end of the grid."""
    options: dict[str, Any] = {"gen_length": length, "steps": steps, "temperature": temperature}
    out, seen = decode(toy(seed), ReMDM(variant=variant, eta=0.0), rows, **options)
    plain = dlm.generate(
        toy(seed), rows, decoder="ancestral", decoder_options={"cached": False},
        block_length=None, stop_at_eos=False, return_trajectory=True, **options,
    )  # fmt: skip
    assert out.tokens == plain.tokens
    assert plain.trajectory is not None
    for ours, other in zip(seen, plain.trajectory, strict=True):
        assert torch.equal(ours.canvases[: len(other.canvases)], other.canvases)
        assert not ours.remasks


@pytest.mark.parametrize("variant", ETAS)
@law
@given(steps=st.integers(1, 60), eta=st.floats(0, 1))
def test_rates_are_probabilities(variant: str, steps: int, eta: float) -> None:
    """Eq. 6: sigma, the reveal rate and what stays masked are in [0, 1], unclamped."""
    decoder = ReMDM(variant=variant, eta=eta)
    count = torch.arange(steps).double()
    time, after = 1 - count / steps, 1 - (count + 1) / steps
    now, then = decoder.alpha(time)[:, None], decoder.alpha(after)[:, None]
    assert now.flatten().tolist() == pytest.approx([alpha(variant, t) for t in time.tolist()])
    assert (now.diff(dim=0) >= 0).all()
    view: Any = SimpleNamespace(editable=torch.tensor([[True, True, False]]))
    confidence = torch.rand(steps, 3, generator=torch.Generator().manual_seed(steps))
    state = Remasking(torch.zeros(steps).long(), confidence)
    rate = decoder.rate(state, view, now, then, time)
    assert ((rate >= 0) & (rate <= 1)).all()
    rate = rate[:, :1] if variant != "conf" else rate[:, 2:]  # of masked positions
    reveal = (then - (1 - rate) * now) / (1 - now)
    stay = (1 - then - rate * now) / (1 - now)
    tiny = 1e-12
    assert ((reveal >= -tiny) & (reveal <= 1 + tiny)).all()
    assert ((stay >= -tiny) & (stay <= 1 + tiny)).all()
    torch.testing.assert_close(reveal + stay, torch.ones_like(stay))
    if variant != "conf":
        expected = [
            sigma(variant, eta, t, s) for t, s in zip(time.tolist(), after.tolist(), strict=True)
        ]
        assert rate.flatten().tolist() == pytest.approx(expected, abs=1e-9)


ROWS, LENGTH = 4000, 5


def masked_by_step(seen: list[Any]) -> Tensor:
    """Masks in what each forward saw, float64 [N, ROWS * LENGTH]."""
    canvases = torch.stack([one.canvases for one in seen])
    return (canvases == MASK).double().transpose(0, 1).flatten(1)


@pytest.mark.one_in(6)
@pytest.mark.parametrize(
    ("variant", "eta", "steps"),
    [
        ("cap", None, 12),
        ("cap", 0.3, 12),
        ("cap", 1.0, 7),
        ("rescale", 0.5, 12),
        ("rescale", 1.0, 5),
        ("loop", 0.1, 40),
        ("loop", 1.0, 23),
    ],
)
def test_the_share_of_masks_is_that_of_the_schedule(
    toy: Toy, variant: str, eta: float | None, steps: int
) -> None:
    """Eq. 6: at s a position is masked with 1 - alpha(s), whatever went back and forth."""
    _, seen = decode(
        toy(0), ReMDM(variant=variant, eta=eta), [[1]] * ROWS, gen_length=LENGTH, steps=steps
    )
    masked = masked_by_step(seen)
    assert len(masked) == steps
    if eta is not None:
        assert sum(len(one.remasks) for one in seen) > ROWS / 20
    for k, found in enumerate(masked.mean(-1).tolist()):
        share = 1 - alpha(variant, 1 - k / steps)
        bound = 4 * sqrt(share * (1 - share) / (ROWS * LENGTH))
        assert abs(found - share) <= bound + 1e-12, k


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("variant", "eta"), [("cap", 0.3), ("rescale", 0.5), ("loop", 0.1)])
def test_tokens_are_remasked_at_the_rate(toy: Toy, variant: str, eta: float) -> None:
    """Eq. 6: of the committed tokens of each step a share sigma goes back, within 4 sigma."""
    steps = 10
    _, seen = decode(
        toy(0), ReMDM(variant=variant, eta=eta), [[1]] * ROWS, gen_length=LENGTH, steps=steps
    )
    committed = (1 - masked_by_step(seen)).sum(-1).tolist()
    for k in range(steps - 1):
        gone = sum(change.step == k for one in seen for change in one.remasks)
        rate = sigma(variant, eta, 1 - k / steps, 1 - (k + 1) / steps)
        assert abs(gone - rate * committed[k]) <= 4 * sqrt(rate * (1 - rate) * committed[k]) + 1e-9
    assert not any(change.step == steps - 1 for one in seen for change in one.remasks)


def test_doubtful_tokens_are_remasked_more_often(toy: Toy) -> None:
    """Section 4.1, "conf": rate eta sigma_max softmax(-c), c from when a token was committed."""
    steps, eta, model = 8, 0.9, toy(2)
    settings = Settings(
        decoder=ReMDM(variant="conf", eta=eta), gen_length=LENGTH, block_length=None, steps=steps,
        temperature=1.0, stop_at_eos=False,
    )  # fmt: skip
    kept = torch.zeros(ROWS, LENGTH)
    excess: list[Tensor] = []
    for k, step in enumerate(generation_job(model, [[1]] * ROWS, settings).steps()):
        now, then = k / steps, (k + 1) / steps
        most = min(1.0, (1 - then) / now) if k else 1.0
        there = step.view.editable
        weight = (-kept.double()).exp() * there
        rate = eta * most * weight / weight.sum(-1, keepdim=True).clamp(min=1e-9)
        assert step.decision.remask is not None
        assert not (step.decision.remask & ~there).any()
        centred = rate - rate.sum(-1, keepdim=True) / there.sum(-1, keepdim=True).clamp(min=1)
        doubt = (step.decision.remask.double() - rate) * there
        excess += [doubt.flatten(), (doubt * centred).flatten()] if k + 1 < steps else []
        kept = torch.where(step.decision.commit, step.view.want("confidence"), kept)
    for total in (torch.cat(excess[::2]), torch.cat(excess[1::2])):
        assert abs(float(total.sum())) < 4 * float((total**2).sum().sqrt())


@law
@given(
    rows=prompts,
    seed=st.integers(0, 99),
    length=st.integers(1, 14),
    ratio=st.integers(0, 16).map(lambda n: n / 16),  # exact in float32 too
    k=st.integers(1, 4),
    loops=st.integers(0, 6),
    temperature=st.sampled_from([0.0, 1.0]),
)
def test_loops_of_the_llada_variant_keep_the_count(
    toy: Toy,
    rows: list[list[int]],
    seed: int,
    length: int,
    ratio: float,
    k: int,
    loops: int,
    temperature: float,
) -> None:
    """9.7: fill to the ratio, then each loop takes k back and commits k, then the rest."""
    decoder = ReMDM(init_unmask_ratio=ratio, unmask_k=k, loop_steps=loops)
    out, seen = decode(toy(seed), decoder, rows, gen_length=length, temperature=temperature)
    target = int(ratio * length)
    filled = [*range(0, target, k), target]
    counts = list(filled)
    if length > k and target:
        for _ in range(loops):
            taken = min(k, target)
            # What a loop commits is up to k of all masks, so a loop on fewer than k tokens gains.
            target = target - taken + min(k, length - target + taken)
            counts += [counts[-1] - taken, target]
    counts += [*range(target + k, length, k), *([length] if target < length else [])]
    for one, end in zip(seen, out.tokens, strict=True):
        found = [int((canvas != MASK).sum()) for canvas in one.canvases]
        assert [*found, len(end)] == counts
        assert MASK not in end


def test_a_full_block_is_held_for_all_its_loops(toy: Toy) -> None:
    """The setting of sudoku, ratio 1: full before every loop, which then takes k back."""
    decoder = ReMDM(init_unmask_ratio=1.0, unmask_k=2, loop_steps=3)
    out, seen = decode(toy(3), decoder, [[1]], gen_length=8)
    counts = [int((canvas != MASK).sum()) for canvas in seen[0].canvases]
    assert counts == [0, 2, 4, 6, 8, 6, 8, 6, 8, 6]
    assert out.forwards == [10]


def remembered(
    look: Look, row: list[int], length: int, block: int, ratio: float, loops: int
) -> list[list[int]]:
    """The authors' loop for LLaDA, one token a forward: what each forward sees, and the end."""
    row, start, seen = [*row, *[MASK] * length], len(row), []
    for begin in range(start, len(row), block):
        inside = range(begin, min(begin + block, len(row)))
        first, sure = int(ratio * len(inside)), dict[int, float]()
        again = loops if first and len(inside) > 1 else 0
        for i in range(len(inside) + again):
            if first <= i < first + again:
                back = min(sure, key=lambda at: (sure[at], at))
                del sure[back]
                row[back] = MASK
            seen.append(row[start:])
            chance = look(row)
            best = max((at for at in inside if row[at] == MASK), key=lambda at: chance[at].max())
            sure[best], row[best] = float(chance[best].max()), int(chance[best].argmax())
    return [*seen, row[start:]]


@law
@given(
    rows=prompts,
    seed=st.integers(0, 99),
    length=st.integers(1, 12),
    block=st.integers(1, 12),
    ratio=st.integers(0, 8).map(lambda n: n / 8),
    loops=st.integers(0, 6),
)
def test_the_authors_loop_for_llada(
    toy: Toy,
    chances: Callable[[Model, list[int]], Tensor],
    rows: list[list[int]],
    seed: int,
    length: int,
    block: int,
    ratio: float,
    loops: int,
) -> None:
    """Canvas for canvas, in batches, at temperature 0."""
    decoder = ReMDM(variant="llada_remdm", init_unmask_ratio=ratio, loop_steps=loops)
    options: dict[str, Any] = {"gen_length": length, "block_length": block, "temperature": 0.0}
    out, seen = decode(toy(seed), decoder, rows, **options)
    for row, one, end in zip(rows, seen, out.tokens, strict=True):
        wanted = remembered(partial(chances, toy(seed)), row, length, block, ratio, loops)
        assert [*one.canvases.tolist(), end] == wanted


def test_defaults_are_the_authors_setting_of_countdown(toy: Toy) -> None:
    """32 tokens in one block: 28 first, 32 loops, and 4 more."""
    out, seen = decode(toy(1), ReMDM(variant="llada_remdm"), [[1]], gen_length=32)
    counts = [int((canvas != MASK).sum()) for canvas in seen[0].canvases]
    assert counts == [*range(28), *[27] * 32, *range(28, 32)]
    assert out.forwards == [64]


@every_variant
@law
@given(
    rows=prompts,
    seed=st.integers(0, 99),
    length=st.integers(1, 12),
    block=st.one_of(st.none(), st.integers(1, 12)),
    steps=st.one_of(st.none(), st.integers(1, 20)),
    eta=st.floats(0, 1),
)
def test_every_variant_ends(
    toy: Toy,
    variant: str,
    rows: list[list[int]],
    seed: int,
    length: int,
    block: int | None,
    steps: int | None,
    eta: float,
) -> None:
    """I5, I8: at any rate, with no mask left, on its grid or within its budget."""
    decoder = ReMDM(variant=variant, eta=None if variant in LOOPED else eta, loop_steps=5)
    out, _ = decode(toy(seed), decoder, rows, gen_length=length, block_length=block, steps=steps)
    blocks = -(-length // (block or length))
    for tokens, forwards in zip(out.tokens, out.forwards, strict=True):
        assert MASK not in tokens
        if steps is not None:
            assert forwards <= max(steps, blocks)
        elif variant in LOOPED:
            assert forwards <= length + (10 if variant == "llada" else 5) * blocks
        else:
            assert forwards == length
