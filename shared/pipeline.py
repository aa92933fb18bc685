"""The six verbs that every Triptych pipeline has: fit, evaluate, predict, save, load, export.

A task fills in what lies between them (`_fit`, `_evaluate`, ...); the checks, the files and the book-keeping are the
same for all and stand here.
"""

from __future__ import annotations

import abc
import dataclasses
import importlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias, get_args

from shared.artifact import MANIFEST, read_artifact, save_artifact
from shared.config import Config
from shared.data import Loading
from shared.runtime import current_runtime
from shared.training_config import TrainingConfig

if TYPE_CHECKING:
    import keras

    from shared.export import ExportReport

ExportFormat = Literal["saved_model", "litert", "onnx"]
# What a training calls after each epoch with its record.
AfterEpoch: TypeAlias = Callable[[dict[str, Any]], None]

# Where `load_pipeline` finds the class that wrote a directory.
_PIPELINES = {
    "collaborative_filtering": "recsys.collaborative_filtering:CollaborativeFilter",
    "image_classification": "vision.classification:ImageClassifier",
    "image_segmentation": "vision.segmentation:ImageSegmenter",
    "named_entity_recognition": "nlp.ner:EntityRecognizer",
    "object_detection": "vision.detection:ObjectDetector",
    "ranking": "recsys.ranking:Ranker",
    "retrieval": "recsys.retrieval:TwoTowerRetriever",
    "sequential_recommendation": "recsys.sequential:SequentialRecommender",
    "tfrs_ranking": "recsys.tfrs:TFRSRanker",
    "tfrs_retrieval": "recsys.tfrs:TFRSRetriever",
    "text_classification": "nlp.classification:TextClassifier",
    "translation": "nlp.translation:Translator",
}


class NotFittedError(ValueError, AttributeError):
    """A verb was called before the pipeline could answer; the message names the call to make first."""


class TrainingInterrupted(Exception):
    """Training stopped at a signal after its state was saved; the message says how to resume."""


class Metrics(dict[str, float]):
    """Metric values by key; the first is the one that chooses the best weights. `details` holds tables and pictures."""

    def __init__(self, values: dict[str, float], *, details: dict[str, Any] | None = None) -> None:
        super().__init__(values)
        self.details = details or {}

    @property
    def first(self) -> float:
        """The value that model selection goes by; higher is better."""
        return next(iter(self.values()))

    def __str__(self) -> str:
        return "  ".join(f"{name} {value:.4f}" for name, value in self.items())


@dataclass(frozen=True)
class History:
    """How a training run went: one record per epoch, the best of them, and the wall time in seconds.

    A record holds `epoch` (from 1), `step`, `loss`, `learning_rate`, `seconds`, `examples_per_second` and, where a
    validation set was given, its metrics with the prefix `validation_`.
    """

    records: tuple[dict[str, Any], ...] = ()
    best_epoch: int | None = None
    wall_seconds: float = 0.0
    stopped_early: bool = False
    bad_records: tuple[str, ...] = ()

    @property
    def losses(self) -> list[float]:
        """Mean training loss of each epoch."""
        return [record["loss"] for record in self.records]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """What `fit` was asked for beside the data: one record that tasks hand on to the training loop."""

    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: Path | None = None
    resume: bool = False
    log: Path | None = None
    profile: Path | None = None
    after_epoch: AfterEpoch | None = None


class Pipeline(abc.ABC):
    """A config, some vocabularies and one model, with six verbs.

    A pipeline is created from a config (untrained), from a preset (vision and nlp), or by `load`.
    """

    task: ClassVar[str]
    config_class: ClassVar[type[Config]]

    def __init__(self, config: Config | None = None) -> None:
        config = self.config_class() if config is None else config
        if not isinstance(config, self.config_class):
            raise TypeError(
                f"{type(self).__name__} takes a {self.config_class.__name__}; received {type(config).__name__}."
            )
        self.config = config
        self.history: History | None = None
        self.metrics: Metrics | None = None
        self.provenance: dict[str, Any] = {}

    # The verbs.

    def fit(
        self,
        train: Any,
        validation: Any = None,
        *,
        training: TrainingConfig | None = None,
        checkpoint: str | Path | None = None,
        resume: bool = False,
        log: str | Path | None = None,
        profile: str | Path | None = None,
        after_epoch: AfterEpoch | None = None,
    ) -> History:
        """Train on `train`, keeping the weights that are best on `validation` by the first metric.

        Args:
            train: what a reader returns, or an unbatched `tf.data.Dataset` of raw (input, target) examples.
            validation: the same kind; without it the last weights are kept.
            training: epochs, batch size, optimizer and the like.
            checkpoint: a directory for the training state. With it, SIGTERM and SIGINT end training after the
                running step with the state saved, and a killed run can be resumed.
            resume: go on from the state in `checkpoint`, if there is one; the end is the same as of an unbroken run.
            log: a file for one JSON line per epoch (and TensorBoard events beside it, where that is installed).
            profile: a directory for a summary of where the time goes and a trace of some steps; see
                `shared.profiling.read_profile`.
            after_epoch: is called after each epoch with its record, as `History.records` has it; of a model that is
                solved at once, once with the scores of `validation`.

        Raises:
            TypeError, ValueError: for data or options that do not fit; the message says what was expected.
            TrainingInterrupted: after a signal, once the state is saved.
        """
        if resume and checkpoint is None:
            raise ValueError("`resume=True` needs `checkpoint=`, the directory that holds the state to go on from.")
        options = FitOptions(
            training=training or TrainingConfig(),
            checkpoint=None if checkpoint is None else Path(checkpoint),
            resume=resume,
            log=None if log is None else Path(log),
            profile=None if profile is None else Path(profile),
            after_epoch=after_epoch,
        )
        started = time.strftime("%Y-%m-%dT%H:%M:%S")
        self.metrics = None  # those of the weights before, which a save would give to the new ones
        self.history = self._fit(train, validation, options)
        self.provenance |= {"started": started, "training": options.training.to_dict()}
        return self.history

    def evaluate(self, data: Any, *, max_bad_share: float = 0.01) -> Metrics:
        """Metrics of the predictions on `data`.

        Args:
            data: the same kinds as for `fit`.
            max_bad_share: share of unreadable examples from which on scoring is refused, 0 to 1.

        Raises:
            NotFittedError: before `fit`.
            ValueError: for data that cannot be scored, and above the share of bad examples.
        """
        self._require_fitted("evaluate")
        self.metrics = self._evaluate(data, Loading(max_bad_share=max_bad_share))
        return self.metrics

    @abc.abstractmethod
    def predict(self, inputs: Sequence[Any]) -> list[Any]:
        """Answers for raw `inputs`, in the same order; an empty list gives an empty list."""

    def save(self, path: str | Path) -> None:
        """Write the pipeline as a directory, atomically: a kill at any moment leaves the old or the new version.

        Of several workers that trained together the first writes; the others do nothing.
        """
        self._require_fitted("save")
        if not current_runtime().workers.is_first:
            return
        manifest = {"task": self.task, "config": self.config.to_dict(), **self._manifest()}
        if self.metrics is not None:
            manifest["metrics"] = dict(self.metrics)
        save_artifact(Path(path), manifest, self._write_all)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The pipeline that `save` wrote to `path`; checksums are verified and no code from it runs.

        Raises:
            FileNotFoundError: where there is no such directory.
            ValueError: for a damaged directory, another task's, or an unknown schema version.
        """
        return read_artifact(Path(path), cls._loaded, task=cls.task)

    @classmethod
    def _loaded(cls, directory: Path, manifest: dict[str, Any]) -> Self:
        config = cls.config_class.from_dict(manifest["config"])
        try:
            pipeline = cls._from_directory(directory, config, manifest)
        except KeyError as error:
            raise ValueError(
                f"{directory / MANIFEST} is damaged: it has no {error} where this task needs one. Save the pipeline "
                "again."
            ) from error
        if "metrics" in manifest:
            pipeline.metrics = Metrics(manifest["metrics"])
        training = directory / "training.json"
        if training.exists():
            pipeline.provenance = json.loads(training.read_text(encoding="utf-8"))
        return pipeline

    def export(self, path: str | Path, format: ExportFormat = "saved_model") -> ExportReport:
        """Write a form that runs without Triptych, run it once against `predict`, and report the difference."""
        self._require_fitted("export")
        if format not in get_args(ExportFormat):
            raise ValueError(f"`format` must be one of {', '.join(get_args(ExportFormat))}; received {format!r}.")
        return self._export(Path(path), format)

    @property
    @abc.abstractmethod
    def model(self) -> keras.Model:
        """The Keras model, for those who want tensors or a loop of their own."""

    # What a task fills in.

    @property
    @abc.abstractmethod
    def is_fitted(self) -> bool:
        """Whether the pipeline can answer."""

    @abc.abstractmethod
    def _fit(self, train: Any, validation: Any, options: FitOptions) -> History: ...

    @abc.abstractmethod
    def _evaluate(self, data: Any, loading: Loading) -> Metrics: ...

    @abc.abstractmethod
    def _manifest(self) -> dict[str, Any]: ...

    @abc.abstractmethod
    def _write(self, directory: Path) -> None: ...

    @classmethod
    @abc.abstractmethod
    def _from_directory(cls, directory: Path, config: Any, manifest: dict[str, Any]) -> Self: ...

    @abc.abstractmethod
    def _export(self, path: Path, format: ExportFormat) -> ExportReport: ...

    def _require_fitted(self, verb: str) -> None:
        if not self.is_fitted:
            raise NotFittedError(
                f"`{verb}` needs a trained {type(self).__name__}. Call `fit(train)` first, or start from "
                f"`{type(self).__name__}.load(path)`."
            )

    def _write_all(self, directory: Path) -> None:
        record = dict(self.provenance)
        if self.history is not None:
            record["history"] = self.history.to_dict()
        (directory / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        self._write(directory)


def load_pipeline(path: str | Path) -> Pipeline:
    """The pipeline in a saved directory, whatever its task."""
    task = read_artifact(Path(path), lambda _, manifest: str(manifest["task"]))
    if task not in _PIPELINES:
        raise ValueError(f"{path} holds a pipeline for {task!r}; this version knows {', '.join(_PIPELINES)}.")
    module, _, name = _PIPELINES[task].partition(":")
    pipeline_class: type[Pipeline] = getattr(importlib.import_module(module), name)
    return pipeline_class.load(path)
