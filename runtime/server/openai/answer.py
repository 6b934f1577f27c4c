"""What answers a request: continuations of its prompts, a task's answers, or the next message of a conversation."""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator
from functools import partial

from runtime.api import BEST_OF
from runtime.server.chat_templates.chat_template import ChatTemplate
from runtime.server.engine.engine import Engine
from runtime.server.engine.job import Job
from runtime.server.engine.served_row import ServedRow
from runtime.server.engine.token_names import read_prompt
from runtime.server.errors import preparing
from runtime.server.openai import task_plan
from runtime.server.openai.delta import Choice, Delta, Details, End
from runtime.server.openai.exchange import decode, stopped
from runtime.server.openai.fields import ChatRequest, CompletionRequest
from runtime.server.openai.plan import (
    Prompt,
    as_prompts,
    check_length,
    check_reply,
    encode_one,
    encode_rendered,
    make_limited,
    make_rows,
    too_long,
)
from runtime.server.openai.reply import PromptTokensDetails, Usage
from runtime.server.openai.task_plan import TaskRequest
from runtime.tasks import infill
from runtime.tokenization.encode import encode

DEFAULT_MAX_TOKENS = 16  # OpenAI's


class Answer(abc.ABC):
    """The answer to one request. Call `prepare`, then read `deltas`, then `usage`."""

    def __init__(self, engine: Engine, job: Job, body: CompletionRequest | ChatRequest) -> None:
        self.engine = engine
        self.job = job
        self.n_prompt_tokens = 0
        self.n_new_tokens = 0
        self.is_stream = bool(body.stream)
        options = body.stream_options
        self.includes_usage = bool(options and options.include_usage)
        with preparing():
            self._has_structured_output = body.has_structured_output

    async def prepare(self) -> None:
        """Read the prompts, and reserve room for the reply. Raises ApiError."""
        with preparing():
            n_bytes = await self.engine.prepare(self.job, self.plan, has_form=self._has_structured_output)
            self.engine.reserve(self.job, n_bytes)

    @abc.abstractmethod
    def plan(self) -> int:
        """Make what `deltas` needs, in a thread of its own. Returns the bytes that the reply may have, about.

        Raises ApiError, TypeError or ValueError.
        """

    @abc.abstractmethod
    def deltas(self) -> AsyncIterator[Delta]:
        """The reply as it comes. Raises ApiError."""

    @property
    def usage(self) -> Usage:
        """The tokens so far: each prompt once, every continuation."""
        return Usage(
            prompt_tokens=self.n_prompt_tokens,
            completion_tokens=self.n_new_tokens,
            total_tokens=self.n_prompt_tokens + self.n_new_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=self.n_cached_tokens),
        )

    @property
    def n_cached_tokens(self) -> int:
        """Tokens of the prompts that were not computed again."""
        return 0

    def check_connected(self) -> None:
        """Raise ApiError where the request has been cancelled."""
        if self.job.is_cancelled():
            raise stopped()


class WrittenAnswer(Answer):
    """An answer that rows of the batch write."""

    def __init__(self, engine: Engine, job: Job, body: CompletionRequest | ChatRequest, *, shows_tokens: bool) -> None:
        super().__init__(engine, job, body)
        self._shows_tokens = shows_tokens
        self._prompts: list[Prompt] = []
        self._rows: list[ServedRow] = []

    async def deltas(self) -> AsyncIterator[Delta]:
        """The continuations, as they are decoded. Raises ApiError."""
        choices = [self._choice(index, row) for index, row in enumerate(self._rows)]
        async for delta in decode(self.engine, self.job, self._rows, choices):
            if delta.end:
                self.n_new_tokens += delta.end.n_tokens
            yield delta

    @property
    def n_cached_tokens(self) -> int:
        """See `Answer.n_cached_tokens`. Further samples of a prompt always share its prefill: they do not count."""
        return sum(row.n_cached for row in self._rows if row.place.sample_index == 0)

    def _choice(self, index: int, row: ServedRow) -> Choice:
        n_before = len(self._prompts[row.place.prompt_index].text)
        return Choice(self.engine.model, row, index, n_before, shows_tokens=self._shows_tokens)


class ContinuedPrompts(WrittenAnswer):
    """Continuations of prompts. With `echo` each begins with its prompt; with `max_tokens` 0 there is nothing else."""

    def __init__(self, engine: Engine, job: Job, body: CompletionRequest) -> None:
        super().__init__(engine, job, body, shows_tokens=body.logprobs is not None)
        self._body = body

    def plan(self) -> int:
        """See `Answer.plan`."""
        body = self._body
        n_new = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
        given = {"temperature": 1.0, **body.generation_options(), "max_new_tokens": n_new or 1}
        options = make_limited(self.engine, self.job, given)
        self._prompts = [encode_one(self.engine, self.job, prompt, options) for prompt in as_prompts(body.prompt)]
        self.n_prompt_tokens = sum(len(prompt.ids) for prompt in self._prompts)
        self.check_prompts()
        n_bytes = check_reply(self.engine, self._prompts, n_samples(body), body.logprobs, echo=bool(body.echo))
        if body.max_tokens != 0:
            n_top = n_top_of(body)
            self._rows = make_rows(self.engine, self.job, self._prompts, n_samples(body), n_top)
        return n_bytes

    def check_prompts(self) -> None:
        """Raise ApiError for a prompt that is to be scored and is too long for that."""
        body = self._body
        if body.max_tokens != 0 and not (body.echo and self._shows_tokens):
            return
        longest = max(len(prompt.ids) for prompt in self._prompts)
        # The last token is predicted, and not fed.
        most = self.engine.model.config.n_positions + 1
        if longest > most:
            raise too_long(self.engine, f"a prompt of {longest} tokens passes the {most} that are scored at once")

    async def deltas(self) -> AsyncIterator[Delta]:
        """The prompts where they are asked for, then the continuations. Raises ApiError."""
        if self._body.echo:
            for index in range(len(self._prompts)):
                for delta in await self.engine.run_aside(self.job, partial(self._echo, index)):
                    yield delta
        async for delta in super().deltas():
            yield delta

    def _echo(self, index: int) -> list[Delta]:
        """A prompt, once for each of its choices, with its tokens where they are asked for."""
        self.check_connected()
        prompt = self._prompts[index]
        n = n_samples(self._body)
        tokens = []
        # The one token of an empty prompt has no text, and is not shown.
        if self._body.logprobs is not None and prompt.text:
            tokens = read_prompt(self.engine.model_of(self.job), prompt.ids, self._body.logprobs, prompt.places)
        end = None if self._rows else End(Details(finish_reason="length"))
        return [Delta(choice, prompt.text, list(tokens), end) for choice in range(index * n, index * n + n)]


class InfilledPrompts(ContinuedPrompts):
    """Texts between prompts and a suffix: continuations with the log-probability of the suffix after each."""

    def plan(self) -> int:
        """See `Answer.plan`."""
        suffix = self._body.suffix or ""
        check_length(self.engine, suffix)
        self._suffix_ids = infill.encode_suffix(self.engine.model, suffix)
        n_bytes = super().plan()
        self.n_prompt_tokens += len(self._suffix_ids) * len(self._prompts)
        return n_bytes

    def check_prompts(self) -> None:
        """Raise OptionError or ContextLengthError where a middle cannot be followed by the suffix."""
        n_suffix = len(self._suffix_ids)
        for prompt in self._prompts:
            infill.check_options(self.engine.model, prompt.options, n_samples(self._body), len(prompt.ids), n_suffix)

    async def deltas(self) -> AsyncIterator[Delta]:
        """The continuations; their ends come when all are written and ranked. Raises ApiError."""
        ended: list[Delta] = []
        async for delta in super().deltas():
            if delta.end is None:
                yield delta
            else:
                ended.append(delta)
        scores: dict[int, float] = {}
        for index in range(len(self._prompts)):
            scores |= await self.engine.run_aside(self.job, partial(self._rank, index))
        for delta in ended:
            if delta.end:
                delta.end.details.suffix_logprob = scores[delta.index]
            yield delta

    def _rank(self, prompt_index: int) -> dict[int, float]:
        """Log-probability of the suffix after each choice of a prompt, by the index of the choice."""
        self.check_connected()
        numbers = [at for at, row in enumerate(self._rows) if row.place.prompt_index == prompt_index]
        rows = [self._rows[at] for at in numbers]
        ids = self._prompts[prompt_index].ids
        prefix = self.engine.prompt_cache.find(rows[0].prompt.window)
        scores = infill.rank(self.engine.model_of(self.job), rows, ids, self._suffix_ids, prefix)
        return {at: score.logprob for at, score in zip(numbers, scores, strict=True)}


class WrittenTask(WrittenAnswer):
    """The answers of a task that the model writes, such as a summary."""

    def __init__(self, engine: Engine, job: Job, body: CompletionRequest, task: TaskRequest) -> None:
        super().__init__(engine, job, body, shows_tokens=body.logprobs is not None)
        self._body = body
        self._task = task

    def plan(self) -> int:
        """See `Answer.plan`."""
        body = self._body
        model = self.engine.model
        self._prompts = [task_plan.write_prompt(model, self._task, text) for text in self._task.texts]
        self.n_prompt_tokens = sum(len(prompt.ids) for prompt in self._prompts)
        n_bytes = check_reply(self.engine, self._prompts, n_samples(body), body.logprobs, echo=False)
        # Answers have a confidence, which needs the log-probabilities of their tokens.
        n_top = body.logprobs or 0
        self._rows = make_rows(self.engine, self.job, self._prompts, n_samples(body), n_top)
        return n_bytes

    async def deltas(self) -> AsyncIterator[Delta]:
        """What the model writes, and at its end the answer that it is read as. Raises ApiError."""
        async for delta in super().deltas():
            if delta.end:
                row = self._rows[delta.index]
                n_truncated = self._prompts[row.place.prompt_index].n_truncated
                delta.end = task_plan.read_answer(self._task, row.completion(), n_truncated)
            yield delta


class ScoredTask(Answer):
    """The answers of a task that writes nothing: it compares probabilities, in passes beside the batch."""

    def __init__(self, engine: Engine, job: Job, body: CompletionRequest, task: TaskRequest) -> None:
        super().__init__(engine, job, body)
        self._task = task

    def plan(self) -> int:
        """Nothing: the texts are read one by one, and the replies are short."""
        return 0

    async def deltas(self) -> AsyncIterator[Delta]:
        """The answer to each text. Raises ApiError."""
        for index in range(len(self._task.texts)):
            yield await self.engine.run_aside(self.job, partial(self._perform, index))

    def _perform(self, index: int) -> Delta:
        self.check_connected()
        with preparing():
            self.n_prompt_tokens += len(encode(self.engine.model, self._task.texts[index]))
            return task_plan.perform(self.engine.model_of(self.job), self._task, index)


class ChatAnswer(WrittenAnswer):
    """The next message of a conversation, `n` times."""

    def __init__(self, engine: Engine, job: Job, body: ChatRequest, template: ChatTemplate) -> None:
        super().__init__(engine, job, body, shows_tokens=bool(body.logprobs))
        self._body = body
        self._template = template

    def plan(self) -> int:
        """See `Answer.plan`."""
        body = self._body
        engine = self.engine
        given = {"temperature": 1.0, "overflow": "stop", "special_tokens": True, **body.generation_options()}
        most = min(engine.model.config.n_positions, engine.settings.max_tokens)
        n_new = body.max_completion_tokens or body.max_tokens or most
        options = make_limited(engine, self.job, {**given, "max_new_tokens": n_new})
        messages = [message.plain() for message in body.messages]
        prompt = encode_rendered(engine, self.job, self._template.render(messages), options)
        self._prompts = [prompt]
        self.n_prompt_tokens = len(prompt.ids)
        n_top = (body.top_logprobs or 0) if body.logprobs else None
        n_bytes = check_reply(engine, self._prompts, body.n or 1, n_top, echo=False)
        self._rows = make_rows(engine, self.job, self._prompts, body.n or 1, n_top)
        return n_bytes


def n_samples(body: CompletionRequest) -> int:
    """Continuations of each prompt that are decoded. With `best_of`, or a suffix, more than are shown."""
    if body.suffix and body.best_of is None:
        return max(BEST_OF, body.n or 1)
    return body.best_of or body.n or 1


def n_top_of(body: CompletionRequest) -> int | None:
    """Alternatives to record for each token; None records no log-probabilities. `best_of` ranks by them."""
    if body.logprobs is not None:
        return body.logprobs
    ranks = n_samples(body) > (body.n or 1)
    return 0 if ranks else None
