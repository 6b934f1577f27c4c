"""Tokenizers that exist only in the files of transformers' slow classes, converted by transformers."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

from export.checkpoint import tokenizer as tokenizer_file
from runtime._json import read_json
from runtime.tokenization.roles import GPT2_CLASSES

SENTENCEPIECE = ("spiece.model", "spm.model", "sentencepiece.bpe.model", "tokenizer.model", "sentencepiece.model")
WORDPIECE = "vocab.txt"
SLOW = (WORDPIECE, *SENTENCEPIECE)
"""Files that hold a tokenizer and that `tokenizer.read` does not read."""
_CURE = "pip install -e '.[export]' in the clone installs what converts it"


def slow_file(folder: Path) -> Path | None:
    """The file of a slow tokenizer, where the folder has no tokenizer that is read without a conversion."""
    if (folder / tokenizer_file.NAME).is_file():
        return None
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return None if _class_name(folder) in (None, *GPT2_CLASSES) else folder / "vocab.json"
    return next((folder / name for name in SLOW if (folder / name).is_file()), None)


def convert(folder: Path, target: Path) -> Path:
    """Make `target` a folder with the same tokenizer as a `tokenizer.json`, and its settings; returns it.

    Its class is the one that the folder names; without one, a `vocab.txt` is BERT's, as in the Chinese GPT-2 models.
    Nothing of the folder is executed. Raises ModuleNotFoundError, saying what to install, where transformers or
    sentencepiece is missing; ValueError for a tokenizer that transformers does not convert.
    """
    source = slow_file(folder)
    if source is None:
        raise FileNotFoundError(f"{folder} has no tokenizer to convert; there is one in {', '.join(SLOW)}")
    needed = ["transformers", *(["sentencepiece"] if source.name in SENTENCEPIECE else [])]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"{source} is converted by {missing[0]}, which is not installed: {_CURE}")
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    name = _class_name(folder)
    named = getattr(transformers, f"{(name or '').removesuffix('Fast')}Fast", None)
    if named is None and source.name != WORDPIECE:
        told = f"names the class {name!r}, which has no fast form" if name else "does not say of which class it is"
        raise ValueError(f"{source}: tokenizer_config.json {told}; --tokenizer FOLDER takes another tokenizer")
    if named is None and name not in (None, "BertTokenizer"):
        raise ValueError(
            f"{source}: tokenizer_class {name!r} has no fast form; --tokenizer FOLDER takes another tokenizer"
        )
    try:
        tokenizer = (named or transformers.BertTokenizerFast).from_pretrained(folder, local_files_only=True)
        tokenizer.save_pretrained(target)
    except Exception as error:  # transformers raises anything
        reason = " ".join(str(error).split())
        raise ValueError(f"{source}: transformers does not convert this tokenizer: {reason}") from None
    return target


def _class_name(folder: Path) -> str | None:
    """The class that the folder's settings name: tokenizer_config.json, else config.json, as transformers asks them."""
    for name in (tokenizer_file.CONFIG, "config.json"):
        path = folder / name
        found = read_json(path).get("tokenizer_class") if path.is_file() else None
        if isinstance(found, str):
            return found
    return None
