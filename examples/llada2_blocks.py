"""Decode with LLaDA2, whose attention is block-causal: an exact cache, and edits in LLaDA2.1.

    python examples/llada2_blocks.py --device cuda --prompt "Why is the sky blue?"
    python examples/llada2_blocks.py inclusionAI/LLaDA2.1-mini --editing-threshold 0.9

Tokens see their own block of 32 and those before it. So the keys of finished blocks never change,
and `cache="prefix"` gives the tokens that no cache gives, at a fraction of the work.
"""

import argparse
from collections.abc import Sequence

import dlm


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Decode block by block.")
    parser.add_argument("model", nargs="?", default="inclusionAI/LLaDA2.0-mini")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompt", default="Why is the sky blue?")
    parser.add_argument("--ids", type=int, nargs="*", help="token ids instead of a prompt")
    parser.add_argument("--editing-threshold", type=float, help="edit what it is surer of by now")
    parser.add_argument("--length", type=int, default=256, help="tokens to decode")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Decode with the family's own decoder, with and without the cache."""
    asked = arguments(given)
    model = dlm.load(asked.model, device=asked.device)
    prompt = asked.ids or [{"role": "user", "content": asked.prompt}]
    print(f"attention blocks of {model.spec.block_size} tokens")
    for cache in ("none", "prefix"):
        out = dlm.generate(
            model,
            prompt,
            decoder="block_refinement",
            decoder_options={"editing_threshold": asked.editing_threshold},
            gen_length=asked.length,
            block_length=model.spec.block_size,
            cache=cache,
        )
        print(f"cache {cache!r}: {out.forwards[0]} forwards, {out.query_tokens[0]} tokens computed")
        print(out.tokens[0] if out.texts is None else out.texts[0])


if __name__ == "__main__":
    main()
