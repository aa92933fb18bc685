"""implicit's ALS and faiss's flat index, for comparison: answers lines of JSON on stdin with lines on stdout.

    python scripts/peers/implicit_faiss.py ials|top-k JOB.npz THREADS

`ials`: the job has a user-by-item matrix (`indices`, `indptr`, `shape`) and settings. A line with a number of factors
runs the first iterations with so many, from the start, and is answered with {"seconds": of one}: of implicit's loop
alone, as its callback tells them, without the copies of the matrix that it makes before. A line with a file's name
writes the factors trained last there. `top-k`: the job has `queries` and `items`; each line is a search, answered with
its {"seconds"}. Needs implicit and faiss-cpu.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np


class Ials:
    """The model of implicit that was trained last."""

    def __init__(self, job: Any, threads: int) -> None:
        import scipy.sparse as sp

        self.job, self.threads = job, threads
        parts = np.ones(len(job["indices"]), np.float32), job["indices"], job["indptr"]
        self.matrix = sp.csr_matrix(parts, shape=tuple(job["shape"]))
        self.last: Any = None

    def answer(self, line: str) -> dict[str, float]:
        """Train, or write what was trained last."""
        if not line.isdecimal():
            np.savez(line, users=self.last.user_factors, items=self.last.item_factors)
            return {"seconds": 0.0}
        self.last = self._model(int(line))
        seconds: list[float] = []
        self.last.fit(self.matrix, show_progress=False, callback=lambda _, elapsed, __: seconds.append(elapsed))
        return {"seconds": sum(seconds) / len(seconds)}

    def _model(self, factors: int) -> Any:
        import threadpoolctl
        from implicit.als import AlternatingLeastSquares

        # As implicit asks for; after its import, which loads the BLAS that it uses.
        threadpoolctl.threadpool_limits(1, "blas")
        return AlternatingLeastSquares(
            factors=factors,
            regularization=float(self.job["regularization"]),
            alpha=float(self.job["alpha"]),
            iterations=int(self.job["iterations"]),
            num_threads=self.threads,
            random_state=0,
        )


class TopK:
    """An exact index by inner product."""

    def __init__(self, job: Any, threads: int) -> None:
        import faiss

        faiss.omp_set_num_threads(threads)
        self.queries, self.k = job["queries"], int(job["k"])
        self.index = faiss.IndexFlatIP(self.queries.shape[1])
        self.index.add(job["items"])

    def answer(self, line: str) -> dict[str, float]:
        """Search once."""
        start = time.perf_counter()
        self.index.search(self.queries, self.k)
        return {"seconds": time.perf_counter() - start}


def main(name: str, job_file: str, threads: str) -> None:
    """Answer lines until stdin ends."""
    kind: type[Ials | TopK] = Ials if name == "ials" else TopK
    peer = kind(np.load(job_file), int(threads))
    for line in sys.stdin:
        print(json.dumps(peer.answer(line.strip())), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
