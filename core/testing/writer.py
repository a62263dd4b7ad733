"""Writes an `Answer` as a Responses stream, in the manner of one provider.

An item is one form, the finished one; its announcement is the same form emptied, and its events
lead from the one to the other. Where a provider deviates is asked of `Habits` at the place where
the deviation shows. Called by users' tests, the benchmarks, the demo and `strategies`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import Any, Final, Protocol, TypeAlias

from deltawire.testing.answer import (
    Answer,
    Cancelled,
    Completed,
    CustomToolCall,
    ErrorEvent,
    Failed,
    FunctionCall,
    HostedCall,
    Image,
    Incomplete,
    Item,
    Message,
    Part,
    Reasoning,
    Text,
    Truncated,
    UrlCitation,
    words,
)
from deltawire.testing.habits import OPENAI, Habits
from deltawire.testing.hosted import HOSTED

Event: TypeAlias = dict[str, Any]

# Deltas cut by a generator are 1 to 8 characters, the length of model tokens.
_LONGEST_CUT: Final = 8

_EMPTY: Final[Event] = {
    "status": "in_progress",
    "content": [],
    "summary": [],
    "queries": [],
    "annotations": [],
    "logprobs": [],
    "text": "",
    "refusal": "",
    "arguments": "",
    "input": "",
    "code": "",
    "output": None,
    "result": None,
}

_ASTRAL: Final = re.compile("[\U00010000-\U0010ffff]")


class Rng(Protocol):
    """Where choices come from, integers from 0 to `stop` - 1: `random.Random` fits."""

    def randrange(self, stop: int, /) -> int: ...


def write_events(answer: Answer, habits: Habits = OPENAI, rng: Rng | None = None) -> list[Event]:
    """The events of the stream, as objects; texts in deltas are cut by `rng`, else word by word.

    With `split_surrogates` deltas hold lone surrogates, which JSON can only write escaped.
    """
    return _Stream(answer, habits, rng).events()


def write_frames(answer: Answer, habits: Habits = OPENAI, rng: Rng | None = None) -> list[bytes]:
    """The frames of the stream: one per event, comment, bare keepalive, BOM and `[DONE]`."""
    end = habits.newline * 2
    frames = [": PROCESSING" + end] if habits.comments else []
    for number, event in enumerate(write_events(answer, habits, rng), 1):
        frames.append(_frame(event, habits) + end)
        if number % 3 == 0:
            frames += [": PROCESSING" + end] if habits.comments else []
            frames += ["event: ping" + end] if habits.keepalives == "bare" else []
    if habits.done_marker:
        frames.append("data: [DONE]" + end)
    if not habits.final_blank_line:
        frames[-1:] = [frame.removesuffix(habits.newline) for frame in frames[-1:]]
    if habits.bom:
        frames.insert(0, "\ufeff")
    return [frame.encode() for frame in frames]


def write_stream(answer: Answer, habits: Habits = OPENAI, rng: Rng | None = None) -> bytes:
    """The body of the HTTP response."""
    return b"".join(write_frames(answer, habits, rng))


def write_response(answer: Answer) -> Event:
    """The Response object, as the same request gives it without streaming."""
    return _response(answer, _status(answer), _output(answer))


def _frame(event: Event, habits: Habits) -> str:
    payload = event if habits.type_in_json else {k: v for k, v in event.items() if k != "type"}
    data = json.dumps(
        payload,
        ensure_ascii=habits.ascii or habits.split_surrogates,
        indent=1 if habits.multiline_data else None,
        separators=(", ", ": ") if habits.spaced_json else (",", ":"),
    )
    blank = " " if habits.space_after_colon else ""
    lines = [f"event:{blank}{event['type']}"] if habits.event_lines else []
    lines += [f"data:{blank}{line}" for line in data.split("\n")]
    return habits.newline.join(lines)


def _status(answer: Answer) -> str:
    if isinstance(answer.end, Completed):
        return "completed"
    if isinstance(answer.end, Incomplete):
        return "incomplete"
    if isinstance(answer.end, Cancelled):
        return "cancelled"
    return "in_progress" if isinstance(answer.end, Truncated) else "failed"


def _response(answer: Answer, status: str, output: list[Event] | None) -> Event:
    """The Response object at the moment when it has `status`."""
    end = answer.end
    error = reason = None
    if status == "failed" and isinstance(end, (Failed, ErrorEvent)) and end.code is not None:
        error = {"code": end.code, "message": end.message}
    if status == "incomplete" and isinstance(end, Incomplete) and end.reason is not None:
        reason = {"reason": end.reason}
    response: Event = {
        "id": answer.id,
        "object": "response",
        "created_at": answer.created_at,
        "status": status,
        "background": False,
        "completed_at": answer.created_at + 1 if status == "completed" else None,
        "error": error,
        "incomplete_details": reason,
        "instructions": None,
        "max_output_tokens": None,
        "metadata": {},
        "model": answer.model,
        "output": output,
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
    }
    usage = None if isinstance(end, ErrorEvent) else answer.usage
    if usage is not None and status not in ("queued", "in_progress"):
        response["usage"] = {
            "input_tokens": usage.input_tokens,
            "input_tokens_details": {
                "cached_tokens": usage.cached_tokens,
                "cache_write_tokens": usage.cache_write_tokens,
            },
            "output_tokens": usage.output_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.input_tokens + usage.output_tokens,
        }
    if output is None:
        del response["output"]
    return response


def _output(answer: Answer) -> list[Event]:
    return [_finished(answer, position, item) for position, item in enumerate(answer.output)]


def _finished(answer: Answer, position: int, item: Item) -> Event:
    """The item as its last snapshot has it."""
    status = "incomplete" if answer.is_cut(position) else "completed"
    if isinstance(item, Message):
        form: Event = {"id": f"msg_{position}", "type": "message", "status": status}
        form |= {"role": "assistant", "content": [_finished_part(part) for part in item.parts]}
        return form if item.phase is None else form | {"phase": item.phase}
    if isinstance(item, Reasoning):
        form = {"id": f"rs_{position}", "type": "reasoning", "status": status}
        form["summary"] = [{"type": "summary_text", "text": text} for text in item.summaries]
        if item.texts:
            form["content"] = [{"type": "reasoning_text", "text": text} for text in item.texts]
        if item.encrypted_content is not None:
            form["encrypted_content"] = item.encrypted_content
        return form
    if isinstance(item, FunctionCall):
        form = {"id": f"fc_{position}", "type": "function_call", "status": status}
        form |= {"arguments": item.arguments}
        return form | {"call_id": answer.call_id(position, item), "name": item.name}
    if isinstance(item, CustomToolCall):
        form = {"id": f"ctc_{position}", "type": "custom_tool_call", "status": status}
        form |= {"call_id": answer.call_id(position, item), "name": item.name}
        return form | {"input": item.input}
    if isinstance(item, Image):
        form = {"id": f"ig_{position}", "type": "image_generation_call", "status": "completed"}
        return form | {"output_format": item.output_format, "result": item.b64}
    kind = HOSTED[item.kind]
    form = {"id": f"hc_{position}", "type": kind.type, "status": "completed", **kind.fields}
    if "call_id" in form:
        form["call_id"] += str(position)
    return form


def _finished_part(part: Part) -> Event:
    if not isinstance(part, Text):
        return {"type": "refusal", "refusal": part.text}
    return {
        "type": "output_text",
        "annotations": [_annotation(citation) for citation in part.annotations],
        "logprobs": [_logprob(token) for token in part.tokens],
        "text": part.text,
    }


def _logprob(token: str) -> Event:
    return {"token": token, "logprob": -0.5, "bytes": list(token.encode()), "top_logprobs": []}


def _annotation(citation: UrlCitation) -> Event:
    fields = {
        "url": citation.url,
        "title": citation.title,
        "start_index": citation.start_index,
        "end_index": citation.end_index,
    }
    return {"type": "url_citation"} | {k: v for k, v in fields.items() if v is not None}


def _emptied(form: Event) -> Event:
    """A finished item or part as it is announced, before anything was said in it."""
    return {name: _EMPTY.get(name, value) for name, value in form.items()}


def _halved(piece: str) -> Iterator[str]:
    """The piece cut in the middle of every surrogate pair that UTF-16 has for it."""
    low, start = "", 0
    for found in _ASTRAL.finditer(piece):
        offset = ord(found[0]) - 0x10000
        yield low + piece[start : found.start()] + chr(0xD800 + (offset >> 10))
        low, start = chr(0xDC00 + (offset & 0x3FF)), found.end()
    yield low + piece[start:]


def _channels(item: Item) -> set[str]:
    """What a reader joins without looking at identities: of these, one item is open at a time."""
    if isinstance(item, Message):
        return {"content", "reasoning"} if item.phase == "commentary" else {"content"}
    if isinstance(item, Reasoning):
        return {"reasoning"}
    return {"image"} if isinstance(item, Image) else set()


class _Stream:
    """One stream in the making: the counters that its events share."""

    def __init__(self, answer: Answer, habits: Habits, rng: Rng | None) -> None:
        self.answer = answer
        self.habits = habits
        self.rng = rng
        self.parts = 0
        self.identities = 0

    def events(self) -> list[Event]:
        """All events, in order, complete."""
        events: list[Event] = [
            self.about_response(f"response.{name}", "queued" if name == "queued" else "in_progress")
            for name in self.habits.opening
        ]
        events += self.items()
        if isinstance(self.answer.end, Truncated):
            events = events[: self.answer.end.after_events]
        else:
            events += self.ending()
        if self.habits.keepalives == "json":
            events = [
                spoken
                for number, event in enumerate(events, 1)
                for spoken in ([event, {"type": "keepalive"}] if number % 3 == 0 else [event])
            ]
        return [self.numbered(event, number) for number, event in enumerate(events)]

    def numbered(self, event: Event, number: int) -> Event:
        """The event with what every event has, its keys in the provider's order."""
        kind = {"type": event.pop("type")}
        if self.habits.sequence_numbers:
            event["sequence_number"] = self.habits.sequence_start + number
        if self.habits.obfuscation and "delta" in event:
            event["obfuscation"] = "abcdefghijklmnop"[len(event["delta"]) % 16 :]
        return event | kind if self.habits.type_last else kind | event

    # The response.

    def about_response(self, kind: str, status: str) -> Event:
        """An event that carries the response; the terminal ones do when it has ended."""
        output: list[Event] | None = []
        if status not in ("queued", "in_progress"):
            output = self.terminal_output()
        response = _response(self.answer, status, output)
        if self.habits.float_created:
            response["created_at"] = float(response["created_at"])
        if self.habits.response_ids == "rotating":
            response["id"] += self.rotation()
        elif self.habits.response_ids == "absent":
            del response["id"]
        return {"type": kind, "response": response}

    def terminal_output(self) -> list[Event] | None:
        """What the terminal event has for `output`."""
        if self.habits.terminal_output != "whole":
            return [] if self.habits.terminal_output == "empty" else None
        forms = [self.identified(form) for form in _output(self.answer)]
        for form in forms:
            if self.habits.new_call_ids and "call_id" in form:
                form["call_id"] += "_new"
            if self.habits.terminal_ids == "absent":
                form.pop("id", None)
            elif self.habits.terminal_ids == "fresh":
                form["id"] = "tmp" + self.rotation()
        return forms

    def ending(self) -> Iterator[Event]:
        """The terminal event, and what comes with it."""
        end = self.answer.end
        if isinstance(end, ErrorEvent):
            error: Event = {"code": end.code, "message": end.message, "param": end.param}
            if end.shape == "nested":
                error = {"error": {"type": end.type} | error}
            yield {"type": "error"} | error
            if not end.then_failed:
                return
        status = _status(self.answer)
        name = self.habits.terminal_event
        yield self.about_response(f"response.{status}" if name == "by_status" else name, status)

    # The items.

    def items(self) -> Iterator[Event]:
        """The events of all items."""
        closings = []
        for group in self.groups():
            streams = []
            for position in group:
                events = list(self.item(position))
                if self.habits.close_items != "at_once" and events:
                    closings.append(events.pop())
                streams.append(events)
            turns = zip_longest(*streams)
            yield from (event for turn in turns for event in turn if event is not None)
        if self.habits.close_items == "late":
            yield from closings

    def groups(self) -> list[list[int]]:
        """The positions of the items, those together that are open at once."""
        groups: list[list[int]] = []
        taken: set[str] = set()
        for position, item in enumerate(self.answer.output):
            channels = _channels(item)
            if not groups or not self.habits.interleave or taken & channels:
                groups.append([])
                taken = set()
            groups[-1].append(position)
            taken |= channels
        return groups

    def item(self, position: int) -> Iterator[Event]:
        """The events of one item, its closing last."""
        item = self.answer.output[position]
        form = _finished(self.answer, position, item)
        if self.habits.text == "terminal" and isinstance(item, (Message, Reasoning)):
            return
        if self.habits.announce_items:
            opened = _emptied(form)
            if self.habits.arguments == "added" and isinstance(item, FunctionCall):
                opened["arguments"] = item.arguments
            if self.habits.arguments == "added" and isinstance(item, CustomToolCall):
                opened["input"] = item.input
            added = {"type": "response.output_item.added", "item": opened}
            yield self.placed(added, form["id"], position)
        for event in self.body(item, cut=self.answer.is_cut(position)):
            yield self.placed(event, form["id"], position)
        done = {"type": "response.output_item.done", "item": form}
        yield self.placed(done, form["id"], position)

    def placed(self, event: Event, item_id: str, position: int) -> Event:
        """The event of an item, with the item's identity as the provider gives it."""
        if self.habits.output_index != "absent":
            shifted = self.habits.output_index == "shifted_on_done"
            event["output_index"] = position + (shifted and event["type"].endswith(".done"))
        if "item" in event:
            return event | {"item": self.identified(event["item"])}
        identity = self.identified({"id": item_id})
        return event | {"item_id": identity["id"]} if identity else event

    def identified(self, form: Event) -> Event:
        """The item with its id as the provider gives it."""
        others = {name: value for name, value in form.items() if name != "id"}
        if self.habits.item_ids == "absent":
            return others
        if self.habits.item_ids == "empty":
            return {"id": ""} | others
        rotating = self.habits.item_ids == "rotating"
        return {"id": form["id"] + (self.rotation() if rotating else "")} | others

    def rotation(self) -> str:
        """What makes an id another one than before."""
        self.identities += 1
        return f"_{self.identities}"

    def body(self, item: Item, *, cut: bool) -> Iterator[Event]:
        """The events between the announcement of an item and its closing."""
        if isinstance(item, Message):
            for number, part in enumerate(item.parts):
                yield from self.message_part(part, number)
        elif isinstance(item, Reasoning):
            for number, text in enumerate(item.texts):
                yield from self.reasoning_text(text, number)
            for number, text in enumerate(item.summaries):
                yield from self.reasoning_summary(text, number)
        elif isinstance(item, FunctionCall):
            stem = "response.function_call_arguments"
            name = {"name": item.name} if self.habits.done_names else {}
            yield from self.arguments(stem, {"arguments": item.arguments} | name, cut=cut)
        elif isinstance(item, CustomToolCall):
            yield from self.arguments(
                "response.custom_tool_call_input", {"input": item.input}, cut=cut
            )
        elif isinstance(item, Image):
            yield from self.image(item)
        else:
            yield from self.hosted(item)

    def message_part(self, part: Part, number: int) -> Iterator[Event]:
        """One part of a message."""
        index = self.content_index(number)
        form = _finished_part(part)
        if not isinstance(part, Text):
            yield from self.part(
                "response.content_part", form, index, "response.refusal", self.cuts(part.text)
            )
            return
        annotations = [
            {
                "type": "response.output_text.annotation.added",
                **index,
                "annotation_index": place,
                "annotation": annotation,
            }
            for place, annotation in enumerate(form["annotations"])
        ]
        pieces = part.tokens if part.logprobs else self.cuts(part.text)
        for event in self.part(
            "response.content_part", form, index, "response.output_text", pieces
        ):
            if event["type"] == "response.output_text.done":
                yield from annotations
                event["logprobs"] = form["logprobs"]
            elif event["type"] == "response.output_text.delta":
                event["logprobs"] = self.delta_logprobs(part, event["delta"])
            yield event

    def delta_logprobs(self, part: Text, delta: str) -> list[Event]:
        """The logprobs of one delta, which is a whole token."""
        entries = [_logprob(delta)] if part.logprobs and delta else []
        if not self.habits.logprob_bytes:
            entries = [{k: v for k, v in entry.items() if k != "bytes"} for entry in entries]
        return entries

    def reasoning_text(self, text: str, number: int) -> Iterator[Event]:
        """One raw text part of a reasoning item."""
        openai = self.habits.reasoning_events == "openai"
        return self.part(
            f"response.{self.habits.reasoning_parts}",
            {"type": "reasoning_text", "text": text},
            self.content_index(number),
            "response.reasoning_text" if openai else "response.reasoning",
            self.cuts(text),
        )

    def reasoning_summary(self, text: str, number: int) -> Iterator[Event]:
        """One summary part of a reasoning item."""
        older = self.habits.reasoning_events == "older"
        return self.part(
            "response.reasoning_summary_part",
            {"type": "summary_text", "text": text},
            {"summary_index": number},
            "response.reasoning_summary" if older else "response.reasoning_summary_text",
            self.cuts(text),
        )

    def part(
        self, envelope: str, form: Event, index: Event, stem: str, pieces: Iterable[str]
    ) -> Iterator[Event]:
        """The events of any part: announced, said, closed."""
        if self.habits.text not in ("deltas", "done"):
            return
        if self.habits.announce_parts:
            yield {"type": f"{envelope}.added", **index, "part": _emptied(form)}
        if self.habits.text == "deltas":
            for number, piece in enumerate(self.paced(pieces)):
                if number and self.habits.content_index == "rising" and "content_index" in index:
                    index = {"content_index": index["content_index"] + 1}
                yield {"type": f"{stem}.delta", **index, "delta": piece}
        field = "refusal" if "refusal" in form else "text"
        yield {"type": f"{stem}.done", **index, field: form[field]}
        if self.habits.announce_parts:
            yield {"type": f"{envelope}.done", **index, "part": form}

    def content_index(self, number: int) -> Event:
        """The index of the part that comes next and is the item's `number`-th."""
        self.parts += 1
        if self.habits.content_index == "absent":
            return {}
        return {
            "content_index": self.parts - 1 if self.habits.content_index == "running" else number
        }

    def arguments(self, stem: str, final: Event, *, cut: bool) -> Iterator[Event]:
        """What a client's call is called with; a call cut before its arguments has no done."""
        text: str = next(iter(final.values()))
        if self.habits.arguments in ("item_done", "added"):
            return
        if self.habits.arguments == "deltas":
            yield from self.deltas(stem, {}, self.cuts(text))
        elif self.habits.arguments == "one_delta":
            yield from self.deltas(stem, {}, [text])
        if text or not cut:
            yield {"type": f"{stem}.done", **final}

    def deltas(
        self, stem: str, fields: Mapping[str, Any], pieces: Iterable[str]
    ) -> Iterator[Event]:
        """Deltas that need nothing of their own."""
        for piece in self.paced(pieces):
            yield {"type": f"{stem}.delta", **fields, "delta": piece}

    def image(self, item: Image) -> Iterator[Event]:
        """The progress of an image."""
        stem = "response.image_generation_call"
        yield {"type": f"{stem}.in_progress"}
        yield {"type": f"{stem}.generating"}
        for number, partial in enumerate(item.partials):
            yield {
                "type": f"{stem}.partial_image",
                "partial_image_index": number,
                "partial_image_b64": partial,
                "output_format": item.output_format,
            }
        yield {"type": f"{stem}.completed"}

    def hosted(self, item: HostedCall) -> Iterator[Event]:
        """The progress of what the provider runs."""
        kind = HOSTED[item.kind]
        stem, field, text, further = kind.streams
        for word in kind.progress:
            if word == "*":
                yield from self.deltas(stem, further, self.cuts(text))
                yield {"type": f"{stem}.done", **further, field: text}
            else:
                yield {"type": f"response.{kind.type}.{word}"}

    # The texts.

    def cuts(self, text: str) -> list[str]:
        """The text in pieces, none of them empty."""
        if self.rng is None:
            pieces = words(text)
        else:
            pieces, start = [], 0
            while start < len(text):
                end = start + 1 + self.rng.randrange(_LONGEST_CUT)
                pieces.append(text[start:end])
                start = end
        if self.habits.split_surrogates:
            pieces = [half for piece in pieces for half in _halved(piece)]
        return pieces

    def paced(self, pieces: Iterable[str]) -> Iterator[str]:
        """The pieces with the empty deltas that some providers send between them."""
        for piece in pieces:
            if self.habits.empty_deltas:
                yield ""
            yield piece
