"""The state of a run on disk: all that going on with it, exactly, takes."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from incontext.atomic import replacing
from incontext.model.seggpt import SegGPT
from incontext.training.config import TrainConfig
from incontext.training.optimiser import Optimisers

log = logging.getLogger(__name__)


@dataclass
class RunState:
    """What changes from step to step.

    Attributes:
        model: the weights that learn.
        average: the averaged weights, which are the ones saved for use.
        optimiser: with its moments.
        classifier: of the `ClassLoss`, if there is one.
        step: how many steps are done.
        pack: `Pack.digest` of what it learns from.
    """

    model: SegGPT
    average: SegGPT
    optimiser: torch.optim.Optimizer | Optimisers
    classifier: nn.Linear | None = None
    step: int = 0
    pack: str = ""

    @property
    def learning(self) -> list[nn.Parameter]:
        """The weights that learn."""
        parts = (self.model, *([] if self.classifier is None else [self.classifier]))
        return [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]

    def save(self, path: Path, config: TrainConfig) -> None:
        """Writes the state, atomically."""
        content = {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "config": config.identity(),
            "pack": self.pack,
        }
        if self.classifier is not None:
            content["classifier"] = self.classifier.state_dict()
        with replacing(path) as draft:
            torch.save(content, draft)

    def resume(self, path: Path, config: TrainConfig) -> None:
        """Goes on from a file, if there is one.

        Raises:
            ValueError: if it is of a run with another config, or on another pack.
        """
        if not path.exists():
            return
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["config"] != config.identity():
            raise ValueError(
                f"{path.parent} holds a run with another config: {content['config']}; give the same flags to go on "
                "with it, or another folder to start anew"
            )
        if content.get("pack", self.pack) != self.pack:  # older files do not tell
            raise ValueError(
                f"{path.parent} holds a run on another training pack; give the same pack to go on with it, or another "
                "folder to start anew"
            )
        self.model.load_state_dict(content["model"])
        self.average.load_state_dict(content["average"])
        self.optimiser.load_state_dict(content["optimiser"])
        if self.classifier is not None:
            self.classifier.load_state_dict(content["classifier"])
        self.step = content["step"]
        log.info("resumed at step %d", self.step)
