"""Time of statistics and sampling beside the float64 path of the papers' code.

    python -m dlm.kernels.bench --threads 2

Shapes: N rows, V vocabulary.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from dlm.kernels.noise import NoiseKey
from dlm.kernels.statistics import token_statistics

ROWS, VOCABULARY = 32, 126_464


def float64_path(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Sample and score with float64 copies of the vocabulary.

    Gumbel-max in the form exp(l) / (-ln u)^T of Nie et al. 2025 (LLaDA, arXiv:2502.09992), then
    p(sampled) from a full softmax.
    """
    wide = logits.double()
    tokens = wide.argmax(1)
    if temperature:
        noise = torch.rand_like(wide).log_().neg_().pow_(temperature)
        tokens = (wide.exp() / noise).argmax(1)
    return tokens, wide.softmax(1).gather(1, tokens[:, None])


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """Median wall time after one warm-up."""
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rows = torch.arange(ROWS)
    key = NoiseKey(0, rows, rows, torch.zeros_like(rows))
    print(f"{ROWS} x {VOCABULARY}, {arguments.threads} threads, median of {arguments.repeats}, ms")
    print("| dtype | T | max and log-sum-exp | float64 path | ours | ratio |")
    print("|---|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        logits = (3 * torch.randn(ROWS, VOCABULARY)).to(dtype)
        for temperature in (0.0, 0.7, 1.0):
            bare, wide, ours = (
                milliseconds(call, arguments.repeats)
                for call in (
                    lambda x=logits: (x.max(1), x.logsumexp(1)),
                    lambda x=logits, t=temperature: float64_path(x, t),
                    lambda x=logits, t=temperature: token_statistics(
                        x, ("confidence", "entropy"), temperature=t, key=key
                    ),
                )
            )
            name = str(dtype).removeprefix("torch.")
            print(
                f"| {name} | {temperature} | {bare:.1f} | {wide:.1f} | {ours:.1f} "
                f"| {wide / ours:.1f}x |"
            )


if __name__ == "__main__":
    main()
