"""Frames of a video file, by OpenCV."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from shared.examples import existing_file

SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})


def read_video(path: str | Path, *, every: int = 1) -> Iterator[tuple[float, np.ndarray]]:
    """(seconds from the start, uint8 RGB (H, W, 3)) of the frames of a video, read one by one.

    Args:
        path: a file that OpenCV can decode.
        every: only each so manyth frame, beginning with the first.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for a file without a frame that can be read, or `every` below 1.
    """
    if every < 1:
        raise ValueError(f"`every` must be at least 1; received {every}.")
    file = existing_file(path)
    capture = cv2.VideoCapture(str(file))
    try:
        rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
        number = 0
        while capture.grab():
            if number % every == 0:
                good, frame = capture.retrieve()
                if not good:
                    break
                yield number / rate, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            number += 1
        if number == 0:
            raise ValueError(f"{file} has no frame that can be read. Is it a video? Convert it to MP4 (H.264) first.")
    finally:
        capture.release()
