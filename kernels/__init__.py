"""Token statistics and exact categorical sampling over large vocabularies. Needs torch only."""

from dlm.kernels.call import TokenStatistics
from dlm.kernels.noise import (
    NoiseKey,
    exponential_from_bits,
    gumbel,
    gumbels,
    philox4x32,
    uniform,
)
from dlm.kernels.reference import token_statistics_reference
from dlm.kernels.statistics import STATISTICS, categorical, token_statistics
from dlm.kernels.tiles import TILE, Bonus, Suppressed

# transformers 5.0 to 5.12 mistakes any importable `kernels` for the Hugging Face package of that
# name, and fails without a version to parse. This happens with the repository on sys.path.
__version__ = "0.0.0"

__all__ = [
    "STATISTICS",
    "TILE",
    "Bonus",
    "NoiseKey",
    "Suppressed",
    "TokenStatistics",
    "categorical",
    "exponential_from_bits",
    "gumbel",
    "gumbels",
    "philox4x32",
    "token_statistics",
    "token_statistics_reference",
    "uniform",
]
