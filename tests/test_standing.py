"""Whether an attempt was closed by another: when it looks, and what it finds."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import wait_until
from spooling import A0, make_spool

from gpuspool.spool.closing import publish_closing
from gpuspool.spool.layout import Layout
from gpuspool.spool.records import Closing
from gpuspool.spool.states import AttemptState, Reason
from gpuspool.worker.standing import Standing


def close(layout: Layout) -> None:
    closing = Closing(attempt=A0, state=AttemptState.FAILED, reason=Reason.LOST, by="test")
    assert publish_closing(layout, closing, [])


def test_within_a_lease_there_is_no_reason_to_look(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 1)
    standing = Standing(layout, A0, lease_s=120.0)
    close(layout)
    assert not standing.was_closed_meanwhile()
    assert standing.is_closed()


def test_after_a_silence_of_a_lease_it_looks(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 1)
    standing = Standing(layout, A0, lease_s=0.0)
    assert not standing.was_closed_meanwhile()
    close(layout)
    assert standing.was_closed_meanwhile()


def test_what_was_decided_in_a_silence_and_published_after_it_is_seen(tmp_path: Path) -> None:
    """Whoever took this attempt for dead may need seconds to write that, on a busy disk."""
    layout = make_spool(tmp_path / "s", 1)
    standing = Standing(layout, A0, lease_s=120.0)
    standing.doubt()
    assert not standing.was_closed_meanwhile(), "it has not been written yet"
    close(layout)
    wait_until(standing.was_closed_meanwhile)


def test_a_lease_after_a_doubt_it_looks_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = make_spool(tmp_path / "s", 1)
    now = [1000.0]
    monkeypatch.setattr("gpuspool.worker.standing.time", SimpleNamespace(monotonic=lambda: now[0]))
    standing = Standing(layout, A0, lease_s=120.0)
    standing.doubt()
    for _ in range(2):
        assert not standing.was_closed_meanwhile()
        now[0] += 60.0
    close(layout)
    assert not standing.was_closed_meanwhile()
    standing.doubt()
    assert standing.was_closed_meanwhile()


def test_who_finds_the_attempt_closed_makes_the_loop_look(tmp_path: Path) -> None:
    layout = make_spool(tmp_path / "s", 1)
    standing = Standing(layout, A0, lease_s=120.0)
    assert standing.is_still_open()
    close(layout)
    assert not standing.is_still_open()
    assert standing.was_closed_meanwhile()
