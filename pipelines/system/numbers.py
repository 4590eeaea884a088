"""Numbers as people read them: no exponents where plain digits do, no rounding noise, a unit that fits."""

from __future__ import annotations

import math

_UNITS = ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s"))
_BINARY = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


def number(value: float | None, digits: int = 4) -> str:
    """A number with `digits` significant digits: "1,270", "461.1", "0.0478", "3.2e-05", "-" for None.

    Integers, and floats of `digits` or more digits before the point, are written whole, with a comma for thousands.
    Only values below 0.0001 or from 1e15 have an exponent.
    """
    if value is None:
        return "-"
    if isinstance(value, bool) or not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and abs(value) < 10**15:
        return f"{value:,}"
    size = abs(value)
    if not size:
        return "0"
    if size < 1e-4 or size >= 1e15:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{exponent}"
    before = math.floor(math.log10(size)) + 1
    text = f"{value:,.{max(0, digits - before)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def share(value: float | None) -> str:
    """A share in [0, 1] in per cent: "82.4%", "100%", "-" for None.

    "100%" and "0%" mean exactly that: what would round to them is "over 99.9%" or "under 0.1%".
    """
    if value is None or not math.isfinite(value):
        return "-"
    if value in (0, 1):
        return f"{value:.0%}"
    if 0.9995 <= value < 1:
        return "over 99.9%"
    if 0 < value < 0.0005:
        return "under 0.1%"
    return f"{value:.1%}"


def duration(seconds: float | None) -> str:
    """A time in the two units that fit: "3.2 ms", "1.27 s", "1 min 15 s", "2 h 5 min", "3 d 4 h", "-" for None."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds and seconds < 0.9995:
        return f"{number(1_000 * seconds, 3)} ms"
    if seconds < 59.95:
        return f"{number(float(seconds), 3)} s"
    for size, unit, smaller, name in _UNITS:
        parts = round(seconds / smaller)  # of the smaller unit, so that 119.9 s is 2 min and not 1 min 60 s
        if parts * smaller >= size:
            whole, rest = divmod(parts, size // smaller)
            return f"{whole:,} {unit} {rest} {name}" if rest else f"{whole:,} {unit}"
    raise AssertionError("a minute and more has a unit")


def memory(number_of_bytes: int) -> str:
    """An amount of memory or of disk: "512 bytes", "1.5 KiB", "78.4 GiB"."""
    size, unit = float(number_of_bytes), 0
    while abs(size) >= 1023.5 and unit < len(_BINARY) - 1:
        size, unit = size / 1024, unit + 1
    return f"{number(size if unit else number_of_bytes, 3)} {_BINARY[unit]}"
