"""Image classification: config, result type, pipeline.

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

import cv2
import numpy as np

from shared.classification import Classification, ClassLabels, class_names
from shared.config import Config, option
from shared.data import Arrays, InputPipeline, Loading, Stages
from shared.examples import Examples, Source, as_source, listed
from shared.pipeline import ExportFormat, FitOptions, History, Metrics, NotFittedError, Pipeline
from shared.scoring import joined, measured_examples
from shared.vocabulary import Vocabulary
from vision.augmentation import Augmentation, cutmix, mixup, smallest_useful_side
from vision.images import decode_image
from vision.preprocessing import Preprocessing, prepare_image

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from shared.export import ExportReport
    from shared.training import TrainingTask
    from shared.training_config import TrainingConfig
    from vision.models.backbones import PretrainedClassifier
    from vision.models.classifier import ClassifierNetwork

logger = logging.getLogger(__name__)

FROM_DATA = "from_data"


@dataclass(frozen=True, kw_only=True)
class ImageClassifierConfig(Config):
    """What an image classifier is: its classes, its network, and how training images are varied."""

    labels: tuple[str, ...] = option((), "class names; empty: learned from the training set")
    image_size: int = option(64, "height and width that images are brought to", minimum=16, unit="px")
    channels: Literal[1, 3] = option(3, "3 for colour, 1 for grey")
    resize: Literal["stretch", "crop", "pad"] = option("stretch", "how images of another shape are fitted")
    width: int = option(32, "channels of the first stage of the residual network", minimum=4)
    depth: int = option(1, "residual blocks per stage of the residual network", minimum=1)
    pooling: Literal["average", "grid"] = option(
        "average", "a new head's features: averages over the image, or over 3 x 3 windows (centred objects)"
    )
    dropout: float = option(0.0, "share of pooled features dropped in training", minimum=0.0, maximum=0.95)
    multi_label: bool = option(False, "an image may have any number of classes")
    threshold: float = option(0.5, "probability from which a class is assigned (multi-label)", minimum=0.0, maximum=1.0)
    average_mirrored: bool = option(False, "answer with the mean over an image and its mirror image; twice the work")
    class_weights: Literal["none", "balanced"] = option("none", "balanced: rare classes weigh more in the loss")
    crop: Literal["auto", "none", "shift", "resized"] = option(
        "auto", "random crop; auto: shift below 64 px, else resized"
    )
    crop_scale: float = option(
        0.35, "smallest area of a resized crop, as a share of the image", minimum=0.01, maximum=1.0
    )
    flip: bool = option(True, "mirror half of the training images left to right")
    rand_augment: int = option(0, "operations of RandAugment per image; 0 is off", minimum=0)
    rand_augment_magnitude: int = option(9, "strength of RandAugment, 0 to 30", minimum=0, maximum=30)
    erasing: float = option(0.0, "probability of erasing a random rectangle", minimum=0.0, maximum=1.0)
    mixup: float = option(0.0, "alpha of MixUp; 0 is off", minimum=0.0)
    cutmix: float = option(0.0, "alpha of CutMix; 0 is off", minimum=0.0)
    seed: int = option(0, "seed of the initial weights", minimum=0)


class ImageClassifier(Pipeline):
    """Images in, class names with probabilities out.

    Example:
        >>> classifier = ImageClassifier(ImageClassifierConfig(image_size=32))
        >>> history = classifier.fit(read_image_folder("flowers/train"))       # doctest: +SKIP
        >>> classifier.predict(["daisy.jpg"])[0].label                         # doctest: +SKIP
        'daisy'
    """

    task: ClassVar[str] = "image_classification"
    config_class: ClassVar[type[Config]] = ImageClassifierConfig
    config: ImageClassifierConfig

    def __init__(self, config: ImageClassifierConfig | None = None) -> None:
        super().__init__(config)
        self.labels: Vocabulary | None = Vocabulary(self.config.labels) if self.config.labels else None
        self._network: ClassifierNetwork | None = None
        self._trained = False
        self._predictor: Callable[[np.ndarray], np.ndarray] | None = None

    @classmethod
    def from_preset(
        cls, ref: str | Path, *, labels: Sequence[str] | Literal["from_data"] | None = None, **config_fields: Any
    ) -> Self:
        """A classifier with pretrained weights, their classes and their preprocessing.

        Args:
            ref: a name in `vision.presets`, a local directory, `hf://org/name` or `kaggle://...`.
            labels: other classes than the preset's, or "from_data" to learn them from the training set. The head
                is then new and `predict` needs `fit` first. Left out, the preset's own head is kept.
            config_fields: fields of `ImageClassifierConfig` that shall differ from the preset's.

        Raises:
            ValueError: for an unknown preset, labels that are given twice, or fields that the preset's network fixes.
            FileNotFoundError: where the preset's package or directory is missing; the message says what to install.
        """
        from vision.models.classifier import pretrained_network

        _refuse_what_presets_fix(ref, config_fields)
        preset = _load_preset(ref, config_fields.get("image_size"), seed=config_fields.get("seed", 0))
        own = preset.preprocessing
        fields = {"image_size": own.image_size, "resize": own.resize, **config_fields}
        if labels is None and preset.head_labels:
            fields["labels"] = tuple(preset.head_labels)
        elif labels is not None and labels != FROM_DATA:
            fields["labels"] = tuple(labels)
        classifier = cls(ImageClassifierConfig.from_dict(fields))
        keep_head = labels is None and preset.head is not None
        classifier._network = pretrained_network(preset, classifier.config, keep_head=keep_head)
        classifier._trained = keep_head
        if not keep_head:
            logger.info("the head of %s is new: call `fit` before `predict`", ref)
        classifier.provenance = {"preset": {"ref": str(ref), "source": preset.source, "licence": preset.licence}}
        return classifier

    @property
    def model(self) -> keras.Model:
        """Images (B, S, S, C) with values 0..255 -> logits (B, number of labels)."""
        if self._network is None or self._network.model is None:
            raise NotFittedError(
                "There is no model yet: its size depends on the labels. Call `fit(train)` first, or give `labels`."
            )
        return self._network.model

    @property
    def is_fitted(self) -> bool:
        """Whether `predict` can answer."""
        return self._trained

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image is brought to what the model takes."""
        if self._network is not None:
            return self._network.preprocessing
        return Preprocessing(image_size=self.config.image_size, resize=self.config.resize)

    def predict(self, inputs: Sequence[Any], *, top_k: int = 5, batch_size: int = 32) -> list[Classification]:
        """Classes of each image, most probable first.

        Args:
            inputs: paths, encoded images (bytes), or uint8 arrays (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
            top_k: how many classes an answer has (single-label).
            batch_size: images that go through the model together.

        Raises:
            NotFittedError: before `fit`, unless the preset came with a head.
            BadExampleError: for an input that is no readable image; the message names it.
            TypeError: for what is no list of images.
        """
        self._require_fitted("predict")
        inputs = listed(inputs, "images")
        if isinstance(inputs, np.ndarray) and _is_one_image(inputs):
            raise TypeError(f"`inputs` must be a list of images; received one, {inputs.shape}. Put it in a list.")
        if top_k < 1:
            raise ValueError(f"`top_k` must be at least 1; received {top_k}.")
        if len(inputs) == 0:
            return []
        stages = Stages(encode=lambda image, _: {"images": self._prepared(image)})
        loading = Loading(batch_size=batch_size, max_bad_share=0.0)
        batches = InputPipeline(Examples(inputs, [None] * len(inputs)), stages, loading)
        probabilities = np.concatenate([self._probabilities(batch["images"]) for batch in batches.epoch()])
        return [Classification(*self._classes.ranked(row, top_k)) for row in probabilities]

    def training_task(
        self, train: Any, training: TrainingConfig, *, validate: Callable[[], Metrics] | None = None
    ) -> TrainingTask:
        """What the training loop, and the learning-rate finder, need: model, loss and batches for `train`."""
        from shared.fine_tuning import rate_factors, set_trainable
        from shared.training import TrainingTask, run_fingerprint, training_loading

        source = as_source(train, name="train")
        if self.labels is None:
            self.labels = class_names(source, multi_label=self.config.multi_label)
        network = self._ensure_network(len(self.labels))

        def set_head_only(on: bool) -> None:
            set_trainable(
                network.trunk, head_only=on, norms=not training.freeze_norms, first_group=training.freeze_groups
            )

        set_head_only(False)
        batches = InputPipeline(source, self._training_stages(), training_loading(training))
        return TrainingTask(
            model=network.model,
            loss=self._loss(training, source),
            batches=batches,
            validate=validate,
            set_head_only=set_head_only,
            rate_factors=rate_factors(self.model, network.trunk, training.layer_decay),
            fingerprint={**run_fingerprint(self, batches), "labels": list(self.labels)},
        )

    def _fit(self, train: Any, validation: Any, options: FitOptions) -> History:
        from shared.training import run_training, validation_loading

        validate = None
        if validation is not None:
            scored = self._scoring_batches(validation, validation_loading(options.training))
            validate = functools.partial(self._score, scored)
        task = self.training_task(train, options.training, validate=validate)
        history = run_training(task, options)
        self._trained = True
        return history

    def _evaluate(self, data: Any, loading: Loading) -> Metrics:
        return self._score(self._scoring_batches(data, loading))

    # Images and targets on their way in.

    def _prepared(self, image: Any) -> np.ndarray:
        preprocessing = self.preprocessing
        if isinstance(image, np.ndarray) and image.dtype == np.uint8 and preprocessing.leaves(image):
            return image
        return prepare_image(decode_image(image), preprocessing)

    def _encode_for_evaluation(self, image: Any, target: Any) -> Arrays:
        return {"images": self._prepared(image), "targets": self._classes.encode(target)}

    def _encode_for_training(self, image: Any, target: Any) -> Arrays:
        if self._crop == "resized":
            # The random crop takes its pixels from the image as it is, or as small as the smallest crop can use.
            min_side = smallest_useful_side(self.config.image_size, self.config.crop_scale)
            pixels = _with_channels(decode_image(image, min_side=min_side), self.config.channels)
            return {"images": pixels, "targets": self._classes.encode(target)}
        return self._encode_for_evaluation(image, target)

    @property
    def _crop(self) -> Literal["none", "shift", "resized"]:
        if self.config.crop != "auto":
            return self.config.crop
        return "shift" if self.config.image_size < 64 else "resized"

    def _training_stages(self) -> Stages:
        config = self.config
        augmentation = Augmentation(
            image_size=config.image_size,
            crop=self._crop,
            crop_scale=config.crop_scale,
            flip=config.flip,
            rand_augment=config.rand_augment,
            rand_augment_magnitude=config.rand_augment_magnitude,
            erasing=config.erasing,
        )

        def augment(arrays: Arrays, rng: np.random.Generator) -> Arrays:
            return {**arrays, "images": augmentation(arrays["images"], rng)}

        mixing = config.mixup > 0 or config.cutmix > 0
        return Stages(encode=self._encode_for_training, augment=augment, augment_batch=self._mix if mixing else None)

    def _mix(self, batch: Arrays, rng: np.random.Generator) -> Arrays:
        assert self.labels is not None
        targets = batch["targets"]
        if not self.config.multi_label:
            targets = np.eye(len(self.labels), dtype=np.float32)[targets]
        choices = [(cutmix, self.config.cutmix), (mixup, self.config.mixup)]
        active = [(mix, alpha) for mix, alpha in choices if alpha > 0]
        mix, alpha = active[int(rng.integers(len(active)))]
        images, targets = mix(batch["images"], targets, rng, alpha)
        return {"images": images, "targets": targets}

    # Loss, scores, answers.

    @property
    def _classes(self) -> ClassLabels:
        assert self.labels is not None
        return ClassLabels(self.labels, self.config.multi_label, self.config.threshold)

    def _loss(self, training: TrainingConfig, source: Source) -> Callable[[dict[str, tf.Tensor]], tf.Tensor]:
        import tensorflow as tf

        from shared.losses import cross_entropy

        model = self.model
        balanced = self.config.class_weights == "balanced"
        weights = self._classes.balanced_weights(source) if balanced else None

        def loss(batch: dict[str, tf.Tensor]) -> tf.Tensor:
            return cross_entropy(
                model(tf.cast(batch["images"], tf.float32), training=True),
                batch["targets"],
                multi_label=self.config.multi_label,
                label_smoothing=training.label_smoothing,
                class_weights=weights,
            )

        return loss

    def _scoring_batches(self, data: Any, loading: Loading) -> InputPipeline:
        loading = replace(loading, batch_size=64)
        return InputPipeline(as_source(data), Stages(encode=self._encode_for_evaluation), loading)

    def _score(self, batches: InputPipeline) -> Metrics:
        answers = joined(
            {"probabilities": self._probabilities(batch["images"]), "targets": batch["targets"]}
            for batch in batches.epoch()
        )
        return measured_examples(
            batches, answers, lambda rows: self._classes.score(rows["probabilities"], rows["targets"])
        )

    def _probabilities(self, images: np.ndarray) -> np.ndarray:
        """uint8 images (B, S, S, C) -> float32 probabilities (B, number of labels)."""
        from vision.models.classifier import probability_function

        if self._predictor is None:
            self._predictor = probability_function(self.model, self.config)
        return self._predictor(images)

    # Network and files.

    def _ensure_network(self, num_labels: int) -> ClassifierNetwork:
        from vision.models.classifier import residual_classifier

        if self._network is None:
            self._network = residual_classifier(self.config, num_labels)
        if self._network.head is None:
            self._network = self._network.with_new_head(self.config, num_labels)
        return self._network

    def _manifest(self) -> dict[str, Any]:
        assert self._network is not None
        record = {"architecture": self._network.architecture, "preprocessing": self.preprocessing.to_dict()}
        return record | {key: self.provenance[key] for key in ("preset",) if key in self.provenance}

    def _write(self, directory: Path) -> None:
        assert self.labels is not None
        self.labels.save(directory / "labels.vocab.txt")
        self.model.save_weights(directory / "model.weights.h5")

    @classmethod
    def _from_directory(cls, directory: Path, config: ImageClassifierConfig, manifest: Mapping[str, Any]) -> Self:
        from vision.models.classifier import rebuilt_network

        classifier = cls(config)
        classifier.labels = Vocabulary.load(directory / "labels.vocab.txt")
        preprocessing = Preprocessing.from_dict(manifest["preprocessing"])
        classifier._network = rebuilt_network(manifest["architecture"], preprocessing, config, len(classifier.labels))
        classifier.model.load_weights(directory / "model.weights.h5")
        classifier._trained = True
        return classifier

    def _export(self, path: Path, format: ExportFormat) -> ExportReport:
        from shared.export import export_litert, export_onnx, export_saved_model
        from vision.models.classifier import float32_twin, serving_endpoints

        assert self._network is not None
        assert self.labels is not None
        model = float32_twin(self._network, self.config, len(self.labels))
        encoded = _sample_images(self.config.image_size)
        endpoints = serving_endpoints(
            model,
            self.preprocessing,
            self.config,
            encoded=encoded,
            expected=self._probabilities(np.stack([self._prepared(image) for image in encoded])),
        )
        if format == "saved_model":
            return export_saved_model(path, endpoints, track=[model])
        if format == "litert":
            return export_litert(path, endpoints["serve_images"], track=[model])
        return export_onnx(path, endpoints["serve_images"])


def _sample_images(image_size: int) -> list[bytes]:
    """A few encoded pictures, of another shape than the model's, to compare an export on."""
    rng = np.random.default_rng(0)
    pictures = []
    for shape, suffix in (((3, 4), ".jpg"), ((5, 3), ".jpg"), ((4, 4), ".png")):
        noise = rng.integers(0, 256, (*shape, 3), np.uint8)
        picture = cv2.resize(noise, (image_size * 5 // 4, image_size * 3 // 2), interpolation=cv2.INTER_CUBIC)
        pictures.append(cv2.imencode(suffix, picture)[1].tobytes())
    return pictures


def _load_preset(ref: str | Path, image_size: int | None, *, seed: int) -> PretrainedClassifier:
    from shared.pretrained import resolve
    from shared.runtime import current_runtime, seeded
    from vision.models.backbones import load_pretrained_classifier
    from vision.presets import PRESETS

    directory = resolve(ref, PRESETS)
    # The trunk is trained too: its variables belong to all devices, and its dropout seeds follow the config's.
    with current_runtime().scope(), seeded(seed):
        return load_pretrained_classifier(directory, image_size)


def _refuse_what_presets_fix(ref: str | Path, config_fields: Mapping[str, Any]) -> None:
    if config_fields.get("channels", 3) != 3:
        raise ValueError(
            f"`channels` must be 3 for the preset {str(ref)!r}, whose network was trained in colour; received "
            f"{config_fields['channels']!r}. Leave it out: grey images are taken as well."
        )
    given = [f"`{name}`" for name in ("width", "depth") if name in config_fields]
    if given:
        raise ValueError(
            f"{' and '.join(given)} would have no effect: the preset {str(ref)!r} brings its own network. Leave it "
            "out, or build an ImageClassifier from a config."
        )


def _is_one_image(array: np.ndarray) -> bool:
    return array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (1, 3, 4))


def _with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """uint8 RGB (H, W, 3) -> (H, W, channels)."""
    return image if channels == 3 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
