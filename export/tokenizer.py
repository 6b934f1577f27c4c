"""The checkpoint's tokenizer as a `tokenizer.json`: its own, or made from `vocab.json` and `merges.txt`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from runtime.json_file import read_json

NAME = "tokenizer.json"
GPT2_CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast")
END = "<|endoftext|>"
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_STRIP = ("lstrip", "rstrip", "single_word", "normalized")


def check(folder: Path, vocab_size: int) -> None:
    """Raise FileNotFoundError or ValueError unless there is a tokenizer whose ids lie within the vocabulary."""
    id_, token = max(((id_, token) for token, id_ in read(folder).get_vocab().items()), default=(-1, ""))
    if id_ >= vocab_size:
        raise ValueError(f"{_file(folder)} has token id {id_} ({token!r}), but config.json has vocab_size {vocab_size}")


def write(folder: Path, target: Path) -> None:
    """Put the tokenizer of the checkpoint `folder` into the folder `target`, as it is if it has the format already."""
    if (folder / NAME).is_file():
        shutil.copyfile(folder / NAME, target / NAME)
    else:
        read(folder).save(str(target / NAME))


def class_name(folder: Path) -> str:
    """The class of transformers that opens the folder's `tokenizer.json`."""
    is_byte_level = isinstance(read(folder).model, models.BPE)
    return "GPT2Tokenizer" if is_byte_level else "PreTrainedTokenizerFast"


def encode(folder: Path, text: str) -> list[int]:
    """Ids of a text by the tokenizer of the checkpoint `folder`, as the runtime makes them."""
    tokenizer = read(folder)
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def read(folder: Path) -> Tokenizer:
    """Open `tokenizer.json`, or build GPT-2's byte-level BPE from the two older files.

    Raises FileNotFoundError where there is neither, ValueError naming the file that is no such thing.
    """
    path = _file(folder)
    try:
        return Tokenizer.from_file(str(path)) if path.name == NAME else _byte_level(folder)
    except (OSError, ValueError):
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(f"{path} is not a tokenizer: {error}") from None


def _file(folder: Path) -> Path:
    """The file that defines the tokenizer."""
    if (folder / NAME).is_file():
        return folder / NAME
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return folder / "vocab.json"
    raise FileNotFoundError(
        f"{folder / NAME} is missing, and so are vocab.json and merges.txt to make it from; "
        "transformers writes one: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
    )


def _byte_level(folder: Path) -> Tokenizer:
    """As `GPT2TokenizerFast` builds it: Radford et al., Language Models are Unsupervised Multitask Learners, 2019."""
    settings = _json(folder / "tokenizer_config.json")
    kind = settings.get("tokenizer_class") or GPT2_CLASSES[0]
    if kind not in GPT2_CLASSES:
        raise ValueError(
            f"{folder / 'tokenizer_config.json'}: tokenizer_class is {kind!r}; without a tokenizer.json only "
            "GPT2Tokenizer is converted (AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) writes one)"
        )
    vocab, merges = models.BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space")))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    _add_tokens(tokenizer, folder, settings)
    return tokenizer


def _add_tokens(tokenizer: Tokenizer, folder: Path, settings: dict[str, Any]) -> None:
    """Add the tokens that lie outside the merges, in order of their ids: the library counts on from the vocabulary."""
    special = _special_tokens(_json(folder / "special_tokens_map.json") | settings)
    if tokenizer.token_to_id(END) is not None:
        special.setdefault(END, AddedToken(END, special=True))
    detailed = {int(id_): value for id_, value in settings.get("added_tokens_decoder", {}).items()}
    plain = {id_: {"content": content} for content, id_ in _json(folder / "added_tokens.json").items()}
    for id_, value in sorted((plain | detailed).items()):
        token = special.pop(value["content"], None)
        tokenizer.add_tokens([_added_token(value) if id_ in detailed or token is None else token])
        if tokenizer.token_to_id(value["content"]) != id_:
            raise ValueError(f"{folder}: the added token {value['content']!r} cannot have id {id_}: ids have gaps")
    tokenizer.add_special_tokens(list(special.values()))


def _special_tokens(settings: dict[str, Any]) -> dict[str, AddedToken]:
    """By their text, the tokens that `special_tokens_map.json` and `tokenizer_config.json` give a role."""
    named = [settings.get(role) for role in _ROLES] + (settings.get("additional_special_tokens") or [])
    values = [{"content": value} if isinstance(value, str) else value for value in named if value]
    return {value["content"]: _added_token({"special": True} | value) for value in values}


def _added_token(value: dict[str, Any]) -> AddedToken:
    strip = {key: bool(value[key]) for key in _STRIP if key in value}
    return AddedToken(value["content"], special=bool(value.get("special")), **strip)


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty where there is none."""
    return read_json(path) if path.is_file() else {}
