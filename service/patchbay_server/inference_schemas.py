"""The bodies of answers of inference, for OpenAPI, as `answer_schemas` has the others. Knows no route."""

from __future__ import annotations

from typing import Literal

from patchbay_server.answer_schemas import About, Answer

Finish = Literal["stop", "length"]


class Usage(Answer):
    prompt_tokens: int
    total_tokens: int


class Class(Answer):
    index: int
    label: str
    probabilities: dict[str, float]


class Classes(Answer):
    object: Literal["list"]
    model: str
    data: list[Class]
    patchbay: About


class Embedding(Answer):
    """`embedding` is text with `encoding_format` at `base64`."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Embeddings(Answer):
    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: Usage
    patchbay: About


class Timings(Answer):
    queue_ms: float | None
    prepare_ms: float | None
    first_token_ms: float | None
    total_ms: float | None


class GenerationAbout(About):
    timings: Timings


class GenerationUsage(Usage):
    completion_tokens: int


class Logprobs(Answer):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Answer):
    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: Finish


class Completion(Answer):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: GenerationUsage
    patchbay: GenerationAbout


class TopToken(Answer):
    token: str
    logprob: float
    bytes: list[int] | None


class ChatToken(TopToken):
    top_logprobs: list[TopToken]


class ChatLogprobs(Answer):
    content: list[ChatToken]
    refusal: None


class Message(Answer):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Answer):
    index: int
    message: Message
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatCompletion(Answer):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: GenerationUsage
    patchbay: GenerationAbout


class Recorded(Answer):
    """A recording as it was read; `label` and `probabilities` are means over all windows."""

    seconds: float
    sfreq: float
    channels: list[str]
    trials: int
    windows: int


class RecordedClass(Recorded):
    label: str
    probabilities: dict[str, float]


class Rejected(Answer):
    """`trial` is there where there are several, here and in windows."""

    trial: int | None = None
    t0: float
    reason: str


class Preprocessing(Answer):
    window_s: float
    stride_s: float
    done: list[str]
    dropped: dict[str, str]
    rejected: list[Rejected]
    warnings: list[str]
    positions_mm: dict[str, list[float]]


class WindowClass(Class):
    trial: int | None = None
    t0: float
    t1: float


class WindowEmbedding(Answer):
    index: int
    trial: int | None = None
    t0: float
    t1: float
    embedding: list[float] | str


class EegClasses(Answer):
    object: Literal["list"]
    model: str
    data: list[WindowClass]
    recording: RecordedClass
    preprocessing: Preprocessing
    patchbay: About


class EegEmbeddings(Answer):
    object: Literal["list"]
    model: str
    data: list[WindowEmbedding]
    recording: Recorded
    preprocessing: Preprocessing
    patchbay: About
