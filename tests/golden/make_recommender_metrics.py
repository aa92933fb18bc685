"""Make recommender_metrics.json: made recommendation lists, and what LensKit, RecTools and scikit-learn say of them.

python -m venv /tmp/reference && /tmp/reference/bin/pip install lenskit==2025.8.1 scikit-learn==1.9.1
/tmp/reference/bin/pip install --no-deps rectools==0.19.0 attrs==26.1.0 typeguard==4.6.1
/tmp/reference/bin/python tests/golden/make_recommender_metrics.py

The lists differ in length, some are empty, some users have more held-out items than answers count.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lenskit.data import ItemList
from lenskit.metrics import NDCG, RMSE, Hit, LogRankWeight, Recall, RecipRank, call_metric
from rectools import metrics as rectools
from sklearn.metrics import log_loss, roc_auc_score

_USERS, _ITEMS, _LONGEST, _HELD, _TRAINING_USERS = 60, 80, 12, 15, 200


def _by_user(k: int, answers: list[list[int]], held: list[list[int]], counts: np.ndarray) -> dict[str, Any]:
    """Figures of each user at `k`, by library and name, and of all users together."""
    users = pd.Index(range(_USERS))
    table = pd.DataFrame(
        [(user, item, place + 1) for user, row in enumerate(answers) for place, item in enumerate(row)],
        columns=["user_id", "item_id", "rank"],
    )
    wanted = pd.DataFrame(
        [(user, item) for user, row in enumerate(held) for item in row], columns=["user_id", "item_id"]
    )
    theirs = {
        "recall": rectools.Recall(k),
        "mrr": rectools.MRR(k),
        "hit": rectools.HitRate(k),
        "map": rectools.MAP(k),
        "ndcg": rectools.NDCG(k, divide_by_achievable=True),
    }
    found = {
        f"rectools {name}": metric.calc_per_user(table, wanted).reindex(users).tolist()
        for name, metric in theirs.items()
    }
    before = pd.DataFrame(
        [(user, item) for item, count in enumerate(counts) for user in range(count)], columns=["user_id", "item_id"]
    )
    # RecTools counts the users of the table: the first item has all of them.
    novelty = rectools.MeanInvUserFreq(k).calc_per_user(table, before).reindex(users)
    found["rectools novelty"] = [None if np.isnan(value) else value for value in novelty.tolist()]
    # Its own discount is log2(place), with 1 for the first two places.
    log2 = LogRankWeight(offset=1)
    lists = [
        (ItemList(np.array(row), ordered=True), ItemList(np.array(test)))
        for row, test in zip(answers, held, strict=True)
    ]
    for name, metric in {"recall": Recall(k), "ndcg": NDCG(k, weight=log2), "mrr": RecipRank(k), "hit": Hit(k)}.items():
        found[f"lenskit {name}"] = [float(call_metric(metric, *pair)) if len(pair[0]) else 0.0 for pair in lists]
    coverage = rectools.CatalogCoverage(k, normalize=True).calc(table, list(range(_ITEMS)))
    return {"k": k, "by_user": found, "rectools coverage": float(coverage)}


def main() -> None:
    """Write the file beside this one."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, _LONGEST + 1, _USERS)
    lengths[:3] = 0, _LONGEST, 1
    answers = [rng.permutation(_ITEMS)[:length].tolist() for length in lengths]
    # Held-out items are drawn from the answers and from everything, so that there is something to be found.
    held = []
    for row in answers:
        pool = np.concatenate([rng.permutation(row), rng.permutation(_ITEMS)])[rng.integers(0, 8) :].astype(int)
        held.append(sorted(set(pool[: rng.integers(1, _HELD + 1)].tolist())))
    counts = rng.integers(1, _TRAINING_USERS, _ITEMS)
    counts[0] = _TRAINING_USERS
    # LensKit reckons in float32: with eighths its sum of squared errors is exact, which its root is not.
    true, predicted = rng.integers(1, 11, 200) / 2, rng.integers(0, 41, 200) / 8
    labels, probabilities = rng.integers(0, 2, 300), rng.random(300).round(2).clip(0.01, 0.99)
    numbered = {"item_ids": np.arange(200)}
    squared, _ = RMSE().compute_list_data(ItemList(**numbered, scores=predicted), ItemList(**numbered, rating=true))
    record = {
        "answers": [" ".join(map(str, row)) for row in answers],
        "held": [" ".join(map(str, row)) for row in held],
        "popularity": counts.tolist(),
        "num_items": _ITEMS,
        "num_training_users": _TRAINING_USERS,
        "rankings": [_by_user(k, answers, held, counts) for k in (1, 5, 10)],
        "ratings": {"true": true.tolist(), "predicted": predicted.tolist()},
        "lenskit squared error": float(squared),
        "labels": labels.tolist(),
        "probabilities": probabilities.tolist(),
        "scikit-learn auc": float(roc_auc_score(labels, probabilities)),
        "scikit-learn log_loss": float(log_loss(labels, probabilities)),
    }
    file = Path(__file__).parent / "recommender_metrics.json"
    file.write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
