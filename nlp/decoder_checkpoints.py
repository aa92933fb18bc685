"""Hugging Face directories of decoders (GPT-2) as text classifiers; keras-hub places the weights of the backbone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nlp.models.families import HeadKind
from nlp.models.heads import HeadConfig
from shared.pretrained import read_safetensors

if TYPE_CHECKING:
    import keras

    from nlp.checkpoints import Kind

# Families of decoders, by Hugging Face's `model_type`.
DECODERS = ("gpt2",)
# A single linear map without bias, after the last token; what GPT2ForSequenceClassification has.
_HEAD_WEIGHT = "score.weight"
# Tied to the embeddings, and causal masks that older versions saved.
_LEFT_OUT = ("lm_head.weight", ".attn.bias", ".attn.masked_bias")
# Heads of other tasks.
_OTHER_HEADS = ("classifier.", "qa_outputs.", "multiple_choice_head.")
_LAYER_PARTS = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")


@dataclass(frozen=True)
class PretrainedDecoder:
    """A pretrained decoder in a directory; has the attributes and methods of `nlp.checkpoints.PretrainedText`."""

    family: str
    config: Mapping[str, Any]
    head_config: HeadConfig | None
    labels: tuple[str, ...] | None
    kind: Kind | None
    tokenizer_directory: Path
    max_length: int
    licence: str
    source: str

    def architecture(self, *, per_text: bool) -> dict[str, Any]:
        """The recipe of the encoder for `nlp.models.network.build_network`.

        Raises:
            ValueError: for features of each token: a decoder's token has not read what comes after it.
        """
        if not per_text:
            raise ValueError(
                f"{self.source} is a {self.family} checkpoint, which reads from left to right; it classifies texts. "
                "Choose an encoder, such as minilm_l6, to answer for each token."
            )
        return {"kind": "decoder", "family": self.family, "encoder": dict(self.config), "per_text": True}

    def load_weights(self, encoder: keras.Model, head: keras.Model | None = None) -> None:
        """Put the checkpoint's weights into an encoder built from `architecture`, and its head into `head`.

        Raises:
            ValueError: where the checkpoint lacks weights, has some that the encoder has no places for, or some of
                other sizes.
        """
        import keras_hub

        tensors = read_safetensors(self.tokenizer_directory)
        ours = {name.removeprefix("transformer."): value for name, value in tensors.items() if _is_backbones(name)}
        self._require_names(set(ours))
        loaded = keras_hub.models.Backbone.from_preset(str(self.tokenizer_directory))
        held = sum(value.size for value in ours.values())
        if held != loaded.count_params():
            raise ValueError(
                f"{self.tokenizer_directory} has {held} weights without its head; a {self.family} network of its "
                f"config has places for {loaded.count_params()}. The checkpoint is damaged or of another kind."
            )
        encoder.get_layer("backbone").set_weights(loaded.get_weights())
        if head is not None:
            weight = tensors.get(_HEAD_WEIGHT)
            places = head.get_layer("logits")
            if weight is None or weight.shape[::-1] != tuple(places.kernel.shape):
                raise ValueError(f"{self.tokenizer_directory} has no {_HEAD_WEIGHT} of shape {places.kernel.shape}.")
            places.kernel.assign(weight.T)
            places.bias.assign(np.zeros(places.bias.shape, np.float32))

    def _require_names(self, found: set[str]) -> None:
        layers = (f"h.{number}.{part}" for number in range(self.config["num_layers"]) for part in _LAYER_PARTS)
        expected = {f"{part}.{kind}" for part in (*layers, "ln_f") for kind in ("weight", "bias")}
        expected |= {"wte.weight", "wpe.weight"}
        faults = (("lacks", expected - found), ("has weights that its network has no places for:", found - expected))
        for fault, names in faults:
            if names:
                first = ", ".join(sorted(names)[:3])
                raise ValueError(f"{self.tokenizer_directory} {fault} {first} ({len(names)} in all).")

    def new_head_config(self, kind: HeadKind) -> HeadConfig:
        """A single linear map, as the family's own."""
        return HeadConfig(kind=kind, dropout=0.0)

    def load_hidden_layer(self, head: keras.Model, kind: HeadKind) -> bool:
        """There is none in this family."""
        return False


def _is_backbones(name: str) -> bool:
    return not name.endswith((_HEAD_WEIGHT, *_LEFT_OUT)) and not name.startswith(_OTHER_HEADS)


def decoder_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of keras-hub's backbone, from config.json.

    Raises:
        ValueError: for what the backbone computes otherwise, or a key that is missing.
    """
    expected = {
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    }
    for key, only in expected.items():
        given = values.get(key, only)
        if given != only and not (isinstance(only, float) and math.isclose(given, only)):
            raise ValueError(f"`{key}` must be {only!r} in a gpt2 checkpoint; config.json has {given!r}.")
    defaults = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
    sizes = {key: int(values.get(key, default)) for key, default in defaults.items()}
    inner = values.get("n_inner") or 4 * sizes["n_embd"]
    if inner != 4 * sizes["n_embd"]:
        raise ValueError(f"`n_inner` must be four times `n_embd` in a gpt2 checkpoint; config.json has {inner}.")
    return {
        "vocabulary_size": sizes["vocab_size"],
        "num_layers": sizes["n_layer"],
        "num_heads": sizes["n_head"],
        "hidden_dim": sizes["n_embd"],
        "intermediate_dim": inner,
        "dropout": float(values.get("resid_pdrop", 0.1)),
        "max_sequence_length": sizes["n_positions"],
    }
