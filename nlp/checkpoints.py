"""Hugging Face directories of text encoders, read and written: config.json and model.safetensors.

Tokenizer files are `nlp.tokenization`'s. Nothing is guessed: an unknown family, a weight without a place or a place
without a weight is an error. Only the heads of pretraining (masked words and the like), buffers and a pooler that no
head uses are left out, and logged.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from nlp.decoder_checkpoints import DECODERS, PretrainedDecoder, decoder_config
from nlp.models.encoder import EncoderConfig
from nlp.models.families import Family, HeadKind, config_values, encoder_config, family_of, head_config, head_values
from nlp.models.heads import HeadConfig
from nlp.placement import Place, linear_places, norm_places
from shared.pretrained import Source, assign_weights, detect_layout, read_json, read_safetensors

if TYPE_CHECKING:
    import keras

    from nlp.models.network import TextNetwork

logger = logging.getLogger(__name__)

Kind: TypeAlias = Literal["classification", "multi_label", "regression", "tokens"]

_HEADS: dict[str, HeadKind] = {"ForSequenceClassification": "classification", "ForTokenClassification": "tokens"}
_PROBLEMS: dict[str, Kind] = {
    "single_label_classification": "classification",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}
# Heads of pretraining and of other tasks, and buffers that older versions saved.
_LEFT_OUT = re.compile(
    r"(cls|lm_head|qa_outputs|vocab_\w+|predictions|sop_classifier|generator_\w+|discriminator_\w+|\w+_predictions)\."
    r"|.*\.(position_ids|token_type_ids)$"
)
# Tokenizers without a limit write this or more (transformers, VERY_LARGE_INTEGER).
_NO_LIMIT = 10**9


@dataclass(frozen=True)
class PretrainedText:
    """A pretrained text encoder in a directory: what it is, and how its weights get into a built network.

    `head_config`, `labels` (in the order of the logits) and `kind` are those of its own head; None without one.
    `tokenizer_directory` holds the tokenizer's files; `max_length` is the longest input in tokens, specials included.
    """

    family: str
    config: EncoderConfig
    head_config: HeadConfig | None
    labels: tuple[str, ...] | None
    kind: Kind | None
    tokenizer_directory: Path
    max_length: int
    licence: str
    source: str

    def architecture(self, *, per_text: bool) -> dict[str, Any]:
        """The recipe of the encoder for `nlp.models.network.build_network`."""
        return {
            "kind": "transformer",
            "family": self.family,
            "encoder": self.config.to_dict(),
            "per_text": per_text,
        }

    def load_weights(self, encoder: keras.Model, head: keras.Model | None = None) -> None:
        """Put the checkpoint's weights into an encoder built from `config`, and its head into one from `head_config`.

        Without `head` the checkpoint's own head stays behind.

        Raises:
            ValueError: naming weights without a place, places without a weight, and unequal shapes.
        """
        family = family_of(self.family)
        tensors = _tensors(self.tokenizer_directory, family)
        places = encoder_places(encoder, self.config, family)
        own = () if self.head_config is None else _head_modules(family.head(self.head_config.kind))
        if head is not None:
            if self.head_config is None:
                raise ValueError(f"{self.source} has no head. Load the encoder alone, and train a new head.")
            places |= head_places(head, family, self.head_config.kind)
        elif own:
            tensors = {name: value for name, value in tensors.items() if not name.startswith(own)}
        assign_weights(places, _without_poolers(tensors, places, family))

    def new_head_config(self, kind: HeadKind) -> HeadConfig:
        """The head that the family's checkpoints have for such a task: what a new one should look like."""
        return head_config(self.family, kind, read_json(self.tokenizer_directory / "config.json"))

    def load_hidden_layer(self, head: keras.Model, kind: HeadKind) -> bool:
        """Start a new head's hidden layer from the checkpoint's (BERT's pooler); whether it has one that fits."""
        family = family_of(self.family)
        places = {
            name: place
            for name, place in head_places(head, family, kind).items()
            if not name.startswith(f"{family.head(kind).logits}.")
        }
        tensors = _tensors(self.tokenizer_directory, family)
        found = {name: tensors[name] for name in places if name in tensors}
        if not places or any(name not in found or found[name].shape != p.shape for name, p in places.items()):
            return False
        assign_weights(places, found)
        return True


Pretrained: TypeAlias = PretrainedText | PretrainedDecoder


def load_pretrained_text(source: Source) -> Pretrained:
    """What a resolved reference stands for (`shared.pretrained.resolve` with `nlp.presets.PRESETS`).

    Raises:
        ValueError: for a directory that is no Hugging Face text encoder of a known family.
    """
    assert source.directory is not None
    if source.record is None:
        return read_hugging_face(source.directory)
    directory = source.directory / source.record.get("package", {}).get("file", "")
    return read_hugging_face(directory, licence=source.record["licence"], source=source.record["source"])


def read_hugging_face(directory: Path | str, *, licence: str | None = None, source: str | None = None) -> Pretrained:
    """The encoder or decoder in a Hugging Face directory, and its head where it has one.

    Args:
        directory: with config.json, .safetensors weights and tokenizer files.
        licence: of the weights; left out, what the directory's model card says.
        source: where the weights come from; left out, the directory's name.

    Raises:
        ValueError: for an unknown family, an unsupported choice in its config, or weights that are no safetensors.
    """
    directory = Path(directory)
    layout = detect_layout(directory)
    if layout != "hugging_face":
        raise ValueError(f"{directory} is no Hugging Face text encoder; its layout is {layout}.")
    values = read_json(directory / "config.json")
    family = str(values.get("model_type"))
    head = next((_HEADS[end] for end in _HEADS if _architecture(values).endswith(end)), None)
    labels = _labels(values) if head else None
    described: dict[str, Any] = {
        "family": family,
        "labels": labels,
        "kind": _kind(head, values, labels) if head and labels else None,
        "tokenizer_directory": directory,
        "licence": licence or _licence(directory),
        "source": source or directory.name,
    }
    try:
        if family in DECODERS:
            decoder = decoder_config(values)
            return PretrainedDecoder(
                **described,
                config=decoder,
                head_config=HeadConfig(kind="classification", dropout=0.0) if head == "classification" else None,
                max_length=_max_length(directory, decoder["max_sequence_length"]),
            )
        config = encoder_config(family, values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{directory / 'config.json'}: {error}") from error
    return PretrainedText(
        **described,
        config=config,
        head_config=head_config(family, head, values) if head else None,
        max_length=_max_length(directory, config.max_length),
    )


def write_hugging_face(
    directory: Path | str,
    *,
    family: str,
    config: EncoderConfig,
    encoder: keras.Model,
    head_config: HeadConfig | None = None,
    head: keras.Model | None = None,
    labels: Sequence[str] = (),
    kind: Kind = "classification",
) -> None:
    """Write config.json and model.safetensors, which transformers loads; the tokenizer's files are the caller's.

    Args:
        directory: made where it is missing.
        family: a key of `nlp.models.families.FAMILIES`; "bert" for an encoder trained from scratch.
        config: what `encoder` was built from.
        encoder: with any precision; weights are written as float32.
        head_config: what `head` was built from; None writes the encoder alone.
        head: the head.
        labels: in the order of the logits.
        kind: what the head answers.

    Raises:
        ValueError: where the family cannot express the encoder or the head.
    """
    from safetensors.numpy import save_file

    table = family_of(family)
    values: dict[str, Any] = {"model_type": family, **config_values(family, config)}
    places = encoder_places(encoder, config, table)
    if head is None or head_config is None:
        values["architectures"] = [f"{table.class_name}Model"]
        places = {name.removeprefix(table.prefix): place for name, place in places.items()}
    else:
        end = next(end for end, kind_of_head in _HEADS.items() if kind_of_head == head_config.kind)
        values |= {"architectures": [table.class_name + end], **head_values(family, head_config)}
        values |= _label_values(labels, kind)
        places |= head_places(head, table, head_config.kind)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    tensors = {name: np.ascontiguousarray(place.value(), np.float32) for name, place in places.items()}
    # transformers asks for the framework's name.
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def write_network(directory: Path | str, network: TextNetwork, *, labels: Sequence[str], kind: Kind) -> None:
    """As `write_hugging_face`, for the network of a pipeline; one trained from scratch is written as BERT.

    Raises:
        ValueError: for what no family can express: a recurrent network, a conditional random field, a mean over tokens.
    """
    architecture = network.architecture
    if architecture.get("token_pooling") == "mean":
        raise ValueError("Checkpoints of Hugging Face look at a text's first token; use `save` for a mean over tokens.")
    if architecture["kind"] != "transformer" or architecture.get("crf"):
        if architecture["kind"] == "decoder":
            raise ValueError(f"{architecture['family']} networks are read from Hugging Face, not written; use `save`.")
        what = "a conditional random field" if architecture.get("crf") else "a recurrent network"
        raise ValueError(f"Checkpoints of Hugging Face have no {what.removeprefix('a ')}; use `save` for {what}.")
    write_hugging_face(
        directory,
        family=architecture.get("family", "bert"),
        config=EncoderConfig.from_dict(architecture["encoder"]),
        encoder=network.encoder,
        head_config=HeadConfig.from_dict(architecture["head"]),
        head=network.head,
        labels=labels,
        kind=kind,
    )


# Config.


def _architecture(values: Mapping[str, Any]) -> str:
    return str((values.get("architectures") or [""])[0])


def _labels(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Labels by number; transformers leaves them out of the config where they are LABEL_0 and LABEL_1."""
    names = values.get("id2label")
    if names:
        return tuple(str(names[key]) for key in sorted(names, key=int))
    return tuple(f"LABEL_{number}" for number in range(values.get("num_labels") or 2))


def _kind(head: HeadKind, values: Mapping[str, Any], labels: Sequence[str]) -> Kind:
    if head == "tokens":
        return "tokens"
    problem = values.get("problem_type")
    if problem is None:  # as transformers decides
        return "regression" if len(labels) == 1 else "classification"
    if problem not in _PROBLEMS:
        raise ValueError(f"`problem_type` must be one of {', '.join(_PROBLEMS)}; config.json has {problem!r}.")
    return _PROBLEMS[problem]


def _label_values(labels: Sequence[str], kind: Kind) -> dict[str, Any]:
    values: dict[str, Any] = {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    problem = next((name for name, meaning in _PROBLEMS.items() if meaning == kind), None)
    return values | ({"problem_type": problem} if problem else {})


def _max_length(directory: Path, max_length: int) -> int:
    file = directory / "tokenizer_config.json"
    limit = read_json(file).get("model_max_length") if file.exists() else None
    return min(max_length, int(limit)) if limit and limit < _NO_LIMIT else max_length


def _licence(directory: Path) -> str:
    """The licence in the head of the model card, README.md."""
    card = directory / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.exists() else ""
    found = re.match(r"---\n(?:.*\n)*?license:[ ]*(\S+)", text)
    return found.group(1) if found else "not stated"


# Weights.


def encoder_places(encoder: keras.Model, config: EncoderConfig, family: Family) -> dict[str, Place]:
    """The place of each of the encoder's tensors, by its name in a checkpoint with a head."""
    layers = {layer.name: layer for layer in encoder.layers}
    embeddings = layers["embeddings"]
    places: dict[str, Place] = {}

    def module(part: str, number: int = 0) -> str:
        return family.prefix + family.modules[part].format(number)

    for part in ("words", "positions", "segments"):
        if getattr(embeddings, part) is not None:
            places[f"{module(part)}.weight"] = Place(getattr(embeddings, part))
    places |= norm_places(module("embedding_norm"), embeddings.norm)
    if embeddings.projection is not None:
        places |= linear_places(module("narrow_projection"), embeddings.projection)
    if "embedding_projection" in layers:
        places |= linear_places(module("embedding_projection"), layers["embedding_projection"])
    if "distances" in layers:
        places[f"{module('distances')}.weight"] = Place(layers["distances"].table)
        if layers["distances"].norm is not None:
            places |= norm_places(module("distance_norm"), layers["distances"].norm)
    if "convolution" in layers:
        places |= linear_places(module("convolution"), layers["convolution"].convolution)
        places |= norm_places(module("convolution_norm"), layers["convolution"].norm)
    for number in range(config.num_distinct_layers):
        layer = layers[f"layer_{number}"]
        for i, part in enumerate(("query", "key", "value")):
            places |= linear_places(module(part, number), layer.attention.qkv, part=i, num_parts=3)
        for part in ("distance_key", "distance_query"):
            if getattr(layer.attention, part, None) is not None:
                places |= linear_places(module(part, number), getattr(layer.attention, part))
        for part in ("attention_output", "intermediate", "feed_output"):
            places |= linear_places(module(part, number), getattr(layer, part))
        for part in ("attention_norm", "feed_norm"):
            places |= norm_places(module(part, number), getattr(layer, part))
    return places


def head_places(head: keras.Model, family: Family, kind: HeadKind) -> dict[str, Place]:
    """The place of each of the head's tensors."""
    table = family.head(kind)
    places = linear_places(table.logits, head.get_layer("logits"))
    if any(layer.name == "hidden" for layer in head.layers) and table.hidden is not None:
        places |= linear_places(table.hidden, head.get_layer("hidden"))
    return places


def _tensors(directory: Path, family: Family) -> dict[str, np.ndarray]:
    """The checkpoint's tensors under their names in a checkpoint with a head, without heads of pretraining."""
    tensors = {_modern(name): value for name, value in read_safetensors(directory).items()}
    if not any(name.startswith(family.prefix) for name in tensors):
        tensors = {family.prefix + name: value for name, value in tensors.items()}
    left_out = sorted(name for name in tensors if _LEFT_OUT.match(name))
    if left_out:
        logger.info("%s: left out %s, which no head here uses.", directory.name, ", ".join(left_out))
    return {name: value for name, value in tensors.items() if not _LEFT_OUT.match(name)}


def _modern(name: str) -> str:
    """BERT's first checkpoints have TensorFlow's names for the parameters of a norm."""
    name = re.sub(r"\.gamma$", ".weight", name)
    return re.sub(r"\.beta$", ".bias", name)


def _without_poolers(
    tensors: Mapping[str, np.ndarray], places: Mapping[str, Place], family: Family
) -> dict[str, np.ndarray]:
    """Leave out a pooler that no place asks for: pretraining had a use for it."""
    return {n: v for n, v in tensors.items() if n in places or not n.startswith(f"{family.prefix}pooler.")}


def _head_modules(table: Any) -> tuple[str, ...]:
    return tuple(f"{name}." for name in (table.logits, table.hidden) if name is not None)
