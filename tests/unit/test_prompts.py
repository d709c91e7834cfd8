"""Prompts as token ids: chat messages and what their template is told."""

import copy
from dataclasses import replace
from typing import Any

import pytest

import dlm
from dlm.models.families import FAMILIES
from dlm.models.model import Model

CHAT = [{"role": "user", "content": "Compute: 60/5"}]
THINKS = (
    "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' 1' if enable_thinking is defined and not enable_thinking "
    "else ' 2' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tiny() -> Model:
    """The built-in model, whose tokenizer has a chat template."""
    return dlm.load()


@pytest.fixture(scope="module")
def thinking(tiny: Model) -> Model:
    """The built-in model with a template that has a switch, as Qwen3's."""
    tokenizer = copy.deepcopy(tiny.tokenizer)
    assert tokenizer is not None
    tokenizer.chat_template = THINKS
    return replace(tiny, tokenizer=tokenizer)


def read(model: Model, prompts: Any, **options: Any) -> list[str]:
    """Prompts as the model sees them."""
    assert model.tokenizer is not None
    rows = dlm.encode_prompts(model, prompts, **options)
    return [str(model.tokenizer.decode(row)) for row in rows]


def test_the_template_is_told(thinking: Model) -> None:
    told = {"chat_options": {"enable_thinking": False}}
    assert read(thinking, CHAT) == ["Compute: 60/5 2"]
    assert read(thinking, CHAT, chat_options={}) == ["Compute: 60/5 2"]
    assert read(thinking, CHAT, **told) == ["Compute: 60/5 1"]
    assert read(thinking, [CHAT, CHAT], **told) == ["Compute: 60/5 1"] * 2


def test_a_family_tells_its_template_and_a_caller_overrides_it(thinking: Model) -> None:
    spec = replace(thinking.spec, chat_options=FAMILIES["a2d-qwen3"].chat_options)
    model = replace(thinking, spec=spec)
    assert read(model, CHAT) == ["Compute: 60/5 1"]
    assert read(model, CHAT, chat_options={"enable_thinking": True}) == ["Compute: 60/5 2"]
    assert read(replace(model, tokenizer=dlm.load().tokenizer), CHAT)  # a template without it


def test_what_users_render_is_the_same_prompt(tiny: Model) -> None:
    assert tiny.tokenizer is not None
    (row,) = dlm.encode_prompts(tiny, CHAT)
    ids: Any = tiny.tokenizer.apply_chat_template(
        CHAT, add_generation_prompt=True, return_dict=False
    )
    text: Any = tiny.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert dlm.encode_prompts(tiny, [ids, text]) == [row, row]


@pytest.mark.parametrize("name", ["enable_think", "messages", "add_generation_prompt", "tokenize"])
def test_what_no_template_reads_is_refused(thinking: Model, name: str) -> None:
    with pytest.raises(ValueError, match=f"the chat template reads, .* got '{name}'"):
        dlm.encode_prompts(thinking, CHAT, chat_options={name: True})


@pytest.mark.parametrize("prompt", ["Compute", [3, 4]], ids=["text", "ids"])
def test_chat_options_are_for_chats(thinking: Model, prompt: Any) -> None:
    with pytest.raises(ValueError, match="chat_options are for chat messages, got the prompt"):
        dlm.encode_prompts(thinking, [CHAT, prompt], chat_options={"enable_thinking": False})
