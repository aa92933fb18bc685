"""Object detection: config, result type, pipeline.

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

from shared.config import Config, option
from shared.data import Arrays, InputPipeline, Loading, Stages
from shared.examples import Examples, Source, as_source, listed
from shared.pipeline import ExportFormat, FitOptions, History, Metrics, NotFittedError, Pipeline
from shared.scoring import joined, measured_examples
from shared.vocabulary import Vocabulary
from vision.annotations import as_objects
from vision.boxes import clip_boxes, has_area, suppressed
from vision.detection_batches import TrainingVariation, collated, encoded_objects
from vision.detection_metrics import coco_metrics, scored_images
from vision.drawing import class_colour, draw_boxes
from vision.frame import Frame, framed
from vision.geometry import GeometryRange
from vision.images import decode_image
from vision.sample_pictures import encoded_pictures
from vision.tiles import tile_corners
from vision.video import read_video

if TYPE_CHECKING:
    import keras

    from shared.export import ExportReport
    from shared.training import TrainingTask
    from shared.training_config import TrainingConfig
    from vision.models.detector import Network

logger = logging.getLogger(__name__)

FROM_DATA = "from_data"
# Least score of what is scored: mean average precision asks for all answers, in the order of their scores.
_SCORED_FROM = 0.001


@dataclass(frozen=True, kw_only=True)
class ObjectDetectorConfig(Config):
    """What an object detector is: its classes, its network, its answers, and how training images are varied."""

    labels: tuple[str, ...] = option((), "class names; empty: learned from the training set")
    image_height: int = option(320, "height of the frame into which images are fitted", minimum=32, unit="px")
    image_width: int = option(320, "width of the frame", minimum=32, unit="px")
    width: int = option(24, "channels of the first stage of the residual network (without preset)", minimum=4)
    depth: int = option(1, "residual blocks per stage of the residual network (without preset)", minimum=1)
    pyramid_channels: int = option(64, "channels of the feature pyramid and the head", minimum=8)
    head_depth: int = option(2, "convolutions in each branch of the head", minimum=0)
    threshold: float = option(0.3, "score from which an object is an answer", minimum=0.0, maximum=1.0)
    nms_iou: float = option(0.6, "overlap from which two boxes of a class are one object", minimum=0.0, maximum=1.0)
    box_voting: float = option(
        0.0,
        "overlap from which boxes of a class share in where the best of them is, by their scores; 0 is off",
        minimum=0.0,
        maximum=1.0,
    )
    max_detections: int = option(100, "most objects in an answer", minimum=1)
    scale_jitter: float = option(1.5, "training images are enlarged or shrunk by up to this factor", minimum=1.0)
    aspect_jitter: float = option(1.2, "and stretched by up to this factor", minimum=1.0)
    rotation: float = option(0.0, "and rotated by up to this angle", minimum=0.0, maximum=180.0, unit="degrees")
    flip: bool = option(True, "mirror half of the training images left to right")
    flip_vertically: bool = option(False, "turn half of the training images upside down")
    hue: float = option(0.015, "largest turn of the hue, as a share of the circle", minimum=0.0, maximum=0.5)
    saturation: float = option(0.5, "largest change of the saturation, as a share", minimum=0.0, maximum=1.0)
    brightness: float = option(0.3, "largest change of the brightness, as a share", minimum=0.0, maximum=1.0)
    mosaic: float = option(0.0, "share of training images that are put together from four", minimum=0.0, maximum=1.0)
    multi_scale: float = option(
        0.0, "largest change of the size of a training batch, as a share", minimum=0.0, maximum=0.5
    )
    min_visible: float = option(
        0.25,
        "objects of which less is left in a training image are dropped, as a share of their area",
        minimum=0.0,
        maximum=1.0,
    )
    seed: int = option(0, "seed of the initial weights", minimum=0)


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects found in one image, by falling score.

    `boxes` float32 (N, 4), xyxy in pixels of the image after EXIF orientation; `labels` N class names; `scores`
    float32 (N,), 0 to 1. `colours` has an RGB colour for each, by its class.
    """

    boxes: np.ndarray
    labels: tuple[str, ...]
    scores: np.ndarray
    colours: tuple[tuple[int, int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.boxes)

    def draw(self, image: Any) -> np.ndarray:
        """The image with its boxes, names and scores, uint8 (H, W, 3).

        Args:
            image: the one that was given to `predict`: a path, encoded bytes, or a uint8 array.
        """
        captions = [f"{label} {score:.2f}" for label, score in zip(self.labels, self.scores, strict=True)]
        colours = self.colours or (class_colour(0),) * len(self)
        # The best are drawn last, over the others.
        order = slice(None, None, -1)
        return draw_boxes(decode_image(image), self.boxes[order], captions[order], colours[order])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        boxes = [[round(float(value), 2) for value in box] for box in self.boxes]
        scores = [round(float(score), 6) for score in self.scores]
        return {"boxes": boxes, "labels": list(self.labels), "scores": scores}


class ObjectDetector(Pipeline):
    """Images in, boxes with class names and scores out.

    Example:
        >>> detector = ObjectDetector.from_preset("efficientnet_lite0", labels="from_data")  # doctest: +SKIP
        >>> history = detector.fit(read_coco("train.json"), read_coco("val.json"))            # doctest: +SKIP
        >>> detector.predict(["street.jpg"])[0].labels                                        # doctest: +SKIP
        ('car', 'car', 'person')
    """

    task: ClassVar[str] = "object_detection"
    config_class: ClassVar[type[Config]] = ObjectDetectorConfig
    config: ObjectDetectorConfig

    def __init__(self, config: ObjectDetectorConfig | None = None) -> None:
        super().__init__(config)
        self.labels: Vocabulary | None = Vocabulary(self.config.labels) if self.config.labels else None
        self._network: Network | None = None
        self._preset: Any = None
        self._trained = False
        self._predictor: Callable[[np.ndarray], np.ndarray] | None = None

    @classmethod
    def from_preset(
        cls, ref: str | Path, *, labels: Sequence[str] | Literal["from_data"] | None = None, **config_fields: Any
    ) -> Self:
        """A detector that begins with pretrained weights.

        Of an image classifier the trunk is taken, under a new pyramid and head; of keras-hub's RetinaNet and D-FINE
        everything, the head where `labels` are left out or are its own.

        Args:
            ref: a convolutional classifier or a detector in `vision.presets`, a local directory of one, `hf://org/name`
                or `kaggle://...`.
            labels: classes to detect, or "from_data" to learn them from the training set. `predict` then needs `fit`
                first. Left out, the head of a detector is kept; its classes are called "0", "1", ...
            config_fields: fields of `ObjectDetectorConfig` that shall differ from the defaults.

        Raises:
            ValueError: for an unknown preset, one whose network has no feature maps, labels that are given twice, or
                a classifier without `labels`.
            FileNotFoundError: where the preset's package or directory is missing; the message says what to install.
        """
        given = [f"`{name}`" for name in ("width", "depth") if name in config_fields]
        if given:
            raise ValueError(
                f"{' and '.join(given)} would have no effect: the preset {str(ref)!r} brings its own network. Leave it "
                "out, or build an ObjectDetector from a config."
            )
        from vision.models.d_fine import DFinePreset
        from vision.models.detector import load_detector_preset

        preset = load_detector_preset(ref, seed=config_fields.get("seed", 0))
        # Detectors have class names of their own, classifiers none that would do here.
        own: tuple[str, ...] | None = getattr(preset, "labels", None)
        if labels is None and own is None:
            raise ValueError(
                f"The preset {str(ref)!r} is no detector with a head, so the classes must be given: `labels=[...]`, or "
                'labels="from_data" to learn them from the training set. A saved detector is read by `load`.'
            )
        without_effect = ("pyramid_channels", "head_depth", "multi_scale") if hasattr(preset, "labels") else ()
        ignored = [f"`{name}`" for name in without_effect if name in config_fields]
        if ignored:
            raise ValueError(
                f"{' and '.join(ignored)} would have no effect: {str(ref)!r} brings its own network, for images of one "
                "size. Leave it out."
            )
        if config_fields.get("box_voting") and isinstance(preset, DFinePreset):
            raise ValueError(
                f"`box_voting` would have no effect: {str(ref)!r} finds each object once, so that no boxes are merged. "
                "Leave it out."
            )
        if labels != FROM_DATA:
            config_fields["labels"] = tuple(labels or own or ())
        detector = cls(ObjectDetectorConfig.from_dict(config_fields))
        detector._preset = preset
        keep_head = own is not None and detector.config.labels == own
        if detector.labels is not None:
            detector._ensure_network(len(detector.labels), keep_head=keep_head)
        detector._trained = keep_head
        if not keep_head:
            logger.info("the head of the detector is new: call `fit` before `predict`")
        detector.provenance = {"preset": {"ref": str(ref), "source": preset.source, "licence": preset.licence}}
        return detector

    @property
    def model(self) -> keras.Model:
        """Images (B, H, W, 3), 0..255 -> (B, A, 4 + K): for each cell the edges before softplus, then class logits."""
        if self._network is None:
            raise NotFittedError(
                "There is no model yet: its size depends on the labels. Call `fit(train)` first, or give `labels`."
            )
        return self._network.model

    @property
    def is_fitted(self) -> bool:
        """Whether `predict` can answer."""
        return self._trained

    @property
    def frame(self) -> Frame:
        """How an image is brought to what the model takes."""
        assert self._network is not None
        return self._network.frame

    def predict(
        self, inputs: Sequence[Any], *, threshold: float | None = None, tile: int = 0, batch_size: int = 16
    ) -> list[Detections]:
        """The objects in each image.

        Args:
            inputs: paths, encoded images (bytes), or uint8 arrays (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
            threshold: score from which an object is an answer; left out, the config's.
            tile: side in pixels of the overlapping tiles into which images are cut that are larger, for small objects
                in large images; 0 takes each image whole.
            batch_size: images or tiles that go through the model together.

        Raises:
            NotFittedError: before `fit`.
            BadExampleError: for an input that is no readable image; the message names it.
            TypeError: for what is no list of images.
            ValueError: for a threshold outside 0 to 1, or tiles that are too small.
        """
        self._require_fitted("predict")
        inputs = listed(inputs, "images")
        if isinstance(inputs, np.ndarray) and (inputs.ndim < 3 or (inputs.ndim == 3 and inputs.shape[-1] in (1, 3, 4))):
            raise TypeError(f"`inputs` must be a list of images; received one, {inputs.shape}. Put it in a list.")
        least = self.config.threshold if threshold is None else threshold
        if not 0 <= least <= 1:
            raise ValueError(f"`threshold` must be between 0 and 1; received {threshold}.")
        if tile and tile < 32:
            raise ValueError(f"`tile` must be at least 32 pixels, or 0 for whole images; received {tile}.")
        if len(inputs) == 0:
            return []
        if tile:
            return [self._detections(self._tiled(image, tile, batch_size), least) for image in inputs]
        return [self._detections(rows, least) for rows in self._rows(inputs, batch_size)]

    def predict_video(self, path: str | Path, *, every: int = 1, **options: Any) -> Iterator[tuple[float, Detections]]:
        """The objects in the frames of a video, one after the other: (seconds from the start, detections).

        Args:
            path: a video file that OpenCV can read.
            every: only each so manyth frame.
            options: as for `predict`.

        Raises:
            FileNotFoundError: where there is no such file.
            ValueError: for a file that is no readable video.
        """
        self._require_fitted("predict_video")
        for seconds, image in read_video(path, every=every):
            yield seconds, self.predict([image], **options)[0]

    def training_task(
        self, train: Any, training: TrainingConfig, *, validate: Callable[[], Metrics] | None = None
    ) -> TrainingTask:
        """What the training loop, and the learning-rate finder, need: model, loss and batches for `train`."""
        from shared.fine_tuning import rate_factors, set_trainable
        from shared.training import TrainingTask, run_fingerprint, training_loading

        source = as_source(train, name="train")
        if self.labels is None:
            self.labels = object_labels(source)
        network = self._ensure_network(len(self.labels))

        def set_head_only(on: bool) -> None:
            set_trainable(
                network.trunk, head_only=on, norms=not training.freeze_norms, first_group=training.freeze_groups
            )

        set_head_only(False)
        batches = InputPipeline(source, self._training_stages(), training_loading(training))
        return TrainingTask(
            model=network.model,
            loss=network.loss,
            batches=batches,
            validate=validate,
            set_head_only=set_head_only,
            rate_factors=rate_factors(network.model, network.trunk, training.layer_decay),
            fingerprint={**run_fingerprint(self, batches), "labels": list(self.labels)},
            varying_shapes=True,
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

    # Images and objects on their way in.

    def _training_stages(self) -> Stages:
        config = self.config
        geometry = GeometryRange(
            min_scale=1 / config.scale_jitter,
            max_scale=config.scale_jitter,
            aspect=config.aspect_jitter,
            rotation=config.rotation,
            flip=config.flip,
            flip_vertically=config.flip_vertically,
        )
        variation = TrainingVariation(
            frame=self.frame,
            geometry=geometry,
            hue=config.hue,
            saturation=config.saturation,
            brightness=config.brightness,
            mosaic=config.mosaic,
            multi_scale=config.multi_scale,
            min_visible=config.min_visible,
        )
        return Stages(
            encode=lambda image, target: variation.encoded(decode_image(image), encoded_objects(target, self._names)),
            augment=variation.vary,
            collate=collated,
            augment_batch=variation.vary_batch if config.mosaic or config.multi_scale else None,
        )

    def _scoring_batches(self, data: Any, loading: Loading) -> InputPipeline:
        # The network may not be there yet: its frame is asked for when the first image comes.
        stages = Stages(encode=self._encode_for_evaluation, collate=collated)
        return InputPipeline(as_source(data), stages, replace(loading, batch_size=16))

    def _encode_for_evaluation(self, image: Any, target: Any) -> Arrays:
        pixels = decode_image(image)
        objects = encoded_objects(target, self._names)
        return {
            "images": framed(pixels, self.frame),
            "size": np.array(pixels.shape[:2], np.int32),
            "boxes": objects.boxes,
            "classes": objects.classes,
            "crowd": objects.crowd,
        }

    @property
    def _names(self) -> Vocabulary:
        assert self.labels is not None
        return self.labels

    # Scores and answers.

    def _score(self, batches: InputPipeline) -> Metrics:
        answers = []
        for batch in batches.epoch():
            there = batch["classes"] >= 0
            images = self._in_images(self._answers(batch["images"]), batch["size"])
            found = [rows[rows[:, 4] >= _SCORED_FROM] for rows in images]
            answers.append(
                {name: batch[name][there] for name in ("boxes", "classes", "crowd")}
                | {
                    "num_boxes": there.sum(axis=1),
                    "num_found": np.array([len(rows) for rows in found]),
                    "found": np.concatenate(found),
                }
            )
        return measured_examples(batches, joined(answers), self._measure)

    def _measure(self, answers: Arrays) -> Metrics:
        values, details = coco_metrics(scored_images(answers), [str(name) for name in self._names])
        return Metrics(values, details=details)

    def _rows(self, inputs: Any, batch_size: int) -> Iterator[np.ndarray]:
        """Answers (M, 6) of each image in its own pixels."""

        def encode(image: Any, _: Any) -> Arrays:
            pixels = decode_image(image)
            return {"images": framed(pixels, self.frame), "size": np.array(pixels.shape[:2], np.int32)}

        loading = Loading(batch_size=batch_size, max_bad_share=0.0)
        batches = InputPipeline(Examples(inputs, [None] * len(inputs)), Stages(encode=encode), loading)
        for batch in batches.epoch():
            yield from self._in_images(self._answers(batch["images"]), batch["size"])

    def _in_images(self, answers: np.ndarray, sizes: np.ndarray) -> Iterator[np.ndarray]:
        """Answers (B, M, 6) in pixels of the frame -> for each image its own (m, 6), clipped to it."""
        for rows, (height, width) in zip(answers, sizes.tolist(), strict=True):
            inner_height, inner_width = self.frame.inner(height, width)
            rows = rows * np.array([width / inner_width, height / inner_height] * 2 + [1, 1], np.float32)
            rows[:, :4] = clip_boxes(rows[:, :4], width, height)
            yield rows[has_area(rows[:, :4]) & (rows[:, 4] > 0)]

    def _tiled(self, image: Any, tile: int, batch_size: int) -> np.ndarray:
        """Answers (m, 6) of an image that is looked at in tiles, and as a whole for what is larger than a tile."""
        pixels = decode_image(image)
        height, width = pixels.shape[:2]
        corners = tile_corners(height, width, tile)
        views = [pixels[top : top + tile, left : left + tile] for top, left in corners]
        whole = [pixels] if len(views) > 1 else []
        found = []
        places = [*corners, (0, 0)]
        for (top, left), rows in zip(
            places, self._rows([*views, *whole], batch_size), strict=len(places) == len(views)
        ):
            rows[:, :4] += np.array([left, top] * 2, np.float32)
            found.append(rows)
        rows = np.concatenate(found)
        kept = suppressed(rows[:, :4], rows[:, 4], rows[:, 5], iou=self.config.nms_iou)
        return np.asarray(rows[kept])

    def _detections(self, rows: np.ndarray, threshold: float) -> Detections:
        rows = rows[rows[:, 4] >= threshold]
        classes = rows[:, 5].astype(int)
        labels = tuple(str(name) for name in self._names.decode(classes))
        return Detections(rows[:, :4], labels, rows[:, 4], tuple(class_colour(number) for number in classes))

    def _answers(self, images: np.ndarray) -> np.ndarray:
        """uint8 images of the frame (B, H, W, 3) -> answers (B, M, 6) in its pixels."""
        from vision.models.detector import answer_function

        assert self._network is not None
        if self._predictor is None:
            self._predictor = answer_function(self._network, self.config)
        return self._predictor(images)

    # Network and files.

    def _ensure_network(self, num_labels: int, *, keep_head: bool = False) -> Network:
        from vision.models.detector import pretrained_detector, scratch_detector

        if self._network is None:
            if self._preset is not None:
                self._network = pretrained_detector(self._preset, self.config, num_labels, keep_head=keep_head)
            else:
                self._network = scratch_detector(self.config, num_labels)
        return self._network

    def _manifest(self) -> dict[str, Any]:
        assert self._network is not None
        record = {"architecture": self._network.architecture, "frame": self.frame.to_dict()}
        return record | {key: self.provenance[key] for key in ("preset",) if key in self.provenance}

    def _write(self, directory: Path) -> None:
        self._names.save(directory / "labels.vocab.txt")
        self.model.save_weights(directory / "model.weights.h5")

    @classmethod
    def _from_directory(cls, directory: Path, config: ObjectDetectorConfig, manifest: Mapping[str, Any]) -> Self:
        from vision.models.detector import rebuilt_detector

        detector = cls(config)
        detector.labels = Vocabulary.load(directory / "labels.vocab.txt")
        frame = Frame.from_dict(manifest["frame"])
        detector._network = rebuilt_detector(manifest["architecture"], frame, config, len(detector.labels))
        detector.model.load_weights(directory / "model.weights.h5")
        detector._trained = True
        return detector

    def _export(self, path: Path, format: ExportFormat) -> ExportReport:
        from shared.export import export_litert, export_onnx, export_saved_model
        from vision.models.detector import float32_twin, serving_endpoints

        assert self._network is not None
        network = float32_twin(self._network, self.config, len(self._names))
        encoded = encoded_pictures(*self.frame.shape)
        images = np.stack([framed(decode_image(picture), self.frame) for picture in encoded])
        endpoints = serving_endpoints(network, self.config, encoded=encoded, expected=self._answers(images))
        if format == "saved_model":
            return export_saved_model(path, endpoints, track=[network.model])
        if format == "litert":
            return export_litert(path, endpoints["serve_images"], track=[network.model])
        return export_onnx(path, endpoints["serve_images"])


def object_labels(source: Source) -> Vocabulary:
    """The classes that occur in the objects of `source`, sorted; class numbers give "0", "1", ...

    Raises:
        TypeError: for targets that are no objects.
        ValueError: where there is no object.
    """
    targets = source.targets if isinstance(source, Examples) else (target for _, target in source)
    names = {label for target in targets for label in as_objects(target).labels}
    if not names:
        raise ValueError("The training set has no object. Check the path, or give `labels`.")
    if all(name.isdecimal() for name in names):
        return Vocabulary(str(number) for number in range(max(map(int, names)) + 1))
    return Vocabulary(sorted(names))
