"""Marian's own binary model files, as the small int8 models of Firefox Translations and the like come in.

A file has two uint64, version and count; for each tensor four uint64, length of its name, type, rank and length of its
data; the names, each with a zero at its end; the shapes as int32; a uint64 with the length of the gap that follows; the
data. Nothing in it is believed before it is checked against the size of the file. Format: marian-nmt,
src/common/binary.cpp and types.h.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nlp.decoding import DecodingConfig
from nlp.models.seq2seq_config import Seq2SeqConfig

if TYPE_CHECKING:
    from nlp.models.seq2seq import Seq2SeqTransformer

_VERSION = 1
_FLOAT32, _FLOAT16, _INT8, _INTGEMM8 = 0x404, 0x402, 0x101, 0x4101
_ITEM_SIZES = {_FLOAT32: 4, _FLOAT16: 2, _INT8: 1, _INTGEMM8: 1}
# What marian-conv writes for one kind of processor only.
_PACKED = {0x5101: "SSSE3", 0x6101: "AVX2", 0x7101: "AVX512", 0x8101: "AVX512-VNNI"}
_LONGEST_NAME, _HIGHEST_RANK = 1024, 8
_OPTIONS = "special:model.yml"
# Scales of activations, of which dynamic quantisation has no need, and of the embeddings, which stand beside them.
_SCALES = ("_QuantMultA", "_QuantMultB")
# transformer.h, layerNorm.
_NORM_EPSILON = 1e-6
# No sum of log probabilities is changed by it.
_NEVER = -1e9


@dataclass(frozen=True)
class MarianModel:
    """A model file: its network, how it decodes, and its tensors by name.

    The vocabulary gets one more token than the file has, the last: for padding and before the first token of a target,
    where Marian has a row of zeros. Transformers' converted models have it too.
    """

    file: Path
    config: Seq2SeqConfig
    decoding: DecodingConfig
    tensors: Mapping[str, np.ndarray]

    def load_weights(self, model: Seq2SeqTransformer) -> None:
        """Put the file's weights into a network built from `config`.

        Raises:
            ValueError: naming weights without a place, places without a weight, and unequal shapes.
        """
        from nlp.marian_places import marian_places
        from shared.pretrained import assign_weights

        tensors = {name: value for name, value in self.tensors.items() if not name.endswith(_SCALES)}
        for name in ("Wemb", "encoder_Wemb", "decoder_Wemb", "decoder_ff_logit_out_Wt"):
            if name in tensors:
                tensors[name] = np.pad(tensors[name], ((0, 1), (0, 0)))
        bias = "decoder_ff_logit_out_b"
        if bias in tensors:
            tensors[bias] = np.pad(tensors[bias], ((0, 0), (0, 1)), constant_values=_NEVER)
        assign_weights(marian_places(model), tensors)


def read_marian(file: Path | str) -> MarianModel:
    """The model in a `.bin` file of Marian.

    Raises:
        ValueError: for a damaged file, which names the place, or a network that is not supported, which names why.
    """
    file = Path(file)
    tensors = read_tensors(file)
    if _OPTIONS not in tensors:
        raise ValueError(f"{file} has no {_OPTIONS}, which says what network it is.")
    try:
        options = parse_options(tensors.pop(_OPTIONS).tobytes().rstrip(b"\0").decode("utf-8"))
        config = marian_config(options)
    except (UnicodeDecodeError, TypeError, ValueError) as error:
        raise ValueError(f"{file}, {_OPTIONS}: {error}") from error
    pad = config.target_size - 1
    decoding = DecodingConfig(num_beams=1, start_id=pad, pad_id=pad, end_ids=(0,), max_length_factor=3.0)
    return MarianModel(file, config, decoding, tensors)


# The container.


class _Entry(NamedTuple):
    name: str
    kind: int
    shape: tuple[int, ...]
    length: int


class _Reader:
    """Bytes of a file in order, none beyond its end."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.content = np.memmap(file, np.uint8, "r") if file.stat().st_size else np.zeros(0, np.uint8)
        self.place = 0

    def take(self, length: int, what: str) -> np.ndarray:
        """The next bytes."""
        left = len(self.content) - self.place
        if length > left:
            raise self.error(f"{what} takes {length} bytes, {left} are left; the file is cut off or damaged")
        self.place += length
        taken: np.ndarray = self.content[self.place - length : self.place]
        return taken

    def numbers(self, count: int, kind: str, what: str) -> list[int]:
        """The next whole numbers."""
        found: list[int] = np.frombuffer(self.take(count * np.dtype(kind).itemsize, what).tobytes(), kind).tolist()
        return found

    def error(self, problem: str) -> ValueError:
        """What to raise."""
        return ValueError(f"{self.file}, byte {self.place}: {problem}.")


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    """All tensors of a file by name: float32, and the options as bytes. Int8 matrices are given back their scale.

    Raises:
        ValueError: for a damaged file, or a type that is not supported.
    """
    reader = _Reader(file)
    version, count = reader.numbers(2, "<u8", "the header")
    if version != _VERSION:
        raise reader.error(f"expected version {_VERSION} of Marian's binary format, found {version}")
    if not 0 < count <= len(reader.content) // 32:
        raise reader.error(f"{count} tensors cannot be in a file of {len(reader.content)} bytes")
    entries = _entries(reader, count)
    (gap,) = reader.numbers(1, "<u8", "the length of the gap before the data")
    reader.take(gap, "the gap before the data")
    tensors = {entry.name: _tensor(reader, entry) for entry in entries}
    if len(tensors) != count:
        raise reader.error("two tensors have one name")
    if reader.place != len(reader.content):
        raise reader.error(f"{len(reader.content) - reader.place} bytes follow after the last tensor")
    return tensors


def _entries(reader: _Reader, count: int) -> list[_Entry]:
    headers = [reader.numbers(4, "<u8", f"the header of tensor {number}") for number in range(count)]
    names = []
    for number, (length, *_) in enumerate(headers):
        if not 1 < length <= _LONGEST_NAME:
            raise reader.error(f"the name of tensor {number} has {length} bytes, expected 2 to {_LONGEST_NAME}")
        raw = reader.take(length, f"the name of tensor {number}").tobytes()
        if raw[-1] or not raw[:-1].isascii() or not raw[:-1].decode("ascii").isprintable():
            raise reader.error(f"the name of tensor {number} is no text with a zero at its end")
        names.append(raw[:-1].decode("ascii"))
    entries = []
    for name, (_, kind, rank, length) in zip(names, headers, strict=True):
        if kind in _PACKED:
            raise reader.error(
                f"{name} is packed for {_PACKED[kind]} processors; use the model before it was packed (intgemm8)"
            )
        if kind not in _ITEM_SIZES:
            known = "float32, float16, int8, intgemm8"
            raise reader.error(f"{name} has the type {kind:#x}, which is not supported; {known} are")
        if not 0 < rank <= _HIGHEST_RANK:
            raise reader.error(f"{name} has {rank} axes, expected 1 to {_HIGHEST_RANK}")
        shape = tuple(reader.numbers(rank, "<i4", f"the shape of {name}"))
        if min(shape) < 1:
            raise reader.error(f"{name} has the shape {shape}; all axes must be at least 1")
        needed = math.prod(shape) * _ITEM_SIZES[kind] + (4 if kind == _INTGEMM8 else 0)
        if needed > length:
            raise reader.error(f"{name} of shape {shape} needs {needed} bytes, its data has {length}")
        entries.append(_Entry(name, kind, shape, length))
    return entries


def _tensor(reader: _Reader, entry: _Entry) -> np.ndarray:
    data = reader.take(entry.length, f"the data of {entry.name}").tobytes()
    size = math.prod(entry.shape)
    if entry.kind == _INT8:
        return np.frombuffer(data, np.int8, size)
    if entry.kind != _INTGEMM8:
        kind = "<f4" if entry.kind == _FLOAT32 else "<f2"
        return np.frombuffer(data, kind, size).reshape(entry.shape).astype(np.float32)
    multiplier = float(np.frombuffer(data, "<f4", 1, size)[0])
    if not (math.isfinite(multiplier) and multiplier > 0):
        raise reader.error(f"{entry.name} has the scale {multiplier}, expected a positive number")
    values = np.frombuffer(data, np.int8, size).astype(np.float32) / np.float32(multiplier)
    # Stored ready for a product from the other side, but for the table of tokens.
    is_table = entry.name.endswith("Wemb")
    return values.reshape(entry.shape) if is_table else values.reshape(entry.shape[::-1]).T


# The options.


def parse_options(text: str) -> dict[str, Any]:
    """The plain YAML that Marian writes: `key: value` and lists of values, no nesting.

    Raises:
        ValueError: naming a line of another kind.
    """
    options: dict[str, Any] = {}
    key = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        pair, item = re.fullmatch(r"([\w.-]+):(?: (.*))?", line.rstrip()), re.fullmatch(r" *- (.*)", line.rstrip())
        if pair:
            key, value = pair.group(1), pair.group(2)
            options[key] = [] if not value or value == "[]" else _scalar(value)
        elif item and isinstance(options.get(key), list):
            options[key].append(_scalar(item.group(1)))
        else:
            raise ValueError(f"line {number} is neither `key: value` nor an item of a list: {line[:80]!r}.")
    return options


def _scalar(text: str) -> Any:
    text = text.strip()
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    if re.fullmatch(r"-?\d*\.?\d+(e-?\d+)?", text):
        return float(text)
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


# With the only values that are supported; a missing key has the first.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "type": ("transformer",),
    "transformer-preprocess": ("",),
    "transformer-postprocess": ("dan", "an"),
    "transformer-postprocess-emb": ("d", ""),
    "transformer-postprocess-top": ("",),
    "transformer-ffn-depth": (2,),
    "transformer-train-position-embeddings": (False,),
    "transformer-tied-layers": ([],),
    "transformer-no-projection": (False,),
    "transformer-decoder-autoreg": ("self-attention", "rnn"),
    "transformer-depth-scaling": (False,),
    "tied-embeddings-src": (False,),
    "factors-combine": ("sum",),
    "lemma-dim-emb": (0,),
    "right-left": (False,),
    "input-types": ([],),
}
_ACTIVATIONS = {"relu": "relu", "swish": "silu", "gelu": "gelu"}


def marian_config(options: Mapping[str, Any]) -> Seq2SeqConfig:
    """The network that Marian's options describe.

    Raises:
        ValueError: for a choice that is not supported, or an option that is missing; the message names it.
    """
    for key, supported in _SUPPORTED.items():
        if options.get(key, supported[0]) not in supported:
            choices = " or ".join(repr(value) for value in supported)
            raise ValueError(f"{key}: {options[key]!r} is not supported, only {choices}.")
    recurrent = options.get("transformer-decoder-autoreg") == "rnn"
    if recurrent and (options.get("dec-cell"), options.get("dec-cell-base-depth", 2)) != ("ssru", 2):
        raise ValueError(f"dec-cell: {options.get('dec-cell')!r} is not supported, only 'ssru' of depth 2.")
    missing = [key for key in ("dim-vocabs", "dim-emb", "enc-depth", "dec-depth") if key not in options]
    if missing or len(options["dim-vocabs"]) != 2:
        raise ValueError(f"{', '.join(missing) or 'dim-vocabs with two sizes'} is missing.")
    activation = options.get("transformer-ffn-activation", "swish")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"transformer-ffn-activation: {activation!r} is not supported.")
    source, target = options["dim-vocabs"]
    wide = options.get("transformer-dim-ffn", 2048)
    heads = options.get("transformer-heads", 8)
    shared = bool(options.get("tied-embeddings-all", False))
    return Seq2SeqConfig(
        vocab_size=source + 1,
        target_vocab_size=0 if shared else target + 1,
        hidden_size=options["dim-emb"],
        encoder_layers=options["enc-depth"],
        decoder_layers=options["dec-depth"],
        encoder_heads=heads,
        decoder_heads=heads,
        encoder_intermediate_size=wide,
        decoder_intermediate_size=options.get("transformer-decoder-dim-ffn") or wide,
        activation=_ACTIVATIONS[activation],  # type: ignore[arg-type]
        decoder_unit="ssru" if recurrent else "attention",
        norm_epsilon=_NORM_EPSILON,
        positions="marian",
        max_length=1024,
        shared_embeddings=shared,
        tied_output=shared or bool(options.get("tied-embeddings", False)),
        output_bias=not options.get("output-omit-bias", False),
    )
