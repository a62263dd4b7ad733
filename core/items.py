"""The output items of one response: who they are, and how much of each has been received.

Identity. Upstreams name an item by any of `item_id`, `output_index` and `call_id`, and no two do
it alike: GitHub Copilot makes a new `item_id` for every event, others shift `output_index` on done
events, leave either out, or number content parts over all items. So an item is found through an
alias table, one per family (messages, reasoning, tools), in which the first registration wins, and
"the open one" is meant only when exactly one is open.

Reconciliation. The same text comes up to five times: in deltas, in `*.done`, in
`content_part.done`, in `output_item.done` and in the terminal response. `Sent` remembers what was
received as a length and a digest, never as text, and says of each later form what it adds.

Nothing here emits anything; `stream.py` asks and acts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from enum import Enum
from hashlib import sha256
from itertools import islice
from typing import Any, Final, Generic, TypeAlias, TypeVar

import msgspec

from deltawire.enums import direct
from deltawire.responses import OutputItem

# How many open items, or parts, are compared by content where names fail. Upstreams have a handful
# open at once; without a bound a hostile stream could make the comparison quadratic.
_WINDOW: Final = 16


def digest(text: str) -> bytes:
    """What stands for a text that is not kept."""
    return sha256(text.encode(), usedforsecurity=False).digest()


# Processors have instructions for this one; it took half the time of blake2b. Many a part and many
# a channel stay empty, and they have no digest of their own.
_NOTHING: Final = sha256(usedforsecurity=False)


class Sent:
    """How much of a text was received, as length (code points) and digest."""

    __slots__ = ("_digest", "length")

    def __init__(self) -> None:
        self.length = 0
        self._digest = _NOTHING

    def copy(self) -> Sent:
        """An account of its own of the same text."""
        copied = Sent()
        copied.length = self.length
        copied._digest = self._digest.copy()
        return copied

    def extend(self, text: str) -> None:
        """Count `text`, which must be valid Unicode, as received."""
        self.length += len(text)
        if self._digest is _NOTHING:
            self._digest = _NOTHING.copy()
        self._digest.update(text.encode())

    def remainder(self, final: str) -> str | None:
        """What `final` adds to what was received; None if that is no prefix of `final`."""
        if not self.length:
            return final
        if len(final) < self.length:
            return None
        if digest(final[: self.length]) != self._digest.digest():
            return None
        return final[self.length :]


# Dictionaries take 0.2 KB, most families and channels stay empty, and most others get one member,
# which says of itself all that they would.
_NO_ITEMS: Final[list[Any]] = []
_NO_PARTS: Final[dict[int, Part]] = {}


@direct
class Sink(Enum):
    """Where the text of a channel goes."""

    CONTENT = "content"
    REFUSAL = "refusal"
    REASONING = "reasoning"
    ARGUMENTS = "arguments"
    NOWHERE = "nowhere"


class Part:
    """One part of a channel: a content part, a summary part, or the arguments of a call."""

    __slots__ = ("closed", "half", "logprobs", "offset", "replay", "replayed", "sent")

    def __init__(self) -> None:
        self.sent = Sent()
        self.closed = False
        # The first half of a surrogate pair that upstream split over two deltas.
        self.half = ""
        # Text that came with the announcement. Some upstreams then stream it once more from its
        # start; the first `replayed` characters of that were recognized and not sent again.
        self.replay: str | None = None
        self.replayed = 0
        self.logprobs = 0
        # How many characters of message content were sent before this part began.
        self.offset = 0


class Channel:
    """The parts of one kind in one item, such as the refusals of a message."""

    __slots__ = ("_open", "item", "logprobs", "parts", "sent", "sink", "unnumbered")

    def __init__(self, item: Item, sink: Sink) -> None:
        self.item = item
        # The last part that began without an index.
        self.unnumbered: Part | None = None
        self.sink = sink
        self.sent = Sent()
        self.logprobs = 0
        # That of all channels as long as there is nothing in it.
        self.parts: dict[int, Part] = _NO_PARTS
        # An insertion-ordered set, from the second part on.
        self._open: dict[Part, None] | None = None

    @property
    def open(self) -> Collection[Part]:
        """The parts that are not closed, in the order of their beginnings."""
        if self._open is not None:
            return self._open
        return [part for part in self.parts.values() if not part.closed]

    def announce(self, index: int | None) -> Part:
        """The part that upstream says begins now."""
        if index is not None and index in self.parts:
            return self.parts[index]
        return self._begin(index)

    def streaming(self, index: int | None) -> Part:
        """The part that a delta belongs to.

        An unannounced index while exactly one part is open is that part: older vLLM raised
        `content_index` with every delta (vLLM PR 35184).
        """
        if index is not None and index in self.parts:
            return self.parts[index]
        return self._only_open() or self._meant(index) or self._begin(index)

    def stated(self, index: int | None, text: str) -> Part:
        """The part whose whole text is stated to be `text`."""
        if index is not None and index in self.parts:
            return self.parts[index]
        only = self._only_open()
        if only is not None and (index is not None or only.sent.length):
            return only
        if meant := self._meant(index):
            return meant
        # What says nothing of its place, and was said before, is said again rather than new.
        for part in islice(reversed(self.parts.values()), _WINDOW):
            if part.sent.length and part.sent.remainder(text) == "":
                return part
        return only or self._begin(index)

    def last(self) -> Part:
        """The part that text was last received for."""
        received = [part for part in self.parts.values() if part.sent.length]
        return received[-1] if received else self.vacant()

    def vacant(self) -> Part:
        """A part that nothing was received for: the open one, or a new one."""
        only = self._only_open()
        return only if only is not None and not only.sent.length else self._begin(None)

    def extend(self, part: Part, text: str) -> None:
        """Count `text` as received for `part`."""
        part.sent.extend(text)
        if part.sent is not self.sent:
            self.sent.extend(text)

    def close(self, part: Part) -> None:
        """Freeze the part: no delta reaches it any more."""
        part.closed = True
        if self._open is not None:
            self._open.pop(part, None)

    def _only_open(self) -> Part | None:
        open = self.open
        return next(iter(open)) if len(open) == 1 else None

    def _meant(self, index: int | None) -> Part | None:
        """The open part that something without an index belongs to, among several."""
        part = self.unnumbered if index is None else None
        return part if part is not None and not part.closed else None

    def _begin(self, index: int | None) -> Part:
        part = Part()
        if index is None:
            self.unnumbered = part
        if not self.parts:
            self.parts = {}
            # With one part, which is nearly always, one account serves both.
            part.sent = self.sent
        elif len(self.parts) == 1:
            self.sent = self.sent.copy()
            self._open = dict.fromkeys(self.open)
        if index is None or index in self.parts:
            index = -1 - len(self.parts)
        self.parts[index] = part
        if self._open is not None:
            self._open[part] = None
        return part


class Item(ABC):
    """What all items have: their names, and how far they are.

    An `announced` item began with `output_item.added`, others with the first that was said of them.
    A `done` item takes no more deltas. A `frozen` one was done with something in it, so that no
    later snapshot adds to it either; an item that was closed empty may still be filled by one.
    """

    __slots__ = ("announced", "call_id", "diverged", "done", "frozen", "id", "index")

    def __init__(self) -> None:
        self.id: str | None = None
        self.index: int | None = None
        self.call_id: str | None = None
        self.announced = False
        self.done = False
        self.frozen = False
        self.diverged = False

    @property
    @abstractmethod
    def received(self) -> bool:
        """Whether anything of the item was received."""

    @abstractmethod
    def agrees(self, snapshot: OutputItem) -> bool:
        """Whether `snapshot` may be a later form of what was received of this item."""

    def announced_as(self, item: OutputItem) -> bool:
        """Whether an item announced in the place of this one may be this one."""
        return True

    def resembles(self, position: int, snapshot: OutputItem) -> bool:
        """Whether an item that is not named alike and does not agree may still be this one.

        Better a divergence than the same text twice.
        """
        return True


class TextItem(Item):
    """An item that is received as text."""

    __slots__ = ()

    @property
    @abstractmethod
    def channels(self) -> tuple[Channel, ...]:
        """What can be received of it."""

    @property
    def received(self) -> bool:
        return any(channel.sent.length for channel in self.channels)


class MessageItem(TextItem):
    """An assistant message; `place` is what was before it, as of a `ReasoningItem`."""

    __slots__ = ("_refusal", "cited", "place", "text")

    def __init__(self, sink: Sink, place: tuple[int, int]) -> None:
        super().__init__()
        self.place = place
        self.text = Channel(self, sink)
        self._refusal: Channel | None = None
        self.cited: Counter[tuple[str, int | None, int | None]] | None = None

    @property
    def refusal(self) -> Channel:
        """Few messages have any."""
        if self._refusal is None:
            self._refusal = Channel(self, Sink.REFUSAL)
        return self._refusal

    @property
    def channels(self) -> tuple[Channel, ...]:
        return (self.text,) if self._refusal is None else (self.text, self._refusal)

    def agrees(self, snapshot: OutputItem) -> bool:
        text = "".join(texts_of(snapshot))
        refusal = "".join(refusals_of(snapshot))
        return (
            self.text.sent.remainder(text) is not None
            and self.refusal.sent.remainder(refusal) is not None
        )


class ReasoningItem(TextItem):
    """Reasoning: raw text, a summary, or both, of which only one is shown.

    `place` is what was before it: so much content (code points), so many calls.
    """

    __slots__ = ("place", "raw", "summary")

    def __init__(self, sink: Sink, place: tuple[int, int]) -> None:
        super().__init__()
        self.place = place
        self.raw = Channel(self, sink)
        self.summary = Channel(self, sink)

    @property
    def channels(self) -> tuple[Channel, ...]:
        return self.raw, self.summary

    def agrees(self, snapshot: OutputItem) -> bool:
        raw = "".join(texts_of(snapshot))
        summary = "".join(summaries_of(snapshot))
        return (
            self.raw.sent.remainder(raw) is not None
            and self.summary.sent.remainder(summary) is not None
        )


class CallItem(TextItem):
    """A function or custom tool call that the client is to run.

    `complete` is set once the arguments are whole; `opened` once the client was told of the call;
    until then, and while an earlier call is unfinished, its arguments wait in `waiting`.
    `identified` is set once no better id for it is to be expected.
    """

    __slots__ = (
        "arguments",
        "complete",
        "custom",
        "identified",
        "name",
        "opened",
        "position",
        "waiting",
    )

    def __init__(self, *, custom: bool) -> None:
        super().__init__()
        self.arguments = Channel(self, Sink.ARGUMENTS)
        self.custom = custom
        self.name: str | None = None
        self.identified = False
        self.opened = False
        self.complete = False
        self.position = -1
        self.waiting: list[str] = []

    @property
    def channels(self) -> tuple[Channel, ...]:
        return (self.arguments,)

    def agrees(self, snapshot: OutputItem) -> bool:
        if self.name is not None and self.name != snapshot.name:
            return False
        stated = arguments_of(snapshot)
        return stated is not None and self.arguments.sent.remainder(stated) is not None

    def announced_as(self, item: OutputItem) -> bool:
        return self.name in (None, item.name)

    def resembles(self, position: int, snapshot: OutputItem) -> bool:
        # Two calls of one function differ in their arguments; one call has one place.
        return self.index == position and self.name in (None, snapshot.name)


class HostedItem(Item):
    """Whatever the provider runs itself, and what has no form in Chat Completions."""

    __slots__ = ("image",)

    def __init__(self) -> None:
        super().__init__()
        # The digest of the last image that was received of it.
        self.image: bytes | None = None

    @property
    def received(self) -> bool:
        return self.image is not None

    def agrees(self, snapshot: OutputItem) -> bool:
        return snapshot.result is not None and self.image == digest(snapshot.result)

    def resembles(self, position: int, snapshot: OutputItem) -> bool:
        return False


def texts_of(snapshot: OutputItem) -> Iterator[str]:
    """The texts of a snapshot's content parts, refusals left out."""
    return (part.text for part in snapshot.content or () if part.text is not None)


def refusals_of(snapshot: OutputItem) -> Iterator[str]:
    """The refusals of a snapshot's content parts."""
    return (part.refusal for part in snapshot.content or () if part.refusal is not None)


def summaries_of(snapshot: OutputItem) -> Iterator[str]:
    """The texts of a snapshot's summary parts."""
    return (part.text for part in snapshot.summary or () if part.text is not None)


def arguments_of(snapshot: OutputItem) -> str | None:
    """The stated arguments or input of a call, None where the snapshot is silent."""
    custom = snapshot.type == "custom_tool_call"
    return arguments_text(snapshot.input if custom else snapshot.arguments)


def arguments_text(stated: object) -> str | None:
    """Arguments as text: some servers send the JSON object itself instead of its text."""
    if stated is None or isinstance(stated, str):
        return stated
    try:
        return msgspec.json.encode(stated).decode()
    except RecursionError:
        # Nested as deep as can just be read, which no tool would take either.
        return None


I = TypeVar("I", bound=Item)  # noqa: E741


_Name: TypeAlias = str | tuple[str] | int


class Family(Generic[I]):
    """The items of one family and the aliases they are known by."""

    __slots__ = ("_known", "_nameless", "_open", "items")

    def __init__(self) -> None:
        # That of all families as long as there is nothing in it.
        self.items: list[I] = _NO_ITEMS
        # An insertion-ordered set, from the second item on.
        self._open: dict[I, None] | None = None
        # By id, by call id in a tuple, and by index; from the second item on, or the second call id
        # of one.
        self._known: dict[_Name, I] | None = None
        # The last item that began without any name.
        self._nameless: I | None = None

    def add(self, item: I) -> None:
        """Take in a new item; `register` gives it its names."""
        if not self.items:
            self.items = [item]
            return
        if self._open is None:
            self._open = dict.fromkeys(self.open)
        self._tabulate()
        self.items.append(item)
        self._open[item] = None

    @property
    def open(self) -> Collection[I]:
        """The items that are not done, in their order."""
        if self._open is not None:
            return self._open
        return [item for item in self.items if not item.done]

    def _tabulate(self) -> dict[_Name, I]:
        if self._known is None:
            self._known = {name: item for item in self.items for name in _names_of(item)}
        return self._known

    def _find(self, name: _Name) -> I | None:
        if self._known is not None:
            return self._known.get(name)
        # One item at most; a generator of its names takes 0.5 us, this 0.1.
        for item in self.items:
            if name in (item.id, item.index) or name == (item.call_id,):
                return item
        return None

    def register(
        self, item: I, item_id: str | None, index: int | None, call_id: str | None
    ) -> None:
        """Let the item be known by these names from now on, where they are free."""
        if not (item_id or call_id) and index is None:
            self._nameless = item
        if call_id and item.call_id not in (None, call_id):
            self._tabulate()
        known = self._known
        if item_id and item.id is None:
            item.id = item_id
            if known is not None:
                known.setdefault(item_id, item)
        if call_id:
            item.call_id = item.call_id or call_id
            if known is not None:
                known.setdefault((call_id,), item)
        if index is not None and item.index is None:
            item.index = index
            # An index that is used again belongs to the newer item: some servers number every
            # item 0, and deltas of an item that is done have nowhere to go anyway.
            if known is not None and known.setdefault(index, item).done:
                known[index] = item

    def finish(self, item: I, *, stated: bool) -> None:
        """The item is done; `stated`: and it was said what is in it."""
        item.done = True
        item.frozen = item.frozen or stated or item.received
        if self._open is not None:
            self._open.pop(item, None)

    def named(self, item_id: str | None, call_id: str | None) -> I | None:
        """The item that is known by one of these two names."""
        found = self._find(item_id) if item_id else None
        if found is None and call_id:
            found = self._find((call_id,))
        return found

    def at(self, index: int | None) -> I | None:
        """The item that is known by this `output_index`."""
        return None if index is None else self._find(index)

    def of_delta(self, item_id: str | None, index: int | None, call_id: str | None) -> I | None:
        """The item that a delta belongs to.

        A delta that is named by both id and index, neither of them known, belongs to an item that
        was not announced, not to the open one.
        """
        found = self.named(item_id, call_id) or self.at(index)
        if found is None and not (item_id and index is not None):
            found = self._open_at(index) or self._meant(item_id, index, call_id)
        return found

    def _open_at(self, index: int | None) -> I | None:
        """The one open item, unless it began by itself in another place than this."""
        only = self._only_open()
        if only is None or only.announced or only.index is None or index in (None, only.index):
            return only
        return None

    def _meant(self, item_id: str | None, index: int | None, call_id: str | None) -> I | None:
        """The open item that something without any name belongs to, among several."""
        item = None if item_id or call_id or index is not None else self._nameless
        return item if item is not None and not item.done else None

    def of_statement(
        self,
        item_id: str | None,
        index: int | None,
        call_id: str | None,
        agrees: Callable[[I], bool],
        resembles: Callable[[I], bool] = lambda item: True,
    ) -> I | None:
        """The item that a `*.done` event or `output_item.done` speaks of.

        These are known to carry a shifted `output_index` or a new id. So where the names fail,
        agreement with what was received (`agrees`) outweighs a bare position, and a position is
        taken only for an item that `resembles` the stated one.
        """
        if found := self.named(item_id, call_id):
            return found
        nameless = self._meant(item_id, index, call_id)
        if nameless is not None and agrees(nameless):
            return nameless
        at_index = self.at(index)
        if at_index is not None and agrees(at_index):
            return at_index
        for item in islice(self.open, _WINDOW):
            if item.received and agrees(item):
                return item
        if at_index is not None and not at_index.done and resembles(at_index):
            return at_index
        only = None if item_id and index is not None else self._open_at(index)
        return only if only is not None and resembles(only) else None

    def _only_open(self) -> I | None:
        open = self.open
        return next(iter(open)) if len(open) == 1 else None

    def match(self, snapshots: dict[int, OutputItem]) -> dict[int, I]:
        """Find the known items among those of a terminal response, both keyed by position.

        First by name; then, of what is left on both sides, by agreement at the same position, by
        agreement in order, and by mere resemblance in order. What is not found is a new item.
        """
        found: dict[int, I] = {}
        if not snapshots:
            return found
        claimed: set[I] = set()
        for position, snapshot in snapshots.items():
            named = self.named(snapshot.id, snapshot.call_id)
            if named is not None and named not in claimed:
                found[position] = named
                claimed.add(named)
        for position, snapshot in snapshots.items():
            item = None if position in found else self.at(position)
            if item is not None and item not in claimed and item.agrees(snapshot):
                found[position] = item
                claimed.add(item)
        left = {item: None for item in self.items if item not in claimed and item.received}
        for test in (_agrees, _resembles):
            for position, snapshot in snapshots.items():
                if position not in found:
                    for item in islice(left, _WINDOW):
                        if test(item, position, snapshot):
                            found[position] = item
                            del left[item]
                            break
        return found


def _names_of(item: Item) -> Iterator[_Name]:
    if item.id is not None:
        yield item.id
    if item.call_id is not None:
        yield (item.call_id,)
    if item.index is not None:
        yield item.index


def _agrees(item: Item, position: int, snapshot: OutputItem) -> bool:
    return item.agrees(snapshot)


def _resembles(item: Item, position: int, snapshot: OutputItem) -> bool:
    return item.resembles(position, snapshot)
