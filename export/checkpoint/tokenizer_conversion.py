"""Convert tokenizers that exist only in the files of transformers' slow classes, with transformers."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

from export.checkpoint import tokenizer as tokenizer_file
from runtime._json import read_json
from runtime.tokenization.roles import GPT2_CLASSES, GPT_CLASSES

SENTENCEPIECE = ("spiece.model", "spm.model", "sentencepiece.bpe.model", "tokenizer.model", "sentencepiece.model")
WORDPIECE = "vocab.txt"
SLOW = (WORDPIECE, *SENTENCEPIECE)
"""Files of tokenizers that have to be converted, since `tokenizer.read` does not read them."""
_ANOTHER = "--tokenizer FOLDER takes another tokenizer"
_CURE = "pip install -e '.[export]' in the clone installs what converts it"


def slow_file(folder: Path) -> Path | None:
    """The file of a tokenizer that has to be converted; None if the folder has one that can be read as it is."""
    if (folder / tokenizer_file.NAME).is_file():
        return None
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return None if _class_name(folder) in (None, *GPT2_CLASSES, *GPT_CLASSES) else folder / "vocab.json"
    return next((folder / name for name in SLOW if (folder / name).is_file()), None)


def convert(folder: Path, target: Path) -> Path:
    """Write the same tokenizer as `tokenizer.json`, and its settings, to the folder `target`; returns `target`.

    The class is the one that the folder names; without one, a `vocab.txt` is BERT's, as in the Chinese GPT-2 models.
    No code of the folder is run. Raises ModuleNotFoundError, saying what to install, if transformers or sentencepiece
    is missing; ValueError for a tokenizer that transformers cannot convert.
    """
    source = slow_file(folder)
    if source is None:
        raise FileNotFoundError(f"{folder} has no tokenizer to convert; there is one in {', '.join(SLOW)}")
    needed = ["transformers", *(["sentencepiece"] if source.name in SENTENCEPIECE else [])]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"{source} is converted by {missing[0]}, which is not installed: {_CURE}")
    fast_class = _fast_class(folder, source)
    try:
        fast_class.from_pretrained(folder, local_files_only=True).save_pretrained(target)
    # transformers raises errors of many classes.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{source}: transformers does not convert this tokenizer: {reason}") from None
    return target


def _fast_class(folder: Path, source: Path) -> Any:
    """The class of transformers that reads the file and writes tokenizer.json. Raises ValueError if there is none."""
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    name = _class_name(folder)
    if name is None and source.name != WORDPIECE:
        raise ValueError(f"{source}: no tokenizer_config.json says of which class it is; {_ANOTHER}")
    fast_class = getattr(transformers, f"{(name or 'BertTokenizer').removesuffix('Fast')}Fast", None)
    if fast_class is None:
        raise ValueError(f"{source}: tokenizer_class {name!r} has no fast form; {_ANOTHER}")
    files = fast_class.vocab_files_names.values()
    if source.name not in files:
        # Without its file the class would open an empty tokenizer.
        read = ", ".join(file for file in files if file != tokenizer_file.NAME)
        raise ValueError(f"{folder}: {name} reads {read}, and the folder has {source.name}; {_ANOTHER}")
    return fast_class


def _class_name(folder: Path) -> str | None:
    """The tokenizer class that tokenizer_config.json names, else config.json, in the order of transformers."""
    for name in (tokenizer_file.CONFIG, "config.json"):
        path = folder / name
        found = read_json(path).get("tokenizer_class") if path.is_file() else None
        if isinstance(found, str):
            return found
    return None
