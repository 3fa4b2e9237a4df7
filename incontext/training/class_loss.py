"""A help for a model that learns from little: what its tokens show is asked for by name, too.

In-context painting tells of one class at a time, by an arbitrary colour. Where the classes of a set mean the same in
all its images, a linear layer reads them off the tokens of a middle block, so that matching has meaning to go by. The
layer is left behind after training: the model keeps its architecture.
"""

from __future__ import annotations

from types import TracebackType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from incontext.model.seggpt import SegGPT
from incontext.training.batches import Batch
from incontext.training.pack import IGNORE_ID

BACKGROUND = 0.25
"""Weight of a background token; one that shows a class has 1."""


def make_classifier(model: SegGPT, count: int, generator: torch.Generator | None = None) -> nn.Linear:
    """Returns the layer that reads `count` classes off the tokens of a model."""
    classifier = nn.Linear(model.config.width, count)
    nn.init.trunc_normal_(classifier.weight, std=0.02, generator=generator)
    nn.init.zeros_(classifier.bias)
    return classifier


def class_weights(batch: Batch) -> Tensor:
    """Weights of the tokens of all views, (B, V, l)."""
    weight = torch.where(batch.classes == 0, BACKGROUND, 1.0)
    return torch.where(batch.classes == IGNORE_ID, 0.0, weight)


class ClassLoss:
    """Cross-entropy of the classes of an episode's set, over the tokens of its query and its examples.

    It listens to the model while it is a context:

        with ClassLoss(model, classifier) as naming:
            painting = model(...)
            loss = loss + naming(batch, class_weights(batch))
    """

    def __init__(self, model: SegGPT, classifier: nn.Linear) -> None:
        self.classifier = classifier
        place = max(model.config.merge_layer + 1, (model.config.depth + 2) // 2)
        self._norm = model.blocks[min(place, model.config.depth - 1)].norm1
        self._tokens: dict[str, Tensor] = {}

    def __enter__(self) -> ClassLoss:
        def listen(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._tokens["query" if output.ndim == 3 else "examples"] = output

        self._handle = self._norm.register_forward_hook(listen)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._handle.remove()
        self._tokens.clear()

    def __call__(self, batch: Batch, weight: Tensor) -> Tensor:
        """Returns the loss of the last forward pass.

        Args:
            batch: what the model was given.
            weight: (B, V, l), from `class_weights`.
        """
        tokens = self._tokens["query"][:, None]
        if "examples" in self._tokens:
            tokens = torch.cat((self._tokens["examples"], tokens), 1)
        chosen = weight > 0
        first, count = batch.spans[:, None, None].expand(*weight.shape, 2)[chosen].unbind(-1)
        scores = self.classifier(tokens[chosen]).float()
        number = torch.arange(scores.shape[-1], device=scores.device)
        outside = (number < first[:, None]) | (number >= (first + count)[:, None])
        scores = scores.masked_fill(outside, -torch.inf)
        error = F.cross_entropy(scores, first + batch.classes[chosen], reduction="none")
        return (error * weight[chosen]).sum() / weight.sum().clamp_min(1e-6)
