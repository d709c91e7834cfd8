"""Fine-tune on prompts and responses with transformers' Trainer: the masked-diffusion objective.

    python examples/fine_tuning.py --output reversed
    python examples/fine_tuning.py GSAI-ML/LLaDA-8B-Base --data pairs.jsonl --output tuned

A line of a file holds a prompt and a response; without one the built-in model learns to reverse
digits. `dlm.load` reads what is written. A `PeftModel` of the network trains an adapter alone.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

from transformers import Trainer, TrainingArguments

import dlm

DIGITS = [str(each)[1:] for each in random.Random(0).sample(range(10_000, 20_000), 4000)]
REVERSED = [{"prompt": f"{each}:", "response": each[::-1]} for each in DIGITS]


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Fine-tune on prompts and responses.")
    parser.add_argument("model", nargs="?", help="folder or Hugging Face id; built-in if absent")
    parser.add_argument("--data", type=Path, help="JSON lines with prompt and response")
    parser.add_argument("--output", required=True, help="folder for the model")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--lr", type=float, default=1e-3)
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Train on all but the last tenth, and decode some of that."""
    asked = arguments(given)
    model = dlm.load(asked.model)
    model.network.requires_grad_(True)  # what dlm.load reads is frozen
    lines = asked.data.read_text().splitlines() if asked.data else []
    pairs = [json.loads(line) for line in lines] or REVERSED
    rows = []
    for pair in pairs:
        prompt, response = (model.tokenizer(pair[k]).input_ids for k in ("prompt", "response"))
        labels = [-100] * len(prompt) + [*response, model.spec.eos_id]
        rows.append({"input_ids": [*prompt, *response, model.spec.eos_id], "labels": labels})
    how = {"per_device_train_batch_size": 64, "lr_scheduler_type": "cosine", "logging_steps": 50}
    how |= {"max_steps": asked.steps, "learning_rate": asked.lr, "report_to": "none"}
    run = TrainingArguments(asked.output, **how)
    Trainer(model.network, run, dlm.MaskingCollator(model.spec), rows[: -len(rows) // 10]).train()
    model.network.eval().save_pretrained(asked.output)
    model.tokenizer.save_pretrained(asked.output)
    asks = [pair["prompt"] for pair in pairs[-5:]]
    for prompt, text in zip(asks, dlm.generate(model, asks, gen_length=16).texts, strict=True):
        print(prompt, text)


if __name__ == "__main__":
    main()
