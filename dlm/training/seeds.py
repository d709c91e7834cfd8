"""Noise seeds for every forward pass of a run, distinct from those of other runs."""

STRIDE = 1_000_003  # distance between the noise seeds of runs with consecutive seeds
LARGEST_SEED = 2**42  # leaves 4e18 forward passes below 2^63


def noise_seed(seed: int, forward: int) -> int:
    """Noise seed of one forward pass of a run whose seed is in [0, `LARGEST_SEED`]; below 2^63."""
    return seed * STRIDE + forward
