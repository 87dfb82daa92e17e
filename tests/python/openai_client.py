"""Drives an OpenAI-compatible server with the openai package, as an application would.

Lists the models, asks for a completion at once and as a stream, for a streamed chat when the model has a chat
template, and for two refusals. Prints one line of JSON with what it saw. Exits 1, with the reason on stderr, when an
answer is not what the API promises.
"""

import argparse
import json
import sys
from typing import Any

from openai import APIStatusError, BadRequestError, NotFoundError, OpenAI

PROMPT = "Once upon a time"
MAX_TOKENS = 12
REQUEST_TIMEOUT_S = 120
OUT_OF_RANGE_TEMPERATURE = -1.0


class UnexpectedAnswer(Exception):
    """An answer that the API does not promise."""


def main() -> int:
    """Runs every step, prints what was seen and returns the exit status."""
    parser = argparse.ArgumentParser(description="drive an OpenAI-compatible server with the openai package")
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", help="a listed model to ask for; the first one by default")
    args = parser.parse_args()

    client = OpenAI(base_url=args.base_url, api_key="unused", max_retries=0, timeout=REQUEST_TIMEOUT_S)
    try:
        print(json.dumps(drive(client, args.model)))
    except UnexpectedAnswer as reason:
        print(f"openai client: {reason}", file=sys.stderr)
        return 1
    return 0


def drive(client: OpenAI, wanted: str | None) -> dict[str, Any]:
    """Every step, each checked against the one before it where they must agree."""
    models = [model.id for model in client.models.list()]
    expect(len(models) > 0, "no model is listed")
    model = wanted or models[0]
    expect(model in models, f"{model!r} is not listed, but {models}")

    whole = completion(client, model)
    streamed = streamed_completion(client, model)
    expect(streamed["text"] == whole["text"], f"streamed {streamed['text']!r}, at once {whole['text']!r}")
    expect(streamed["usage"] == whole["usage"], f"streamed {streamed['usage']}, at once {whole['usage']}")

    return {
        "models": models,
        "completion": whole,
        "streamed_completion": streamed,
        "chat": streamed_chat(client, model),
        "unknown_model": refusal(client, NotFoundError, model=f"no-such-{model}"),
        "bad_parameter": refusal(client, BadRequestError, model=model, temperature=OUT_OF_RANGE_TEMPERATURE),
    }


def completion(client: OpenAI, model: str) -> dict[str, Any]:
    """A greedy completion in one piece."""
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=MAX_TOKENS, temperature=0.0)
    choice = answer.choices[0]
    expect(answer.model == model, f"asked {model!r}, answered by {answer.model!r}")
    expect(choice.text.strip() != "", "the completion is empty")
    if answer.usage is None:
        raise UnexpectedAnswer("the completion has no usage")
    usage = checked_usage(answer.usage.to_dict(), choice.finish_reason)
    return {"id": answer.id, "text": choice.text, "finish_reason": choice.finish_reason, "usage": usage}


def streamed_completion(client: OpenAI, model: str) -> dict[str, Any]:
    """The same completion as a stream: pieces of text, one finish reason, then the usage without choices."""
    stream = client.completions.create(
        model=model,
        prompt=PROMPT,
        max_tokens=MAX_TOKENS,
        temperature=0.0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    ids = {chunk.id for chunk in chunks}
    expect(len(ids) == 1, f"one stream has the ids {sorted(ids)}")
    choices = [choice for chunk in chunks for choice in chunk.choices]
    pieces = [choice.text for choice in choices if choice.text]
    expect(len(pieces) > 1, f"the stream came as {len(pieces)} pieces")
    return {"id": ids.pop(), "text": "".join(pieces), "pieces": len(pieces), **stream_end(chunks)}


def streamed_chat(client: OpenAI, model: str) -> dict[str, Any] | None:
    """A streamed chat, or None when the server says that the model has no chat template."""
    try:
        stream = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Tell me a story."}],
            max_tokens=MAX_TOKENS,
            temperature=0.0,
            stream=True,
            stream_options={"include_usage": True},
        )
    except BadRequestError as refused:
        expect("chat template" in message_of(refused), f"the chat was refused with {refused}")
        return None
    chunks = list(stream)
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    text = "".join(delta.content or "" for delta in deltas)
    expect(deltas[0].role == "assistant", f"the chat's first role is {deltas[0].role!r}")
    expect(text.strip() != "", "the chat's answer is empty")
    return {"text": text, **stream_end(chunks)}


def stream_end(chunks: list[Any]) -> dict[str, Any]:
    """The finish reason and the usage of a stream, each of which must come once and in that order."""
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    usages = [chunk.usage.to_dict() for chunk in chunks if chunk.usage]
    expect(len(reasons) == 1, f"the stream has the finish reasons {reasons}")
    expect(len(usages) == 1, f"the stream has {len(usages)} usages")
    expect(chunks[-1].usage is not None and not chunks[-1].choices, "the stream does not end with its usage alone")
    return {"finish_reason": reasons[0], "usage": checked_usage(usages[0], reasons[0])}


def checked_usage(usage: dict[str, Any], finish_reason: str) -> dict[str, int]:
    """The three counts of a usage, when they agree with each other and with why the text ended."""
    prompt, made, total = (usage[key] for key in ("prompt_tokens", "completion_tokens", "total_tokens"))
    expect(prompt > 0 and 0 < made <= MAX_TOKENS, f"the usage is {usage}")
    expect(prompt + made == total, f"the usage does not add up: {usage}")
    expect(finish_reason in ("length", "stop"), f"the finish reason is {finish_reason!r}")
    expect(finish_reason == "stop" or made == MAX_TOKENS, f"ended by length after {made} of {MAX_TOKENS} tokens")
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": total}


def refusal(client: OpenAI, kind: type[APIStatusError], **parameters: Any) -> dict[str, Any]:
    """What a bad request raises: the openai package makes it from the status and the error body."""
    try:
        client.completions.create(prompt=PROMPT, max_tokens=MAX_TOKENS, **parameters)
    except kind as refused:
        expect(message_of(refused) != "", f"the error body of {parameters} has no message")
        return {"status": refused.status_code, "type": refused.type, "message": message_of(refused)}
    except APIStatusError as other:
        raise UnexpectedAnswer(f"{parameters} raised {type(other).__name__}, not {kind.__name__}: {other}") from other
    raise UnexpectedAnswer(f"{parameters} was accepted")


def message_of(error: APIStatusError) -> str:
    """The message inside OpenAI's error body; empty when the body has another shape."""
    return str(error.body.get("message", "")) if isinstance(error.body, dict) else ""


def expect(holds: bool, reason: str) -> None:
    """Ends the run with a reason when an answer is not as promised."""
    if not holds:
        raise UnexpectedAnswer(reason)


if __name__ == "__main__":
    sys.exit(main())
