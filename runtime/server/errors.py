"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import contextlib
import json
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from runtime.errors import ContextLengthError, OptionError

T = TypeVar("T")
CONTEXT_LENGTH = "context_length_exceeded"  # the code that OpenAI's clients know
CLOSED_REQUEST = 499  # the client has left; nobody reads the reply


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """Every reply that is no success."""

    error: ErrorBody


class ApiError(Exception):
    """A reply other than success."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self) -> Response:
        """The reply."""
        return Response(self.json(), self.status, self.headers, "application/json")

    def json(self) -> str:
        """The body, in ASCII: a message may quote what is no valid Unicode."""
        return json.dumps(self.body)


def server_error(message: str, status: int = 500) -> ApiError:
    """An error that is not the client's."""
    return ApiError(message, status=status, kind="server_error")


def context_error(message: str, n_positions: int, param: str = "prompt") -> ApiError:
    """A text that is too long. Clients know it by the code, or only by the words that OpenAI's message begins with."""
    told = f"this model's maximum context length is {n_positions} tokens: {message}" if n_positions else message
    return ApiError(told, param=param, code=CONTEXT_LENGTH)


def contain(function: Callable[[], T]) -> T:
    """The function's result. A Rust panic of the tokenizer's, which is no Exception, becomes a RuntimeError."""
    try:
        return function()
    except Exception:
        raise
    except BaseException as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from None


def in_words_of_api(error: Exception) -> str:
    """The runtime's message, an option under the name that OpenAI has for it."""
    return str(error).replace("max_new_tokens", "max_tokens")


def as_api_error(error: Exception) -> ApiError:
    """What the runtime says of a request, as a reply: with the field that is to blame, where the error names it."""
    told = in_words_of_api(error)
    if isinstance(error, ContextLengthError):
        return context_error(told, error.n_positions)
    if isinstance(error, OptionError) and error.options:
        return ApiError(told, param=error.options[0].replace("max_new_tokens", "max_tokens"))
    return ApiError(told)


@contextlib.contextmanager
def preparing() -> Iterator[None]:
    """What is wrong with a request's options as an ApiError."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise as_api_error(error) from None
    except ImportError as error:  # an extra that is not installed
        raise server_error(str(error), 501) from None


def add_handlers(app: FastAPI) -> None:
    """Give every error of the framework OpenAI's shape."""

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def wrong_request(_: Request, error: RequestValidationError) -> Response:
        return _describe(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        detail = "the request cannot be read as JSON in UTF-8" if "parsing the body" in error.detail else error.detail
        told = f"{detail}: {request.method} {request.url.path}"
        return ApiError(told, status=error.status_code, headers=error.headers).response()

    @app.exception_handler(Exception)
    async def failure(_: Request, error: Exception) -> Response:
        return server_error(f"the server failed ({type(error).__name__}); its log says more").response()


def _describe(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """Of pydantic's errors the first: the field, what was given and what is expected."""
    first = [error for error in errors if error["loc"][:2] == errors[0]["loc"][:2]]  # of one field, each type it has
    error = next((error for error in first if not error["type"].endswith("_type")), first[0])
    where = [str(part) for part in error["loc"][1:]]
    if error["type"] == "json_invalid":
        return ApiError(f"the request is no JSON: {error.get('ctx', {}).get('error', error['msg'])}")
    if error["type"] == "string_unicode":
        return ApiError("the request has a lone surrogate in a text: it is not valid Unicode")
    if not where:
        return ApiError("the request must be a JSON object, with the header Content-Type: application/json")
    name = where[0]
    if error["type"] == "extra_forbidden":
        return ApiError(f"unknown field {'.'.join(where)!r}; /openapi.json lists the fields", param=name)
    if error["type"] == "missing":
        return ApiError(f"{'.'.join(where)} is missing", param=name)
    if name == "prompt":
        kinds = "a text, several texts, token ids, or several lists of token ids"
        return ApiError(f"prompt is {short(error['input'])}; it must be {kinds}", param=name)
    # The reason of a validator of ours stands alone.
    told = error["msg"].removeprefix("Value error, ")
    return ApiError(f"{name} is {short(error['input'])}: {told}", param=name)


def short(value: object) -> str:
    """The value as Python writes it, or the beginning of that; what is large is not written out first."""
    text = _REPR.repr(value)
    return text if len(text) < _SHOWN else f"{text[: _SHOWN - 4]} ..."


_SHOWN = 80  # characters
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 2 * _SHOWN
_REPR.maxlist = _REPR.maxdict = 20
