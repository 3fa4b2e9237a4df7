"""Packs on the Hugging Face hub: a repository holds NAME.safetensors files, each with its card NAME.md."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from incontext.model.hub_access import REPO_ID, is_reachable
from incontext.pack.pack_file import SUFFIX, pictures_of, read_pack, write_pack
from incontext.pack.prompt_pack import PackError


def push_pack(path: str | Path, repo: str, *, private: bool = False) -> str:
    """Uploads a pack, its card and the card's pictures, in one commit; makes the repository if there is none.

    Args:
        path: of the pack, which is read and checked first.
        repo: "owner/name".
        private: of a repository that is made now.

    Returns:
        The commit's address.

    Raises:
        PackError: the pack cannot be used, or the hub cannot be reached or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    path = Path(path).expanduser()
    pack = read_pack(path)
    _check(repo)
    files = [each for each in (path, path.with_suffix(".md"), *pictures_of(path)) if each.is_file()]
    places = [each.relative_to(path.parent).as_posix() for each in files]
    operations = [
        CommitOperationAdd(path_in_repo=place, path_or_fileobj=str(each))
        for place, each in zip(places, files, strict=True)
    ]
    with _hub_errors(repo):
        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.create_commit(repo, operations, commit_message=f"Add the prompt pack {pack.name}")
    return str(commit.commit_url)


def pull_packs(repo: str, folder: str | Path, *, name: str | None = None, revision: str | None = None) -> list[Path]:
    """Downloads packs, checks them, and writes those that are sound into a folder, with cards made anew.

    Args:
        repo: "owner/name".
        folder: where to.
        name: of one pack; all of the repository, by default.
        revision: branch, tag or commit.

    Returns:
        The files.

    Raises:
        PackError: the hub has no such pack or cannot be reached, or a pack cannot be used; nothing is written
            of those from then on.
    """
    from huggingface_hub import HfApi, hf_hub_download

    _check(repo)
    with _hub_errors(repo):
        found = [PurePosixPath(each) for each in HfApi().list_repo_files(repo, revision=revision)]
    found = sorted(each for each in found if each.suffix == SUFFIX and name in (None, each.stem))
    if not found:
        raise PackError(f"{repo} holds no prompt pack{'' if name is None else f' named {name!r}'}")
    written = []
    for each in found:
        with _hub_errors(repo):
            fetched = hf_hub_download(repo, str(each), revision=revision)
        target = Path(folder).expanduser() / each.name
        write_pack(read_pack(fetched), target)
        written.append(target)
    return written


def _check(repo: str) -> None:
    if not REPO_ID.fullmatch(repo):
        raise PackError(f"expected a repository on the hub as OWNER/NAME, got {repo!r}")
    if not is_reachable():
        raise PackError(f"the hub cannot be reached for {repo} (offline, or HF_HUB_OFFLINE is set)")


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise PackError(f"{repo!r} is not a hub id; expected owner/name") from error
    except errors.RevisionNotFoundError as error:
        raise PackError(f"the hub has no such revision of {repo}; see the branches and tags on its page") from error
    except errors.RepositoryNotFoundError as error:
        raise PackError(f"the hub shows no {repo}; check the name, or run `hf auth login`") from error
    except errors.LocalEntryNotFoundError as error:
        raise PackError(f"the hub cannot be reached for {repo} (offline, or HF_HUB_OFFLINE is set)") from error
    except PackError:
        raise
    except Exception as error:  # dropped connections, full disks and refusals come as errors of several packages
        reason = " ".join(str(error).split())[:300]
        raise PackError(f"{repo}: the hub or the connection failed: {reason}") from error
