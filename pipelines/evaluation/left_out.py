"""Pictures that an evaluation left out, and what is to be said of how few there are: for people and for the record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from codegrid.names import encodable, shown
from codegrid.pipelines.data.records import DataError

_MOST_NAMES, _MOST_SHOWN = 100, 3


def left_out(skipped: Mapping[str, str]) -> dict[str, Any]:
    """The record of pictures that were left out, by reason: the numbers, and the first hundred names of each.

    Args:
        skipped: by name of a picture "reason: detail", as `PixelBatch.skipped`.
    """
    reasons = Counter(_reason(text) for text in skipped.values())
    names: dict[str, list[str]] = {reason: [] for reason in reasons}
    for name, text in sorted(skipped.items()):
        if len(names[_reason(text)]) < _MOST_NAMES:
            names[_reason(text)].append(encodable(name))
    return {"number": len(skipped), "reasons": dict(reasons.most_common()), "names": names}


def describe_left_out(record: Mapping[str, Any], what: str = "pictures") -> list[str]:
    """One sentence about a record of `left_out`, with the first names of each reason; none if nothing was left out."""
    if not record["number"]:
        return []
    parts = []
    for reason, number in record["reasons"].items():
        names = record["names"][reason][:_MOST_SHOWN]
        more = ", ..." if number > len(names) else ""
        parts.append(f"{number:,} {reason.replace('_', ' ')} ({', '.join(names)}{more})")
    return [f"Left out of the {what}: {record['number']:,}: {'; '.join(parts)}."]


def check_usable(used: int, total: int, source: str, record: Mapping[str, Any]) -> None:
    """Refuse a source none of whose pictures could be used; `record` is that of `left_out`.

    Raises:
        DataError: `used` is 0.
    """
    if not used:
        nothing = f"None of the {total:,} images of {shown(source)} could be used."
        remedy = "`codegrid look` shows what is read, and why pictures are left out."
        raise DataError(" ".join([nothing, *describe_left_out(record)]), remedy)


def describe_few(numbers: Mapping[str, int], dimensions: int, name: str) -> list[str]:
    """One sentence of caution if a set has fewer pictures than the features have dimensions; else none.

    Args:
        numbers: pictures by what they are, such as {"samples": 500}.
        name: the distance.
    """
    few = [f"{number:,} {what}" for what, number in numbers.items() if number < dimensions]
    if not few:
        return []
    return [
        f"Caution: {' and '.join(few)} are fewer than the {dimensions:,} dimensions of the features: {name} then "
        "depends on the number of pictures, so compare it only at equal numbers."
    ]


def _reason(text: str) -> str:
    return text.partition(":")[0]
