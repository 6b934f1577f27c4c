"""Download checkpoints from the Hugging Face hub with `huggingface_hub`, which caches them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

# huggingface_hub raises the errors of requests.
from requests import RequestException
from requests.exceptions import ChunkedEncodingError

from export import compatibility
from export.checkpoint import config as config_file
from export.checkpoint import diagnosis, pickle_file, tokenizer_conversion, weights
from runtime._json import read_json

# Only these files, the tokenizer and the weights are downloaded: repositories also hold the weights in other formats.
CONFIG = "config.json"
OPTIONAL = (
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
TOKENIZER = ("tokenizer.json",)
OLDER_TOKENIZER = ("vocab.json", "merges.txt")
ATTEMPTS = 5
"""How often the download of a file is tried; each attempt continues where the connection was cut."""


def download(
    repo_id: str, revision: str | None = None, *, allow_pickle: bool = False, needs_tokenizer: bool = True
) -> Path:
    """Download the files of a checkpoint that the local cache lacks; returns its folder in the cache.

    revision: a branch, tag or commit; None is the main branch. allow_pickle: take pytorch_model.bin. needs_tokenizer:
    raise ValueError for a repository without one. huggingface_hub reads `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and
    `HF_HUB_OFFLINE`. Raises FileNotFoundError for a repository or revision that the hub does not have, PermissionError
    for one that needs other permissions, ConnectionError if the hub is not reached and the cache does not hold the
    model, ValueError for a repository that is not a GPT-2 checkpoint.
    """
    compatibility.check_hub()
    try:
        return _download(repo_id, revision, allow_pickle, needs_tokenizer)
    except HFValidationError:
        message = f"no folder {repo_id!r} here, and it is no hub id (like gpt2 or owner/name) either"
        raise FileNotFoundError(message) from None
    except GatedRepoError:
        message = f"{repo_id} is gated: accept its terms on its hub page, then set HF_TOKEN to a token of yours"
        raise PermissionError(message) from None
    except RepositoryNotFoundError:
        message = f"no folder {repo_id!r} here, and the hub has no such model (a private one needs HF_TOKEN)"
        raise FileNotFoundError(message) from None
    except RevisionNotFoundError:
        raise FileNotFoundError(f"{repo_id} has no revision {revision!r} on the hub") from None
    except RequestException as error:
        raise _refused_or_unreached(repo_id, error) from None


def _download(repo_id: str, revision: str | None, allow_pickle: bool, needs_tokenizer: bool) -> Path:
    """Take the files from the hub if it answers, else from the cache.

    The hub is asked only once: `hf_hub_download` would wait half a minute for each file.
    """
    try:
        info = HfApi().model_info(repo_id, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except (RequestException, ConnectionError) as error:
        if 400 <= _status(error) < 500:
            raise
        return _cached(repo_id, revision, allow_pickle, needs_tokenizer, error)
    names = {file.rfilename for file in info.siblings or []}

    def fetch(name: str) -> Path:
        return _fetch(repo_id, name, info.sha)

    if CONFIG in names:
        # By branch, so that the cache records which commit the branch is.
        _fetch(repo_id, CONFIG, revision)
    return _collect(repo_id, names, fetch, allow_pickle, needs_tokenizer)


def _cached(
    repo_id: str, revision: str | None, allow_pickle: bool, needs_tokenizer: bool, reason: BaseException
) -> Path:
    try:
        folder = Path(snapshot_download(repo_id, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        raise _unreached(repo_id, reason) from None
    try:
        names = {path.name for path in folder.iterdir()}
        return _collect(repo_id, names, folder.joinpath, allow_pickle, needs_tokenizer)
    except ValueError as error:
        raise ConnectionError(f"the hub is not reached, and in the local cache {error}") from None


def _collect(
    repo_id: str, names: set[str], fetch: Callable[[str], Path], allow_pickle: bool, needs_tokenizer: bool
) -> Path:
    """Fetch one file after the other, the large ones last, so that a wrong model is refused early.

    One at a time, so that Ctrl-C works at once. Raises ValueError unless `names` has the files of a checkpoint.
    """
    if CONFIG not in names and diagnosis.ADAPTER in names:
        raise ValueError(diagnosis.adapter(repo_id, fetch(diagnosis.ADAPTER)))
    if CONFIG not in names:
        raise ValueError(f"{repo_id} is no checkpoint of transformers: it has no {CONFIG}")
    config = fetch(CONFIG)
    config_file.read(config)
    tokenizer_files = _tokenizer_files(names)
    if needs_tokenizer and not tokenizer_files:
        raise ValueError(diagnosis.without_tokenizer(repo_id, None, read_json(config)))
    for name in (*OPTIONAL, *tokenizer_files):
        if name in names:
            fetch(name)
    weight_files = _pickles(repo_id, names, fetch) if allow_pickle else _weight_files(repo_id, names, fetch)
    for name in weight_files:
        fetch(name)
    return config.parent


def _weight_files(repo_id: str, names: set[str], fetch: Callable[[str], Path]) -> list[str]:
    if weights.SINGLE in names:
        return [weights.SINGLE]
    if weights.INDEX not in names:
        cure = weights.CURE.format(name=repo_id)
        raise ValueError(f"{repo_id} has no {weights.SINGLE}; a {weights.PICKLE} {cure}")
    return _shards(repo_id, weights.INDEX, names, fetch)


def _shards(repo_id: str, index: str, names: set[str], fetch: Callable[[str], Path]) -> list[str]:
    shards = weights.shard_names(fetch(index))
    if not names.issuperset(shards):
        raise ValueError(f"{repo_id} has no {min(set(shards) - names)}, which its {index} names")
    return shards


def _pickles(repo_id: str, names: set[str], fetch: Callable[[str], Path]) -> list[str]:
    if not names.isdisjoint((weights.SINGLE, weights.INDEX)):
        raise ValueError(pickle_file.NOT_NEEDED.format(name=repo_id, pickle=weights.PICKLE))
    if weights.PICKLE in names:
        return [weights.PICKLE]
    if weights.PICKLE_INDEX not in names:
        raise ValueError(f"{repo_id} has no {weights.PICKLE}, which --allow-pickle reads")
    return _shards(repo_id, weights.PICKLE_INDEX, names, fetch)


def _tokenizer_files(names: set[str]) -> tuple[str, ...]:
    """The files of the tokenizer in the newest format that the repository has; empty if it has none."""
    if names.issuperset(TOKENIZER):
        return TOKENIZER
    if names.issuperset(OLDER_TOKENIZER):
        return OLDER_TOKENIZER
    return tuple(name for name in tokenizer_conversion.SLOW if name in names)


def _fetch(repo_id: str, name: str, revision: str | None) -> Path:
    for _ in range(ATTEMPTS - 1):
        try:
            return Path(hf_hub_download(repo_id, name, revision=revision))
        except ChunkedEncodingError:
            print(f"      {name}: the connection was cut; going on")
    return Path(hf_hub_download(repo_id, name, revision=revision))


def _refused_or_unreached(repo_id: str, error: BaseException) -> OSError:
    answer = error.__cause__ or error if isinstance(error, LocalEntryNotFoundError) else error
    if _status(answer) in (401, 403):
        return PermissionError(f"the hub does not give {repo_id} to you: check HF_TOKEN ({_first_line(answer)})")
    return _unreached(repo_id, answer)


def _status(error: BaseException) -> int:
    response = error.response if isinstance(error, RequestException) else None
    return 0 if response is None else response.status_code


def _unreached(repo_id: str, reason: BaseException) -> ConnectionError:
    return ConnectionError(
        f"no folder {repo_id!r} here, and the hub, which may have it, is not reached and the local cache does not "
        f"hold it; check the network, or give a checkpoint folder ({_first_line(reason)})"
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
