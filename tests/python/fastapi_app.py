"""A stock FastAPI app with two of OpenAI's APIs, and no tracing of its own: uvicorn fastapi_app:app."""

import json
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

WORDS = ("a", "city", "by", "the", "sea")
PROMPT_TOKENS = 4

app = FastAPI()


class CompletionRequest(BaseModel):
    """What is read of a request for a completion; the rest is ignored, as FastAPI does."""

    model: str
    prompt: str


class ChatRequest(BaseModel):
    """What is read of a request for a chat."""

    model: str
    messages: list[dict[str, str]]
    stream: bool = False


def usage() -> dict[str, int]:
    """What every request costs."""
    return {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": len(WORDS)}


@app.get("/health")
async def health() -> dict[str, str]:
    """Says that it serves."""
    return {"status": "ok"}


@app.post("/v1/completions")
async def completions(request: CompletionRequest) -> dict:
    """The same completion for every prompt."""
    choice = {"index": 0, "text": " ".join(WORDS), "finish_reason": "stop"}
    return {"id": "cmpl-1", "model": request.model, "choices": [choice], "usage": usage()}


async def events(model: str) -> AsyncIterator[str]:
    """A chat's answer, word by word, with its usage."""
    for word in WORDS:
        choice = {"index": 0, "delta": {"content": word}}
        yield f"data: {json.dumps({'id': 'chat-1', 'model': model, 'choices': [choice]})}\n\n"
    yield f"data: {json.dumps({'id': 'chat-1', 'model': model, 'choices': [], 'usage': usage()})}\n\n"
    yield "data: [DONE]\n\n"


@app.post("/v1/chat/completions")
async def chat(request: ChatRequest) -> StreamingResponse:
    """A stream, whatever was asked."""
    return StreamingResponse(events(request.model), media_type="text/event-stream")
