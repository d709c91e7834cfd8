"""Every option of every decoder refuses what it cannot mean: option, rule and value."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import pytest
import torch

import dlm
from dlm.decoders import DECODERS, make
from dlm.decoders.base import Stateless
from dlm.models.model import Model
from dlm.settings import Settings
from dlm.types import Decision, StepView

Toy = Callable[..., Model]

NUMBER = r"must be a finite number"
NOT_NUMBERS: list[tuple[Any, str]] = [
    (value, NUMBER) for value in (math.nan, math.inf, "0.5", True, None, [0.5])
]
CHANCE = [*NOT_NUMBERS, (-0.01, NUMBER)]
SHARE = [*CHANCE, (1.01, NUMBER)]
FLAG: list[tuple[Any, str]] = [(value, "must be True or False") for value in (1, "no", None)]


def whole(least: int) -> list[tuple[Any, str]]:
    rule = f"must be an int >= {least}"
    wrong = [(value, rule) for value in (least - 1, 1.5, 2.0, "2", True, None)]
    return [*wrong, (10**30, "must be an int <=")]


def name(*close: str) -> list[tuple[Any, str]]:
    """A name that is unknown, one that is close, and what is no name."""
    return [("zzz", "unknown"), (1, "must be one of"), (None, "must be one of"),
            *((text, "Did you mean") for text in close)]  # fmt: skip


REFUSED: dict[str, dict[str, list[tuple[Any, str]]]] = {
    "low_confidence": {},
    "random": {},
    "left_to_right": {},
    "entropy": {},
    "margin": {},
    "dilated": {"base": whole(2)},
    "first_hitting": {"alpha": name("linaer"), "order": [*whole(1), (3, "must be an int <= 2")]},
    "ancestral": {"alpha": name("cosin"), "cached": FLAG},
    "dream": {"alg": name("topk_margins")},
    "pc_sampler": {
        "lambda_": CHANCE,
        "alpha": CHANCE,
        "frequencies": [(value, "must be") for value in (5, None, True, 0.5)],
        "weight": name("exponental"),
        "position_origin": name("blok"),
    },
    "certainty_prior": {"sigma": [(0.0, r"in \[0.01, 10000\]"), (1e5, r"in \[0.01, 10000\]")]},
    "prophet": {
        "early_threshold": CHANCE,
        "mid_threshold": CHANCE,
        "late_threshold": CHANCE,
        "answer_start": [(value, rule) for value, rule in whole(0) if value is not None],
        "answer_length": whole(1),
    },
    "schedule": {"path": [(5, "must be"), ("", "must be"), ("/no/such/file.json", "file")]},
    "threshold": {"threshold": CHANCE},
    "factor": {"factor": CHANCE},
    "frechet": {"delta": SHARE},
    "entropy_bound": {"gamma": CHANCE, "order": name("entropi")},
    "entropy_threshold": {"threshold": CHANCE},
    "multi_block": {
        "threshold": CHANCE,
        "block_add_threshold": SHARE,
        "sub_block_length": whole(1),
        "variant": name("dreem"),
    },
    "d2f": {
        "threshold": CHANCE,
        "block_add_threshold": SHARE,
        "decoded_token_threshold": SHARE,
        "blocks": [*whole(1), (65, "int <= 64")],
    },
    "mean_field": {"threshold": CHANCE, "iterations": [*whole(0), (1001, "int <= 1000")]},
    "deferred_commitment": {
        "threshold": CHANCE,
        "window": whole(1),
        "max_window": [(value, rule) for value, rule in whole(1) if value is not None],
        "sliding": FLAG,
    },
    "wedlm": {"threshold": CHANCE, "penalty": CHANCE, "window": whole(1), "sliding": FLAG},
    "adaptive_block": {
        "threshold": CHANCE,
        "sub_block_length": whole(1),
        "delimiter_threshold": CHANCE,
        "delimiter_ids": [(7, "a sequence of ints"), ("7", "a sequence of ints")],
        "look": SHARE,
    },
    "ssd": {
        "branches": [*whole(1), (65, "int <= 64")],
        "score": name("confidense"),
        "threshold": [(value, rule) for value, rule in CHANCE if value is not None],
    },
    "info_gain": {
        "threshold": CHANCE,
        "branches": [*whole(1), (65, "int <= 64")],
        "candidate_temperature": [*CHANCE, (0.0, r"0\.001"), (1e-4, r"0\.001")],
        "variant": name("infogain"),
    },
    "lopa": {
        "threshold": CHANCE,
        "branches": [*whole(1), (65, "int <= 64")],
        "score": name("confidense"),
        "alpha": [(value, rule) for value, rule in SHARE if value is not None],
        "share": [(value, rule) for value, rule in SHARE if value is not None],
    },
    "local_leap": {"threshold": CHANCE, "relaxed_threshold": CHANCE, "radius": whole(0)},
    "hierarchical": {"threshold": CHANCE, "low_threshold": CHANCE, "remask": FLAG},
    "credit": {
        "threshold": CHANCE,
        "strength": [*CHANCE, (1e308, NUMBER)],
        "decay": SHARE,
        "exponent": CHANCE,
        "adaptive": FLAG,
        "slots": whole(1),
    },
    "klass": {"threshold": CHANCE, "kl_threshold": CHANCE, "history": whole(1)},
    "mutual_stability": {"threshold": CHANCE, "patience": whole(0), "drift": CHANCE},
    "saber": {"n": whole(1), "mu": whole(1), "preset": name("safer")},
    "wino": {"threshold": CHANCE, "threshold_back": CHANCE},
    "remdm": {
        "variant": name("caps"),
        "eta": [(value, rule) for value, rule in SHARE if value is not None],
        "init_unmask_ratio": SHARE,
        "unmask_k": whole(1),
        "loop_steps": whole(0),
    },
    "block_refinement": {
        "threshold": CHANCE,
        "editing_threshold": [(value, rule) for value, rule in CHANCE if value is not None],
        "max_post_steps": whole(0),
    },
}


def test_every_option_is_here() -> None:
    options = {n: {f.name for f in fields(d)} for n, d in DECODERS.items()}  # type: ignore[arg-type]
    assert {n: set(table) for n, table in REFUSED.items()} == options


CASES = [
    pytest.param(decoder, option, value, rule, id=f"{decoder}-{option}-{value!r}")
    for decoder, table in REFUSED.items()
    for option, values in table.items()
    for value, rule in values
]


@pytest.mark.parametrize(("decoder", "option", "value", "rule"), CASES)
def test_a_bad_value_is_named(decoder: str, option: str, value: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=rule) as caught:
        make(decoder, **{option: value})
    message = str(caught.value)
    assert option in message
    assert repr(value) in message or str(value) in message


def test_an_int_beyond_the_floats_is_refused() -> None:
    with pytest.raises(ValueError, match="threshold must fit a float"):
        make("threshold", threshold=10**400)


@pytest.mark.parametrize(
    ("decoder", "options", "message"),
    [
        ("pc_sampler", {"weight": "linear", "lambda_": 1.5}, r"lambda_ must .* \[0, 1\], got 1.5"),
        ("pc_sampler", {"frequencies": ["a"]}, "frequencies must"),
        ("pc_sampler", {"frequencies": b"ab"}, "frequencies must be a path"),
        ("pc_sampler", {"frequencies": torch.tensor(0.5)}, "frequencies must"),
        ("pc_sampler", {"frequencies": torch.ones(2, 2)}, "frequencies must"),
        ("remdm", {"eta": 0.5}, "eta is for the variants cap, rescale, conf, loop, got 0.5"),
        ("threshold", {"treshold": 0.5}, "option of threshold 'treshold'. Did you mean 'thresh"),
        ("saber", {"k": 2}, "unknown option of saber 'k'.* Known: mu, n, preset"),
        ("sabre", {}, "unknown decoder 'sabre'. Did you mean 'saber'"),
        ("low_confidence", {"threshold": 0.5}, "unknown option of low_confidence.* Known: none"),
    ],
)
def test_bad_combinations_and_names(decoder: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(decoder, **options)


@pytest.mark.parametrize(
    "decoder", ["saber", "wino", "block_refinement", "remdm", "hierarchical", "pc_sampler"]
)
def test_refused_with_stop_tokens_last(toy: Toy, decoder: str) -> None:
    """Those that rank committed positions too; hierarchical does where it remasks."""
    own: dict[str, dict[str, Any]] = {
        "block_refinement": {"editing_threshold": 0.5},
        "hierarchical": {"remask": True},
        "pc_sampler": {"weight": "linear"},
    }
    rule = re.escape("confidence_eos_eot_inf ranks masked positions only")
    with pytest.raises(ValueError, match=rule):
        dlm.generate(
            toy(), [[1]], decoder=decoder, decoder_options=own.get(decoder), gen_length=3,
            confidence_eos_eot_inf=True,
        )  # fmt: skip


@dataclass(frozen=True)
class Judging(Stateless):
    """Reads the probability of committed tokens, and denies that they are measured."""

    paper: ClassVar[str] = "none"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence", "token_probability"})
    reads_committed: ClassVar[bool] = False

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        return None, Decision(view.masked)


def test_a_decoder_that_denies_what_it_needs_is_refused_with_stop_tokens_last() -> None:
    with pytest.raises(ValueError, match="confidence_eos_eot_inf ranks masked positions only"):
        Settings(decoder=Judging(), confidence_eos_eot_inf=True)


@pytest.mark.parametrize("decoder", ["random", "left_to_right", "dilated", "first_hitting"])
def test_refused_where_no_score_ranks(toy: Toy, decoder: str) -> None:
    with pytest.raises(ValueError, match=r"position_temperature must be 0 for .*, got 0.5"):
        dlm.generate(toy(), [[1]], decoder=decoder, gen_length=3, position_temperature=0.5)
    with pytest.raises(ValueError, match="reads none of them: use suppress_tokens"):
        dlm.generate(toy(), [[1]], decoder=decoder, gen_length=3, confidence_eos_eot_inf=True)
