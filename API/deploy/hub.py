"""Models on the Hugging Face hub, or a server that speaks its API: hf://owner/name[@revision].

A repository, like the folder that `export` writes, holds model.safetensors, config.json (the flags, the model's
arguments among them) and README.md, see card.py. huggingface_hub keeps what it fetches in its cache, and reads
HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and the like from the environment.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # of the HTTP library beneath, which differs between versions
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars

from .. import UserError
from ..run.files import reason_of

WEIGHTS, FLAGS, CARD = "model.safetensors", "config.json", "README.md"
TOKEN = "set HF_TOKEN, or log in with `hf auth login`"
REASONS = {  # the first that applies
    OfflineModeIsEnabled: "HF_HUB_OFFLINE is set, which allows what is in the cache only; unset it",
    GatedRepoError: f"its owner grants access on request; ask for it on its page, then {TOKEN}",
    RevisionNotFoundError: "there is no such revision",
    RepositoryNotFoundError: f"there is no such repository, or it is private; check the name, or {TOKEN}",
}
STATUS = {401: f"needs a valid token; {TOKEN}", 403: "the token does not have the right to; use another HF_TOKEN"}


def is_hub(name: str | Path) -> bool:
    """Whether name is one of a model on the hub."""
    return str(name).startswith("hf://")


def repository(name: str) -> tuple[str, str | None]:
    """hf://owner/name@v1 -> ("owner/name", "v1"); without a revision None. Raises UserError for another form."""
    match = re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:@(.+))?", name)
    if not match:
        raise UserError(f"{name}: write hf://owner/name or hf://owner/name@revision")
    return match[1], match[2]


def local(checkpoint: str | Path) -> Path:
    """The file or folder that a --ckpt or --init names; what is on the hub is first brought to the cache.

    Raises UserError, naming it, where that fails.
    """
    if not is_hub(checkpoint):
        return Path(checkpoint)
    repo, revision = repository(checkpoint)
    with asking(checkpoint):
        return Path(snapshot_download(repo, revision=revision, allow_patterns=[WEIGHTS, FLAGS, CARD]))


def weights_file(checkpoint: str | Path) -> Path:
    """The file with the weights of a --ckpt: itself, or the one in the folder or on the hub."""
    path = local(checkpoint)
    return path / WEIGHTS if path.is_dir() else path


def upload(folder: Path, name: str) -> str:
    """Commit the files of folder to the repository, made if need be; returns the address of the commit.

    Raises UserError, naming it, where that fails.
    """
    repo, branch = repository(name)
    with asking(f"--output {name}"):
        api = HfApi()
        if branch in (None, "main"):
            api.create_repo(repo, exist_ok=True)
        else:  # is there, or that is refused before anything is made
            api.repo_info(repo, revision=branch)
        commit = api.upload_folder(repo_id=repo, folder_path=folder, revision=branch, commit_message="Export")
    return commit.commit_url


@contextmanager
def asking(name: str) -> Iterator[None]:
    """Within, what the hub or the way to it refuses is a UserError that starts with name. No bars in log files."""
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    except (HTTPError, OSError, ValueError) as error:
        raise UserError(f"{name}: {in_words(error)}") from None


def in_words(error: Exception) -> str:
    """An error of huggingface_hub in words; it may be the cause of the one that was raised."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})"
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    for kind, reason in REASONS.items():
        if any(isinstance(one, kind) for one in chain):
            return reason
    http = next((one for one in chain if isinstance(one, HfHubHTTPError) and one.response is not None), None)
    if http is not None:
        return STATUS.get(http.response.status_code) or f"the hub answers {http.response.status_code}"
    if isinstance(error, ValueError) and not isinstance(error, (HTTPError, OSError)):
        return reason_of(error)
    cause = next((one for one in chain[1:] if isinstance(one, HTTPError)), chain[-1])
    return f"cannot reach {constants.ENDPOINT} ({reason_of(cause)})"
