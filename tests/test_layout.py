"""Names: two things never get the same one, and each parses back to what it was made of."""

import os
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpuspool.spool.layout import (
    STATES,
    SUBDIRS,
    Layout,
    attempt_name,
    encode_key,
    epoch_name,
    generation_name,
    hidden_name,
    hidden_output,
    is_manifest,
    is_original,
    numbered_name,
    orphans_name,
    parse_attempt,
    parse_beat,
    parse_control,
    parse_generation,
    parse_hidden_output,
    parse_numbered,
    parse_orphans,
    parse_parent,
    parse_planned,
    parse_slurm_script,
    rank_name,
    rank_of,
)

# Keys that look alike, that mean something to a shell or a file system, or that are too long.
NASTY = [
    "a", "A", "a/b", "a%2Fb", "a%b", "a%%b", ".", "..", ".hidden", "%2Ehidden", "a.b",
    "cat/1.jpg", "dog/1.jpg", " ", "a b", "a+b", "-rf", "~", "ä", "a\u0308", "漢字", "\U0001f600",
    "\udc80", "a\\b", "a\tb", "con", "t1", "t1.json", "x" * 200, "x" * 201, "x" * 5000,
    "x" * 4999 + "y", "ä" * 100, "ä" * 101, "/" * 66, "/" * 67, "/" * 68, "%" * 300,
]  # fmt: skip
keys = st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300
) | st.sampled_from(NASTY)


def test_nasty_keys_get_different_names() -> None:
    assert len({encode_key(key) for key in NASTY}) == len(NASTY)


@settings(max_examples=300, deadline=None)
@given(keys, keys)
@example("x" * 200, "x" * 150 + "%%" + "0" * 32)
@example(".a", "%2Ea")
def test_different_keys_get_different_names(one: str, other: str) -> None:
    assert (encode_key(one) == encode_key(other)) == (one == other)


@settings(max_examples=300, deadline=None)
@given(keys)
def test_a_key_becomes_one_visible_name_that_any_file_system_takes(key: str) -> None:
    name = encode_key(key)
    assert len(os.fsencode(f"{name}.json")) <= 255
    assert name.isascii()
    assert name.isprintable()
    assert not name.startswith(".")
    assert "/" not in name
    assert Layout("/s").failed_task(key).parent == Path("/s/failed-tasks")
    if "%%" not in name:
        assert unquote(name, errors="surrogateescape") == key, "people can read it"


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1))
@example("n" * 255)
@example("漢" * 85)
def test_a_hidden_name_is_new_hidden_and_fits_where_its_name_does(name: str) -> None:
    names = {hidden_name(name) for _ in range(3)}
    assert len(names) == 3
    for hidden in names:
        assert hidden.startswith(".")
        assert len(os.fsencode(hidden)) <= 255 or len(os.fsencode(name)) > 255


@given(st.integers(0, 10**6), st.integers(0, 10**4))
def test_attempts_parse_back(rank: int, number: int) -> None:
    name = attempt_name(rank, number)
    assert parse_attempt(name) == (rank, number)
    assert rank_of(name) == rank
    assert name.startswith(rank_name(rank))
    assert parse_orphans(orphans_name(name)) == name
    assert all(map(is_manifest, (rank_name(rank), orphans_name(name))))
    assert not is_manifest(name)


@given(st.sampled_from(["retry", "sweep"]), st.integers(0, 10**6))
def test_numbered_manifests_parse_back(kind: str, number: int) -> None:
    assert parse_numbered(numbered_name(kind, number)) == (kind, number)
    assert is_manifest(numbered_name(kind, number))


@given(st.integers(0, 10**7))
def test_names_in_control_parse_back(epoch: int) -> None:
    assert parse_control(Layout("/s").drain(epoch).name) == ("drain", epoch)
    assert parse_control(Layout("/s").finished(epoch).name) == ("finished", epoch)


@given(st.integers(0, 10**6))
def test_generations_parse_back(number: int) -> None:
    assert parse_generation(generation_name(number)) == number
    assert parse_generation(f"{generation_name(number)}~") is None


@pytest.mark.parametrize("suffix", ["", ".npy", "-a.json", "-12", ".a-b-c"])
def test_an_output_in_the_making_tells_its_attempt_and_ends_in_its_suffix(suffix: str) -> None:
    name = hidden_output("rank-0003.a12", 17, suffix)
    assert name.startswith(".")
    assert name.endswith(suffix)
    assert parse_hidden_output(name) == "rank-0003.a12"
    assert parse_hidden_output(name[1:]) is None
    assert parse_hidden_output(f".gpuspool-rank-0003{suffix}") is None


def test_names_are_as_the_format_says() -> None:
    layout = Layout("/s")
    assert layout.manifest("rank-0003") == Path("/s/manifests/rank-0003.jsonl")
    assert layout.orphans("rank-0003.a00") == Path("/s/manifests/rank-0003.a00.orphans.jsonl")
    assert layout.manifest(numbered_name("sweep", 1)) == Path("/s/manifests/sweep-01.jsonl")
    assert layout.claim("rank-0003", 120) == Path("/s/claims/rank-0003/000000120")
    assert layout.intent(attempt_name(3, 0)) == Path("/s/attempts/rank-0003.a00.json")
    assert layout.heartbeat("rank-0003.a00") == Path("/s/heartbeat/rank-0003.a00.json")
    assert layout.journal("rank-0003.a00") == Path("/s/journal/rank-0003.a00.jsonl")
    assert layout.status("stopped", "rank-0003.a00") == Path("/s/stopped/rank-0003.a00.json")
    assert layout.failed_task("cat/1.jpg") == Path("/s/failed-tasks/cat%2F1.jpg.json")
    assert layout.drain(2) == Path("/s/control/drain.0002")
    assert layout.log("rank-0003.a00") == Path("/s/logs/rank-0003.a00.log")


NO_ATTEMPTS = [
    "",
    "rank-0003",
    "rank-3.a00",
    "rank-0003.a0",
    "rank-0003.a00.json",
    "rank-0003.a00~",
    " rank-0003.a00",
]


@pytest.mark.parametrize("name", [*NO_ATTEMPTS, "rank-0003.a00\n"])
def test_what_is_no_attempt_does_not_parse(name: str) -> None:
    assert parse_attempt(name) is None
    assert rank_of(name) == -1


@pytest.mark.parametrize(
    "name", ["rank-٠٠٠٣", "rank-0003.a٠٠", "sweep-٠١", "retry-０１", "rank-٠٠٠٣.a00.orphans"]
)
def test_digits_of_other_scripts_are_foreign(name: str) -> None:
    assert not is_manifest(name)
    assert parse_attempt(name) is None
    assert parse_numbered(name) is None


def test_the_beat_of_a_parent_is_never_taken_for_that_of_an_attempt() -> None:
    layout = Layout("/s")
    assert parse_beat(layout.beat(epoch_name(2), 11).name) == ("0002", 11)
    assert parse_beat(layout.beat("rank-0003.a01", 11).name) == ("rank-0003.a01", 11)
    for name in ("0002", "0002.x", ".0002.1", "rank-0003.1", "2.1", "0002.1.2"):
        assert parse_beat(name) is None


def test_a_parent_and_its_end_are_told_apart() -> None:
    layout = Layout("/s")
    assert parse_parent(layout.parent(7).name) == (7, False)
    assert parse_parent(layout.parent_end(7).name) == (7, True)
    for name in ("7.json", "0007.jsonl", "0007.end", ".0007.json", "x0007.json"):
        assert parse_parent(name) is None


def test_no_two_things_of_a_spool_share_a_path() -> None:
    layout = Layout("/s")
    a = attempt_name(0, 0)
    b = attempt_name(0, 1)
    one_each = [name for name, member in vars(Layout).items() if isinstance(member, property)]
    of_attempts = (layout.intent, layout.heartbeat, layout.journal, layout.log, layout.orphans)
    paths = [getattr(layout, name) for name in one_each]
    paths += [make(attempt) for make in of_attempts for attempt in (a, b)]
    paths += [layout.status(state, attempt) for state in STATES for attempt in (a, b)]
    paths += [
        layout.claim(name, start) for name in ("rank-0000", orphans_name(a)) for start in (0, 1, 10)
    ]
    paths += [layout.failed_task("round-1"), layout.failed_round(1), layout.failed_round(2)]
    paths += [layout.drain(0), layout.drain(1), layout.finished(0), layout.finished(1)]
    assert len(set(paths)) == len(paths)
    assert all(path.is_relative_to("/s") for path in paths)


def test_a_layout_is_absolute_and_touches_no_file(tmp_path: Path) -> None:
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        layout = Layout("a/../b")
    finally:
        os.chdir(before)
    assert layout.root == tmp_path / "b"
    assert os.listdir(tmp_path) == []
    assert {layout.subdir(name).name for name in SUBDIRS} == set(SUBDIRS)


@pytest.mark.parametrize("name", ["rank-0003.a00", "notes", "../x", ""])
def test_no_path_is_made_of_a_name_that_is_not_ours(name: str) -> None:
    layout = Layout("/s")
    for make in (layout.manifest, layout.claims, layout.subdir):
        with pytest.raises(AssertionError):
            make(name)
    with pytest.raises(AssertionError):
        layout.status(name, "rank-0003.a00")


def test_batch_scripts_are_numbered_and_what_they_print_is_none() -> None:
    layout = Layout("S")
    for number in (1, 9999, 10000):
        assert parse_slurm_script(layout.slurm_script(number).name) == number
    for name in ("setup.sh", "12_3.out", "1.sh", "0001.sh.new", "0001.SH", "-001.sh", "०००१.sh"):
        assert parse_slurm_script(name) is None
    assert layout.slurm_setup.parent == layout.slurm == layout.slurm_script(1).parent


def test_the_rank_that_a_manifest_was_planned_for_stands_in_its_name() -> None:
    assert parse_planned(rank_name(7)) == 7
    assert parse_planned(rank_name(123_456)) == 123_456
    assert parse_planned("rank-0007.a00.orphans") is None
    assert parse_planned("added-01") is None
    assert [
        name
        for name in ("rank-0001", "added-01", "retry-01", "sweep-01", "rank-0000.a00.orphans")
        if is_original(name)
    ] == ["rank-0001", "added-01"]
