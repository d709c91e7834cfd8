"""The built-in model's tokenizer: a small byte-level BPE with LLaDA's special tokens.

Every digit is a separate token, and any text decodes to itself. The chat template is LLaDA's
without its line breaks, so that it adds only 8 tokens to a prompt: the model's canvas is short.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dlm.data import generate_examples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS_TOKEN = "<|startoftext|>"
EOS_TOKEN = "<|endoftext|>"
MASK_TOKEN = "<|mdm_mask|>"
SPECIAL_TOKENS = (
    BOS_TOKEN,
    EOS_TOKEN,
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    MASK_TOKEN,
)
VOCABULARY_TASKS = ("sudoku", "countdown", "word_problems", "functions")
"""The tasks that the shipped vocabulary was learned from. Later tasks are written in it."""
ROLES = ("user", "assistant", "system")
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>' }}"
    "{{ message['content'] | trim }}"
    "{{ '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>' }}"
    "{% endif %}"
)


def corpus(seed: int, per_task: int = 3000) -> list[str]:
    """Returns the texts that the shipped tokenizer was trained on: prompts and responses.

    Args:
        seed: of the generators.
        per_task: examples of each task.

    Returns:
        Two texts per example, with the prompt stripped as the chat template strips it.
    """
    texts = []
    for task in VOCABULARY_TASKS:
        for example in generate_examples(task, seed, count=per_task):
            texts += [example.prompt.strip(), example.response]
    return texts


def build_tokenizer(texts: Iterable[str], vocab_size: int = 768) -> PreTrainedTokenizerFast:
    """Trains the tokenizer; the same texts give the same vocabulary.

    Args:
        texts: what the merges are learned from.
        vocab_size: most tokens, including special ones.

    Returns:
        A tokenizer of at most `vocab_size` tokens, fewer if the texts offer no more merges.

    Raises:
        ValueError: `vocab_size` has no room for the bytes, special tokens and role names.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = list(texts)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # Repeat the role names of the chat template so often that they are merged whatever the texts.
    roles = [role for role in ROLES for _ in range(len(texts) + 1)]
    tokenizer.train_from_iterator([*texts, *roles], trainer)
    if any(tokenizer.token_to_id(role) is None for role in ROLES):
        raise ValueError(f"vocab_size must leave room for {ROLES}, got {vocab_size}")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        pad_token=EOS_TOKEN,
        mask_token=MASK_TOKEN,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
