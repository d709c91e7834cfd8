"""The results of a generation."""

from dataclasses import dataclass, field

from dlm.trajectory import Likeliest, Trajectory


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished batch, row by row in the order of the prompts."""

    tokens: list[list[int]]  # the generated span
    texts: list[str] | None  # up to the first stop token or text; None without a tokenizer
    decoded: list[int]  # positions committed by forward passes, not filled after a stop token
    forwards: list[int]  # forward passes of each row (NFE)
    query_tokens: list[int]  # positions evaluated, with shadows, twice with guidance, no padding
    trajectory: list[Trajectory] | None = None
    order: list[list[int]] | None = None
    """The forward pass, from 0, that committed or edited each token of the span; -1 if none did.
    That is so for tokens that were given, and for those filled in after a stop token or text, even
    if a forward pass had written another token there before. End of text that a pass wrote there
    itself keeps its number."""
    path_log_probability: list[float | None] | None = None
    """ln q of the tokens each row drew along its path, nats: sum_k ln q(v_k | x_k), where q is the
    tempered and filtered distribution they were drawn from. The weight of a row for an unnormalised
    target e^-U is exp(-U - path_log_probability) (MDNS, arXiv:2508.10684): the probability of the
    order cancels.

    The whole field is None at temperature 0, under a constraint, where blanks may grow, and for
    decoders whose choice of positions depends on the sampled tokens or that take tokens back. It is
    None for a single row that a stop token cut short or whose end it filled. Such rows are not
    missing at random: turn `stop_at_eos` off to weight samples."""
    top_tokens: list[list[Likeliest]] | None = None
    """For each token of the span, the most likely tokens in the forward pass that last wrote it,
    with ln of their probabilities, nats, without those of probability 0. The distribution is the
    one that `log_probabilities` uses. The token itself need not be among them; the list is empty if
    no forward pass wrote it."""

    @property
    def tokens_per_forward(self) -> float:
        """Committed positions divided by forward passes, both summed over rows."""
        return sum(self.decoded) / sum(self.forwards)

    @property
    def log_probabilities(self) -> list[list[float]] | None:
        """`Trajectory.log_probabilities` of each row; None without trajectories."""
        if self.trajectory is None:
            return None
        rows = zip(self.trajectory, self.tokens, strict=True)
        return [trajectory.log_probabilities(tokens) for trajectory, tokens in rows]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One row right after one forward pass."""

    forward: int  # forward passes made
    tokens: list[int]  # the generated span, masks included
    text: str | None  # up to the first mask or stop token; final without remasks and edits
    committed: list[int]  # span positions committed by this forward pass
    remasked: list[int]
    edited: list[int]
    done: bool
    filled: list[int] = field(default_factory=list)
    """Positions among `committed` and `edited` where end of text has replaced what was written."""
