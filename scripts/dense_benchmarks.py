"""Detection beside bare Keras and keras-hub, for `benchmark.py`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

_SIZE, _NUM_FILES, _BATCH = 320, 96, 8


def _pictures(count: int, size: tuple[int, int]) -> list[np.ndarray]:
    """Smooth noise in colour with some squares: it compresses about as photographs do."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(count):
        noise = rng.integers(0, 256, (size[0] // 16, size[1] // 16, 3), np.uint8)
        picture = cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC)
        for _ in range(6):
            x, y = int(rng.integers(0, size[1] - 80)), int(rng.integers(0, size[0] - 80))
            colour = tuple(int(value) for value in rng.integers(0, 256, 3))
            cv2.rectangle(picture, (x, y), (x + 70, y + 70), colour, cv2.FILLED)
        pictures.append(picture)
    return pictures


def _detector(pictures: list[np.ndarray]) -> Any:
    """The light detector for 3 classes on an EfficientNet-Lite0 with random weights, seen as trained."""
    from vision import ObjectDetector, ObjectDetectorConfig
    from vision.frame import Frame
    from vision.models.detector import rebuilt_detector

    detector = ObjectDetector(ObjectDetectorConfig(labels=("a", "b", "c"), image_height=_SIZE, image_width=_SIZE))
    architecture = {"family": "efficientnet_lite", "variant": "lite0"}
    detector._network = rebuilt_detector(architecture, Frame(height=_SIZE, width=_SIZE), detector.config, 3)
    detector._trained = True
    return detector


def detection_inference(repeats: int) -> dict[str, Any]:
    """Images/s from JPEG files to boxes: ours, and OpenCV with `model.predict` on the same network."""
    from benchmark import measured, ratios

    from vision.models.suppression import best_detections

    pictures = _pictures(_NUM_FILES, (480, 640))
    detector = _detector(pictures)
    with tempfile.TemporaryDirectory() as directory:
        files = []
        for number, picture in enumerate(pictures):
            files.append(str(Path(directory, f"{number}.jpg")))
            Path(files[-1]).write_bytes(cv2.imencode(".jpg", picture)[1].tobytes())

        def ours() -> int:
            return len(detector.predict(files, batch_size=_BATCH))

        def bare() -> int:
            """What a user of plain Keras writes; suppression is not even counted."""
            images = [cv2.resize(cv2.imread(file, cv2.IMREAD_COLOR_RGB), (_SIZE, _SIZE)) for file in files]
            return len(detector.model.predict(np.stack(images).astype(np.float32), batch_size=_BATCH, verbose=0))

        sides: dict[str, Callable[[], float]] = {
            "triptych predict": lambda: _rate(ours),
            "OpenCV and model.predict": lambda: _rate(bare),
        }
        rates = measured(sides, repeats)
    return {
        "unit": "images/s",
        "files": f"{_NUM_FILES} drawn JPEG files of 640 x 480 pixels, frame {_SIZE} px, batches of {_BATCH}, "
        f"suppression of {detector.config.max_detections} answers on our side only ({best_detections.__name__})",
        "rates": rates,
        "ratios": ratios(rates, "triptych predict"),
        "figures": {"images/s from JPEG": rates["triptych predict"]["median"]},
    }


def _rate(run: Callable[[], int]) -> float:
    start = time.perf_counter()
    return run() / (time.perf_counter() - start)


def detection_train(repeats: int) -> dict[str, Any]:
    """Images/s of a training step, ours and keras-hub's RetinaNet, on trunks of EfficientNet-Lite0's size."""
    from benchmark import measured, ratios

    pictures = np.stack(_pictures(_BATCH, (_SIZE, _SIZE)))
    boxes = np.tile(
        np.array([[[20, 30, 90, 100], [150, 40, 220, 110], [60, 180, 130, 250]]], np.float32), (_BATCH, 1, 1)
    )
    classes = np.tile(np.array([[0, 1, 2]], np.int32), (_BATCH, 1))
    ours, ours_size = _our_step(pictures, boxes, classes)
    theirs, their_size = _retinanet_step(pictures, boxes, classes)
    rates = measured({"triptych step": ours, "keras-hub RetinaNet step": theirs}, repeats)
    return {
        "unit": "images/s",
        "files": f"{_BATCH} images of {_SIZE} px with 3 objects each, all weights trained, float32, AdamW",
        "rates": rates,
        "ratios": ratios(rates, "triptych step"),
        "figures": {"parameters, triptych": ours_size, "parameters, keras-hub RetinaNet": their_size},
    }


def _our_step(pictures: np.ndarray, boxes: np.ndarray, classes: np.ndarray) -> tuple[Callable[[], float], int]:
    from shared.data import InputPipeline, Stages
    from shared.optimizers import build_optimizer, build_schedule
    from shared.training import TrainingTask, TrainStep
    from shared.training_config import TrainingConfig

    detector, config = _detector([]), TrainingConfig(clip_norm=0.0)
    network = detector._network
    assert network is not None
    batches = InputPipeline((np.zeros(1), np.zeros(1)), Stages(encode=lambda x, y: {"x": x}))
    task = TrainingTask(model=network.model, loss=network.loss, batches=batches, varying_shapes=True)
    optimizer = build_optimizer(config, network.model.trainable_variables, build_schedule(config, 1000))
    step = TrainStep(task, optimizer, config)
    batch = {"images": pictures, "boxes": boxes, "classes": classes, "crowd": np.zeros(classes.shape, bool)}

    def run() -> int:
        step([batch])
        float(step.loss_sum.numpy())  # waits for the step to end
        return len(pictures)

    run()
    return lambda: _rate(run), int(network.model.count_params())


def _retinanet_step(pictures: np.ndarray, boxes: np.ndarray, classes: np.ndarray) -> tuple[Callable[[], float], int]:
    import keras
    import keras_hub
    import tensorflow as tf

    trunk = keras_hub.models.EfficientNetBackbone(
        **_LITE0, include_stem_padding=True, input_shape=(_SIZE, _SIZE, 3), activation="relu6"
    )
    retinanet = keras_hub.models.RetinaNetObjectDetector(
        backbone=keras_hub.models.RetinaNetBackbone(
            image_encoder=trunk, min_level=3, max_level=5, use_p5=False, image_shape=(_SIZE, _SIZE, 3)
        ),
        num_classes=3,
        bounding_box_format="xyxy",
        preprocessor=None,
    )
    retinanet.compile(optimizer=keras.optimizers.AdamW(1e-3), box_loss="auto", classification_loss="auto")
    batch = (pictures.astype(np.float32), {"boxes": boxes, "labels": classes.astype(np.float32)})
    batches = iter(tf.data.Dataset.from_tensors(batch).repeat())
    retinanet.make_train_function()

    def run() -> int:
        keras.tree.map_structure(np.asarray, retinanet.train_function(batches))  # waits for the step to end
        return len(pictures)

    run()
    return lambda: _rate(run), int(retinanet.count_params())


# EfficientNet-Lite0 in keras-hub's words.
_LITE0: dict[str, Any] = {
    "stackwise_width_coefficients": [1.0] * 7,
    "stackwise_depth_coefficients": [1.0] * 7,
    "stackwise_kernel_sizes": [3, 3, 5, 3, 5, 5, 3],
    "stackwise_num_repeats": [1, 2, 2, 3, 3, 4, 1],
    "stackwise_input_filters": [32, 16, 24, 40, 80, 112, 192],
    "stackwise_output_filters": [16, 24, 40, 80, 112, 192, 320],
    "stackwise_expansion_ratios": [1, 6, 6, 6, 6, 6, 6],
    "stackwise_strides": [1, 2, 2, 2, 1, 2, 1],
    "stackwise_squeeze_and_excite_ratios": [0.0] * 7,
    "stackwise_block_types": ["v1"] * 7,
    "stackwise_force_input_filters": [0] * 7,
    "stackwise_nores_option": [False] * 7,
    "dropout": 0.0,
}
