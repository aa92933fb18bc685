from __future__ import annotations

import cv2
import numpy as np
import pytest

from vision.video import read_video


@pytest.fixture
def film(tmp_path):
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (64, 48))
    for number in range(7):
        writer.write(np.full((48, 64, 3), (0, 0, 30 * number), np.uint8))  # red, in OpenCV's order
    writer.release()
    return path


def test_frames_come_in_order_as_rgb(film):
    frames = list(read_video(film))
    assert [seconds for seconds, _ in frames] == pytest.approx([number / 10 for number in range(7)])
    assert frames[6][1].shape == (48, 64, 3)
    assert [round(float(image[..., 0].mean()) / 30) for _, image in frames] == list(range(7))
    assert frames[6][1][..., 2].max() < 20


def test_every_third_frame(film):
    assert [round(seconds, 3) for seconds, _ in read_video(film, every=3)] == [0, 0.3, 0.6]


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "no.mp4").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"no\.mp4 has no frame"):
        list(read_video(tmp_path / "no.mp4"))
    with pytest.raises(FileNotFoundError, match="missing"):
        list(read_video(tmp_path / "missing.mp4"))
    with pytest.raises(ValueError, match="`every`"):
        list(read_video(tmp_path / "no.mp4", every=0))
