"""
Which fields a bound admits in a request of each format, because they cost nothing beyond their bytes.

A field of a provider may raise a rate, or give the model more to read than the request has, and new ones come every
month. So a bound refuses each field that is not listed here, unless the operator of the upstream allows it. Fields that
change a price are listed, too: :mod:`~enforcement.metering.bound` looks at their values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from enforcement.metering.formats.bedrock import invoke_format


class Fields:
    """
    The fields that an object may have.

    Attributes:
        names: All of them.
        nested: Those whose value is an object, or an array of objects, with fields that are listed, too. The value of
            any other may be anything.
    """

    __slots__ = ("names", "nested")

    def __init__(self, names: str = "", **nested: Fields) -> None:
        self.nested: Mapping[str, Fields] = nested
        self.names = frozenset((*names.split(), *nested))

    def __or__(self, other: Fields) -> Fields:
        return Fields(" ".join(self.names | other.names), **{**self.nested, **other.nested})


_HOLDERS: Final = frozenset((list, dict))


def unlisted(value: dict[str, object], fields: Fields) -> list[str]:
    """
    Return the way to each field of a request that is not listed, such as ``messages.note``.

    A field whose value is null counts as missing.

    Args:
        value: The request.
        fields: What its format lists.
    """
    result: list[str] = []
    waiting: list[tuple[object, Fields, str]] = [(value, fields, "")]
    for item, listed, way in waiting:
        names, nested = listed.names, listed.nested
        for one in item if type(item) is list else (item,):
            if type(one) is not dict:
                if type(one) is list:
                    waiting.append((one, listed, way))
                continue
            if not one.keys() <= names:
                result += [f"{way}{name}" for name in one.keys() - names if one[name] is not None]
            if not nested or _HOLDERS.isdisjoint(map(type, one.values())):
                continue  # as most messages are
            for name, inner in one.items():
                if name in nested and type(inner) in _HOLDERS:
                    waiting.append((inner, nested[name], f"{way}{name}."))
    return result


def _snake(name: str) -> str:
    return re.sub("[A-Z]", lambda found: f"_{found[0].lower()}", name)


def _google(names: str = "", **nested: Fields) -> Fields:
    """Return fields with each name also in snake_case, as Google's APIs take them."""
    both = {spelling: inner for name, inner in nested.items() for spelling in (name, _snake(name))}
    return Fields(" ".join([*names.split(), *map(_snake, names.split())]), **both)


_CACHED: Final = Fields("prompt_cache_breakpoint", cache_control=Fields("type ttl scope"))
_REASONING: Final = Fields("effort summary generate_summary context mode max_tokens exclude enabled")
_COMMON: Final = Fields(
    "model stream temperature top_p top_k top_a min_p stop seed random_seed user user_id request_id session_id"
    " metadata store service_tier presence_penalty frequency_penalty repetition_penalty length_penalty logit_bias"
    " logprobs top_logprobs stop_token_ids min_tokens ignore_eos skip_special_tokens guided_json guided_regex"
    " guided_choice guided_grammar safety_identifier prompt_cache_key prompt_cache_retention prompt_cache_options"
    # Those of routers: which provider of the same model answers, and settings that the owner of the account has saved.
    " provider preset route models fallbacks fallback_models context_window_fallbacks content_policy_fallbacks"
    " transforms usage moderation client_metadata",
    stream_options=Fields("include_usage include_obfuscation continuous_usage_stats"),
)
_GOOGLE_EXTRA: Final = _google(
    "cachedContent safetySettings labels", thinkingConfig=_google("includeThoughts thinkingBudget thinkingLevel")
)
_SCHEMA_TOOL: Final = _CACHED | Fields(
    "type name description parameters strict input_schema input_examples allowed_callers format defer_loading"
    " eager_input_streaming"
)

_CHAT_PART: Final = _CACHED | Fields(
    "type text refusal thinking signature data annotations citations id",
    image_url=Fields("url detail format"),
    input_audio=Fields("data format"),
    audio_url=Fields("url"),
    video_url=Fields("url"),
    file=Fields("file_data file_id filename format"),
)
_CHAT_CALL: Final = Fields(
    "id type index extra_content",
    function=Fields("name arguments thought_signature"),
    custom=Fields("name input"),
)
CHAT: Final = _COMMON | Fields(
    "n max_tokens max_completion_tokens tool_choice parallel_tool_calls functions function_call reasoning_effort"
    " verbosity modalities audio prediction deferred reasoning_format include_reasoning reasoning_split thinking"
    " thinking_budget clear_thinking enable_thinking chat_template_kwargs add_generation_prompt safe_prompt prompt_mode"
    " do_sample tool_stream data_sources dataSources plugins search_parameters web_search_options",
    messages=_CACHED
    | Fields(
        "role name tool_call_id refusal reasoning reasoning_content reasoning_details annotations prefix partial",
        content=_CHAT_PART,
        tool_calls=_CHAT_CALL,
        function_call=Fields("name arguments"),
        audio=Fields("id"),
        thinking_blocks=_CHAT_PART,
    ),
    tools=_SCHEMA_TOOL | Fields(function=_SCHEMA_TOOL, custom=_SCHEMA_TOOL),
    reasoning=_REASONING,
    response_format=Fields("type json_schema schema"),
    extra_body=_GOOGLE_EXTRA | Fields(google=_GOOGLE_EXTRA),
    google=_GOOGLE_EXTRA,
    cache_control=Fields("type ttl scope"),
)
COMPLETION: Final = _COMMON | Fields("n prompt suffix max_tokens best_of echo")
EMBEDDING: Final = _COMMON | Fields(
    "input encoding_format dimensions input_type truncate truncation output_dimension output_dtype task late_chunking"
    " normalized embedding_type"
)

_RESPONSE_PART: Final = _CACHED | Fields(
    "type text annotations logprobs refusal image_url detail file_id file_data file_url filename",
    input_audio=Fields("data format"),
)
RESPONSE: Final = _COMMON | Fields(
    "instructions max_output_tokens max_tool_calls parallel_tool_calls previous_response_id conversation prompt"
    " truncation include background tool_choice",
    input=_RESPONSE_PART
    | Fields(
        "role id status phase call_id name namespace arguments input action actions code queries results outputs"
        " operation encrypted_content execution server_label error approval_request_id approve reason container_id"
        " result pending_safety_checks acknowledged_safety_checks max_output_length created_by tools",
        content=_RESPONSE_PART,
        summary=_RESPONSE_PART,
        output=_RESPONSE_PART,
    ),
    tools=_SCHEMA_TOOL,
    reasoning=_REASONING,
    text=Fields("verbosity", format=Fields("type name description schema strict")),
)

_BLOCK: Final = _CACHED | Fields(
    "type text thinking signature data title context id name input tool_use_id is_error caller tool tool_name"
    " server_name encrypted_content encrypted_index page_age url citations file_id retrieved_at",
    source=Fields("type media_type data url file_id content"),
    content=_CACHED
    | Fields(
        "type text title url source content citations encrypted_content page_age tool_name tool_references error_code"
        " file_id stdout stderr return_code encrypted_stdout retrieved_at stop_reason data media_type",
    ),
)
MESSAGE: Final = Fields(
    "model max_tokens temperature top_p top_k stop_sequences stream metadata tool_choice service_tier speed"
    " inference_geo anthropic_version anthropic_beta betas mcp_servers container context_management compaction models"
    " fallbacks",
    system=_BLOCK,
    messages=Fields("role id type", content=_BLOCK),
    tools=_SCHEMA_TOOL | Fields("max_characters"),
    thinking=Fields("type budget_tokens display"),
    output_config=Fields("effort", format=Fields("type schema name description strict")),
    output_format=Fields("type schema name description strict"),
    cache_control=Fields("type ttl scope"),
)

_DATA: Final = _google("mimeType data fileUri displayName")
_GEMINI_PART: Final = _google(
    "text thought thoughtSignature partMetadata",
    inlineData=_DATA,
    fileData=_DATA,
    functionCall=_google("id name args willContinue partialArgs"),
    functionResponse=_google(
        "id name response willContinue scheduling", parts=_google(inlineData=_DATA, fileData=_DATA)
    ),
    executableCode=_google("id language code"),
    codeExecutionResult=_google("id outcome output"),
    videoMetadata=_google("startOffset endOffset"),
    mediaResolution=_google("level"),
)
_CONTENT: Final = _google("role", parts=_GEMINI_PART)
GEMINI: Final = _google(
    "model safetySettings cachedContent labels modelArmorConfig serviceTier store",
    contents=_CONTENT,
    systemInstruction=_CONTENT,
    tools=_google(
        "googleSearch googleSearchRetrieval codeExecution urlContext",
        functionDeclarations=_google(
            "name description parameters parametersJsonSchema response responseJsonSchema behavior"
        ),
    ),
    toolConfig=_google(
        "functionCallingConfig includeServerSideToolInvocations", retrievalConfig=_google("latLng languageCode")
    ),
    generationConfig=_google(
        "candidateCount maxOutputTokens temperature topP topK seed stopSequences responseMimeType responseSchema"
        " responseJsonSchema responseModalities presencePenalty frequencyPenalty responseLogprobs logprobs"
        " enableEnhancedCivicAnswers speechConfig mediaResolution audioTimestamp",
        thinkingConfig=_google("includeThoughts thinkingBudget thinkingLevel"),
        imageConfig=_google("aspectRatio imageSize"),
    ),
)

_SOURCE: Final = Fields("bytes s3Location text content")
_BEDROCK_MEDIA: Final = Fields("format name context", source=_SOURCE)
_CONVERSE_BLOCK: Final = Fields(
    "text json type role toolUse citationsContent searchResult audio",
    image=_BEDROCK_MEDIA,
    video=_BEDROCK_MEDIA,
    document=_BEDROCK_MEDIA | Fields("citations"),
    guardContent=Fields(text=Fields("text qualifiers"), image=_BEDROCK_MEDIA),
    reasoningContent=Fields("redactedContent", reasoningText=Fields("text signature")),
    cachePoint=Fields("type ttl"),
    toolResult=Fields(
        "toolUseId status type",
        content=Fields("text json searchResult", image=_BEDROCK_MEDIA, video=_BEDROCK_MEDIA, document=_BEDROCK_MEDIA),
    ),
)
_INFERENCE: Final = Fields(
    "maxTokens max_new_tokens max_tokens max_completion_tokens max_gen_len temperature topP top_p topK top_k"
    " stopSequences"
)
CONVERSE: Final = Fields(
    "schemaVersion guardrailConfig additionalModelResponseFieldPaths requestMetadata promptVariables stream",
    system=_CONVERSE_BLOCK,
    messages=Fields("role", content=_CONVERSE_BLOCK),
    inferenceConfig=_INFERENCE,
    toolConfig=Fields(
        "toolChoice",
        tools=Fields(toolSpec=Fields("name description inputSchema strict"), cachePoint=Fields("type ttl")),
    ),
    outputConfig=Fields("textFormat"),
    performanceConfig=Fields("latency"),
    serviceTier=Fields("type"),
    additionalModelRequestFields=_INFERENCE
    | Fields(
        "reasoning_config reasoning_effort reasoningConfig thinking anthropic_beta tools mcp_servers container"
        " context_management",
        inferenceConfig=_INFERENCE,
    ),
)
# Those of models with one prompt, and of models that embed.
PROMPT: Final = Fields(
    "prompt temperature top_p top_k topP topK max_gen_len max_tokens max_tokens_to_sample maxTokens stop"
    " stop_sequences stopSequences anthropic_version"
)
TITAN: Final = Fields("inputText", textGenerationConfig=Fields("maxTokenCount temperature topP stopSequences"))
BEDROCK_EMBEDDING: Final = Fields(
    "inputText inputImage dimensions normalize embeddingTypes texts images input_type truncate embedding_types"
    " output_dimension max_tokens taskType schemaVersion embeddingConfig",
    inputs=Fields(content=_CHAT_PART),
    singleEmbeddingParams=Fields(
        "embeddingPurpose embeddingDimension", text=Fields("truncationMode value"), image=_BEDROCK_MEDIA
    ),
)
COHERE_CHAT: Final = Fields(
    "model message preamble chat_history documents tools tool_results response_format connectors conversation_id stream"
    " temperature p k max_tokens max_input_tokens stop_sequences seed frequency_penalty presence_penalty raw_prompting"
    " prompt_truncation citation_quality force_single_step safety_mode return_prompt logprobs priority"
)
COHERE_MESSAGES: Final = Fields(
    "model stream documents citation_options response_format safety_mode max_tokens stop_sequences temperature seed"
    " frequency_penalty presence_penalty k p return_prompt logprobs tool_choice strict_tools raw_prompting priority"
    " thinking",
    messages=Fields(
        "role tool_call_id tool_plan citations", content=_CHAT_PART | Fields("document"), tool_calls=_CHAT_CALL
    ),
    tools=_SCHEMA_TOOL | Fields(function=_SCHEMA_TOOL),
)
COHERE_EMBEDDING: Final = Fields(
    "model texts images input_type embedding_types truncate max_tokens output_dimension priority",
    inputs=Fields(content=_CHAT_PART),
)
_GEMINI_EMBEDDED: Final = _google("model taskType title outputDimensionality autoTruncate", content=_CONTENT)
GEMINI_EMBEDDING: Final = _google(
    "model taskType title outputDimensionality autoTruncate", content=_CONTENT, requests=_GEMINI_EMBEDDED
)


def fields_of(format: str, body: dict[str, object]) -> Fields:
    """Return the fields that the format of a request lists. Bedrock's Invoke takes the format of each model."""
    return LISTED[invoke_format(body) if format == "bedrock-invoke" else format]


LISTED: Final[Mapping[str, Fields]] = {
    "gemini-embeddings": GEMINI_EMBEDDING,
    "openai-compact": RESPONSE,
    "openai-images": Fields(),
    "bedrock-converse": CONVERSE,
    "bedrock-embeddings": BEDROCK_EMBEDDING,
    "bedrock-titan": TITAN,
    "bedrock-prompt": PROMPT,
    "cohere-chat-v1": COHERE_CHAT,
    "cohere-chat-v2": COHERE_MESSAGES,
    "cohere-embed": COHERE_EMBEDDING,
    "openai-chat": CHAT,
    "openai-responses": RESPONSE,
    "openai-completions": COMPLETION,
    "openai-embeddings": EMBEDDING,
    "anthropic-messages": MESSAGE,
    "gemini": GEMINI,
}
"""The fields of each format, also of those that only Bedrock's Invoke has."""
