"""Load a model, generate, and look at how the text came about.

    python examples/quickstart.py
    python examples/quickstart.py --model GSAI-ML/LLaDA-8B-Instruct --prompt "What is a monad?"

Without `--model` it is the small built-in one, which knows a few puzzles and nothing else.
"""

import argparse
from collections.abc import Sequence

import dlm

PROMPT = "A box holds 4 keys. Ann fills 3 boxes and Ida fills 4. How many keys is that?"


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Generate with two decoders.")
    parser.add_argument("--model", help="folder or Hugging Face id")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--length", type=int, default=32, help="tokens to decode")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Answer one question with two decoders, then once more as a stream."""
    asked = arguments(given)
    model = dlm.load(asked.model, device=asked.device)
    chat = [{"role": "user", "content": asked.prompt}]

    for decoder in ("low_confidence", "threshold"):
        out = dlm.generate(model, chat, decoder=decoder, gen_length=asked.length)
        assert out.texts is not None
        print(f"{decoder}: {out.texts[0]}")
        print(f"  {out.forwards[0]} forwards, {out.tokens_per_forward:.1f} tokens each")

    for snapshot in dlm.stream(model, chat, decoder="threshold", gen_length=asked.length):
        print(f"after forward {snapshot.forward}: {snapshot.text!r}")


if __name__ == "__main__":
    main()
