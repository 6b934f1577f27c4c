"""The options of generation: kind, default, meaning and names in other tools, each said once.

A new option is one field of `Options`. `python -m tests.support.signatures` then writes it into the signatures and
docstrings of `runtime.api` and into docs/coming-from.md; command line and server read the field itself.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias, TypeVar, get_args

from runtime._kinds import (
    Callback,
    Choice,
    Flag,
    Integer,
    JsonSchema,
    Kind,
    LogitBias,
    LogitsFunction,
    Number,
    Phrases,
    Regex,
    Texts,
    TokenIds,
)
from runtime.errors import OptionError

# Importing the package stays quick: numpy is named in types only.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_SEED = 2**64 - 1
Overflow = Literal["error", "stop", "truncate_left", "slide"]
# Token ids so far, and the logits [n_vocab] of the next; returns the logits to use.
LogitsProcessor: TypeAlias = Callable[[Sequence[int], "NDArray[np.float32]"], "NDArray[np.float32]"]
DRY_BREAKERS = ("\n", ":", '"', "*")  # llama.cpp's
MAX_BREAKER = 40  # characters of a sequence breaker; llama.cpp's limit
OVERFLOWS: tuple[Overflow, ...] = get_args(Overflow)
T = TypeVar("T")
D = TypeVar("D")


class TaskDefault(enum.Enum):
    """The type of `TASK_DEFAULT`."""

    TASK_DEFAULT = "the task's own value, or else the default of generate"

    def __repr__(self) -> str:
        return self.name


# What `runtime.perform` takes for an option that is not given: the task may have a value of its own.
TASK_DEFAULT: Final = TaskDefault.TASK_DEFAULT


class Option:
    """All there is to know of one option.

    transformers: its name in transformers; None where there is nothing like it.
    llama_cpp: its name in llama.cpp, a flag, or a field of a request to llama-server; None likewise.
    others: further names that people may try: OpenAI's, vLLM's, older ones.
    note: where it differs from what has the same name elsewhere.
    """

    def __init__(
        self,
        kind: Kind[Any],
        default: Any,
        about: str,
        *,
        transformers: str | None = None,
        llama_cpp: str | None = None,
        others: tuple[str, ...] = (),
        note: str = "",
    ) -> None:
        self.kind = kind
        self.default = default
        self.about = about
        self.transformers = transformers
        self.llama_cpp = llama_cpp
        self.others = others
        self.note = note

    def read(self, name: str, value: Any) -> Any:
        """The value as a plain one. Raises TypeError, or OptionError for a value out of range."""
        if value is None and self.default is None:
            return None
        try:
            return self.kind.read(name, value)
        except ValueError as error:
            raise OptionError(str(error), name) from None


def _option(kind: Kind[T], default: D, about: str, **names: Any) -> T | D:
    """A field of `Options`; `names` as `Option` has them. A type checker compares its annotation with the kind."""
    field: Any = dataclasses.field(default=default, metadata={"option": Option(kind, default, about, **names)})
    # `dataclasses.field` pretends to be the value, too.
    return field  # type: ignore[no-any-return]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What may be asked of a generation.

    Raises TypeError for a value of a wrong type; OptionError for one out of range, and for options that do not go
    together.
    """

    max_new_tokens: int = _option(
        Integer(1),
        64,
        "generate at most this many tokens",
        transformers="max_new_tokens",
        llama_cpp="--predict",
        others=("max_length", "max_tokens", "max_completion_tokens", "n_predict"),
        note="max_length of transformers counts the prompt, too",
    )
    min_new_tokens: int = _option(
        Integer(0),
        0,
        "do not end by eos_token_id or stop_ids before this many tokens; stop strings still end the text",
        transformers="min_new_tokens",
        others=("min_length", "min_tokens"),
    )
    temperature: float = _option(
        Number(least=0),
        0.0,
        "0 takes the likeliest token each time (greedy); above 0 samples, 1 from the model's own distribution",
        transformers="temperature",
        llama_cpp="--temp",
        others=("do_sample",),
        note="transformers samples with do_sample=True, and refuses 0 then; the default of llama.cpp is 0.8",
    )
    top_k: int = _option(
        Integer(0),
        0,
        "sample from the k likeliest tokens; 0 is off",
        transformers="top_k",
        llama_cpp="--top-k",
        note="off by default; 50 in transformers where it samples, 40 in llama.cpp",
    )
    top_p: float = _option(
        Number(above=0, most=1),
        1.0,
        "sample from the likeliest tokens whose probabilities together reach p; 1 is off",
        transformers="top_p",
        llama_cpp="--top-p",
        note="off by default; 0.95 in llama.cpp",
    )
    min_p: float = _option(
        Number(least=0, most=1),
        0.0,
        "do not sample tokens below this share of the likeliest token's probability; 0 is off",
        transformers="min_p",
        llama_cpp="--min-p",
        note="off by default; 0.05 in llama.cpp",
    )
    typical_p: float = _option(
        Number(above=0, most=1),
        1.0,
        "sample from the most typical tokens whose probabilities together reach p; 1 is off",
        transformers="typical_p",
        llama_cpp="--typical",
        others=("typ_p",),
    )
    repetition_penalty: float = _option(
        Number(above=0),
        1.0,
        "make ids of the prompt and the text less likely: positive logits are divided by it, negative ones multiplied; "
        "the latest n_positions ids count; 1 is off",
        transformers="repetition_penalty",
        llama_cpp="--repeat-penalty",
        note="llama.cpp counts the latest 64 ids (--repeat-last-n)",
    )
    presence_penalty: float = _option(
        Number(),
        0.0,
        "subtract this from the logit of every id that was generated before; 0 is off",
        llama_cpp="--presence-penalty",
        note="as in OpenAI's API: the prompt does not count",
    )
    frequency_penalty: float = _option(
        Number(),
        0.0,
        "subtract this from the logit of an id for each time that it was generated before; 0 is off",
        llama_cpp="--frequency-penalty",
        note="as in OpenAI's API: the prompt does not count",
    )
    no_repeat_ngram_size: int = _option(
        Integer(0),
        0,
        "never repeat so many ids in a row, among the latest n_positions; 0 is off",
        transformers="no_repeat_ngram_size",
    )
    dry_multiplier: float = _option(
        Number(least=0),
        0.0,
        "subtract dry_multiplier * dry_base ** (n - dry_allowed_length) from the logit of an id that would prolong a "
        "repetition of n ids, n at least dry_allowed_length (DRY, don't repeat yourself); the latest n_positions ids "
        "count; 0 is off",
        llama_cpp="--dry-multiplier",
        note="the DRY penalty of llama.cpp with --dry-penalty-last-n -1",
    )
    dry_base: float = _option(
        Number(least=1),
        1.75,
        "how fast the DRY penalty grows with the length of the repetition; needs dry_multiplier",
        llama_cpp="--dry-base",
        note="below 1, DRY is off in llama.cpp, and an error here",
    )
    dry_allowed_length: int = _option(
        Integer(0),
        2,
        "the longest repetition, in ids, that DRY leaves at the penalty dry_multiplier; shorter ones have none; needs "
        "dry_multiplier",
        llama_cpp="--dry-allowed-length",
    )
    dry_sequence_breakers: str | Sequence[str] = _option(
        Phrases(longest=MAX_BREAKER),
        DRY_BREAKERS,
        "texts across which DRY counts no repetition, instead of line end, colon, double quote and asterisk; needs "
        "dry_multiplier",
        llama_cpp="--dry-sequence-breaker",
        note="llama.cpp cuts a text after 40 characters, here that is an error; in llama-server the name is the same",
    )
    logit_bias: Mapping[int, float] | None = _option(
        LogitBias(),
        None,
        "add these numbers to the logits of these ids; inf makes an id certain, -inf forbids it",
        transformers="sequence_bias",
        llama_cpp="--logit-bias",
        note="sequence_bias of transformers has tuples of ids as keys",
    )
    suppress_ids: Sequence[int] = _option(
        TokenIds(),
        (),
        "never generate these ids, whatever logit_bias and stop_ids say of them",
        transformers="suppress_tokens",
        others=("bad_words_ids",),
    )
    banned: str | Sequence[str] = _option(
        Phrases(without=("\N{REPLACEMENT CHARACTER}", "which stands for bytes that are no character")),
        (),
        "texts that the continuation never contains, with whatever tokens they are written: a token that would "
        "complete one is not generated; upper and lower case differ",
        others=("bad_words", "banned_strings", "banned_phrases"),
        note="bad_words_ids of transformers forbids a text as one sequence of ids only",
    )
    stop: str | Sequence[str] = _option(
        Phrases(),
        (),
        "end before this text, or before the first of several; the text itself is left out",
        transformers="stop_strings",
        llama_cpp="--reverse-prompt",
        others=("stop_sequences", "antiprompt"),
        note="in transformers the text ends with the stop string; a field of llama-server is called stop",
    )
    stop_ids: Sequence[int] = _option(
        TokenIds(),
        (),
        "end at one of these ids, as at eos_token_id, which still ends the text, too",
        transformers="eos_token_id",
        others=("stop_token_ids",),
        note="in transformers eos_token_id replaces the model's own",
    )
    choices: Sequence[str] | None = _option(
        Texts(),
        None,
        "write one of these texts (structured output)",
        others=("guided_choice",),
    )
    regex: str | None = _option(
        Regex(),
        None,
        "write a match of this regular expression, in Rust's syntax (structured output)",
        others=("guided_regex",),
        note="llama.cpp takes a grammar instead",
    )
    json_schema: Mapping[str, Any] | str | None = _option(
        JsonSchema(),
        None,
        "write JSON of this schema, with the spaces of json.dumps (structured output)",
        llama_cpp="--json-schema",
        others=("guided_json", "response_format"),
    )
    lookup: int = _option(
        Integer(0),
        0,
        "speculative decoding: propose up to this many tokens at a time, from what followed the same ids earlier in "
        "the text; one pass checks them. At fp32 the text is the same, unless two tokens are equally likely to the "
        "last bits; at int8 and int4 some texts differ. 0 is off",
        transformers="prompt_lookup_num_tokens",
    )
    seed: int | None = _option(
        Integer(0, MAX_SEED),
        None,
        "the seed of sampling: the same seed gives the same text; None draws one",
        transformers="set_seed",
        llama_cpp="--seed",
        others=("random_seed",),
        note="transformers.set_seed is a function, and sets the state of the whole process",
    )
    overflow: Overflow = _option(
        Choice(OVERFLOWS),
        "error",
        "when prompt and max_new_tokens pass n_positions: 'error' is an error (ContextLengthError); 'stop' ends the "
        "text at the last position; 'truncate_left' leaves out the beginning of the prompt; 'slide' writes on, and "
        "drops the oldest half of the ids whenever the context is full",
        transformers="truncation",
        llama_cpp="--context-shift",
        others=("truncation_side", "truncate"),
        note="truncation is of transformers' tokenizers; --context-shift is 'slide'",
    )
    pinned_tokens: int = _option(
        Integer(0),
        0,
        "with overflow='slide' keep this many ids of the prompt's beginning in the context",
        llama_cpp="--keep",
        others=("n_keep",),
    )
    special_tokens: bool = _option(
        Flag(),
        False,
        "read <|endoftext|> and other special tokens that are written in the prompt as tokens, not as text",
        transformers="split_special_tokens",
        others=("parse_special",),
        note="split_special_tokens of transformers' tokenizers is the opposite, and False by default",
    )
    token_healing: bool = _option(
        Flag(),
        False,
        "generate the last token of the prompt again, together with what follows: for prompts that end inside a word",
        transformers="token_healing",
    )
    logits_processor: LogitsProcessor | None = _option(
        LogitsFunction(),
        None,
        "a function of the ids so far (prompt included) and the logits [n_vocab] of the next, as a float32 array; it "
        "returns the logits to use. It is called once for each token, after the penalties and before the sampler",
        transformers="logits_processor",
        note="here one function for one continuation, with arrays of numpy",
    )
    deadline: float | None = _option(
        Number(above=0),
        None,
        "end the text after this many seconds",
        transformers="max_time",
        llama_cpp="t_max_predict_ms",
        others=("timeout",),
        note="t_max_predict_ms is a field of a request to llama-server, in milliseconds",
    )
    cancel: Callable[[], bool] | None = _option(
        Callback(),
        None,
        "a function that is called before every pass through the model; the text ends when it returns True",
        transformers="stopping_criteria",
    )

    def __post_init__(self) -> None:
        """Check every value and make it plain: numbers of other libraries become Python's, iterables become tuples."""
        for name, option in OPTIONS.items():
            object.__setattr__(self, name, option.read(name, getattr(self, name)))
        self._check_together()

    def _check_together(self) -> None:
        """Raise OptionError for options that do not go together."""
        filters = ("top_k", "top_p", "min_p", "typical_p")
        given = [name for name in filters if getattr(self, name) != OPTIONS[name].default]
        if given and self.temperature == 0:
            values = ", ".join(f"{name}={getattr(self, name)}" for name in given)
            raise OptionError(
                f"{values} filters the tokens to sample from, but temperature 0 does not sample; "
                f"set temperature (1.0 is the model's own distribution) or leave {' and '.join(given)} out",
                *given,
                "temperature",
            )
        if self.min_new_tokens > self.max_new_tokens:
            raise OptionError(
                f"min_new_tokens {self.min_new_tokens} is above max_new_tokens {self.max_new_tokens}",
                "min_new_tokens",
                "max_new_tokens",
            )
        if self.pinned_tokens and self.overflow != "slide":
            raise OptionError(
                f"pinned_tokens {self.pinned_tokens} needs overflow='slide', and overflow is {self.overflow!r}",
                "pinned_tokens",
                "overflow",
            )
        self._check_dry()
        find_form(self)

    def _check_dry(self) -> None:
        """Raise OptionError for an option of DRY where DRY is off."""
        names = ("dry_base", "dry_allowed_length", "dry_sequence_breakers")
        given = [name for name in names if getattr(self, name) != OPTIONS[name].default]
        if given and not self.dry_multiplier:
            values = ", ".join(f"{name}={getattr(self, name)!r}" for name in given)
            raise OptionError(
                f"{values} has no effect: dry_multiplier is 0, and DRY is off; set dry_multiplier (0.8 is usual) or "
                f"leave {' and '.join(given)} out",
                *given,
                "dry_multiplier",
            )

    @property
    def form(self) -> Form | None:
        """The structured output that choices, regex or json_schema asks for."""
        return find_form(self)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        # `stop` was made a tuple when it was checked.
        return tuple(self.stop)

    @property
    def banned_phrases(self) -> tuple[str, ...]:
        """The banned phrases."""
        # `banned` was made a tuple when it was checked.
        return tuple(self.banned)


OPTIONS: Mapping[str, Option] = {field.name: field.metadata["option"] for field in dataclasses.fields(Options)}


class Form(NamedTuple):
    """Structured output: one of several texts, a match of a regular expression, or JSON of a schema."""

    option: str  # the name of the option that asks for it
    value: str | tuple[str, ...]


FORMS = ("choices", "regex", "json_schema")  # the options of structured output


def find_form(options: Options) -> Form | None:
    """The structured output that is asked for.

    Raises OptionError for two of them, and for an option that could break the form.
    """
    given = [Form(name, getattr(options, name)) for name in FORMS if getattr(options, name) is not None]
    if not given:
        return None
    names = [form.option for form in given]
    if len(given) > 1:
        raise OptionError(f"{' and '.join(names)} are given, but a text has one form; give one of them", *names)
    reasons = {
        "stop": "it would cut the output short",
        "min_new_tokens": "it may forbid the end of the output; ask for a length in the form itself",
        "no_repeat_ngram_size": "it may forbid what the output needs",
        "banned": "it may forbid what the output needs",
        "logits_processor": "it may forbid what the output needs",
        "token_healing": "it begins inside the prompt, and structured output begins after it",
    }
    for name, reason in reasons.items():
        if getattr(options, name) != OPTIONS[name].default:
            raise OptionError(f"{name} does not go with {names[0]}: {reason}; leave one of them out", name, *names)
    return given[0]


def make_options(given: Mapping[str, Any]) -> Options:
    """Options from keywords. Raises TypeError for an unknown one, with the name that was meant and all names."""
    for name in given:
        if name not in OPTIONS:
            # Only where something is wrong: importing the package stays quick.
            from runtime.option_names import explain_unknown

            raise TypeError(explain_unknown(name, OPTIONS))
    return Options(**given)


def pick_options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The options among the arguments of a call, without those that are left to the task."""
    return {name: arguments[name] for name in OPTIONS if arguments.get(name, TASK_DEFAULT) is not TASK_DEFAULT}


def check_seed(options: Options) -> None:
    """Raise OptionError for a seed where nothing is drawn.

    This is not part of `Options`: OpenAI's clients send a seed with every request, and the server takes it.
    """
    if options.seed is not None and options.temperature == 0:
        raise OptionError(
            f"seed={options.seed} has no effect: temperature 0 does not sample, and the text is always the same; "
            "set temperature (1.0 is the model's own distribution) or leave seed out",
            "seed",
            "temperature",
        )


def make_seeded(given: Mapping[str, Any], seed: object, n_prompts: int) -> list[Options]:
    """Options for each of several prompts: `seed` is one number for all of them, None, or a sequence of one for each.

    Raises TypeError or OptionError with the entry that is no seed, and for a sequence of another length.
    """
    several = _as_sequence(seed)
    if several is None:
        return [make_options({**given, "seed": seed})] * n_prompts
    if len(several) != n_prompts:
        told = f"seed has {len(several)} entries for {n_prompts} prompts; give one for each, or a single number"
        raise OptionError(told, "seed")
    kind = Option(OPTIONS["seed"].kind, 0, "")
    seeds = [kind.read(f"seed[{index}]", one) for index, one in enumerate(several)]
    options = make_options(given)
    return [dataclasses.replace(options, seed=one) for one in seeds]


def _as_sequence(seed: Any) -> Sequence[Any] | None:
    """A sequence or an array of one dimension or more as it is, None for a single number or what is neither."""
    if isinstance(seed, str | bytes):
        return None
    # Checked by its shape, so that numpy need not be imported.
    return seed if isinstance(seed, Sequence) or getattr(seed, "shape", None) else None
