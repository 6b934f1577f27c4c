"""How train.py steps: the optimizers, and their rate as the time goes."""

import math
from typing import Any

import torch

FINAL_RATE = 0.05  # the cosine ends at this share of the peak rate


def rate_at(step: int, done: float, warmup: int) -> float:
    """Share of the peak rate: linear warm-up by steps, times a cosine over the share of the wall time that is gone."""
    cosine = FINAL_RATE + (1 - FINAL_RATE) * (1 + math.cos(math.pi * done)) / 2
    return min(1.0, (step + 1) / max(1, warmup)) * cosine


def new_optimizers(model: Any) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the rest; each step sets their one rate.

    Muon (Jordan et al. 2024) at the root mean square of AdamW's steps (Liu et al. 2025, arXiv:2502.16982)
    takes AdamW's rates. Weight decay is on the matrices and the embeddings alone.
    """
    layers = {id(p): p for p in model.transformer.h.parameters() if p.dim() == 2}
    others = [p for p in model.parameters() if id(p) not in layers]
    groups = [
        {"params": [p for p in others if p.dim() == 2], "weight_decay": 0.1},
        {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(layers.values(), weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True),
    ]
