"""Image segmentation: config, result type, pipeline.

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

import cv2
import numpy as np

from shared.config import Config, option
from shared.data import Arrays, InputPipeline, Loading, Stages
from shared.examples import BadExampleError, Examples, Source, as_source, listed
from shared.pipeline import ExportFormat, FitOptions, History, Metrics, NotFittedError, Pipeline
from shared.scoring import measured_examples
from shared.vocabulary import Vocabulary
from vision.annotations import IGNORED
from vision.augmentation import colour_jittered
from vision.drawing import draw_classes
from vision.frame import Frame, framed, stretched_values
from vision.geometry import GeometryRange
from vision.images import decode_image
from vision.masks import mask_labels, pairs, read_mask
from vision.sample_pictures import encoded_pictures
from vision.segmentation_metrics import pixel_counts, segmentation_metrics
from vision.tiles import tile_corners

if TYPE_CHECKING:
    import keras

    from shared.export import ExportReport
    from shared.training import TrainingTask
    from shared.training_config import TrainingConfig
    from vision.models.segmenter import SegmenterNetwork

logger = logging.getLogger(__name__)

FROM_DATA = "from_data"


@dataclass(frozen=True, kw_only=True)
class ImageSegmenterConfig(Config):
    """What an image segmenter is: its classes, its network, and how training images are varied."""

    labels: tuple[str, ...] = option((), "class names by number; empty: those of the training masks")
    image_height: int = option(256, "height of the frame that the network sees", minimum=32, unit="px")
    image_width: int = option(256, "width of the frame", minimum=32, unit="px")
    view: Literal["fit", "crop"] = option(
        "fit", "fit: images are fitted into the frame; crop: pixels keep their size, large images are seen in windows"
    )
    decoder: Literal["unet", "deeplab_v3_plus"] = option("unet", "what turns features into a mask")
    decoder_channels: int = option(64, "channels of the decoder at a quarter of the resolution", minimum=8)
    decoder_stride: Literal[1, 2, 4] = option(
        2, "pixels of the image to one of the U-Net's last map: 1 for small things, 4 for speed"
    )
    width: int = option(24, "channels of the first stage of the residual network (without preset)", minimum=4)
    depth: int = option(1, "residual blocks per stage of the residual network (without preset)", minimum=1)
    dropout: float = option(0.0, "share of the last features dropped in training", minimum=0.0, maximum=0.95)
    region_loss: Literal["none", "dice", "lovasz"] = option("dice", "what is added to the cross-entropy")
    region_weight: float = option(0.5, "weight of the region loss", minimum=0.0)
    class_weights: Literal["none", "square_root", "balanced"] = option(
        "none", "balanced: rare classes weigh more in the cross-entropy; square_root: by the root of that"
    )
    stretch: bool = option(False, "spread the values of each image over the whole range first (dark microscopy)")
    scale_jitter: float = option(1.5, "training images are enlarged or shrunk by up to this factor", minimum=1.0)
    aspect_jitter: float = option(1.1, "and stretched by up to this factor", minimum=1.0)
    rotation: float = option(0.0, "and rotated by up to this angle", minimum=0.0, maximum=180.0, unit="degrees")
    flip: bool = option(True, "mirror half of the training images left to right")
    flip_vertically: bool = option(False, "turn half of the training images upside down")
    hue: float = option(0.015, "largest turn of the hue, as a share of the circle", minimum=0.0, maximum=0.5)
    saturation: float = option(0.5, "largest change of the saturation, as a share", minimum=0.0, maximum=1.0)
    brightness: float = option(0.3, "largest change of the brightness, as a share", minimum=0.0, maximum=1.0)
    average_mirrored: bool = option(False, "answer with the mean over an image and its mirror image; twice the work")
    seed: int = option(0, "seed of the initial weights", minimum=0)


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What each pixel of one image shows.

    `mask` uint8 (H, W): class numbers, in pixels of the image after EXIF orientation; number i is `labels[i]`.
    """

    mask: np.ndarray
    labels: tuple[str, ...]

    @property
    def shares(self) -> dict[str, float]:
        """Share of the image that each class covers, 0 to 1; classes that cover nothing are left out."""
        counts = np.bincount(self.mask.reshape(-1), minlength=len(self.labels))
        return {label: float(counts[k] / self.mask.size) for k, label in enumerate(self.labels) if counts[k]}

    def draw(self, image: Any, *, opacity: float = 0.5, legend: bool = True) -> np.ndarray:
        """The image tinted by class, uint8 (h, w, 3), with a legend of the classes in it to the right.

        A class called "background" is not tinted.

        Args:
            image: the one that was given to `predict`: a path, encoded bytes, or a uint8 array.
            opacity: share of the tint, 0 to 1.
            legend: whether to add the legend.
        """
        return draw_classes(decode_image(image), self.mask, self.labels, opacity=opacity, legend=legend)

    def save_mask(self, path: str | Path) -> None:
        """Write the class numbers as a grey PNG, which `read_mask_folder` reads again.

        Raises:
            OSError: where the file cannot be written.
        """
        Path(path).write_bytes(cv2.imencode(".png", self.mask)[1].tobytes())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON: `size` [height, width], `shares`, and `runs`, row by row [class, length]."""
        flat = self.mask.reshape(-1)
        starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
        lengths = np.diff(np.append(starts, flat.size))
        runs = [[int(flat[start]), int(length)] for start, length in zip(starts, lengths, strict=True)]
        shares = {label: round(share, 6) for label, share in self.shares.items()}
        return {"size": list(self.mask.shape), "labels": list(self.labels), "shares": shares, "runs": runs}


class ImageSegmenter(Pipeline):
    """Images in, a class for each pixel out.

    Example:
        >>> segmenter = ImageSegmenter.from_preset("efficientnet_lite0", labels="from_data")        # doctest: +SKIP
        >>> history = segmenter.fit(read_mask_folder("train/images", "train/masks"))                 # doctest: +SKIP
        >>> segmenter.predict(["street.jpg"])[0].shares                                              # doctest: +SKIP
        {'road': 0.41, 'car': 0.07, 'sky': 0.52}
    """

    task: ClassVar[str] = "image_segmentation"
    config_class: ClassVar[type[Config]] = ImageSegmenterConfig
    config: ImageSegmenterConfig

    def __init__(self, config: ImageSegmenterConfig | None = None) -> None:
        super().__init__(config)
        self.labels: Vocabulary | None = Vocabulary(self.config.labels) if self.config.labels else None
        self._network: SegmenterNetwork | None = None
        self._preset: Any = None
        self._trained = False
        self._predictor: Callable[[np.ndarray], np.ndarray] | None = None

    @classmethod
    def from_preset(
        cls, ref: str | Path, *, labels: Sequence[str] | Literal["from_data"] | None = None, **config_fields: Any
    ) -> Self:
        """A segmenter that begins with pretrained weights.

        Of an image classifier the trunk is taken, under a new decoder; of keras-hub's SegFormer and DeepLabV3+
        everything, the head where `labels` are left out or are its own.

        Args:
            ref: a convolutional classifier or a segmenter in `vision.presets`, a local directory of one, `hf://org/name`
                or `kaggle://...`.
            labels: class names by number, or "from_data" to take those of the training masks. `predict` then needs
                `fit` first. Left out, the head of a segmenter is kept; its classes are called "0", "1", ...
            config_fields: fields of `ImageSegmenterConfig` that shall differ from the defaults.

        Raises:
            ValueError: for an unknown preset, one whose network has no feature maps, or a classifier without `labels`.
            FileNotFoundError: where the preset's package or directory is missing; the message says what to install.
        """
        _refuse(ref, ("width", "depth"), config_fields)
        from vision.models.segmenter import load_segmenter_preset

        preset = load_segmenter_preset(ref, seed=config_fields.get("seed", 0))
        # Segmenters have class names of their own, classifiers none that would do here.
        own: tuple[str, ...] | None = getattr(preset, "labels", None)
        if labels is None and own is None:
            raise ValueError(
                f"The preset {str(ref)!r} is no segmenter with a head, so the classes must be given: `labels=[...]`, "
                'or labels="from_data" to take those of the training masks. A saved segmenter is read by `load`.'
            )
        if hasattr(preset, "labels"):
            _refuse(ref, ("decoder", "decoder_channels", "decoder_stride", "dropout"), config_fields)
        if labels != FROM_DATA:
            config_fields["labels"] = tuple(labels or own or ())
        segmenter = cls(ImageSegmenterConfig.from_dict(config_fields))
        segmenter._preset = preset
        keep_head = own is not None and segmenter.config.labels == own
        if segmenter.labels is not None:
            segmenter._ensure_network(len(segmenter.labels), keep_head=keep_head)
        segmenter._trained = keep_head
        if not keep_head:
            logger.info("the %s of the segmenter is new: call `fit` before `predict`", "head" if own else "decoder")
        segmenter.provenance = {"preset": {"ref": str(ref), "source": preset.source, "licence": preset.licence}}
        return segmenter

    @property
    def model(self) -> keras.Model:
        """Images (B, H, W, 3) with values 0..255 -> logits (B, H, W, K)."""
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

    def predict(self, inputs: Sequence[Any], *, batch_size: int = 8) -> list[Segmentation]:
        """A class for each pixel of each image.

        With `view="crop"`, images larger than the frame are seen in overlapping windows, whose probabilities are
        averaged where they overlap; with `view="fit"` each is fitted into the frame.

        Args:
            inputs: paths, encoded images (bytes), or uint8 arrays (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
            batch_size: images or windows that go through the model together.

        Raises:
            NotFittedError: before `fit`.
            BadExampleError: for an input that is no readable image; the message names it.
            TypeError: for what is no list of images.
        """
        self._require_fitted("predict")
        inputs = listed(inputs, "images")
        if isinstance(inputs, np.ndarray) and (inputs.ndim < 3 or (inputs.ndim == 3 and inputs.shape[-1] in (1, 3, 4))):
            raise TypeError(f"`inputs` must be a list of images; received one, {inputs.shape}. Put it in a list.")
        if len(inputs) == 0:
            return []
        loading = Loading(batch_size=1 if self._in_windows else batch_size, max_bad_share=0.0)
        batches = InputPipeline(Examples(inputs, [None] * len(inputs)), Stages(encode=self._encode), loading)
        labels = tuple(str(name) for name in self._names)
        return [Segmentation(mask, labels) for batch in batches.epoch() for mask in self._masks(batch, batch_size)]

    def training_task(
        self, train: Any, training: TrainingConfig, *, validate: Callable[[], Metrics] | None = None
    ) -> TrainingTask:
        """What the training loop, and the learning-rate finder, need: model, loss and batches for `train`."""
        from shared.fine_tuning import rate_factors, set_trainable
        from shared.training import TrainingTask, run_fingerprint, training_loading

        source = as_source(train, name="train")
        if self.labels is None:
            self.labels = mask_labels(source)
        network = self._ensure_network(len(self.labels))

        def set_head_only(on: bool) -> None:
            set_trainable(
                network.trunk, head_only=on, norms=not training.freeze_norms, first_group=training.freeze_groups
            )

        set_head_only(False)
        power = {"none": 0.0, "square_root": 0.5, "balanced": 1.0}[self.config.class_weights]
        loss = functools.partial(
            network.loss,
            region=self.config.region_loss,
            region_weight=self.config.region_weight,
            class_weights=self._balanced_weights(source) ** power if power else None,
            label_smoothing=training.label_smoothing,
        )
        stages = Stages(encode=self._encode_for_training, augment=self._varied)
        batches = InputPipeline(source, stages, training_loading(training))
        return TrainingTask(
            model=network.model,
            loss=loss,
            batches=batches,
            validate=validate,
            set_head_only=set_head_only,
            rate_factors=rate_factors(network.model, network.trunk, training.layer_decay),
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

    # Images and masks on their way in.

    def _pair(self, image: Any, target: Any) -> tuple[np.ndarray, np.ndarray]:
        pixels = decode_image(image)
        return pixels, read_mask(target, pixels.shape[:2], self._names)

    def _encode_for_training(self, image: Any, target: Any) -> Arrays:
        pixels, mask = self._pair(image, target)
        return {"images": stretched_values(pixels) if self.frame.stretch else pixels, "masks": mask}

    def _varied(self, arrays: Arrays, rng: np.random.Generator) -> Arrays:
        """One random view of an image and its mask, in the size of the frame."""
        config = self.config
        shape = arrays["masks"].shape
        geometry = GeometryRange(
            min_scale=1 / config.scale_jitter,
            max_scale=config.scale_jitter,
            aspect=config.aspect_jitter,
            rotation=config.rotation,
            flip=config.flip,
            flip_vertically=config.flip_vertically,
        ).draw(shape, self.frame.shape, rng, scale=1.0 if self._in_windows else self.frame.scale(*shape))
        view = geometry.image(arrays["images"])
        if config.hue or config.saturation or config.brightness:
            view = colour_jittered(
                view, rng, hue=config.hue, saturation=config.saturation, brightness=config.brightness
            )
        return {"images": view, "masks": geometry.mask(arrays["masks"])}

    @property
    def _in_windows(self) -> bool:
        return self.config.view == "crop"

    def _encode(self, image: Any, _: Any = None) -> Arrays:
        pixels = decode_image(image)
        shape = np.array(pixels.shape[:2], np.int32)
        if not self._in_windows:
            return {"images": framed(pixels, self.frame), "shape": shape}
        return {"images": stretched_values(pixels) if self.frame.stretch else pixels, "shape": shape}

    def _encode_for_evaluation(self, image: Any, target: Any) -> Arrays:
        pixels, mask = self._pair(image, target)
        return {**self._encode(pixels), "masks": mask}

    def _scoring_batches(self, data: Any, loading: Loading) -> InputPipeline:
        # One by one: images and masks keep their sizes, which differ.
        return InputPipeline(
            as_source(data), Stages(encode=self._encode_for_evaluation), replace(loading, batch_size=1)
        )

    @property
    def _names(self) -> Vocabulary:
        assert self.labels is not None
        return self.labels

    def _balanced_weights(self, source: Source) -> np.ndarray:
        """Weight of each class (K,): the median frequency over its own (Eigen and Fergus 2015, arXiv:1411.4734, 6.3.2).

        The frequency of a class is its share of the pixels of those images in which it occurs.
        """
        pixels, room = np.zeros(len(self._names)), np.zeros(len(self._names))
        for image, target in pairs(source):
            try:
                mask = read_mask(target, decode_image(image).shape[:2], self._names)
            except BadExampleError:
                continue  # reported when it is trained on
            counts = np.bincount(mask[mask != IGNORED], minlength=len(pixels))
            pixels += counts
            room += np.where(counts > 0, counts.sum(), 0)
        frequency = pixels / np.maximum(room, 1)
        weights = np.median(frequency[frequency > 0]) / np.maximum(frequency, 1e-9)
        return np.where(frequency > 0, weights, 0.0).astype(np.float32)

    # Scores and answers.

    def _score(self, batches: InputPipeline) -> Metrics:
        counts = np.zeros((len(self._names),) * 2, np.int64)
        for batch in batches.epoch():
            for truth, answer in zip(batch["masks"], self._masks(batch, 8), strict=True):
                counts += pixel_counts(truth, answer, len(self._names))
        return measured_examples(batches, {"counts": counts[None]}, self._measure)

    def _measure(self, answers: Arrays) -> Metrics:
        values, details = segmentation_metrics(answers["counts"].sum(axis=0), [str(name) for name in self._names])
        return Metrics(values, details=details)

    def _masks(self, batch: Arrays, batch_size: int) -> Iterator[np.ndarray]:
        """Class numbers uint8 (h, w) of each image of a batch, in its own pixels."""
        if self._in_windows:
            for image in batch["images"]:
                yield self._windowed(image, batch_size).argmax(axis=-1).astype(np.uint8)
            return
        restore = _restoring(self.frame)
        for probabilities, (height, width) in zip(
            self._probabilities(batch["images"]), batch["shape"].tolist(), strict=True
        ):
            yield restore(probabilities, (height, width))

    def _windowed(self, image: np.ndarray, batch_size: int) -> np.ndarray:
        """Probabilities (h, w, K) of an image from overlapping windows; the middle of a window counts most."""
        height, width = self.frame.shape
        corners = tile_corners(image.shape[0], image.shape[1], height, width)
        total = np.zeros((*image.shape[:2], len(self._names)), np.float32)
        weight = np.zeros(image.shape[:2], np.float32)
        taper = np.minimum.outer(_taper(height), _taper(width))
        for start in range(0, len(corners), batch_size):
            chosen = corners[start : start + batch_size]
            views = [_filled(image[top : top + height, left : left + width], height, width) for top, left in chosen]
            for (top, left), found in zip(chosen, self._probabilities(np.stack(views)), strict=True):
                seen = total[top : top + height, left : left + width]
                share = taper[: seen.shape[0], : seen.shape[1]]
                seen += found[: seen.shape[0], : seen.shape[1]] * share[..., None]
                weight[top : top + height, left : left + width] += share
        return np.asarray(total / weight[..., None])

    def _probabilities(self, images: np.ndarray) -> np.ndarray:
        """uint8 images of the frame (B, H, W, 3) -> float32 (B, H, W, K)."""
        from vision.models.segmenter import probability_function

        assert self._network is not None
        if self._predictor is None:
            self._predictor = probability_function(self._network, self.config)
        return self._predictor(images)

    # Network and files.

    def _ensure_network(self, num_labels: int, *, keep_head: bool = False) -> SegmenterNetwork:
        from vision.models.segmenter import pretrained_segmenter, scratch_segmenter

        if self._network is None:
            if self._preset is not None:
                self._network = pretrained_segmenter(self._preset, self.config, num_labels, keep_head=keep_head)
            else:
                self._network = scratch_segmenter(self.config, num_labels)
        return self._network

    def _manifest(self) -> dict[str, Any]:
        assert self._network is not None
        record = {"architecture": self._network.architecture, "frame": self.frame.to_dict()}
        return record | {key: self.provenance[key] for key in ("preset",) if key in self.provenance}

    def _write(self, directory: Path) -> None:
        self._names.save(directory / "labels.vocab.txt")
        self.model.save_weights(directory / "model.weights.h5")

    @classmethod
    def _from_directory(cls, directory: Path, config: ImageSegmenterConfig, manifest: Mapping[str, Any]) -> Self:
        from vision.models.segmenter import rebuilt_segmenter

        segmenter = cls(config)
        segmenter.labels = Vocabulary.load(directory / "labels.vocab.txt")
        frame = Frame.from_dict(manifest["frame"])
        segmenter._network = rebuilt_segmenter(manifest["architecture"], frame, config, len(segmenter.labels))
        segmenter.model.load_weights(directory / "model.weights.h5")
        segmenter._trained = True
        return segmenter

    def _export(self, path: Path, format: ExportFormat) -> ExportReport:
        from shared.export import export_litert, export_onnx, export_saved_model
        from vision.models.segmenter import float32_twin, serving_endpoints

        assert self._network is not None
        network = float32_twin(self._network, self.config, len(self._names))
        encoded = encoded_pictures(self.frame.height, self.frame.width)
        pictures = [decode_image(picture) for picture in encoded]
        expected = self._probabilities(np.stack([framed(picture, self.frame) for picture in pictures]))
        restore = _restoring(self.frame)
        masks = [restore(p, picture.shape[:2]) for p, picture in zip(expected, pictures, strict=True)]
        endpoints = serving_endpoints(network, self.config, encoded=encoded, expected=expected, masks=masks)
        if format == "saved_model":
            return export_saved_model(path, endpoints, track=[network.model])
        if format == "litert":
            return export_litert(path, endpoints["serve_images"], track=[network.model])
        return export_onnx(path, endpoints["serve_images"])


@functools.lru_cache(maxsize=8)
def _restoring(frame: Frame) -> Callable[[np.ndarray, tuple[int, int]], np.ndarray]:
    from vision.models.segmenter import restoring_function

    return restoring_function(frame)


def _taper(length: int) -> np.ndarray:
    """Weights (length,) that rise from the edges to the middle, 0 to 1; never 0."""
    places = np.arange(length) + 0.5
    return np.asarray(np.minimum(places, length - places) / (length / 2), np.float32)


def _filled(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """A window that is smaller than the frame, with the grey that training images have around them."""
    from vision.geometry import GREY

    missing = ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0))
    return np.pad(image, missing, constant_values=GREY)


def _refuse(ref: str | Path, names: Sequence[str], config_fields: Mapping[str, Any]) -> None:
    given = [f"`{name}`" for name in names if name in config_fields]
    if given:
        raise ValueError(
            f"{' and '.join(given)} would have no effect: the preset {str(ref)!r} brings its own network. Leave it "
            "out, or build an ImageSegmenter from a config."
        )
