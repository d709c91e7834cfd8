"""The probability of a path: C8, and the unbiased weights that MDNS makes of it.

Shapes: B rows, L canvas, V vocabulary.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

import dlm
from dlm.cache import View
from dlm.decoders import DECODERS, LowConfidence, Random, make
from dlm.decoders.artefact import ModelFacts, ScheduleArtefact
from dlm.decoders.resample import fractions
from dlm.job import generation_job
from dlm.models.model import Model
from dlm.models.spec import ModelSpec
from dlm.settings import Settings
from dlm.traits import Traits
from dlm.types import AnyDecoder, Decision, StepView

V, MASK = 8, 7
ROWS = 4000
Toy = Callable[..., Model]

law = examples(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
prompts = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=4), min_size=1, max_size=3)

BLIND: dict[str, dict[str, Any]] = {
    name: {"decoder": name} for name in DECODERS if Traits.of(make(name)).blind
} | {
    "margin bound": {"decoder": make("entropy_bound", order="margin", gamma=1.0)},
    "dream origin": {"decoder": make("dream", alg="origin"), "steps": 4},
    "dream margin": {"decoder": make("dream", alg="topk_margin"), "steps": 3},
    "ancestral in full": {"decoder": make("ancestral", cached=False), "steps": 9},
    "groups": {"decoder": "first_hitting", "steps": 2},
    "warm entropy": {"decoder": "entropy", "position_temperature": 0.5},
}
"""Every decoder that chooses positions without looking at the sampled tokens, and variants."""


def test_the_blind_decoders_are_these() -> None:
    assert {*BLIND} >= {
        "random", "left_to_right", "entropy", "margin", "dilated", "first_hitting", "ancestral",
        "dream", "entropy_bound", "entropy_threshold", "wedlm",
    }  # fmt: skip


def log_law(logits: Tensor, temperature: float, top_k: int | None, banned: list[int]) -> Tensor:
    """ln q of each token [..., V] under the tempered and filtered law, written out."""
    logits = logits.double() / temperature
    logits[..., banned] = -torch.inf
    if top_k is not None:
        order = logits.argsort(dim=-1, descending=True, stable=True)
        logits = logits.scatter(-1, order[..., top_k:], -torch.inf)
    return logits.log_softmax(-1)


def product_along(
    model: Model, prompt: list[int], trajectory: Any, cfg_scale: float, *sampling: Any
) -> float:
    """Sum of ln q(token | canvas) over the recorded commits, one forward after the other."""
    total = 0.0
    for step, canvas in enumerate(trajectory.canvases.tolist()):
        made = [change for change in trajectory.commits if change.step == step]
        conditional, free = model.raw_logits(
            torch.tensor([[*prompt, *canvas], [MASK] * len(prompt) + canvas])
        )
        if cfg_scale:
            conditional = free + (cfg_scale + 1) * (conditional - free)
        q = log_law(conditional[len(prompt) :], *sampling)
        total += sum(float(q[change.position, change.token]) for change in made)
    return total


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", BLIND)
@law
@given(
    rows=prompts,
    seed=st.integers(0, 99),
    length=st.integers(1, 9),
    block=st.one_of(st.none(), st.integers(1, 9)),
    sampling=st.sampled_from([(1.0, None), (0.7, 3), (1.6, 2)]),
    cfg_scale=st.sampled_from([0.0, 0.8]),
)
def test_is_the_product_along_the_trajectory(
    toy: Toy,
    name: str,
    rows: list[list[int]],
    seed: int,
    length: int,
    block: int | None,
    sampling: tuple[float, int | None],
    cfg_scale: float,
) -> None:
    """C8: at any temperature, filter, guidance and suppression, in ragged batches."""
    model = toy(seed)
    temperature, top_k = sampling
    out = dlm.generate(
        model, rows, gen_length=length, block_length=block, temperature=temperature, top_k=top_k,
        cfg_scale=cfg_scale, suppress_tokens=[1], stop_at_eos=False, return_trajectory=True,
        seed=seed, **BLIND[name],
    )  # fmt: skip
    assert out.trajectory is not None
    assert out.path_log_probability is not None
    for row, one, found in zip(rows, out.trajectory, out.path_log_probability, strict=True):
        expected = product_along(model, row, one, cfg_scale, temperature, top_k, [1, MASK])
        assert found == pytest.approx(expected, abs=1e-5 * length)


@pytest.mark.parametrize("name", DECODERS)
def test_is_none_without_noise_and_for_decoders_that_look(toy: Toy, name: str) -> None:
    """Section 8: nothing was drawn at T = 0, and a choice by discarded samples has no weight."""
    options: dict[str, Any] = {"decoder": name, "gen_length": 8, "stop_at_eos": False}
    assert dlm.generate(toy(1), [[1]], **options).path_log_probability is None
    warm = dlm.generate(toy(1), [[1]], temperature=1.0, **options).path_log_probability
    assert (warm is not None) == Traits.of(make(name)).blind


@pytest.mark.parametrize("name", BLIND)
def test_is_none_for_rows_cut_short(toy: Toy, name: str) -> None:
    """Section 8: a row that a stop token ended has positions of which no token was drawn."""
    out = dlm.generate(
        toy(2), [[1]] * 60, gen_length=8, block_length=3, temperature=1.0,
        return_trajectory=True, **BLIND[name],
    )  # fmt: skip
    assert out.trajectory is not None
    assert out.path_log_probability is not None
    drawn = [{change.position: change.token for change in one.commits} for one in out.trajectory]
    cut = [
        [tokens.get(position) for position in range(8)] != given
        for tokens, given in zip(drawn, out.tokens, strict=True)
    ]
    assert [value is None for value in out.path_log_probability] == cut
    assert True in cut
    assert False in cut


def test_is_none_for_rows_whose_last_commit_fills_the_end(toy: Toy) -> None:
    """A stop token drawn behind a mask: what came after it is not what was drawn."""
    out = dlm.generate(
        toy(torch.zeros(97, 8)), [[1]] * 300, decoder="first_hitting", gen_length=3,
        block_length=3, temperature=1.0, return_trajectory=True,
    )  # fmt: skip
    assert out.trajectory is not None
    assert out.path_log_probability is not None
    rewritten = 0
    for tokens, path, seen in zip(
        out.tokens, out.path_log_probability, out.trajectory, strict=True
    ):
        drawn = {change.position: change.token for change in seen.commits}
        same = [drawn.get(position) for position in range(3)] == tokens
        rewritten += len(drawn) == 3 and not same
        assert (path is not None) == same
    assert rewritten > 10


@pytest.mark.parametrize("name", BLIND)
def test_positions_do_not_depend_on_the_sampled_tokens(toy: Toy, name: str) -> None:
    """Section 8: `blind` is no mere claim; other samples lead to the same decision."""
    options = {"gen_length": 9, "temperature": 1.0, "stop_at_eos": False} | BLIND[name]
    job = generation_job(toy(4), [[1], [2, 3]], Settings(**options))
    state = job.decoder.init_state(2, 9)
    for step in job.steps():
        if step.view.tokens.shape[0] < 2:
            break
        other = replace(
            step.view, sampled=step.view.tokens * 0 + 3, confidence=None, token_probability=None
        )
        state, decision = job.decoder.step(state, other)
        assert torch.equal(decision.commit, step.decision.commit)


# MDNS: unnormalised targets on {0, 1}^4.

L, HOLE = 4, 2
STATES = list(product((0, 1), repeat=L))


def energy(x: tuple[int, ...] | list[int]) -> float:
    """U of an Ising ring in a field."""
    spins = [2 * bit - 1 for bit in x]
    return -0.4 * sum(a * b for a, b in zip(spins, spins[1:] + spins[:1], strict=True)) - 0.3 * sum(
        s * (i + 1) / L for i, s in enumerate(spins)
    )


Z = sum(math.exp(-energy(x)) for x in STATES)


@pytest.fixture(scope="module")
def network(toy: Toy) -> Model:
    """A network that is not the target's conditional: two tokens and the mask."""
    model: Model = toy(0.6 * torch.randn(97, 3, generator=torch.Generator().manual_seed(8)))
    return model


@dataclass(frozen=True, slots=True)
class ExactModel(Model):
    """The conditionals of a law on {0, 1}^L, looked up by the canvas behind one prompt token."""

    table: Tensor  # float [3^L, L, 3]

    @property
    def device(self) -> torch.device:
        return self.table.device

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        valid: Tensor | None,
        cache: View | None = None,
        *,
        attend: Tensor | None = None,
    ) -> Tensor:
        state = (tokens[:, 1:] * 3 ** torch.arange(L)).sum(-1, keepdim=True)
        return (state * L + positions - 1).clamp(min=0)[..., None]

    def logits(self, hidden: Tensor) -> Tensor:
        return self.table.flatten(0, 1)[hidden[..., 0]]


def exact_network() -> Model:
    table = torch.zeros(3**L, L, 3)
    for canvas in product((0, 1, HOLE), repeat=L):
        code = sum(token * 3**i for i, token in enumerate(canvas))
        for i, v in product(range(L), (0, 1)):
            agree = (
                x
                for x in STATES
                if x[i] == v and all(c in (t, HOLE) for c, t in zip(canvas, x, strict=True))
            )
            table[code, i, v] = math.log(sum(math.exp(-energy(x)) for x in agree) or 1e-30)
    spec = ModelSpec("exact", 3, HOLE, 1, (1, 0), 64, (3, 3))
    return ExactModel(None, None, spec, table)


def weights(model: Model, rows: int = ROWS, **options: Any) -> Tensor:
    """exp(-U(x) - ln q(path)) of many rows, float64."""
    shared: dict[str, Any] = {"gen_length": L, "block_length": None, "stop_at_eos": False}
    out = dlm.generate(model, [[0]] * rows, **shared | {"temperature": 1.0} | options)
    assert out.path_log_probability is not None
    logs = [
        -energy(x) - one
        for x, one in zip(out.tokens, out.path_log_probability, strict=True)
        if one is not None
    ]
    assert len(logs) == rows
    return torch.tensor(logs, dtype=torch.float64).exp()


def deviation(values: Tensor) -> float:
    """Of their mean from Z, in standard errors."""
    sigma = float(values.std()) / math.sqrt(len(values))
    return abs(float(values.mean()) - Z) / sigma


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A schedule with scales, ranked by entropy."""
    path = tmp_path_factory.mktemp("schedule") / "learned.json"
    ScheduleArtefact(
        model=ModelFacts(vocab=3, mask_id=HOLE), base_policy="entropy", gen_length=L,
        block_length=L, steps=3, reveal=(1, 2, 1), cum_fraction=fractions((1, 2, 1)),
        logit_scale=(0.5, 2.0, 1.5),
    ).save(path)  # fmt: skip
    assert json.loads(path.read_text())["base_policy"] == "entropy"
    return path


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", [*BLIND, "learned", "extrapolated"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_weights_are_unbiased(network: Model, learned: Path, name: str, temperature: float) -> None:
    """T8.1: E exp(-U - path_log_probability) = Z for every blind decoder, within 4 sigma."""
    own: dict[str, dict[str, Any]] = {
        "learned": {"decoder": make("schedule", path=learned)},
        "extrapolated": {"decoder": make("first_hitting", order=2), "steps": 2},
    }
    values = weights(network, temperature=temperature, **(BLIND | own)[name])
    assert float(values.std()) > 0.1 * Z
    assert deviation(values) < 4


@pytest.mark.parametrize("name", ["random", "left_to_right", "entropy", "margin", "ancestral"])
def test_weights_are_all_alike_under_the_exact_conditionals(name: str) -> None:
    """T8.2: one token a forward gives q(path) = e^-U / Z: ESS = 1, and the estimate is exact."""
    values = weights(exact_network(), rows=200, decoder=name)
    ess = float(values.sum() ** 2 / (values**2).sum()) / len(values)
    assert ess == pytest.approx(1.0, abs=1e-9)
    assert float(values.mean()) == pytest.approx(Z, rel=1e-5)
    together = weights(exact_network(), rows=200, decoder=name, steps=1)
    assert float(together.sum() ** 2 / (together**2).sum()) / len(together) < 0.99


@dataclass(frozen=True, slots=True)
class Liar(LowConfidence):
    """Ranks by the confidence of sampled tokens, and says it does not look."""

    blind: ClassVar[bool] = True


def test_the_naive_product_of_a_decoder_that_looks_is_biased(network: Model) -> None:
    """T8.3, negative control: an order by discarded samples fails the check of T8.1."""
    assert deviation(weights(network, rows=20_000, decoder=Liar())) > 8


@pytest.mark.parametrize("name", ["entropy", "margin", "entropy_threshold", "entropy_bound"])
def test_stop_tokens_ranked_last_leave_no_path(toy: Toy, network: Model, name: str) -> None:
    """Section 8: confidence_eos_eot_inf ranks by what was drawn, so that no decoder is blind."""
    options: dict[str, Any] = {
        "decoder": name, "gen_length": 8, "temperature": 1.0, "stop_at_eos": False,
        "confidence_eos_eot_inf": True,
    }  # fmt: skip
    assert dlm.generate(toy(1), [[1]], **options).path_log_probability is None


@dataclass(frozen=True, slots=True)
class SecondThoughts(Random):
    """Commits two at random and takes a random one back, until the last two."""

    mutates_committed: ClassVar[bool] = True

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        noise = view.want("uniform")
        open_ = view.masked.sum(-1, keepdim=True)
        ranked = noise.masked_fill(~view.masked, 2).argsort(-1).argsort(-1)
        back = noise.masked_fill(~view.editable, 2).argsort(-1).argsort(-1)
        remask = view.editable & (back < 1) & (open_ > 2)
        return None, Decision(view.masked & (ranked < 2), remask=remask)


def test_taking_tokens_back_leaves_no_path(network: Model) -> None:
    """Section 8: blind to the samples or not, a remasking path counts tokens that are gone."""
    decoder: AnyDecoder = SecondThoughts()
    options: Mapping[str, Any] = {"gen_length": 6, "temperature": 1.0, "stop_at_eos": False}
    out = dlm.generate(network, [[0]] * 4, decoder=decoder, return_trajectory=True, **options)
    assert out.trajectory is not None
    assert all(one.remasks for one in out.trajectory)
    assert out.path_log_probability is None
