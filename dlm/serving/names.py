"""Names of request fields: those that are accepted, and what to say about others."""

import json
import re
from ast import literal_eval
from collections.abc import Mapping, Sequence
from typing import Any

from dlm import foreign
from dlm.prompts import CONTINUE

OPTIONS = (
    "decoder",
    "decoder_options",
    "block_length",
    "steps",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "position_temperature",
    "cfg_scale",
    "cache",
    "refresh_every",
    "refresh_around",
    "refresh_answer_every",
    "refresh_prompt_every",
    "refresh_decoded_every",
    "suffix_window",
    "seed",
    "stop_at_eos",
    "pad_after_eos",
    "suppress_tokens",
    "begin_suppress_tokens",
    "logit_bias",
    "confidence_eos_eot_inf",
)
"""Options of `dlm.generate` that are fields under their own names."""

TOLD_BY_NULL = ("block_length", "steps")
"""Options for which null is a value."""

LABELS: Mapping[str, tuple[type, str]] = {
    "user": (str, "a text"),
    "metadata": (dict, "an object"),
    "store": (bool, "True or False"),
    "safety_identifier": (str, "a text"),
    "prompt_cache_key": (str, "a text"),
    "request_id": (str, "a text"),
}
"""Fields that do not affect the text, and what they must be."""

NOT_OF_CHATS = ("echo",)
"""Fields of completions only; chats accept them if they are off."""

NOT_OF_COMPLETIONS = ("tools", "tool_choice", "parallel_tool_calls")
"""Fields of chats only; completions accept them if they are off."""

SHARED = (
    *("model", "max_tokens", "n", "stop", "stream", "stream_options"),
    *("logprobs", "top_logprobs"),
    *("response_format", "structured_outputs", "guided_choice", "guided_json", "guided_regex"),
    *LABELS,
    *OPTIONS,
)
COMPLETION = ("prompt", "suffix", "blanks", "echo", *SHARED)
CHAT = (
    *("messages", "max_completion_tokens", "chat_template_kwargs"),
    *("add_generation_prompt", CONTINUE),
    *NOT_OF_COMPLETIONS,
    *SHARED,
)

UNSUPPORTED = (
    "audio",
    "bad_words",
    "best_of",
    "frequency_penalty",
    "function_call",
    "functions",
    "guided_grammar",
    "ignore_eos",
    "include_reasoning",
    "include_stop_str_in_output",
    "length_penalty",
    "min_tokens",
    "modalities",
    "no_stop_trim",
    "prediction",
    "presence_penalty",
    "priority",
    "reasoning_effort",
    "repetition_penalty",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "separate_reasoning",
    "service_tier",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "stop_token_ids",
    "stream_reasoning",
    "structural_tag",
    "use_beam_search",
    "verbosity",
    "web_search_options",
)
"""Fields that other servers of these endpoints accept, but that cannot be honoured here."""

OFF: Mapping[str, Sequence[Any]] = {
    "function_call": ["none"],
    "include_reasoning": [True],  # thinking is part of the answer's text
    "length_penalty": [1],
    "modalities": [["text"]],
    "parallel_tool_calls": [True],  # in completions, which have no tools
    "reasoning_effort": ["none"],
    "repetition_penalty": [1],
    "separate_reasoning": [True],  # reasoning is not parsed
    "service_tier": ["auto", "default"],
    "skip_special_tokens": [True],
    "spaces_between_special_tokens": [True],
    "stream_reasoning": [True],
    "tool_choice": ["none", "auto"],
    "verbosity": ["medium"],
}
"""Values that turn some of these fields off, besides empty ones."""

GRAMMARS = ("grammar", "guided_grammar", "structural_tag")
"""Fields that describe texts in ways that no automaton can follow."""

REASONS: Mapping[str, str] = {
    "bad_words": "suppress_tokens keeps single tokens away",
    "echo": "it is for completions",
    "ignore_eos": "stop_at_eos false says that stop tokens end nothing",
    "include_stop_str_in_output": "what ends a choice is left out",
    "name": "the chat template has no place for it",
    "skip_special_tokens": "texts are without special tokens",
    "strict": "with tool_choice 'auto' nothing holds an answer to it, as 'required' or a name does",
    **dict.fromkeys(NOT_OF_COMPLETIONS, "it is for chats"),
    **dict.fromkeys(GRAMMARS, "regular expressions and JSON schemas are what there is"),
    "stop_token_ids": "dlm serve has --stop-ids, for all requests",
}
"""Why some fields are not accepted, or what replaces them."""

GIVEN = re.compile(r"\b(\w+)=('[^']*'|\{[^}]*\}|[0-9]+(?:\.[0-9]+)?|True|False|None)")
"""An option with its value, in Python's notation."""


def in_json(told: str) -> str:
    """Rewrite what is said about options: their values in JSON, as in a request body."""
    return GIVEN.sub(lambda found: f"{found[1]}: {json.dumps(literal_eval(found[2]))}", told)


_STREAMED = ("callback_on_step_end", "generation_tokens_hook_func", "step_callback", "streamer")
_STOP_IDS = ("eos_id", "eos_token_id", "stopping_criteria_idx")
_OF_SERVER = ("mask_id", "mask_token_id", "tokenizer", "device", "dtype")
_OF_BLANKS = ("broadcast_deletion", "expand_budget", "max_gen_length", "pad_delete_to_right")
FOREIGN: Mapping[str, str] = {
    **{name: in_json(told) for name, told in foreign.OPTIONS.items()},
    **dict.fromkeys((*foreign.LENGTHS, "gen_length"), "max_tokens says how many are decoded"),
    **dict.fromkeys(foreign.TEXTS, "stop has texts that end a choice"),
    "num_return_sequences": "n is the number of choices",
    **dict.fromkeys(("constraint", "regex"), 'it is structured_outputs: {"regex": ...}'),
    "json_schema": 'it is structured_outputs: {"json": ...}, or response_format',
    **dict.fromkeys(("choice", "choices"), 'it is structured_outputs: {"choice": [...]}'),
    **dict.fromkeys(GRAMMARS, REASONS["grammar"]),
    **dict.fromkeys(_STREAMED, "stream true sends text as it is settled"),
    **dict.fromkeys(("input_ids", "attention_mask"), "token ids are a prompt, without padding"),
    **dict.fromkeys(_STOP_IDS, REASONS["stop_token_ids"]),
    **dict.fromkeys(_OF_SERVER, "it is a fact of what is served"),
    **dict.fromkeys(_OF_BLANKS, "blanks and max_tokens are for those of a suffix"),
    **dict.fromkeys(("output_history", "mc_num"), "the server has no like: the library has"),
    "return_dict_in_generate": "answers are objects",
    "generator": "seed is what draws start from",
    "logits_eos_inf": "suppress_tokens has ids of tokens, such as that of end of text",
    "block_size": "block_length is what is decoded at a time",
}
"""What to say about unknown fields: what a request can have, not what a program could call."""
