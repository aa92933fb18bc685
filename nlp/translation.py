"""Translation: config, result type, pipeline.

TensorFlow and Keras are imported where they are used, so that `--help` is quick and a `RuntimeConfig` can still take
effect before them.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from nlp.decoding import Decoded, DecodingConfig, forget_weights
from nlp.inputs import decoded_text
from nlp.metrics import translation_scores
from nlp.pairs import longer_side, pair_arrays, stack_pairs, text_pair
from nlp.sentences import Piece, split_lines, split_sentences
from nlp.seq2seq_model import Seq2SeqModel
from nlp.subwords import TranslationTokenizer
from nlp.text_model import require_kept
from nlp.tokenizer_files import encodable
from shared.config import Config, option
from shared.data import Arrays, InputPipeline, Loading, Stages
from shared.examples import BadExampleError, Examples, Source, as_source, listed
from shared.pipeline import ExportFormat, FitOptions, History, Metrics, Pipeline
from shared.scoring import joined, measured_examples

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from nlp.subword_sampling import SubwordSampler
    from shared.export import Endpoint, ExportReport
    from shared.training import TrainingTask
    from shared.training_config import TrainingConfig

logger = logging.getLogger(__name__)

# Texts that are in memory together while they are translated.
_CHUNK = 512
# Fields that say what a network from scratch shall be.
_SCRATCH_FIELDS = (
    *("vocabulary", "vocab_size", "shared_vocabulary", "network", "hidden_size", "intermediate_size"),
    *("num_layers", "num_decoder_layers", "num_heads", "dropout"),
)
_SAMPLE_TEXTS = ("A short text.", "Another one, with more words: 1, 2, 3!", "Ünïcödé 🎬")


@dataclass(frozen=True, kw_only=True)
class TranslatorConfig(Config):
    """What a translator is: its languages, its vocabulary, its network, and how it searches for a translation."""

    language: str = option("", "language to translate into, such as deu, for a multilingual model")
    prefix: str = option("", "put before each sentence, such as 'translate English to German: ' (T5)")
    sentences: bool = option(True, "translate one sentence of a text after another; off: line by line")
    num_beams: int = option(5, "beams of the search; 1 takes the likeliest token at each step", minimum=1, maximum=64)
    length_penalty: float = option(1.0, "above 1 longer translations are preferred (beams)")
    max_length: int = option(256, "longest sentence and longest translation of one", minimum=8, unit="tokens")
    vocabulary: Literal["unigram", "bpe"] = option("unigram", "kind of vocabulary, learned from the training set")
    vocab_size: int = option(8000, "largest vocabulary learned from the training set", minimum=100)
    shared_vocabulary: bool = option(True, "both languages have one vocabulary, from scratch")
    network: Literal["transformer", "recurrent"] = option(
        "transformer", "network trained from scratch; recurrent: GRUs with attention"
    )
    hidden_size: int = option(256, "features per token, from scratch", minimum=8)
    intermediate_size: int = option(0, "features inside feed-forward parts, from scratch; 0: four times", minimum=0)
    num_layers: int = option(3, "layers of a transformer's encoder, from scratch", minimum=1)
    num_decoder_layers: int = option(0, "layers of its decoder, from scratch; 0: as the encoder's", minimum=0)
    num_heads: int = option(4, "attention heads, from scratch", minimum=1)
    dropout: float = option(0.1, "share of features dropped in training, from scratch", minimum=0.0, maximum=0.95)
    subword_sampling: float = option(
        0.0, "share of words that training cuts into pieces at random (unigram vocabularies)", minimum=0.0, maximum=1.0
    )
    seed: int = option(0, "seed of the initial weights", minimum=0)

    def __post_init__(self) -> None:
        """Refuse fields that contradict each other."""
        super().__post_init__()
        if self.network == "transformer" and self.hidden_size % self.num_heads:
            raise ValueError(
                f"`hidden_size` must be a multiple of `num_heads`; received {self.hidden_size} and {self.num_heads}."
            )


@dataclass(frozen=True)
class Translation:
    """A translation: its text, its score, and the next best ones, if they were asked for.

    The score is the mean log probability of its tokens (with `length_penalty` 1), at most 0; for a text of several
    sentences the mean over all their tokens. `alternatives` of such a text have each sentence's second best, then each
    one's third best, and so on.
    """

    text: str
    score: float
    alternatives: tuple[Translation, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        plain: dict[str, Any] = {"text": self.text, "score": round(self.score, 6)}
        if self.alternatives:
            plain["alternatives"] = [other.to_dict() for other in self.alternatives]
        return plain


class Translator(Pipeline):
    """Texts of one language in, texts of another out.

    Long texts are translated sentence by sentence; line breaks and white space between sentences are kept. What has no
    letter or digit, or nothing that the vocabulary knows, is kept as it is.

    Example:
        >>> translator = Translator(TranslatorConfig(hidden_size=128))                           # doctest: +SKIP
        >>> history = translator.fit(read_parallel("train.en", "train.de"))                      # doctest: +SKIP
        >>> translator.predict(["A dog runs."])[0].text                                          # doctest: +SKIP
        'Ein Hund rennt.'
    """

    task: ClassVar[str] = "translation"
    config_class: ClassVar[type[Config]] = TranslatorConfig
    config: TranslatorConfig

    def __init__(self, config: TranslatorConfig | None = None) -> None:
        super().__init__(config)
        self._seq2seq = Seq2SeqModel()
        self._trained = False

    @classmethod
    def from_preset(cls, ref: str | Path, **config_fields: Any) -> Self:
        """A translator with pretrained weights and their tokenizer.

        Args:
            ref: a name in `nlp.presets`, a local directory (a saved translator, Hugging Face's of Marian, BART or T5,
                Marian's own files), or `hf://org/name`.
            config_fields: fields of `TranslatorConfig` that shall differ from the preset's.

        Raises:
            ValueError: for a checkpoint of an unknown family or with weights that do not fit, for a `max_length`
                beyond the network's positions, and for fields that a network has from scratch only.
            FileNotFoundError: where the preset's package or directory is missing; the message says what to install.
        """
        from nlp.presets import PRESETS
        from shared.pretrained import resolve

        source = resolve(ref, PRESETS)
        if source.layout == "triptych":
            saved = cls.load(str(source.directory))
            own_fields = saved.config.to_dict()
            require_kept(ref, config_fields, {name: own_fields[name] for name in _SCRATCH_FIELDS})
            translator = cls(TranslatorConfig.from_dict(own_fields | config_fields))
            _require_room(ref, saved._seq2seq, translator.config.max_length)
            translator._seq2seq = saved._seq2seq
            translator.provenance = {"preset": saved.provenance.get("preset", {}) | {"ref": str(ref)}}
        else:
            require_kept(ref, config_fields, dict.fromkeys(_SCRATCH_FIELDS))
            seq2seq = Seq2SeqModel.from_checkpoint(source, seed=int(config_fields.get("seed", 0)))
            own = seq2seq.require_decoding()
            fields = {
                "num_beams": own.num_beams,
                "length_penalty": own.length_penalty,
                "max_length": min(TranslatorConfig().max_length, getattr(seq2seq.model, "longest_target", None) or 256),
            }
            translator = cls(TranslatorConfig.from_dict(fields | config_fields))
            _require_room(ref, seq2seq, translator.config.max_length)
            translator._seq2seq = seq2seq
            record = source.record or {}
            translator.provenance = {
                "preset": {
                    "ref": str(ref),
                    "source": record.get("source", str(ref)),
                    "licence": record.get("licence", "not stated"),
                }
            }
        translator._trained = True
        return translator

    @property
    def tokenizer(self) -> TranslationTokenizer | None:
        """What cuts texts into tokens; None before `fit`, where it is learned from the training set."""
        return self._seq2seq.tokenizer

    @property
    def model(self) -> keras.Model:
        """{"source_ids" int32, "source_mask" bool (N, S), "target_ids" int32 (N, T)} -> logits (N, T, V)."""
        return self._seq2seq.model

    @property
    def decoding(self) -> DecodingConfig:
        """How translations are searched for: the network's own ids with the config's beams and lengths."""
        return self._seq2seq.with_decoding(
            num_beams=self.config.num_beams,
            num_answers=1,
            length_penalty=self.config.length_penalty,
            max_length=self.config.max_length,
        )

    @property
    def is_fitted(self) -> bool:
        """Whether `predict` can answer."""
        return self._trained

    def predict(
        self,
        inputs: Sequence[str],
        *,
        num_answers: int = 1,
        language: str | None = None,
        decoding: DecodingConfig | None = None,
        batch_size: int = 32,
    ) -> list[Translation]:
        """A translation of each text.

        Args:
            inputs: texts of any length.
            num_answers: translations of each text, the best of which is the answer and the others its `alternatives`;
                with more than the config's beams, the search has as many beams.
            language: to translate into, where it is not the config's.
            decoding: another way to search, such as `translator.decoding.replace(num_beams=1, sample=True)`.
            batch_size: sentences that go through the model together.

        Raises:
            NotFittedError: before `fit`, unless the translator came from a preset.
            BadExampleError: for bytes that are not UTF-8.
            TypeError: for what is no list of texts.
            ValueError: for a language that the model does not know.
        """
        self._require_fitted("predict")
        inputs = listed(inputs, "texts")
        if num_answers < 1:
            raise ValueError(f"`num_answers` must be at least 1; received {num_answers}.")
        decoding = self._search(decoding or self.decoding, num_answers)
        language = self.config.language if language is None else language
        answers: list[Translation] = []
        for start in range(0, len(inputs), _CHUNK):
            texts = [decoded_text(text) for text in inputs[start : start + _CHUNK]]
            answers += self._translated(texts, decoding, language, batch_size)
        return answers

    def training_task(
        self, train: Any, training: TrainingConfig, *, validate: Callable[[], Metrics] | None = None
    ) -> TrainingTask:
        """What the training loop, and the learning-rate finder, need: model, loss and batches for `train`."""
        from shared.training import TrainingTask, run_fingerprint, training_loading

        source = as_source(train, name="train")
        self._seq2seq.ensure(_good_pairs(source), self.config)
        forget_weights(self.model)
        decoding = self._seq2seq.require_decoding()
        varied = self.config.subword_sampling > 0
        stages = Stages(
            encode=self._encode_with_texts if varied else self._encode,
            augment=self._resampling() if varied else None,
            collate=lambda examples: stack_pairs(
                examples, start_id=decoding.start_id, pad_id=decoding.pad_id, limit=self.config.max_length
            ),
            length=longer_side,
        )
        batches = InputPipeline(source, stages, training_loading(training))
        return TrainingTask(
            model=self.model,
            loss=self._loss(training),
            batches=batches,
            validate=validate,
            varying_shapes=True,
            fingerprint=run_fingerprint(self, batches),
        )

    def _fit(self, train: Any, validation: Any, options: FitOptions) -> History:
        from shared.training import run_training, validation_loading

        validate = None
        if validation is not None:
            scored = self._scoring_batches(validation, validation_loading(options.training))
            validate = functools.partial(self._validated, scored)
        history = run_training(self.training_task(train, options.training, validate=validate), options)
        self._trained = True
        return history

    def _evaluate(self, data: Any, loading: Loading) -> Metrics:
        return self._score(self._scoring_batches(data, loading))

    # Texts on their way in.

    def _encode(self, source: Any, target: Any) -> Arrays:
        tokenizer = self._seq2seq.require_tokenizer()
        text, reference = text_pair(source, target)
        (source_ids,) = tokenizer.encode([self.config.prefix + text], language=self.config.language)
        (target_ids,) = tokenizer.encode_targets([reference])
        first = self._seq2seq.require_decoding().forced_first_id
        target_ids = target_ids if first is None else [first, *target_ids]
        return pair_arrays(source_ids, target_ids, max_length=self.config.max_length)

    def _encode_with_texts(self, source: Any, target: Any) -> Arrays:
        """As `_encode`, with the texts, which `_resampling` cuts anew in each epoch."""
        text, reference = text_pair(source, target)
        spelled = self._seq2seq.require_tokenizer().without_language(self.config.prefix + text)
        texts = {"source": _as_array(spelled), "reference": _as_array(reference)}
        return self._encode(source, target) | texts

    def _resampling(self) -> Callable[[Arrays, np.random.Generator], Arrays]:
        from nlp.subword_sampling import SubwordSampler

        sides = self._seq2seq.require_tokenizer().sides
        if sides is None:
            raise ValueError("`subword_sampling` needs a SentencePiece vocabulary, which is not there. Set it to 0.")
        samplers = [SubwordSampler(side, self.config.subword_sampling) for side in sides]
        names, longest = (("source", "source_ids"), ("reference", "targets")), self.config.max_length

        def resampled(arrays: Arrays, rng: np.random.Generator) -> Arrays:
            return {
                name: _resampled(arrays[name], str(arrays[text]), sampler, rng, longest)
                for sampler, (text, name) in zip(samplers, names, strict=True)
            }

        return resampled

    def _loss(self, training: TrainingConfig) -> Callable[[dict[str, tf.Tensor]], tf.Tensor]:
        from nlp.models.token_loss import token_cross_entropy

        model = self.model

        def loss(batch: dict[str, tf.Tensor]) -> tf.Tensor:
            inputs = {key: batch[key] for key in ("source_ids", "source_mask", "target_ids")}
            logits = model(inputs, training=True)
            return token_cross_entropy(logits, batch["targets"], label_smoothing=training.label_smoothing)

        return loss

    # Scores.

    def _scoring_batches(self, data: Any, loading: Loading) -> InputPipeline:
        def texts(source: Any, target: Any) -> Arrays:
            return dict(zip(("source", "reference"), map(_as_array, text_pair(source, target)), strict=True))

        return InputPipeline(as_source(data), Stages(encode=texts), replace(loading, batch_size=_CHUNK))

    def _validated(self, batches: InputPipeline) -> Metrics:
        try:
            return self._score(batches)
        finally:
            forget_weights(self.model)

    def _score(self, batches: InputPipeline) -> Metrics:
        decoding = self._search(self.decoding, 1)
        answers = []
        for batch in batches.epoch():
            found = self._translated(batch["source"].tolist(), decoding, self.config.language, 32)
            texts = np.array([answer.text for answer in found], object)
            answers.append({"predicted": texts, "reference": batch["reference"]})
        return measured_examples(
            batches,
            joined(answers),
            lambda rows: translation_scores(rows["predicted"].tolist(), rows["reference"].tolist()),
        )

    # Answers.

    def _search(self, decoding: DecodingConfig, num_answers: int) -> DecodingConfig:
        longest = getattr(self.model, "longest_target", None)
        return replace(
            decoding,
            num_answers=num_answers,
            num_beams=decoding.num_beams if decoding.sample else max(decoding.num_beams, num_answers),
            max_length=min(decoding.max_length, longest or decoding.max_length),
        )

    def _translated(
        self, texts: Sequence[str], decoding: DecodingConfig, language: str, batch_size: int
    ) -> list[Translation]:
        pieces = [self._pieces(text, language) for text in texts]
        rows = [piece.ids for text in pieces for piece in text if piece.ids]
        found = iter(self._seq2seq.decode(rows, decoding, batch_size))
        return [self._joined(text, found, decoding) for text in pieces]

    def _pieces(self, text: str, language: str) -> list[_Piece]:
        """A text in parts: sentences with their ids, and what lies between and is kept as it is."""
        spans = split_sentences(text) if self.config.sentences else split_lines(text)
        return [part for piece in spans for part in self._parts(piece, language)]

    def _parts(self, piece: Piece, language: str) -> Iterator[_Piece]:
        """A sentence; cut in two, and each again, where it has too many tokens."""
        if not any(character.isalnum() for character in piece.text):
            yield _Piece(piece.text + piece.after)
            return
        tokenizer = self._seq2seq.require_tokenizer()
        (ids,) = tokenizer.encode([self.config.prefix + piece.text], language=language)
        if len(ids) > self.config.max_length and len(piece.text) > 1:
            for half in split_sentences(piece.text, max_characters=math.ceil(len(piece.text) / 2)):
                yield from self._parts(half, language)
            yield _Piece(piece.after)
            return
        if not tokenizer.knows(ids):
            yield _Piece(piece.text + piece.after)
            return
        yield _Piece(piece.after, ids)

    def _joined(self, pieces: Sequence[_Piece], found: Iterator[Decoded], decoding: DecodingConfig) -> Translation:
        texts, sums, counts = [""] * decoding.num_answers, [0.0] * decoding.num_answers, [0] * decoding.num_answers
        for piece in pieces:
            if piece.ids:
                answers = next(found)
                for number, text in enumerate(self._seq2seq.texts(answers)):
                    texts[number] += text
                    sums[number] += float(answers.scores[number]) * int(answers.lengths[number])
                    counts[number] += int(answers.lengths[number])
            texts = [text + piece.text for text in texts]
        best, *others = (
            Translation(text, total / count if count else 0.0)
            for text, total, count in zip(texts, sums, counts, strict=True)
        )
        return replace(best, alternatives=tuple(others) if counts[0] else ())

    def save_hugging_face(self, path: str | Path) -> None:
        """Write a directory that transformers' Marian classes load: weights, config, vocabularies.

        Raises:
            NotFittedError: before `fit`.
            ValueError: where they cannot express the network (T5, SSRU decoders) or the vocabulary.
        """
        self._require_fitted("save_hugging_face")
        self._seq2seq.write_hugging_face(Path(path), self._search(self.decoding, 1))

    # Files.

    def _manifest(self) -> dict[str, Any]:
        record = {
            "architecture": dict(self._seq2seq.architecture or {}),
            "decoding": self._seq2seq.require_decoding().to_dict(),
        }
        return record | {key: self.provenance[key] for key in ("preset",) if key in self.provenance}

    def _write(self, directory: Path) -> None:
        self._seq2seq.write(directory)

    @classmethod
    def _from_directory(cls, directory: Path, config: TranslatorConfig, manifest: Mapping[str, Any]) -> Self:
        translator = cls(config)
        decoding = DecodingConfig.from_dict(manifest["decoding"])
        translator._seq2seq = Seq2SeqModel.from_files(directory, manifest["architecture"], decoding)
        translator._trained = True
        return translator

    def _export(self, path: Path, format: ExportFormat) -> ExportReport:
        from nlp.models.translation_serving import logits_endpoint, token_endpoint
        from shared.export import export_litert, export_onnx, export_saved_model

        tokenizer, decoding = self._seq2seq.require_tokenizer(), self._search(self.decoding, 1)
        rows = tokenizer.encode([self.config.prefix + text for text in _SAMPLE_TEXTS], language=self.config.language)
        rows = [row[-self.config.max_length :] for row in rows]
        examples = [pair_arrays(row, row, max_length=self.config.max_length) for row in rows]
        batch = stack_pairs(examples, start_id=decoding.start_id, pad_id=decoding.pad_id)
        if format == "litert":
            return export_litert(path, logits_endpoint(self.model, batch), track=[self.model])
        if format == "onnx":
            return export_onnx(path, logits_endpoint(self.model, batch))
        twin, from_texts = self._text_endpoint(decoding)
        endpoints = from_texts | {
            "serve_tokens": token_endpoint(self.model, decoding, batch, self._seq2seq.decode(rows, decoding, 32)),
            "serve_logits": logits_endpoint(self.model, batch),
        }
        return export_saved_model(path, endpoints, track=[self.model, *twin])

    def _text_endpoint(self, decoding: DecodingConfig) -> tuple[list[tf.Module], dict[str, Endpoint]]:
        """The tokenizer's twin for graphs and what takes strings; nothing where the tokenizer has no twin."""
        from nlp.in_graph_translation import in_graph_translation
        from nlp.models.translation_serving import text_endpoint

        try:
            twin = in_graph_translation(self._seq2seq.require_tokenizer(), language=self.config.language)
        except ValueError as error:
            logger.warning("the export takes tokens only, no strings: %s", error)
            return [], {}
        # Longer ones are cut elsewhere than `predict` does.
        texts = [text for text in (*_SAMPLE_TEXTS, "", "?!") if len(self._pieces(text, self.config.language)) < 2]
        expected = [self.predict([text], decoding=decoding)[0].text for text in texts]
        prefix, limit = self.config.prefix, self.config.max_length
        endpoint = text_endpoint(self.model, decoding, twin, texts, expected, prefix=prefix, limit=limit)
        return [twin], {"serve": endpoint}


@dataclass(frozen=True)
class _Piece:
    """A sentence as ids, none for what is kept as it is, and the text that stands after its translation."""

    text: str
    ids: Sequence[int] = ()


def _resampled(
    ids: np.ndarray, text: str, sampler: SubwordSampler, rng: np.random.Generator, longest: int
) -> np.ndarray:
    """A text's ids cut anew behind what stands before them, such as a language; as they are where that is too long."""
    (best,) = sampler.vocabulary.encode([encodable(text)])
    found = sampler.encode(text, rng)
    before, behind = np.split(ids, [max(len(ids) - len(best), 0)])
    if len(before) + len(found) > longest or behind.tolist() != best:
        return ids
    return np.asarray([*before, *found], np.int32)


def _require_room(ref: str | Path, seq2seq: Seq2SeqModel, max_length: int) -> None:
    longest = getattr(seq2seq.model, "longest_target", None)
    if longest is not None and max_length > longest:
        raise ValueError(f"{ref} takes at most {longest} tokens; received `max_length` {max_length}.")


def _as_array(text: str) -> np.ndarray:
    array = np.empty((), object)
    array[()] = text
    return array


def _good_pairs(source: Source) -> Iterator[tuple[str, str]]:
    """The pairs of a training set that can be read, for the vocabulary."""
    pairs = zip(source.inputs, source.targets, strict=True) if isinstance(source, Examples) else iter(source)
    for pair in pairs:
        try:
            yield text_pair(*pair)
        except BadExampleError:  # reported when the set is trained on
            continue
