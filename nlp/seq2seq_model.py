"""A tokenizer of two languages, the network between them, and how it decodes: from a checkpoint, from files, or new.

TensorFlow is imported where it is used, as in the pipelines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from nlp.decoding import Decoded, DecodingConfig, decode
from nlp.pairs import padded_ids
from nlp.subwords import TranslationTokenizer
from shared.pipeline import NotFittedError
from shared.runtime import current_runtime

if TYPE_CHECKING:
    import keras

    from nlp.marian_files import MarianModel
    from nlp.seq2seq_checkpoints import PretrainedSeq2Seq
    from shared.pretrained import Source

# A target of a network trained from scratch has at most so many tokens for each of its source.
_LONGEST_FACTOR = 3.0
# Source tokens, padding included, times beams, that are decoded together.
_TOKENS_PER_BATCH = 8192
# Where new shapes cost time, sources are as long as that: shorter ones are not worth a shape of their own.
_SHORTEST = 16


@dataclass
class Seq2SeqModel:
    """A tokenizer and an encoder-decoder, as far as they are known.

    `architecture` is a JSON-able recipe from which the network is built again; `decoding` has the ids that the network
    gives a meaning to, and how targets are found.
    """

    tokenizer: TranslationTokenizer | None = None
    network: Any = None
    architecture: Mapping[str, Any] | None = None
    decoding: DecodingConfig | None = None

    @classmethod
    def from_checkpoint(cls, source: Source, *, seed: int) -> Self:
        """What lies in a directory of Hugging Face's or of Marian's.

        Raises:
            ValueError: for an unknown family, or weights that do not fit.
        """
        assert source.directory is not None
        directory = source.directory / (source.record or {}).get("package", {}).get("file", "")
        checkpoint = _checkpoint(directory)
        architecture = {"kind": "transformer", "config": checkpoint.config.to_dict()}
        network = _build(architecture, seed)
        checkpoint.load_weights(network)
        return cls(TranslationTokenizer.from_directory(directory), network, architecture, checkpoint.decoding)

    @classmethod
    def from_files(cls, directory: Path, architecture: Mapping[str, Any], decoding: DecodingConfig) -> Self:
        """What `write` wrote."""
        network = _build(architecture, 0)
        network.load_weights(directory / "model.weights.h5")
        return cls(TranslationTokenizer.from_directory(directory), network, architecture, decoding)

    def write(self, directory: Path) -> None:
        """Write the tokenizer's files and `model.weights.h5`."""
        self.require_tokenizer().save(directory)
        self.model.save_weights(directory / "model.weights.h5")

    def ensure(self, pairs: Iterable[tuple[str, str]], config: Any) -> None:
        """Make what is not there yet: a tokenizer learned from `pairs`, and a network from a task's config."""
        if self.tokenizer is None:
            self.tokenizer = TranslationTokenizer.train(
                pairs, vocab_size=config.vocab_size, kind=config.vocabulary, shared=config.shared_vocabulary
            )
        if self.network is None:
            self.architecture = _architecture(config, self.tokenizer)
            self.network = _build(self.architecture, config.seed)
            self.decoding = _decoding(config, self.tokenizer)

    @property
    def model(self) -> keras.Model:
        """The network.

        Raises:
            NotFittedError: as long as the vocabulary is not known.
        """
        if self.network is None:
            raise NotFittedError("There is no model yet: its size depends on the vocabulary. Call `fit(train)` first.")
        return self.network

    def require_tokenizer(self) -> TranslationTokenizer:
        """The tokenizer, which is there once there is a network."""
        assert self.tokenizer is not None
        return self.tokenizer

    def require_decoding(self) -> DecodingConfig:
        """How targets are found, which is known once there is a network."""
        assert self.decoding is not None
        return self.decoding

    def write_hugging_face(self, directory: Path, decoding: DecodingConfig) -> None:
        """Write a directory that transformers' MarianMTModel and MarianTokenizer load.

        Raises:
            ValueError: where they have no such network, or no such vocabulary.
        """
        from nlp.seq2seq_checkpoints import write_marian

        write_marian(directory, self.model, decoding)
        self.require_tokenizer().save(directory)

    def decode(self, rows: Sequence[Sequence[int]], decoding: DecodingConfig, batch_size: int) -> list[Decoded]:
        """The answers for each row of source ids, in order: each a `Decoded` of one text.

        Rows are sorted by length, so that little is padded, and go through in batches of at most `batch_size` texts and
        a fixed number of tokens, so that memory stays bounded. Where new shapes cost time, both sides of a batch are
        powers of two.
        """
        limit = getattr(self.model, "longest_target", None)
        answers: list[Any] = [None] * len(rows)
        order = sorted(range(len(rows)), key=lambda number: -len(rows[number]))
        while order:
            size = max(1, min(batch_size, _TOKENS_PER_BATCH // (len(rows[order[0]]) * decoding.lanes)))
            if current_runtime().few_shapes:
                size = 1 << (size.bit_length() - 1)
            chosen, order = order[:size], order[size:]
            ids = padded_ids([rows[number] for number in chosen], decoding.pad_id, limit=limit)
            mask = np.arange(ids.shape[1]) < np.asarray([len(rows[number]) for number in chosen])[:, None]
            if current_runtime().few_shapes:
                ids, mask = (_filled_up(array, limit) for array in (ids, mask))
            found = decode(self.model, ids, mask, decoding)
            for place, number in enumerate(chosen):
                answers[number] = Decoded(found.token_ids[place], found.lengths[place], found.scores[place])
        return answers

    def texts(self, found: Decoded) -> list[str]:
        """The texts of the answers for one source, the best first."""
        ids = [row[:length].tolist() for row, length in zip(found.token_ids, found.lengths, strict=True)]
        return self.require_tokenizer().decode(ids)

    def with_decoding(self, **fields: Any) -> DecodingConfig:
        """How targets are found, with some fields changed."""
        return replace(self.require_decoding(), **fields)


def _filled_up(array: np.ndarray, limit: int | None) -> np.ndarray:
    """A batch (B, S) with rows that come again and padding, so that B and S are powers of two, S at most `limit`."""
    rows, width = (1 << (size - 1).bit_length() for size in array.shape)
    width = max(width, _SHORTEST) if limit is None else min(max(width, _SHORTEST), limit)
    repeated = np.pad(array, ((0, rows - len(array)), (0, 0)), mode="edge")
    return np.pad(repeated, ((0, 0), (0, width - array.shape[1])))


def _checkpoint(directory: Path) -> MarianModel | PretrainedSeq2Seq:
    from nlp.marian_files import read_marian
    from nlp.seq2seq_checkpoints import read_hugging_face
    from shared.pretrained import detect_layout

    if detect_layout(directory) != "marian_files":
        return read_hugging_face(directory)
    # Beside the network lies a table of likely translations, which is not used.
    files = sorted(file for file in directory.glob("*.bin") if not file.name.startswith("lex."))
    if len(files) != 1:
        raise ValueError(f"{directory} must have one Marian model (.bin); found {len(files)}.")
    return read_marian(files[0])


def _build(architecture: Mapping[str, Any], seed: int) -> Any:
    from nlp.models.seq2seq import build_seq2seq
    from nlp.models.seq2seq_config import Seq2SeqConfig
    from shared.runtime import current_runtime, seeded

    with current_runtime().scope(), seeded(seed):
        if architecture["kind"] == "recurrent":
            from nlp.models.recurrent_seq2seq import RecurrentSeq2SeqConfig, build_recurrent_seq2seq

            return build_recurrent_seq2seq(RecurrentSeq2SeqConfig.from_dict(architecture["config"]))
        return build_seq2seq(Seq2SeqConfig.from_dict(architecture["config"]))


def _architecture(config: Any, tokenizer: TranslationTokenizer) -> dict[str, Any]:
    fields = {
        "vocab_size": tokenizer.source_size,
        "target_vocab_size": 0 if tokenizer.shared else tokenizer.target_size,
        "hidden_size": config.hidden_size,
        "dropout": config.dropout,
    }
    if config.network == "recurrent":
        return {"kind": "recurrent", "config": fields | {"embedding_size": config.hidden_size}}
    wide = config.intermediate_size or 4 * config.hidden_size
    fields |= {
        "encoder_layers": config.num_layers,
        "decoder_layers": config.num_decoder_layers or config.num_layers,
        "encoder_heads": config.num_heads,
        "decoder_heads": config.num_heads,
        "encoder_intermediate_size": wide,
        "decoder_intermediate_size": wide,
        "activation": "relu",
        "shared_embeddings": tokenizer.shared,
        "output_bias": False,
        "max_length": config.max_length,
    }
    return {"kind": "transformer", "config": fields}


def _decoding(config: Any, tokenizer: TranslationTokenizer) -> DecodingConfig:
    banned = {tokenizer.pad_id, tokenizer.unknown_id} - {None}
    return DecodingConfig(
        max_length=config.max_length,
        max_length_factor=_LONGEST_FACTOR,
        start_id=tokenizer.pad_id,
        pad_id=tokenizer.pad_id,
        end_ids=(tokenizer.end_id,),
        banned_ids=tuple(sorted(int(token) for token in banned if token is not None)),
    )
