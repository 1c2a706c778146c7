"""Cells of the tables: times, ratios, sizes, spreads, parity."""

from collections.abc import Mapping
from typing import Any

from slowfast_kernels.bench.harness import Gate


def milliseconds(seconds: float | None) -> str:
    """Seconds with three digits, as milliseconds below a second."""
    if seconds is None:
        return "-"
    return f"{1e3 * seconds:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def percent(value: float | None) -> str:
    """A fraction as per cent."""
    return "-" if value is None else f"{100 * value:.0f}%"


def times_faster(value: float | None) -> str:
    """A ratio of times."""
    return "-" if value is None else f"{value:.2f}x"


def mebibytes(count: float) -> str:
    """Bytes as MiB."""
    return f"{count / 2**20:.0f} MiB"


def number(value: float | None, digits: str = ".0f") -> str:
    """A figure with so many digits."""
    return "-" if value is None else format(value, digits)


def median_and_spread(row: Mapping[str, Any]) -> tuple[str, str]:
    """The cells of a row's times."""
    return milliseconds(row["median_s"]), f"{milliseconds(row['p20_s'])}-{milliseconds(row['p80_s'])}"


def parity(row: Mapping[str, Any]) -> str:
    """The cell of a row's parity check."""
    return str(Gate(row["error"], row["error_limit"]))
