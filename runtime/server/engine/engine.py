"""What all requests to a model share: the scheduler, room for so many, and threads beside the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from runtime.errors import NoTokenizerError
from runtime.model.model import Model
from runtime.server.chat_templates.chat_template import open_chat
from runtime.server.engine.cancellable_model import CancellableModel
from runtime.server.engine.job import Job
from runtime.server.engine.metrics import ModelGauges, ServerMetrics
from runtime.server.engine.no_scheduler import NoScheduler
from runtime.server.engine.prompt_cache import BlockStore, PromptCache
from runtime.server.engine.scheduler import Scheduler
from runtime.server.engine.served_row import ServedRow
from runtime.server.engine.token_names import TokenNames
from runtime.server.engine.turns import Turns
from runtime.server.errors import ApiError, contain, server_error
from runtime.server_settings import Settings

DEFAULT_ROWS = 8
REPLIES = 4  # of the largest size at a time; smaller ones are more
T = TypeVar("T")


class Engine:
    """One model at work. `start` in the event loop that serves; `close` ends its threads."""

    def __init__(
        self, model: Model, model_id: str, settings: Settings, blocks: BlockStore, metrics: ServerMetrics
    ) -> None:
        """`model_id`: the model's name for clients; `blocks` and `metrics` are those of the server.

        Raises ValueError where the model cannot decode `settings.rows` together, NoTokenizerError where it has no
        tokenizer.
        """
        if not model.has_tokenizer:
            told = "requests and replies of the server are texts: add the tokenizer.json of its checkpoint"
            raise NoTokenizerError(f"{model.folder} has no tokenizer, and {told}")
        self.model = model
        self.model_id = model_id
        self.settings = settings
        self.created = int(time.time())
        self.names = TokenNames(model)
        self.max_characters = model.config.n_positions * self.names.longest  # more cannot fit
        self.n_rows = settings.rows or (DEFAULT_ROWS if model.is_fused else 1)
        self.prompt_cache = PromptCache(model, blocks)
        self._scheduler = _scheduler(model, self.n_rows, self.prompt_cache)
        self._prepare = ThreadPoolExecutor(2, "gpt2-edge-prepare")  # prompts to ids
        self._forms = ThreadPoolExecutor(1, "gpt2-edge-forms")  # likewise, for structured output
        self._aside = ThreadPoolExecutor(1, "gpt2-edge-aside")  # passes outside of the batch
        self._jobs: set[Job] = set()
        self._asides: list[Job] = []  # those with passes outside of the batch, the one whose turn it is first
        self.chat_template, self.no_chat = open_chat(model)  # None, and why there is none
        gauges = ModelGauges(
            running=lambda: self.n_running,
            waiting=lambda: self.n_open - self.n_running,
            cache_bytes=lambda: self._scheduler.n_prompt_cache_bytes,
        )
        self.metrics = metrics.of_model(model_id, gauges)

    def start(self) -> None:
        """Begin to decode."""
        self._scheduler.start()

    @property
    def n_open(self) -> int:
        """Continuations and texts under way or waiting."""
        return sum(job.n_units for job in self._jobs)

    @property
    def n_running(self) -> int:
        """Continuations in the batch."""
        return self._scheduler.n_running

    @property
    def is_alive(self) -> bool:
        """Whether requests are decoded."""
        return self._scheduler.is_alive

    def model_of(self, job: Job) -> Model:
        """The model for passes outside of the batch. They end when no client waits for the request any more, and take
        turns with the rows that decode.
        """
        return CancellableModel(self.model, Turns(job.check, lambda: self.n_running > 0))

    def check_writes(self) -> None:
        """Raises ApiError where the model is a classifier, which writes and embeds no text."""
        if self.model.config.head is not None:
            told = 'this model is a classifier, and writes and embeds no text: POST /classify with {"input": TEXT}'
            raise ApiError(told, code="classifier")

    def admit(self, n_units: int) -> Job:
        """A place for a request.

        Raises ApiError: 400 where it is more than the server ever takes, 429 for now, 503 where nothing is decoded.
        """
        if not self.is_alive:
            raise server_error("the decoding thread has ended, or does not answer: start the server again", 503)
        limit = self.n_rows + self.settings.queue
        if n_units > limit:
            raise ApiError(f"the request asks for {n_units} continuations, and the server takes {limit} at a time")
        if self.n_open + n_units > limit:
            raise _busy(f"{self.n_open} of {limit} continuations are taken")
        ends = asyncio.get_running_loop().time() + self.settings.timeout
        job = Job(n_units, ends, self._decode, self._jobs.discard)
        self._jobs.add(job)
        return job

    def reserve(self, job: Job, n_bytes: int) -> None:
        """Count the bytes of a reply, until the job ends. Raises ApiError where those of all are too many for now."""
        taken = sum(one.n_bytes for one in self._jobs)
        if taken + n_bytes > REPLIES * self.settings.max_reply_bytes:
            raise _busy(f"replies of {taken:,} bytes are under way")
        job.n_bytes = n_bytes

    async def prepare(self, job: Job, function: Callable[[], T], *, has_form: bool = False) -> T:
        """The result of some work that is too long for the event loop, and has no pass in it.

        has_form: it prepares structured output. That may take long, so only others of its kind wait for it.
        Raises ApiError as `run_aside` does.
        """
        return await self._run_in(self._forms if has_form else self._prepare, job, function)

    async def run_aside(self, job: Job, function: Callable[[], T]) -> T:
        """The result of passes that are not part of the batch; such run one after the other.

        Raises ApiError when the request's time is over; what runs then ends before the next begins: at its next pass
        where it takes `model_of`.
        """
        self._asides.append(job)
        try:
            return await self._run_in(self._aside, job, function)
        finally:
            self._asides.remove(job)

    def queue_position(self, job: Job) -> int:
        """How many requests go before this one, itself included: 1 for the next one, 0 once it has begun."""
        if job in self._asides:
            return self._asides.index(job)
        return self._scheduler.position(job.rows)

    async def write(self, job: Job, function: Callable[[], T]) -> T:
        """The reply to a request, whose time may be over."""
        return await asyncio.wrap_future(self._submit_to(self._prepare, job, function))

    def _submit_to(self, pool: ThreadPoolExecutor, job: Job, function: Callable[[], T]) -> Future[T]:
        """Work in a thread that counts against the queue's limit until it has ended."""
        loop = asyncio.get_running_loop()
        job.begin_work()
        try:
            future = pool.submit(contain, function)
        except BaseException:
            job.end_work()
            raise
        future.add_done_callback(lambda _: _tell(loop, job.end_work))
        return future

    async def _run_in(self, pool: ThreadPoolExecutor, job: Job, function: Callable[[], T]) -> T:
        try:
            async with asyncio.timeout_at(job.ends):
                return await asyncio.wrap_future(self._submit_to(pool, job, function))
        except TimeoutError:
            told = f"there was no answer within this server's limit of {self.settings.timeout} s"
            raise server_error(told, 503) from None

    def stop_all(self) -> None:
        """End every request where it is."""
        for job in self._jobs:
            job.is_stopped = True
            job.cancel()

    def close(self) -> None:
        """End the threads; requests must have ended."""
        for pool in (self._prepare, self._forms, self._aside):
            pool.shutdown(wait=True, cancel_futures=True)
        self._scheduler.close()

    def _decode(self, rows: Sequence[ServedRow]) -> None:
        self._scheduler.submit(rows)


def _scheduler(model: Model, n_rows: int, prompt_cache: PromptCache) -> Scheduler | NoScheduler:
    return NoScheduler() if model.config.head is not None else Scheduler(model, n_rows, prompt_cache)


def _busy(why: str) -> ApiError:
    told = f"the server is busy: {why}; try again soon"
    headers = {"Retry-After": "1"}
    return ApiError(told, status=429, kind="rate_limit_error", code="server_busy", headers=headers)


def _tell(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    # RuntimeError: the loop is closed, and nothing is counted any more.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function)
