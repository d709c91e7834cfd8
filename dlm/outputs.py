"""What a generation gives."""

from dataclasses import dataclass, field

from dlm.trajectory import Likeliest, Trajectory


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished batch, row by row in the order of the prompts."""

    tokens: list[list[int]]  # the generated span
    texts: list[str] | None  # up to the first stop token or text; None without a tokenizer
    decoded: list[int]  # positions that forwards committed, not those filled behind a stop token
    forwards: list[int]  # NFE
    query_tokens: list[int]  # positions forwarded: shadows too, guidance twice, padding not at all
    trajectory: list[Trajectory] | None = None
    order: list[list[int]] | None = None
    """Forward that committed or edited each token of the span, from 0; -1 where none did: tokens
    that were given, or filled in behind a stop token or text, also where a forward had written
    another one. End of text that a forward wrote there itself keeps its number."""
    path_log_probability: list[float | None] | None = None
    """ln q of the tokens each row drew along its path, nats: sum_k ln q(v_k | x_k), q the tempered
    and filtered law they were drawn from. The weight of a row for an unnormalised target e^-U is
    exp(-U - path_log_probability) (MDNS, arXiv:2508.10684): the law of the order cancels. None at
    temperature 0, under a constraint, where blanks may grow, and for decoders whose choice of
    positions looks at the sampled tokens or is taken back; None for a row that a stop token cut
    short or whose end it filled. Those rows are not missing at random: turn `stop_at_eos` off to
    weigh samples."""
    top_tokens: list[list[Likeliest]] | None = None
    """Of each token of the span, the likeliest ones in the forward that wrote it last, with ln of
    their probabilities, nats: by the law of its own in `log_probabilities`, and none of probability
    0. The token itself need not be among them; empty where no forward wrote it."""

    @property
    def tokens_per_forward(self) -> float:
        """Committed positions over forwards, both summed over rows."""
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
    """One row right after one forward."""

    forward: int  # forwards made
    tokens: list[int]  # the generated span, masks included
    text: str | None  # up to the first mask or stop token; it stays if nothing remasks or edits
    committed: list[int]  # span positions this forward committed
    remasked: list[int]
    edited: list[int]
    done: bool
    filled: list[int] = field(default_factory=list)
    """Of those committed and edited, where end of text was filled in over what was written."""
