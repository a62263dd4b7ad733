"""hypothesis profiles, and where the recorded streams are.

`ci` draws the same examples every time, so that a red run can be run again. `tenfold` draws ten
times as many, at random, and `long` 25 times: `DELTAWIRE_HYPOTHESIS=tenfold`.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

COMMON = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", COMMON, derandomize=True, max_examples=60)
settings.register_profile("tenfold", COMMON, max_examples=600)
settings.register_profile("long", COMMON, max_examples=1500)
settings.load_profile(os.environ.get("DELTAWIRE_HYPOTHESIS", "ci"))


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing stands between the test and its own servers, whatever the environment says."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
