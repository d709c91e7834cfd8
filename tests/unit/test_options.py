"""Options by name: a misspelt one is refused in one way by all that users call."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest

import dlm
from dlm.decoders import make
from dlm.models.model import Model
from dlm.options import integer, number

CALLS: list[tuple[Callable[..., Any], tuple[Any, ...], str, str]] = [
    (dlm.generate, ([1, 2],), "tempreture", "temperature"),
    (dlm.stream, ([1, 2],), "tempreture", "temperature"),
    (dlm.infill, ([1, 511],), "tempreture", "temperature"),
    (dlm.log_likelihood, ([1], [2]), "sampels", "samples"),
    (dlm.encode_prompts, ([1],), "chat_option", "chat_options"),
    (dlm.encode_infill, ("a", "b"), "blank", "blanks"),
    (dlm.as_model, (), "mask", "mask_id"),
    (dlm.release, (), "modell", "model"),
]


@pytest.mark.parametrize(
    ("call", "given", "wrong", "right"), CALLS, ids=[call.__name__ for call, *_ in CALLS]
)
def test_a_misspelt_option_is_named_with_its_match_and_the_list(
    golden: Model, call: Callable[..., Any], given: tuple[Any, ...], wrong: str, right: str
) -> None:
    message = f"unknown option '{wrong}'. Did you mean '{right}'.*Known: .*{right}"
    with pytest.raises(ValueError, match=message):
        call(golden, *given, **{wrong: 1})


def test_what_has_to_be_given_may_be_misspelt(golden: Model) -> None:
    with pytest.raises(ValueError, match=r"unknown option 'prompts'. Did you mean 'prompt'"):
        dlm.stream(golden, prompts=[1, 2])  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"unknown option 'txt'. Did you mean 'text'"):
        dlm.infill(golden, txt="a")  # type: ignore[call-arg]


def test_a_rule_without_bounds_names_none() -> None:
    with pytest.raises(ValueError, match="x must be a finite number, got 'a'"):
        number("x", "a")


def test_a_decoder_is_made_once(golden: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its options may name a file as large as a vocabulary."""
    made: list[str] = []

    def counted(name: str, **options: Any) -> Any:
        made.append(name)
        return make(name, **options)

    monkeypatch.setattr("dlm.policy.make", counted)
    dlm.generate(golden, [1, 2], gen_length=4, decoder="threshold")
    assert made == ["threshold"]


def test_numbers_of_any_length_are_refused_by_name() -> None:
    """Python itself writes none of thousands of digits."""
    with pytest.raises(ValueError, match="n must be an int <= 9, got a longer one"):
        integer("n", 10**5000, least=0, most=9)


def test_a_misspelt_option_of_load() -> None:
    with pytest.raises(ValueError, match=r"unknown option 'divice'. Did you mean 'device'.*merge"):
        dlm.load(None, divice="cpu")  # type: ignore[call-arg]


def test_what_checks_names_reads_as_it_did(golden: Model) -> None:
    """Help, completion and `eval` read the signature; every name of it may be given."""
    assert list(inspect.signature(dlm.load).parameters)[:3] == ["name_or_path", "device", "dtype"]
    assert inspect.signature(dlm.generate).parameters["gen_length"].default == 256
    assert (dlm.generate.__doc__ or "").startswith("Continue every prompt")
    named = dlm.generate(model=golden, prompts=[1, 2], gen_length=2)
    assert named == dlm.generate(golden, [1, 2], gen_length=2)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'prompts'"):
        dlm.generate(golden)  # type: ignore[call-arg]
