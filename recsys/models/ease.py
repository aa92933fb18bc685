"""EASE: item-to-item weights that best reconstruct every user's history from their other items.

Steck 2019 (arXiv:1905.03375):

    minimise |X - X B|^2 + l2 |B|^2  with diag(B) = 0;   B = I - P diag(P)^-1,  P = (X'X + l2 I)^-1
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.sparse as sp


def ease_weights(matrix: sp.csr_matrix, l2: float) -> np.ndarray:
    """B, float32 (I, I): the score of item j is the sum of B[i, j] over the items i of a history.

    With fewer users than items, P comes from the users' side, (I - X'(X X' + l2 I)^-1 X) / l2, which is a system of
    U unknowns.

    Args:
        matrix: interactions, (U, I).
        l2: the strength of regularisation, positive; in interactions, so it grows with the data.
    """
    num_users, num_items = matrix.shape
    if num_users < num_items:
        inverse = _inverse_by_users(matrix, l2)
    else:
        gram = (matrix.T @ matrix).toarray().astype(np.float64)
        gram[np.diag_indices(num_items)] += l2
        inverse = _symmetric_inverse(gram)
    diagonal = np.diag(inverse).copy()
    inverse /= -diagonal
    inverse[np.diag_indices(num_items)] = 0
    return inverse.astype(np.float32, copy=False)


def _inverse_by_users(matrix: sp.csr_matrix, l2: float) -> np.ndarray:
    gram = (matrix @ matrix.T).toarray().astype(np.float64)
    gram[np.diag_indices(len(gram))] += l2
    # X'(L L')^-1 X = (L^-1 X)'(L^-1 X), which BLAS computes as one symmetric product.
    lower = scipy.linalg.cholesky(gram, lower=True)
    half = scipy.linalg.solve_triangular(lower, matrix.toarray(), lower=True).astype(np.float32)
    inverse = half.T @ half
    inverse /= -l2
    inverse[np.diag_indices(len(inverse))] += 1 / l2
    return np.asarray(inverse)


def _symmetric_inverse(gram: np.ndarray) -> np.ndarray:
    factor, info = scipy.linalg.lapack.dpotrf(gram, lower=1, overwrite_a=1)
    if info == 0:
        inverse, info = scipy.linalg.lapack.dpotri(factor, lower=1, overwrite_c=1)
    if info != 0:
        raise ValueError("The item matrix is not positive definite. Choose a larger `ease_l2`.")
    return np.asarray(np.tril(inverse) + np.tril(inverse, -1).T)
