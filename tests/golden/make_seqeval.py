"""Make seqeval.json: sequences of tags, well-formed and not, and seqeval's strict scores of them.

python -m venv /tmp/reference && /tmp/reference/bin/pip install seqeval==1.2.2 numpy
/tmp/reference/bin/python tests/golden/make_seqeval.py
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from seqeval import scheme as schemes
from seqeval.metrics import classification_report

# Not IOB1: what seqeval makes of a needless B- there has no rule that could be stated.
_SCHEMES = {"IOB2": (schemes.IOB2, "BI"), "BIOES": (schemes.IOBES, "BIES")}


def _case(name: str, seed: int, share: float) -> dict[str, Any]:
    """Random tags and the same with a share of them changed: mostly malformed, for that is where readings differ."""
    rng = np.random.default_rng(seed)
    seqeval_scheme, prefixes = _SCHEMES[name]
    tags = np.array(["O", "O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in ("LOC", "ORG", "PER"))])
    true = [rng.choice(tags, rng.integers(1, 12)) for _ in range(60)]
    predicted = [np.where(rng.random(len(row)) < share, rng.choice(tags, len(row)), row) for row in true]
    rows = [[row.tolist() for row in side] for side in (true, predicted)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = classification_report(*rows, mode="strict", scheme=seqeval_scheme, output_dict=True)
    scores = {kind: {key: float(value) for key, value in row.items()} for kind, row in report.items()}
    joined = [[" ".join(row) for row in side] for side in rows]
    return {"scheme": name, "true": joined[0], "predicted": joined[1], "scores": scores}


def main() -> None:
    """Write the file beside this one."""
    cases = [_case(name, seed, 0.25) for name in _SCHEMES for seed in range(3)]
    (Path(__file__).parent / "seqeval.json").write_text(json.dumps(cases, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
