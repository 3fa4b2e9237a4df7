"""`incontext tune`: a prompt pack from labelled images."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from incontext.cli.arguments import output_file
from incontext.cli.model_options import add_device, add_model

if TYPE_CHECKING:
    import numpy as np

    from incontext.labelled_folders import Item
    from incontext.types import Example

_SHOTS, _DRAWS = 8, 3  # how many real examples a pack is compared with at most, and how often they are drawn


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command `tune`."""
    parser = subparsers.add_parser(
        "tune",
        help="learn a prompt pack from labelled images",
        description="Learns examples that work better than real ones; the model stays as it is. Writes the pack, its "
        "card (NAME.md), and in NAME.tune/ the curve (CSV and PNG) and a picture of before and after. Stopped, by "
        "--minutes or Ctrl-C, it goes on when started again with the same flags.",
    )
    parser.add_argument("data", metavar="DATA", help="labelled images: a folder or file as `incontext label` takes")
    parser.add_argument(
        "-o", "--output", type=output_file, required=True, metavar="NAME.safetensors", help="the pack to write"
    )
    add_model(parser)
    parser.add_argument("--config", type=Path, metavar="JSON", help="fields of TuneConfig; flags win over it")
    parser.add_argument("--examples", type=int, metavar="N", help="how many examples are learned (default 8)")
    parser.add_argument("--init", choices=("examples", "noise"), help="start from real examples (default) or noise")
    parser.add_argument(
        "--learn",
        choices=("images", "masks", "both", "tokens"),
        help="what of them (default images); tokens: what is added to their keys and values, in models whose examples "
        "do not attend to the query, as the bundled one's",
    )
    parser.add_argument("--steps", type=int, help="length of the run (default 200)")
    parser.add_argument("--batch-size", type=int, help="queries in a step (default 8)")
    parser.add_argument("--learning-rate", type=float, help="of images (default 0.1)")
    parser.add_argument("--kind", choices=("instance", "semantic"), help="(default semantic)")
    parser.add_argument("--ensemble", choices=("feature", "spatial"), help="(default feature)")
    parser.add_argument("--tile", type=int, metavar="PIXELS", help="learn from squares of this side, for small objects")
    parser.add_argument(
        "--mirror",
        action=argparse.BooleanOptionalAction,
        help="mirror half of the queries (default); not where classes tell left from right",
    )
    parser.add_argument("--seed", type=int, help="of everything (default 0)")
    parser.add_argument("--minutes", type=float, help="pause after so many minutes; run again to go on")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="(default fp32)")
    parser.add_argument(
        "--checkpointing",
        action=argparse.BooleanOptionalAction,
        help="recompute activations instead of keeping them, for large models",
    )
    parser.add_argument(
        "--test", metavar="DATA", help="score the pack, and up to 8 real examples, on these labelled images"
    )
    parser.add_argument(
        "--test-limit", type=int, metavar="N", help="take N images of --test, evenly spread (default all)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="take N images of DATA, evenly spread (default all)")
    add_device(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status.

    Raises:
        ValueError: a flag, a field of the config or the data are wrong.
    """
    from incontext.device import pick_device
    from incontext.model.zoo import load_model
    from incontext.pack.pack_file import SUFFIX, run_folder
    from incontext.training.tune import TuneConfig, tune

    if args.output.suffix != SUFFIX:
        raise ValueError(f"-o {args.output}: expected a name that ends in {SUFFIX}")
    names = {field.name for field in dataclasses.fields(TuneConfig)}
    fields: dict[str, Any] = json.loads(args.config.read_text(encoding="utf-8")) if args.config else {}
    unknown = sorted(set(fields) - names)
    if unknown:
        raise ValueError(f"{args.config}: unknown fields {unknown}; expected some of {sorted(names)}")
    fields |= {name: value for name, value in vars(args).items() if name in names and value is not None}
    model = load_model(args.model, device=pick_device(args.device))
    pack = tune(
        model,
        labelled(args.data, args.limit),
        TuneConfig(**fields),
        name=args.output.stem,
        model_name=model_title(args.model),
        folder=run_folder(args.output),
    )
    pack = dataclasses.replace(pack, made={"data": Path(args.data).name, **pack.made})
    pack.save(args.output)  # before the test, which may take long
    if args.test:
        told = compare(pack, model, args.test, args.data, args.device, limit=args.test_limit)
        pack = dataclasses.replace(pack, evaluation={**pack.evaluation, **told})
        pack.save(args.output)
    for key, value in pack.evaluation.items():
        print(f"{key}: {value}")
    print(f"{args.output}: {args.output.stat().st_size / 2**20:.2f} MiB; pictures in {run_folder(args.output)}")
    return 0


def model_title(name_or_path: str) -> str:
    """What a pack calls its model: its name, or the stem of its file."""
    from incontext.model.zoo import find_entry

    entry = find_entry(name_or_path)
    return entry.name if entry is not None else Path(name_or_path).stem


def compare(
    pack: Any, model: Any, test: str, real: str | None, device: str, *, limit: int | None = None
) -> dict[str, str | int | float]:
    """Scores a pack on labelled images, beside draws of real examples if there are some; see `score_pack`.

    Args:
        pack, model: the pack and its model.
        test: labelled images.
        real: labelled images to draw real examples from.
        device: where to compute.
        limit: take so many of the test's images, evenly spread.
    """
    import numpy as np

    from incontext.evaluation.pack_scores import score_pack
    from incontext.predictor import Predictor

    drawn, shots = [], _SHOTS
    if real is not None:
        pool = labelled(real)
        shots = min(_SHOTS, len(pool))
        orders = [np.random.default_rng(seed).permutation(len(pool)) for seed in range(_DRAWS)]
        drawn = [[pool[int(k)] for k in order[:shots]] for order in orders]
    found = score_pack(Predictor(model, device=device), pack, labelled(test, limit), drawn)
    return found.describe(Path(test).name, shots)


def labelled(source: str, limit: int | None = None) -> Sequence[Example]:
    """Finds labelled images.

    Args:
        source: a folder with images/ and masks/ (and classes.txt), which are opened one at a time, when they are
            asked for; or what `open_examples` takes.
        limit: take so many, evenly spread.
    """
    from incontext.labelled_folders import ImageSet, find_sets

    folder = Path(source).expanduser()
    if (folder / "images").is_dir() and (folder / "masks").is_dir():
        (found,) = find_sets(folder)
        if isinstance(found, ImageSet):
            return _Folder(_spread(found.items, limit), found.names)
    from incontext.labeling.example_sources import open_examples

    return _spread(open_examples(source).examples, limit)


class _Folder(Sequence):
    """The images of a folder, opened when they are asked for."""

    def __init__(self, items: Sequence[Item], names: dict[int, str]) -> None:
        self.items, self.names = items, names

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def colours(self) -> dict[int, tuple[int, int, int]]:
        """Id -> colour, for masks that are coded in colours, as all are if the first one is."""
        from incontext.image import find_colours

        masks = [item.mask for item in self.items]
        return find_colours(masks) if find_colours(masks[:1]) else {}

    def __getitem__(self, index: int) -> Example:
        from incontext.labelled_folders import SetError
        from incontext.types import Example

        item = self.items[index]
        image, labels = item.open_image(), self._open_labels(item)
        if image.shape[:2] != labels.shape:
            raise SetError(f"{item.mask}: expected the image's size (H, W) {image.shape[:2]}, got {labels.shape}")
        return Example(image, labels, self.names)

    def _open_labels(self, item: Item) -> np.ndarray:
        from incontext.image import open_labels
        from incontext.labelled_folders import SetError

        if not self.colours:
            try:
                return item.open_labels()  # which knows from the other masks what 255 means
            except SetError:
                pass  # not a mask of ids
        return open_labels(item.mask, colours=self.colours)


def _spread(items: Sequence, limit: int | None) -> Sequence:
    if limit is None or limit >= len(items):
        return items
    return [items[k * len(items) // limit] for k in range(limit)]
