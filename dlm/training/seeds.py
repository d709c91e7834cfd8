"""Seeds of the noise of every forward of a run, apart from those of other runs."""

STRIDE = 1_000_003  # what two neighbouring seeds of runs are apart
LARGEST_SEED = 2**42  # leaves numbers for 4e18 forwards below 2^63


def noise_seed(seed: int, forward: int) -> int:
    """Seed of one forward of the run with a seed in [0, `LARGEST_SEED`]; below 2^63."""
    return seed * STRIDE + forward
