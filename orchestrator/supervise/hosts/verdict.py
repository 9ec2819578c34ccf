"""What several hosts found out about one folder, in the words of the doctor: pure functions.

The reports of all members are the same for each of them, and so is what is said here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from gpuspool.orchestrator.supervise.doctor import Check
from gpuspool.orchestrator.supervise.hosts.contest import GRANTED, HELD, REFUSED, Race
from gpuspool.orchestrator.supervise.hosts.lags import Lags, Seen
from gpuspool.orchestrator.supervise.hosts.meeting import Member
from gpuspool.orchestrator.text.words import count_of
from gpuspool.spool.file_system import is_network
from gpuspool.spool.records import Options
from gpuspool.spool.view import STALE_S

# What is seen within this time counts as seen at once.
AT_ONCE_S = 1.0

# A lease must be so many times as long as a beat is late. Whoever judges sees a beat that moves
# after a twelfth of the lease, looks an eighth of it later, and sees it as much later as this file
# system shows it. That is less than half of such a lease.
LEASES_PER_LAG = 2.5

# A lease that is asked for is rounded up to this.
LEASE_STEP_S = 30.0

# What is said of each kind of sign when it was seen so much later.
WORDS = {
    "look-up": "a name that was looked for in vain is found",
    "listing": "a new name is listed",
    "size": "a file that grew has its new size in stat(2)",
    "content": "what was appended is there for who opens the file anew",
    "beat": "a file that was renamed is listed by its new name",
    "replace": "a file that was replaced is the new one for who opens it",
}


# What was seen that never was, by a look that met a change while it happened.
GAPS = {
    "look-up": "a file without all of its content",
    "beat": "both names or none",
    "replace": "no file, or one that was not whole",
}


class Report(msgspec.Struct):
    """All that one member found out. checks: what it tried alone."""

    member: Member
    checks: list[Check]
    lags: Lags
    race: Race
    lock: str


def checks_of(reports: Sequence[Report]) -> list[Check]:
    """What all members found, each alone and all together."""
    lags = [_lag(kind, reports) for kind in WORDS]
    return [*_alone(reports), _hosts(reports), *lags, _race(reports), _lock(reports)]


def settings_of(reports: Sequence[Report]) -> list[str]:
    """The options that each run in this folder should get, as words of the command line."""
    words: list[str] = []
    if len(clients_of(reports)) > 1 and _local_kinds(reports):
        words += ["--poll", "2s"]
    late_s = lag_s("beat", reports) or 0.0
    if late_s * LEASES_PER_LAG > Options().lease_s:
        lease_s = math.ceil(late_s * LEASES_PER_LAG / LEASE_STEP_S) * LEASE_STEP_S
        words += ["--lease", f"{lease_s:.0f}s"]
    return words


def clients_of(reports: Sequence[Report]) -> list[str]:
    """The host of each client of the file system: members of one client see the same."""
    return list({report.member.client: report.member.host for report in reports}.values())


def _names(reports: Iterable[Report]) -> str:
    return ", ".join(report.member.host for report in reports)


# What each tried alone.


def _alone(reports: Sequence[Report]) -> list[Check]:
    """The checks of each member, as one where all are fine or alike, else each that is not fine."""
    return [one for check in reports[0].checks for one in _merged(check, reports)]


def _merged(check: Check, reports: Sequence[Report]) -> list[Check]:
    """What to tell of a check of the first member and of the same check of all others."""
    bad: list[tuple[str, Check]] = []
    for report in reports:
        for other in report.checks:
            if other.name == check.name and other.state != "ok":
                bad.append((report.member.host, other))
    is_alike = len(bad) == len(reports) and all(other == check for _, other in bad)
    if not bad or is_alike:
        return [check]
    return [Check(other.name, other.state, f"{host}: {other.detail}") for host, other in bad]


# Together.


def _hosts(reports: Sequence[Report]) -> Check:
    names = _names(reports)
    if len(clients_of(reports)) == 1:
        detail = (
            f"all {len(reports)} copies ran on {reports[0].member.host}: nothing was learned of "
            "other hosts; start one on each, as `srun -N2 --ntasks-per-node=1` does"
        )
        return Check("hosts", "warning", detail)
    return Check("hosts", "ok", f"{count_of(len(reports), 'copy', 'copies')} met: {names}")


def lag_s(kind: str, reports: Sequence[Report]) -> float | None:
    """How late the signs of a kind were seen at worst; None where one was not seen at all."""
    seen = _seen(kind, reports)
    if any(one.is_missed for one in seen):
        return None
    return max((seconds for one in seen for seconds in one.seconds), default=0.0)


def _is_cached(kind: str, reports: Sequence[Report]) -> bool:
    """Whether some host was late at each step, as one is that believes what it saw before.

    One that was late once may have been busy with something else.
    """
    return any(min(one.seconds, default=0.0) > AT_ONCE_S for one in _seen(kind, reports))


def _seen(kind: str, reports: Sequence[Report]) -> list[Seen]:
    return [one for report in reports for one in report.lags.seen if one.kind == kind]


def _lag(kind: str, reports: Sequence[Report]) -> Check:
    late_s = lag_s(kind, reports)
    if late_s is None:
        missed = next(one for one in _seen(kind, reports) if one.is_missed)
        asker, looker = (reports[seat].member.host for seat in (missed.asker, missed.looker))
        return Check(kind, "problem", f"{looker} never saw it of {asker}: {WORDS[kind]} too late")
    detail = f"{WORDS[kind]} within {_seconds(late_s)}"
    n_gaps = sum(report.lags.gaps.get(kind, 0) for report in reports)
    if n_gaps:
        detail += f"; {count_of(n_gaps, 'look')} saw {GAPS[kind]}"
    trouble = _trouble_of_lag(kind, reports, late_s, n_gaps)
    if trouble:
        return Check(kind, "problem", f"{detail}; {trouble}")
    return Check(kind, "ok", detail)


def _trouble_of_lag(kind: str, reports: Sequence[Report], late_s: float, n_gaps: int) -> str:
    """Why what was seen so late, with so many gaps, is no place for a spool; "" if it is one."""
    if kind == "look-up" and n_gaps:
        return "gpuspool relies on that who finds a name finds the whole file"
    if late_s > STALE_S:
        return f"gpuspool waits for {STALE_S:.0f} s at most"
    if _is_cached(kind, reports) and _local_kinds(reports):
        trusted = ", ".join(sorted(_local_kinds(reports)))
        return f"gpuspool takes {trusted} for a file system of one host, and does not wait"
    return ""


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"


def _local_kinds(reports: Sequence[Report]) -> set[str]:
    """The types of file systems, as members see the folder, that do not count as shared."""
    kinds = {report.member.kind for report in reports}
    return {kind or "a file system of unknown type" for kind in kinds if not is_network(kind)}


# The race.


class _Round(msgspec.Struct):
    """What came of one round of the race.

    owners: whose name it is, as the members see it. winners: whom link(2) told that it is theirs.
    errors: what it told those who lost.
    """

    owners: set[int | None]
    winners: set[int]
    errors: set[str]

    @property
    def owner(self) -> int | None:
        """Whose name it is if all agree on that; else None."""
        owner = next(iter(self.owners))
        is_agreed = len(self.owners) == 1 and self.winners <= {owner}
        return owner if is_agreed else None


def _round(number: int, reports: Sequence[Report]) -> _Round:
    told = [report.race.told[number] for report in reports]
    owners = {report.race.owners[number] for report in reports}
    winners = {seat for seat, answer in enumerate(told) if not answer}
    errors = {answer for seat, answer in enumerate(told) if answer and seat not in owners}
    return _Round(owners, winners, errors)


def _race(reports: Sequence[Report]) -> Check:
    """Whether exactly one member won each round, whatever link(2) told them."""
    count = min(len(report.race.told) for report in reports)
    rounds = [_round(number, reports) for number in range(count)]
    for number, one in enumerate(rounds):
        if one.owner is None:
            return Check("race", "problem", _dispute(number, one, reports))
    strange = set[str]().union(*(one.errors for one in rounds)) - {"EEXIST"}
    if strange:
        told = ", ".join(sorted(strange))
        detail = f"link(2) tells {told} where a name exists, not EEXIST; gpuspool stops at that"
        return Check("race", "problem", detail)
    won = Counter(one.owner for one in rounds)
    shares = ", ".join(f"{report.member.host} {won[seat]}" for seat, report in enumerate(reports))
    detail = f"{count} rounds of link(2), one winner each ({shares})"
    n_lost = sum(not one.winners for one in rounds)
    if n_lost:
        detail += f"; {count_of(n_lost, 'winner')} was told an error, which gpuspool sees through"
    return Check("race", "ok", detail)


def _dispute(number: int, one: _Round, reports: Sequence[Report]) -> str:
    seats = one.winners | {owner for owner in one.owners if owner is not None}
    if not seats:
        told = ", ".join(sorted(one.errors))
        return f"link(2) made the name of round {number} for nobody, and told {told}"
    if None in one.owners and len(seats) == 1:
        return f"the name that link(2) made in round {number} is not seen by all"
    hosts = _names(reports[seat] for seat in sorted(seats))
    return f"link(2) gave the name of round {number} to several: {hosts}"


# The lock.


def _lock(reports: Sequence[Report]) -> Check:
    """Whether a lock that one member holds keeps all others out."""
    holder = reports[0].member.host
    if reports[0].lock != HELD:
        return Check("lock seen", "warning", f"{holder} gets no flock(2): {reports[0].lock}")
    blind = [report for report in reports[1:] if report.lock != REFUSED]
    if not blind:
        return Check("lock seen", "ok", f"a flock(2) of {holder} keeps the others out")
    outcomes = {report.lock for report in blind}
    if outcomes == {GRANTED}:
        what = f"a flock(2) that {holder} holds is granted to others too"
    else:
        what = f"others get no flock(2): {', '.join(sorted(outcomes - {GRANTED}))}"
    detail = f"{what} ({_names(blind)}); never start one spool twice at the same moment"
    return Check("lock seen", "warning", detail)
