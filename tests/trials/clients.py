"""Client libraries against a running server: `python tests/trials/clients.py http://127.0.0.1:8000 MODEL [CHAT_MODEL]`.

It needs none of this project, so it runs in an environment of the clients alone; those that are missing are named.
Each call is printed with `ok`, or with its error; the status is 1 where one failed. CHAT_MODEL has a chat template.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from typing import Any

Call = tuple[str, Callable[[], Any]]
HELLO = [{"role": "user", "content": "Once upon a time"}]
SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer"}},
    "required": ["age"],
    "additionalProperties": False,
}
FORMATS: list[dict[str, Any]] = [
    {"type": "text"},
    {"type": "json_object"},
    {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}},
]


def of_openai(url: str, model: str, chat: str | None) -> Iterator[Call]:
    import openai

    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    create = client.completions.create
    text = {"model": model, "prompt": "Once", "max_tokens": 4}
    usage = {"include_usage": True}
    yield "models", lambda: [one.id for one in client.models.list()]
    yield "completion", lambda: create(**text).choices[0].text
    yield "stream", lambda: list(create(**text, stream=True, stream_options=usage))[-1].usage.total_tokens
    yield "logprobs", lambda: create(**text, echo=True, logprobs=1).choices[0].logprobs.token_logprobs[1]
    yield "suffix", lambda: create(**text, suffix=" a king.", best_of=3).choices[0].text
    yield "logit_bias", lambda: create(**text, logit_bias={"262": 100}).choices[0].text
    if chat is None:
        return
    ask = client.chat.completions.create
    talk = {"model": chat, "messages": HELLO}
    yield (
        "chat",
        lambda: ask(**talk, max_completion_tokens=5, seed=-1, store=False, user="a").choices[0].message.content,
    )
    yield (
        "chat stream",
        lambda: list(ask(**talk, max_tokens=5, stream=True, stream_options=usage))[-1].usage.total_tokens,
    )
    for form in FORMATS:
        yield (
            form["type"],
            lambda form=form: ask(**talk, max_tokens=60, response_format=form).choices[0].message.content,
        )
    yield (
        "chat logprobs",
        lambda: ask(**talk, max_tokens=2, logprobs=True, top_logprobs=2).choices[0].logprobs.content[0],
    )


def of_litellm(url: str, model: str, chat: str | None) -> Iterator[Call]:
    import litellm

    where = {"api_base": url, "api_key": "none", "max_tokens": 5}
    text = {"model": f"text-completion-openai/{model}", "prompt": "Once", **where}
    yield "completion", lambda: litellm.text_completion(**text).choices[0].text
    yield "stream", lambda: len(list(litellm.text_completion(**text, stream=True)))
    yield (
        "logprobs",
        lambda: litellm.text_completion(**text, echo=True, logprobs=1).choices[0].logprobs.token_logprobs[1],
    )
    if chat is None:
        return
    for provider in ("openai", "hosted_vllm"):
        talk = {"model": f"{provider}/{chat}", "messages": HELLO, **where}
        yield f"{provider} chat", lambda talk=talk: litellm.completion(**talk).choices[0].message.content
        yield f"{provider} chat stream", lambda talk=talk: len(list(litellm.completion(**talk, stream=True)))
    talk = {"model": f"openai/{chat}", "messages": HELLO, **where, "max_tokens": 60}
    yield "json_schema", lambda: litellm.completion(**talk, response_format=FORMATS[2]).choices[0].message.content
    long = {**talk, "messages": [{"role": "user", "content": "x " * 3000}]}
    yield "too long", lambda: raises(litellm.ContextWindowExceededError, lambda: litellm.completion(**long))


def of_langchain_openai(url: str, model: str, chat: str | None) -> Iterator[Call]:
    from langchain_openai import ChatOpenAI, OpenAI

    where: dict[str, Any] = {"base_url": url, "api_key": "none", "max_retries": 0}
    text = OpenAI(model=model, max_tokens=5, **where)
    yield "invoke", lambda: text.invoke("Once")
    yield "stream", lambda: list(text.stream("Once"))
    yield "batch", lambda: text.batch(["Once", "The"])
    yield "greedy", lambda: OpenAI(model=model, max_tokens=5, temperature=0, **where).invoke("Once")
    if chat is None:
        return
    talk = ChatOpenAI(model=chat, max_tokens=60, **where)
    history = [("system", "Be kind."), ("human", "hi"), ("ai", "hello"), ("human", "bye")]
    yield "chat", lambda: talk.invoke(history).content
    yield "chat stream", lambda: [chunk.content for chunk in talk.stream(history)]
    yield (
        "json_schema",
        lambda: talk.with_structured_output(SCHEMA | {"title": "person"}, method="json_schema").invoke("hi"),
    )


def of_llama_index(url: str, model: str, chat: str | None) -> Iterator[Call]:
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    where: dict[str, Any] = {
        "api_base": url,
        "api_key": "none",
        "max_retries": 0,
        "context_window": 512,
        "max_tokens": 5,
    }
    text = OpenAILike(model=model, is_chat_model=False, **where)
    yield "complete", lambda: text.complete("Once").text
    yield "stream_complete", lambda: [chunk.delta for chunk in text.stream_complete("Once")]
    if chat is None:
        return
    talk = OpenAILike(model=chat, is_chat_model=True, **where)
    messages = [ChatMessage(role="system", content="Be kind."), ChatMessage(role="user", content="hi")]
    yield "chat", lambda: talk.chat(messages).message.content
    yield "stream_chat", lambda: [chunk.delta for chunk in talk.stream_chat(messages)]


def raises(kind: type[Exception], call: Callable[[], Any]) -> str:
    """The name of an error that has to come."""
    try:
        call()
    except kind:
        return kind.__name__
    raise AssertionError(f"{kind.__name__} was expected")


CLIENTS = {
    "openai": of_openai,
    "litellm": of_litellm,
    "langchain_openai": of_langchain_openai,
    "llama_index": of_llama_index,
}


def main() -> int:
    """Call every client that is installed."""
    if len(sys.argv) not in (3, 4):
        print(__doc__, file=sys.stderr)
        return 2
    url, model, chat = f"{sys.argv[1].rstrip('/')}/v1", sys.argv[2], sys.argv[3] if len(sys.argv) == 4 else None
    n_failed = 0
    for name, calls in CLIENTS.items():
        if importlib.util.find_spec(name) is None:
            print(f"{name}: missing")
            continue
        for what, call in calls(url, model, chat):
            try:
                told = f"ok: {str(call())[:60]!r}"
            except Exception as error:
                n_failed += 1
                told = f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            print(f"{name} {what}: {told}", flush=True)
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
