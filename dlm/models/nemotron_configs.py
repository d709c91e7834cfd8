"""The configuration of Nemotron-Labs-Diffusion, with the fields of the released files.

It is separate from the network, as in `dlm.models.configs`.
"""

from typing import Any, ClassVar, Final

from dlm.models.configs import DecoderConfig
from dlm.options import integer, number

ROTARY: Final[dict[str, Any]] = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "factor": 16.0,
    "llama_4_scaling_beta": 0.1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 16384,
    "rope_theta": 1000000.0,
    "rope_type": "yarn",
}
"""`rope_parameters` of the 8B network."""


class NemotronLabsDiffusionConfig(DecoderConfig):
    """Nemotron-Labs-Diffusion (NVIDIA 2026): Ministral 3, also trained to denoise.

    The defaults are those of the 8B network.
    """

    model_type = "nemotron_labs_diffusion"
    title = "Nemotron-Labs-Diffusion"
    declared = ("NemotronLabsDiffusionModel",)
    yarn = True
    fixed: ClassVar[dict[str, tuple[Any, ...]]] = {
        "attention_bias": (False,),
        "attention_dropout": (0,),
        # The attention in training. Decoding is the same for both values.
        "dlm_paradigm": ("bidirectional", "block_diff"),
        "mlp_bias": (False,),
        "sliding_window": (None,),
    }
    ignore_keys_at_rope_validation = {"llama_4_scaling_beta"}  # noqa: RUF012 (transformers reads it)
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 34
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    vocab_size: int = 131072
    max_position_embeddings: int = 262144
    rms_norm_eps: float = 1e-5
    rope_parameters: dict[str, Any] | None = None  # `ROTARY` if null; never null in a file
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False  # type: ignore[misc]
    sliding_window: int | None = None
    tie_word_embeddings: bool = False
    block_size: int = 32
    dlm_paradigm: str = "bidirectional"

    def fill(self) -> None:
        """Check `rope_parameters`, and take `rope_theta` from them.

        Raises:
            ValueError: they are not like those of the releases.
        """
        given = self.rope_parameters
        self.rope_parameters = dict(ROTARY) if given is None else checked(given)
        self.rope_theta = self.rope_parameters["rope_theta"]

    @property
    def query_scale(self) -> tuple[float, int]:  # type: ignore[override]
        """Beta and N of `RotaryEmbedding.scale`."""
        held = self.rope_parameters
        assert held is not None
        return held["llama_4_scaling_beta"], held["original_max_position_embeddings"]

    def to_dict(self) -> dict[str, Any]:
        """As released: `rope_parameters` contain everything about rotary embedding."""
        return {
            k: v for k, v in super().to_dict().items() if k not in ("rope_scaling", "rope_theta")
        }

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from `config.json`, which has to contain rope_parameters.

        Raises:
            ValueError: it lacks rope_parameters, contradicts them, or has a value that no release
                has.
        """
        held = config_dict.get("rope_parameters")
        if held is None:
            raise ValueError(f"rope_parameters must be in the config.json of a {cls.title}")
        angles = checked(held)
        theta, again = angles["rope_theta"], config_dict.get("rope_scaling")
        # transformers 4 writes them twice, with the type under both of its names.
        if again is not None and checked(again) != angles:
            raise ValueError(f"rope_scaling must be as rope_parameters, got {again!r}")
        if config_dict.get("rope_theta", theta) not in (None, theta):
            raise ValueError(
                f"rope_theta must be {theta!r} as in rope_parameters, "
                f"got {config_dict['rope_theta']!r}"
            )
        kept = {k: v for k, v in config_dict.items() if k not in ("rope_theta", "rope_scaling")}
        return super().from_dict(kept | {"rope_parameters": angles}, **kwargs)

    @classmethod
    def read_rotary(cls, rotary: object) -> dict[str, Any]:
        """Keep `rope_parameters` unchanged."""
        return {"rope_parameters": rotary}


def checked(rotary: object) -> dict[str, Any]:
    """Check `rope_parameters` of YaRN (Peng et al. 2023, arXiv:2309.00071).

    `mscale` has to equal `mscale_all_dim`, so that cosines and sines are not scaled.

    Raises:
        ValueError: they are incomplete, out of range, or not of YaRN.
    """
    held = dict(rotary) if isinstance(rotary, dict) else {}
    if held.get("type") == held.get("rope_type"):
        held.pop("type", None)
    if held.keys() != ROTARY.keys() or held["rope_type"] != "yarn":
        raise ValueError(
            f"rope_parameters must be of rope_type 'yarn' and hold {', '.join(ROTARY)}, "
            f"got {rotary!r}"
        )
    known = "original_max_position_embeddings"
    integer(known, held[known], least=1)
    number("rope_theta", held["rope_theta"], least=1)
    number("llama_4_scaling_beta", held["llama_4_scaling_beta"], least=0)
    for name in ("beta_fast", "beta_slow", "factor", "mscale", "mscale_all_dim"):
        if number(name, held[name]) <= 0:
            raise ValueError(f"{name} must be above 0, got {held[name]!r}")
    if held["mscale"] != held["mscale_all_dim"]:
        raise ValueError(
            "mscale_all_dim must equal mscale as in every release, "
            f"got {held['mscale_all_dim']!r} and {held['mscale']!r}"
        )
    return held
