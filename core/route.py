"""`Route`: the short way of a text delta, from the bytes of its frame to its text.

What may live here: how a frame looks whose like went the long way a moment ago. What may not: what
an event means (`output`), the life of the response (`stream`, the only caller), how a chunk looks
(`chunks`).

Theory of operation
-------------------
The frames of the deltas of one part are equal but for a text, a sequence number and a padding:

    event: ...
    data: {...,"delta":"TEXT","item_id":...,"obfuscation":"PAD",...,"sequence_number":N}

A `Template` is what is constant in a frame that went the long way, and where its slots are; it is
proved, not guessed: another text put into the slot has to parse as the same event with that text.
A frame that fits is the template's constants, byte for byte, with a JSON string, digits, and
letters and digits between them, so that it cannot mean anything else. Whatever does not fit goes
the long way; nothing here has to understand it.

Every step is a method of `bytes` that does its work in C, because a step of Python costs more than
all the bytes of a frame. benchmarks/NOTES.md has what else was tried, and the figures.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Final, TypeAlias

import msgspec
from msgspec import Struct

from deltawire.responses import StreamEvent, parse

_encode: Final = msgspec.json.Encoder().encode
_decode_text: Final = msgspec.json.Decoder(str).decode
_decode_texts: Final = msgspec.json.Decoder(list[str]).decode
# What a decoder raises for something that is no string.
_UNFIT: Final = (msgspec.MsgspecError, UnicodeDecodeError)

# Texts wait to be accounted for. 48 of at most 4 KiB are few enough to keep and enough to make the
# cost of the digest per delta small; in a larger event a short way would save little.
_MAX_UNSETTLED: Final = 48
_MAX_FRAME: Final = 4096
# How many bytes are searched for frames at once: enough to spread the cost of a search, and little
# enough to be searched in vain.
_WINDOW: Final = 16 * 1024

_DIGITS: Final = b"0123456789"
_ALPHANUMERICS: Final = _DIGITS + b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_CYCLE: Final = rb'("[^"\\]*(?:\\.[^"\\]*)*")(.{%d})%b(.{%d})%b(.{%d})'
_NEXT_KEY: Final = re.compile(rb' *, *"[^"\\]*"')


# The text of a frame and what follows it; the beginning of a frame, up to its text; a pattern for
# what stands between the texts of two frames, and what each of its groups should be.
_Cycle: TypeAlias = tuple[bytes, bytes, re.Pattern[bytes], tuple[tuple[int, bytes], ...]]


class _Slot(Struct, frozen=True):
    """Bytes that differ from frame to frame: all of `chars`, the first from `least` to `past`.

    JSON knows no number without a digit or with a zero in front. A slot that is not there has no
    `chars`. `pattern` says the same once more.
    """

    chars: bytes = b""
    least: bytes = b""
    past: bytes = b"\xff"
    pattern: bytes = b""

    @property
    def example(self) -> bytes:
        return b"1" if self.chars else b""


_NONE: Final = _Slot()
_NUMBER: Final = _Slot(_DIGITS, b"1", b":", b"[1-9][0-9]*")
_PADDING: Final = _Slot(_ALPHANUMERICS, pattern=b"[0-9A-Za-z]*")
# Each stands once in a payload, or is taken for a constant. The text is no slot like the others.
_SLOTS: Final = (
    (b'"delta"', re.compile(rb'"delta" *: *("(?:[^"\\]|\\.)*")'), _NONE),
    (b'"sequence_number"', re.compile(rb'"sequence_number" *: *([1-9][0-9]*)[ ,}]'), _NUMBER),
    (b'"obfuscation"', re.compile(rb'"obfuscation" *: *"([0-9A-Za-z]+)"'), _PADDING),
)


class Template(Struct, frozen=True):
    """A frame: lead, SLOT, head, TEXT, key, middle, SLOT, between, SLOT, end.

    The head ends with the key `"delta"` and its colon, `key` is as much of what follows the text as
    can be searched for. Of the slots there are at most two, and the one in front, which servers
    have that count first, only with one behind the text.
    """

    lead: bytes
    ahead: _Slot
    head: bytes
    key: bytes
    middle: bytes
    behind: _Slot
    between: bytes
    last: _Slot
    end: bytes
    delta: bytes
    """What the head ends with."""

    @property
    def start(self) -> bytes:
        """What every frame begins with."""
        return self.lead if self.ahead.chars else self.lead + self.head

    @property
    def example(self) -> bytes:
        """A frame that fits."""
        front = self.lead + self.ahead.example + self.head + b'"x"' + self.key + self.middle
        return front + self.behind.example + self.between + self.last.example + self.end

    @property
    def cycle(self) -> _Cycle:
        """What takes many frames apart.

        Of five groups of a frame, split by the pattern, the first is what should not be there, the
        second is the text.
        """
        first, one, second = self.key + self.middle, self.behind, self.between
        two, third = self.last, self.end + self.head
        if self.lead and one.chars:
            second, two, third = self.end + self.lead, self.ahead, self.head
        elif self.lead:
            first, one, second, third = first + self.lead, self.ahead, self.head, b""
        pattern = _CYCLE % (len(first), one.pattern, len(second), two.pattern, len(third))
        constants = ((0, b""), (2, first), (3, second), (4, third))
        *_, example = self.example.partition(self.delta)
        upcoming = self.lead + self.ahead.example + self.head
        return example, upcoming, re.compile(pattern, re.DOTALL), constants


def learn(line: bytes, payload: bytes, event: StreamEvent) -> Template | None:
    """The template of the frame of a delta; None if it has none.

    `line` is what stands before `payload` in the frame, `event` what the payload was read as.
    """
    # The patterns below keep a place for each character of a text, 140 bytes.
    if event.logprobs or len(payload) > _MAX_FRAME:
        return None
    slots = []
    for name, pattern, slot in _SLOTS:
        # `search` and a count: `finditer` left objects behind with every call.
        found = pattern.search(payload) if payload.count(name) == 1 else None
        if found is not None:
            slots.append((*found.span(1), slot))
    slots.sort(key=lambda each: each[0])
    constants, kinds = [line], []
    at = 0
    for begin, end, slot in slots:
        constants[-1] += payload[at:begin]
        constants.append(b"")
        kinds.append(slot)
        at = end
    constants[-1] += payload[at:] + b"\n\n"
    template = _arranged(constants, kinds)
    if template is None:
        return None
    text, event.delta = event.delta, "x"
    example = parse(template.example[len(line) : -2], StreamEvent) or StreamEvent()
    example.type = example.type or event.type
    proved = example == event
    event.delta = text
    return template if proved else None


def _arranged(constants: list[bytes], slots: list[_Slot]) -> Template | None:
    """The template with these slots between these constants; None for an order never seen."""
    if _NONE not in slots:
        return None
    before, behind = slots[: slots.index(_NONE)], slots[slots.index(_NONE) + 1 :]
    if len(before) == 2:
        return None
    lead, *rest = constants
    if not before:
        if behind:
            head, lead = lead, b""
        else:
            # Something has to be in front of the missing slot.
            head, lead = lead[1:], lead[:1]
    else:
        head, *rest = rest
    follows = rest[0]
    following = _NEXT_KEY.match(follows)
    key = follows[: following.end() if following else -1]
    delta = head[head.index(b'"delta"') :]
    return Template(
        lead=lead,
        ahead=before[0] if before else _NONE,
        head=head,
        key=key,
        middle=follows[len(key) :],
        behind=behind[0] if behind else _NONE,
        between=rest[1] if len(behind) > 0 and not lead else b"",
        last=behind[1] if len(behind) > 1 else _NONE,
        end=rest[-1] if len(behind) > 1 or (lead and behind) else b"",
        delta=delta,
    )


class Tally:
    """The texts that took a route and wait to be accounted for, by `account`, at `place`."""

    __slots__ = ("_account", "_place", "texts", "used")

    def __init__(self, account: Callable[..., None], place: tuple[object, ...]) -> None:
        self._account = account
        self._place = place
        self.texts: list[str] = []
        self.used = False

    def settle(self) -> None:
        """Account for them."""
        if self.texts:
            self.used = True
            text = "".join(self.texts)
            self.texts.clear()
            self._account(*self._place, text)


def _reader(template: Template, tally: Tally, limit: int) -> Callable[[bytes], str]:
    """What gives the text of a frame that fits, of up to `limit` bytes, and "" for any other.

    Written out once more below; as a method it took a fifth longer. Its constants are defaults,
    which take less memory than the cells of a closure.
    """

    # `removeprefix` gives the very same object where there is no such prefix.
    def read(
        frame: bytes,
        head: bytes = template.head,
        key: bytes = template.key,
        middle: bytes = template.middle,
        behind: bytes = template.behind.chars,
        least_behind: bytes = template.behind.least,
        past_behind: bytes = template.behind.past,
        between: bytes = template.between,
        last: bytes = template.last.chars,
        padded: bool = template.last is _PADDING,
        least_last: bytes = template.last.least,
        past_last: bytes = template.last.past,
        end: bytes = template.end,
        limit: int = limit,
        tally: Tally = tally,
        texts: list[str] = tally.texts,
    ) -> str:
        opened = frame.removeprefix(head)
        if opened is frame:
            return ""
        quoted, _, rest = opened.partition(key)
        first = rest.removeprefix(middle)
        second = first.lstrip(behind)
        third = second.removeprefix(between)
        if (
            # To strip a padding takes twice as long as to look at it.
            not (
                (padding := third.removesuffix(end)) is not third
                and (padding.isalnum() or not padding)
                if padded
                else third.lstrip(last) == end and least_last <= third < past_last
            )
            or first is rest
            or third is second
            or not least_behind <= first < past_behind
            # White space that JSON allows around a string may be the end of a line.
            or quoted.strip() is not quoted
            or len(frame) > limit
        ):
            return ""
        try:
            text = _decode_text(quoted)
        except _UNFIT:
            return ""
        texts.append(text)
        if len(texts) == _MAX_UNSETTLED:
            tally.settle()
        return text

    return read


def _counted_first_reader(template: Template, tally: Tally, limit: int) -> Callable[[bytes], str]:
    """As `_reader`, for a template with a lead."""

    def read(
        frame: bytes,
        lead: bytes = template.lead,
        ahead: bytes = template.ahead.chars,
        least_ahead: bytes = template.ahead.least,
        past_ahead: bytes = template.ahead.past,
        head: bytes = template.head,
        key: bytes = template.key,
        middle: bytes = template.middle,
        behind: bytes = template.behind.chars,
        padded: bool = template.behind is _PADDING,
        least_behind: bytes = template.behind.least,
        past_behind: bytes = template.behind.past,
        end: bytes = template.end,
        limit: int = limit,
        tally: Tally = tally,
        texts: list[str] = tally.texts,
    ) -> str:
        number = frame.removeprefix(lead)
        behind_number = number.lstrip(ahead)
        opened = behind_number.removeprefix(head)
        if number is frame or opened is behind_number:
            return ""
        quoted, _, rest = opened.partition(key)
        first = rest.removeprefix(middle)
        if (
            not (
                (padding := first.removesuffix(end)) is not first
                and (padding.isalnum() or not padding)
                if padded
                else first.lstrip(behind) == end and least_behind <= first < past_behind
            )
            or first is rest
            or not least_ahead <= number < past_ahead
            or quoted.strip() is not quoted
            or len(frame) > limit
        ):
            return ""
        try:
            text = _decode_text(quoted)
        except _UNFIT:
            return ""
        texts.append(text)
        if len(texts) == _MAX_UNSETTLED:
            tally.settle()
        return text

    return read


class Route:
    """The way of the deltas of one part.

    template: how their frames look. account: told the texts, behind what `place` says, some time
    after they were read. limit: how long a frame may be, in bytes.
    """

    __slots__ = ("_cycle", "_limit", "_start", "_tally", "_template", "read")

    def __init__(
        self,
        template: Template,
        account: Callable[..., None],
        place: tuple[object, ...],
        limit: int,
    ) -> None:
        self._template = template
        self._tally = Tally(account, place)
        self._limit = limit
        self._start = template.start
        self._cycle: _Cycle | None = None
        make = _counted_first_reader if template.lead else _reader
        self.read = make(template, self._tally, min(limit, _MAX_FRAME))
        """The text of one frame, "" if it does not fit."""

    @property
    def used(self) -> bool:
        """Whether any text took the route."""
        return self._tally.used or bool(self._tally.texts)

    def settle(self) -> None:
        """Account for what was read."""
        self._tally.settle()

    def may_begin(self, data: bytes) -> bool:
        """Whether these bytes may be the beginning of a frame, no line having ended unseen."""
        start = self._start
        if not data.startswith(start):
            return start.startswith(data)
        rest = data[len(start) :].removesuffix(b"\n")
        return b"\n" not in rest and b"\r" not in rest

    def read_run(self, data: bytes, at: int) -> tuple[list[str], list[bytes], int]:
        """The texts of the frames that follow one another from `at`, the same as JSON, and where
        they end.

        A frame that is followed by something else may be left out.
        """
        window = data[at : at + min(self._limit, _WINDOW)]
        if not window.startswith(self._start):
            return [], [], at
        # To search in vain through what follows would cost more than all that is found: a snapshot
        # of the answer has many strings.
        last = window.rfind(self._template.head)
        size = window.find(b"\n\n", last) + 2
        if last < 0 or size < 2:
            size = window.rfind(b"\n\n", 0, max(last, 0)) + 2
        if size < 2:
            return [], [], at
        # With a frame before the first of the window and the beginning of one after the last, every
        # text is between two. In C the pattern takes them apart, skipping what should be constant
        # by its length, and in C that is compared; a loop of the steps of `read` took half as long
        # again.
        before, after, pattern, constants = self._cycle = self._cycle or self._template.cycle
        parts = pattern.split(b"".join((before, window[:size], after)))
        fitting = len(parts) // 5
        # What is behind the last that the pattern knows are frames that it does not know.
        all_of_them = fitting + bool(parts[-1])
        for group, constant in constants:
            column = parts[group::5]
            if column.count(constant) != len(column):
                others = (frame for frame, part in enumerate(column) if part != constant)
                fitting = min(fitting, next(others))
        texts, encoded = _read_texts(parts[1 : 5 * fitting : 5])
        if len(texts) < all_of_them:
            size = 0
            for _ in texts[1:]:
                size = window.index(b"\n\n", size) + 2
        del texts[:1]
        del encoded[:1]
        self._tally.texts += texts
        self._tally.settle()
        return texts, encoded, at + size


def _read_texts(quoted: list[bytes]) -> tuple[list[str], list[bytes]]:
    """These strings, up to the first that is empty or none, and how they are written here."""
    # All at once: a call for each, and one more to write it again, took three times as long.
    listed = b"[%b]" % b",".join(quoted)
    try:
        texts = _decode_texts(listed)
    except _UNFIT:
        texts = []
        with contextlib.suppress(*_UNFIT):
            # As far as that goes.
            texts.extend(map(_decode_text, quoted))
        listed = b""
    if "" in texts:
        del texts[texts.index("") :]
        listed = b""
    return texts, quoted if _encode(texts) == listed else [_encode(text) for text in texts]
