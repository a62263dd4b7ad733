"""What an answer was made of goes back as the items it came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from chat_requests import DEEP, GRAMMAR, USER, WEATHER, call, called, request, result
from deltawire import (
    COPILOT,
    DIALECTS,
    GENERIC,
    LMSTUDIO,
    OPENAI,
    VLLM,
    ChatStream,
    Dialect,
    InvalidRequest,
    fold,
    to_responses_request,
)
from deltawire.testing import (
    Answer,
    Completed,
    CustomToolCall,
    FunctionCall,
    Message,
    Reasoning,
    Refusal,
    Text,
    UrlCitation,
    write_stream,
)
from deltawire.testing.strategies import answers
from schemas import check_body
from wire import SHARED, Json


def message_of(answer: Answer, **options: Any) -> Json:
    """The assistant's message that a client gets, as it is sent back."""
    stream = ChatStream(**{"reasoning_details": True, **options})
    data = write_stream(answer)
    completion = fold([*stream.receive_data(data), *stream.receive_eof()])
    message: Json = msgspec.to_builtins(completion.choices[0].message)
    return message


def items_for(*messages: Json, dialect: Dialect = OPENAI, tools: Any = ()) -> list[Json]:
    chat_request = request(*messages, tools=list(tools))
    sent: list[Json] = to_responses_request(chat_request, dialect=dialect).body["input"]
    return sent


def reported(*messages: Json, dialect: Dialect = OPENAI) -> list[tuple[str, str]]:
    report = to_responses_request(request(*messages), dialect=dialect).report
    return [(entry.action, entry.path) for entry in report]


def tools_of(answer: Answer) -> list[Json]:
    names = {item.name for item in answer.output if isinstance(item, CustomToolCall)}
    return [{"type": "custom", "custom": {"name": name}} for name in names]


# Between two items that were shown as reasoning, a message says first all text and then all calls.
Segment = tuple[Json | None, str, str, list[tuple[str, str, str]]]


def said(answer: Answer) -> list[Segment]:
    """What the answer was made of, as far as a message can tell it."""
    segments: list[Segment] = []
    head: Json | None = None
    text = refusal = ""
    calls: list[tuple[str, str, str]] = []
    for position, item in enumerate(answer.output):
        before = head, text, refusal, calls
        if isinstance(item, Message) and item.phase == "commentary":
            aside = "".join(part.text for part in item.parts)
            if aside:
                segments.append(before)
                head, text, refusal, calls = {"commentary": aside}, "", "", []
        elif isinstance(item, Message):
            for part in item.parts:
                if isinstance(part, Refusal):
                    refusal += part.text
                else:
                    text += part.text
        elif isinstance(item, Reasoning):
            if item.encrypted_content is not None:
                segments.append(before)
                head = {
                    "summary": [each for each in item.summaries if each],
                    "encrypted": item.encrypted_content,
                }
                text, refusal, calls = "", "", []
        elif isinstance(item, FunctionCall):
            arguments = item.arguments or "{}"
            calls.append((answer.call_id(position, item), item.name, arguments))
        elif isinstance(item, CustomToolCall):
            calls.append((answer.call_id(position, item), item.name, item.input))
    return [*segments, (head, text, refusal, calls)]


def sent(items: list[Json]) -> list[Segment]:
    """The same of input items."""
    segments: list[Segment] = []
    head: Json | None = None
    text = refusal = ""
    calls: list[tuple[str, str, str]] = []
    for item in items:
        before = head, text, refusal, calls
        if item.get("type") == "reasoning":
            segments.append(before)
            head = {
                "summary": [part["text"] for part in item["summary"] if part["text"]],
                "encrypted": item["encrypted_content"],
            }
            text, refusal, calls = "", "", []
        elif item.get("phase") == "commentary":
            segments.append(before)
            aside = item["content"]
            if not isinstance(aside, str):
                aside = "".join(part["text"] for part in aside)
            head, text, refusal, calls = {"commentary": aside}, "", "", []
        elif item.get("type") in ("function_call", "custom_tool_call"):
            key = "arguments" if item["type"] == "function_call" else "input"
            nothing = "{}" if key == "arguments" else ""
            calls.append((item["call_id"], item["name"], item[key] or nothing))
        elif isinstance(item["content"], str):
            text += item["content"]
        else:
            for part in item["content"]:
                text += part.get("text", "")
                refusal += part.get("refusal", "")
    return [*segments, (head, text, refusal, calls)]


@given(answers())
def test_an_answer_goes_back_as_the_items_it_came_from(answer: Answer) -> None:
    assume(isinstance(answer.end, Completed))
    functions = {item.name for item in answer.output if isinstance(item, FunctionCall)}
    customs = {item.name for item in answer.output if isinstance(item, CustomToolCall)}
    assume(not functions & customs)
    message = message_of(answer)
    results = [result(each["id"]) for each in message.get("tool_calls", ())]
    items = items_for(USER, message, *reversed(results), USER, tools=tools_of(answer))
    kinds = {True: "custom_tool_call", False: "function_call"}
    for item in items:
        if "name" in item:
            assert item["type"] == kinds[item["name"] in customs]
    outputs = [item["call_id"] for item in items if "output" in item]
    assert outputs == [each["tool_call_id"] for each in reversed(results)]
    # Refusals are said in fields of their own, after all text.
    before = said(answer)
    after = sent(items[1 : len(items) - 1 - len(results)])
    assert "".join(each[2] for each in before) == "".join(each[2] for each in after)
    assert [(head, text, calls) for head, text, _, calls in before] == [
        (head, text, calls) for head, text, _, calls in after
    ]


@given(answers(), st.sampled_from(list(DIALECTS.values())))
def test_what_goes_back_is_valid_for_every_upstream(answer: Answer, dialect: Dialect) -> None:
    message: Json = message_of(answer) if isinstance(answer.end, Completed) else {**USER}
    results = [result(each["id"]) for each in message.get("tool_calls", ())]
    items = items_for(USER, message, *results, dialect=dialect, tools=tools_of(answer))
    check_body({"model": "m", "input": items})


def test_reasoning_is_told_in_whole_only_where_that_is_asked_for() -> None:
    answer = Answer((Reasoning("Hm.", encrypted_content="gAAAA"), "Hello."))
    assert "reasoning_details" not in message_of(answer, reasoning_details=False)
    details = message_of(answer)["reasoning_details"]
    assert [(each["index"], each["type"]) for each in details] == [
        (0, "reasoning.summary"),
        (1, "reasoning.encrypted"),
    ]
    assert (details[0]["summary"], details[1]["data"]) == ("Hm.", "gAAAA")
    assert {each["id"] for each in details} == {details[0]["id"]}
    assert {each["format"] for each in details} == {"openai-responses-v1"}


def test_reasoning_in_the_middle_keeps_its_place() -> None:
    answer = Answer(
        (
            Reasoning(encrypted_content="one"),
            "Let me look. ",
            FunctionCall("weather", "{}", "call_1"),
            Reasoning("Two.", encrypted_content="two"),
            FunctionCall("weather", "{}", "call_2"),
            "Done.",
        )
    )
    items = items_for(USER, message_of(answer), result("call_1"), result("call_2"))
    shown = [
        item.get("encrypted_content") or item.get("call_id") or item["content"] for item in items
    ]
    assert shown == [
        "What is the weather?",
        "one",
        "Let me look. ",
        "call_1",
        "two",
        "Done.",
        "call_2",
        "call_1",
        "call_2",
    ]


def test_places_beyond_the_message_do_no_harm() -> None:
    for after in ({"content": 99, "tool_calls": 99}, {"content": -5, "tool_calls": -5}):
        detail = {"type": "reasoning.encrypted", "data": "x", "id": "rs_1", "after": after}
        message = {**called(call("call_1")), "content": "Hi.", "reasoning_details": [detail]}
        items = items_for(USER, message, result("call_1"))
        assert sorted(item.get("type", "message") for item in items) == [
            "function_call",
            "function_call_output",
            "message",
            "message",
            "reasoning",
        ]


def test_a_place_before_the_message_is_its_beginning() -> None:
    detail = {"type": "reasoning.encrypted", "data": "x", "after": {"content": -5}}
    citation = {"url": "u", "title": "t", "start_index": 1, "end_index": 4}
    message = {
        "role": "assistant",
        "content": "Hello there.",
        "reasoning_details": [detail],
        "annotations": [{"type": "url_citation", "url_citation": citation}],
    }
    _, thought, answer = items_for(USER, message)
    assert thought["encrypted_content"] == "x"
    (part,) = answer["content"]
    assert (part["text"], part["annotations"][0]["start_index"]) == ("Hello there.", 1)


def test_a_refusal_goes_back_as_a_part() -> None:
    items = items_for(USER, message_of(Answer(Message(("Well. ", Refusal("No."))))))
    assert items[1] == {
        "type": "message",
        "id": "msg_1_0",
        "role": "assistant",
        "status": "completed",
        "content": [
            {"type": "output_text", "text": "Well. ", "annotations": [], "logprobs": []},
            {"type": "refusal", "refusal": "No."},
        ],
    }
    part = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    assert items_for(USER, part)[1]["content"] == [{"type": "refusal", "refusal": "No."}]


def test_a_refusal_is_plain_text_where_no_parts_are_taken() -> None:
    message = message_of(Answer(Message(Refusal("No."))))
    assert items_for(USER, message, dialect=VLLM)[1] == {"role": "assistant", "content": "No."}
    assert reported(USER, message, dialect=VLLM) == [("emulated", "messages[1].refusal")]


def test_citations_go_back_to_the_piece_of_text_they_belong_to() -> None:
    cited = UrlCitation("https://example.org", "Example", 1, 3)
    answer = Answer(
        (
            Message(Text("Some text. ", (cited,))),
            Reasoning(encrypted_content="x"),
            Message(Text("More.", (cited, UrlCitation("https://example.org/half")))),
        )
    )
    message = message_of(answer)
    _, first, _, second = items_for(USER, message)
    annotation = {
        "type": "url_citation",
        "url": "https://example.org",
        "title": "Example",
        "start_index": 1,
        "end_index": 3,
    }
    assert first["content"][0]["annotations"] == [annotation]
    assert second["content"][0]["annotations"] == [annotation]
    assert reported(USER, message) == [("dropped", "messages[1].annotations[2]")]
    assert ("dropped", "messages[1].annotations") in reported(USER, message, dialect=GENERIC)
    assert items_for(USER, message, dialect=GENERIC)[1]["content"] == "Some text. More."


def test_annotations_without_a_place_in_the_text_are_reported() -> None:
    def cited(start: int) -> Json:
        url = {"url": "u", "title": "t", "start_index": start, "end_index": start}
        return {"type": "url_citation", "url_citation": url}

    other = {"type": "file_citation", "file_citation": {"file_id": "f"}}
    message = {
        "role": "assistant",
        "content": "abc",
        "annotations": [cited(2), cited(0), cited(3), cited(-1), other],
    }
    (annotations,) = [part["annotations"] for part in items_for(USER, message)[1]["content"]]
    assert [each["start_index"] for each in annotations] == [0, 2]
    assert [path for _, path in reported(USER, message)] == [
        f"messages[1].annotations[{at}]" for at in (2, 3, 4)
    ]


def test_reasoning_text_goes_back_where_it_is_taken() -> None:
    message = {"role": "assistant", "content": "Hi.", "reasoning_content": "Hm."}
    raw = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "Hm."}],
    }
    assert items_for(USER, message, dialect=VLLM)[1] == raw
    empty = {**message, "reasoning_details": [], "reasoning": ""}
    assert items_for(USER, empty, dialect=VLLM) == items_for(USER, message, dialect=VLLM)
    for dialect in (OPENAI, GENERIC):
        assert len(items_for(USER, message, dialect=dialect)) == 2
        assert reported(USER, message, dialect=dialect) == [
            ("dropped", "messages[1].reasoning_content")
        ]


def test_reasoning_under_both_its_names_is_one() -> None:
    both = {"role": "assistant", "content": "Hi.", "reasoning_content": "a", "reasoning": "a"}
    assert len(items_for(USER, both, dialect=VLLM)) == 3
    assert reported(USER, both, dialect=VLLM) == []
    differs = {**both, "reasoning": "b"}
    assert reported(USER, differs, dialect=VLLM) == [("dropped", "messages[1].reasoning")]
    alone = {"role": "assistant", "content": "Hi.", "reasoning": "b"}
    assert items_for(USER, alone, dialect=VLLM)[1]["content"][0]["text"] == "b"


def test_reasoning_details_are_taken_as_upstream_takes_reasoning() -> None:
    details = [
        {"type": "reasoning.summary", "summary": "a", "id": "rs_1"},
        {"type": "reasoning.summary", "summary": "b", "id": "rs_1"},
        {"type": "reasoning.encrypted", "data": "x", "id": "rs_1"},
        {"type": "reasoning.text", "text": "raw", "id": "rs_2"},
        {"type": "reasoning.encrypted", "data": "y", "id": "thinking_0"},
        {"type": "reasoning.encrypted", "data": "z", "id": "thinking_0"},
    ]
    message = {"role": "assistant", "content": "Hi.", "reasoning_details": details}
    path = "messages[1].reasoning_details"
    encrypted = [item for item in items_for(USER, message) if item.get("type") == "reasoning"]
    assert [item.get("id") for item in encrypted] == ["rs_1", None, None]
    assert [item["encrypted_content"] for item in encrypted] == ["x", "y", "z"]
    assert reported(USER, message) == [("dropped", f"{path}[3]")]
    nameless = items_for(USER, message, dialect=COPILOT)[1:4]
    assert ["id" in item for item in nameless] == [False] * 3
    raw = items_for(USER, message, dialect=VLLM)[1:3]
    assert [item["content"][0]["text"] for item in raw] == ["a\n\nb", "raw"]
    assert reported(USER, message, dialect=VLLM) == [
        ("dropped", f"{path}[4]"),
        ("dropped", f"{path}[5]"),
    ]
    assert len(items_for(USER, message, dialect=LMSTUDIO)) == 2
    assert len(reported(USER, message, dialect=LMSTUDIO)) == 4


def test_the_text_of_encrypted_reasoning_is_left_to_what_is_encrypted() -> None:
    """OpenAI refuses it beside that (EasyMetaAu/helm-api pull request 879)."""
    details = [
        {"type": "reasoning.text", "text": "Hm.", "id": "rs_1"},
        {"type": "reasoning.summary", "summary": "a", "id": "rs_1"},
        {"type": "reasoning.encrypted", "data": "x", "id": "rs_1"},
    ]
    message = {"role": "assistant", "content": "Hi.", "reasoning_details": details}
    assert items_for(USER, message)[1] == {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "a"}],
        "encrypted_content": "x",
    }
    assert reported(USER, message) == [("emulated", "messages[1].reasoning_details[0]")]
    (raw,) = items_for(USER, message, dialect=VLLM)[1]["content"]
    assert raw["text"] == "Hm."


def test_the_text_of_reasoning_goes_back_where_its_details_cannot() -> None:
    detail = {"type": "reasoning.encrypted", "data": "x", "id": "rs_1"}
    message = {
        "role": "assistant",
        "content": "Hi.",
        "reasoning_content": "Hm.",
        "reasoning_details": [detail],
    }
    assert items_for(USER, message, dialect=VLLM)[1]["content"][0]["text"] == "Hm."
    assert reported(USER, message, dialect=VLLM) == [
        ("dropped", "messages[1].reasoning_details[0]")
    ]
    assert reported(USER, message, dialect=GENERIC) == [
        ("dropped", "messages[1].reasoning_details[0]"),
        ("dropped", "messages[1].reasoning_content"),
    ]


def test_reasoning_of_another_api_is_reported() -> None:
    details = [
        {"type": "reasoning.text", "text": "x", "format": "anthropic-claude-v1"},
        {"type": "reasoning.encrypted", "data": "x", "format": "google-gemini-v1"},
        {"type": "thinking", "thinking": "x"},
        {"type": "reasoning.encrypted", "data": None},
    ]
    message = {"role": "assistant", "content": "Hi.", "reasoning_details": details}
    assert len(items_for(USER, message)) == 2
    lost = {path for action, path in reported(USER, message) if action == "dropped"}
    assert lost >= {f"messages[1].reasoning_details[{at}]" for at in range(4)}


def test_a_commentary_goes_back_as_one() -> None:
    answer = Answer((Message("Looking.", phase="commentary"), "Found."))
    message = message_of(answer)
    assert items_for(USER, message)[1:] == [
        {"role": "assistant", "content": "Looking.", "phase": "commentary"},
        {"role": "assistant", "content": "Found."},
    ]
    assert items_for(USER, message, dialect=VLLM)[1] == {
        "role": "assistant",
        "content": "Looking.",
    }
    path = "messages[1].reasoning_details[0].phase"
    assert reported(USER, message, dialect=VLLM) == [("dropped", path)]


def test_images_in_results_stay_in_them() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    content = [{"type": "text", "text": "Look:"}, image]
    _, _, output = items_for(USER, called(call("call_1")), result("call_1", content))
    assert output["output"] == [
        {"type": "input_text", "text": "Look:"},
        {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "auto"},
    ]


def test_images_in_results_follow_them_where_results_are_text() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    content = [{"type": "text", "text": "Look:"}, image]
    messages = (
        USER,
        called(call("call_1"), call("call_2")),
        result("call_1", content),
        result("call_2"),
    )
    shown = {
        "role": "user",
        "content": [
            {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "auto"}
        ],
    }
    for last in ((), (USER,)):
        items = items_for(*messages, *last, dialect=LMSTUDIO)
        assert [item.get("output") for item in items[3:5]] == ["Look:", "sunny"]
        assert items[5] == shown
        assert len(items) == 6 + len(last)
    assert reported(*messages, dialect=LMSTUDIO) == [("emulated", "messages[2].content")]


def test_a_result_may_be_empty() -> None:
    (*_, output) = items_for(USER, called(call("call_1")), result("call_1", ""))
    assert output["output"] == ""
    legacy = {"role": "assistant", "function_call": {"name": "f", "arguments": ""}}
    (*_, output) = items_for(USER, legacy, {"role": "function", "name": "f", "content": None})
    assert output["output"] == ""


def test_two_calls_of_one_function_without_ids_are_two() -> None:
    legacy = {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}
    answer = {"role": "function", "name": "f", "content": "x"}
    items = items_for(USER, legacy, answer, legacy, answer)
    ids = [item["call_id"] for item in items[1:]]
    assert (ids[0], ids[2]) == (ids[1], ids[3])
    assert ids[0] != ids[2]


def test_an_id_that_is_made_is_no_other_calls() -> None:
    legacy = {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}
    taken = items_for(USER, called(call("x")), result("x"), legacy)[-1]["call_id"]
    made = items_for(USER, called(call(taken)), result(taken), legacy)[-1]["call_id"]
    assert made != taken


def test_an_id_that_is_too_long_is_the_same_in_call_and_result() -> None:
    long = "call_" + "x" * 100
    _, calling, output = items_for(USER, called(call(long)), result(long))
    assert calling["call_id"] == output["call_id"]
    assert len(calling["call_id"]) == 64
    assert reported(USER, called(call(long)), result(long)) == [
        ("emulated", "messages[1].tool_calls[0].id")
    ]


def test_an_answer_with_nothing_in_it_stays_one() -> None:
    for message in ({"role": "assistant"}, {"role": "assistant", "content": []}):
        assert items_for(USER, message)[1] == {"role": "assistant", "content": ""}
    assert len(items_for(USER, {**called(call("call_1")), "content": ""}, result("call_1"))) == 3


def test_custom_calls_are_functions_where_there_are_no_custom_tools() -> None:
    custom = {"id": "call_1", "type": "custom", "custom": {"name": "sum", "input": '1+"1"'}}
    chat_request = request(USER, called(custom), result("call_1"), tools=[GRAMMAR, WEATHER])
    done = to_responses_request(chat_request, dialect=VLLM)
    assert done.body["input"][1] == {
        "type": "function_call",
        "call_id": "call_1",
        "name": "sum",
        "arguments": '{"input":"1+\\"1\\""}',
    }
    assert done.body["input"][2]["type"] == "function_call_output"
    assert [tool["name"] for tool in done.body["tools"]] == ["weather"]
    assert [(entry.action, entry.path) for entry in done.report] == [("dropped", "tools[0]")]
    choice = {"type": "custom", "custom": {"name": "sum"}}
    chosen = to_responses_request({**chat_request, "tool_choice": choice}, dialect=VLLM)
    assert "tool_choice" not in chosen.body
    assert ("dropped", "tool_choice") in [(each.action, each.path) for each in chosen.report]
    allowed = {"mode": "auto", "tools": [choice, {"type": "function", "function": {"name": "f"}}]}
    choices = {"type": "allowed_tools", "allowed_tools": allowed}
    some = to_responses_request({**chat_request, "tool_choice": choices}, dialect=VLLM)
    assert some.body["tool_choice"]["tools"] == [{"type": "function", "name": "f"}]


def test_leading_instructions_can_go_where_a_dialect_wants_them() -> None:
    elsewhere = msgspec.structs.replace(OPENAI, instructions=True)
    first = {"role": "system", "content": "One."}
    second = {"role": "developer", "content": [{"type": "text", "text": "Two."}]}
    sent = to_responses_request(request(first, second, USER, first), dialect=elsewhere).body
    assert sent["instructions"] == "One.\n\nTwo."
    assert [item["role"] for item in sent["input"]] == ["user", "system"]
    # There has to be some input, and a picture is no instruction.
    assert len(to_responses_request(request(first), dialect=elsewhere).body["input"]) == 1
    image = {"type": "image_url", "image_url": {"url": "https://example.org/1.png"}}
    shown = {"role": "system", "content": [image]}
    sent = to_responses_request(request(shown, USER), dialect=elsewhere).body
    assert "instructions" not in sent
    assert len(sent["input"]) == 2


def test_a_breakpoint_of_the_cache_stays_where_it_can() -> None:
    part = {"type": "text", "text": "x", "prompt_cache_breakpoint": {"mode": "explicit"}}
    user = {"role": "user", "content": [part]}
    assert items_for(user)[0]["content"][0]["prompt_cache_breakpoint"] == {"mode": "explicit"}
    path = "messages[0].content[0].prompt_cache_breakpoint"
    assert items_for(user, dialect=VLLM)[0]["content"] == "x"
    assert reported(user, dialect=VLLM) == [("dropped", path)]
    assert reported({"role": "assistant", "content": [part]}) == [("dropped", path)]


@pytest.mark.parametrize(
    ("details", "path"),
    [
        ("x", "messages[0].reasoning_details"),
        (["x"], "messages[0].reasoning_details[0]"),
        ([{"type": "reasoning.text", "text": 1}], "messages[0].reasoning_details[0].text"),
        (0, "messages[0].reasoning_details"),
        (
            [{"type": "reasoning.text", "text": "x", "id": DEEP}],
            "messages[0].reasoning_details[0].id",
        ),
        (
            [{"type": "reasoning.text", "text": "x", "format": DEEP}],
            "messages[0].reasoning_details[0].format",
        ),
        (
            [{"type": "reasoning.text", "text": "x", "after": {"content": "y"}}],
            "messages[0].reasoning_details[0].after.content",
        ),
        (
            [{"type": "reasoning.text", "text": "x", "phase": "odd"}],
            "messages[0].reasoning_details[0].phase",
        ),
    ],
)
def test_wrong_reasoning_is_named(details: Any, path: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        items_for({"role": "assistant", "content": "x", "reasoning_details": details})
    assert raised.value.param == path


def test_roles_are_kept_or_said_as_upstream_calls_them() -> None:
    developer = {"role": "developer", "content": "x"}
    assert items_for(developer, dialect=COPILOT)[0]["role"] == "developer"
    assert items_for(developer, dialect=GENERIC)[0]["role"] == "system"


def items_done(data: bytes) -> list[Json]:
    """The items of a recorded stream as they were when they were done, in their order."""
    found = []
    for line in data.splitlines():
        if line.startswith(b"data: {") and b'"response.output_item.done"' in line:
            event = json.loads(line[6:])
            found.append((event["output_index"], event["item"]))
    # The sort is stable: some servers give every item the same index.
    return [item for _, item in sorted(found, key=lambda pair: int(pair[0]))]


def shown_of(items: list[Json], dialect: Dialect) -> list[Json]:
    """The items that a Chat client is shown and can send back."""
    return [
        item
        for item in items
        if item["type"] in ("message", "function_call")
        or (item["type"] == "reasoning" and item.get("encrypted_content") is not None)
        or (
            item["type"] == "custom_tool_call"
            and not dialect.runs_tool(item["name"], item["call_id"])
        )
    ]


# Two of the streams end in a failure, of which nothing goes back.
STREAMS = [
    path
    for path in sorted(SHARED.glob("corpus/streams/*/*.sse"))
    if path.stem not in ("vercel-ai__parallel-tool-call-wrapper.1", "vercel-ai__openai-error.1")
]


@pytest.mark.skipif(not STREAMS, reason="the recorded streams are not there (../shared/corpus)")
@pytest.mark.parametrize("path", STREAMS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_was_recorded_goes_back_as_it_came(path: Path) -> None:
    """Encrypted reasoning as `output_item.done` has it: OpenAI encrypts it anew at the end.

    RubyLLM's recordings show that upstream takes it back in that form.
    """
    dialect = DIALECTS.get(path.parent.name, GENERIC)
    data = path.read_bytes()
    stream = ChatStream(reasoning_details=True, dialect=dialect)
    events = [*stream.receive_data(data), *stream.receive_eof()]
    message: Json = msgspec.to_builtins(fold(events).choices[0].message)
    output = shown_of(items_done(data), dialect)
    customs = {item["name"] for item in output if item["type"] == "custom_tool_call"}
    tools = [{"type": "custom", "custom": {"name": name}} for name in customs]
    assert sent(items_for(USER, message, tools=tools)[1:]) == sent(output)
