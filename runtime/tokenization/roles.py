"""The special tokens of a tokenizer by their role, as transformers knows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runtime.errors import ModelFolderError

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
SEVERAL = "additional_special_tokens"
GPT2_CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast")
GPT_CLASSES = ("OpenAIGPTTokenizer", "OpenAIGPTTokenizerFast")
END = "<|endoftext|>"
# What `GPT2Tokenizer` takes where tokenizer_config.json names none.
GPT2_DEFAULTS = {"bos_token": END, "eos_token": END, "unk_token": END}
# What `OpenAIGPTTokenizer` takes: it has no token that begins or ends a text.
GPT_DEFAULTS = {"unk_token": "<unk>"}


def roles_of(settings: dict[str, Any], path: Path) -> dict[str, str | list[str]]:
    """The roles in the object of a tokenizer_config.json; `path`: the file, for errors."""
    kind = settings.get("tokenizer_class")
    defaults: dict[str, str] = {}
    if kind in (None, *GPT2_CLASSES):
        defaults = GPT2_DEFAULTS
    elif kind in GPT_CLASSES:
        defaults = GPT_DEFAULTS
    named = defaults | {role: settings[role] for role in ROLES if role in settings}
    roles: dict[str, str | list[str]] = {role: content(value, path) for role, value in named.items() if value}
    several = settings.get(SEVERAL) or []
    if not isinstance(several, list):
        raise ModelFolderError(f"{path}: {SEVERAL} is {several!r}; a list is expected")
    if several:
        roles[SEVERAL] = [content(value, path) for value in several]
    return roles


def content(value: object, path: Path) -> str:
    """The text of a token, which a file gives as such or with the token's settings."""
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise ModelFolderError(
            f"{path}: {value!r} is no special token; a text is expected, or an object with its content"
        )
    return text
