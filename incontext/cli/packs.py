"""`incontext packs`: list, show, compile, merge, verify, push and pull prompt packs."""

from __future__ import annotations

import argparse
from pathlib import Path

from incontext.cli.arguments import class_names, output_file
from incontext.cli.model_options import add_device, add_model


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds `packs` and its actions."""
    parser = subparsers.add_parser("packs", help="list, show, compile, merge, verify and share prompt packs")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    listing = actions.add_parser("list", help="list packs", description="Lists the packs that have a name.")
    listing.add_argument("folder", nargs="*", type=Path, metavar="FOLDER", help="list these folders instead")
    listing.set_defaults(run=run_list)

    show = actions.add_parser("show", help="print a pack's card", description="Prints the card of a pack.")
    show.add_argument("pack", metavar="PACK", help="name or file")
    show.set_defaults(run=run_show)

    compiled = actions.add_parser(
        "compile",
        help="make a pack of examples as they are",
        description="Makes a pack of examples without learning: it segments as they do.",
    )
    compiled.add_argument(
        "--example", nargs=2, action="append", default=[], metavar=("IMAGE", "MASK"), help="may be given several times"
    )
    compiled.add_argument("--examples", metavar="DATA", help="many: a folder or file as `incontext label` takes")
    compiled.add_argument("-o", "--output", type=output_file, required=True, metavar="NAME.safetensors")
    add_model(compiled)
    compiled.add_argument("--names", type=class_names, default={}, metavar="1=NAME,2=NAME", help="names of ids")
    compiled.add_argument("--kind", choices=("instance", "semantic"), default="semantic", help="(default semantic)")
    compiled.add_argument("--ensemble", choices=("feature", "spatial"), default="feature", help="(default feature)")
    compiled.add_argument("--tile", type=int, metavar="PIXELS", help="cut examples and queries by squares of this side")
    compiled.add_argument(
        "--cache", action="store_true", help="keep the prompt encoded: larger files, and queries cost only themselves"
    )
    compiled.set_defaults(run=run_compile)

    merge = actions.add_parser(
        "merge",
        help="make one pack of several",
        description="Makes one pack of several; classes of one name become one. It does what they do in one call.",
    )
    merge.add_argument("packs", nargs="+", metavar="PACK", help="names or files")
    merge.add_argument("-o", "--output", type=output_file, required=True, metavar="NAME.safetensors")
    merge.set_defaults(run=run_merge)

    verify = actions.add_parser(
        "verify",
        help="check packs, and score them",
        description="Checks files, and that the model is theirs; with --test scores them again.",
    )
    verify.add_argument("packs", nargs="+", metavar="PACK", help="names or files")
    add_model(verify)
    verify.add_argument("--test", metavar="DATA", help="labelled images to score on")
    verify.add_argument(
        "--test-limit", type=int, metavar="N", help="take N images of --test, evenly spread (default all)"
    )
    verify.add_argument("--real", metavar="DATA", help="with --test: compare with up to 8 real examples of these")
    add_device(verify)
    verify.set_defaults(run=run_verify)

    push = actions.add_parser("push", help="upload a pack to the hub", description="Uploads a pack and its card.")
    push.add_argument("pack", metavar="PACK", help="name or file")
    push.add_argument("repo", metavar="OWNER/NAME", help="repository on the hub; made if there is none")
    push.add_argument("--private", action="store_true", help="make it private, if it is made now")
    push.set_defaults(run=run_push)

    pull = actions.add_parser("pull", help="download packs from the hub", description="Downloads and checks packs.")
    pull.add_argument("repo", metavar="OWNER/NAME", help="repository on the hub")
    pull.add_argument("--name", help="of one pack (default: all)")
    pull.add_argument("--revision", help="branch, tag or commit (default: the main branch)")
    pull.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="where to (default: where names are found)")
    pull.set_defaults(run=run_pull)


def run_list(args: argparse.Namespace) -> int:
    """Runs `packs list`; a damaged pack is reported, and the exit status is then 1."""
    from incontext.pack import PackError
    from incontext.pack.library import pack_files
    from incontext.pack.pack_file import read_pack

    rows, failed = [("NAME", "CLASSES", "EXAMPLES", "MODEL", "FILE")], []
    for path in pack_files(tuple(args.folder) or None):
        try:
            pack = read_pack(path)
        except PackError as error:
            failed.append(str(error))
            continue
        names = ", ".join(pack.names[id] for id in pack.ids[:4]) + (", ..." if len(pack.ids) > 4 else "")
        rows.append((pack.name, names, str(len(pack.images)), f"{pack.model} {pack.fingerprint[:8]}", str(path)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for reason in failed:
        print(f"damaged: {reason}")
    return 1 if failed else 0


def run_show(args: argparse.Namespace) -> int:
    """Runs `packs show`."""
    from incontext.pack.card import card
    from incontext.pack.library import locate_pack
    from incontext.pack.pack_file import read_pack

    path = locate_pack(args.pack)
    print(card(read_pack(path), path.name), end="")
    return 0


def run_compile(args: argparse.Namespace) -> int:
    """Runs `packs compile`.

    Raises:
        ValueError: the examples or the model are wrong.
    """
    from incontext.cli.tune import model_title
    from incontext.labeling.example_sources import open_examples
    from incontext.model.zoo import load_model
    from incontext.pack.compiling import compile_pack, encode_pack
    from incontext.types import Example

    examples = Example.open_many(args.example, names=args.names) if args.example else []
    if args.examples:
        examples += open_examples(args.examples, args.names).examples
    if not examples:
        raise ValueError("expected --example or --examples, got neither")
    model = load_model(args.model)
    pack = compile_pack(
        model,
        examples,
        args.output.stem,
        model_name=model_title(args.model),
        kind=args.kind,
        ensemble=args.ensemble,
        tile=args.tile,
    )
    if args.cache:
        pack = encode_pack(pack, model)
    pack.save(args.output)
    print(f"{args.output}: {len(pack.images)} examples, {args.output.stat().st_size / 2**20:.2f} MiB")
    return 0


def run_merge(args: argparse.Namespace) -> int:
    """Runs `packs merge`.

    Raises:
        PackError: the packs don't fit each other.
    """
    from incontext.pack.joining import merge_packs
    from incontext.pack.library import open_pack

    pack = merge_packs([open_pack(each) for each in args.packs], args.output.stem)
    pack.save(args.output)
    print(f"{args.output}: " + ", ".join(f"{id} {pack.names[id]}" for id in pack.ids))
    return 0


def run_verify(args: argparse.Namespace) -> int:
    """Runs `packs verify`; returns 1 if a pack cannot be used with the model."""
    from incontext.cli.tune import compare
    from incontext.model.checkpoint import fingerprint
    from incontext.model.zoo import load_model
    from incontext.pack import PackError
    from incontext.pack.library import open_pack

    model = load_model(args.model)
    own, failed = fingerprint(model), 0
    for each in args.packs:
        try:
            pack = open_pack(each)
            pack.check_model(own)
        except PackError as error:
            print(error if each in str(error) else f"{each}: {error}")
            failed += 1
            continue
        print(f"{each}: sound, and made for this model")
        if args.test:
            for key, value in compare(pack, model, args.test, args.real, args.device, limit=args.test_limit).items():
                told = f" (the card says {pack.evaluation[key]})" if key in pack.evaluation else ""
                print(f"  {key}: {value}{told}")
    return 1 if failed else 0


def run_push(args: argparse.Namespace) -> int:
    """Runs `packs push`.

    Raises:
        PackError: the pack cannot be used, or the hub refuses.
    """
    from incontext.pack.hub import push_pack
    from incontext.pack.library import locate_pack

    print(push_pack(locate_pack(args.pack), args.repo, private=args.private))
    return 0


def run_pull(args: argparse.Namespace) -> int:
    """Runs `packs pull`.

    Raises:
        PackError: there is no such pack, or it cannot be used.
    """
    from incontext.pack.hub import pull_packs
    from incontext.pack.library import pulled_folder

    for path in pull_packs(args.repo, args.output or pulled_folder(), name=args.name, revision=args.revision):
        print(path)
    return 0
