"""In-context tuning: learns the examples, and leaves the model as it is (SegGPT, arXiv 2304.03284, section 3.4)."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
import math
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from incontext.appearance_cache import AppearanceCache
from incontext.atomic import replacing
from incontext.image import normalise
from incontext.model.checkpoint import fingerprint
from incontext.pack.prompt_pack import PackError, PromptPack, Scalar, slot_colours
from incontext.pack.swatches import Swatches
from incontext.pack.tokens import token_shape
from incontext.palette import Palette, split_ids
from incontext.training.learned_prompt import LearnedPrompt, frozen, paint
from incontext.training.tune_config import TuneConfig
from incontext.training.tune_data import Augmentation, TuneData, Views
from incontext.training.tune_report import draw_before_after, draw_curve, write_curve
from incontext.training.tune_score import Score, fit_looks, fit_temperature, loss, score
from incontext.types import Example

__all__ = ["TuneConfig", "tune"]

log = logging.getLogger(__name__)

_LEAST_HELD = 8  # held-out views, however many passes each takes
_PROBES = 16  # training views on which candidates are tried
_TRIED = 8  # candidates, those that are best alone, that are tried beside the ones chosen before
_LEAST_PROBES = 4


def tune(
    model: nn.Module,
    examples: Iterable[Example],
    config: TuneConfig | None = None,
    *,
    name: str = "prompt",
    model_name: str = "unnamed",
    folder: str | Path | None = None,
) -> PromptPack:
    """Learns a prompt pack. The model is frozen, and afterwards as it was, to the last bit.

    Args:
        model: a `SegGPT`, on the device to tune on.
        examples: at least two; one id means the same in all of them. Taken one by one.
        config: how.
        name: of the pack.
        model_name: what people call the model.
        folder: where the run keeps `curve.csv`, `curve.png`, `before-after.jpg` and `state.pt`. Interrupted, it goes
            on from the last look when started again, with the same result as without the stop.

    Returns:
        The best pack so far on what was held out, by the criterion: never worse there than what it started from.

    Raises:
        ValueError: there are too few images, or the folder holds a run of another kind.
    """
    config = config or TuneConfig()
    data = TuneData(examples, name, model.config.image_size, config.tile, config.held_out, config.seed)
    with frozen(model, config.checkpointing):
        run = _Run(model, data, config, name, model_name, None if folder is None else Path(folder))
        run.go()
        return run.finish()


class _Run:
    """One tuning run: the prompt, its average, and the best so far."""

    def __init__(
        self, model: nn.Module, data: TuneData, config: TuneConfig, name: str, model_name: str, folder: Path | None
    ) -> None:
        self.model, self.data, self.config, self.folder = model, data, config, folder
        self.device = next(model.parameters()).device
        ids = tuple(data.names)
        most = config.ids_per_pass or model.config.ids_per_pass
        parts = split_ids(ids, most)
        self.base = {
            "name": name,
            "palettes": tuple(Palette.for_ids(part) for part in parts),
            "names": data.names,
            "fingerprint": fingerprint(model),
            "model": model_name,
            "ids_per_pass": most,
            "kind": config.kind,
            "ensemble": config.ensemble,
            "tile": config.tile,
        }
        self.parts, self.ids = parts, ids
        most_views = config.most_held_out
        looked_at = min(len(data.held), max(min(_LEAST_HELD, most_views), most_views // len(parts)))
        self.held = data.held[[k * len(data.held) // looked_at for k in range(looked_at)]]
        self.how = Augmentation(config.crops, config.mirror, config.jitter)
        start = self._choose()
        self.real = self._pack(LearnedPrompt(start, len(ids), "images"))
        noise = torch.Generator().manual_seed(config.seed) if config.init == "noise" else None
        shape = token_shape(model.config) if config.learn == "tokens" else ()
        self.prompt = LearnedPrompt(start, len(ids), config.learn, noise, shape).to(self.device)
        self.average = copy.deepcopy(self.prompt).requires_grad_(False)
        rates = {
            "images": config.learning_rate,
            "masks": config.mask_learning_rate,
            "tokens": config.token_learning_rate,
        }
        learned = [(key, value) for key, value in self.prompt.named_parameters() if value.requires_grad]
        groups = [{"params": [value], "lr": rates[key], "rate": rates[key]} for key, value in learned]
        self.optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
        self.step = 0
        self.lately: list[Tensor] = []  # losses of the steps since the last look
        self.rows: list[dict[str, float]] = []
        self.best = self._pack(self.average)
        self.stale = 0
        self._resume()

    @property
    def over(self) -> bool:
        """Whether there is nothing left to learn."""
        return self.step >= self.config.steps or bool(self.config.patience and self.stale >= self.config.patience)

    def go(self) -> None:
        """Learns until the steps are done, nothing is gained any more, or the time is up."""
        config, started = self.config, time.monotonic()
        if not self.rows:
            self._look()
        # disable=None: silent unless standard error is a terminal
        with tqdm(total=config.steps, initial=self.step, unit="step", disable=None, file=sys.stderr) as bar:
            while not self.over:
                self.lately.append(self._learn())
                self.step += 1
                bar.update()
                if self.step == config.steps or self.step % config.evaluate_every == 0:
                    self._look()
                    row = self.rows[-1]
                    bar.set_postfix_str(
                        f"held out: loss {row['held_out_loss']:.4f}, IoU {100 * row['held_out_iou']:.1f}"
                    )
                if config.minutes and time.monotonic() - started > 60 * config.minutes:
                    self._save()  # between two looks: what is kept, and when to stop, must not depend on pauses
                    log.info("paused at step %d of %d; run again to go on", self.step, config.steps)
                    return

    def finish(self) -> PromptPack:
        """The best pack, with its temperature and all that is known of it; writes curve and picture."""
        config = self.config
        temperature = fit_temperature(self.model, self.best, self.held, config.batch_size)
        best = dataclasses.replace(self.best, temperature=temperature, swatches=self._swatches())
        if self.model.config.refine and config.tile is None:
            best = fit_looks(self.model, best, self.held, config.batch_size)
        real = self._score(self.real)
        tuned = self.rows[0]
        for row in self.rows[1:]:
            tuned = row if _better(row, tuned, config.criterion) else tuned
        evaluation: dict[str, Scalar] = {
            "held-out views": len(self.held),
            "held-out IoU, real examples (percent)": round(100 * real.iou, 2),
            "held-out IoU, tuned (percent)": round(100 * tuned["held_out_iou"], 2),
            "held-out loss, real examples": round(real.loss, 5),
            "held-out loss, tuned": round(tuned["held_out_loss"], 5),
        }
        fields = {key: value for key, value in dataclasses.asdict(config).items() if key not in ("minutes", "tile")}
        made: dict[str, Scalar] = {"method": "in-context tuning", "images": len(self.data), "steps done": self.step}
        pack = dataclasses.replace(
            best,
            made={**made, **fields},
            evaluation={**self.best.evaluation, **evaluation},
        )
        if self.folder is not None:
            draw_curve(self.rows, self.folder / "curve.png")
            draw_before_after(self.model, self.real, pack, self.held, self.folder / "before-after.jpg")
        return pack

    def _swatches(self) -> Swatches | None:
        """Pixels of many images, where predictors compare with them."""
        architecture = self.model.config
        if not architecture.refine or self.config.tile is not None:
            return None
        looks = AppearanceCache(architecture.image_size, architecture.patch_size, torch.device("cpu"))
        return looks.swatches(self.data.pairs(), len(self.ids))

    def _choose(self) -> Views:
        """The real examples to start from: one after the other that which helps most beside those before it, on other
        images; each class in one of them, if it goes."""
        config = self.config
        rng = np.random.default_rng([config.seed, 0])
        found = self.data.candidates(rng, max(config.candidates, config.examples))
        plain = Augmentation(crops=0.0, mirror=False, jitter=0.0)
        count = min(max(_LEAST_PROBES, _PROBES // len(self.parts)), len(self.data))
        probes = self.data.draw(rng, count, range(1, len(self.ids) + 1), plain)

        def iou(*examples: int) -> float:
            pack = self._pack(LearnedPrompt(found[list(examples)], len(self.ids), "images"))
            return score(self.model, pack, probes, config.balance, config.beta, config.batch_size).iou

        alone = [iou(k) for k in range(len(found))]
        left, chosen, covered = sorted(range(len(found)), key=lambda k: -alone[k]), [], set()
        while left and len(chosen) < config.examples:
            most = max(len(found.shown(k) - covered) for k in left)
            tried = [k for k in left if len(found.shown(k) - covered) == most][:_TRIED]
            best = max(tried, key=lambda k: iou(*chosen, k)) if chosen and len(tried) > 1 else tried[0]
            left.remove(best)
            chosen.append(best)
            covered |= found.shown(best)
        for part in self.parts:
            if not covered.intersection(1 + self.ids.index(id) for id in part):
                raise ValueError(
                    f"expected examples that show something of each pass, got {len(chosen)} that show none of the ids "
                    f"{part} out of {len(self.ids)}; give more examples, or masks of classes if these number objects"
                )
        return found[chosen]

    def _learn(self) -> Tensor:
        """One step; all that is random in it comes from the seed and its number, so a resumed run sees the same."""
        config = self.config
        rng = np.random.default_rng([config.seed, 1, self.step])
        part = self.parts[int(rng.integers(len(self.parts)))]
        colours = slot_colours(self.ids, Palette.random(part, torch.Generator().manual_seed(int(rng.integers(2**62)))))
        wanted = [1 + self.ids.index(id) for id in part]
        keep = [k for k, shown in enumerate(self.prompt.shown) if not shown or shown.intersection(wanted)]
        shown, seen = self._draw_seen(rng, keep)
        views = self.data.draw(rng, config.batch_size, wanted, self.how)
        for group in self.optimiser.param_groups:
            group["lr"] = group["rate"] * _schedule(self.step, config.steps)
        colours = colours.to(self.device)
        labels = torch.from_numpy(views.slots.astype(np.int64)).to(self.device)
        bf16 = config.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext():
            images, targets = self.prompt.canvases(shown, colours)
            tokens = None if self.prompt.tokens is None else self.prompt.tokens[shown]
            queries = normalise(views.images).to(self.device)
            manner = (config.kind, config.ensemble)
            painting = paint(self.model, queries, images, targets, *manner, tokens=tokens, seen=seen)
        cost = loss(painting.float(), labels, colours, config.balance, config.beta)
        self.optimiser.zero_grad(set_to_none=True)
        cost.backward()
        self.optimiser.step()
        decay = min(config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.prompt.parameters()), 1 - decay)
        return cost.detach()

    def _draw_seen(self, rng: np.random.Generator, keep: list[int]) -> tuple[list[int], Tensor | None]:
        """Which examples a step shows, and which of those each query looks at, (B, n); None where it is all of them.

        To look at few costs little, and each query has others. In one grid of examples they share the same.
        """
        count = max(1, round((1 - self.config.dropout) * len(keep)))
        if self.config.ensemble == "spatial" or count == len(keep):
            return sorted(rng.permutation(keep)[:count].tolist()), None
        drawn = np.stack([rng.permutation(keep)[:count] for _ in range(self.config.batch_size)])
        shown, seen = np.unique(drawn, return_inverse=True)
        return shown.tolist(), torch.from_numpy(seen.reshape(drawn.shape)).to(self.device)

    def _look(self) -> None:
        """Scores the average on what is held out, keeps the best, and saves the state."""
        pack = self._pack(self.average)
        held = self._score(pack)
        row = {"held_out_loss": held.loss, "held_out_iou": held.iou}
        gained = all(_better(row, earlier, self.config.criterion) for earlier in self.rows)
        self.stale = 0 if gained else self.stale + 1
        if gained:
            self.best = pack
        mean = torch.stack(self.lately).mean().item() if self.lately else math.nan
        self.rows.append({"step": self.step, "loss": mean, **row})
        self.lately = []
        if self.folder is not None:
            write_curve(self.rows, self.folder / "curve.csv")
        self._save()

    def _score(self, pack: PromptPack) -> Score:
        config = self.config
        return score(self.model, pack, self.held, config.balance, config.beta, config.batch_size)

    def _pack(self, prompt: LearnedPrompt) -> PromptPack:
        return PromptPack(**prompt.tensors(), **self.base)

    @property
    def _identity(self) -> str:
        """What decides the result, as text. When to pause does not."""
        fields = dataclasses.asdict(self.config)
        del fields["minutes"]
        return json.dumps({**fields, "data": self.data.digest, "model": self.base["fingerprint"]}, sort_keys=True)

    def _save(self) -> None:
        if self.folder is None:
            return
        state = {
            "identity": self._identity,
            "step": self.step,
            "stale": self.stale,
            "rows": self.rows,
            "lately": self.lately,
            "prompt": self.prompt.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "best": {name: getattr(self.best, name) for name in ("images", "masks", "tokens")},
        }
        with replacing(self.folder / "state.pt") as draft:
            torch.save(state, draft)

    def _resume(self) -> None:
        path = None if self.folder is None else self.folder / "state.pt"
        if path is None or not path.exists():
            return
        state: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if state["identity"] != self._identity:
            raise PackError(
                f"{self.folder} holds a run with other settings, data or another model; give the same to go on, "
                "or another folder to start anew"
            )
        self.step, self.stale, self.rows = state["step"], state["stale"], state["rows"]
        self.lately = [loss.to(self.device) for loss in state.get("lately", [])]
        self.prompt.load_state_dict(state["prompt"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.best = PromptPack(**state["best"], pictures=self.prompt.pictures, **self.base)
        log.info("resumed at step %d", self.step)


def _better(row: Mapping[str, float], earlier: Mapping[str, float], criterion: str) -> bool:
    if criterion == "iou":
        return row["held_out_iou"] > earlier["held_out_iou"]
    return row["held_out_loss"] < earlier["held_out_loss"]


def _schedule(step: int, steps: int) -> float:
    """Share of the learning rate: rises over 5% of the steps, then falls along a cosine to a tenth."""
    rise = min(1.0, (step + 1) / max(1.0, 0.05 * steps))
    return rise * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / steps)))
