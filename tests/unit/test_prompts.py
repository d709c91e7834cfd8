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


BEGUN = [*CHAT, {"role": "assistant", "content": " 1 "}]
KEEPS = "{% for m in messages %}{{ m['role'][0] + ': ' + m['content'] + '\n' }}{% endfor %}" + (
    "{% if add_generation_prompt %}a: {% endif %}"
)
ON: dict[str, Any] = {"chat_options": {"continue_final_message": True}}


@pytest.fixture(scope="module")
def keeping(tiny: Model) -> Model:
    """The built-in model with a template that keeps the spaces of messages."""
    tokenizer = copy.deepcopy(tiny.tokenizer)
    assert tokenizer is not None
    tokenizer.chat_template = KEEPS
    return replace(tiny, tokenizer=tokenizer)


@pytest.mark.parametrize("call", [dlm.encode_prompts, dlm.generate, dlm.stream])
def test_a_chat_that_the_assistant_ends_is_refused(tiny: Model, call: Any) -> None:
    message = "a chat must end with a message to the assistant.*'continue_final_message': True"
    with pytest.raises(ValueError, match=message):
        call(tiny, BEGUN)
    with pytest.raises(ValueError, match=message):
        dlm.encode_prompts(tiny, [CHAT, BEGUN], chat_options={"continue_final_message": False})


def test_it_can_be_continued(tiny: Model, keeping: Model) -> None:
    """The built-in template trims; nothing closes the message or begins another."""
    assert tiny.tokenizer is not None
    (asked,), (row,) = dlm.encode_prompts(tiny, CHAT), dlm.encode_prompts(tiny, BEGUN, **ON)
    assert row == [*asked, *tiny.tokenizer("1", add_special_tokens=False)["input_ids"]]
    assert read(keeping, BEGUN, **ON) == ["u: Compute: 60/5\na:  1 "]
    assert read(keeping, [BEGUN, BEGUN], **ON) == ["u: Compute: 60/5\na:  1 "] * 2
    assert read(keeping, CHAT, **ON) == ["u: Compute: 60/5"]  # whoever's it is


def test_what_continues_is_what_the_model_would_have_gone_on_with(tiny: Model) -> None:
    whole = dlm.generate(tiny, CHAT, gen_length=8, decoder="left_to_right").tokens[0]
    assert tiny.tokenizer is not None
    begun = [*CHAT, {"role": "assistant", "content": str(tiny.tokenizer.decode(whole[:1]))}]
    rest = dlm.generate(
        tiny, dlm.encode_prompts(tiny, begun, **ON), gen_length=7, decoder="left_to_right"
    )
    assert rest.tokens[0] == whole[1:]


@pytest.mark.parametrize("said", ["", " "])
def test_nothing_said_is_a_message_begun(tiny: Model, keeping: Model, said: str) -> None:
    begun = [*CHAT, {"role": "assistant", "content": said}]
    assert dlm.encode_prompts(tiny, begun, **ON) == dlm.encode_prompts(tiny, CHAT)
    assert read(keeping, begun, **ON) == ["u: Compute: 60/5\na: " + said]


def test_a_template_that_drops_the_message_is_refused(tiny: Model) -> None:
    tokenizer = copy.deepcopy(tiny.tokenizer)
    assert tokenizer is not None
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    model = replace(tiny, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="continue_final_message is set but the final message"):
        dlm.encode_prompts(model, BEGUN, **ON)
    with pytest.raises(ValueError, match="continue_final_message must be True or False, got 1"):
        dlm.encode_prompts(model, BEGUN, chat_options={"continue_final_message": 1})
