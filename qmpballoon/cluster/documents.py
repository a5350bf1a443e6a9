"""What hosts exchange: states, wishes, and what each host gives.

Values, and how each is written as a document and read from one. How a document is
encoded, and what is checked of one that another host has written, is in ``_fields``.

Sizes are bytes. Times are seconds since 1970 by the clock of whoever wrote them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, cast, get_args

from attrs import asdict, field, fields_dict, frozen

from qmpballoon.cluster._fields import LONGEST_NAME, Fields, Malformed, decode, encode
from qmpballoon.cluster.bus import LARGEST_VALUE, MOST_HOSTS
from qmpballoon.sizes import GiB, format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ENDED",
    "HostState",
    "HostVms",
    "Job",
    "JobPhase",
    "JobProgress",
    "JobRecord",
    "Offer",
    "Policy",
    "Quota",
    "Room",
    "VmSummary",
    "Wish",
    "parse_job",
    "parse_policy",
    "parse_policy_fields",
    "parse_quota",
    "parse_record",
    "parse_state",
    "parse_vms",
]

JobPhase = Literal["taking", "holding", "done", "interrupted", "refused"]
"""The phase of a job on a host:

* ``taking``: it takes memory from its guests.
* ``holding``: it has taken what it could, and keeps its guests at the smaller sizes
  until the job's deadline.
* ``done``: its part has ended.
* ``interrupted``: its agent was stopped, or the deadline came, while it was taking. Its
  guests get back what was taken. It is not begun again.
* ``refused``: it did not begin, and says why.
"""
ENDED: Final[frozenset[JobPhase]] = frozenset({"done", "interrupted", "refused"})
"""The phases in which a host has nothing more to do for a job."""

_MOST_VMS: Final = 4000
_MOST_WISHES: Final = 1000
_MOST_NOTES: Final = 16
_MOST_JOBS: Final = 5000  # one every 20 seconds of a day
_DAY: Final = 86400.0  # seconds


@frozen
class Room:
    """How much a host could give to a new VM, in bytes.

    Each VM counts with all the memory that it may touch without asking. So what is left
    after that, and after what the host itself uses, is certainly left.

    Attributes:
        now: Without taking anything from a guest.
        after_cold: After its guests have given their idle and cold memory.
        to_floors: With all guests at their floors.
    """

    now: int = 0
    after_cold: int = 0
    to_floors: int = 0


@frozen
class Offer:
    """What a host's guests can give, in bytes, by how much that costs them.

    Attributes:
        idle: Memory that they do not use at all.
        cold: Page cache that they do not read again.
        hot: Page cache that they read again and again, down to their headrooms.
    """

    idle: int = 0
    cold: int = 0
    hot: int = 0

    @property
    def total(self) -> int:
        """All of it together."""
        return self.idle + self.cold + self.hot


@frozen
class VmSummary:
    """What a host reports of one VM. Sizes in bytes; ``None`` if not known.

    Attributes:
        name: Its name on its host.
        state: Its state, one of :data:`~qmpballoon.fleet.vm_view.VM_STATES`.
        detail: What is wrong and what to do.
        actual: How much memory the guest has.
        total: Its RAM.
        target: The size that it is moving to.
        available: How much memory the guest can do without.
        resident: How much of the host's memory its QEMU holds.
    """

    name: str
    state: str
    detail: str = ""
    actual: int | None = None
    total: int | None = None
    target: int | None = None
    available: int | None = None
    resident: int | None = None


@frozen
class HostVms:
    """A host's VMs.

    Attributes:
        name: The host's name.
        vms: Its VMs. If there are too many for a value, some are left out.
    """

    name: str
    vms: tuple[VmSummary, ...] = ()

    def to_bytes(self) -> bytes:
        """Return the document, with no more VMs than fit into a value."""
        vms = [_leave_out_none(asdict(vm)) for vm in self.vms[:_MOST_VMS]]
        while len(data := encode("vms", {"name": self.name, "vms": vms})) > (
            LARGEST_VALUE
        ):
            vms = vms[: len(vms) // 2]
        return data


@frozen
class JobProgress:
    """The progress of a host with a job.

    Attributes:
        job: The job's id.
        quota: Bytes that the host was asked for.
        taken: Bytes that the host has gained from its guests, up to now or in all. It
            gains nothing from memory that they had never touched.
        phase: The phase of the host's part.
        until: When its part ends at the latest.
        detail: What happened, for people.
    """

    job: str
    quota: int
    taken: int
    phase: JobPhase
    until: float
    detail: str = ""

    def describe(self) -> str:
        """Return the phase and the amounts in a few words."""
        return f"{self.phase} {format_size(self.taken)} of {format_size(self.quota)}"


@frozen
class JobRecord:
    """The jobs that a host has begun, as it keeps them on its disk.

    Attributes:
        last: The progress of the last one.
        known: The ids of jobs that it does not begin again, and their deadlines.
    """

    last: JobProgress | None = None
    known: Mapping[str, float] = field(factory=dict[str, float], hash=False)

    def begin(self, progress: JobProgress, now: float) -> JobRecord:
        """Return the record with a new job.

        A job is forgotten a day after its deadline: by then, even a server that falls
        back to an older copy no longer has it.

        Args:
            progress: The job, as it begins.
            now: The time.

        Raises:
            Malformed: There are too many jobs that must not be forgotten.
        """
        known = {job: until for job, until in self.known.items() if until > now - _DAY}
        known[progress.job] = progress.until
        if len(known) > _MOST_JOBS:
            raise Malformed(
                f"there were {_MOST_JOBS} jobs within a day: no more can be kept"
            )
        return JobRecord(progress, known)

    def to_bytes(self) -> bytes:
        """Return the document."""
        last = self.last and asdict(self.last)
        return encode("jobs", {"last": last, "known": dict(self.known)})


@frozen
class HostState:
    """The state of a host.

    Attributes:
        name: The host's name.
        at: When it published the state.
        total: How much memory it has.
        available: How much of it can be allocated without swapping; below 0 if its VMs
            hold more than the limit that was set for them.
        reserve: How much of that it keeps.
        room: How much it could give to a new VM.
        offer: What its guests can give.
        vms: How many VMs it has.
        unknown_vms: How many of these have no known state. Their memory counts as
            taken, as far as it is known.
        policy_revision: The revision of the policy that it follows; ``None`` if it
            follows only its own rules.
        progress: Its progress with the last job that it knows of.
        notes: What is not as it should be, for people.
    """

    name: str
    at: float
    total: int
    available: int
    reserve: int
    room: Room = Room()
    offer: Offer = Offer()
    vms: int = 0
    unknown_vms: int = 0
    policy_revision: int | None = None
    progress: JobProgress | None = None
    notes: tuple[str, ...] = ()

    def describe_available(self) -> str:
        """Say how much memory is available; ``"none"`` if that is nothing, or less."""
        return "none" if self.available <= 0 else format_size(self.available)

    def has_impossible_revision(self, now: float) -> bool:
        """Tell whether it claims a revision of the policy higher than there can be.

        There have been fewer policies than milliseconds since 1970. A day is added for
        clocks that differ.

        Args:
            now: Seconds since 1970.
        """
        return (self.policy_revision or 0) > (now + _DAY) * 1000

    def to_bytes(self) -> bytes:
        """Return the document."""
        return encode("state", asdict(self))


def _check_reserve(_: object, __: object, value: str | None) -> None:
    if value is not None:
        _require_size_text(value, "reserve")


def _check_floors(_: object, __: object, value: Mapping[str, str]) -> None:
    for pattern, size in value.items():
        _require_size_text(size, f"the floor of {pattern!r:.80}")


def _require_size_text(text: str, name: str) -> None:
    try:
        size = parse_size(text, whole=GiB)
    except (TypeError, ValueError) as error:
        raise Malformed(f"{name}: {error}") from error
    # Hosts and VMs have any size: of a larger share there need not be a size at all.
    if "%" in text and size > GiB:
        raise Malformed(
            f"{name}: {text!r:.80} is more than all of it: give 100% or less"
        )


@frozen
class Wish:
    """What is wished of some hosts.

    Attributes:
        hosts: A glob of their names, such as ``"rack1-*"``.
        reserve: How much memory they should keep available: a size such as ``"8GiB"``,
            or a share of their memory such as ``"10%"``; ``None`` for no wish.
        floors: Floors of VMs, by globs of their names: sizes, or shares of their RAM.

    Raises:
        Malformed: A size is not one.
    """

    hosts: str = "*"
    reserve: str | None = field(default=None, validator=_check_reserve)
    floors: Mapping[str, str] = field(
        factory=dict[str, str], validator=_check_floors, hash=False
    )


@frozen
class Policy:
    """What is wished of all hosts.

    All wishes that match a host or a VM count; of several sizes the largest does.

    Attributes:
        revision: Counts the policies, from 1. Hosts never go back to a lower one.
        wishes: The wishes, in any order.
        comment: What it is for.
    """

    revision: int
    wishes: tuple[Wish, ...] = ()
    comment: str = ""

    def to_bytes(self) -> bytes:
        """Return the document.

        Raises:
            Malformed: It is larger than a value may be.
        """
        data = encode("policy", asdict(self))
        if len(data) > LARGEST_VALUE:
            raise Malformed(
                f"the policy has {len(data)} bytes: {LARGEST_VALUE} are allowed; use"
                " globs instead of names"
            )
        return data


@frozen
class Quota:
    """What one host is asked to give.

    Attributes:
        job: The id of the job that it is a part of.
        amount: Bytes that its guests are to give, 1 or more.
        takes_hot: Whether page cache that they read again may be taken, too.
        hold: Whether guests are to stay at the smaller sizes until the deadline.
            Otherwise they get their sizes back as soon as all is taken.
        until: The deadline.
        seconds: How long it may take from when the host sees it. This bounds it where
            the clock of who asks is ahead.
    """

    job: str
    amount: int
    takes_hot: bool
    hold: bool
    until: float
    seconds: float

    @property
    def asked_at(self) -> float:
        """When it was asked for, by the clock of who asked."""
        return self.until - self.seconds

    def to_bytes(self) -> bytes:
        """Return the document."""
        return encode("quota", asdict(self))


@frozen
class Job:
    """What some hosts together are asked to give.

    Attributes:
        id: Names it among all jobs: 8 to 32 hexadecimal digits.
        amount: Bytes that were asked for.
        takes_hot: As for :class:`Quota`.
        hold: Likewise.
        until: Likewise.
        seconds: Likewise.
        quotas: The bytes that each host is asked for.
    """

    id: str
    amount: int
    takes_hot: bool
    hold: bool
    until: float
    seconds: float
    quotas: Mapping[str, int] = field(factory=dict[str, int], hash=False)

    def make_quota(self, host: str) -> Quota:
        """Return what one of its hosts is asked for."""
        return Quota(
            job=self.id,
            amount=self.quotas[host],
            takes_hot=self.takes_hot,
            hold=self.hold,
            until=self.until,
            seconds=self.seconds,
        )

    def to_bytes(self) -> bytes:
        """Return the document.

        Raises:
            Malformed: It is larger than a value may be.
        """
        data = encode("job", asdict(self))
        if len(data) > LARGEST_VALUE:
            raise Malformed(
                f"the job is for {len(self.quotas)} hosts, whose names are too long"
                " together: ask fewer hosts (--hosts)"
            )
        return data


def _leave_out_none(row: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in row.items() if value not in (None, "")}


# Reading


def parse_state(data: bytes) -> HostState:
    """Read how a host is.

    Raises:
        Malformed: It is not such a document. The message is one line.
    """
    found = decode(data, "state")
    return HostState(
        name=found.host("name"),
        at=found.seconds("at"),
        total=found.size("total"),
        available=found.signed_size("available"),
        reserve=found.size("reserve"),
        room=found.optional("room", _read_room) or Room(),
        offer=found.optional("offer", _read_offer) or Offer(),
        vms=found.size("vms"),
        unknown_vms=found.size("unknown_vms"),
        policy_revision=found.optional_size("policy_revision"),
        progress=found.optional("progress", _read_progress),
        notes=found.items("notes", _read_note, _MOST_NOTES),
    )


def _read_room(value: object, what: str) -> Room:
    found = Fields(value, what)
    return Room(found.size("now"), found.size("after_cold"), found.size("to_floors"))


def _read_offer(value: object, what: str) -> Offer:
    found = Fields(value, what)
    return Offer(found.size("idle"), found.size("cold"), found.size("hot"))


def _read_note(value: object, what: str) -> str:
    return Fields({"note": value}, what).text("note")


def _read_progress(value: object, what: str) -> JobProgress:
    return _make_progress(Fields(value, what))


def _make_progress(found: Fields) -> JobProgress:
    phases = get_args(JobPhase)
    phase = found.read("phase", lambda value: value in phases, f"one of {phases}")
    return JobProgress(
        job=found.job("job"),
        quota=found.size("quota"),
        taken=found.size("taken"),
        phase=cast("JobPhase", phase),
        until=found.seconds("until"),
        detail=found.text("detail"),
    )


def parse_record(data: bytes) -> JobRecord:
    """Read the jobs that a host has begun; as :func:`parse_state`."""
    found = decode(data, "jobs")
    names = found.mapping("known", _MOST_JOBS)
    known = Fields(names, "the jobs, known")
    return JobRecord(
        last=found.optional("last", _read_progress),
        known={name: known.seconds(name) for name in names},
    )


def parse_vms(data: bytes) -> HostVms:
    """Read what a host says of its VMs; as :func:`parse_state`."""
    found = decode(data, "vms")
    return HostVms(found.host("name"), found.items("vms", _read_vm, _MOST_VMS))


def _read_vm(value: object, what: str) -> VmSummary:
    found = Fields(value, what)
    return VmSummary(
        # For people: a VM may be called anything, and must not hide the others.
        name=found.text("name", LONGEST_NAME),
        state=found.name("state"),
        detail=found.text("detail"),
        actual=found.optional_size("actual"),
        total=found.optional_size("total"),
        target=found.optional_size("target"),
        available=found.optional_size("available"),
        resident=found.optional_size("resident"),
    )


def parse_policy(data: bytes) -> Policy:
    """Read a policy; as :func:`parse_state`."""
    found = decode(data, "policy")
    return Policy(
        revision=found.revision("revision"),
        wishes=found.items("wishes", _read_wish, _MOST_WISHES),
        comment=found.text("comment"),
    )


def parse_policy_fields(table: Mapping[str, object], revision: int) -> Policy:
    """Read a policy that a person has written, as in a TOML file.

    Args:
        table: Its ``wish`` tables, and a ``comment``.
        revision: The revision that it gets.

    Raises:
        Malformed: It is none, or has a field that is unknown. The message says where.
    """
    found = Fields(dict(table), "the policy")
    found.require_known({"wish", "comment"})
    return Policy(
        revision=revision,
        wishes=found.items("wish", _read_written_wish, _MOST_WISHES),
        comment=found.text("comment"),
    )


def _read_written_wish(value: object, what: str) -> Wish:
    Fields(value, what).require_known(fields_dict(Wish))
    return _read_wish(value, what)


def _read_wish(value: object, what: str) -> Wish:
    found = Fields(value, what)
    names = found.mapping("floors", _MOST_WISHES)
    floors = Fields(names, f"{what}, floors")
    return Wish(
        hosts=found.name("hosts"),
        reserve=found.optional_name("reserve"),
        floors={name: floors.name(name) for name in names},
    )


def parse_quota(data: bytes) -> Quota:
    """Read what a host is asked for; as :func:`parse_state`."""
    found = decode(data, "quota")
    return Quota(
        job=found.job("job"),
        amount=found.size("amount", minimum=1),
        takes_hot=found.flag("takes_hot"),
        hold=found.flag("hold"),
        until=found.seconds("until"),
        seconds=found.seconds("seconds"),
    )


def parse_job(data: bytes) -> Job:
    """Read what some hosts are asked for; as :func:`parse_state`."""
    found = decode(data, "job")
    names = found.mapping("quotas", MOST_HOSTS)
    quotas = Fields(names, "the job, quotas")
    return Job(
        id=found.job("id"),
        amount=found.size("amount", minimum=1),
        takes_hot=found.flag("takes_hot"),
        hold=found.flag("hold"),
        until=found.seconds("until"),
        seconds=found.seconds("seconds"),
        quotas={_read_host(name): quotas.size(name) for name in names},
    )


def _read_host(name: str) -> str:
    return Fields({"host": name}, "the job, quotas").host("host")
