"""Exports of rankers: raw columns to SavedModel, encoded arrays to LiteRT and ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from recsys.feature_encoder import Arrays, FeatureEncoder
from recsys.models.feature_graph import GraphEncoder
from shared.export import Endpoint, ExportReport, export_litert, export_onnx, export_saved_model

# Rows on which an export is compared with `predict`.
_COMPARED = 16


class RankerServing(tf.Module):
    """Raw columns to scores: the encoder's graph before the network."""

    def __init__(self, encoder: FeatureEncoder, serve: Callable[[Mapping[str, tf.Tensor]], tf.Tensor]) -> None:
        super().__init__()
        self.graph = GraphEncoder(encoder)
        self._serve = serve

    def serve(self, *columns: tf.Tensor) -> dict[str, tf.Tensor]:
        """`scores` (B,) of rows."""
        return {"scores": self._serve(self.graph.encode(*columns))}


def export_ranker(
    path: Path,
    format: str,
    encoder: FeatureEncoder,
    network: Any,
    serve: Callable[[Mapping[str, tf.Tensor]], tf.Tensor],
    answers: Callable[[Arrays], np.ndarray],
) -> ExportReport:
    """Write a ranker, compared with `predict` on rows made of what the encoder knows, and of what it does not.

    A SavedModel takes raw columns (recsys.models.feature_graph). The other formats have no tables for texts: they take
    what `FeatureEncoder.encode` makes.
    """
    table = encoder.examples(_COMPARED)
    arrays = encoder.encode(table)
    expected = answers(arrays)
    if format == "saved_model":
        serving = RankerServing(encoder, serve)
        graph = serving.graph
        raw = Endpoint(
            function=serving.serve,
            signature=graph.signature,
            example=graph.raw(table),
            expected={"scores": expected},
        )
        return export_saved_model(path, {"serve": raw}, track=[network, serving])
    names = tuple(arrays)
    encoded = Endpoint(
        function=lambda *columns: serve(dict(zip(names, columns, strict=True))),
        signature=tuple(tf.TensorSpec([None, a.shape[1]], a.dtype, name=name) for name, a in arrays.items()),
        example=tuple(arrays.values()),
        expected=expected,
    )
    if format == "litert":
        return export_litert(path, encoded, track=[network])
    return export_onnx(path, encoded)
