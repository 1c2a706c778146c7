"""Watches the GPU's clocks while it is measured."""

from __future__ import annotations

import contextlib
import statistics
import threading

from slowfast_kernels.bench import stamp


class Clocks:
    """What nvidia-smi says of the GPU every two seconds: clocks, power, temperature, why clocks are held down.

    It only reads. Without nvidia-smi, or where it does not know the fields, there is nothing to say.
    """

    FIELDS = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "clocks_throttle_reasons.active")

    #: Bits of the last field that slow work down; idling and the application's own setting do not.
    SLOWED = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "thermal (software)", 0x40: "thermal (hardware)",
              0x80: "power brake"}  # fmt: skip

    def __init__(self, every: float = 2.0) -> None:
        self._rows: list[tuple[float, ...]] = []
        self._over, self._every = threading.Event(), every
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        query = f"--query-gpu={','.join(self.FIELDS)}"
        asked = ("nvidia-smi", query, "--format=csv,noheader,nounits", "-i", "0")
        while not self._over.wait(self._every):
            line = stamp.output(*asked)
            if line is None:
                return
            *numbers, reasons = (cell.strip() for cell in line.split(","))
            with contextlib.suppress(ValueError):  # "[N/A]"
                self._rows.append((*map(float, numbers), int(reasons, 16)))

    def since_last(self) -> str:
        """The samples since the last call in a line of text, "" without any."""
        rows, self._rows = self._rows, []
        if not rows:
            return ""
        sm, memory, power, heat, bits = zip(*rows, strict=True)
        reasons = [text for bit, text in self.SLOWED.items() if any(int(b) & bit for b in bits)]
        return (
            f"SM {min(sm):.0f} to {max(sm):.0f}, median {statistics.median(sm):.0f} MHz,"
            f" memory {max(memory):.0f} MHz, {max(power):.0f} W, {max(heat):.0f} C at most,"
            + (f" held down by {', '.join(reasons)}" if reasons else " not held down")
        )

    def close(self) -> None:
        """Stop looking."""
        self._over.set()
        self._thread.join()
