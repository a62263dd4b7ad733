"""What `Output` does in the corners that generated streams reach rarely or never."""

from __future__ import annotations

from typing import Any

import pytest

from deltawire import ChatStream, Divergence, Done, Failure, State, fold
from wire import (
    Json,
    added,
    answer,
    arguments_delta,
    arguments_done,
    call,
    calls,
    created,
    deltas,
    done,
    message,
    parsed,
    plain,
    receive,
    stream_of,
    terminal,
    text_delta,
)

PARIS = '{"city":"Paris"}'
ROME = '{"city":"Rome"}'


def text_done(text: Any, *, index: int = 0, id: str = "msg_1", **more: Any) -> Json:
    return {
        "type": "response.output_text.done",
        "item_id": id,
        "output_index": index,
        "content_index": 0,
        "text": text,
        **more,
    }


def part(kind: str, part: Any, *, content_index: int = 0) -> Json:
    return {
        "type": f"response.content_part.{kind}",
        "item_id": "msg_1",
        "output_index": 0,
        "content_index": content_index,
        "part": part,
    }


def test_deltas_without_any_index_are_of_one_part_though_several_are_open() -> None:
    part = {"type": "output_text", "text": ""}
    events: list[Json] = [
        {"type": "response.content_part.added", "content_index": 0, "part": part},
        {"type": "response.content_part.added", "part": part},
        {"type": "response.output_text.delta", "delta": "a"},
        {"type": "response.output_text.delta", "delta": "b"},
        {"type": "response.output_text.done", "text": "ab"},
        {"type": "response.content_part.done", "part": {**part, "text": "ab"}},
    ]
    data = stream_of(added(0, message()), *({"item_id": "msg_1", **each} for each in events))
    data += stream_of(terminal(output=[message("ab")]))
    assert said(data) == "ab"


def test_deltas_without_any_name_are_of_one_item_though_several_are_open() -> None:
    events = [
        {"type": "response.output_text.delta", "delta": "a"},
        {"type": "response.output_text.delta", "delta": "b"},
        {"type": "response.output_text.done", "text": "ab"},
    ]
    both = added(0, message(id="msg_1")), added(1, message(id="msg_2"))
    data = stream_of(*both, *events, terminal())
    assert said(data) == "ab"


@pytest.mark.parametrize("texts", [("", "b"), ("a", ""), ("a", "b")])
def test_messages_that_only_their_places_name_are_two(texts: tuple[str, str]) -> None:
    """Neither was announced, and the first is closed after the second began."""

    def at(place: int, kind: str, **more: Any) -> Json:
        place_of = {"output_index": place, "content_index": 0}
        return {"type": f"response.{kind}", **place_of, **more}

    nothing = {"type": "output_text", "text": ""}
    events = [
        event
        for place, text in enumerate(texts)
        for event in (
            at(place, "content_part.added", part=nothing),
            *([at(place, "output_text.delta", delta=text)] if text else []),
            at(place, "output_text.done", text=text),
        )
    ]
    items = [{**message(text), "id": None} for text in texts]
    closing = (done(place, item) for place, item in enumerate(items))
    data = stream_of(*events, *closing, terminal(output=items))
    assert said(data) == "".join(texts)
    assert receive(data)[0].divergences == []


def said(data: bytes) -> str:
    """The content, which has to be the same in both renderings."""
    _, events = receive(data)
    stream = ChatStream()
    assert parsed(stream.translate(data) + stream.translate_eof()) == plain(events)
    return fold(events).choices[0].message.content or ""


def test_citations_of_a_text_that_is_stated_only_are_said_where_they_belong() -> None:
    def part(text: str, *urls: str) -> Json:
        citations = [
            {"type": "url_citation", "url": url, "start_index": 0, "end_index": 1} for url in urls
        ]
        return {"type": "output_text", "text": text, "annotations": citations}

    content = [part("", "a"), part("One. "), part("", "b"), part("Two.", "c")]
    item = {**message(), "content": content}
    annotations = answer(stream_of(done(0, item), terminal(output=[item])))["annotations"]
    assert [
        (each["url_citation"]["url"], each["url_citation"]["start_index"]) for each in annotations
    ] == [("a", 0), ("b", 5), ("c", 5)]


class TestText:
    def test_what_contradicts_what_was_sent_is_reported_and_not_sent(self) -> None:
        stream, events = receive(
            stream_of(
                created(),
                added(0, message()),
                text_delta("Hello"),
                text_done("Goodbye"),
                done(0, message("Goodbye")),
                terminal(output=[message("Goodbye")]),
            )
        )
        assert fold(events).choices[0].message.content == "Hello"
        assert stream.divergences == [Divergence("msg_1", "content", 5, 7)]

    def test_a_final_form_shorter_than_what_was_sent_is_a_divergence(self) -> None:
        data = stream_of(
            created(), added(0, message()), text_delta("Hello"), text_done("Hel"), terminal()
        )
        assert receive(data)[0].divergences == [Divergence("msg_1", "content", 5, 3)]

    def test_a_snapshot_after_the_item_is_done_adds_nothing(self) -> None:
        data = stream_of(
            created(),
            added(0, message()),
            text_delta("Hello"),
            done(0, message("Hello")),
            terminal(output=[message("Hello again")]),
        )
        assert answer(data)["content"] == "Hello"
        assert receive(data)[0].divergences == [Divergence("msg_1", "content", 5, 11)]

    def test_a_terminal_message_with_another_id_and_text_is_not_said_beside_the_first(self) -> None:
        data = stream_of(
            created(),
            added(1, message()),
            text_delta("Hello", index=1),
            terminal(output=[message("Goodbye", id="other")]),
        )
        assert answer(data)["content"] == "Hello"
        assert receive(data)[0].divergences == [Divergence("msg_1", "content", 5, 7)]

    def test_an_item_closed_empty_is_filled_by_the_terminal_snapshot(self) -> None:
        data = stream_of(
            created(),
            added(0, message()),
            done(0, message()),
            terminal(output=[message("Hello")]),
        )
        assert answer(data)["content"] == "Hello"

    def test_a_terminal_snapshot_without_output_says_nothing(self) -> None:
        data = stream_of(created(), added(0, message()), text_delta("Hello"), terminal())
        assert answer(data)["content"] == "Hello"

    @pytest.mark.parametrize("replayed", ["Hello", "Hel", ""])
    def test_text_in_the_announcement_and_its_replay_are_said_once(self, replayed: str) -> None:
        data = stream_of(
            created(),
            added(0, message()),
            part("added", {"type": "output_text", "text": "Hello"}),
            *(text_delta(each) for each in replayed),
            done(0, message("Hello")),
            terminal(),
        )
        assert answer(data)["content"] == "Hello"

    def test_text_in_the_announcement_may_also_be_continued(self) -> None:
        data = stream_of(
            created(),
            added(0, message("He")),
            text_delta("H"),
            text_delta("i!"),
            done(0, message("HeHi!")),
            terminal(),
        )
        assert answer(data)["content"] == "HeHi!"
        assert receive(data)[0].divergences == []

    def test_half_a_surrogate_pair_at_the_end_becomes_the_replacement_character(self) -> None:
        data = stream_of(created(), added(0, message()), text_delta("a\ud83d"), terminal())
        assert answer(data)["content"] == "a\ufffd"

    def test_half_a_pair_in_the_announcement_does_not_hide_the_whole(self) -> None:
        data = stream_of(
            created(),
            added(0, message()),
            text_delta("\ud83d"),
            text_delta("\ude00"),
            text_done("\U0001f600"),
            terminal(output=[message("\U0001f600")]),
        )
        assert answer(data)["content"] == "\U0001f600"

    def test_parts_in_an_index_that_rises_are_one_part(self) -> None:
        data = stream_of(
            created(),
            added(0, message()),
            *({**text_delta(c), "content_index": n} for n, c in enumerate("aab")),
            {**text_done("aab"), "content_index": 2},
            done(0, message("aab")),
            terminal(output=[message("aab")]),
        )
        assert answer(data)["content"] == "aab"
        assert receive(data)[0].divergences == []

    def test_a_part_stated_at_another_index_is_not_said_again(self) -> None:
        data = stream_of(
            created(),
            added(0, message()),
            text_delta("Hello"),
            text_done("Hello"),
            part("done", {"type": "output_text", "text": "Hello"}, content_index=5),
            terminal(),
        )
        assert answer(data)["content"] == "Hello"

    def test_a_delta_for_a_closed_part_is_late(self) -> None:
        data = stream_of(
            created(), added(0, message()), text_done("Hello"), text_delta("!"), terminal()
        )
        stream, _ = receive(data)
        assert answer(data)["content"] == "Hello"
        assert stream.ignored_events == 1

    def test_messages_without_any_name_follow_each_other(self) -> None:
        bare = {"type": "response.output_text.done", "text": "Hello"}
        data = stream_of(created(), bare, terminal(output=[{**message("Hello"), "id": None}]))
        assert answer(data)["content"] == "Hello"

    def test_what_is_no_object_changes_nothing(self) -> None:
        nothing: list[Json] = [
            added(0, None),  # type: ignore[arg-type]
            done(0, None),  # type: ignore[arg-type]
            part("added", None),
            part("done", None),
            text_delta(None),
            text_delta(5),
            text_done(None),
            {"type": "response.output_text.annotation.added", "annotation": None},
            {"type": "response.refusal.done", "refusal": None},
            {"type": "response.reasoning_text.done", "text": None},
            {"type": "response.reasoning_summary_text.done", "text": 5},
            {"type": "response.reasoning_summary_part.done", "part": None},
            {"type": "response.function_call_arguments.done", "arguments": None},
            {"type": "response.image_generation_call.partial_image"},
            {"type": "response.created", "response": None},
        ]
        _, events = receive(
            stream_of(created(), *nothing, {"type": "response.completed", "response": None})
        )
        assert deltas(events) == [{"role": "assistant", "content": ""}, {}]

    def test_a_refusal_is_a_stop(self) -> None:
        refusal = {"type": "refusal", "refusal": "No."}
        data = stream_of(
            created(),
            added(0, message()),
            part("added", {"type": "refusal", "refusal": ""}),
            {**text_delta("N"), "type": "response.refusal.delta"},
            part("done", refusal),
            done(0, {**message(), "content": [refusal]}),
            terminal(output=[{**message(), "content": [refusal]}]),
        )
        said = answer(data)
        assert (said["refusal"], said["content"], said["finish_reason"]) == ("No.", None, "stop")


TOKEN: Json = {"token": "é", "logprob": -0.5, "top_logprobs": [{"token": "e", "logprob": -2}]}
FILLED: Json = {
    "token": "é",
    "logprob": -0.5,
    "bytes": [195, 169],
    "top_logprobs": [{"token": "e", "logprob": -2.0, "bytes": [101]}],
}


class TestLogprobs:
    def logprobs(self, *events: Json, **options: Any) -> list[Json]:
        _, said = receive(stream_of(created(), added(0, message()), *events), **options)
        (choice,) = fold(said).to_dict()["choices"]
        if choice["logprobs"] is None:
            return []
        assert choice["logprobs"]["refusal"] is None
        content: list[Json] = choice["logprobs"]["content"]
        return content

    def test_bytes_are_filled_in(self) -> None:
        delta = text_delta("é", logprobs=[TOKEN])
        assert self.logprobs(delta, terminal()) == [FILLED]

    def test_they_may_come_with_the_whole_text_only(self) -> None:
        end = text_done("é", logprobs=[TOKEN])
        assert self.logprobs(text_delta("é"), end, terminal()) == [FILLED]
        assert self.logprobs(end, terminal()) == [FILLED]

    def test_they_may_come_with_the_item_only(self) -> None:
        item = message("é")
        item["content"][0]["logprobs"] = [TOKEN]
        assert self.logprobs(text_delta("é"), terminal(output=[item])) == [FILLED]

    def test_they_may_come_without_text(self) -> None:
        delta = text_delta("", logprobs=[TOKEN])
        assert self.logprobs(delta, terminal()) == [FILLED]

    def test_they_are_held_back_with_their_text(self) -> None:
        deltas = [text_delta("é", logprobs=[TOKEN]), text_delta("x")]
        assert self.logprobs(*deltas, terminal(), stop=["éa"]) == [FILLED]

    @pytest.mark.parametrize(
        "spoilt",
        [{"token": None}, {"logprob": None}, {"logprob": "x"}, {"token": 5}],
    )
    def test_an_entry_that_says_nothing_is_left_out(self, spoilt: Json) -> None:
        delta = text_delta("é", logprobs=[{**TOKEN, **spoilt}, TOKEN])
        assert self.logprobs(delta, terminal()) == [FILLED]

    def test_bytes_that_are_none_are_made_anew(self) -> None:
        delta = text_delta("é", logprobs=[{**TOKEN, "bytes": [10**30]}])
        assert self.logprobs(delta, terminal()) == [FILLED]

    def test_an_infinite_logprob_is_no_number(self) -> None:
        frame = stream_of(text_delta("é", logprobs=[TOKEN])).replace(b"-0.5", b"-1e999")
        data = stream_of(created(), added(0, message())) + frame + stream_of(terminal())
        assert fold(receive(data)[1]).choices[0].logprobs is None


class TestCitations:
    def cited(self, *events: Json) -> list[Json]:
        cited: list[Json] = answer(stream_of(created(), *events)).get("annotations", [])
        return cited

    @staticmethod
    def annotation(**fields: Any) -> Json:
        return {"type": "url_citation", "url": "https://a.example/", **fields}

    def event(self, annotation: Json) -> Json:
        return {
            "type": "response.output_text.annotation.added",
            "item_id": "msg_1",
            "output_index": 0,
            "content_index": 0,
            "annotation": annotation,
        }

    def item(self, *annotations: Json) -> Json:
        item = message("Hello")
        item["content"][0]["annotations"] = list(annotations)
        return item

    def test_each_is_said_once_whatever_form_it_comes_in(self) -> None:
        full = self.annotation(title="A", start_index=0, end_index=5)
        stated = {**text_done(None), "type": "response.content_part.done"}
        stated["part"] = self.item(full)["content"][0]
        said = self.cited(
            added(0, message()),
            text_delta("Hello"),
            self.event(full),
            stated,
            done(0, self.item(full)),
            terminal(output=[self.item(full)]),
        )
        citation = {key: value for key, value in full.items() if key != "type"}
        assert said == [{"type": "url_citation", "url_citation": citation}]

    def test_one_without_indexes_is_the_one_that_has_them_later(self) -> None:
        said = self.cited(
            added(0, message()),
            text_delta("Hello"),
            self.event(self.annotation()),
            terminal(output=[self.item(self.annotation(start_index=0, end_index=5))]),
        )
        assert said == [{"type": "url_citation", "url_citation": {"url": "https://a.example/"}}]

    def test_indexes_count_the_whole_content(self) -> None:
        second = self.item(self.annotation(start_index=1, end_index=2))
        (said,) = self.cited(done(0, message("Hi. ", id="msg_0")), done(1, second), terminal())
        assert said["url_citation"]["start_index"] == 5
        assert said["url_citation"]["end_index"] == 6

    def test_other_kinds_have_no_form(self) -> None:
        other = {"type": "file_citation", "file_id": "f", "index": 1}
        assert self.cited(added(0, message()), self.event(other), terminal()) == []


class TestReasoning:
    def delta(self, kind: str, text: str, *, index: int = 0, part: int = 0) -> Json:
        place = "content_index" if "text" in kind and "summary" not in kind else "summary_index"
        return {
            "type": f"response.{kind}.delta",
            "item_id": f"rs_{index}",
            "output_index": index,
            place: part,
            "delta": text,
        }

    def test_a_blank_line_stands_between_blocks_and_nowhere_else(self) -> None:
        summary = "reasoning_summary_text"
        data = stream_of(
            created(),
            self.delta(summary, "a"),
            self.delta(summary, "b"),
            {
                "type": "response.reasoning_summary_part.added",
                "item_id": "rs_0",
                "output_index": 0,
                "summary_index": 1,
                "part": None,
            },
            self.delta(summary, "c", part=1),
            done(0, {"type": "reasoning", "id": "rs_0"}),
            self.delta("reasoning_text", "d", index=1),
            terminal(),
        )
        assert answer(data)["reasoning_content"] == "ab\n\nc\n\nd"
        assert answer(data, reasoning="reasoning")["reasoning"] == "ab\n\nc\n\nd"
        assert "reasoning_content" not in answer(data, reasoning=None)

    def test_a_summary_that_only_the_item_has_is_split_into_its_parts(self) -> None:
        item = {
            "type": "reasoning",
            "id": "rs_0",
            "summary": [{"text": "abc"}, {"text": ""}, {"text": "def"}, {"text": None}],
        }
        data = stream_of(
            created(), self.delta("reasoning_summary_text", "a"), done(0, item), terminal()
        )
        assert answer(data)["reasoning_content"] == "abc\n\ndef"

    @pytest.mark.parametrize("kind", ["reasoning", "reasoning_text"])
    def test_both_names_of_raw_reasoning(self, kind: str) -> None:
        data = stream_of(created(), self.delta(kind, "Hm."), terminal())
        assert answer(data)["reasoning_content"] == "Hm."

    def test_raw_parts_announced_with_text(self) -> None:
        announced = {
            "type": "response.content_part.added",
            "item_id": "rs_0",
            "output_index": 0,
            "content_index": 0,
            "part": {"type": "reasoning_text", "text": "Hm"},
        }
        stated = {**announced, "type": "response.content_part.done"}
        stated["part"] = {"type": "reasoning_text", "text": "Hm."}
        assert (
            answer(stream_of(created(), announced, stated, terminal()))["reasoning_content"]
            == "Hm."
        )


class TestCalls:
    def test_a_call_without_arguments_gets_an_empty_object(self) -> None:
        for end in ([done(0, call())], [arguments_done("")], []):
            data = stream_of(created(), added(0, call()), *end, terminal())
            assert calls(data) == [("call_1", "weather", "{}")]

    def test_a_call_cut_before_its_arguments_gets_none(self) -> None:
        cut = {**call(), "status": "incomplete"}
        data = stream_of(created(), added(0, call()), done(0, cut), terminal("incomplete"))
        assert calls(data) == [("call_1", "weather", "")]

    def test_arguments_as_an_object_are_its_json(self) -> None:
        item = {**call(), "arguments": {"city": "Paris"}}
        data = stream_of(created(), added(0, call()), done(0, item), terminal())
        assert calls(data) == [("call_1", "weather", PARIS)]

    def test_arguments_nested_without_end_cost_only_themselves(self) -> None:
        outcomes = set()
        for depth in range(900, 1010):
            item = stream_of(done(0, {**call(), "arguments": "DEEP"}))
            deep = item.replace(b'"DEEP"', b'{"a":' * depth + b"1" + b"}" * depth)
            stream, events = receive(stream_of(created()) + deep + stream_of(terminal()))
            assert isinstance(events[-1], Done)
            outcomes.add((stream.skipped_events, len(deltas(events))))
        # Said whole, or not to be read at all; and the stream goes on.
        assert outcomes == {(0, 4), (1, 2)}

    def test_a_call_without_a_call_id_has_its_items_id(self) -> None:
        item = {**call(PARIS), "call_id": None}
        data = stream_of(created(), added(0, item), done(0, item), terminal())
        assert calls(data) == [("fc_1", "weather", PARIS)]

    def test_a_call_without_any_id_gets_one(self) -> None:
        item = {**call(PARIS), "call_id": None, "id": ""}
        assert calls(stream_of(created(), done(0, item), terminal())) == [
            ("call_1_0", "weather", PARIS)
        ]

    def test_a_call_whose_name_comes_late_waits_for_it(self) -> None:
        data = stream_of(
            created(),
            arguments_delta(PARIS[:4]),
            arguments_delta(PARIS[4:]),
            done(0, call(PARIS)),
            terminal(),
        )
        assert calls(data) == [("call_1", "weather", PARIS)]

    def test_a_call_without_a_name_is_reported_and_blocks_no_other(self) -> None:
        data = stream_of(
            created(),
            arguments_delta(PARIS),
            added(1, call(n=2)),
            arguments_delta(ROME, n=2, index=1),
            terminal(),
        )
        assert calls(data) == [("call_2", "weather", ROME)]
        assert receive(data)[0].divergences == [Divergence("fc_1", "arguments", len(PARIS), 0)]

    def test_a_second_announcement_of_the_same_call_is_no_second_call(self) -> None:
        data = stream_of(
            created(),
            added(0, call()),
            added(0, {**call(), "id": "fc_x", "call_id": "call_x"}),
            arguments_delta(PARIS),
            terminal(),
        )
        assert calls(data) == [("call_1", "weather", PARIS)]

    def test_an_index_used_again_belongs_to_the_newer_item(self) -> None:
        data = stream_of(
            created(),
            added(0, message()),
            text_delta("Hi"),
            done(0, message("Hi")),
            added(0, message(id="msg_2")),
            {**text_delta(" you"), "item_id": None},
            terminal(),
        )
        assert answer(data)["content"] == "Hi you"

    def test_another_call_in_the_place_of_an_open_one_is_another_call(self) -> None:
        data = stream_of(
            created(),
            added(0, call(n=1, name="a")),
            added(0, call(n=2, name="b")),
            arguments_done(PARIS, n=1),
            arguments_done(ROME, n=2),
            terminal(),
        )
        assert calls(data) == [("call_1", "a", PARIS), ("call_2", "b", ROME)]

    def test_a_done_call_of_another_name_in_the_place_of_an_open_one_is_another_call(self) -> None:
        data = stream_of(
            created(),
            added(0, call(n=1, name="a")),
            done(0, call(ROME, n=2, name="b")),
            terminal(),
        )
        assert calls(data) == [("call_1", "a", "{}"), ("call_2", "b", ROME)]

    def test_a_call_that_another_has_followed_cannot_grow(self) -> None:
        data = stream_of(
            created(),
            added(0, call(n=1)),
            arguments_done("{}", n=1),
            added(1, call(n=2)),
            arguments_done(ROME, n=2, index=1),
            done(0, call("{} ", n=1)),
            terminal(),
        )
        assert calls(data) == [("call_1", "weather", "{}"), ("call_2", "weather", ROME)]
        assert receive(data)[0].divergences == [Divergence("fc_1", "arguments", 2, 3)]

    def test_a_terminal_call_with_other_arguments_in_another_place_is_another_call(self) -> None:
        data = stream_of(
            created(),
            added(0, call(n=1)),
            arguments_done(PARIS, n=1),
            done(0, call(PARIS, n=1)),
            terminal(output=[message("x", id="m"), call(ROME, n=2)]),
        )
        assert calls(data) == [("call_1", "weather", PARIS), ("call_2", "weather", ROME)]

    def test_a_terminal_call_with_other_ids_and_arguments_in_its_place_is_a_divergence(
        self,
    ) -> None:
        data = stream_of(
            created(),
            added(0, call(n=1)),
            arguments_done(PARIS, n=1),
            terminal(output=[call(ROME, n=2)]),
        )
        assert calls(data) == [("call_1", "weather", PARIS)]
        assert len(receive(data)[0].divergences) == 1

    def test_calls_that_wait_are_said_before_a_failure(self) -> None:
        _, events = receive(
            stream_of(
                created(),
                added(0, call(n=1)),
                added(1, call(n=2)),
                arguments_delta(ROME, n=2, index=1),
                arguments_delta(PARIS[:3], n=1),
            )
        )
        said = [each["tool_calls"][0] for each in deltas(events) if "tool_calls" in each]
        assert [each["index"] for each in said] == [0, 0, 1, 1]
        assert said[-1]["function"]["arguments"] == ROME
        assert isinstance(events[-1], Failure)

    @pytest.mark.parametrize(
        ("item", "options", "clients"),
        [
            ({"name": "sql"}, {}, True),
            ({"name": "sql"}, {"client_tools": ["sql"]}, True),
            ({"name": "sql"}, {"client_tools": []}, False),
            ({"name": "view_image"}, {}, True),
            ({"name": "sql", "call_id": "xs_call_1"}, {}, False),
        ],
    )
    def test_whose_a_custom_call_is(self, item: Json, options: Json, clients: bool) -> None:
        given = {"type": "custom_tool_call", "id": "ct_1", "call_id": "c", "input": "x", **item}
        delta = {
            "type": "response.custom_tool_call_input.delta",
            "item_id": "ct_1",
            "output_index": 0,
            "delta": "x",
        }
        end = {**delta, "type": "response.custom_tool_call_input.done", "input": "x"}
        for events in (
            [added(0, {**given, "input": ""}), delta, end, done(0, given)],
            [added(0, {**given, "input": ""}), {**delta, "item_id": "other"}, done(0, given)],
            [delta, done(0, given)],
            [done(0, given)],
            [],
        ):
            data = stream_of(created(), *events, terminal(output=[given]))
            expected = [(given["call_id"], given["name"], "x")] if clients else []
            assert calls(data, **options) == expected


class TestImages:
    @staticmethod
    def partial(b64: Any, *, id: str = "ig_1") -> Json:
        return {
            "type": "response.image_generation_call.partial_image",
            "item_id": id,
            "output_index": 0,
            "partial_image_b64": b64,
            "output_format": "png",
        }

    @staticmethod
    def image(b64: str | None, *, id: str = "ig_1", **more: Any) -> Json:
        return {"type": "image_generation_call", "id": id, "result": b64, **more}

    def urls(self, *events: Json, **options: Any) -> list[str]:
        said = answer(stream_of(created(), *events), **options)
        return [each["image_url"]["url"] for each in said.get("images", [])]

    def test_partial_images_if_asked_for_and_the_last_of_them_once(self) -> None:
        events = [self.partial("AA"), self.partial("BB"), done(0, self.image("BB"))]
        late = self.partial("CC")
        end = terminal(output=[self.image("BB")])
        png = "data:image/png;base64,"
        assert self.urls(*events, late, end, images="partial") == [png + "AA", png + "BB"]
        assert self.urls(*events, end) == [png + "BB"]
        assert self.urls(*events, end, images=None) == []

    def test_an_image_under_another_id_is_the_same(self) -> None:
        end = terminal(output=[self.image("BB", id="ig_9")])
        assert len(self.urls(done(3, self.image("BB")), end)) == 1
        assert len(self.urls(done(0, self.image("BB")), end)) == 1
        assert len(self.urls(done(3, self.image("AA")), end)) == 2

    @pytest.mark.parametrize(
        ("result", "form", "url"),
        [
            ("/9j/", None, "data:image/jpeg;base64,/9j/"),
            ("iVBOR", None, "data:image/png;base64,iVBOR"),
            ("odd", None, "data:image/png;base64,odd"),
            ("odd", "webp", "data:image/webp;base64,odd"),
            ("https://i.example/1.png", "png", "https://i.example/1.png"),
        ],
    )
    def test_the_url_of_an_image(self, result: str, form: str | None, url: str) -> None:
        assert self.urls(terminal(output=[self.image(result, output_format=form)])) == [url]

    def test_an_image_without_a_result_is_none(self) -> None:
        assert self.urls(done(0, self.image(None)), terminal()) == []


class TestStops:
    def test_what_was_held_is_said_when_something_else_follows(self) -> None:
        data = stream_of(
            created(), added(0, message()), text_delta("Hi\n"), added(1, call()), terminal()
        )
        _, events = receive(data, stop="\n\n")
        said = [next(iter(each), None) for each in deltas(events)]
        assert said == ["role", "content", "content", "tool_calls", "tool_calls", None]

    def test_nothing_is_said_after_a_stop_and_the_rest_of_the_bytes_is_ignored(self) -> None:
        stream = ChatStream(stop=["END"], include_usage=True)
        events = stream.receive_data(
            stream_of(
                created(),
                added(0, message()),
                text_delta("Hello E"),
                text_delta("ND of it"),
                text_delta("more"),
                added(1, call(PARIS)),
                terminal("failed"),
            )
        )
        assert stream.wants_close
        assert stream.state is State.COMPLETED
        assert stream.failure is None
        completion = fold(events)
        assert completion.choices[0].message.content == "Hello "
        assert completion.choices[0].finish_reason == "stop"
        assert completion.usage is None

    def test_a_stop_may_come_to_light_at_the_end(self) -> None:
        # "b" ends the content, but until the end it could have been the "bcd" that begins there.
        for end in (terminal("incomplete"), terminal("failed"), done(0, message("abc"))):
            stream, events = receive(
                stream_of(created(), added(0, message()), text_delta("abc"), end),
                stop=["abcd", "b"],
            )
            assert fold(events).choices[0].message.content == "a"
            assert stream.state is State.CLOSED
            assert stream.wants_close

    def test_no_stop_sequences_are_no_stop_sequences(self) -> None:
        for none in (None, "", [], [""]):
            data = stream_of(created(), added(0, message()), text_delta("Hello"), terminal())
            assert answer(data, stop=none)["content"] == "Hello"
