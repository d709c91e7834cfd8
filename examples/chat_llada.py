"""Chat with LLaDA in a terminal, text appearing as it becomes final.

    python examples/chat_llada.py --device cuda
    python examples/chat_llada.py path/to/checkpoint --decoder saber

The network comes from transformers' Auto class, which `import dlm` taught the family: no code of
the checkpoint runs. An empty line ends the chat.
"""

import argparse
from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import dlm


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Chat with a masked-diffusion language model.")
    parser.add_argument("model", nargs="?", default="GSAI-ML/LLaDA-8B-Instruct")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--decoder", default="threshold", help="a name of `dlm decoders`")
    parser.add_argument("--length", type=int, default=256, help="tokens of an answer")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Read questions and print answers, until an empty line."""
    asked = arguments(given)
    tokenizer = AutoTokenizer.from_pretrained(asked.model)
    network = AutoModelForCausalLM.from_pretrained(asked.model).to(asked.device)
    streamer = dlm.TextDiffusionStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    chat: list[dict[str, str]] = []
    while question := input("> ").strip():
        chat.append({"role": "user", "content": question})
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        out = network.generate(
            torch.tensor([ids], device=asked.device),
            max_new_tokens=asked.length,
            decoder=asked.decoder,
            streamer=streamer,
        )
        answer = str(tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True))
        chat.append({"role": "assistant", "content": answer})


if __name__ == "__main__":
    main()
