"""How providers deviate from the specification when they write a stream, as data.

`Habits()` is the specification to the letter; every field is one deviation that was recorded or
reported. Nothing here acts; `writer` reads it. Which habits can be read together, without guessing,
is said in `strategies.readable`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """One provider's ways. The comments name who does it.

    Frames, that is bytes:
        event_lines: `event:` lines. Without: Bedrock, OpenRouter.
        type_in_json: the payload has its `type`. Without, the event line alone has it.
        type_last: `type` is the payload's last key. Bedrock (sorted keys).
        spaced_json: a blank after the payload's colons and commas, as Python writes JSON.
        ascii: everything outside ASCII escaped.
        space_after_colon: `data: x` rather than `data:x`.
        multiline_data: the payload over several `data:` lines.
        newline, bom: as the event-stream standard allows.
        comments: a comment first and after every third event. OpenRouter.
        keepalives: after every third event a `keepalive` event with JSON (OpenAI), or a bare
            `event: ping` without data.
        done_marker: `data: [DONE]` at the end. OpenRouter.
        final_blank_line: the last frame ends with its blank line. Relays drop it.
    Numbers and names:
        sequence_numbers, sequence_start: OpenAI had none until 2025; resumed streams start above 0.
        opening: the events before the first item. Queued first: OpenAI in background mode; none at
            all: resumed streams and gateways.
        response_ids: the same, another in every event (GitHub Copilot), or none.
        float_created: `created_at` is a float. Bedrock.
        item_ids: the same, another in every event (GitHub Copilot), absent, or "" (vLLM).
        output_index: the same, one more on every `.done` event (vLLM), or absent (llama.cpp).
        content_index: from 0 in every item; rising with every delta (older vLLM); running on over
            all items (Bedrock); absent (llama.cpp).
        reasoning_events: openai; open_responses: `response.reasoning.delta` for raw text; older:
            `response.reasoning_summary.delta` for summaries as well.
        reasoning_parts: raw text is announced by `content_part` (DeepSeek, OpenRouter) or
            `reasoning_part` (vLLM, Bedrock) events.
    What is said where:
        announce_items: `output_item.added` events.
        announce_parts: `content_part` and `reasoning_summary_part` events.
        close_items: `output_item.done` at once, after the last item (OpenRouter), never (OpenAI,
            mcp_list_tools).
        text: messages and reasoning in deltas and all later forms; from `.done` on; from
            `output_item.done` on; or only in the terminal event, without any event before it.
        arguments: those of tool calls, as text; one_delta: in a single delta (xAI); done: from
            `.done` on (LM Studio); added: whole in `output_item.added` (xAI until 2026).
        done_names: `function_call_arguments.done` has `name`. The specification wants it, no
            recording has it.
        logprob_bytes: the logprobs of deltas have `bytes`, as recorded but not specified.
        empty_deltas: an empty delta before every delta.
        split_surrogates: characters beyond the BMP are split over two deltas, half a pair each;
            implies `ascii`.
        obfuscation: the padding field of OpenAI's deltas.
        interleave: items that a reader can tell apart are open at once, one event of each in turn.
    The terminal event:
        terminal_event: named by the status, or one name for every status, which then contradicts
            the name wherever the answer did not complete.
        terminal_output: the response's `output`. Empty: Codex through CLIProxy.
        terminal_ids: item ids as in the stream, others (OpenRouter), or absent (CLIProxy).
        new_call_ids: the terminal event has other call ids than the stream. vLLM (issue 47916).
    """

    event_lines: bool = True
    type_in_json: bool = True
    type_last: bool = False
    spaced_json: bool = False
    ascii: bool = False
    space_after_colon: bool = True
    multiline_data: bool = False
    newline: Literal["\n", "\r\n", "\r"] = "\n"
    bom: bool = False
    comments: bool = False
    keepalives: Literal["none", "json", "bare"] = "none"
    done_marker: bool = False
    final_blank_line: bool = True

    sequence_numbers: bool = True
    sequence_start: int = 0
    opening: tuple[Literal["queued", "created", "in_progress"], ...] = ("created", "in_progress")
    response_ids: Literal["stable", "rotating", "absent"] = "stable"
    float_created: bool = False
    item_ids: Literal["stable", "rotating", "absent", "empty"] = "stable"
    output_index: Literal["stable", "shifted_on_done", "absent"] = "stable"
    content_index: Literal["stable", "rising", "running", "absent"] = "stable"
    reasoning_events: Literal["openai", "open_responses", "older"] = "openai"
    reasoning_parts: Literal["content_part", "reasoning_part"] = "content_part"

    announce_items: bool = True
    announce_parts: bool = True
    close_items: Literal["at_once", "late", "never"] = "at_once"
    text: Literal["deltas", "done", "item_done", "terminal"] = "deltas"
    arguments: Literal["deltas", "one_delta", "done", "item_done", "added"] = "deltas"
    done_names: bool = True
    logprob_bytes: bool = True
    empty_deltas: bool = False
    split_surrogates: bool = False
    obfuscation: bool = False
    interleave: bool = False

    terminal_event: Literal["by_status", "response.completed", "response.done"] = "by_status"
    terminal_output: Literal["whole", "empty", "absent"] = "whole"
    terminal_ids: Literal["same", "fresh", "absent"] = "same"
    new_call_ids: bool = False


# Recorded streams have `obfuscation`; what they leave out of the specification (the name on
# arguments.done) is left in, so that this preset validates.
OPENAI: Final = Habits(obfuscation=True)

# Recordings of Azure OpenAI: OpenAI's own stream.
AZURE: Final = Habits(obfuscation=True, done_names=False)

# Recordings of grok-3-mini to grok-4.3: arguments in one delta.
XAI: Final = Habits(done_names=False, arguments="one_delta")

# vercel/ai's recording github-copilot-id-rotation.
COPILOT: Final = Habits(done_names=False, item_ids="rotating", response_ids="rotating")

# vercel/ai's recordings lmstudio-basic, lmstudio-tool-call: arguments only in `.done`.
LMSTUDIO: Final = Habits(done_names=False, arguments="done")

# pydantic-ai's recording raw_cot_stream_openrouter: the reasoning item is closed last.
OPENROUTER: Final = Habits(
    event_lines=False,
    comments=True,
    done_marker=True,
    done_names=False,
    close_items="late",
    terminal_ids="fresh",
)

# ruby_llm's recording of the Bedrock Mantle surface (gpt-oss, vLLM behind it).
BEDROCK: Final = Habits(
    event_lines=False,
    type_last=True,
    float_created=True,
    content_index="running",
    reasoning_parts="reasoning_part",
    done_names=False,
)

# pydantic-ai's recordings of deepseek-v4-flash; every message has `phase: final_answer`.
DEEPSEEK: Final = Habits(done_names=False)

# Older vLLM, from pull requests 24938, 31761, 35184, 38227 and issue 47916; not recorded.
VLLM: Final = Habits(
    content_index="rising",
    output_index="shifted_on_done",
    reasoning_parts="reasoning_part",
    done_names=False,
    new_call_ids=True,
)

PRESETS: Final[Mapping[str, Habits]] = MappingProxyType(
    {
        "openai": OPENAI,
        "azure": AZURE,
        "xai": XAI,
        "copilot": COPILOT,
        "lmstudio": LMSTUDIO,
        "openrouter": OPENROUTER,
        "bedrock": BEDROCK,
        "deepseek": DEEPSEEK,
        "vllm": VLLM,
    }
)
