"""The laws of `AccountPool`, and what an `Account` takes for a setting that works."""

from __future__ import annotations

import itertools
import math
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from deltawire import Failure, accounts
from deltawire.accounts import Account, AccountPool, Health, Unready, endpoint
from deltawire.dialects import DIALECTS, GENERIC
from deltawire.errors import InvalidSetting

BUSY = Failure("busy", code="rate_limit_exceeded")
DAY = 24 * 3600.0
MODELS = ["gpt-5", "gpt-5-mini", "grok-4"]


def pool_of(*names: str, **options: Any) -> AccountPool:
    return AccountPool([Account(name=name) for name in names], **options)


def chosen(pool: AccountPool, now: float = 0.0, *, model: str = "gpt-5", **more: Any) -> Account:
    found = pool.choose(model, now, **more)
    assert isinstance(found, Account)
    return found


def unready(pool: AccountPool, now: float = 0.0, *, model: str = "gpt-5", **more: Any) -> Unready:
    found = pool.choose(model, now, **more)
    assert isinstance(found, Unready)
    return found


def tire(pool: AccountPool, account: Account, now: float, **more: Any) -> None:
    pool.settle(account, Health.TIRED, now, model="gpt-5", **more)


# The laws of choice.

NAMES = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6, unique=True)
TIMES = st.floats(0, 1e6)


@given(NAMES, st.integers(0, 20), TIMES)
def test_no_account_starves(names: list[str], before: int, now: float) -> None:
    pool = pool_of(*names)
    for _ in range(before):
        chosen(pool, now)
    successive = [chosen(pool, now).name for _ in range(3 * len(names))]
    for start in range(2 * len(names) + 1):
        assert set(successive[start : start + len(names)]) == set(names)


@given(NAMES, st.data())
def test_none_is_chosen_that_is_excluded(names: list[str], draw: st.DataObject) -> None:
    pool = pool_of(*names)
    for exclude in draw.draw(st.lists(st.sets(st.sampled_from(names)), min_size=1, max_size=6)):
        found = pool.choose("gpt-5", 0.0, exclude=exclude)
        if exclude == set(names):
            assert found == Unready(math.inf, refused=False)
        else:
            assert isinstance(found, Account)
            assert found.name not in exclude


def test_none_is_chosen_that_does_not_serve_the_model() -> None:
    pool = AccountPool(
        [
            Account(name="any"),
            Account(name="gpt", models=("gpt-5*",)),
            Account(name="both", models=("o3", "grok-?")),
        ]
    )

    def serving(model: str) -> set[str]:
        return {chosen(pool, model=model).name for _ in range(6)}

    assert serving("gpt-5-mini") == {"any", "gpt"}
    assert serving("grok-4") == {"any", "both"}
    assert serving("GPT-5") == {"any"}, "models are told apart by case"
    exclude = {"any"}
    assert unready(pool, model="llama", exclude=exclude) == Unready(math.inf, refused=False)


@dataclass
class Known:
    """What is known of an account from the rules alone."""

    account: Account
    until: float = -math.inf
    refused: bool = False
    failures: int = 0
    told: tuple[Failure | None, int | None] = (None, None)
    chosen: int = 0


ACCOUNTS = st.lists(
    st.lists(st.sampled_from(["gpt-5*", "grok-*", "gpt-5-mini"]), max_size=2),
    min_size=1,
    max_size=4,
).map(
    lambda found: [
        Account(name=f"a{place}", models=tuple(models)) for place, models in enumerate(found)
    ]
)


class Pool(RuleBasedStateMachine):
    """A pool and its twin beside a plain account of what the rules say."""

    @initialize(
        found=ACCOUNTS,
        first_rest=st.sampled_from([0.5, 1.0, 3.0]),
        longest_rest=st.sampled_from([0.5, 10.0, math.inf]),
        parking=st.sampled_from([0.0, 5.0, 300.0]),
    )
    def begin(
        self, found: list[Account], first_rest: float, longest_rest: float, parking: float
    ) -> None:
        rests: dict[str, Any] = {
            "first_rest": first_rest,
            "longest_rest": longest_rest,
            "parking": parking,
        }
        self.first_rest, self.longest_rest, self.parking = first_rest, longest_rest, parking
        self.pools = [AccountPool(found, **rests) for _ in range(2)]
        self.known = {account.name: Known(account) for account in found}
        self.kept: dict[str, str] = {}
        self.now = 0.0
        self.choices = itertools.count(1)

    def serving(self, model: str) -> list[Known]:
        return [each for each in self.known.values() if each.account.serves(model)]

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(model=st.sampled_from(MODELS))
    def wait_for_the_first(self, model: str) -> None:
        found = self.pools[1].choose(model, self.now)
        self.pools[0].choose(model, self.now)
        if isinstance(found, Account):
            self.known[found.name].chosen = next(self.choices)
        elif found.until < math.inf:
            early = math.nextafter(found.until, -math.inf)
            assert self.pools[1].choose(model, early) == found, "not a moment before"
            self.now = found.until
            first = self.take(model, None, set())
            assert isinstance(first, Account), "exactly from then on"

    @rule(
        model=st.sampled_from(MODELS),
        affinity=st.none() | st.sampled_from(["x", "y"]),
        exclude=st.sets(st.sampled_from(["a0", "a1", "a2", "a3"]), max_size=2),
    )
    def choose(self, model: str, affinity: str | None, exclude: set[str]) -> None:
        self.take(model, affinity, exclude)

    def take(self, model: str, affinity: str | None, exclude: set[str]) -> Account | Unready:
        found, same = (
            pool.choose(model, self.now, affinity=affinity, exclude=exclude) for pool in self.pools
        )
        assert found == same, "the same was done to both"
        able = [each for each in self.serving(model) if each.account.name not in exclude]
        ready = [each for each in able if each.until <= self.now]
        if isinstance(found, Unready):
            assert ready == []
            self.check_unready(found, able)
            return found
        mine = next(each for each in ready if each.account == found)
        kept = self.kept.get(affinity or "")
        if kept in [each.account.name for each in ready]:
            assert found.name == kept
        else:
            assert mine.chosen == min(each.chosen for each in ready), "the least recently used"
        if affinity is not None:
            self.kept[affinity] = found.name
        mine.chosen = next(self.choices)
        return found

    def check_unready(self, found: Unready, able: list[Known]) -> None:
        assert found.until == min((each.until for each in able), default=math.inf)
        assert found.refused == (able != [] and all(each.refused for each in able))
        candidates = [each for each in able if each.refused == found.refused]
        first = min(candidates, key=lambda each: each.until, default=None)
        assert (found.failure, found.status) == ((None, None) if first is None else first.told)

    @rule(
        name=st.sampled_from(["a0", "a1", "a2", "a3"]),
        health=st.sampled_from(Health),
        model=st.sampled_from(MODELS),
        retry_after=st.none() | st.floats(-10, 200) | st.just(1e9),
        jitter=st.floats(0, 1),
        status=st.sampled_from([429, 500]),
    )
    def settle(
        self,
        name: str,
        health: Health,
        model: str,
        retry_after: float | None,
        jitter: float,
        status: int,
    ) -> None:
        account = Account(name=name)
        for pool in self.pools:
            pool.settle(
                account,
                health,
                self.now,
                model=model,
                retry_after=retry_after,
                failure=BUSY,
                status=status,
                jitter=jitter,
            )
        mine = self.known.get(name)
        if mine is None or health is Health.UNKNOWN:
            return
        if health is Health.WELL:
            mine.failures = 0 if mine.until <= self.now else mine.failures
            return
        others = any(each is not mine for each in self.serving(model))
        rest = 0.0
        if health is Health.REFUSED:
            rest = self.parking if others else 0.0
        elif retry_after is not None:
            rest = min(retry_after, DAY)
        elif others and mine.until <= self.now:
            full = min(self.first_rest * 2**mine.failures, self.longest_rest)
            rest = full * (1 + jitter) / 2
            mine.failures += 1
        if rest > 0 and self.now + rest > mine.until:
            mine.until = self.now + rest
            mine.refused = health is Health.REFUSED
            mine.told = (BUSY, status)

    @invariant()
    def nothing_is_shown_that_rests(self) -> None:
        for model in MODELS:
            able = self.serving(model)
            if able and all(each.until > self.now for each in able):
                for pool in self.pools:
                    assert isinstance(pool.choose(model, self.now), Unready)


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=settings().max_examples // 2, stateful_step_count=25)


# Affinity.


@given(NAMES, st.lists(st.sampled_from("xyz"), max_size=12))
def test_the_same_affinity_is_the_same_account(names: list[str], calls: list[str]) -> None:
    pool = pool_of(*names)
    first: dict[str, Account] = {}
    for affinity in calls:
        found = chosen(pool, affinity=affinity)
        assert found == first.setdefault(affinity, found)
        chosen(pool)


def test_affinity_moves_on_with_an_account_that_rests_and_stays_with_the_new_one() -> None:
    pool = pool_of("a", "b", "c")
    first = chosen(pool, affinity="x")
    tire(pool, first, 0.0, retry_after=10)
    second = chosen(pool, affinity="x")
    assert second != first
    for now in (0.0, 10.0, 1000.0):
        assert chosen(pool, now, affinity="x") == second


def test_affinity_outlives_a_time_in_which_none_is_ready() -> None:
    pool = pool_of("a", "b")
    first = chosen(pool, affinity="x")
    for account in pool.accounts:
        tire(pool, account, 0.0, retry_after=10)
    unready(pool, affinity="x")
    chosen(pool, 10.0)
    assert [chosen(pool, 10.0, affinity="x") for _ in range(2)] == [first, first]


def test_accounts_are_shared_out_over_affinities() -> None:
    pool = pool_of("a", "b", "c")
    served = Counter(chosen(pool, affinity=f"x{n}").name for n in range(30))
    assert set(served.values()) == {10}


def test_the_memory_of_affinity_is_bounded_and_forgets_the_longest_unused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accounts, "_MAX_AFFINITIES", 3)
    pool = pool_of("a", "b")
    kept = chosen(pool, affinity="kept")
    for n in range(50):
        chosen(pool, affinity=f"other {n}" + "x" * 1000)
        assert chosen(pool, affinity="kept") == kept
        assert len(pool._affinities) <= 3
    assert sys.getsizeof(max(pool._affinities)) < 100, "however long the client's own word is"


# Rest.


@given(st.floats(0.001, 1e6), st.floats(0, 1e6), st.booleans())
def test_retry_after_is_obeyed_to_the_second(after: float, now: float, alone: bool) -> None:
    pool = pool_of("a") if alone else pool_of("a", "b")
    account = chosen(pool, now)
    tire(pool, account, now, retry_after=after, failure=BUSY, status=429)
    back = now + min(after, DAY)
    if back > now:
        found = unready(pool, math.nextafter(back, -math.inf), exclude={"b"})
        assert found == Unready(back, refused=False, failure=BUSY, status=429)
    assert chosen(pool, back, exclude={"b"}) == account


@pytest.mark.parametrize("after", [0.0, -1.0, math.nan, -math.inf])
def test_a_delay_that_is_none_is_no_rest(after: float) -> None:
    pool = pool_of("a", "b")
    tire(pool, pool.accounts[0], 0.0, retry_after=after)
    assert chosen(pool, exclude={"b"}).name == "a"


def test_a_delay_without_end_is_a_day() -> None:
    pool = pool_of("a")
    tire(pool, pool.accounts[0], 5.0, retry_after=math.inf)
    assert unready(pool, 5.0).until == 5.0 + DAY


def test_a_shorter_delay_ends_no_longer_one() -> None:
    pool = pool_of("a")
    tire(pool, pool.accounts[0], 0.0, retry_after=60)
    tire(pool, pool.accounts[0], 1.0, retry_after=5)
    assert unready(pool, 1.0).until == 60


@given(
    st.floats(0.01, 10),
    st.floats(0.01, 1000),
    st.lists(st.floats(0, 1), min_size=1, max_size=40),
)
def test_backoff_doubles_up_to_its_cap_and_half_of_it_is_jitter(
    first: float, longest: float, jitters: list[float]
) -> None:
    pool = pool_of("a", "b", first_rest=first, longest_rest=longest)
    account = pool.accounts[0]
    now = 0.0
    for count, jitter in enumerate(jitters):
        tire(pool, account, now, jitter=jitter)
        full = min(first * 2**count, longest)
        until = unready(pool, now, exclude={"b"}).until
        assert now + full / 2 <= until * (1 + 1e-9)
        assert until <= (now + full) * (1 + 1e-9)
        assert until == pytest.approx(now + full / 2 + jitter * full / 2)
        now = until


def test_backoff_after_a_thousand_failures_is_a_number() -> None:
    pool = pool_of("a", "b", longest_rest=math.inf)
    now = 0.0
    for _ in range(1000):
        tire(pool, pool.accounts[0], now)
        now = unready(pool, now, exclude={"b"}).until
    assert now < math.inf


@given(st.integers(1, 30), st.lists(st.floats(0, 0.49), min_size=1, max_size=30))
def test_failures_of_one_outage_count_once(before: int, late: list[float]) -> None:
    """All that fail while the account rests already say the same."""
    one, other = pool_of("a", "b"), pool_of("a", "b")
    now = 0.0
    for _ in range(before):
        for pool in (one, other):
            tire(pool, pool.accounts[0], now)
        for after in late:
            tire(one, one.accounts[0], now + after, jitter=1.0)
        now = unready(other, now, exclude={"b"}).until
        assert unready(one, 0.0, exclude={"b"}).until == now


def test_a_success_after_the_rest_begins_anew() -> None:
    pool = pool_of("a", "b")
    account = pool.accounts[0]

    def rest(now: float) -> float:
        tire(pool, account, now, jitter=1.0)
        return unready(pool, now, exclude={"b"}).until - now

    assert [rest(0.0), rest(10.0), rest(20.0)] == [1.0, 2.0, 4.0]
    pool.settle(account, Health.WELL, 23.0, model="gpt-5")
    assert unready(pool, 23.0, exclude={"b"}).until == 24.0, "it began before the failure"
    assert rest(30.0) == 8.0
    pool.settle(account, Health.WELL, 38.0, model="gpt-5")
    assert rest(40.0) == 1.0


@pytest.mark.parametrize("health", [Health.TIRED, Health.REFUSED])
def test_a_guess_puts_none_away_that_nobody_can_stand_in_for(health: Health) -> None:
    pool = AccountPool([Account(name="a"), Account(name="b", models=("grok-4",))])
    first, second = pool.accounts
    pool.settle(first, health, 0.0, model="gpt-5", failure=BUSY, status=500)
    assert chosen(pool) == first
    pool.settle(first, health, 0.0, model="grok-4", failure=BUSY, status=500)
    assert unready(pool).failure == BUSY
    assert chosen(pool, model="grok-4") == second


def test_a_refused_account_is_parked_and_comes_back() -> None:
    pool = pool_of("a", "b", parking=300.0)
    key = Failure("bad key", code="invalid_api_key")
    pool.settle(
        pool.accounts[0],
        Health.REFUSED,
        0.0,
        model="gpt-5",
        retry_after=1.0,
        failure=key,
        status=401,
    )
    assert [chosen(pool, 299.9).name for _ in range(4)] == ["b"] * 4
    assert unready(pool, 299.9, exclude={"b"}) == Unready(300.0, True, key, 401)
    assert {chosen(pool, 300.0).name for _ in range(2)} == {"a", "b"}


def test_one_that_rests_is_told_of_before_one_that_is_parked() -> None:
    pool = pool_of("a", "b", parking=5.0)
    parked, resting = pool.accounts
    pool.settle(parked, Health.REFUSED, 0.0, model="gpt-5", failure=Failure("no"), status=403)
    tire(pool, resting, 0.0, retry_after=60, failure=BUSY, status=429)
    # Found by the rules: the parked one, which is the first to come back, was not waited for.
    assert unready(pool) == Unready(5.0, refused=False, failure=BUSY, status=429)
    assert chosen(pool, 5.0) == parked


@given(st.sampled_from([None, 1.0, 1e9]), TIMES)
def test_an_attempt_that_says_nothing_changes_nothing(after: float | None, now: float) -> None:
    pool, untouched = pool_of("a", "b"), pool_of("a", "b")
    for each in (pool, untouched):
        tire(each, each.accounts[0], now)
    for account in pool.accounts:
        pool.settle(account, Health.UNKNOWN, now, model="gpt-5", retry_after=after, failure=BUSY)
    assert unready(pool, now, exclude={"b"}) == unready(untouched, now, exclude={"b"})
    assert [chosen(pool, now + n).name for n in range(9)] == [
        chosen(untouched, now + n).name for n in range(9)
    ]


def test_an_account_of_another_pool_is_passed_over() -> None:
    pool = pool_of("a")
    tire(pool, Account(name="stranger"), 0.0, retry_after=60)
    assert chosen(pool).name == "a"


# The guard.


class Guard:
    """A context manager that knows whether it is held, and how often it was."""

    def __init__(self) -> None:
        self.held = False
        self.times = 0

    def __enter__(self) -> None:
        assert not self.held, "it need not be one that can be taken twice"
        self.held = True
        self.times += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.held = False


def test_the_guard_is_held_during_each_operation() -> None:
    guard = Guard()
    looked: list[bool] = []

    class Watched(Account):
        def serves(self, model: str) -> bool:
            looked.append(guard.held)
            return super().serves(model)

    pool = AccountPool([Watched(name="a"), Watched(name="b")], guard=guard)
    account = chosen(pool, affinity="x")
    for health in Health:
        pool.settle(account, health, 0.0, model="gpt-5")
    unready(pool, exclude={"a", "b"})
    assert guard.times == 1 + len(Health) + 1
    assert looked
    assert all(looked)
    assert not guard.held


@contextmanager
def frequent_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def test_threads_that_share_a_pool_with_a_lock_share_it_out_evenly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accounts, "_MAX_AFFINITIES", 2)
    pool = pool_of("a", "b", "c", guard=threading.Lock())
    served: list[str] = []
    errors: list[BaseException] = []
    start = threading.Barrier(8)

    def hammer(number: int) -> None:
        start.wait()
        try:
            for n in range(300):
                account = chosen(pool, affinity=f"{number} {n}")
                served.append(account.name)
                pool.settle(account, Health.WELL, 0.0, model="gpt-5")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=hammer, args=(number,)) for number in range(8)]
    with frequent_switches():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []
    assert Counter(served) == {"a": 800, "b": 800, "c": 800}


# Settings.


@pytest.mark.parametrize(
    ("base_url", "expected"),
    [
        ("https://api.openai.com/v1", "https://api.openai.com/v1/responses"),
        ("https://api.openai.com", "https://api.openai.com/v1/responses"),
        ("https://api.openai.com/", "https://api.openai.com/v1/responses"),
        ("https://api.openai.com/v1/", "https://api.openai.com/v1/responses"),
        ("https://api.openai.com/v1//", "https://api.openai.com/v1/responses"),
        ("https://api.openai.com/v1/responses", "https://api.openai.com/v1/responses"),
        ("https://api.openai.com/v1/responses/", "https://api.openai.com/v1/responses"),
        ("https://openrouter.ai/api/v1", "https://openrouter.ai/api/v1/responses"),
        ("https://x.test/my-responses", "https://x.test/my-responses/responses"),
        ("https://x.test/responses", "https://x.test/responses"),
        ("HTTPS://X.test/v1", "HTTPS://X.test/v1/responses"),
        ("http://localhost:8000", "http://localhost:8000/v1/responses"),
        ("http://my_service:1/v1", "http://my_service:1/v1/responses"),
        ("http://10.0.0.1:65535/v1", "http://10.0.0.1:65535/v1/responses"),
        ("http://[::1]:8080/v1", "http://[::1]:8080/v1/responses"),
        ("http://[2001:db8::1]", "http://[2001:db8::1]/v1/responses"),
        (
            "https://me.openai.azure.com/openai/v1?api-version=preview",
            "https://me.openai.azure.com/openai/v1/responses?api-version=preview",
        ),
        ("https://x.test?a=b/c@d", "https://x.test/v1/responses?a=b/c@d"),
    ],
)
def test_the_endpoint_of_a_base_url(base_url: str, expected: str) -> None:
    assert endpoint(base_url) == expected
    assert Account(base_url=base_url).url == expected
    assert endpoint(expected) == expected


@pytest.mark.parametrize(
    "base_url",
    [
        "",
        "api.openai.com/v1?key=sk-SECRET-1",
        "sk-SECRET-1",
        "//api.openai.com/v1",
        "https:api.openai.com",
        "ftp://x.test/v1",
        "ws://x.test/v1",
        "user:sk-SECRET-1@x.test",
        "https://user:sk-SECRET-1@x.test/v1",
        "https://sk-SECRET-1@x.test",
        "https://user:sk-/SECRET-1@x.test/v1",
        " https://x.test/v1",
        "https://x.test/v1 ",
        "https://x.test/v1\n",
        "https://x.test/\x00",
        "https://x .test/v1",
        "https://x.test/v1#sk-SECRET-1",
        "https://x.test/\u00e9",
        "https://\u00e9.test/v1",
        "https://x.test:0/v1",
        "https://x.test:99999/v1?key=sk-SECRET-1",
        "https://x.test:65536",
        # A port that was cut before it was looked at.
        "https://x.test:0655351/v1",
        "https://x.test:abc/v1?key=sk-SECRET-1",
        "https://x.test:-1/v1",
        "https://x.test:/v1",
        "https://x.test:80:90/v1",
        # An IPv6 address whose end was taken for a port.
        "https://::1/v1",
        "https://[::1/v1",
        "https://[]/v1",
        "https://[::1]x/v1",
        "https://a]b/v1",
        "https://x.test\\@y.test/v1",
        "https://x.test\\y/v1",
        "https://",
        "https:///v1",
        "https://?key=sk-SECRET-1",
        "http://:80",
        "http://:80/v1",
    ],
)
def test_a_base_url_that_is_none_is_a_setting_that_is_named(base_url: str) -> None:
    for make in (endpoint, lambda url: Account(base_url=url)):
        with pytest.raises(InvalidSetting, match=r"^base_url: ") as caught:
            make(base_url)
        assert caught.value.setting == "base_url"
        assert "SECRET" not in f"{caught.value} {caught.value!r}"


@given(st.text(max_size=20) | st.text("htps:/[]@?#1a.", max_size=20).map("https://".__add__))
def test_a_base_url_has_an_endpoint_or_is_refused(text: str) -> None:
    try:
        found = endpoint(text)
    except InvalidSetting:
        return
    assert found.startswith(("http://", "https://"))
    assert found.partition("?")[0].endswith("/responses")
    assert endpoint(found) == found


UNFIT = [
    ("sk-SECRET-1\n", "a line break"),
    ("sk-SECRET-1\r\nX: y", "a line break"),
    ("sk-SEC\x00RET-1", "a control or non-ASCII character at character 6 of 12"),
    ("sk-SECRET-1\u2013", "a control or non-ASCII character at character 11 of 12"),
    ("sk-SECRET-1\x7f", "a control or non-ASCII character"),
    ("sk-SECRET-1\t", "a control or non-ASCII character"),
    (" sk-SECRET-1", "no blank"),
    ("sk-SECRET-1 ", "no blank"),
    ("", "an empty string"),
    (" ", "no blank"),
]


def check_refused(setting: str, match: str, **given: Any) -> None:
    with pytest.raises(InvalidSetting, match=match) as caught:
        Account(**given)
    assert caught.value.setting == setting
    assert str(caught.value).startswith(f"{setting}: ")
    assert "SEC" not in f"{caught.value} {caught.value!r}"


@pytest.mark.parametrize(("value", "match"), UNFIT)
def test_what_cannot_stand_in_a_header_is_refused_and_not_repeated(value: str, match: str) -> None:
    check_refused("api_key", match, key=value)
    check_refused("headers[x-key]", match, headers=(("a", "b"), ("x-key", value)))


@pytest.mark.parametrize(
    "name", ["", "-", "Authorization: Bearer sk-SECRET-1", "sk-SECRET-1\n", "x y", "\u00e9", "a:b"]
)
def test_what_is_no_name_of_a_header_is_refused_and_not_repeated(name: str) -> None:
    check_refused("headers", r"at \[1\]", headers=(("a", "b"), (name, "c")))


def test_names_in_a_pool_differ_and_there_is_one_at_least() -> None:
    with pytest.raises(InvalidSetting, match=r"^accounts: .*'a' twice"):
        pool_of("a", "b", "a")
    with pytest.raises(InvalidSetting, match=r"^accounts: .*none"):
        AccountPool([])


KEYS = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-", min_size=12)


@given(KEYS, KEYS, KEYS)
def test_nothing_that_is_shown_of_an_account_has_its_secrets(
    key: str, value: str, query: str
) -> None:
    account = Account(
        name="first",
        key=key,
        base_url=f"https://x.test/v1?key={query}",
        headers=(("x-key", value), ("Proxy-Authorization", f"Basic {value}=")),
    )
    pool = AccountPool([account])
    tire(pool, account, 0.0, retry_after=5)
    with pytest.raises(InvalidSetting) as caught:
        AccountPool([account, account])
    shown = [repr(account), str(account), repr(pool), repr(pool.accounts), repr(caught.value)]
    shown += [str(caught.value), account.shown_url, repr(unready(pool))]
    for secret in (key, value, query):
        assert secret not in " ".join(shown)
    assert "first" in repr(account)
    assert "https://x.test/v1" in repr(account)
    assert account.url.endswith(query)


def test_the_secrets_are_what_is_sent_and_long_enough_to_be_some() -> None:
    account = Account(
        key="sk-key",
        headers=(
            ("x-short", "12345"),
            ("x-key", "123456"),
            ("Authorization", "Bearer sk-other"),
            ("x-title", "My Application"),
        ),
    )
    assert set(account.secrets) == {
        *("sk-key", "123456", "Bearer sk-other", "sk-other", "My Application")
    }
    assert Account().secrets == ()
    assert Account(key="short").secrets == ()


def test_the_dialect_is_what_is_given_or_what_the_url_says() -> None:
    assert Account().speaks == DIALECTS["openai"]
    assert Account().url == "https://api.openai.com/v1/responses"
    assert Account(base_url="https://api.x.ai/v1").speaks == DIALECTS["xai"]
    assert Account(base_url="http://localhost:8000").speaks == GENERIC
    given = DIALECTS["xai"]
    assert Account(base_url="http://localhost:8000", dialect=given).speaks == given


def test_patterns_are_a_tuple_and_not_the_letters_of_a_string() -> None:
    with pytest.raises(InvalidSetting, match="models"):
        Account(models="gpt-5*")  # type: ignore[arg-type]
