"""Names of nodes in the four languages, and the acronyms of methods."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
LANGUAGES = ("en", "ko", "ja", "zh")
ACRONYMS = {  # as the papers and their communities call the methods
    "Reins_PerturbedAttentionGuidance": "PAG",
    "Reins_SmoothedEnergyGuidance": "SEG",
    "Reins_SelfAttentionGuidance": "SAG",
    "Reins_SlidingWindowGuidance": "SWG",
    "Reins_TokenPerturbationGuidance": "TPG",
    "Reins_SkipLayerGuidance": "SLG/STG",
    "Reins_NormalizedAttentionGuidance": "NAG",
    "Reins_SparseCrossAttention": "PLADIS",
    "Reins_WeakModelGuidance": "AutoGuidance",
    "Reins_AdaptiveProjectedGuidance": "APG",
    "Reins_FrequencyDecoupledGuidance": "FDG",
}


def names(language: str) -> dict[str, str]:
    """The display name of each node."""
    content = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    return {node: entry["display_name"] for node, entry in content.items()}
