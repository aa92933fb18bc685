"""Hugging Face directories of encoder-decoders (Marian, BART, mBART, T5): config, weights and generation settings.

Tokenizer files are somebody else's. Nothing is guessed: an unknown family, an unsupported choice, a weight without a
place or a place without a weight is an error that names it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nlp.decoding import DecodingConfig
from nlp.models.seq2seq_config import Seq2SeqConfig
from nlp.models.seq2seq_families import Seq2SeqFamily, marian_values, seq2seq_config, seq2seq_family
from nlp.placement import Place, linear_places, norm_places
from shared.pretrained import assign_weights, detect_layout, read_json, safetensors_names, stored_tensors

if TYPE_CHECKING:
    from nlp.models.seq2seq import Seq2SeqTransformer
    from nlp.models.seq2seq_stacks import Stack

_BIAS = "final_logits_bias"
# What transformers takes where nothing is said: 20 tokens, the start token among them.
_DEFAULT_LENGTH = 20


@dataclass(frozen=True)
class PretrainedSeq2Seq:
    """An encoder-decoder in a directory: what it is, how it decodes, and how its weights get into a built network."""

    family: str
    config: Seq2SeqConfig
    decoding: DecodingConfig
    directory: Path

    def load_weights(self, model: Seq2SeqTransformer) -> None:
        """Put the checkpoint's weights into a network built from `config`.

        Raises:
            ValueError: naming weights without a place, places without a weight, and unequal shapes.
        """
        family = seq2seq_family(self.family)
        places = seq2seq_places(model, family)
        assign_weights(places, _without_copies(stored_tensors(self.directory), places, family))


def read_hugging_face(directory: Path | str) -> PretrainedSeq2Seq:
    """The encoder-decoder in a Hugging Face directory.

    Raises:
        ValueError: for an unknown family, an unsupported choice in its config, or weights that are no safetensors.
    """
    directory = Path(directory)
    layout = detect_layout(directory)
    if layout not in ("hugging_face", "marian"):
        raise ValueError(f"{directory} is no Hugging Face translation model; its layout is {layout}.")
    values = read_json(directory / "config.json")
    family = str(values.get("model_type"))
    settings = directory / "generation_config.json"
    try:
        config = seq2seq_config(family, values, safetensors_names(directory))
        decoding = decoding_config(values, read_json(settings) if settings.exists() else {})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{directory / 'config.json'}: {error}") from error
    return PretrainedSeq2Seq(family, config, decoding, directory)


def write_marian(directory: Path | str, model: Seq2SeqTransformer, decoding: DecodingConfig) -> None:
    """Write config.json, generation_config.json and model.safetensors, which transformers' MarianMTModel loads.

    Tokenizer files are the caller's: source.spm, target.spm, vocab.json.

    Args:
        directory: made where it is missing.
        model: with any precision; weights are written as float32.
        decoding: settings to write.

    Raises:
        ValueError: where Hugging Face's Marian has no such network.
    """
    from safetensors.numpy import save_file

    config = model.config
    ids: dict[str, Any] = {"pad_token_id": decoding.pad_id, "decoder_start_token_id": decoding.start_id}
    ids |= {"eos_token_id": decoding.end_ids[0], "forced_eos_token_id": decoding.forced_last_id}
    values = marian_values(config) | ids | {"model_type": "marian", "architectures": ["MarianMTModel"]}
    tensors = {name: place.value() for name, place in seq2seq_places(model, seq2seq_family("marian")).items()}
    tensors.setdefault(_BIAS, np.zeros((1, config.target_size), np.float32))
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in (("config", values), ("generation_config", generation_values(decoding))):
        (directory / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    arrays = {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}
    # transformers asks for the framework's name.
    save_file(arrays, directory / "model.safetensors", metadata={"format": "pt"})


# Generation settings.


def decoding_config(values: Mapping[str, Any], settings: Mapping[str, Any]) -> DecodingConfig:
    """What config.json and generation_config.json say of decoding; the latter counts where both speak.

    Raises:
        ValueError: where a needed id is missing, or for banned sequences of several tokens.
    """
    said = {key: value for key, value in (*values.items(), *settings.items()) if value is not None}
    end = said.get("eos_token_id", [])
    ends: list[int] = end if isinstance(end, list) else [end]
    start = said.get("decoder_start_token_id", said.get("bos_token_id"))
    if not ends or start is None:
        missing = "eos_token_id" if not ends else "decoder_start_token_id"
        raise ValueError(f"neither it nor generation_config.json has {missing!r}, which decoding needs.")
    banned = said.get("bad_words_ids") or []
    longer = [ids for ids in banned if len(ids) != 1]
    if longer:
        raise ValueError(f"`bad_words_ids` may have single tokens, not sequences such as {longer[0]}.")
    forced = said.get("forced_eos_token_id")
    stop = said.get("early_stopping", False)
    # Their lengths count the start token.
    return DecodingConfig(
        num_beams=int(said.get("num_beams", 1)),
        max_length=int(said["max_new_tokens"]) if "max_new_tokens" in said else _length(said, "max_length") or 1,
        min_length=int(said["min_new_tokens"]) if "min_new_tokens" in said else _length(said, "min_length"),
        length_penalty=float(said.get("length_penalty", 1.0)),
        stop="never" if stop == "never" else "first" if stop else "usual",
        no_repeat_ngram=int(said.get("no_repeat_ngram_size", 0)),
        start_id=int(start),
        end_ids=tuple(int(end) for end in ends),
        pad_id=int(said.get("pad_token_id", ends[0])),
        banned_ids=tuple(int(ids[0]) for ids in banned),
        forced_first_id=said.get("forced_bos_token_id"),
        forced_last_id=forced[0] if isinstance(forced, list) else forced,
    )


def _length(said: Mapping[str, Any], key: str) -> int:
    default = _DEFAULT_LENGTH if key == "max_length" else 0
    return max(int(said.get(key, default)) - 1, 0)


def generation_values(decoding: DecodingConfig) -> dict[str, Any]:
    """The way back from `decoding_config`: what generation_config.json says of these settings."""
    values: dict[str, Any] = {
        "decoder_start_token_id": decoding.start_id,
        "eos_token_id": list(decoding.end_ids) if len(decoding.end_ids) > 1 else decoding.end_ids[0],
        "pad_token_id": decoding.pad_id,
        "max_length": decoding.max_length + 1,
        "num_beams": decoding.num_beams,
    }
    if decoding.banned_ids:
        values["bad_words_ids"] = [[token] for token in decoding.banned_ids]
    if decoding.min_length:
        values["min_length"] = decoding.min_length + 1
    if decoding.num_beams > 1:  # transformers refuses to write these for one beam
        values["length_penalty"] = decoding.length_penalty
        values["early_stopping"] = {"first": True, "usual": False, "never": "never"}[decoding.stop]
    if decoding.no_repeat_ngram:
        values["no_repeat_ngram_size"] = decoding.no_repeat_ngram
    for key, token in (("bos", decoding.forced_first_id), ("eos", decoding.forced_last_id)):
        if token is not None:
            values[f"forced_{key}_token_id"] = token
    return values


# Weights.


def seq2seq_places(model: Seq2SeqTransformer, family: Seq2SeqFamily) -> dict[str, Place]:
    """The place of each of the network's tensors, by its name in a checkpoint."""
    config = model.config
    places = {family.source_table[0]: Place(model.source_tokens.table)}
    if not config.shared_embeddings:
        places = {
            family.source_table[1]: Place(model.source_tokens.table),
            family.target_table[2]: Place(model.target_tokens.table),
        }
    if not config.tied_output:
        places[family.output_table[0]] = Place(model.output_tokens.table)
    if model.output_bias is not None:
        places[_BIAS] = Place(model.output_bias, as_row=True)
    for name, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        places |= _stack_places(name, stack, family)
    return places


def _stack_places(name: str, stack: Stack, family: Seq2SeqFamily) -> dict[str, Place]:
    places: dict[str, Place] = {}

    def module(part: str, number: int = 0) -> str:
        return family.modules[f"{name}.{part}"].format(number)

    if name in family.places:
        places[family.places[name]] = Place(stack.places if stack.distances is None else stack.distances.table)
    for end in ("embedding_norm", "final_norm"):
        if getattr(stack, end) is not None:
            places |= norm_places(module(end), getattr(stack, end))
    for number, (unit, *look, feed) in enumerate(stack.blocks):
        for i, part in enumerate(("query", "key", "value")):
            places |= linear_places(module(part, number), unit.part.qkv, part=i, num_parts=3)
        places |= linear_places(module("projection", number), unit.part.projection)
        places |= norm_places(module("norm", number), unit.norm)
        for cross in look:
            places |= linear_places(module("cross_query", number), cross.part.query)
            for i, part in enumerate(("cross_key", "cross_value")):
                places |= linear_places(module(part, number), cross.part.key_value, part=i, num_parts=2)
            places |= linear_places(module("cross_projection", number), cross.part.projection)
            places |= norm_places(module("cross_norm", number), cross.norm)
        gated = feed.part.gate is not None
        places |= linear_places(module("gated_inner" if gated else "inner", number), feed.part.inner)
        if gated:
            places |= linear_places(module("gate", number), feed.part.gate)
        places |= linear_places(module("outer", number), feed.part.outer)
        places |= norm_places(module("feed_norm", number), feed.norm)
    return places


def _without_copies(tensors: Mapping[str, Any], places: Mapping[str, Place], family: Seq2SeqFamily) -> dict[str, Any]:
    """The tensors without what the network computes, and without second copies of a table under other names.

    Raises:
        ValueError: where a copy differs from the table: then it is none.
    """
    kept = {name: value for name, value in tensors.items() if name not in family.computed}
    table = family.source_table[0]
    aliases = (*family.source_table, *family.output_table)
    if table in places and table not in kept:  # saved under another name only
        found = next((name for name in aliases if name in kept), None)
        if found is not None:
            kept[table] = kept[found]
    # Two tables: the output is that of target tokens, and what they once shared is left behind.
    original = table if table in places else family.target_table[2]
    for name in aliases:
        if name in kept and name not in places:
            if name != table and original in kept and not np.array_equal(kept[name], kept[original]):
                raise ValueError(f"{name} differs from {original}, of which it should be a copy.")
            del kept[name]
    if _BIAS in places:  # transformers takes a missing one for zeros
        kept.setdefault(_BIAS, np.zeros(places[_BIAS].shape, np.float32))
    return kept
