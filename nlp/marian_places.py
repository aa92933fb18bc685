"""Where the tensors of Marian's own model files lie in a network; names of marian-nmt, src/models/transformer.h."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nlp.models.ssru import SSRU
from nlp.placement import Place

if TYPE_CHECKING:
    from nlp.models.seq2seq import Seq2SeqTransformer


def marian_places(model: Seq2SeqTransformer) -> dict[str, Place]:
    """The place of each of the network's tensors, by its name in a model file."""
    config = model.config
    if config.shared_embeddings:
        places = {"Wemb": Place(model.source_tokens.table)}
    else:
        places = {
            "encoder_Wemb": Place(model.source_tokens.table),
            "decoder_Wemb": Place(model.target_tokens.table),
        }
    if not config.tied_output:
        places["decoder_ff_logit_out_Wt"] = Place(model.output_tokens.table)
    if model.output_bias is not None:
        places["decoder_ff_logit_out_b"] = Place(model.output_bias, as_row=True)
    for name, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        for number, (unit, *look, feed) in enumerate(stack.blocks, start=1):
            layer = f"{name}_l{number}"
            places |= _unit_places(layer, unit)
            for cross in look:
                places |= _attention_places(f"{layer}_context", cross)
            places |= _feed_places(f"{layer}_ffn", feed)
    return places


def _unit_places(layer: str, unit: Any) -> dict[str, Place]:
    if not isinstance(unit.part, SSRU):
        return _attention_places(f"{layer}_self", unit)
    part = unit.part
    return {
        f"{layer}_rnn_W": Place(part.value.kernel),
        f"{layer}_rnn_Wf": Place(part.forget.kernel),
        f"{layer}_rnn_bf": Place(part.forget.bias, as_row=True),
        **_norm_places(f"{layer}_rnn_ffn", unit.norm),
    }


def _attention_places(name: str, attention: Any) -> dict[str, Place]:
    part = attention.part
    linears = {"o": (part.projection, 0, 1)}
    if part.cross:
        linears |= {"q": (part.query, 0, 1), "k": (part.key_value, 0, 2), "v": (part.key_value, 1, 2)}
    else:
        linears |= {letter: (part.qkv, number, 3) for number, letter in enumerate("qkv")}
    places = {}
    for letter, (layer, number, count) in linears.items():
        places[f"{name}_W{letter}"] = Place(layer.kernel, part=number, num_parts=count)
        places[f"{name}_b{letter}"] = Place(layer.bias, part=number, num_parts=count, as_row=True)
    return places | _norm_places(f"{name}_Wo", attention.norm)


def _feed_places(name: str, feed: Any) -> dict[str, Place]:
    places = {}
    for number, layer in enumerate(feed.part.linears, start=1):
        places[f"{name}_W{number}"] = Place(layer.kernel)
        places[f"{name}_b{number}"] = Place(layer.bias, as_row=True)
    return places | _norm_places(f"{name}_ffn", feed.norm)


def _norm_places(name: str, norm: Any) -> dict[str, Place]:
    return {
        f"{name}_ln_scale": Place(norm.gamma, as_row=True),
        f"{name}_ln_bias": Place(norm.beta, as_row=True),
    }
