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

NAME = "tokenizer.json"
CONFIG = "tokenizer_config.json"
MAP = "special_tokens_map.json"
_STRIP = ("lstrip", "rstrip", "single_word", "normalized")


def check(folder: Path, vocab_size: int) -> None:
    """Raise FileNotFoundError if there is no tokenizer, ValueError if its ids exceed the vocabulary."""
    id_, token = max(((id_, token) for token, id_ in read(folder).get_vocab().items()), default=(-1, ""))
    if id_ >= vocab_size:
        raise ValueError(f"{_file(folder)} has token id {id_} ({token!r}), but config.json has vocab_size {vocab_size}")


def write(folder: Path, target: Path) -> None:
    """Write the tokenizer of the checkpoint `folder` to the folder `target`.

    Copies its `tokenizer.json` if that is complete without the settings in other files.
    """
    tokenizer = read(folder)
    if (folder / NAME).is_file() and _as_saved(folder / NAME).to_str() == tokenizer.to_str():
        shutil.copyfile(folder / NAME, target / NAME)
    else:
        tokenizer.save(str(target / NAME))


def class_name(folder: Path) -> str:
    """The name of transformers' class that opens the folder's `tokenizer.json`."""
    model = read(folder).model
    if not isinstance(model, models.BPE):
        return "PreTrainedTokenizerFast"
    return GPT_CLASSES[0] if model.end_of_word_suffix else GPT2_CLASSES[0]


def encode(folder: Path, text: str) -> list[int]:
    """Encode a text with the tokenizer of the checkpoint `folder`, as the runtime does."""
    tokenizer = read(folder)
    tokenizer.encode_special_tokens = True
    return encode_text(tokenizer, text)


def read(folder: Path) -> Tokenizer:
    """The tokenizer that transformers opens from the folder: `tokenizer.json`, or the older files of GPT-2 or GPT.

    Special and added tokens are those that the other files name. Those whose id would lie outside the vocabulary are
    left out, since the model has no embedding for them. Raises FileNotFoundError if there is no tokenizer, ValueError,
    naming the file, for one that is damaged or of another kind.
    """
    path = _file(folder)
    named = _named(folder)
    try:
        tokenizer = read_tokenizer(path) if path.name == NAME else _from_older_files(folder, named)
        _add_tokens(tokenizer, folder, named)
        if path.name != NAME and named.get("add_bos_token"):
            tokenizer.post_processor = _beginning(tokenizer, folder, named)
    except (OSError, ValueError):
        raise
    # tokenizers raises plain Exception.
    except Exception as error:
        raise ValueError(f"{path} is not a tokenizer: {error}") from None
    if isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
        # The settings take precedence over tokenizer.json, as in transformers.
        tokenizer.pre_tokenizer.add_prefix_space = bool(named.get("add_prefix_space"))
    return tokenizer


def settings(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json`, with the special tokens of `special_tokens_map.json` added under the same keys.

    Raises ValueError for a file with other content.
    """
    named = _named(folder)
    older = _json(folder / MAP)
    roles = {role: value and content(value, folder / MAP) for role, value in named.items() if role in ROLES}
    several = [content(value, folder / MAP) for value in named.get(SEVERAL) or []]
    changes = {role: roles[role] for role in ROLES if role in older} | ({SEVERAL: several} if SEVERAL in older else {})
    return named if "added_tokens_decoder" in named else named | changes


def _named(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json`; with `special_tokens_map.json` merged in where both are in the older format.

    As in transformers, a config with `added_tokens_decoder` is the newer format, and the map is ignored. Where the
    config names no class, config.json says that of a GPT.
    """
    named = _json(folder / CONFIG)
    older = _json(folder / MAP)
    config = _json(folder / "config.json")
    if config.get("model_type") == GPT and not named.get("tokenizer_class"):
        named = named | {"tokenizer_class": config.get("tokenizer_class") or GPT_CLASSES[0]}
    if "added_tokens_decoder" in named:
        return named
    several = [*(named.get(SEVERAL) or []), *(older.get(SEVERAL) or [])]
    return named | {role: older[role] for role in ROLES if role in older} | ({SEVERAL: several} if several else {})


def _as_saved(path: Path) -> Tokenizer:
    """The tokenizer in a file, without its settings of truncation and padding, which are options of each call."""
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
    """The tokenizer of `vocab.json` and `merges.txt`, of the class that the config names."""
    kind = named.get("tokenizer_class") or GPT2_CLASSES[0]
    if kind not in (*GPT2_CLASSES, *GPT_CLASSES):
        raise ValueError(
            f"{folder / CONFIG}: tokenizer_class is {kind!r}; without a tokenizer.json only "
            "GPT2Tokenizer and OpenAIGPTTokenizer are converted "
            "(AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) writes one)"
        )
    vocab = read_json(folder / "vocab.json")
    # As in transformers, the first line is a heading, whatever it contains, and the last line is empty.
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
    """A post-processor that puts bos_token before a text."""
    bos = roles_of(named, folder / CONFIG).get("bos_token")
    if not isinstance(bos, str) or (id_ := tokenizer.token_to_id(bos)) is None:
        raise ValueError(f"{folder / CONFIG}: add_bos_token is set, and bos_token {bos!r} is not in the vocabulary")
    return processors.TemplateProcessing(f"{bos}:0 $A:0", f"{bos}:0 $A:0 $B:1", [(bos, id_)])


def _add_tokens(tokenizer: Tokenizer, folder: Path, named: dict[str, Any]) -> None:
    """Add the tokens that the other files name, in order of their ids: tokenizers gives each the next free id."""
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
    """Mark a token as special; add it first if it is new and the model's vocabulary has room for it."""
    id_ = tokenizer.token_to_id(token.content)
    if id_ is None and vocab_size is not None and tokenizer.get_vocab_size() >= vocab_size:
        return
    known = tokenizer.get_added_tokens_decoder().get(id_)
    if known is not None:
        token = known
    token.special = True
    tokenizer.add_tokens([token])


def _vocabulary_size(folder: Path) -> int | None:
    """vocab_size of the model that the tokenizer belongs to; None if the folder has no model."""
    size = _json(folder / "config.json").get("vocab_size")
    return size if isinstance(size, int) else None


def _added_token(value: dict[str, Any], *, special: bool = True) -> AddedToken:
    strip = {key: bool(value[key]) for key in _STRIP if key in value}
    return AddedToken(value["content"], special=special, **strip)


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is no file."""
    return read_json(path) if path.is_file() else {}
