"""Chat templates: what they are told, and what they refuse."""

import copy
import json
from dataclasses import replace
from typing import Any

import pytest

import dlm
from dlm.models.model import Model
from dlm.serving import encoding
from dlm.serving.protocol import read_request

MESSAGES = [{"role": "user", "content": "a"}]


@pytest.fixture(scope="module")
def tiny() -> Model:
    """The built-in model."""
    return dlm.load()


def with_template(model: Model, template: str) -> Model:
    tokenizer: Any = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = template
    return replace(model, tokenizer=tokenizer)


def prompt_of(model: Model, role: str = "user", **told: Any) -> list[int]:
    """Token ids of a message."""
    messages = [{"role": role, "content": "a"}]
    data = json.dumps({"messages": messages, "chat_template_kwargs": told, "max_tokens": 1})
    asked = read_request(data.encode(), chat=True, model=model, name="m", defaults={})
    return asked.request.rows[0][:-1]


def ids(model: Model, text: str) -> Any:
    tokenizer: Any = model.tokenizer
    return tokenizer(text)["input_ids"]


def test_a_template_says_what_it_takes(tiny: Model) -> None:
    model = with_template(
        tiny,
        "{% if messages[0]['role'] == 'cook' %}{{ raise_exception('no cooks') }}{% endif %}"
        "{{ 'A' if formal else 'a' }}{{ 1 + number if number else '' }}",
    )
    assert prompt_of(model, formal=True) == ids(tiny, "A")
    assert prompt_of(model) == ids(tiny, "a")
    with pytest.raises(ValueError, match="fit the model's chat template: no cooks"):
        prompt_of(model, "cook")
    with pytest.raises(ValueError, match="fit the model's chat template"):
        prompt_of(model, number="one")


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 // number }}",  # ArithmeticError
        "{{ range(0, 5, number) | list }}",  # ValueError
        "{{ '%(a)s' % {'b': number} }}",  # LookupError
        "{{ 'a'.index('b', number) }}",  # ValueError
        "{{ number.a.b }}",  # TemplateError
    ],
)
def test_whatever_a_template_raises_is_the_request_s(tiny: Model, template: str) -> None:
    model = with_template(tiny, template)
    with pytest.raises(ValueError, match=r"^messages must fit the model's chat template: ."):
        prompt_of(model, number=0)


def test_a_variable_that_no_call_can_hold_is_the_request_s(tiny: Model) -> None:
    with pytest.raises(ValueError, match=r"^messages must fit the model's chat template: .*'self'"):
        prompt_of(with_template(tiny, "a{{ self }}"), self=1)


def test_our_own_checks_say_what_they_say(tiny: Model) -> None:
    with pytest.raises(ValueError, match=r"^a prompt must hold at least one token"):
        prompt_of(with_template(tiny, "{{ '' }}"))
    with pytest.raises(ValueError, match=r"^chat_template_kwargs must hold variables"):
        prompt_of(tiny, enable_thinking=True)
    tokenizer: Any = tiny.tokenizer
    mask = tokenizer.convert_ids_to_tokens(tiny.spec.mask_id)
    with pytest.raises(ValueError, match=r"^messages must not hold the mask .*, id 5: it stands"):
        prompt_of(with_template(tiny, mask))


def test_texts_meet_no_template(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise LookupError("a bug")

    monkeypatch.setattr(encoding, "encode_prompts", broken)
    with pytest.raises(LookupError, match=r"^'?a bug"):
        read_request(b'{"prompt": "a"}', chat=False, model=tiny, name="m", defaults={})


@pytest.mark.parametrize("name", ["tools", "documents"])
def test_tools_and_documents_are_variables_too(tiny: Model, name: str) -> None:
    model = with_template(tiny, f"a{{% if {name} %}}{{{{ {name}[0]['b'] }}}}{{% endif %}}")
    told: dict[str, Any] = {name: [{"b": "c"}]}
    assert prompt_of(model, **told) == ids(tiny, "ac")


BEGUN = [*MESSAGES, {"role": "assistant", "content": " 1 "}]
KEEPS = (
    "{% for m in messages %}{{ m['role'] + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)


def chat(model: Model, messages: list[dict[str, str]], **body: Any) -> list[int]:
    """Token ids in front of the one that is asked for."""
    data = json.dumps({"messages": messages, "max_tokens": 1, **body}).encode()
    asked = read_request(data, chat=True, model=model, name="m", defaults={})
    return asked.request.rows[0][:-1]


def test_the_assistant_s_message_is_continued_where_the_request_says_so(tiny: Model) -> None:
    """As vLLM's clients, which have to say both, and SGLang's, which say one."""
    keeping = with_template(tiny, KEEPS)
    for also in ({}, {"add_generation_prompt": False}):
        row = chat(keeping, BEGUN, continue_final_message=True, **also)
        assert row == ids(tiny, "usera\nassistant 1 ")
        trimmed = chat(tiny, BEGUN, continue_final_message=True, **also)
        assert trimmed == [*chat(tiny, MESSAGES), *ids(tiny, "1")]
    assert chat(tiny, MESSAGES) == chat(
        tiny, MESSAGES, continue_final_message=False, add_generation_prompt=True
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "^messages must end with one to the assistant.*continue_final_message true"),
        ({"continue_final_message": False}, "^messages must end with one to the assistant"),
        (
            {"continue_final_message": True, "add_generation_prompt": True},
            "add_generation_prompt must be False with continue_final_message True, got True",
        ),
        (
            {"add_generation_prompt": False},
            "add_generation_prompt must be True with continue_final_message False, got False",
        ),
        ({"continue_final_message": "yes"}, "continue_final_message must be True or False"),
        (
            {"chat_template_kwargs": {"continue_final_message": True}},
            "chat_template_kwargs must be variables of the template|messages must end",
        ),
    ],
)
def test_else_it_is_refused(tiny: Model, body: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chat(tiny, BEGUN, **body)
