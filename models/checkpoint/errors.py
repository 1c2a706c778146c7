"""What can be wrong with a checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

LISTED = 20  # keys of each kind that a message spells out; the exception's attributes hold all of them


class CheckpointError(ValueError):
    """A file that cannot be read, recognised, or turned into a model. The message begins with the file."""


@dataclass(frozen=True)
class Question:
    """What neither a file nor the caller tells.

    settings: any of them would tell, as arguments of `load_checkpoint` ("alpha=4", "model=NAME"); " and "
    stands between those that belong together.
    candidates: the published models that fit, each with what it has.
    """

    what: str
    settings: tuple[str, ...]
    candidates: tuple[str, ...] = ()

    def ask(self, spell: Callable[[str], str]) -> str:
        ways = " or ".join(" and ".join(map(spell, way.split(" and "))) for way in self.settings)
        known = f", published are {', '.join(self.candidates)}" if self.candidates else ""
        return f"the file does not tell {self.what}: pass {ways}{known}"


class UndecidedError(CheckpointError):
    """A file that more than one network fits. path: the file ("" of a live module). questions: what is open."""

    def __init__(self, path: str, questions: Sequence[Question]) -> None:
        self.path, self.questions = path, list(questions)
        super().__init__(self.told())

    def told(self, spell: Callable[[str], str] = str) -> str:
        """The message. spell: how the reader passes a setting such as "alpha=4" (default: as written)."""
        asked = "; ".join(question.ask(spell) for question in self.questions)
        return f"{self.path}: {asked}" if self.path else asked


class MismatchError(CheckpointError):
    """Weights and architecture do not belong together.

    missing: keys that the architecture has and the file does not. unexpected: the other way round. shapes:
    key -> (shape expected, shape in the file). Keys are the file's own wherever the file has one.
    """

    def __init__(
        self,
        what: str,
        missing: Sequence[str],
        unexpected: Sequence[str],
        shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
    ) -> None:
        self.missing, self.unexpected, self.shapes = list(missing), list(unexpected), dict(shapes)
        wrong = [f"{key}: expected {[*want]}, got {[*got]}" for key, (want, got) in self.shapes.items()]
        lines = [
            *_lines("missing", self.missing),
            *_lines("unexpected", self.unexpected),
            *_lines("shape of", wrong),
        ]
        super().__init__("\n  ".join([what, *lines]))


def _lines(kind: str, keys: Sequence[str]) -> list[str]:
    lines = [f"{kind} {key}" for key in keys[:LISTED]]
    if len(keys) > LISTED:
        lines.append(f"... and {len(keys) - LISTED} more {kind}")
    return lines


def some(keys: Sequence[str], limit: int = 5) -> str:
    """The first few keys in a row, and how many there are beyond them."""
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + more
