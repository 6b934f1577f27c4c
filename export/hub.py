"""Checkpoints of the Hugging Face hub, downloaded and cached by `huggingface_hub`."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

# what the build reads, and no more: other formats of the same weights double the download
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def download(repo_id: str) -> Path:
    """Folder of the repository's checkpoint in the local cache, with what was missing fetched.

    `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what `huggingface_hub` says. Raises
    FileNotFoundError for an id the hub does not have, PermissionError for one that is gated, ConnectionError
    when the hub cannot be reached and the cache does not hold the model.
    """
    if not _HUB_ID.fullmatch(repo_id):
        raise FileNotFoundError(f"no folder {repo_id!r} here, and it is no hub id (like gpt2 or owner/name) either")
    try:
        return Path(snapshot_download(repo_id, allow_patterns=list(FILES)))
    except GatedRepoError:
        raise PermissionError(
            f"{repo_id} is gated: accept its terms on its hub page, then set HF_TOKEN to a token of yours"
        ) from None
    except RepositoryNotFoundError:
        raise FileNotFoundError(
            f"no folder {repo_id!r} here, and the hub has no such model (a private one needs HF_TOKEN)"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, ConnectionError, TimeoutError) as error:
        raise ConnectionError(
            f"cannot download {repo_id}: the hub is not reached and the model is not in the local cache; "
            f"check the network, or give a checkpoint folder ({_first_line(error)})"
        ) from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
