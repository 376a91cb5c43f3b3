"""Models on the Hugging Face Hub: `hf://user/name`, fetched into the hub's own cache and checked on the way.

The library huggingface_hub does the transfer, and its settings apply: HF_HUB_OFFLINE=1 uses the cache without any
connection, HF_HOME is the folder of the cache, HF_ENDPOINT another server.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from twofold.contracts import WeightsError

HUB_SCHEME = "hf://"
HUB_FILE = "model.safetensors"
_PATTERN = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[^/\s]+))?(?:/(?P<file>[^\s]+\.safetensors))?/?\Z"
)


@dataclass(frozen=True)
class HubPlace:
    """Where a model lies: the repository "user/name", a branch, tag or commit of it, and the file."""

    repo: str
    revision: str | None = None
    file: str = HUB_FILE

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{HUB_SCHEME}{self.repo}{at}" + ("" if self.file == HUB_FILE else f"/{self.file}")


def is_hub_place(name: object) -> bool:
    """Whether `name` is a place on the hub: `hf://…`."""
    return isinstance(name, str) and name.startswith(HUB_SCHEME)


def hub_place(name: str) -> HubPlace:
    """What `hf://user/name[@revision][/file.safetensors]` names. Raises: WeightsError.

    >>> hub_place("hf://user/rain@v1")
    HubPlace(repo='user/rain', revision='v1', file='model.safetensors')
    """
    found = _PATTERN.match(name)
    if found is None or ".." in name:
        raise WeightsError(f"{name!r} names no model on the hub; write hf://user/name, hf://user/name@revision")
    return HubPlace(found["repo"], found["revision"], found["file"] or HUB_FILE)


def fetch_weights(name: str) -> Path:
    """The weights file of `hf://user/name` on this machine, downloaded where the cache lacks it.

    Raises: WeightsError where the library, the network, the repository or the file is missing.
    """
    where = hub_place(name)
    hub = hub_client()
    try:
        return Path(hub.hf_hub_download(where.repo, where.file, revision=where.revision))
    except Exception as error:  # the library raises its own errors, those of its HTTP client, and OSError
        raise WeightsError(f"{where}: {_reason(hub, where, error)}") from error


def push_weights(path: Path, name: str, *, private: bool = False, message: str = "Weights") -> str:
    """Uploads a weights file, and the card `path.json` beside it if there is one; returns the commit's address.

    The repository is made where it is missing. The token is that of `hf auth login`.

    Raises: WeightsError.
    """
    where = hub_place(name)
    hub = hub_client()
    card = path.with_suffix(".json")
    try:
        api = hub.HfApi()
        api.create_repo(where.repo, private=private, exist_ok=True)
        operations = [hub.CommitOperationAdd(where.file, str(path))]
        if card.is_file():
            operations.append(hub.CommitOperationAdd(str(Path(where.file).with_suffix(".json")), str(card)))
        commit = api.create_commit(where.repo, operations, commit_message=message, revision=where.revision)
    except Exception as error:
        raise WeightsError(f"{where}: {_reason(hub, where, error)}") from error
    return str(commit.commit_url)


def hub_client() -> Any:
    """huggingface_hub. Raises: WeightsError where it is not installed."""
    try:
        return import_module("huggingface_hub")
    except ImportError as error:
        raise WeightsError("huggingface_hub is not installed; pip install 'twofold[hub]'") from error


def _reason(hub: Any, where: HubPlace, error: Exception) -> str:
    """What was wrong and what to do, by the kind of error."""
    errors = hub.errors
    if isinstance(error, errors.GatedRepoError):
        return "the repository asks for consent; accept its terms on its page, then `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such repository, or it is private; check the name, or `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the repository has no branch, tag or commit {where.revision!r}"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return "it is not in the cache and the hub cannot be asked (no network, or HF_HUB_OFFLINE is set)"
    if isinstance(error, errors.EntryNotFoundError):
        return f"the repository has no file {where.file}; name one: {HUB_SCHEME}{where.repo}/FILE.safetensors"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it to reach the hub"
    return (str(error).splitlines() or [type(error).__name__])[0]
