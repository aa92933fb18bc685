"""TensorFlow Recommenders and Keras 2, or an error that says how to get them; imported by `recsys.tfrs` alone.

TensorFlow decides once, when its `keras` is first looked at, which Keras that is.
"""

from __future__ import annotations

import os
import sys
from typing import Any

_SET = (
    "Set TF_USE_LEGACY_KERAS=1 in the environment before TensorFlow is first imported, as scripts/tfrs_retrieval.py "
    "does"
)


def require_legacy_keras() -> None:
    """Refuse a process in which TensorFlow's Keras is Keras 3, or would become it.

    Raises:
        ImportError: saying what to set.
    """
    if os.environ.get("TF_USE_LEGACY_KERAS", "").lower() not in ("1", "true"):
        raise ImportError(f"recsys.tfrs needs Keras 2. {_SET}.")
    tensorflow: Any = sys.modules.get("tensorflow")
    if tensorflow is not None and not tensorflow.keras.layers.Layer.__module__.startswith("tf_keras"):
        raise ImportError(
            f"recsys.tfrs needs Keras 2, and TensorFlow has already taken Keras 3 in this process. {_SET}: here, in a "
            "process of its own."
        )


require_legacy_keras()
try:
    import tensorflow_recommenders as tfrs
    import tf_keras
except ImportError as missing:
    raise ImportError("recsys.tfrs needs TensorFlow Recommenders: pip install 'triptych[tfrs]'") from missing

__all__ = ["require_legacy_keras", "tf_keras", "tfrs"]
