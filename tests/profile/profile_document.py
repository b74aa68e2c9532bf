"""A profile that uses every field, as JSON."""

from typing import Any

DOCUMENT: dict[str, Any] = {
    "schema_version": "1.0",
    "name": "toy",
    "verdict": "sinks",
    "reason": "Dimension 5 is massive on few tokens that draw attention.",
    "backbone": {"model_type": "llama", "hidden_size": 16, "num_layers": 6, "num_heads": 4, "num_kv_heads": 2},
    "models": ["someone/toy"],
    "sink_dimensions": [
        {"dim": 5, "sign": 1, "typical_value": 90.5, "phi": 3.9, "energy_share": 0.95, "p_value": 1e-9,
         "stability": 1.0, "first_layer": 1, "last_layer": 5, "triggers": ["first", "text"], "contrast": 40.0,
         "attention_drawn": 0.4},
        {"dim": 7},
    ],
    "companion_dimensions": [{"dim": 3, "reason": "too little energy"}],
    "all_token_outliers": [{"dim": 2, "first_layer": 5, "last_layer": 6}],
    "content_dimensions": [{"dim": 9}],
    "tau": {"phi": 3.0, "phi_interval": [2.0, 3.5], "energy_share": 0.56, "quality": "separated"},
    "bands": [
        {"first_layer": 1, "last_layer": 2, "dims": [5], "tau_phi": 3.0},
        {"first_layer": 4, "last_layer": 5, "dims": [5, 7], "tau_phi": 3.0, "scale": 2.0, "tau_score": 10.0,
         "tau_score_interval": [4.0, 20.0], "quality": "separated",
         "layers": [{"layer": 5, "scale": 4.0, "tau_score": 8.0}]},
    ],
    "var": {"p": 0.6, "rho": 0.8, "attention_floor": 0.2, "excluded_layers": [5]},
    "evidence": {"attention": {"auroc": 0.99, "nested": {"values": [1, 2.5, None]}}, "notes": ["measured on a toy"]},
    "provenance": {"kind": "measured", "calibration": {"tokens": 100}, "date": "2026-01-01"},
}  # fmt: skip
