"""Sends an answer: whole, or as a stream."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial

from fastapi import Request, Response

from runtime.server.openai.answer import Answer
from runtime.server.openai.delta import Delta, collect
from runtime.server.openai.events import as_events
from runtime.server.openai.exchange import EventStream, json_response, while_connected
from runtime.server.openai.reply import Usage, Write, to_json, write_each


async def respond(
    request: Request,
    answer: Answer,
    write: Write,
    stack: contextlib.ExitStack,
    select: Callable[[list[Delta]], list[Delta]] = list,
) -> Response:
    """The response to a request, prepared and decoded while its client is connected. Raises ApiError.

    stack: closes the job. A stream takes it over, and closes the job itself.
    select: which choices a whole reply shows.
    """
    await while_connected(request, answer.prepare())
    if answer.is_stream:
        stack.pop_all()

        def usage_at_end() -> Usage | None:
            return answer.usage if answer.includes_usage else None

        chunks = write_each(answer.deltas(), write, usage_at_end)
        return EventStream(as_events(chunks, partial(answer.engine.queue_position, answer.job)), answer.job)
    choices = select(await while_connected(request, collect(answer.deltas())))
    body = answer.engine.write(answer.job, lambda: to_json(write(choices, answer.usage)))
    return json_response(await while_connected(request, body))
