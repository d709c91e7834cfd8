"""vLLM's /tokenize and /detokenize: token ids of texts and chats, and texts of token ids."""

from typing import Any, Final

from dlm.models.model import Model
from dlm.options import boolean, integers
from dlm.prompts import CONTINUE, bare, tokenizer_of
from dlm.serving import encoding, fields
from dlm.serving.protocol import check_labels
from dlm.serving.tools import read_tools

SHARED: Final = ("model", "return_token_strs", "add_special_tokens")
TEXT: Final = ("prompt", *SHARED)
CHAT: Final = (
    *("messages", "tools", "tool_choice", "parallel_tool_calls", "chat_template_kwargs"),
    *("add_generation_prompt", CONTINUE),
    *SHARED,
)


def tokenize(data: bytes, model: Model, name: str) -> dict[str, Any]:
    """Token ids that the completion of a prompt, or the answer to a chat, starts from.

    Args:
        data: the body.
        model: the model that answers.
        name: the name under which the model is served.

    Raises:
        ValueError: a field breaks its rule; `UnknownModel` for the name.
    """
    body = fields.read_json(data)
    chat = "messages" in body
    body = fields.stated(body, CHAT if chat else TEXT)
    check_labels(body, name)
    strings = boolean("return_token_strs", body.get("return_token_strs", False))
    special = boolean("add_special_tokens", body.get("add_special_tokens", not chat))
    ids = chat_ids(body, model, special=special) if chat else text_ids(body, model, special=special)
    found = {"count": len(ids), "max_model_len": model.spec.max_length, "tokens": ids}
    named = tokenizer_of(model, "tokens").convert_ids_to_tokens(ids) if strings else None
    return {**found, "token_strs": named}


def text_ids(body: fields.Body, model: Model, *, special: bool) -> list[int]:
    """Token ids of a prompt, with or without the special tokens that the tokenizer adds."""
    (prompt,) = encoding.read_prompts(body, model, 1)[:1]
    if not isinstance(prompt, str) or not isinstance(body["prompt"], str):
        raise ValueError(f"prompt must be a text, got {body['prompt']!r}")
    if special:
        return encoding.encode_completions(model, [prompt], "")[0].before
    return bare(tokenizer_of(model, "a text"), prompt)


def chat_ids(body: fields.Body, model: Model, *, special: bool) -> list[int]:
    """Token ids of messages; their special tokens all come from the chat template."""
    if special:
        raise ValueError("add_special_tokens must be False for messages: the template has them")
    messages = encoding.read_messages(body, model)
    return encoding.encode_chat(body, model, messages, read_tools(body)).before


def detokenize(data: bytes, model: Model, name: str) -> dict[str, Any]:
    """The text of token ids, including special tokens.

    Raises:
        ValueError: a field breaks its rule; `UnknownModel` for the name.
    """
    body = fields.stated(fields.read_json(data), ("model", "tokens"))
    check_labels(body, name)
    most = model.spec.vocab_size - 1
    ids = integers("tokens", body.get("tokens"), least=0, most=most)
    text = tokenizer_of(model, "tokens").decode(ids, clean_up_tokenization_spaces=False)
    return {"prompt": text}
