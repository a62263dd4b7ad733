"""Values that mean the same in both APIs and only change their shape: usage, logprobs, citations,
image URLs, errors. Pure functions from `responses` to `chat`; `stream.py` calls them.
"""

from __future__ import annotations

import math
from typing import Any, Final

from deltawire import chat, responses

UPSTREAM_ERROR: Final = "upstream_error"
TRUNCATED: Final = "upstream_truncated"
EVENT_TOO_LARGE: Final = "event_too_large"
INVALID_RESPONSE: Final = "upstream_invalid_response"
CANCELLED: Final = "response_cancelled"

# Errors that come back however often the request is repeated, because the request is at fault.
# From the specification's ResponseErrorCode and OpenAI's error guide; anything else may pass.
_REQUEST_FAULTS: Final = frozenset(
    {
        "invalid_request_error",
        "invalid_prompt",
        "context_length_exceeded",
        "string_above_max_length",
        "unsupported_parameter",
        "unsupported_value",
        "invalid_encrypted_content",
        "model_not_found",
        "content_policy_violation",
        "image_content_policy_violation",
        "invalid_image",
        "invalid_image_format",
        "invalid_base64_image",
        "invalid_image_url",
        "invalid_image_mode",
        "image_too_large",
        "image_too_small",
        "image_parse_error",
        "image_file_too_large",
        "unsupported_image_media_type",
        "empty_image_file",
        "image_file_not_found",
        "failed_to_download_image",
        EVENT_TOO_LARGE,
        # vLLM's codes are HTTP statuses (vllm entrypoints/openai, ErrorResponse).
        "400",
        "404",
        "413",
        "422",
    }
)

# Unix seconds and token counts beyond 53 bits are no such thing, and clients in JavaScript could
# not read them.
_MAX_INTEGER: Final = 2**53

_IMAGE_SIGNATURES: Final = {"iVBOR": "png", "/9j/": "jpeg", "UklGR": "webp", "R0lGO": "gif"}


def count(value: int | float | None) -> int | None:
    """A sane non-negative integer, or None."""
    if value is None or not 0 <= value < _MAX_INTEGER:
        return None
    return int(value)


def usage(given: responses.TokenUsage) -> chat.Usage | None:
    """Usage, or None unless two of the three totals are there to tell all of them."""
    prompt, completion, total = map(
        count, (given.input_tokens, given.output_tokens, given.total_tokens)
    )
    if total is None and prompt is not None and completion is not None:
        total = prompt + completion
    if prompt is None and total is not None and completion is not None:
        prompt = count(total - completion)
    if completion is None and total is not None and prompt is not None:
        completion = count(total - prompt)
    if prompt is None or completion is None or total is None:
        return None
    result = chat.Usage(prompt, completion, total)
    if (details := given.input_tokens_details) is not None:
        cached, written = count(details.cached_tokens), count(details.cache_write_tokens)
        if cached is not None or written is not None:
            result.prompt_tokens_details = chat.PromptTokensDetails(cached, written)
    if (spent := given.output_tokens_details) is not None:
        reasoning = count(spent.reasoning_tokens)
        if reasoning is not None:
            result.completion_tokens_details = chat.CompletionTokensDetails(reasoning)
    return result


def logprobs(given: list[responses.TokenLogprob] | None) -> list[chat.TokenLogprob]:
    """Logprobs with `bytes` filled in; an entry without token or finite logprob is left out."""
    result = []
    for entry in given or ():
        if (place := _top_logprob(entry)) is not None:
            others = [top for other in entry.top_logprobs or () if (top := _top_logprob(other))]
            result.append(chat.TokenLogprob(place.token, place.logprob, place.bytes, others))
    return result


def _top_logprob(
    given: responses.TokenLogprob | responses.TopLogprob,
) -> chat.TopLogprob | None:
    token, logprob = given.token, given.logprob
    if token is None or logprob is None or not math.isfinite(logprob):
        return None
    stated = given.bytes
    if stated is None or not all(0 <= byte < 256 for byte in stated):
        stated = list(token.encode())
    return chat.TopLogprob(token, logprob, stated)


def citation(given: responses.Annotation, offset: int) -> chat.UrlCitation | None:
    """A citation with its indexes moved by `offset` characters; None for other annotations."""
    if given.type != "url_citation" or given.url is None:
        return None
    start, end = count(given.start_index), count(given.end_index)
    return chat.UrlCitation(
        given.url,
        given.title,
        None if start is None else start + offset,
        None if end is None else end + offset,
    )


def image_url(result: str, output_format: str | None) -> str:
    """A URL for an image given in base64, or the URL it already is."""
    if result.startswith(("data:", "http://", "https://")):
        return result
    if not output_format:
        signatures = _IMAGE_SIGNATURES.items()
        output_format = next((name for sign, name in signatures if result.startswith(sign)), "png")
    return f"data:image/{output_format};base64,{result}"


def failure(error: Any, event: responses.StreamEvent | None = None) -> chat.Failure:
    """The failure in an error of any of the shapes in use.

    `error` is the object of a nested error or of a failed response, or a mere string; `event` is
    an `error` event, which in the specification has the same fields itself.
    """
    given: dict[str, Any] = {"message": error} if isinstance(error, str) else {}
    if isinstance(error, dict):
        given = error
    elif event is not None and not given:
        given = {"message": event.message, "code": event.code, "param": event.param}
    code = _text(given.get("code"))
    kind = _text(given.get("type"))
    return chat.Failure(
        message=_text(given.get("message")) or f"the upstream reported an error ({code or kind})",
        type=kind or UPSTREAM_ERROR,
        param=_text(given.get("param")),
        code=code,
        retryable=not {code, kind} & _REQUEST_FAULTS,
    )


def _text(value: Any) -> str | None:
    """A string, or the decimal form of a numeric code (OpenRouter's are HTTP statuses)."""
    if isinstance(value, str):
        return value
    number = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if number and abs(value) < _MAX_INTEGER else None
