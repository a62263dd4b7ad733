"""What `direct` makes of an enum, and that each of the package's own is one."""

from __future__ import annotations

import enum
import importlib
import pkgutil

import deltawire
from deltawire.enums import direct


@direct
class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


def test_it_is_an_enum_as_any_other() -> None:
    assert Colour("red") is Colour.RED
    assert Colour["BLUE"] is Colour.BLUE
    assert list(Colour) == [Colour.RED, Colour.BLUE]
    assert {Colour.RED: 1}[Colour("red")] == 1
    assert repr(Colour.RED) == "<Colour.RED: 'red'>"


def test_all_of_the_package_are_so() -> None:
    found = set()
    for module in pkgutil.walk_packages(deltawire.__path__, "deltawire."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, enum.EnumType) and value.__module__.startswith("deltawire."):
                found.add(value)
    assert len(found) > 5
    for kind in found:
        members: dict[str, enum.Enum] = dict(kind.__members__)
        assert all(vars(kind)[name] is member for name, member in members.items()), kind
