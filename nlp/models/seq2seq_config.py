"""What an encoder-decoder transformer is: Marian, BART and T5 in one description."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nlp.models.layers import Activation
from nlp.models.seq2seq_layers import NormKind
from shared.config import Config, option


@dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig(Config):
    """What an encoder-decoder transformer is; the defaults are those of an OPUS-MT model."""

    vocab_size: int = option(58101, "rows of the table of source tokens", minimum=1)
    target_vocab_size: int = option(0, "rows of the table of target tokens; 0: as the source's", minimum=0)
    hidden_size: int = option(512, "features of each token", minimum=1)
    encoder_layers: int = option(6, "layers of the encoder", minimum=1)
    decoder_layers: int = option(6, "layers of the decoder", minimum=1)
    encoder_heads: int = option(8, "attention heads in the encoder", minimum=1)
    decoder_heads: int = option(8, "attention heads in the decoder", minimum=1)
    head_size: int = option(0, "features of a head; 0: `hidden_size` over the number of heads", minimum=0)
    encoder_intermediate_size: int = option(2048, "features inside the encoder's feed-forward parts", minimum=1)
    decoder_intermediate_size: int = option(2048, "features inside the decoder's feed-forward parts", minimum=1)
    activation: Activation = option("silu", "activation of the feed-forward parts")
    gated: bool = option(False, "feed-forward parts with a gate (T5 v1.1)")
    use_bias: bool = option(True, "linear maps have a bias")
    decoder_unit: Literal["attention", "ssru"] = option("attention", "how target positions see those before them")

    norm: NormKind = option("layer", "kind of normalisation: of mean and variance, or T5's of the mean square")
    norm_epsilon: float = option(1e-5, "added to variances", minimum=0.0)
    norm_first: bool = option(False, "normalise before each part of a layer, not after it")
    final_norm: bool = option(False, "normalise what the last layer gives")
    embedding_norm: bool = option(False, "normalise the embeddings (BART)")

    positions: Literal["vaswani", "marian", "learned", "relative"] = option(
        "vaswani", "sinusoids spaced as in the paper or as in Marian's own code, a table, or T5's distances"
    )
    max_length: int = option(512, "longest text, if positions have a table", minimum=1, unit="tokens")
    position_offset: int = option(0, "row of the first position in the table (BART: 2)", minimum=0)
    relative_buckets: int = option(32, "buckets of distances (relative)", minimum=4)
    max_distance: int = option(128, "longest distance that is told apart (relative)", minimum=2, unit="tokens")

    embedding_scale: bool = option(True, "multiply embeddings by the root of `hidden_size`")
    attention_scale: bool = option(True, "divide scores by the root of the head's size")
    shared_embeddings: bool = option(True, "source and target tokens have one table")
    tied_output: bool = option(True, "the table of target tokens is also the output's matrix")
    output_bias: bool = option(True, "logits have a bias")
    output_scale: bool = option(False, "divide features by the root of `hidden_size` before the output (T5)")

    dropout: float = option(0.1, "share of features dropped in training", minimum=0.0, maximum=0.95)
    attention_dropout: float = option(0.0, "share of attention weights dropped", minimum=0.0, maximum=0.95)
    activation_dropout: float = option(0.0, "share dropped inside feed-forward parts", minimum=0.0, maximum=0.95)

    def __post_init__(self) -> None:
        """Refuse fields that do not go together."""
        super().__post_init__()
        for name in ("encoder_heads", "decoder_heads"):
            if not self.head_size and self.hidden_size % getattr(self, name):
                raise ValueError(
                    f"`hidden_size` must be a multiple of `{name}`; received {self.hidden_size} and "
                    f"{getattr(self, name)}. Say `head_size` where heads have another size."
                )
        if self.shared_embeddings and self.target_size != self.vocab_size:
            raise ValueError(
                f"`shared_embeddings` needs one vocabulary; received `vocab_size` {self.vocab_size} and "
                f"`target_vocab_size` {self.target_vocab_size}."
            )
        if self.hidden_size % 2 and self.positions in ("vaswani", "marian"):
            raise ValueError(f"Sinusoids need an even `hidden_size`; received {self.hidden_size}.")

    @property
    def target_size(self) -> int:
        """V: rows of the table of target tokens."""
        return self.target_vocab_size or self.vocab_size

    @property
    def longest(self) -> int | None:
        """Longest text in tokens; None where positions have no table."""
        return None if self.positions == "relative" else self.max_length

    def size_of_heads(self, num_heads: int) -> int:
        """Features of a head."""
        return self.head_size or self.hidden_size // num_heads
