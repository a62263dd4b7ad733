"""hypothesis profiles, and where the recorded streams are.

`ci` draws the same examples every time, so that a red run can be run again. `long` draws ten times
as many, at random: `DELTAWIRE_HYPOTHESIS=long`.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

COMMON = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", COMMON, derandomize=True, max_examples=150)
settings.register_profile("long", COMMON, max_examples=1500)
settings.load_profile(os.environ.get("DELTAWIRE_HYPOTHESIS", "ci"))
