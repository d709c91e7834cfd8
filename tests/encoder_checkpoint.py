"""A small checkpoint of a stock masked language model."""

from pathlib import Path

import torch

WORDS = ("the", "cat", "dog", "sat", "ran", "on", "under", "a", "mat", "sun", "is", "red", "##s")
PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)


def write(folder: Path) -> None:
    """A random BERT of transformers with a tokenizer of word pieces; ids 0 to 4 are special."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    ids = {piece: number for number, piece in enumerate(PIECES)}
    core = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.decoder = decoders.WordPiece()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{piece[1:-1].lower()}_token": piece for piece in PIECES[:5]}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=40, **names)
    config = BertConfig(
        vocab_size=24,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=40,
        initializer_range=0.3,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = BertForMaskedLM(config)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
