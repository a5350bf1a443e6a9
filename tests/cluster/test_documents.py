"""What crosses is read as it was written, and whatever else there is, is refused."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, get_args

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from qmpballoon.cluster._fields import Malformed
from qmpballoon.cluster.bus import (
    LARGEST_VALUE,
    MOST_HOSTS,
    find_host,
    make_quota_key,
    make_state_key,
    make_vms_key,
    require_host_name,
)
from qmpballoon.cluster.documents import (
    HostState,
    HostVms,
    Job,
    JobPhase,
    JobProgress,
    JobRecord,
    Offer,
    Policy,
    Quota,
    Room,
    VmSummary,
    Wish,
    parse_job,
    parse_policy,
    parse_policy_fields,
    parse_quota,
    parse_record,
    parse_state,
    parse_vms,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = st.integers(0, 2**63 - 1)
SECONDS = st.floats(0, 2**39)
HOSTS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
JOBS = st.from_regex(r"[0-9a-f]{8,32}", fullmatch=True)
NAMES = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20)
TEXTS = st.text(st.characters(categories=["L", "N"]), max_size=20)
SIZE_TEXTS = st.sampled_from(["1GiB", "10%", "0", "4096", "1.5T"])
PROGRESS = st.builds(
    JobProgress,
    JOBS,
    SIZES,
    SIZES,
    st.sampled_from(get_args(JobPhase)),
    SECONDS,
    TEXTS,
)
STATES = st.builds(
    HostState,
    name=HOSTS,
    at=SECONDS,
    total=SIZES,
    available=SIZES | SIZES.map(lambda size: -size),
    reserve=SIZES,
    room=st.builds(Room, SIZES, SIZES, SIZES),
    offer=st.builds(Offer, SIZES, SIZES, SIZES),
    vms=SIZES,
    unknown_vms=SIZES,
    policy_revision=st.none() | SIZES,
    progress=st.none() | PROGRESS,
    notes=st.lists(TEXTS, max_size=3).map(tuple),
)
MAYBE = st.none() | SIZES
VMS = st.builds(
    HostVms,
    HOSTS,
    st.lists(
        st.builds(VmSummary, NAMES, NAMES, TEXTS, MAYBE, MAYBE, MAYBE, MAYBE, MAYBE),
        max_size=3,
    ).map(tuple),
)
WISHES = st.builds(
    Wish,
    NAMES,
    st.none() | SIZE_TEXTS,
    st.dictionaries(NAMES, SIZE_TEXTS, max_size=3),
)
POLICIES = st.builds(
    Policy, st.integers(1, 2**53 - 1), st.lists(WISHES, max_size=3).map(tuple), TEXTS
)
QUOTAS = st.builds(
    Quota,
    JOBS,
    st.integers(1, 2**63 - 1),
    st.booleans(),
    st.booleans(),
    SECONDS,
    SECONDS,
)
ALL_JOBS = st.builds(
    Job,
    JOBS,
    st.integers(1, 2**63 - 1),
    st.booleans(),
    st.booleans(),
    SECONDS,
    SECONDS,
    st.dictionaries(HOSTS, SIZES, max_size=3),
)
RECORDS = st.builds(
    JobRecord, st.none() | PROGRESS, st.dictionaries(JOBS, SECONDS, max_size=3)
)
PARSERS: dict[Callable[[bytes], Any], st.SearchStrategy[Any]] = {
    parse_state: STATES,
    parse_vms: VMS,
    parse_policy: POLICIES,
    parse_quota: QUOTAS,
    parse_job: ALL_JOBS,
    parse_record: RECORDS,
}
each_parser = pytest.mark.parametrize(
    "parse", PARSERS, ids=lambda parse: parse.__name__
)
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.just("x" * 2000),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(data=st.data())
def test_what_was_written_is_read(data: st.DataObject) -> None:
    parse = data.draw(st.sampled_from(list(PARSERS)))
    document = data.draw(PARSERS[parse])
    assert parse(document.to_bytes()) == document


@given(data=st.data())
def test_a_field_may_be_anything_and_is_refused_or_harmless(
    data: st.DataObject,
) -> None:
    parse = data.draw(st.sampled_from(list(PARSERS)))
    content = json.loads(data.draw(PARSERS[parse]).to_bytes())
    spot = content
    while True:
        if not spot:
            break
        keys = list(spot) if isinstance(spot, dict) else list(range(len(spot)))
        key = data.draw(st.sampled_from(keys))
        if isinstance(spot[key], dict | list) and data.draw(st.booleans()):
            spot = spot[key]
            continue
        spot[key] = data.draw(JUNK)
        break
    with suppress(Malformed):
        read = parse(json.dumps(content).encode())
        # What is accepted can be told again, and is read as the same.
        assert parse(read.to_bytes()) == read


@given(data=st.data())
def test_bytes_that_are_changed_raise_nothing_else(data: st.DataObject) -> None:
    parse = data.draw(st.sampled_from(list(PARSERS)))
    whole = bytearray(data.draw(PARSERS[parse]).to_bytes())
    begin = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(begin, len(whole)))
    whole[begin:end] = data.draw(st.binary(max_size=5))
    with suppress(Malformed):
        parse(bytes(whole))


@each_parser
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 5000,
        b" " * (LARGEST_VALUE + 1),
        b'{"kind":"state","v":2}',
        b'{"kind":"other","v":1}',
    ],
)
def test_what_is_no_document_is_refused_in_a_line(
    parse: Callable[[bytes], Any], data: bytes
) -> None:
    with pytest.raises(Malformed) as caught:
        parse(data)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


def test_what_others_chose_is_made_printable_and_cut() -> None:
    vm = VmSummary("a\x1b[2J\udc80", "two\nlines", "x" * 9999)
    (read,) = parse_vms(HostVms("h", (vm,)).to_bytes()).vms
    assert read.name == r"a\x1b[2J\x80"
    assert read.state == r"two\nlines"
    assert len(read.detail) <= 500


def test_a_name_is_never_cut() -> None:
    longest = Policy(1, (Wish("h" * 256),))
    assert parse_policy(longest.to_bytes()) == longest
    with pytest.raises(Malformed, match="must be 1 to 256"):
        parse_policy(Policy(1, (Wish("h" * 257),)).to_bytes())


@pytest.mark.parametrize("until", [-1, -0.5, 2**40, 1e300, True])
def test_a_moment_that_no_clock_shows_is_refused(until: float) -> None:
    quota = Quota("a" * 8, 1, False, False, until, 1.0)  # noqa: FBT003
    with pytest.raises(Malformed, match="until is"):
        parse_quota(quota.to_bytes())


@pytest.mark.parametrize("available", ["much", None, True, -(2**63) - 1, 0.5])
def test_a_host_that_has_what_is_no_size_is_refused(available: object) -> None:
    state = HostState("h", 0.0, 1, 1, 1, Room(0, 0, 0), Offer(), 0, 0)
    content = {**json.loads(state.to_bytes()), "available": available}
    with pytest.raises(Malformed, match="available is"):
        parse_state(json.dumps(content).encode())


def test_as_much_is_read_as_may_be_written() -> None:
    policy = Policy(3)
    assert parse_policy(policy.to_bytes().ljust(LARGEST_VALUE)) == policy
    with pytest.raises(Malformed, match="too many"):
        parse_policy(policy.to_bytes().ljust(LARGEST_VALUE + 1))


def test_what_is_nested_deeper_than_anything_of_ours_is_refused() -> None:
    policy = json.loads(Policy(3).to_bytes())
    data = json.dumps(policy | {"more": json.loads("[" * 50 + "]" * 50)}).encode()
    with pytest.raises(Malformed, match="nested too deep"):
        parse_policy(data)


def test_a_revision_is_exact_for_everybody() -> None:
    largest = Policy(2**53 - 1)
    assert parse_policy(largest.to_bytes()) == largest
    beyond = json.loads(largest.to_bytes()) | {"revision": 2**53}
    with pytest.raises(Malformed, match="revision is"):
        parse_policy(json.dumps(beyond).encode())


def test_an_offer_is_all_of_its_kinds() -> None:
    assert Offer(1, 2, 4).total == 7


def test_a_newer_host_may_say_more() -> None:
    policy = Policy(3)
    more = {**json.loads(policy.to_bytes()), "more": [1]}
    assert parse_policy(json.dumps(more).encode()) == policy


def test_nothing_that_is_written_is_larger_than_may_be_read() -> None:
    vm = VmSummary("n" * 256, "healthy", "d" * 500, *[2**62] * 5)
    data = HostVms("h", (vm,) * 9999).to_bytes()
    assert len(data) <= LARGEST_VALUE
    assert len(parse_vms(data).vms) > 900
    small = VmSummary("n", "healthy")
    assert len(parse_vms(HostVms("h", (small,) * 9999).to_bytes()).vms) == 4000
    wishes = tuple(Wish("h" * 200 + str(number)) for number in range(9000))
    with pytest.raises(Malformed, match="use globs"):
        Policy(1, wishes).to_bytes()
    job = Job("a" * 8, 1, False, False, 0.0, 0.0)  # noqa: FBT003
    short = {f"host{number}": 2**40 for number in range(MOST_HOSTS)}
    assert parse_job(evolve(job, quotas=short).to_bytes()).quotas == short
    long = {f"{number:064}": 2**62 for number in range(MOST_HOSTS * 2)}
    with pytest.raises(Malformed, match="fewer hosts"):
        evolve(job, quotas=long).to_bytes()


def test_a_record_of_jobs_forgets_only_what_is_long_over() -> None:
    record = JobRecord(known={"old": 0.0, "late": 50_000.0})
    progress = JobProgress("new", 1, 0, "taking", 100_001.0)
    begun = record.begin(progress, 100_000.0)
    assert begun.last == progress
    assert begun.known == {"late": 50_000.0, "new": 100_001.0}
    nearly = JobRecord(known={str(number): 1e9 for number in range(4999)})
    full = nearly.begin(progress, 100_000.0)
    assert len(full.known) == 5000
    with pytest.raises(Malformed, match="within a day"):
        full.begin(evolve(progress, job="newer"), 100_000.0)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"wishes": []}, "'wishes' is unknown: use comment, wish"),
        ({"wish": {}}, "wish must be a list"),
        ({"wish": [1]}, "wish is no JSON object"),
        ({"wish": [{}]}, "hosts is '': it must be 1 to 256"),
        ({"wish": [{"hosts": "*", "floor": "1G"}]}, "'floor' is unknown"),
        ({"wish": [{"hosts": "*", "reserve": "much"}]}, "reserve: "),
        ({"wish": [{"hosts": "*", "reserve": 5}]}, "must be text"),
        ({"wish": [{"hosts": "*", "floors": {"a": "-1"}}]}, "the floor of 'a'"),
        ({"wish": [{"hosts": "*", "floors": 7}]}, "floors must be an object"),
        ({"wish": [{"hosts": "*", "reserve": "101%"}]}, "give 100% or less"),
        ({"wish": [{"hosts": "*", "floors": {"a": "9e9%"}}]}, "is not a size"),
        ({"comment": 7}, "comment is 7"),
    ],
)
def test_a_policy_that_a_person_wrote_wrongly(
    table: dict[str, object], words: str
) -> None:
    with pytest.raises(Malformed) as caught:
        parse_policy_fields(table, 1)
    assert words in str(caught.value)


def test_keys_tell_hosts_apart() -> None:
    assert find_host(make_state_key("h-1.x")) == "h-1.x"
    for key in (make_vms_key("h"), make_quota_key("h"), "qb:host::state", "x"):
        assert find_host(key) is None
    assert find_host(make_state_key("a:b")) is None
    for name in ("", "a:b", "-a", "a*", "a b", "ä", "a" * 65, "a\n"):
        with pytest.raises(ValueError, match="the host's name is"):
            require_host_name(name)
    assert require_host_name("a" * 64)


def test_a_policys_revision_is_no_more_than_milliseconds_until_tomorrow() -> None:
    state = HostState("h1", 0.0, 1, 1, 0)
    day, now = 86_400.0, 10 * 86_400.0
    most = round((now + day) * 1000)
    for revision, cannot_be in ((None, False), (most, False), (most + 1, True)):
        claim = evolve(state, policy_revision=revision)
        assert claim.has_impossible_revision(now) == cannot_be


def test_all_of_a_hosts_memory_is_a_share_of_it() -> None:
    assert Wish("*", "100%", {"vm": "100%"}).reserve == "100%"


def test_what_is_asked_of_a_host_was_asked_as_long_before_its_deadline() -> None:
    quota = Quota("0" * 8, 1, takes_hot=True, hold=False, until=100.0, seconds=60.0)
    assert quota.asked_at == 40.0


@pytest.mark.parametrize(("size", "said"), [(1, "1 B"), (0, "none"), (-1, "none")])
def test_a_host_without_memory_has_none_available(size: int, said: str) -> None:
    assert HostState("h1", 0.0, 1, size, 0).describe_available() == said
