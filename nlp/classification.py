"""Text classification: config, result type, pipeline.

TensorFlow and Keras are imported where they are used, so that `--help` is quick and a `RuntimeConfig` can still take
effect before them.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from nlp.inputs import text_or_pair
from nlp.metrics import regression_scores
from nlp.text_model import SCRATCH_FIELDS, TextModel, readable, require_kept, require_room
from nlp.tokenization import TextTokenizer, Window
from nlp.windows import flat_windows, num_tokens, run_windows, stack_windows, window_arrays
from shared.classification import Classification, ClassLabels, class_names
from shared.config import Config, option
from shared.data import Arrays, InputPipeline, Loading, Stages
from shared.examples import BadExampleError, Examples, Source, as_source, listed
from shared.pipeline import ExportFormat, FitOptions, History, Metrics, Pipeline
from shared.runtime import current_runtime
from shared.scoring import joined, measured_examples
from shared.vocabulary import Vocabulary

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from nlp.checkpoints import Kind
    from nlp.models.window_function import WindowFunction
    from shared.export import Endpoint, ExportReport
    from shared.training import TrainingTask
    from shared.training_config import TrainingConfig

logger = logging.getLogger(__name__)

FROM_DATA = "from_data"
# Kinds of heads of checkpoints that classify texts.
_KINDS = ("classification", "multi_label", "regression")
# Texts whose windows are in memory together while they are scored.
_CHUNK = 512
# Texts on which an export is compared with `predict`.
_SAMPLE_TEXTS = ("A short text.", "Another one, with more words: 1, 2, 3!", "Ünïcödé 🎬")


@dataclass(frozen=True, kw_only=True)
class TextClassifierConfig(Config):
    """What a text classifier is: its classes, its network, and how long texts are cut into windows."""

    labels: tuple[str, ...] = option((), "class names; empty: learned from the training set")
    multi_label: bool = option(False, "a text may have any number of classes")
    threshold: float = option(0.5, "probability from which a class is assigned (multi-label)", minimum=0.0, maximum=1.0)
    regression: bool = option(False, "targets are numbers, answers have a `value`")
    max_length: int = option(
        256, "longest window of a text; longer texts are cut into several", minimum=8, unit="tokens"
    )
    window_overlap: int = option(
        32, "tokens that neighbouring windows share, at most half of one", minimum=0, unit="tokens"
    )
    max_windows: int = option(4, "windows of a long text used in training; answers use all", minimum=1)
    window_pooling: Literal["mean", "max"] = option("mean", "how the logits of a text's windows become one")
    token_pooling: Literal["first", "mean"] = option(
        "first",
        "what of a transformer stands for a text under a new head: its first token, or the mean over its tokens",
    )
    encoder: Literal["transformer", "gru", "lstm"] = option("transformer", "network trained from scratch")
    vocab_size: int = option(8000, "largest vocabulary of a tokenizer learned from the training set", minimum=100)
    lower_case: bool = option(True, "a tokenizer learned from the training set ignores case and accents")
    hidden_size: int = option(128, "features per token, from scratch", minimum=8)
    num_layers: int = option(2, "layers, from scratch", minimum=1)
    num_heads: int = option(4, "attention heads of a transformer, from scratch", minimum=1)
    dropout: float = option(0.1, "share of features dropped in training, from scratch", minimum=0.0, maximum=0.95)
    class_weights: Literal["none", "balanced"] = option("none", "balanced: rare classes weigh more in the loss")
    consistency: float = option(
        0.0, "weight in the loss of how two passes with other dropout differ (R-Drop); twice the time", minimum=0.0
    )
    seed: int = option(0, "seed of the initial weights", minimum=0)

    def __post_init__(self) -> None:
        """Refuse fields that contradict each other."""
        super().__post_init__()
        if self.multi_label and self.regression:
            raise ValueError("`multi_label` and `regression` exclude each other: targets are labels or numbers.")
        if self.labels and self.regression:
            raise ValueError("`labels` and `regression` exclude each other: targets are labels or numbers.")
        if self.consistency and self.regression:
            raise ValueError("`consistency` compares probabilities, which `regression` has not.")
        if self.token_pooling != "first" and self.encoder != "transformer":
            raise ValueError(
                f"`token_pooling` {self.token_pooling} would have no effect: a {self.encoder} takes the largest."
            )
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"`hidden_size` must be a multiple of `num_heads`; received {self.hidden_size} and {self.num_heads}."
            )


@dataclass(frozen=True)
class TextClassification(Classification):
    """Answer for one text: classes by falling probability, or for regression a `value`; from how many windows."""

    value: float | None = None
    num_windows: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        if self.value is not None:
            return {"value": round(self.value, 6), "num_windows": self.num_windows}
        return super().to_dict() | {"num_windows": self.num_windows}


class TextClassifier(Pipeline):
    """Texts, or pairs of texts, in; class names with probabilities out.

    Example:
        >>> classifier = TextClassifier.from_preset("minilm_l6", labels="from_data")     # doctest: +SKIP
        >>> history = classifier.fit(read_text_table("reviews.csv"))                     # doctest: +SKIP
        >>> classifier.predict(["a fine film"])[0].label                                 # doctest: +SKIP
        'positive'
    """

    task: ClassVar[str] = "text_classification"
    config_class: ClassVar[type[Config]] = TextClassifierConfig
    config: TextClassifierConfig

    def __init__(self, config: TextClassifierConfig | None = None) -> None:
        super().__init__(config)
        self.labels: Vocabulary | None = Vocabulary(self.config.labels) if self.config.labels else None
        new_head = {"hidden_activation": "tanh", "dropout": self.config.dropout}
        self._text_model = TextModel(per_text=True, seed=self.config.seed, new_head=new_head)
        self._trained = False
        self._predictor: WindowFunction | None = None

    @classmethod
    def from_preset(
        cls, ref: str | Path, *, labels: Sequence[str] | Literal["from_data"] | None = None, **config_fields: Any
    ) -> Self:
        """A classifier with pretrained weights, their tokenizer, and where they have one their head.

        Args:
            ref: a name in `nlp.presets`, a local directory, `hf://org/name` or `kaggle://...`.
            labels: other classes than the preset's, or "from_data" to learn them from the training set. The head
                is then new and `predict` needs `fit` first. Left out, the preset's own head is kept.
            config_fields: fields of `TextClassifierConfig` that shall differ from the preset's.

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
        keep_head = labels is None and preset.kind in _KINDS
        require_kept(ref, config_fields, dict.fromkeys(SCRATCH_FIELDS))
        if keep_head:
            own_kind = {"multi_label": preset.kind == "multi_label", "regression": preset.kind == "regression"}
            require_kept(ref, config_fields, own_kind | {"token_pooling": "first"}, head=True)
        fields: dict[str, Any] = {
            "max_length": min(TextClassifierConfig().max_length, preset.max_length),
            **config_fields,
        }
        if keep_head:
            fields |= own_kind | {"labels": () if own_kind["regression"] else preset.labels}
        elif labels is not None and labels != FROM_DATA:
            fields["labels"] = tuple(labels)
        classifier = cls(TextClassifierConfig.from_dict(fields))
        require_room(ref, preset, classifier.config.max_length)
        classifier._start_from(
            TextModel.from_checkpoint(
                preset,
                per_text=True,
                keep_head=keep_head,
                seed=classifier.config.seed,
                token_pooling=classifier.config.token_pooling,
            ),
            ref,
            keep_head=keep_head,
        )
        classifier.provenance = {"preset": {"ref": str(ref), "source": preset.source, "licence": preset.licence}}
        return classifier

    def _start_from(self, text_model: TextModel, ref: str | Path, *, keep_head: bool) -> None:
        self._text_model, self._trained = text_model, keep_head
        if not keep_head:
            logger.info("the head of %s is new: call `fit` before `predict`", ref)
            if self.labels is not None:
                text_model.ensure_head(len(self.labels))

    @classmethod
    def _from_saved(cls, saved: Self, ref: str | Path, labels: Any, config_fields: Mapping[str, Any]) -> Self:
        """A saved classifier as a starting point: with its head, or for other labels without it."""
        own = saved.config.to_dict()
        require_kept(ref, config_fields, {name: own[name] for name in (*SCRATCH_FIELDS, "token_pooling")})
        if labels is None:
            require_kept(ref, config_fields, {name: own[name] for name in ("multi_label", "regression")}, head=True)
        config = saved.config.to_dict() | dict(config_fields)
        if labels is None:
            config["labels"] = list(saved.labels or ())
        else:
            config["labels"] = [] if labels == FROM_DATA else list(labels)
        classifier = cls(TextClassifierConfig.from_dict(config))
        keep_head = labels is None
        text_model = saved._text_model if keep_head else saved._text_model.without_head(classifier.config.seed)
        text_model.require_room(ref, classifier.config.max_length)
        classifier._start_from(text_model, ref, keep_head=keep_head)
        classifier.provenance = {"preset": saved.provenance.get("preset", {}) | {"ref": str(ref)}}
        return classifier

    @property
    def tokenizer(self) -> TextTokenizer | None:
        """What cuts texts into tokens; None before `fit`, where it is learned from the training set."""
        return self._text_model.tokenizer

    @property
    def model(self) -> keras.Model:
        """{"token_ids", "segment_ids" (int32), "mask" (bool)}, each (N, T) -> logits (N, number of labels)."""
        return self._text_model.model

    @property
    def is_fitted(self) -> bool:
        """Whether `predict` can answer."""
        return self._trained

    def predict(self, inputs: Sequence[Any], *, top_k: int = 5, batch_size: int = 32) -> list[TextClassification]:
        """Classes of each text, most probable first; for regression its value.

        Args:
            inputs: texts (str), or pairs of texts (tuples of two) where the classifier was trained on pairs.
            top_k: how many classes an answer has (single-label).
            batch_size: windows that go through the model together.

        Raises:
            NotFittedError: before `fit`, unless the preset came with a head.
            BadExampleError: for bytes that are not UTF-8.
            TypeError: for what is no list of texts or of pairs.
        """
        self._require_fitted("predict")
        inputs = listed(inputs, "texts")
        if top_k < 1:
            raise ValueError(f"`top_k` must be at least 1; received {top_k}.")
        answers: list[TextClassification] = []
        for start in range(0, len(inputs), _CHUNK):
            windows = self._windows_of_batch(inputs[start : start + _CHUNK])
            batch = flat_windows([window_arrays(rows) for rows in windows])
            answers += self._answers(batch, top_k, batch_size)
        return answers

    def training_task(
        self, train: Any, training: TrainingConfig, *, validate: Callable[[], Metrics] | None = None
    ) -> TrainingTask:
        """What the training loop, and the learning-rate finder, need: model, loss and batches for `train`."""
        from shared.fine_tuning import rate_factors
        from shared.training import TrainingTask, run_fingerprint, training_loading

        source = as_source(train, name="train")
        if self.labels is None and not self.config.regression:
            self.labels = class_names(source, multi_label=self.config.multi_label)
        self._ensure_model(source)
        set_head_only = functools.partial(self._text_model.set_head_only, first_group=training.freeze_groups)
        set_head_only(False)
        stages = Stages(encode=self._encode_for_training, collate=self._stacked, length=num_tokens)
        batches = InputPipeline(source, stages, training_loading(training))
        return TrainingTask(
            model=self.model,
            loss=self._loss(training, source),
            batches=batches,
            validate=validate,
            set_head_only=set_head_only,
            varying_shapes=True,
            rate_factors=rate_factors(self.model, self._text_model.require_network().encoder, training.layer_decay),
            fingerprint={**run_fingerprint(self, batches), "labels": list(self.labels or ())},
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

    def _windows(self, text: Any) -> list[Window]:
        first, second = text_or_pair(text)
        return self._text_model.require_tokenizer().windows(
            first, second, max_length=self.config.max_length, overlap=self.config.window_overlap
        )

    def _windows_of_batch(self, texts: Sequence[Any]) -> list[list[Window]]:
        parts = [text_or_pair(text) for text in texts]
        if any(pair is not None for _, pair in parts):
            return [self._windows(text) for text in texts]
        return self._text_model.require_tokenizer().windows_of_batch(
            [text for text, _ in parts], max_length=self.config.max_length, overlap=self.config.window_overlap
        )

    def _encode_for_training(self, text: Any, target: Any) -> Arrays:
        windows = self._windows(text)
        if len(windows) > self.config.max_windows:
            chosen = np.linspace(0, len(windows) - 1, self.config.max_windows).round().astype(int)
            windows = [windows[i] for i in chosen]
        return {**window_arrays(windows), "targets": self._target(target)}

    def _stacked(self, examples: Sequence[Arrays]) -> Arrays:
        return stack_windows(examples, limit=self.config.max_length)

    def _target(self, target: Any) -> np.ndarray:
        if not self.config.regression:
            return self._classes.encode(target)
        try:
            value = np.asarray(target, np.float32).reshape(())
        except (TypeError, ValueError) as error:
            raise BadExampleError(f"a target of regression is a number; received {target!r}") from error
        if not np.isfinite(value):
            raise BadExampleError(f"a target of regression is a finite number; received {target!r}")
        return value

    @property
    def _kind(self) -> Kind:
        if self.config.regression:
            return "regression"
        return "multi_label" if self.config.multi_label else "classification"

    @property
    def _classes(self) -> ClassLabels:
        assert self.labels is not None
        return ClassLabels(self.labels, self.config.multi_label, self.config.threshold)

    # Loss, scores, answers.

    def _loss(self, training: TrainingConfig, source: Source) -> Callable[[dict[str, tf.Tensor]], tf.Tensor]:
        import tensorflow as tf

        from nlp.models.network import pooled_logits
        from shared.losses import cross_entropy, disagreement

        model, config = self.model, self.config
        weights = self._classes.balanced_weights(source) if config.class_weights == "balanced" else None

        def answer(batch: dict[str, tf.Tensor]) -> tf.Tensor:
            return pooled_logits(model, batch, pooling=config.window_pooling, training=True)

        def loss_of(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
            if config.regression:
                return tf.reduce_mean(tf.square(logits[:, 0] - targets))
            return cross_entropy(
                logits,
                targets,
                multi_label=config.multi_label,
                label_smoothing=training.label_smoothing,
                class_weights=weights,
            )

        def loss(batch: dict[str, tf.Tensor]) -> tf.Tensor:
            logits = answer(batch)
            if not config.consistency:
                return loss_of(logits, batch["targets"])
            again = answer(batch)
            mean = (loss_of(logits, batch["targets"]) + loss_of(again, batch["targets"])) / 2
            return mean + config.consistency / 2 * disagreement(logits, again, multi_label=config.multi_label)

        return loss

    def _scoring_batches(self, data: Any, loading: Loading) -> InputPipeline:
        stages = Stages(
            encode=lambda text, target: {**window_arrays(self._windows(text)), "targets": self._target(target)},
            collate=flat_windows,
        )
        return InputPipeline(as_source(data), stages, replace(loading, batch_size=_CHUNK))

    def _score(self, batches: InputPipeline, *, settled: bool = True) -> Metrics:
        answers = joined(
            {"logits": self._logits(batch, settled=settled), "targets": batch["targets"]} for batch in batches.epoch()
        )
        return measured_examples(batches, answers, self._measure)

    def _measure(self, answers: Arrays) -> Metrics:
        logits, targets = answers["logits"], answers["targets"]
        if self.config.regression:
            return regression_scores(logits[:, 0], targets)
        return self._classes.score(self._probabilities(logits), targets)

    def _logits(self, batch: Arrays, batch_size: int = 32, *, settled: bool = True) -> np.ndarray:
        """Logits (B, K) float32 of texts in flat windows; `settled`: the weights will stay as they are."""
        from nlp.models.window_function import WindowFunction

        if self._predictor is None:
            self._predictor = WindowFunction(self.model)
        outputs = run_windows(
            self._predictor.settled(len(batch["mask"])) if settled else self._predictor,
            batch,
            limit=self.config.max_length,
            batch_size=batch_size,
            few_lengths=current_runtime().few_shapes,
        )
        rows = np.stack(outputs)
        first = np.cumsum(batch["num_windows"]) - batch["num_windows"]
        if self.config.window_pooling == "max":
            return np.maximum.reduceat(rows, first)
        means: np.ndarray = np.add.reduceat(rows, first) / batch["num_windows"][:, None]
        return means

    def _probabilities(self, logits: np.ndarray) -> np.ndarray:
        if self.config.multi_label:
            chances: np.ndarray = 1 / (1 + np.exp(-logits))
            return chances
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
        return shares

    def _answers(self, batch: Arrays, top_k: int, batch_size: int) -> list[TextClassification]:
        logits, counts = self._logits(batch, batch_size), batch["num_windows"].tolist()
        if self.config.regression:
            values = logits[:, 0].tolist()
            return [TextClassification((), (), value, count) for value, count in zip(values, counts, strict=True)]
        return [
            TextClassification(*self._classes.ranked(row, top_k), num_windows=count)
            for row, count in zip(self._probabilities(logits), counts, strict=True)
        ]

    # Network and files.

    def _ensure_model(self, source: Source) -> None:
        inputs = source.inputs if isinstance(source, Examples) else (text for text, _ in source)
        self._text_model.ensure_encoder(readable(inputs, text_or_pair), self.config)
        new = self._text_model.ensure_head(1 if self.labels is None else len(self.labels))
        if new and self.config.regression:
            self._start_at_mean(source)

    def _start_at_mean(self, source: Source) -> None:
        """Let a new head answer with the mean of all targets: small steps would take long to get there from 0."""
        targets = source.targets if isinstance(source, Examples) else (target for _, target in source)
        values = list(readable(targets, lambda target: [float(self._target(target))]))
        head = self._text_model.require_network().head
        assert head is not None
        head.get_layer("logits").bias.assign([np.mean(values) if values else 0.0])

    def _manifest(self) -> dict[str, Any]:
        record = {"architecture": self._text_model.require_network().architecture}
        return record | {key: self.provenance[key] for key in ("preset",) if key in self.provenance}

    def _write(self, directory: Path) -> None:
        if self.labels is not None:
            self.labels.save(directory / "labels.vocab.txt")
        self._text_model.write(directory)

    @classmethod
    def _from_directory(cls, directory: Path, config: TextClassifierConfig, manifest: Mapping[str, Any]) -> Self:
        classifier = cls(config)
        if not config.regression:
            classifier.labels = Vocabulary.load(directory / "labels.vocab.txt")
        classifier._text_model.read(directory, manifest["architecture"])
        classifier._trained = True
        return classifier

    def _export(self, path: Path, format: ExportFormat) -> ExportReport:
        from nlp.models.serving import classifier_endpoints
        from shared.export import export_litert, export_onnx, export_saved_model

        batch, expected = self._exported(_SAMPLE_TEXTS)
        network = self._text_model.require_network()
        model, endpoints = classifier_endpoints(network, self.config, batch, expected)
        if format == "litert":
            return export_litert(path, endpoints["serve_tokens"], track=[model])
        if format == "onnx":
            return export_onnx(path, endpoints["serve_tokens"])
        tokenizer, from_texts = self._text_endpoints(model)
        return export_saved_model(path, from_texts | endpoints, track=[model, *tokenizer])

    def _exported(self, texts: Sequence[Any]) -> tuple[Arrays, np.ndarray]:
        """Flat windows of texts, and what an export shall answer."""
        batch = flat_windows([window_arrays(self._windows(text)) for text in texts])
        logits = self._logits(batch)
        return batch, logits if self.config.regression else self._probabilities(logits)

    def _text_endpoints(self, model: keras.Model) -> tuple[list[tf.Module], dict[str, Endpoint]]:
        """The tokenizer's twin for graphs and what takes strings; nothing where the tokenizer has no twin."""
        from nlp.in_graph import in_graph_tokenizer
        from nlp.models.serving import text_endpoints

        try:
            twin = in_graph_tokenizer(self._text_model.require_tokenizer(), self.config.max_length)
        except ValueError as error:
            logger.warning("the export takes tokens only, no strings: %s", error)
            return [], {}
        texts = [*_SAMPLE_TEXTS, " ".join(_SAMPLE_TEXTS * self.config.max_length)]
        pairs = list(zip(texts, texts[::-1], strict=True))
        examples = {"serve": (texts,), "serve_pairs": (texts, texts[::-1])}
        expected = {"serve": self._exported(texts)[1], "serve_pairs": self._exported(pairs)[1]}
        return [twin], text_endpoints(model, self.config, twin, examples, expected)

    def save_hugging_face(self, path: str | Path) -> None:
        """Write a directory that transformers loads: config.json, model.safetensors and the tokenizer's files.

        Raises:
            NotFittedError: before `fit`.
            ValueError: for a recurrent network, or what the family of the network cannot express.
        """
        self._require_fitted("save_hugging_face")
        labels = [str(name) for name in self.labels or ("LABEL_0",)]
        self._text_model.write_hugging_face(path, labels, self._kind)
