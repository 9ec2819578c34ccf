"""A table of results as a DataFrame. The one module that imports pandas.

pandas is no dependency of gpuspool. Nothing else is needed for this, pyarrow neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpuspool.orchestrator.export.columns import Type
from gpuspool.orchestrator.export.table import Table
from gpuspool.spool.errors import UsageError

# Types of pandas that keep integers and truth values what they are where some are missing.
_TYPES = {Type.BOOL: "boolean", Type.INT: "Int64", Type.FLOAT: "float64"}


def to_frame(table: Table) -> Any:
    """The table as a pandas.DataFrame. Raises UsageError where there is no pandas."""
    try:
        import pandas
    except ImportError as error:
        raise UsageError(
            f"to_pandas needs pandas, which cannot be imported here ({error}). Install it: pip "
            'install pandas. Or write a file: gpuspool.export(SPOOL, "results.csv")'
        ) from None
    columns: list[list[Any]] = [[] for _ in table.fields]
    for chunk in table.chunks():
        for whole, some in zip(columns, chunk.columns, strict=True):
            whole.extend(some)
    return pandas.DataFrame(
        {
            field.name: pandas.Series(
                _values(field.type, column), dtype=_TYPES.get(field.type, "object")
            )
            for field, column in zip(table.fields, columns, strict=True)
        }
    )


def _values(type_: Type, column: Sequence[Any]) -> Sequence[Any]:
    if type_ is not Type.JSON:
        return column
    return [None if one is None else str(one, "utf-8", "replace") for one in column]
