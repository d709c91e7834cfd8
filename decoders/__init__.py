"""Unmasking policies: which masked positions to commit after each forward pass."""

from dataclasses import fields
from typing import Any

from dlm.decoders.adaptive_block import AdaptiveBlock
from dlm.decoders.ancestral import Ancestral
from dlm.decoders.block_refinement import BlockRefinement
from dlm.decoders.certainty_prior import CertaintyPrior
from dlm.decoders.credit import Credit
from dlm.decoders.d2f import D2F
from dlm.decoders.deferred_commitment import DeferredCommitment
from dlm.decoders.dilated import Dilated
from dlm.decoders.dream import Dream
from dlm.decoders.entropy_bound import EntropyBound
from dlm.decoders.entropy_threshold import EntropyThreshold
from dlm.decoders.first_hitting import FirstHitting
from dlm.decoders.frechet import Frechet
from dlm.decoders.hierarchical import Hierarchical
from dlm.decoders.info_gain import InfoGain
from dlm.decoders.klass import Klass
from dlm.decoders.local_leap import LocalLeap
from dlm.decoders.lopa import LoPA
from dlm.decoders.low_confidence import LowConfidence
from dlm.decoders.mean_field import MeanField
from dlm.decoders.multi_block import MultiBlock
from dlm.decoders.mutual_stability import MutualStability
from dlm.decoders.orders import Entropy, LeftToRight, Margin, Random
from dlm.decoders.pc_sampler import PCSampler
from dlm.decoders.prophet import Prophet
from dlm.decoders.remdm import ReMDM
from dlm.decoders.saber import Saber
from dlm.decoders.schedule import Schedule
from dlm.decoders.ssd import SSD
from dlm.decoders.threshold import Factor, Threshold
from dlm.decoders.wedlm import WeDLM
from dlm.decoders.wino import Wino
from dlm.foreign import DECODERS as THEIRS
from dlm.foreign import OF_DECODERS
from dlm.options import known, plain
from dlm.types import AnyDecoder

__all__ = [
    "D2F",
    "DECODERS",
    "SSD",
    "AdaptiveBlock",
    "Ancestral",
    "BlockRefinement",
    "CertaintyPrior",
    "Credit",
    "DeferredCommitment",
    "Dilated",
    "Dream",
    "Entropy",
    "EntropyBound",
    "EntropyThreshold",
    "Factor",
    "FirstHitting",
    "Frechet",
    "Hierarchical",
    "InfoGain",
    "Klass",
    "LeftToRight",
    "LoPA",
    "LocalLeap",
    "LowConfidence",
    "Margin",
    "MeanField",
    "MultiBlock",
    "MutualStability",
    "PCSampler",
    "Prophet",
    "Random",
    "ReMDM",
    "Saber",
    "Schedule",
    "Threshold",
    "WeDLM",
    "Wino",
    "make",
]

DECODERS: dict[str, type[AnyDecoder]] = {
    "low_confidence": LowConfidence,
    "random": Random,
    "left_to_right": LeftToRight,
    "entropy": Entropy,
    "margin": Margin,
    "dilated": Dilated,
    "first_hitting": FirstHitting,
    "ancestral": Ancestral,
    "dream": Dream,
    "pc_sampler": PCSampler,
    "certainty_prior": CertaintyPrior,
    "prophet": Prophet,
    "schedule": Schedule,
    "threshold": Threshold,
    "factor": Factor,
    "frechet": Frechet,
    "entropy_bound": EntropyBound,
    "entropy_threshold": EntropyThreshold,
    "multi_block": MultiBlock,
    "d2f": D2F,
    "deferred_commitment": DeferredCommitment,
    "adaptive_block": AdaptiveBlock,
    "wedlm": WeDLM,
    "ssd": SSD,
    "lopa": LoPA,
    "info_gain": InfoGain,
    "mean_field": MeanField,
    "local_leap": LocalLeap,
    "hierarchical": Hierarchical,
    "credit": Credit,
    "klass": Klass,
    "mutual_stability": MutualStability,
    "saber": Saber,
    "wino": Wino,
    "remdm": ReMDM,
    "block_refinement": BlockRefinement,
}


def make(name: str, **options: Any) -> AnyDecoder:
    """Build the decoder `name` with hyperparameters `options`.

    Raises:
        ValueError: The name or an option is unknown, or a value is invalid. For an unknown name the
            message gives the equivalent of another program's name or the closest match, and the
            list of known names.
    """
    decoder = DECODERS[known("decoder", name, DECODERS, THEIRS)]
    names = [field.name for field in fields(decoder)]  # type: ignore[arg-type]
    for option in options:
        known(f"option of {name}", option, names, OF_DECODERS.get(name, {}))
    made = decoder(**options)
    plain(made)
    return made
