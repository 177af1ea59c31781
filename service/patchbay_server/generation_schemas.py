"""Bodies of requests for generated text: completions and chats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StrictBool, StrictInt, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from patchbay_server.schemas import MAX_INPUTS, Body, ModelRequest, Number, Text

MAX_LISTED = 1024  # tokens that one request says something of
StopText = Annotated[str, Field(min_length=1, max_length=1000)]
TokenId = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]
Bias = Annotated[Number, Field(ge=-100, le=100)]
Penalty = Annotated[Number, Field(ge=-2, le=2)]
Tokens = Annotated[list[StrictInt], Field(min_length=1)]
Prompts = Annotated[list[Text] | list[Tokens], Field(min_length=1, max_length=MAX_INPUTS)]


class StreamOptions(Body):
    """`include_usage`: one more chunk before the end, with the usage of all answers."""

    include_usage: StrictBool = False
    include_obfuscation: StrictBool = False  # no padding is ever sent


Limit = Annotated[StrictInt, Field(ge=1, le=1 << 20)]


class GenerationRequest(ModelRequest):
    """What a completion and a chat have in common. `neutral` are the fields of OpenAI's that this server knows and does
    not act on, with the values under which that makes no difference: any other is refused.
    """

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]]

    temperature: Annotated[Number, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[Number, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[StrictInt, Field(ge=-1, le=1 << 20)] = 0
    min_p: Annotated[Number, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[Number, Field(ge=0.01, le=100)] = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: Annotated[dict[TokenId, Bias], Field(max_length=MAX_LISTED)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    stop_token_ids: Annotated[list[Annotated[StrictInt, Field(ge=0)]], Field(max_length=MAX_LISTED)] = []
    ignore_eos: StrictBool = False
    seed: Annotated[StrictInt, Field(ge=0, lt=1 << 63)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=128)] = 1
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, given: Any) -> Any:
        """As in OpenAI's API, whose clients send it for what was not set."""
        if not isinstance(given, dict):
            return given
        optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
        return {name: value for name, value in given.items() if value is not None or name not in optional}

    @field_validator("stream_options")
    @classmethod
    def _options_of_a_stream(cls, value: StreamOptions, info: ValidationInfo) -> StreamOptions:
        if not info.data.get("stream"):
            raise PydanticCustomError("stream_only", "this goes with 'stream': true")
        return value


class CompletionsRequest(GenerationRequest):
    neutral = {"suffix": (None,)}

    prompt: Text | Tokens | Prompts
    echo: StrictBool = False
    max_tokens: Annotated[StrictInt, Field(ge=0, le=1 << 20)] = 16
    logprobs: Annotated[StrictInt, Field(ge=0, le=5)] | None = None
    best_of: StrictInt | None = None
    suffix: str | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _all_of_one_kind(cls, given: Any) -> Any:
        """What pydantic says of a union is what it has against each member of the union."""
        kinds = [type(item) for item in given] if isinstance(given, list) else []
        odd = next(
            (index for index, kind in enumerate(kinds) if kind not in (str, int, list) or kind != kinds[0]), None
        )
        if odd is not None or not isinstance(given, str | list):
            where = "" if odd is None else f"item {odd} is none of these, or not as those before it: "
            what = "give a text, a list of token ids, or a list of texts or of such lists"
            raise PydanticCustomError("prompt_kind", "{where}{what}", {"where": where, "what": what})
        return given

    @field_validator("max_tokens")
    @classmethod
    def _nothing_but_the_prompt(cls, value: int, info: ValidationInfo) -> int:
        if value == 0 and not info.data.get("echo"):
            raise PydanticCustomError("echo_only", "0 goes with 'echo': true, which makes the prompt the answer")
        return value


class TextPart(Body):
    type: Literal["text"]
    text: Text


class ChatMessage(Body):
    """What a chat has had so far. The last five fields are those of an answer that a client may send back; only their
    empty values are taken.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart]
    name: Annotated[str, Field(max_length=1000)] | None = None
    tool_call_id: Annotated[str, Field(max_length=1000)] | None = None
    tool_calls: Any = None
    function_call: Any = None
    refusal: Any = None
    audio: Any = None
    annotations: Any = None


class ChatRequest(GenerationRequest):
    neutral = {
        "tools": (None, []),
        "tool_choice": (None, "none", "auto"),
        "parallel_tool_calls": (None, True, False),
        "functions": (None, []),
        "function_call": (None, "none", "auto"),
        "response_format": (None, {"type": "text"}),
        "modalities": (None, ["text"]),
        "audio": (None,),
        "prediction": (None,),
        "reasoning_effort": (None,),
        "verbosity": (None,),
        "web_search_options": (None,),
        "service_tier": (None, "auto", "default"),
        "store": (None, False),
        "metadata": (None, {}),
        "moderation": (None,),
    }

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_INPUTS)]
    max_completion_tokens: Limit | None = None
    max_tokens: Limit | None = None
    logprobs: StrictBool = False
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    prompt_cache_key: Any = None  # hints for a cache that is shared by recipe, and who asks: not looked at
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    moderation: Any = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None
    service_tier: Any = None
    store: Any = None
    metadata: Any = None

    @field_validator("top_logprobs")
    @classmethod
    def _beside_logprobs(cls, value: int, info: ValidationInfo) -> int:
        if not info.data.get("logprobs"):
            raise PydanticCustomError("logprobs_only", "this goes with 'logprobs': true")
        return value
