"""Item nearest neighbours: items are alike when the same users chose them (Sarwar et al. 2001)."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import scipy.sparse as sp

from recsys.top_k import block_size, top_k

Weighting: TypeAlias = Literal["cosine", "tfidf", "bm25"]


def weighted_items(matrix: sp.csr_matrix, weighting: Weighting, *, k1: float = 1.2, b: float = 0.75) -> sp.csr_matrix:
    """Items as rows of weights by user, float32 (I, U), whose inner products are similarities.

    An item is read as a text whose words are its users. With w the value of an interaction, n_u the number of items of
    a user, I the number of items and idf_u = max(0, ln(I / (1 + n_u))):

    - cosine: w, each row brought to length 1;
    - tfidf: sqrt(w) idf_u, each row brought to length 1;
    - bm25: idf_u w (k1 + 1) / (w + k1 (1 - b + b len_i / mean len)) with len_i the sum of an item's w (Robertson and
      Walker 1994); rows keep their length.
    """
    items = matrix.T.tocsr().astype(np.float32)
    num_items = max(1, items.shape[0])
    frequency = np.log(num_items / (1.0 + np.bincount(items.indices, minlength=items.shape[1])))
    idf = np.maximum(frequency, 0).astype(np.float32)
    if weighting == "tfidf":
        items.data = np.sqrt(items.data) * idf[items.indices]
    elif weighting == "bm25":
        lengths = np.asarray(items.sum(axis=1)).ravel()
        norms = k1 * (1 - b + b * lengths / max(float(lengths.mean()), 1e-12))
        rows = np.repeat(norms.astype(np.float32), np.diff(items.indptr))
        items.data = idf[items.indices] * items.data * np.float32(k1 + 1) / (items.data + rows)
        return items
    lengths = np.sqrt(np.asarray(items.multiply(items).sum(axis=1)).ravel())
    items.data /= np.repeat(np.maximum(lengths, 1e-12), np.diff(items.indptr)).astype(np.float32)
    return items


def item_similarities(
    matrix: sp.csr_matrix,
    *,
    neighbours: int,
    weighting: Weighting,
    shrinkage: float = 0.0,
    k1: float = 1.2,
    b: float = 0.75,
) -> sp.csr_matrix:
    """The similarities of each item to its `neighbours` nearest others, float32 (I, I), by row.

    With `shrinkage` s, a similarity is multiplied by c / (c + s), c being the number of common users. Of equally near
    items the lower number is kept.
    """
    items = weighted_items(matrix, weighting, k1=k1, b=b)
    by_user = items.T.tocsr()
    common = sp.csr_matrix((np.ones(items.nnz, np.float32), items.indices, items.indptr), items.shape)
    common_by_user = common.T.tocsr()
    num_items = items.shape[0]
    neighbours = min(neighbours, num_items)
    step = block_size(num_items)
    parts = []
    for start in range(0, num_items, step):
        rows = slice(start, min(start + step, num_items))
        dense = (items[rows] @ by_user).toarray()
        if shrinkage:
            counts = (common[rows] @ common_by_user).toarray()
            dense *= counts / (counts + shrinkage)
        dense[np.arange(len(dense)), np.arange(rows.start, rows.stop)] = 0
        parts.append(_nearest(dense, neighbours))
    return sp.vstack(parts, format="csr") if parts else sp.csr_matrix((0, 0), dtype=np.float32)


def _nearest(similarities: np.ndarray, neighbours: int) -> sp.csr_matrix:
    """The largest positive entries of each row, as a sparse matrix."""
    columns, values = top_k(np.where(similarities > 0, similarities, -np.inf), neighbours)
    kept = columns >= 0
    offsets = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
    nearest = sp.csr_matrix((values[kept], columns[kept], offsets), shape=similarities.shape)
    nearest.sort_indices()
    return nearest
