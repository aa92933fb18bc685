"""Named entity recognition: config, result types, pipeline.

A text is a sequence of words, its own (token lists, CoNLL files) or those that `nlp.words` finds in a string. The first
token of a word answers for it; each word is answered for by the window in which it has most context; the best sequence
of tags is then sought over the whole text, however long.

TensorFlow and Keras are imported where they are used, so that `--help` is quick and a `RuntimeConfig` can still take
effect before them.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from nlp.inputs import WordedText, entities_of, scheme_of, types_in, types_of, worded_text
from nlp.metrics import entity_scores
from nlp.tags import (
    EntitySpan,
    Scheme,
    detect_scheme,
    entities,
    tag_names,
    tags_of,
    transitions,
)
from nlp.text_model import SCRATCH_FIELDS, TextModel, readable, require_kept, require_room
from nlp.tokenization import TextTokenizer, Window
from nlp.viterbi import TagChain
from nlp.windows import flat_windows, num_tokens, run_windows, stack_windows, window_arrays
from shared.config import Config, option
from shared.data import Arrays, InputPipeline, Loading, Stages
from shared.examples import Examples, as_source, listed
from shared.pipeline import ExportFormat, FitOptions, History, Metrics, Pipeline
from shared.runtime import current_runtime
from shared.scoring import joined, measured_examples
from shared.vocabulary import Vocabulary

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from nlp.models.window_function import WindowFunction
    from shared.export import ExportReport
    from shared.training import TrainingTask
    from shared.training_config import TrainingConfig

logger = logging.getLogger(__name__)

FROM_DATA = "from_data"
# Texts whose windows are in memory together while they are answered.
_CHUNK = 256
# Target of tokens that do not answer for a word.
_IGNORED = -1
_SAMPLE_TEXTS = ("Ada Lovelace met Charles Babbage in London.", "Nobody.", "Zoë 🎬 東京")


@dataclass(frozen=True, kw_only=True)
class EntityRecognizerConfig(Config):
    """What an entity recognizer is: its types, its network, and how long texts are cut into windows."""

    labels: tuple[str, ...] = option((), "entity types; empty: learned from the training set")
    scheme: Literal["IOB1", "IOB2", "BIOES"] = option("IOB2", "how the network's own tags are written")
    crf: bool = option(False, "a conditional random field over the tags")
    constrained: bool = option(True, "answers keep to the scheme; off: tags that break it are read leniently")
    max_length: int = option(
        256, "longest window of a text; longer texts are cut into several", minimum=8, unit="tokens"
    )
    window_overlap: int = option(
        64, "tokens that neighbouring windows share, at most half of one", minimum=0, unit="tokens"
    )
    max_windows: int = option(4, "windows of a long text used in training; answers use all", minimum=1)
    encoder: Literal["transformer", "gru", "lstm"] = option("transformer", "network trained from scratch")
    vocab_size: int = option(8000, "largest vocabulary of a tokenizer learned from the training set", minimum=100)
    lower_case: bool = option(False, "a tokenizer learned from the training set ignores case and accents")
    hidden_size: int = option(128, "features per token, from scratch", minimum=8)
    num_layers: int = option(2, "layers, from scratch", minimum=1)
    num_heads: int = option(4, "attention heads of a transformer, from scratch", minimum=1)
    dropout: float = option(0.1, "share of features dropped in training, from scratch", minimum=0.0, maximum=0.95)
    seed: int = option(0, "seed of the initial weights", minimum=0)

    def __post_init__(self) -> None:
        """Refuse fields that contradict each other."""
        super().__post_init__()
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"`hidden_size` must be a multiple of `num_heads`; received {self.hidden_size} and {self.num_heads}."
            )


@dataclass(frozen=True)
class Entity:
    """A named entity: `text` is `original[start:end]` in characters, `score` the mean probability of its words' tags.

    Where the input was a list of words, the original is the words with a space between them, and `words` are the
    numbers of the first word and of the one after the last.
    """

    text: str
    label: str
    start: int
    end: int
    score: float
    words: tuple[int, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        record = {"text": self.text, "label": self.label, "start": self.start, "end": self.end}
        words = {} if self.words is None else {"words": list(self.words)}
        return {**record, **words, "score": round(self.score, 6)}


class Entities(tuple[Entity, ...]):
    """The entities of one text, in its order."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"entities": [entity.to_dict() for entity in self]}


class EntityRecognizer(Pipeline):
    """Texts in, named entities with their places out.

    Example:
        >>> recognizer = EntityRecognizer.from_preset("minilm_l6", labels="from_data")        # doctest: +SKIP
        >>> history = recognizer.fit(read_conll("train.conll"))                               # doctest: +SKIP
        >>> recognizer.predict(["Ada Lovelace lived in London."])[0][0].text                  # doctest: +SKIP
        'Ada Lovelace'
    """

    task: ClassVar[str] = "named_entity_recognition"
    config_class: ClassVar[type[Config]] = EntityRecognizerConfig
    config: EntityRecognizerConfig

    def __init__(self, config: EntityRecognizerConfig | None = None) -> None:
        super().__init__(config)
        self.tags: Vocabulary | None = None
        if self.config.labels:
            self.tags = Vocabulary(tag_names(self.config.labels, self.config.scheme))
        new_head = {"kind": "tokens", "dropout": self.config.dropout}
        self._text_model = TextModel(per_text=False, seed=self.config.seed, new_head=new_head)
        self._trained = False
        self._predictor: WindowFunction | None = None

    @classmethod
    def from_preset(
        cls, ref: str | Path, *, labels: Sequence[str] | Literal["from_data"] | None = None, **config_fields: Any
    ) -> Self:
        """A recognizer with pretrained weights, their tokenizer, and where they have one their head.

        Args:
            ref: a name in `nlp.presets`, a local directory, `hf://org/name` or `kaggle://...`.
            labels: other entity types than the preset's, or "from_data" to learn them from the training set. The head
                is then new and `predict` needs `fit` first. Left out, the preset's own head is kept, with its tags as
                they are; those that break their scheme are then read leniently.
            config_fields: fields of `EntityRecognizerConfig` that shall differ from the preset's.

        Raises:
            ValueError: for a checkpoint of an unknown family or with weights that do not fit.
            FileNotFoundError: where the preset's package or directory is missing; the message says what to install.
        """
        from nlp.checkpoints import load_pretrained_text
        from nlp.presets import PRESETS
        from shared.pretrained import resolve

        source = resolve(ref, PRESETS)
        if source.layout == "triptych":
            return cls._from_saved(cls.load(str(source.directory)), ref, labels, config_fields)
        preset = load_pretrained_text(source)
        keep_head = labels is None and preset.kind == "tokens"
        require_kept(ref, config_fields, dict.fromkeys(SCRATCH_FIELDS))
        fields: dict[str, Any] = {"max_length": min(EntityRecognizerConfig().max_length, preset.max_length)}
        if keep_head:
            assert preset.labels is not None
            own = {"scheme": detect_scheme([preset.labels]), "crf": False}
            require_kept(ref, config_fields, own, head=True)
            fields |= own | {"constrained": False, "labels": types_of(preset.labels)}
        elif labels is not None and labels != FROM_DATA:
            fields["labels"] = tuple(labels)
        recognizer = cls(EntityRecognizerConfig.from_dict(fields | config_fields))
        require_room(ref, preset, recognizer.config.max_length)
        if keep_head:
            assert preset.labels is not None
            recognizer.tags = Vocabulary(preset.labels)
        recognizer._start_from(
            TextModel.from_checkpoint(preset, per_text=False, keep_head=keep_head, seed=recognizer.config.seed),
            ref,
            keep_head=keep_head,
        )
        recognizer.provenance = {"preset": {"ref": str(ref), "source": preset.source, "licence": preset.licence}}
        return recognizer

    def _start_from(self, text_model: TextModel, ref: str | Path, *, keep_head: bool) -> None:
        self._text_model, self._trained = text_model, keep_head
        if not keep_head:
            logger.info("the head of %s is new: call `fit` before `predict`", ref)
            if self.tags is not None:
                text_model.ensure_head(len(self.tags), crf=self.config.crf)

    @classmethod
    def _from_saved(cls, saved: Self, ref: str | Path, labels: Any, config_fields: Mapping[str, Any]) -> Self:
        """A saved recognizer as a starting point: with its head, or for other types without it."""
        own = saved.config.to_dict()
        require_kept(ref, config_fields, {name: own[name] for name in SCRATCH_FIELDS})
        if labels is None:
            require_kept(ref, config_fields, {name: own[name] for name in ("scheme", "crf")}, head=True)
        config = own | dict(config_fields)
        if labels is not None:
            config["labels"] = [] if labels == FROM_DATA else list(labels)
        recognizer = cls(EntityRecognizerConfig.from_dict(config))
        keep_head = labels is None
        if keep_head:
            recognizer.tags = saved.tags
        text_model = saved._text_model if keep_head else saved._text_model.without_head(recognizer.config.seed)
        text_model.require_room(ref, recognizer.config.max_length)
        recognizer._start_from(text_model, ref, keep_head=keep_head)
        recognizer.provenance = {"preset": saved.provenance.get("preset", {}) | {"ref": str(ref)}}
        return recognizer

    @property
    def tokenizer(self) -> TextTokenizer | None:
        """What cuts texts into tokens; None before `fit`, where it is learned from the training set."""
        return self._text_model.tokenizer

    @property
    def model(self) -> keras.Model:
        """{"token_ids", "segment_ids" (int32), "mask" (bool)}, each (N, T) -> logits (N, T, number of tags)."""
        return self._text_model.model

    @property
    def is_fitted(self) -> bool:
        """Whether `predict` can answer."""
        return self._trained

    @property
    def labels(self) -> tuple[str, ...]:
        """The entity types."""
        return () if self.tags is None else types_of(map(str, self.tags))

    def predict(self, inputs: Sequence[Any], *, batch_size: int = 32) -> list[Entities]:
        """The entities of each text, in its order.

        Args:
            inputs: texts (str), or lists of words; of any length.
            batch_size: windows that go through the model together.

        Raises:
            NotFittedError: before `fit`, unless the preset came with a head.
            TypeError: for an input that is neither a text nor a list of words.
        """
        self._require_fitted("predict")
        inputs = listed(inputs, "texts")
        answers: list[Entities] = []
        for start in range(0, len(inputs), _CHUNK):
            texts = [worded_text(item) for item in inputs[start : start + _CHUNK]]
            found = self._found(flat_windows([self._encode(text) for text in texts]), batch_size)
            answers += [_answer(text, *entities) for text, entities in zip(texts, found, strict=True)]
        return answers

    def training_task(
        self, train: Any, training: TrainingConfig, *, validate: Callable[[], Metrics] | None = None
    ) -> TrainingTask:
        """What the training loop, and the learning-rate finder, need: model, loss and batches for `train`."""
        from shared.fine_tuning import rate_factors
        from shared.training import TrainingTask, run_fingerprint, training_loading

        source = as_source(train, name="train")
        if self.tags is None:
            self.tags = Vocabulary(tag_names(types_in(source), self.config.scheme))
        inputs = source.inputs if isinstance(source, Examples) else (text for text, _ in source)
        self._text_model.ensure_encoder(readable(inputs, lambda text: (worded_text(text).original,)), self.config)
        self._text_model.ensure_head(len(self.tags), crf=self.config.crf)
        set_head_only = functools.partial(self._text_model.set_head_only, first_group=training.freeze_groups)
        set_head_only(False)
        scheme = scheme_of(source)
        stages = Stages(
            encode=lambda text, target: self._encode_for_training(text, target, scheme),
            collate=lambda examples: stack_windows(examples, limit=self.config.max_length),
            length=num_tokens,
        )
        batches = InputPipeline(source, stages, training_loading(training))
        return TrainingTask(
            model=self.model,
            loss=self._loss(training),
            batches=batches,
            validate=validate,
            set_head_only=set_head_only,
            varying_shapes=True,
            rate_factors=rate_factors(self.model, self._text_model.require_network().encoder, training.layer_decay),
            fingerprint={**run_fingerprint(self, batches), "tags": list(self.tags)},
        )

    def _fit(self, train: Any, validation: Any, options: FitOptions) -> History:
        from shared.training import run_training, validation_loading

        validate = None
        if validation is not None:
            scored = self._scoring_batches(validation, validation_loading(options.training))
            validate = functools.partial(self._score, scored, settled=False)
        if self._predictor is not None:
            self._predictor.unsettle()
        history = run_training(self.training_task(train, options.training, validate=validate), options)
        self._trained = True
        return history

    def _evaluate(self, data: Any, loading: Loading) -> Metrics:
        return self._score(self._scoring_batches(data, loading))

    # Texts and targets on their way in.

    def _windows(self, text: WordedText) -> list[Window]:
        return self._text_model.require_tokenizer().windows_of_words(
            text.words, max_length=self.config.max_length, overlap=self.config.window_overlap
        )

    def _encode(self, text: WordedText) -> Arrays:
        """Windows (W, T), and with them `word_ids` (W, T): the word that a token answers for, or -1."""
        windows = self._windows(text)
        arrays = window_arrays(windows)
        arrays["word_ids"] = np.full(arrays["mask"].shape, _IGNORED, np.int32)
        for row, window in enumerate(windows):
            places = _answering(window)
            arrays["word_ids"][row, places] = window.word_ids[places]
        return arrays

    def _encode_for_training(self, value: Any, target: Any, scheme: Scheme) -> Arrays:
        text = worded_text(value)
        tags = self._tag_numbers(text, target, scheme)
        arrays = self._encode(text)
        if len(arrays["mask"]) > self.config.max_windows:
            chosen = np.linspace(0, len(arrays["mask"]) - 1, self.config.max_windows).round().astype(int)
            arrays = {key: array[chosen] for key, array in arrays.items()}
        word_ids = arrays.pop("word_ids")
        arrays["targets"] = np.where(word_ids >= 0, np.append(tags, _IGNORED)[word_ids], _IGNORED).astype(np.int32)
        return arrays

    def _tag_numbers(self, text: WordedText, target: Any, scheme: Scheme) -> np.ndarray:
        """Number of each word's tag, int32."""
        assert self.tags is not None
        own = tags_of(entities_of(text, target, scheme), len(text.spans), self.config.scheme)
        unknown = sorted({tag for tag in own if tag not in self.tags})
        if unknown:
            known = ", ".join(self.labels)
            raise ValueError(
                f"Tags {', '.join(unknown)} are none of this recognizer's, whose types are {known}. Correct the data, "
                'or give `labels=` ("from_data" learns them; a preset\'s head is then new).'
            )
        return self.tags.encode(own).astype(np.int32)

    # Loss, scores, answers.

    def _loss(self, training: TrainingConfig) -> Callable[[dict[str, tf.Tensor]], tf.Tensor]:
        from nlp.models.network import tag_loss

        return tag_loss(
            self.model, crf=self._text_model.require_network().crf, label_smoothing=training.label_smoothing
        )

    def _scoring_batches(self, data: Any, loading: Loading) -> InputPipeline:
        source = as_source(data)
        scheme = scheme_of(source)

        def encode(value: Any, target: Any) -> Arrays:
            text = worded_text(value)
            return {**self._encode(text), "entities": self._entity_numbers(entities_of(text, target, scheme))}

        loading = replace(loading, batch_size=_CHUNK)
        return InputPipeline(source, Stages(encode=encode, collate=_with_entities), loading)

    def _entity_numbers(self, found: Sequence[EntitySpan]) -> np.ndarray:
        """(E, 3) int32: number of the type, first word, word after the last."""
        numbers = {kind: number for number, kind in enumerate(self.labels)}
        unknown = sorted({kind for kind, _, _ in found if kind not in numbers})
        if unknown:
            raise ValueError(
                f"Entities of type {', '.join(unknown)} are none of this recognizer's, whose types are "
                f"{', '.join(numbers)}. Correct the data, or train with `labels`."
            )
        return np.array([(numbers[kind], *place) for kind, *place in found], np.int32).reshape(-1, 3)

    def _score(self, batches: InputPipeline, *, settled: bool = True) -> Metrics:
        answers = []
        for batch in batches.epoch():
            texts = len(batch["num_windows"])
            found = [self._entity_numbers(spans) for spans, _ in self._found(batch, settled=settled)]
            answers.append(
                {
                    "num_true": np.bincount(batch["entities"][:, 0], minlength=texts),
                    "true": batch["entities"][:, 1:],
                    "num_found": np.array([len(spans) for spans in found], np.int64),
                    "found": np.concatenate(found),
                }
            )
        return measured_examples(batches, joined(answers), self._measure)

    def _measure(self, answers: Arrays) -> Metrics:
        return entity_scores(
            self._by_text(answers["true"], answers["num_true"]), self._by_text(answers["found"], answers["num_found"])
        )

    def _by_text(self, spans: np.ndarray, counts: np.ndarray) -> list[list[EntitySpan]]:
        parts, labels = np.split(spans, np.cumsum(counts)[:-1]), self.labels
        return [[(labels[kind], start, end) for kind, start, end in part.tolist()] for part in parts]

    def _found(
        self, batch: Arrays, batch_size: int = 32, *, settled: bool = True
    ) -> Iterator[tuple[list[EntitySpan], list[float]]]:
        """For each text its entities (type, first word, word after the last) and their scores.

        `settled`: the weights will stay as they are.
        """
        from nlp.models.window_function import WindowFunction

        assert self.tags is not None
        if self._predictor is None:
            self._predictor = WindowFunction(self.model)
        outputs = run_windows(
            self._predictor.settled(len(batch["mask"])) if settled else self._predictor,
            batch,
            limit=self.config.max_length,
            batch_size=batch_size,
            few_lengths=current_runtime().few_shapes,
        )
        names = [str(tag) for tag in self.tags]
        ends = np.cumsum(batch["num_windows"]).tolist()
        for first, last in zip([0, *ends], ends, strict=False):
            words, emissions = _by_word(outputs[first:last], batch["word_ids"][first:last], len(names))
            path, chances = self._chain().decode(emissions)
            yield _entities_with_scores([names[tag] for tag in path], chances, words, self.config)

    def _chain(self) -> TagChain:
        assert self.tags is not None
        crf = self._text_model.require_network().crf
        allowed = transitions(list(map(str, self.tags)), self.config.scheme) if self.config.constrained else None
        scores = None if crf is None else [part.numpy() for part in crf.scores()]
        return TagChain(len(self.tags), scores, allowed)

    # Network and files.

    def _manifest(self) -> dict[str, Any]:
        record = {"architecture": self._text_model.require_network().architecture}
        return record | {key: self.provenance[key] for key in ("preset",) if key in self.provenance}

    def _write(self, directory: Path) -> None:
        assert self.tags is not None
        self.tags.save(directory / "tags.vocab.txt")
        self._text_model.write(directory)

    @classmethod
    def _from_directory(cls, directory: Path, config: EntityRecognizerConfig, manifest: Mapping[str, Any]) -> Self:
        recognizer = cls(config)
        recognizer.tags = Vocabulary.load(directory / "tags.vocab.txt")
        recognizer._text_model.read(directory, manifest["architecture"])
        recognizer._trained = True
        return recognizer

    def _export(self, path: Path, format: ExportFormat) -> ExportReport:
        from nlp.models.serving import token_endpoint
        from nlp.models.window_function import WindowFunction
        from shared.export import export_litert, export_onnx, export_saved_model

        batch = flat_windows([self._encode(worded_text(text)) for text in _SAMPLE_TEXTS])
        model, endpoint = token_endpoint(self._text_model.require_network(), batch, WindowFunction(self.model)(batch))
        if format == "litert":
            return export_litert(path, endpoint, track=[model])
        if format == "onnx":
            return export_onnx(path, endpoint)
        return export_saved_model(path, {"serve_tokens": endpoint}, track=[model])

    def save_hugging_face(self, path: str | Path) -> None:
        """Write a directory that transformers loads: config.json, model.safetensors and the tokenizer's files.

        Raises:
            NotFittedError: before `fit`.
            ValueError: for a recurrent network, a conditional random field, or what the family cannot express.
        """
        self._require_fitted("save_hugging_face")
        assert self.tags is not None
        self._text_model.write_hugging_face(path, [str(tag) for tag in self.tags], "tokens")


def _answering(window: Window) -> np.ndarray:
    """Places of the tokens that answer for a word: the first of each, in the window that owns it."""
    words = window.word_ids
    first = np.concatenate([[True], words[1:] != words[:-1]])
    return np.flatnonzero(first & window.owned)


def _with_entities(examples: Sequence[Arrays]) -> Arrays:
    """Flat windows, and all entities (E, 4): number of the text, of the type, first word, word after the last."""
    batch = flat_windows([{key: value for key, value in e.items() if key != "entities"} for e in examples])
    rows = [np.insert(example["entities"], 0, number, axis=1) for number, example in enumerate(examples)]
    return {**batch, "entities": np.concatenate(rows)}


def _by_word(outputs: Sequence[np.ndarray], word_ids: np.ndarray, num_tags: int) -> tuple[np.ndarray, np.ndarray]:
    """Words that have an answer (n,), rising, and their emissions (n, K), from the windows of one text."""
    emissions = [output[: len(ids)][ids[: len(output)] >= 0] for output, ids in zip(outputs, word_ids, strict=True)]
    words = np.concatenate([ids[ids >= 0] for ids in word_ids])
    return words, np.concatenate(emissions) if len(words) else np.zeros((0, num_tags), np.float32)


def _entities_with_scores(
    tags: Sequence[str], chances: np.ndarray, words: np.ndarray, config: EntityRecognizerConfig
) -> tuple[list[EntitySpan], list[float]]:
    places = entities(tags, config.scheme, malformed="repair")
    found = [(kind, int(words[start]), int(words[end - 1]) + 1) for kind, start, end in places]
    return found, [float(chances[start:end].mean()) for _, start, end in places]


def _answer(text: WordedText, found: Sequence[EntitySpan], scores: Sequence[float]) -> Entities:
    answers = []
    for (kind, first, after), score in zip(found, scores, strict=True):
        start, end = text.spans[first][0], text.spans[after - 1][1]
        words = (first, after) if text.is_list else None
        answers.append(Entity(text.original[start:end], kind, start, end, score, words))
    return Entities(answers)
