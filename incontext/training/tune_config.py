"""How to tune a prompt pack."""

from __future__ import annotations

from dataclasses import dataclass

from incontext.model.seggpt import KINDS
from incontext.pack.prompt_pack import ENSEMBLES
from incontext.training.learned_prompt import LEARNABLE


@dataclass(frozen=True)
class TuneConfig:
    """How to tune.

    Attributes:
        examples: how many are learned, N.
        init: start from the user's best real "examples", or images from "noise" (with masks of the best), which are
            then learned.
        learn: "images", "masks" or "both"; or "tokens", what is added to the keys and values of the encoded examples:
            for models whose examples do not attend to the query, and the feature ensemble.
        steps, batch_size: length of the run, and queries per step.
        learning_rate: of AdamW on images; it rises over the first 5% and falls along a cosine to a tenth.
        mask_learning_rate, token_learning_rate: of the masks' logits, and of tokens.
        ema: decay of the averaged prompt, which is the one kept.
        dropout: share of the examples that a query of a step does not see, drawn for each query; one is always seen.
        crops, mirror, jitter: of queries; see `Augmentation`.
        held_out: share of the images that is never learned from, and decides when to stop.
        most_held_out: the most views of them that are looked at; fewer where each takes several passes.
        evaluate_every: steps between looks at them, at which the state is saved too.
        criterion: what tells the best prompt there: the "iou", or the "loss", which is steadier where little is held
            out.
        patience: stop after so many looks without a gain; 0 goes on to the end.
        candidates: how many real images are tried as examples.
        kind, ensemble: of the pack; see `PromptPack`.
        tile: learn from squares of this side, in the images' pixels, for objects too small to be seen otherwise.
        ids_per_pass: how many classes get a colour in one pass; 0: as the model separates well.
        balance, beta: of the loss; see `TrainConfig`.
        checkpointing: recompute activations in the backward pass, for large models.
        precision: "fp32", or "bf16" (autocast).
        seed: of everything.
        minutes: stop after so many minutes, as if interrupted; 0 is no limit.

    Raises:
        ValueError: a field is out of its range.
    """

    examples: int = 8
    init: str = "examples"
    learn: str = "images"
    steps: int = 200
    batch_size: int = 8
    learning_rate: float = 0.1
    mask_learning_rate: float = 0.1
    token_learning_rate: float = 0.02
    ema: float = 0.98
    dropout: float = 0.75
    crops: float = 0.5
    mirror: bool = True
    jitter: float = 0.5
    held_out: float = 0.2
    most_held_out: int = 32
    evaluate_every: int = 25
    criterion: str = "iou"
    patience: int = 4
    candidates: int = 16
    kind: str = "semantic"
    ensemble: str = "feature"
    tile: int | None = None
    ids_per_pass: int = 0
    balance: float = 0.5
    beta: float = 0.1
    checkpointing: bool = False
    precision: str = "fp32"
    seed: int = 0
    minutes: float = 0.0

    def __post_init__(self) -> None:
        choices = {"init": ("examples", "noise"), "learn": LEARNABLE, "kind": KINDS, "ensemble": ENSEMBLES}
        choices |= {"precision": ("fp32", "bf16"), "criterion": ("iou", "loss")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {allowed}, got {getattr(self, name)!r}")
        if self.learn == "tokens" and self.ensemble != "feature":
            raise ValueError(f'learn: expected the "feature" ensemble with tokens, got {self.ensemble!r}')
        if self.init == "noise" and self.learn not in ("images", "both"):
            raise ValueError(f'learn: expected "images" or "both", or images stay "noise" (init), got {self.learn!r}')
        for name in ("examples", "steps", "batch_size", "evaluate_every", "candidates", "most_held_out"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        for name in ("dropout", "crops", "balance", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected 0 to 1, got {getattr(self, name)}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out: expected a share between 0 and 1, got {self.held_out}")
