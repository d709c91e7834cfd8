"""Fill blanks inside a text with Dream: what stands behind a blank is seen as well.

    python examples/dream_infilling.py --device cuda
    python examples/dream_infilling.py --text "def add(a, b):[MASK:8] return c" --decoder dream

`[MASK]` is one missing token, `[MASK:8]` eight. Dream predicts the token behind each position; that
is a fact of the family, which `dlm.load` knows and no caller has to.
"""

import argparse
from collections.abc import Sequence

import dlm

TEXT = "The capital of France is[MASK:2] and the capital of[MASK:2] is Rome."


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Fill the blanks of a text.")
    parser.add_argument("model", nargs="?", default="Dream-org/Dream-v0-Instruct-7B")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--text", default=TEXT, help="with blanks: [MASK] or [MASK:8]")
    parser.add_argument("--ids", type=int, nargs="*", help="token ids instead, mask ids in them")
    parser.add_argument("--decoder", default="entropy", help="a name of `dlm decoders`")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Fill the blanks, and tell in which order."""
    asked = arguments(given)
    model = dlm.load(asked.model, device=asked.device)
    out = dlm.infill(
        model,
        asked.ids or asked.text,
        decoder=asked.decoder,
        block_length=None,  # any blank may be filled at any time
        return_order=True,
    )
    print(out.tokens[0] if out.texts is None else out.texts[0])
    assert out.order is not None
    for forward in range(out.forwards[0]):
        places = [place for place, made in enumerate(out.order[0]) if made == forward]
        print(f"forward {forward}: positions {places}")


if __name__ == "__main__":
    main()
