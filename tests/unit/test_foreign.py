"""Names of other programs: the refusal says what to give, and what it says can be given."""

import re
from typing import Any

import pytest
import torch

import dlm
from dlm import foreign
from dlm.decoders import DECODERS, make
from dlm.models.model import Model
from dlm.settings import INSTEAD, NAMES

FRAGMENT = re.compile(r"\b([a-z_]+)=('[^']*'|\{[^}]*\}|\[[^\]]*\]|[\w.]+)")
DECODING = sorted(foreign.OPTIONS)


@pytest.fixture(scope="module")
def tiny() -> Model:
    """The built-in model."""
    return dlm.load()


def said(text: str, model: Model | None = None) -> list[dict[str, Any]]:
    """The calls that a text speaks of; an option that is there already begins another."""
    calls: list[dict[str, Any]] = []
    for name, value in FRAGMENT.findall(text):
        if not calls or name in calls[-1]:
            calls.append({})
        calls[-1][name] = eval(value, {"model": model})
    return calls


def run(model: Model, call: dict[str, Any]) -> dlm.Generation:
    return dlm.generate(model, [1, 2, 3], gen_length=4, **{"decoder": "threshold", **call})


@pytest.mark.parametrize("name", DECODING)
def test_an_option_s_text_can_be_given(tiny: Model, name: str) -> None:
    for call in said(foreign.OPTIONS[name], tiny):
        assert run(tiny, call).tokens


@pytest.mark.parametrize("name", sorted(foreign.DECODERS))
def test_a_decoder_s_text_can_be_given(tiny: Model, name: str) -> None:
    text = foreign.DECODERS[name]
    calls = said(text)
    assert calls or "decoder='schedule'" in text
    for call in calls:
        if call.get("decoder") != "schedule":  # which wants a file
            assert run(tiny, call).tokens
    with pytest.raises(ValueError, match=re.escape(f"unknown decoder '{name}': {text}. Known: ")):
        make(name)


@pytest.mark.parametrize("decoder", sorted(foreign.OF_DECODERS))
def test_an_option_of_a_decoder_s_text_can_be_given(decoder: str) -> None:
    for name, text in foreign.OF_DECODERS[decoder].items():
        message = f"unknown option of {decoder} '{name}': {text}. Known: "
        with pytest.raises(ValueError, match=re.escape(message)):
            make(decoder, **{name: 1})
        calls = said(text)
        assert calls or "dlm.generate" in text
        for call in calls:
            assert make(decoder, **call)


def test_no_name_of_others_is_a_name_of_ours() -> None:
    assert not foreign.OPTIONS.keys() & {*NAMES, "model", "prompts", "prompt", "text"}
    assert not foreign.DECODERS.keys() & DECODERS.keys()
    for decoder, names in foreign.OF_DECODERS.items():
        assert not names.keys() & set(DECODERS[decoder].__dataclass_fields__)  # type: ignore[attr-defined]
    assert not [name for name in foreign.FUNCTIONS if name in dir(dlm)]


@pytest.mark.parametrize("call", [dlm.generate, dlm.stream, dlm.infill], ids=lambda f: f.__name__)
def test_every_call_says_it(tiny: Model, call: Any) -> None:
    with pytest.raises(ValueError, match=r"'remasking': in dlm it is decoder='low_.*Known: b"):
        call(tiny, [1, 2], remasking="low_confidence")
    with pytest.raises(ValueError, match=r"'gamma': it goes into decoder_options, for the decoder"):
        call(tiny, [1, 2], gamma=0.1)


@pytest.mark.parametrize("name", DECODING)
def test_the_refusal_has_the_text_and_no_close_match(tiny: Model, name: str) -> None:
    message = f"unknown option '{name}': {INSTEAD[name]}. Known: "
    call: Any = dlm.generate
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        call(tiny, [1, 2], **{name: 1})
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "meant"),
    [("WINO", "wino"), ("LocalLeap", "local_leap"), ("PC-Sampler", "pc_sampler"), ("thresh", None)],
)
def test_other_spellings_have_their_close_match(given: str, meant: str | None) -> None:
    with pytest.raises(ValueError, match=f"Did you mean '{meant or 'threshold'}'. Known: ada"):
        make(given)


def test_papers_may_be_written_as_they_write_themselves() -> None:
    with pytest.raises(ValueError, match="unknown decoder 'EB-Sampler': in dlm it is decoder='ent"):
        make("EB-Sampler")
    with pytest.raises(ValueError, match="unknown decoder 'Fast-dLLM': in dlm it is decoder='thr"):
        make("Fast-dLLM")


def test_a_text_is_said_where_it_holds() -> None:
    """An option of one function means nothing in another."""
    with pytest.raises(ValueError, match=r"unknown option 'remasking'\. Known"):
        dlm.log_likelihood(dlm.load(), [1], [2], remasking="random")  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="'trust_remote_code': leave it out"):
        dlm.load(trust_remote_code=True)  # type: ignore[call-arg]
    for name in foreign.LOAD:
        assert all(dlm.load(**call) for call in said(foreign.LOAD[name]))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("alg", "in dlm it is decoder='dream'"),
        ("gen_length", "here it is max_new_tokens"),
        ("mask_id", "here it is mask_token_id"),
        ("stop", "here it is stop_strings"),
        ("n", "here it is num_return_sequences"),
    ],
)
def test_from_transformers(tiny: Model, name: str, text: str) -> None:
    network: Any = tiny.network
    with pytest.raises(ValueError, match=f"unknown option '{name}': {text}"):
        network.generate(torch.tensor([[1, 2, 3]]), **{name: 1})


def test_functions_of_others() -> None:
    for name, text in foreign.FUNCTIONS.items():
        with pytest.raises(AttributeError, match=f"no attribute '{name}': {re.escape(text)}"):
            getattr(dlm, name)
        for ours in re.findall(r"dlm\.(\w+)", text):
            assert getattr(dlm, ours)
    with pytest.raises(AttributeError, match=r"has no attribute 'nothing'$"):
        dlm.nothing  # noqa: B018
