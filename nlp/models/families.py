"""Families of Hugging Face text encoders, a table each: how they write their config and name their weights.

A family is described against `EncoderConfig` and `HeadConfig`, in both directions, so that what is read can be written
again. Names are those of transformers 5 (huggingface/transformers, src/transformers/models), where they have been the
same since version 2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from nlp.models.encoder import EncoderConfig
from nlp.models.heads import HeadConfig

HeadKind: TypeAlias = Literal["classification", "tokens"]

# Their names of activations; several mean the same.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
_THEIR_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu", "tanh": "tanh"}


@dataclass(frozen=True)
class HeadTable:
    """A family's head: the modules it consists of, and where its config says how they work.

    `dropout` and `hidden_dropout` name keys, of which the first with a number counts; `hidden` is None where the head
    is a single linear map.
    """

    logits: str
    dropout: tuple[str, ...]
    hidden: str | None = None
    hidden_activation: str = "tanh"
    hidden_activation_key: str | None = None
    hidden_dropout: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """One family of checkpoints.

    Attributes:
        class_name: the first part of its classes' names, "Bert" in BertForTokenClassification.
        prefix: of the encoder's weights beside a head.
        fields: our fields, with their keys and the values that stand for a missing key.
        fixed: our fields that have one value in the whole family.
        modules: our parts and theirs, below the prefix; {} is the number of a layer.
        classification: the head for texts.
        tokens: the head for tokens.
        defaults: further keys that the heads look at, with the values that stand for a missing key.
        always_projects: embeddings are projected even where they are as wide as the layers.
    """

    class_name: str
    prefix: str
    fields: Mapping[str, tuple[str, Any]]
    fixed: Mapping[str, Any]
    modules: Mapping[str, str]
    classification: HeadTable
    tokens: HeadTable
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    always_projects: bool = False

    def head(self, kind: HeadKind) -> HeadTable:
        """The table of one kind of head."""
        return self.classification if kind == "classification" else self.tokens


_BERT_FIELDS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 30522),
    "num_layers": ("num_hidden_layers", 12),
    "hidden_size": ("hidden_size", 768),
    "num_heads": ("num_attention_heads", 12),
    "intermediate_size": ("intermediate_size", 3072),
    "activation": ("hidden_act", "gelu"),
    "dropout": ("hidden_dropout_prob", 0.1),
    "attention_dropout": ("attention_probs_dropout_prob", 0.1),
    "norm_epsilon": ("layer_norm_eps", 1e-12),
    "max_length": ("max_position_embeddings", 512),
    "pad_id": ("pad_token_id", 0),
    "num_segments": ("type_vocab_size", 2),
}
_EMBEDDINGS = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "segments": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
}
_BERT_MODULES = _EMBEDDINGS | {
    "query": "encoder.layer.{}.attention.self.query",
    "key": "encoder.layer.{}.attention.self.key",
    "value": "encoder.layer.{}.attention.self.value",
    "attention_output": "encoder.layer.{}.attention.output.dense",
    "attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "intermediate": "encoder.layer.{}.intermediate.dense",
    "feed_output": "encoder.layer.{}.output.dense",
    "feed_norm": "encoder.layer.{}.output.LayerNorm",
}
_BERT_DROPOUT = ("classifier_dropout", "hidden_dropout_prob")

_BERT = Family(
    class_name="Bert",
    prefix="bert.",
    fields=_BERT_FIELDS,
    fixed={},
    modules=_BERT_MODULES,
    classification=HeadTable("classifier", _BERT_DROPOUT, hidden="bert.pooler.dense"),
    tokens=HeadTable("classifier", _BERT_DROPOUT),
)

_DISTILBERT_LAYER = "transformer.layer.{}."
_DISTILBERT = Family(
    class_name="DistilBert",
    prefix="distilbert.",
    fields={
        "vocab_size": ("vocab_size", 30522),
        "num_layers": ("n_layers", 6),
        "hidden_size": ("dim", 768),
        "num_heads": ("n_heads", 12),
        "intermediate_size": ("hidden_dim", 3072),
        "activation": ("activation", "gelu"),
        "dropout": ("dropout", 0.1),
        "attention_dropout": ("attention_dropout", 0.1),
        "max_length": ("max_position_embeddings", 512),
        "pad_id": ("pad_token_id", 0),
    },
    fixed={"num_segments": 0, "norm_epsilon": 1e-12},
    modules=_EMBEDDINGS
    | {
        "query": _DISTILBERT_LAYER + "attention.q_lin",
        "key": _DISTILBERT_LAYER + "attention.k_lin",
        "value": _DISTILBERT_LAYER + "attention.v_lin",
        "attention_output": _DISTILBERT_LAYER + "attention.out_lin",
        "attention_norm": _DISTILBERT_LAYER + "sa_layer_norm",
        "intermediate": _DISTILBERT_LAYER + "ffn.lin1",
        "feed_output": _DISTILBERT_LAYER + "ffn.lin2",
        "feed_norm": _DISTILBERT_LAYER + "output_layer_norm",
    },
    classification=HeadTable("classifier", ("seq_classif_dropout",), hidden="pre_classifier", hidden_activation="relu"),
    tokens=HeadTable("classifier", ("dropout",)),
    defaults={"seq_classif_dropout": 0.2},
)

_ROBERTA = dataclasses.replace(
    _BERT,
    class_name="Roberta",
    prefix="roberta.",
    fields=_BERT_FIELDS | {"pad_id": ("pad_token_id", 1)},
    fixed={"positions": "after_pad"},
    classification=HeadTable(
        "classifier.out_proj", _BERT_DROPOUT, hidden="classifier.dense", hidden_dropout=_BERT_DROPOUT
    ),
)

_ELECTRA = dataclasses.replace(
    _BERT,
    class_name="Electra",
    prefix="electra.",
    fields=_BERT_FIELDS
    | {
        "hidden_size": ("hidden_size", 256),
        "num_heads": ("num_attention_heads", 4),
        "intermediate_size": ("intermediate_size", 1024),
        "embedding_size": ("embedding_size", 128),
    },
    fixed={"embedding_projection": "after_norm"},
    modules=_BERT_MODULES | {"embedding_projection": "embeddings_project"},
    classification=HeadTable(
        "classifier.out_proj",
        _BERT_DROPOUT,
        hidden="classifier.dense",
        hidden_activation="gelu",
        hidden_dropout=_BERT_DROPOUT,
    ),
)

_ALBERT_LAYER = "encoder.albert_layer_groups.{}.albert_layers.0."
_ALBERT = Family(
    class_name="Albert",
    prefix="albert.",
    fields=_BERT_FIELDS
    | {
        "vocab_size": ("vocab_size", 30000),
        "hidden_size": ("hidden_size", 4096),
        "num_heads": ("num_attention_heads", 64),
        "intermediate_size": ("intermediate_size", 16384),
        "activation": ("hidden_act", "gelu_new"),
        "dropout": ("hidden_dropout_prob", 0.0),
        "attention_dropout": ("attention_probs_dropout_prob", 0.0),
        "embedding_size": ("embedding_size", 128),
        "num_weight_groups": ("num_hidden_groups", 1),
    },
    fixed={"embedding_projection": "after_norm"},
    modules=_EMBEDDINGS
    | {
        "embedding_projection": "encoder.embedding_hidden_mapping_in",
        "query": _ALBERT_LAYER + "attention.query",
        "key": _ALBERT_LAYER + "attention.key",
        "value": _ALBERT_LAYER + "attention.value",
        "attention_output": _ALBERT_LAYER + "attention.dense",
        "attention_norm": _ALBERT_LAYER + "attention.LayerNorm",
        "intermediate": _ALBERT_LAYER + "ffn",
        "feed_output": _ALBERT_LAYER + "ffn_output",
        "feed_norm": _ALBERT_LAYER + "full_layer_layer_norm",
    },
    classification=HeadTable("classifier", ("classifier_dropout_prob",), hidden="albert.pooler"),
    tokens=HeadTable("classifier", ("classifier_dropout_prob", "hidden_dropout_prob")),
    defaults={"classifier_dropout_prob": 0.1},
    always_projects=True,
)

_DEBERTA_V2 = Family(
    class_name="DebertaV2",
    prefix="deberta.",
    fields=_BERT_FIELDS
    | {
        "vocab_size": ("vocab_size", 128100),
        "num_layers": ("num_hidden_layers", 24),
        "hidden_size": ("hidden_size", 1536),
        "num_heads": ("num_attention_heads", 24),
        "intermediate_size": ("intermediate_size", 6144),
        "norm_epsilon": ("layer_norm_eps", 1e-7),
        "num_segments": ("type_vocab_size", 0),
        "shared_projections": ("share_att_key", False),
        "conv_size": ("conv_kernel_size", 0),
        "conv_groups": ("conv_groups", 1),
        "conv_activation": ("conv_act", "tanh"),
    },
    fixed={"embedding_projection": "before_norm"},
    modules=_EMBEDDINGS
    | {
        "narrow_projection": "embeddings.embed_proj",
        "distances": "encoder.rel_embeddings",
        "distance_norm": "encoder.LayerNorm",
        "convolution": "encoder.conv.conv",
        "convolution_norm": "encoder.conv.LayerNorm",
    }
    | {part: _BERT_MODULES[part] for part in ("attention_output", "attention_norm", "intermediate")}
    | {part: _BERT_MODULES[part] for part in ("feed_output", "feed_norm")}
    | {
        "query": "encoder.layer.{}.attention.self.query_proj",
        "key": "encoder.layer.{}.attention.self.key_proj",
        "value": "encoder.layer.{}.attention.self.value_proj",
        "distance_key": "encoder.layer.{}.attention.self.pos_key_proj",
        "distance_query": "encoder.layer.{}.attention.self.pos_query_proj",
    },
    classification=HeadTable(
        "classifier",
        ("cls_dropout", "hidden_dropout_prob"),
        hidden="pooler.dense",
        hidden_activation="gelu",
        hidden_activation_key="pooler_hidden_act",
        hidden_dropout=("pooler_dropout",),
    ),
    tokens=HeadTable("classifier", ("hidden_dropout_prob",)),
    defaults={"pooler_dropout": 0.0},
)

# By `model_type` in their config.json.
FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "distilbert": _DISTILBERT,
    "roberta": _ROBERTA,
    "xlm-roberta": dataclasses.replace(_ROBERTA, class_name="XLMRoberta"),
    "camembert": dataclasses.replace(_ROBERTA, class_name="Camembert"),
    "electra": _ELECTRA,
    "albert": _ALBERT,
    "deberta-v2": _DEBERTA_V2,
}

# What else a config may say, with the only value that is supported; a missing key has it.
_SUPPORTED: dict[str, Any] = {
    "is_decoder": False,
    "add_cross_attention": False,
    "position_embedding_type": "absolute",
    "inner_group_num": 1,
    "pruned_heads": {},
    "quantization_config": None,
}


def family_of(model_type: Any) -> Family:
    """The family of this `model_type`.

    Raises:
        ValueError: for an unknown one; the message names the known ones.
    """
    if model_type not in FAMILIES:
        known = f"{', '.join(FAMILIES)} can be read, and gpt2 as a text classifier"
        raise ValueError(f"Checkpoints of the families {known}; this is {model_type!r}.")
    return FAMILIES[model_type]


def encoder_config(model_type: str, values: Mapping[str, Any]) -> EncoderConfig:
    """The encoder that a family's config describes.

    Raises:
        ValueError: for a choice that is not supported; the message names it.
    """
    family = family_of(model_type)
    for key, supported in _SUPPORTED.items():
        if values.get(key, supported) not in (supported, None):
            raise ValueError(f"{key}={values[key]!r} is not supported in a text encoder, only {supported!r} is.")
    fields = dict(family.fixed)
    for name, (key, default) in family.fields.items():
        value = values.get(key)
        fields[name] = default if value is None else value
    for name in ("activation", "conv_activation"):
        if name in fields:
            fields[name] = activation_name(fields[name])
    if fields.get("embedding_size") == fields["hidden_size"] and not family.always_projects:
        fields["embedding_projection"] = "none"
    if fields.get("positions") == "after_pad":
        fields["max_length"] -= fields["pad_id"] + 1
    if family is _DEBERTA_V2:
        fields |= _deberta_fields(values, fields)
    return EncoderConfig.from_dict(fields)


def activation_name(name: Any) -> str:
    """Our name of an activation of theirs.

    Raises:
        ValueError: for an unknown one.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(f"The activation {name!r} is not supported; {', '.join(_ACTIVATIONS)} are.")
    return _ACTIVATIONS[name]


def _deberta_fields(values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """What only DeBERTa has; distances may also be left out of its attention."""
    terms = values.get("pos_att_type") or ()
    terms = terms.lower().split("|") if isinstance(terms, str) else terms
    relative = bool(values.get("relative_attention", False))
    width, heads = fields["hidden_size"], fields["num_heads"]
    unsupported = {
        "pos_att_type without relative_attention": terms and not relative,
        "attention_head_size": values.get("attention_head_size", width // heads) != width // heads,
        "pooler_hidden_size": values.get("pooler_hidden_size", width) != width,
    }
    if any(unsupported.values()):
        names = ", ".join(name for name, found in unsupported.items() if found)
        raise ValueError(f"This DeBERTa config is not supported: {names}. Heads must divide the hidden size evenly.")
    embedding_size = values.get("embedding_size") or width
    longest = values.get("max_relative_positions") or -1
    return {
        "positions": "absolute" if values.get("position_biased_input", True) else "none",
        "embedding_size": embedding_size,
        "embedding_projection": "none" if embedding_size == width else "before_norm",
        "attention": "disentangled" if relative else "absolute",
        "distance_terms": tuple(sorted(term.strip() for term in terms)),
        "distance_buckets": max(0, values.get("position_buckets") or 0),
        "max_distance": longest if longest > 0 else fields["max_length"],
        "distance_norm": "layer_norm" in str(values.get("norm_rel_ebd") or "none").lower(),
    }


def config_values(model_type: str, config: EncoderConfig) -> dict[str, Any]:
    """The keys of a family's config.json for this encoder: the way back from `encoder_config`.

    Raises:
        ValueError: where the family cannot express it; the message names the fields.
    """
    family = family_of(model_type)
    fields = config.to_dict() | {"embedding_size": config.embedding_width}
    values = {key: fields[name] for name, (key, _) in family.fields.items()}
    for name in ("activation", "conv_activation"):
        if name in family.fields:
            values[family.fields[name][0]] = _THEIR_ACTIVATIONS[fields[name]]
    if family.fixed.get("positions") == "after_pad":
        values["max_position_embeddings"] = config.num_position_rows
    if family is _DEBERTA_V2:
        values |= {
            "position_biased_input": config.positions != "none",
            "embedding_size": config.embedding_width,
            "relative_attention": config.attention == "disentangled",
            "pos_att_type": list(config.distance_terms),
            "position_buckets": config.distance_buckets or -1,
            "max_relative_positions": config.max_distance,
            "norm_rel_ebd": "layer_norm" if config.distance_norm else "none",
        }
    _require_equal(model_type, encoder_config(model_type, values), config)
    return values


def _require_equal(model_type: str, expressed: EncoderConfig, wanted: EncoderConfig) -> None:
    width = {"embedding_size": wanted.embedding_width}
    ours, theirs = wanted.to_dict() | width, expressed.to_dict() | {"embedding_size": expressed.embedding_width}
    different = [f"{name}={ours[name]!r}" for name in ours if ours[name] != theirs[name]]
    if different:
        raise ValueError(f"A {model_type} checkpoint cannot express {', '.join(different)}. Choose another family.")


def head_config(model_type: str, kind: HeadKind, values: Mapping[str, Any]) -> HeadConfig:
    """The family's head of one kind, as its config describes it."""
    family = family_of(model_type)
    table = family.head(kind)
    values = {**dict(family.fields.values()), **family.defaults, **_said(values)}
    if table.hidden is None:
        return HeadConfig(kind=kind, dropout=_first_number(table.dropout, values))
    activation = values.get(table.hidden_activation_key or "", table.hidden_activation)
    return HeadConfig(
        kind=kind,
        hidden_activation=activation_name(activation),  # type: ignore[arg-type]
        hidden_dropout=_first_number(table.hidden_dropout, values),
        dropout=_first_number(table.dropout, values),
    )


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _first_number(keys: tuple[str, ...], values: Mapping[str, Any]) -> float:
    return next((float(values[key]) for key in keys if key in values), 0.0)


def head_values(model_type: str, config: HeadConfig) -> dict[str, Any]:
    """The keys of a family's config.json for this head: the way back from `head_config`.

    Raises:
        ValueError: where the family has no such head.
    """
    table = family_of(model_type).head(config.kind)
    values: dict[str, Any] = dict.fromkeys(table.hidden_dropout[:1], config.hidden_dropout)
    values |= dict.fromkeys(table.dropout[:1], config.dropout)
    if table.hidden_activation_key and config.hidden_activation:
        values[table.hidden_activation_key] = _THEIR_ACTIVATIONS[config.hidden_activation]
    expressed = head_config(model_type, config.kind, values)
    if expressed != config:
        raise ValueError(f"A {model_type} checkpoint cannot express the head {config}; its own is {expressed}.")
    return values
