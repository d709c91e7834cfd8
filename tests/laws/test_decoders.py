"""What holds for every decoder, whatever the logits. A decoder in the registry is tested here."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

import dlm
from dlm.canvas import forwards_per_block
from dlm.decoders import DECODERS, make
from dlm.job import generation_job
from dlm.models.model import Model
from dlm.settings import Settings
from dlm.traits import Traits

MASK, EOS, EOT = 7, 6, 5
Toy = Callable[..., Model]

law = examples(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
every_decoder = pytest.mark.parametrize("name", DECODERS)
prompts = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=5), min_size=1, max_size=4)


@st.composite
def generations(draw: st.DrawFn) -> dict[str, Any]:
    """Options of a generation, divisible or not."""
    return {
        "gen_length": draw(st.integers(1, 12)),
        "block_length": draw(st.one_of(st.none(), st.integers(1, 14))),
        "steps": draw(st.one_of(st.none(), st.integers(1, 15))),
        "temperature": draw(st.sampled_from([0.0, 0.7, 1.0])),
        "stop_at_eos": draw(st.booleans()),
        "seed": draw(st.integers(0, 9)),
    }


def most_forwards(name: str, length: int, block_length: int, steps: int | None) -> int:
    """The forwards a row may take by what its decoder declares."""
    blanks = torch.tensor([[min(block_length, length - i) for i in range(0, length, block_length)]])
    bound = Traits.of(make(name)).max_forwards
    if bound is None:
        return length
    return int(bound(blanks, forwards_per_block(blanks, steps, surplus=True)).sum())


@pytest.mark.one_in(3)
@every_decoder
@law
@given(rows=prompts, options=generations(), seed=st.integers(0, 99))
def test_fills_the_canvas_and_nothing_else(
    toy: Toy, name: str, rows: list[list[int]], options: dict[str, Any], seed: int
) -> None:
    """I1, I2, I4, I5, I8: each forward commits masks of the active block only, to the last."""
    model = toy(seed)
    out = dlm.generate(model, rows, decoder=name, return_trajectory=True, **options)
    traits = Traits.of(make(name))
    length = options["gen_length"]
    block_length = options["block_length"] or length + 5
    assert out.trajectory is not None
    for tokens, forwards, trajectory in zip(out.tokens, out.forwards, out.trajectory, strict=True):
        assert len(tokens) == length
        assert MASK not in tokens
        assert 1 <= forwards <= most_forwards(name, length, block_length, options["steps"])
        assert trajectory.canvases.shape == (forwards, length)
        active = 0
        for step, canvas in enumerate(trajectory.canvases.tolist()):
            commits, remasks, edits = (
                [change.position for change in kind if change.step == step]
                for kind in (trajectory.commits, trajectory.remasks, trajectory.edits)
            )
            if traits.max_forwards is None:
                assert len(commits) > len(remasks)
            assert all(canvas[position] == MASK for position in commits)
            assert all(canvas[position] != MASK for position in (*remasks, *edits))
            if MASK in canvas:
                active = max(active, canvas.index(MASK) // block_length)
            touched = {position // block_length for position in (*commits, *remasks, *edits)}
            assert touched <= set(range(active + 1) if traits.cross_block else [active])


@every_decoder
@law
@given(rows=prompts, options=generations(), seed=st.integers(0, 99))
def test_given_tokens_never_change(
    toy: Toy, name: str, rows: list[list[int]], options: dict[str, Any], seed: int
) -> None:
    """I3: after every forward the prompts and the padding are what they were."""
    model = toy(seed)
    job = generation_job(model, rows, Settings(decoder=name, **options))
    for step in job.steps():
        kept = ~step.before.blank
        assert torch.equal(
            step.tokens[kept], job.canvas.tokens[step.before.row][:, : kept.shape[1]][kept]
        )


@every_decoder
@law
@given(rows=prompts, options=generations(), seed=st.integers(0, 99))
def test_a_canvas_is_the_one_before_plus_its_commits(
    toy: Toy, name: str, rows: list[list[int]], options: dict[str, Any], seed: int
) -> None:
    """I3 and the trajectory itself: nothing changes that no decision names."""
    out = dlm.generate(toy(seed), rows, decoder=name, return_trajectory=True, **options)
    assert out.trajectory is not None
    for trajectory in out.trajectory:
        for step, (before, after) in enumerate(pairwise(trajectory.canvases.tolist())):
            for kind in (trajectory.commits, trajectory.edits):
                for change in kind:
                    if change.step == step:
                        before[change.position] = change.token
            for change in trajectory.remasks:
                if change.step == step:
                    before[change.position] = MASK
            assert before == after


@pytest.mark.one_in(3)
@every_decoder
@law
@given(
    rows=prompts,
    options=generations(),
    seed=st.integers(0, 99),
    order=st.randoms(use_true_random=False),
)
def test_rows_are_independent(
    toy: Toy,
    decoding: Callable[[str], dict[str, Any]],
    name: str,
    rows: list[list[int]],
    options: dict[str, Any],
    seed: int,
    order: Any,
) -> None:
    """I6: alone, batched and shuffled give the same bits, at any temperature."""
    if options["temperature"] and "position_noise" in Traits.of(make(name)).needs:
        options = options | {"position_temperature": options["temperature"] / 2}
    options = options | decoding(name)
    model = toy(seed)
    keys = list(range(100, 100 + len(rows)))
    together = dlm.generate(model, rows, row_keys=keys, **options)
    index = order.sample(range(len(rows)), len(rows))
    shuffled = dlm.generate(
        model, [rows[i] for i in index], row_keys=[keys[i] for i in index], **options
    )
    for place, i in enumerate(index):
        assert shuffled.tokens[place] == together.tokens[i]
        assert shuffled.forwards[place] == together.forwards[i]
        alone = dlm.generate(model, [rows[i]], row_keys=[keys[i]], **options)
        assert alone.tokens == [together.tokens[i]]
        assert alone.forwards == [together.forwards[i]]


@every_decoder
@law
@given(steps=st.integers(1, 20), length=st.integers(1, 12), block=st.integers(1, 12))
def test_steps_bound_the_forwards(toy: Toy, name: str, steps: int, length: int, block: int) -> None:
    """I7: no forward without a quota, and no more than the budget (or one a block)."""
    blocks = -(-length // block)
    out = dlm.generate(
        toy(3), [[1, 2]], decoder=name, gen_length=length, block_length=block, steps=steps,
        stop_at_eos=False,
    )  # fmt: skip
    assert out.forwards[0] <= max(steps, blocks)
    assert out.forwards[0] <= most_forwards(name, length, block, steps)


ADVERSARIAL = {
    "all equal": torch.zeros(5, 8),
    "one-hot mask": torch.full((5, 8), -torch.inf).index_fill(1, torch.tensor([MASK]), 0.0),
    "all -inf": torch.full((5, 8), -torch.inf),
    "one-hot end": torch.full((5, 8), -torch.inf).index_fill(1, torch.tensor([EOS]), 0.0),
    "one huge logit": torch.zeros(5, 8).index_fill(1, torch.tensor([2]), 1e30),
}


@every_decoder
@pytest.mark.one_in(4)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("logits", ADVERSARIAL.values(), ids=ADVERSARIAL)
def test_terminates_under_adversarial_logits(
    toy: Toy, name: str, logits: torch.Tensor, temperature: float
) -> None:
    out = dlm.generate(
        toy(logits), [[1], [2, 3]], decoder=name, gen_length=9, block_length=4,
        temperature=temperature,
    )  # fmt: skip
    assert all(MASK not in row and len(row) == 9 for row in out.tokens)


@every_decoder
def test_is_a_frozen_value(name: str) -> None:
    decoder = make(name)
    assert decoder == make(name)
    assert hash(decoder) == hash(make(name))
    with pytest.raises((AttributeError, TypeError)):
        decoder.surprise = 1  # type: ignore[attr-defined]


@pytest.fixture
def default_dtype() -> Iterator[Callable[[torch.dtype], None]]:
    """Sets that of torch for the rest of a test."""
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@pytest.mark.one_in(6)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in DECODERS),
        ("credit", {"adaptive": True}),
        ("first_hitting", {"order": 2}),
        ("pc_sampler", {"weight": "linear"}),
    ],
)
def test_the_default_dtype_of_torch_decides_nothing(
    golden: Model,
    name: str,
    options: dict[str, Any],
    dtype: torch.dtype,
    default_dtype: Callable[[torch.dtype], None],
) -> None:
    settings: dict[str, Any] = {"decoder": name, "decoder_options": options, "gen_length": 12}
    settings |= {"block_length": 5, "temperature": 1.0, "stop_at_eos": False}
    rows = [[1, 2, 3], [5, 6, 7, 8, 9], [4]]
    plain = dlm.generate(golden, rows, **settings)
    default_dtype(dtype)
    assert dlm.generate(golden, rows, **settings) == plain


@every_decoder
def test_two_generations_share_no_state(toy: Toy, name: str) -> None:
    """C10: an instance used before decodes like a fresh one."""
    decoder = make(name)
    dlm.generate(toy(1), [[1, 2, 3]], decoder=decoder, gen_length=7, block_length=3)
    again = dlm.generate(toy(2), [[4]], decoder=decoder, gen_length=7, block_length=3)
    fresh = dlm.generate(toy(2), [[4]], decoder=make(name), gen_length=7, block_length=3)
    assert again.tokens == fresh.tokens


@law
@given(
    seed=st.integers(0, 99), low=st.floats(0, 1), high=st.floats(0, 1), length=st.integers(1, 10)
)
def test_threshold_is_monotone_in_its_first_commits(
    toy: Toy, seed: int, low: float, high: float, length: int
) -> None:
    low, high = sorted((low, high))
    first = [
        {
            change.position
            for change in dlm.generate(
                toy(seed), [[1]], decoder="threshold", decoder_options={"threshold": value},
                gen_length=length, stop_at_eos=False, return_trajectory=True,
            ).trajectory[0].commits  # type: ignore[index]
            if change.step == 0
        }
        for value in (low, high)
    ]  # fmt: skip
    assert first[1] <= first[0]


@law
@given(seed=st.integers(0, 99), length=st.integers(1, 10), block=st.integers(1, 10))
def test_threshold_above_one_is_low_confidence(
    toy: Toy, seed: int, length: int, block: int
) -> None:
    """Reduction C3: nothing is sure enough, so the best position goes alone."""
    options: dict[str, Any] = {"gen_length": length, "block_length": block}
    sure = dlm.generate(
        toy(seed), [[1]], decoder="threshold", decoder_options={"threshold": 1.5}, **options
    )
    best = dlm.generate(toy(seed), [[1]], decoder="low_confidence", **options)
    assert sure.tokens == best.tokens
    assert sure.forwards == best.forwards
