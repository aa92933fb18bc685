"""Families of Hugging Face encoder-decoders, a table each: how they write their config and name their weights.

Described against `Seq2SeqConfig`. Names are those of transformers (huggingface/transformers,
src/transformers/models/marian, bart, mbart and t5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nlp.models.families import activation_name
from nlp.models.seq2seq_config import Seq2SeqConfig


@dataclass(frozen=True)
class Seq2SeqFamily:
    """One family of checkpoints.

    Attributes:
        fields: our fields, with their keys and the values that stand for a missing key.
        fixed: our fields that have one value in the whole family.
        supported: keys with the only value that is supported; a missing key has it.
        source_table: names of the table of source tokens; the first that is there counts, the others are copies.
        target_table: the same of target tokens.
        output_table: the same of the output.
        modules: our parts and theirs; {} is the number of a layer.
        places: the positions' tables, of encoder and decoder.
        computed: what older versions saved and the network computes itself.
    """

    fields: Mapping[str, tuple[str, Any]]
    fixed: Mapping[str, Any]
    supported: Mapping[str, Any]
    source_table: tuple[str, ...]
    target_table: tuple[str, ...]
    output_table: tuple[str, ...]
    modules: Mapping[str, str]
    places: Mapping[str, str]
    computed: tuple[str, ...] = ()


_BART_FIELDS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 50265),
    "hidden_size": ("d_model", 1024),
    "encoder_layers": ("encoder_layers", 12),
    "decoder_layers": ("decoder_layers", 12),
    "encoder_heads": ("encoder_attention_heads", 16),
    "decoder_heads": ("decoder_attention_heads", 16),
    "encoder_intermediate_size": ("encoder_ffn_dim", 4096),
    "decoder_intermediate_size": ("decoder_ffn_dim", 4096),
    "activation": ("activation_function", "gelu"),
    "max_length": ("max_position_embeddings", 1024),
    "embedding_scale": ("scale_embedding", False),
    "dropout": ("dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.0),
    "activation_dropout": ("activation_dropout", 0.0),
}
_BART_MODULES = {
    f"{stack}.{part}": f"model.{stack}.layers.{{}}.{theirs}"
    for stack in ("encoder", "decoder")
    for part, theirs in (
        ("query", "self_attn.q_proj"),
        ("key", "self_attn.k_proj"),
        ("value", "self_attn.v_proj"),
        ("projection", "self_attn.out_proj"),
        ("norm", "self_attn_layer_norm"),
        ("cross_query", "encoder_attn.q_proj"),
        ("cross_key", "encoder_attn.k_proj"),
        ("cross_value", "encoder_attn.v_proj"),
        ("cross_projection", "encoder_attn.out_proj"),
        ("cross_norm", "encoder_attn_layer_norm"),
        ("inner", "fc1"),
        ("outer", "fc2"),
        ("feed_norm", "final_layer_norm"),
    )
} | {
    f"{stack}.{part}": f"model.{stack}.{theirs}"
    for stack in ("encoder", "decoder")
    for part, theirs in (("embedding_norm", "layernorm_embedding"), ("final_norm", "layer_norm"))
}
_BART_PLACES = {stack: f"model.{stack}.embed_positions.weight" for stack in ("encoder", "decoder")}
_BART_TABLES = ("model.shared.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")

_BART = Seq2SeqFamily(
    fields=_BART_FIELDS,
    fixed={"positions": "learned", "position_offset": 2, "embedding_norm": True},
    supported={"tie_word_embeddings": True, "normalize_before": False, "normalize_embedding": True},
    source_table=_BART_TABLES,
    target_table=_BART_TABLES,
    output_table=("lm_head.weight", *_BART_TABLES),
    modules=_BART_MODULES,
    places=_BART_PLACES,
)

_MARIAN = replace(
    _BART,
    fields=_BART_FIELDS
    | {
        "vocab_size": ("vocab_size", 58101),
        "target_vocab_size": ("decoder_vocab_size", 0),
        "shared_embeddings": ("share_encoder_decoder_embeddings", True),
    },
    fixed={"positions": "vaswani"},
    supported={
        "tie_word_embeddings": True,
        "normalize_before": False,
        "normalize_embedding": False,
        "add_final_layer_norm": False,
        "static_position_embeddings": True,
    },
    places={},
    computed=tuple(_BART_PLACES.values()),
)

_MBART = replace(
    _BART,
    fixed={**_BART.fixed, "norm_first": True, "final_norm": True},
    supported={"tie_word_embeddings": True, "normalize_before": True, "normalize_embedding": True},
)

_T5_TABLES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_T5_MODULES = {
    f"{stack}.{part}": f"{stack}.block.{{}}.layer.{theirs}"
    for stack, last in (("encoder", 1), ("decoder", 2))
    for part, theirs in (
        ("query", "0.SelfAttention.q"),
        ("key", "0.SelfAttention.k"),
        ("value", "0.SelfAttention.v"),
        ("projection", "0.SelfAttention.o"),
        ("norm", "0.layer_norm"),
        ("cross_query", "1.EncDecAttention.q"),
        ("cross_key", "1.EncDecAttention.k"),
        ("cross_value", "1.EncDecAttention.v"),
        ("cross_projection", "1.EncDecAttention.o"),
        ("cross_norm", "1.layer_norm"),
        ("inner", f"{last}.DenseReluDense.wi"),
        ("gated_inner", f"{last}.DenseReluDense.wi_0"),
        ("gate", f"{last}.DenseReluDense.wi_1"),
        ("outer", f"{last}.DenseReluDense.wo"),
        ("feed_norm", f"{last}.layer_norm"),
    )
} | {f"{stack}.final_norm": f"{stack}.final_layer_norm" for stack in ("encoder", "decoder")}

_T5 = Seq2SeqFamily(
    fields={
        "vocab_size": ("vocab_size", 32128),
        "hidden_size": ("d_model", 512),
        "head_size": ("d_kv", 64),
        "encoder_layers": ("num_layers", 6),
        "encoder_heads": ("num_heads", 8),
        "decoder_heads": ("num_heads", 8),
        "encoder_intermediate_size": ("d_ff", 2048),
        "decoder_intermediate_size": ("d_ff", 2048),
        "relative_buckets": ("relative_attention_num_buckets", 32),
        "max_distance": ("relative_attention_max_distance", 128),
        "norm_epsilon": ("layer_norm_epsilon", 1e-6),
        "dropout": ("dropout_rate", 0.1),
        "attention_dropout": ("dropout_rate", 0.1),
        "activation_dropout": ("dropout_rate", 0.1),
    },
    fixed={
        "positions": "relative",
        "norm": "rms",
        "norm_first": True,
        "final_norm": True,
        "use_bias": False,
        "attention_scale": False,
        "embedding_scale": False,
        "output_bias": False,
    },
    supported={},
    source_table=_T5_TABLES,
    target_table=_T5_TABLES,
    output_table=("lm_head.weight",),
    modules=_T5_MODULES,
    places={
        stack: f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        for stack in ("encoder", "decoder")
    },
    # The first T5 checkpoints have a bias for attention to the source that was never used.
    computed=("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",),
)

# By `model_type` in their config.json.
SEQ2SEQ_FAMILIES: dict[str, Seq2SeqFamily] = {"marian": _MARIAN, "bart": _BART, "mbart": _MBART, "t5": _T5}


def seq2seq_family(model_type: Any) -> Seq2SeqFamily:
    """The family of this `model_type`.

    Raises:
        ValueError: for an unknown one; the message names the known ones.
    """
    if model_type not in SEQ2SEQ_FAMILIES:
        raise ValueError(f"Translation models of {', '.join(SEQ2SEQ_FAMILIES)} can be read; this is {model_type!r}.")
    return SEQ2SEQ_FAMILIES[model_type]


def seq2seq_config(model_type: str, values: Mapping[str, Any], names: frozenset[str]) -> Seq2SeqConfig:
    """The network that a family's config describes.

    Args:
        model_type: a key of `SEQ2SEQ_FAMILIES`.
        values: of config.json.
        names: of the checkpoint's tensors: they say what a config leaves open.

    Raises:
        ValueError: for a choice that is not supported; the message names it.
    """
    family = seq2seq_family(model_type)
    for key, supported in family.supported.items():
        if values.get(key, supported) not in (supported, None):
            raise ValueError(f"{key}={values[key]!r} is not supported in a {model_type} model, only {supported!r} is.")
    fields: dict[str, Any] = dict(family.fixed)
    for name, (key, default) in family.fields.items():
        value = values.get(key)
        fields[name] = default if value is None else value
    if model_type == "t5":
        fields |= _t5_fields(values, fields, names)
    fields["activation"] = activation_name(fields["activation"])
    if fields.get("target_vocab_size") == fields["vocab_size"]:
        fields["target_vocab_size"] = 0
    return Seq2SeqConfig.from_dict(fields)


def _t5_fields(values: Mapping[str, Any], fields: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """What T5 says in another way: "gated-gelu", and two meanings of `tie_word_embeddings`."""
    *gated, activation = str(values.get("feed_forward_proj", "relu")).split("-")
    if gated not in ([], ["gated"]):
        raise ValueError(f"feed_forward_proj={values['feed_forward_proj']!r} is not supported; relu, gated-gelu are.")
    # transformers 5 writes `tie_word_embeddings` true in any case, and the second key besides.
    tied = values.get("scale_decoder_outputs", values.get("tie_word_embeddings", True))
    return {
        "decoder_layers": values.get("num_decoder_layers") or fields["encoder_layers"],
        # T5's own "gated-gelu" means the approximation.
        "activation": "gelu_new" if gated and activation == "gelu" else activation,
        "gated": bool(gated),
        "output_scale": bool(tied),
        "tied_output": "lm_head.weight" not in names,
    }


def marian_values(config: Seq2SeqConfig) -> dict[str, Any]:
    """The keys of a Marian config.json for this network.

    Raises:
        ValueError: where Marian's classes in transformers cannot express it; the message names the fields.
    """
    expected = {
        "decoder_unit": "attention",
        "gated": False,
        "use_bias": True,
        "norm": "layer",
        "norm_epsilon": 1e-5,
        "norm_first": False,
        "final_norm": False,
        "embedding_norm": False,
        "positions": "vaswani",
        "attention_scale": True,
        "tied_output": True,
        "output_scale": False,
    }
    fields = config.to_dict()
    wrong = {name: fields[name] for name, value in expected.items() if fields[name] != value}
    if config.head_size not in (0, config.hidden_size // config.decoder_heads):
        wrong["head_size"] = config.head_size
    if wrong:
        given = ", ".join(f"{name}={value!r}" for name, value in wrong.items())
        raise ValueError(f"Hugging Face's Marian has no network with {given}; use `save`.")
    values = {key: fields[name] for name, (key, _) in _MARIAN.fields.items()}
    names = {"silu": "swish", "gelu_tanh": "gelu_new"}
    return values | {
        "activation_function": names.get(config.activation, config.activation),
        "decoder_vocab_size": config.target_size,
        "num_hidden_layers": config.encoder_layers,
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
        "static_position_embeddings": True,
        "normalize_before": False,
        "normalize_embedding": False,
        "add_final_layer_norm": False,
    }
