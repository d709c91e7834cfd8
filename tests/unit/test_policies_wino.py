"""WINO (policies.md 9.6): shadows, drafts and what is taken back.

Shapes: L canvas, W window.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dlm
from dlm.decoders import Wino
from dlm.job import generation_job, make_job
from dlm.models.model import Model
from dlm.runtime import Step
from dlm.settings import Settings
from dlm.topology import shadow_attention
from dlm.types import Decision, StepView

Toy = Callable[..., Model]
View = Callable[..., StepView]
Script = Callable[..., list[tuple[StepView, Decision]]]
Picked = Callable[..., list[int]]

MASK = 511


def truth(canvas: list[bool], shadows: list[int], cast: list[bool], query: int, key: int) -> bool:
    """Whether a query sees a key: reals first, then the shadow of each column of the window."""
    length = len(canvas)
    if query < length:
        return key < length and canvas[key]
    if key >= length:
        return cast[key - length]
    return canvas[key] and shadows[query - length] != key


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_who_sees_whom(view_of: View, data: st.DataObject) -> None:
    """The truth table: one row without padding, one with, one block that is cut short."""
    width = data.draw(st.integers(1, 5))
    length = width + data.draw(st.integers(0, 4))
    rows = 2
    starts = data.draw(st.lists(st.integers(0, length - width), min_size=rows, max_size=rows))
    kinds = data.draw(
        st.lists(
            st.lists(st.sampled_from("moc"), min_size=width, max_size=width),
            min_size=rows, max_size=rows,
        )
    )  # fmt: skip
    lengths = data.draw(st.lists(st.integers(1, length), min_size=rows, max_size=rows))
    view = view_of(
        masked=[[kind == "m" for kind in row] for row in kinds],
        editable=[[kind == "c" for kind in row] for row in kinds],
        positions=[[start + k for k in range(width)] for start in starts],
    )
    valid = torch.arange(length) < torch.tensor(lengths)[:, None]
    for given_valid in (valid, None):
        attend = shadow_attention(view, length, length, given_valid)
        for row in range(rows):
            canvas = [given_valid is None or i < lengths[row] for i in range(length)]
            cast = [kind != "o" for kind in kinds[row]]
            shadows = [starts[row] + k for k in range(width)]
            size = length + width
            wanted = [
                [truth(canvas, shadows, cast, q, k) for k in range(size)] for q in range(size)
            ]
            assert attend[row].tolist() == wanted


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shadows_do_not_change_what_is_real(golden: Model, view_of: View, dtype: Any) -> None:
    """Over all layers: not at all in float64, and in float32 no more than as much padding does."""
    model = Model(deepcopy(golden.network).to(dtype), None, golden.spec)
    length, width = 40, 12
    tokens = torch.randint(0, 500, (3, length), generator=torch.Generator().manual_seed(0))
    tokens[:, 20:32:2] = MASK
    columns = torch.arange(length + width)
    masked = [[column % 2 == 0 for column in range(width)]] * 3
    view = view_of(masked=masked, positions=[[20 + k for k in range(width)]] * 3)
    both = torch.cat((tokens, torch.full((3, width), MASK)), 1)
    places = torch.cat((columns[:length].expand(3, -1), view.positions), 1)
    attend = shadow_attention(view, length, length, None)
    leak = attend.clone()
    leak[:, 0, length] = True  # one real token that sees one shadow
    plain = model.hidden(tokens, columns[None, :length], None)
    padded, shadowed, leaking = (
        (hidden[:, :length] - plain).abs().max().item()
        for hidden in (
            model.hidden(both, columns[None], (columns < length).expand(3, -1)),
            model.hidden(both, places, None, attend=attend),
            model.hidden(both, places, None, attend=leak),
        )
    )
    assert shadowed <= padded + 1e-6, (shadowed, padded)
    assert shadowed <= (1e-5 if dtype is torch.float32 else 1e-12)
    assert leaking > 1e-3


def steps(model: Model, rows: list[list[int]], **options: Any) -> Iterator[Step]:
    """Every forward of WINO over token rows that hold masks."""
    settings = Settings(decoder=Wino(2.0, 0.0), stop_at_eos=False, **options)
    spans = [(0, len(row)) for row in rows]
    with torch.inference_mode():
        yield from make_job(model, rows, spans, settings).steps()


def one_layer(seed: int) -> Model:
    """A random network of one layer, in which leaving a token out is exact."""
    from transformers import AutoTokenizer

    from dlm.models.facts import resolve
    from dlm.training.run import Shape, new_network

    tokenizer = AutoTokenizer.from_pretrained(Path(dlm.__file__).parent / "assets" / "tiny")
    shape = Shape(width=32, layers=1, heads=2, mlp_width=64)
    network = new_network(shape, tokenizer, seed).eval()
    return Model(network, tokenizer, resolve(network.config, [], tokenizer))


@torch.inference_mode()
def test_a_single_shadow_leaves_its_token_out(view_of: View) -> None:
    """With one layer: the law of the canvas with a mask in its place, whatever the token is."""
    model = one_layer(3)
    mask, banned = model.spec.mask_id, list(model.spec.banned)
    canvas = torch.tensor([[9, 4, mask, 7, 8, 3]])
    plain = model.raw_logits(canvas)[0, 2].float().index_fill(0, torch.tensor(banned), -torch.inf)
    view = view_of(masked=[False], positions=[2])
    attend = shadow_attention(view, 6, 6, None)
    places = torch.tensor([[0, 1, 2, 3, 4, 5, 2]])
    for token in range(10, 14):
        tokens = torch.cat((canvas, torch.tensor([[mask]])), 1)
        tokens[0, 2] = token
        shadow = model.logits(model.hidden(tokens, places, None, attend=attend)[0, 6]).float()
        shadow[banned] = -torch.inf
        assert torch.allclose(shadow.softmax(-1), plain.softmax(-1), atol=1e-6)
        real = model.raw_logits(tokens[:, :6])[0, 2].float()
        assert not torch.allclose(real.softmax(-1), plain.softmax(-1), atol=1e-3)


def dense(model: Model, canvas: Tensor, view: StepView, row: int, size: int) -> Tensor:
    """Logits of the shadow at each column, by a forward with its mask spelled out in loops."""
    length = canvas.shape[0]
    shadows = view.positions[row].tolist()
    cast = (view.masked | view.editable)[row].tolist()
    real = [i < size for i in range(length)]
    total = length + len(shadows)
    attend = torch.tensor(
        [[truth(real, shadows, cast, q, k) for k in range(total)] for q in range(total)]
    )
    tokens = torch.cat((canvas, torch.full((len(shadows),), model.spec.mask_id)))[None]
    places = torch.tensor([[*range(length), *shadows]])
    with torch.inference_mode():
        return model.logits(
            model.hidden(tokens, places, None, attend=attend[None])[0, length:]
        ).double()


@pytest.mark.parametrize("scale", [0.0, 0.7])
def test_leave_one_out_is_the_dense_forward(golden: Model, scale: float) -> None:
    """Row by row in a ragged batch, on the golden network, guided or not."""
    rows = [[5, 6, 7, *[MASK] * 9], [8, 9, *[MASK] * 4, 3, MASK], [4, *[MASK] * 6]]
    checked = 0
    for step in steps(golden, rows, block_length=4, cfg_scale=scale):
        proof = step.view.want("leave_one_out")
        for line, row in enumerate(step.before.row.tolist()):
            canvas, size = step.before.tokens[line], len(rows[row])
            logits = dense(golden, canvas, step.view, line, size)
            if scale:
                free = canvas.masked_fill(~step.before.blank[line], MASK)
                without = dense(golden, free, step.view, line, size)
                logits = without + (scale + 1) * (logits - without)
            logits[:, list(golden.spec.banned)] = -torch.inf
            chance = logits.softmax(-1).gather(-1, step.view.tokens[line][:, None])[:, 0]
            wanted = chance.where(step.view.editable[line], 0.0)
            assert proof[line].tolist() == pytest.approx(wanted.tolist(), abs=5e-6)
            checked += int(step.view.editable[line].sum())
    assert checked > 20


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    width = draw(st.integers(1, 34))

    def row(values: st.SearchStrategy[Any]) -> Any:
        return draw(st.lists(values, min_size=width, max_size=width))

    masked = row(st.booleans())
    masked[0] = True
    eighths = st.integers(0, 8).map(lambda k: k / 8)
    return {"confidence": row(eighths), "leave_one_out": row(eighths), "masked": masked}


@settings(max_examples=120, deadline=None)
@given(cases(), st.sampled_from([0.0, 0.5, 0.75]), st.sampled_from([0.0, 0.5, 1.0]),
       st.integers(1, 20))  # fmt: skip
def test_drafts_and_remasks_follow_the_rule(
    view_of: View, picked: Picked, case: dict[str, Any], threshold: float, back: float, before: int
) -> None:
    """Both comparisons strict; the cap in exact arithmetic; fewer back than drafted before."""
    masked = [i for i, open_ in enumerate(case["masked"]) if open_]
    committed = [i for i, open_ in enumerate(case["masked"]) if not open_]
    by_confidence = sorted(masked, key=lambda i: (-case["confidence"][i], i))
    cap = min(max(7 * len(masked) // 10, 5), 20)
    draft = [i for i in by_confidence if case["confidence"][i] > threshold][:cap]
    draft = draft or by_confidence[:1]
    doubt = sorted(
        (i for i in committed if case["leave_one_out"][i] < back),
        key=lambda i: (case["leave_one_out"][i], i),
    )
    doubt = doubt if len(doubt) < before else doubt[: before - 1]
    doubt = doubt if len(draft) > 1 else []
    view = view_of(**case, step=1)
    state, decision = Wino(threshold, back).step(torch.tensor([before]), view)
    assert picked(decision.commit) == sorted(draft)
    assert decision.remask is not None
    assert picked(decision.remask) == sorted(doubt)
    assert state.tolist() == [len(draft)]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.integers(1, 30), st.integers(1, 30))
def test_without_proof_it_is_a_capped_threshold(
    toy: Toy, seed: int, length: int, block: int
) -> None:
    """tau_2 = 0 takes nothing back; at most 5 masks the cap says nothing."""
    options: dict[str, Any] = {"gen_length": length, "stop_at_eos": False}
    out = dlm.generate(
        toy(seed), [[1]], decoder=Wino(0.4, 0.0), block_length=block, return_trajectory=True,
        **options,
    )  # fmt: skip
    assert out.trajectory is not None
    assert not out.trajectory[0].remasks
    assert out.forwards[0] <= length
    small = min(block, 5)
    one = dlm.generate(toy(seed), [[1]], decoder=Wino(0.4, 0.0), block_length=small, **options)
    two = dlm.generate(
        toy(seed), [[1]], decoder="threshold", decoder_options={"threshold": 0.4},
        block_length=small, **options,
    )  # fmt: skip
    assert one.tokens == two.tokens
    assert one.forwards == two.forwards


@pytest.mark.parametrize("confidence", [1.0, 0.0])
@pytest.mark.parametrize("length", [1, 2, 7, 32])
def test_the_worst_network_takes_twice_the_blanks(
    script: Script, length: int, confidence: float
) -> None:
    """One that is sure of all drafts and doubts all that is there."""

    def speak(number: int, view: StepView) -> dict[str, Tensor]:
        level = torch.full((1, length), confidence)
        return {"confidence": level, "leave_one_out": torch.zeros(1, length)}

    history = script(Wino(), speak, [True] * length, most=2 * length)
    blanks = torch.tensor([[length]])
    assert Wino().max_forwards(blanks, torch.zeros_like(blanks)).tolist() == [[2 * length]]
    assert len(history) <= 2 * length


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 32), st.sampled_from([0, 1, 3, 40]))
def test_any_network_is_bounded(script: Script, seed: int, length: int, limit: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def speak(number: int, view: StepView) -> dict[str, Tensor]:
        both = torch.rand(2, 1, length, generator=generator)
        return {"confidence": both[0], "leave_one_out": both[1]}

    bound = Wino().max_forwards(torch.tensor([[length]]), torch.tensor([[limit]]))
    history = script(Wino(0.1, 0.95), speak, [True] * length, limit=limit, most=int(bound))
    assert len(history) <= int(bound)


@pytest.mark.parametrize("scale", [0.0, 1.0, 20.0])
def test_generations_end_within_the_bound(toy: Toy, scale: float) -> None:
    model = toy(1, scale)
    job = generation_job(
        model, [[1], [2, 3]], Settings(decoder=Wino(0.0, 1.0), gen_length=20, block_length=8)
    )
    with torch.inference_mode():
        numbers = [step.number for step in job.steps()]
    assert len(numbers) <= 40


def test_shadows_are_the_same_under_every_backend_that_takes_them(golden_folder: Path) -> None:
    """The mask is bool for one backend and additive for the other; a third is refused."""

    def decode(backend: str) -> list[list[int]]:
        model = dlm.load(golden_folder, dtype="float32", attn_implementation=backend)
        return dlm.generate(
            model, [[5, 6, 7], [8]], decoder="wino", decoder_options={"threshold": 0.3},
            gen_length=16, block_length=8, stop_at_eos=False,
        ).tokens  # fmt: skip

    assert decode("eager") == decode("sdpa")
    with pytest.raises(ValueError, match=r"'sdpa' or 'eager' .* got 'flex_attention'"):
        decode("flex_attention")
