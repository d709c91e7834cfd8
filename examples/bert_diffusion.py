"""Write with a stock BERT, unmasked by a diffusion policy instead of one blank at a time.

    python examples/bert_diffusion.py answerdotai/ModernBERT-base "The cat [MASK:8] the mat."
    python examples/bert_diffusion.py FacebookAI/roberta-base "My favourite book is" --length 12

Blanks may stand anywhere: what is behind them is seen as well. The model is any masked language
model of transformers, as a folder or a Hugging Face id. What every forward left is printed.
"""

import argparse
from collections.abc import Sequence

import dlm


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Decode with a masked language model.")
    parser.add_argument("model", help="folder or Hugging Face id")
    parser.add_argument("text", help="with blanks, [MASK] or [MASK:8]; without one it is continued")
    parser.add_argument("--length", type=int, default=16, help="tokens of a continuation")
    parser.add_argument("--decoder", default="low_confidence", help="a name of `dlm decoders`")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-k", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Fill the blanks of a text, or continue it, and print how it came about."""
    asked = arguments(given)
    model = dlm.load(asked.model, device=asked.device)
    assert model.tokenizer is not None
    options = {
        "decoder": asked.decoder,
        "block_length": None,
        "temperature": asked.temperature,
        "top_k": asked.top_k,
        "seed": asked.seed,
        "return_trajectory": True,
    }
    if "[MASK" in asked.text:
        out = dlm.infill(model, asked.text, **options)
    else:
        out = dlm.generate(model, asked.text, gen_length=asked.length, **options)
    assert out.trajectory is not None
    for canvas in out.trajectory[0].canvases.tolist():
        print(model.tokenizer.decode(canvas))
    print(model.tokenizer.decode(out.tokens[0]), f"({out.forwards[0]} forwards)", sep="\n")


if __name__ == "__main__":
    main()
