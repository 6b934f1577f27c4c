"""The checkpoint's tokenizer as a `tokenizer.json`: its own, or made from `vocab.json` and `merges.txt`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from runtime._json import read_json
from runtime.graph.architecture import GPT
from runtime.model.tokenizer import calls
from runtime.model.tokenizer.file import read_tokenizer
from runtime.tokenization.encode import encode_text
from runtime.tokenization.roles import GPT2_CLASSES, GPT_CLASSES, ROLES, SEVERAL, content, roles_of

NAME, CONFIG, MAP = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
_STRIP = ("lstrip", "rstrip", "single_word", "normalized")


def check(folder: Path, vocab_size: int) -> None:
    """Raise FileNotFoundError or ValueError unless there is a tokenizer whose ids lie within the vocabulary."""
    id_, token = max(((id_, token) for token, id_ in read(folder).get_vocab().items()), default=(-1, ""))
    if id_ >= vocab_size:
        raise ValueError(f"{_file(folder)} has token id {id_} ({token!r}), but config.json has vocab_size {vocab_size}")


def write(folder: Path, target: Path) -> None:
    """Put the tokenizer of the checkpoint `folder` into the folder `target`: its own file where that says it all."""
    tokenizer = read(folder)
    if (folder / NAME).is_file() and _as_saved(folder / NAME).to_str() == tokenizer.to_str():
        shutil.copyfile(folder / NAME, target / NAME)
    else:
        tokenizer.save(str(target / NAME))


def class_name(folder: Path) -> str:
    """The class of transformers that opens the folder's `tokenizer.json`."""
    model = read(folder).model
    if not isinstance(model, models.BPE):
        return "PreTrainedTokenizerFast"
    return GPT_CLASSES[0] if model.end_of_word_suffix else GPT2_CLASSES[0]


def encode(folder: Path, text: str) -> list[int]:
    """Ids of a text by the tokenizer of the checkpoint `folder`, as the runtime makes them."""
    tokenizer = read(folder)
    tokenizer.encode_special_tokens = True
    return encode_text(tokenizer, text)


def read(folder: Path) -> Tokenizer:
    """The tokenizer that transformers opens from the folder: `tokenizer.json`, or the older files of GPT-2 or GPT.

    Special and added tokens are those that the other files name; those whose id would lie outside the vocabulary are
    left out, since no model has them. Raises FileNotFoundError where there is neither, ValueError naming the file that
    is no such thing.
    """
    path, named = _file(folder), _named(folder)
    try:
        tokenizer = read_tokenizer(path) if path.name == NAME else _from_older_files(folder, named)
        _add_tokens(tokenizer, folder, named)
        if path.name != NAME and named.get("add_bos_token"):
            tokenizer.post_processor = _beginning(tokenizer, folder, named)
    except (OSError, ValueError):
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(f"{path} is not a tokenizer: {error}") from None
    if isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
        # the settings say it, whatever tokenizer.json was saved with
        tokenizer.pre_tokenizer.add_prefix_space = bool(named.get("add_prefix_space"))
    return tokenizer


def settings(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json`, and under its names the roles that `special_tokens_map.json` gives to special tokens.

    Raises ValueError for a file that holds something else.
    """
    named, older = _named(folder), _json(folder / MAP)
    roles = {role: value and content(value, folder / MAP) for role, value in named.items() if role in ROLES}
    several = [content(value, folder / MAP) for value in named.get(SEVERAL) or []]
    changes = {role: roles[role] for role in ROLES if role in older} | ({SEVERAL: several} if SEVERAL in older else {})
    return named if "added_tokens_decoder" in named else named | changes


def _named(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json`; as in transformers, the older `special_tokens_map.json` counts where that is as old.

    Where it names no class, config.json says that of a GPT.
    """
    named, older = _json(folder / CONFIG), _json(folder / MAP)
    config = _json(folder / "config.json")
    if config.get("model_type") == GPT and not named.get("tokenizer_class"):
        named = named | {"tokenizer_class": config.get("tokenizer_class") or GPT_CLASSES[0]}
    if "added_tokens_decoder" in named:
        return named
    several = [*(named.get(SEVERAL) or []), *(older.get(SEVERAL) or [])]
    return named | {role: older[role] for role in ROLES if role in older} | ({SEVERAL: several} if several else {})


def _as_saved(path: Path) -> Tokenizer:
    """The tokenizer with all that its file says, but truncation and padding, which are for each call to say."""
    tokenizer = calls.open_tokenizer(path, path.read_bytes())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


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


def _from_older_files(folder: Path, named: dict[str, Any]) -> Tokenizer:
    """Of `vocab.json` and `merges.txt`, by the class that is named."""
    kind = named.get("tokenizer_class") or GPT2_CLASSES[0]
    if kind not in (*GPT2_CLASSES, *GPT_CLASSES):
        raise ValueError(
            f"{folder / CONFIG}: tokenizer_class is {kind!r}; without a tokenizer.json only "
            "GPT2Tokenizer and OpenAIGPTTokenizer are converted "
            "(AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) writes one)"
        )
    vocab = read_json(folder / "vocab.json")
    # as transformers reads it: the first line is a heading, whatever it says, and the last is empty
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")[1:-1]
    merges = list(dict.fromkeys(tuple(line.split()) for line in lines if line.strip()))
    if kind in GPT_CLASSES:
        return _lower_cased(vocab, merges, str(roles_of(named, folder / CONFIG)["unk_token"]))
    return _byte_level(vocab, merges, named)


def _lower_cased(vocab: dict[str, int], merges: list[tuple[str, ...]], unknown: str) -> Tokenizer:
    """As `OpenAIGPTTokenizerFast` builds it: words of lower-case characters, each with an end of its own."""
    model = models.BPE(vocab, merges, unk_token=unknown, end_of_word_suffix="</w>", fuse_unk=False)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return tokenizer


def _byte_level(vocab: dict[str, int], merges: list[tuple[str, ...]], named: dict[str, Any]) -> Tokenizer:
    """As `GPT2TokenizerFast` builds it: Radford et al., Language Models are Unsupervised Multitask Learners, 2019."""
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(named.get("add_prefix_space")))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def _beginning(tokenizer: Tokenizer, folder: Path, named: dict[str, Any]) -> processors.TemplateProcessing:
    """What puts bos_token before a text."""
    bos = roles_of(named, folder / CONFIG).get("bos_token")
    if not isinstance(bos, str) or (id_ := tokenizer.token_to_id(bos)) is None:
        raise ValueError(f"{folder / CONFIG}: add_bos_token is set, and bos_token {bos!r} is not in the vocabulary")
    return processors.TemplateProcessing(f"{bos}:0 $A:0", f"{bos}:0 $A:0 $B:1", [(bos, id_)])


def _add_tokens(tokenizer: Tokenizer, folder: Path, named: dict[str, Any]) -> None:
    """Add the tokens that the other files name, in order of their ids: the library counts on from the vocabulary."""
    roles = roles_of(named, folder / CONFIG)
    special = [str(roles[role]) for role in ROLES if role in roles] + [*roles.get(SEVERAL, [])]
    plain = {} if "added_tokens_decoder" in named else _json(folder / "added_tokens.json")
    entries = {id_: {"content": text, "normalized": text not in special} for text, id_ in plain.items()}
    entries |= {int(id_): value for id_, value in named.get("added_tokens_decoder", {}).items()}
    for id_, value in sorted(entries.items()):
        text = value["content"]
        tokenizer.add_tokens([_added_token(value, special=bool(value.get("special")) or text in special)])
        if tokenizer.token_to_id(text) != id_:
            raise ValueError(f"{folder}: the added token {text!r} cannot have id {id_}: ids have gaps")
    values = [*map(named.get, ROLES), *(named.get(SEVERAL) or [])]
    flags = {value["content"]: value for value in reversed(values) if isinstance(value, dict)}
    for text in dict.fromkeys(special):
        _add_special(tokenizer, _added_token({**flags.get(text, {}), "content": text}), _vocabulary_size(folder))


def _add_special(tokenizer: Tokenizer, token: AddedToken, vocab_size: int | None) -> None:
    """Make a token of the vocabulary special; a new one, where the model has room for it."""
    id_ = tokenizer.token_to_id(token.content)
    if id_ is None and vocab_size is not None and tokenizer.get_vocab_size() >= vocab_size:
        return
    known = tokenizer.get_added_tokens_decoder().get(id_)
    if known is not None:
        token = known
    token.special = True
    tokenizer.add_tokens([token])


def _vocabulary_size(folder: Path) -> int | None:
    """vocab_size of the model that the tokenizer is for; None where the folder has no model."""
    size = _json(folder / "config.json").get("vocab_size")
    return size if isinstance(size, int) else None


def _added_token(value: dict[str, Any], *, special: bool = True) -> AddedToken:
    strip = {key: bool(value[key]) for key in _STRIP if key in value}
    return AddedToken(value["content"], special=special, **strip)


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty where there is none."""
    return read_json(path) if path.is_file() else {}
