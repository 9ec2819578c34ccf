"""What a shell completes behind `gpuspool`: spools, ranks, keys, and files where they are meant.

click itself knows verbs and options. A function here gets the context, the parameter and the word
so far, and returns what it may become. It is called at each press of a key, so it reads little, and
where a spool cannot be read it has nothing to say.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from gpuspool.spool.errors import GpuspoolError, UsageError

if TYPE_CHECKING:
    from gpuspool.spool.view import View

SHELLS = ("bash", "zsh", "fish")

# More keys than these help nobody who looks for one, and of a run of millions only so many are
# looked at.
MOST_KEYS = 100
MOST_LOOKED_AT = 100_000


def script(cli: click.Command, shell: str) -> str:
    """What a shell must run to complete the words behind `gpuspool`. Raises UsageError."""
    found = get_completion_class(shell)
    if found is None:
        raise UsageError(f"no completion for {shell}; there is one for {', '.join(SHELLS)}.")
    return found(cli, {}, "gpuspool", "_GPUSPOOL_COMPLETE").source()


def files(_: click.Context, __: click.Parameter, word: str) -> list[CompletionItem]:
    """Files and folders, as the shell completes them."""
    return [CompletionItem(word, type="file")]


def folders(_: click.Context, __: click.Parameter, word: str) -> list[CompletionItem]:
    """Folders, as the shell completes them."""
    return [CompletionItem(word, type="dir")]


def spools(_: click.Context, __: click.Parameter, word: str) -> list[CompletionItem]:
    """Spools, and the folders that may lead to one."""
    from gpuspool.spool.layout import Layout

    found = [CompletionItem(word, type="dir")]
    above = Path(word if word.endswith("/") else Path(word).parent)
    # A folder that cannot be read has no spools to offer, and an error would be in the user's way.
    with contextlib.suppress(OSError):
        for path in sorted(above.iterdir()):
            name = f"./{path}" if word.startswith("./") else str(path)
            if name.startswith(word) and Layout(path).format.exists():
                found.append(CompletionItem(name))
    return found


def ranks(ctx: click.Context, _: click.Parameter, word: str) -> list[CompletionItem]:
    """The ranks that have a log."""
    return _of_spool(ctx, word, _ranks)


def keys(ctx: click.Context, _: click.Parameter, word: str) -> list[CompletionItem]:
    """The first keys that begin so."""
    return _of_spool(ctx, word, _keys)


def spools_and_keys(ctx: click.Context, param: click.Parameter, word: str) -> list[CompletionItem]:
    """Behind a spool its keys; else spools, and the keys of the only one here."""
    found = keys(ctx, param, word)
    if _words_before(ctx):
        return found
    return [*spools(ctx, param, word), *found]


def _ranks(view: View) -> Iterator[str]:
    from gpuspool.spool.layout import rank_of

    return map(str, sorted({rank_of(attempt) for attempt in view.attempts}))


def _keys(view: View) -> Iterator[str]:
    return (task.key for task in itertools.islice(view.planned_tasks(), MOST_LOOKED_AT))


def _words_before(ctx: click.Context) -> list[str]:
    """The words that stand before the one that is completed: perhaps a spool, and what follows it.

    Behind an option that still lacks its value, click has not told the words apart.
    """
    spool: Any = ctx.params.get("spool")
    return [spool] if spool else [*(ctx.params.get("words") or ctx.args)]


def _of_spool(
    ctx: click.Context, word: str, names: Callable[[View], Iterator[str]]
) -> list[CompletionItem]:
    """Of the spool that the words before name, or the only one here, the names that begin so."""
    from gpuspool.orchestrator.plan.locate import find_spool
    from gpuspool.spool.view import open_view

    spool = next(iter(_words_before(ctx)), None)
    try:
        view = open_view(find_spool(spool), reads_claims=False)
        found = (name for name in names(view) if name.startswith(word))
        return [CompletionItem(name) for name in itertools.islice(found, MOST_KEYS)]
    except (GpuspoolError, OSError):
        return []
