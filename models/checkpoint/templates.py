"""Names of tensors as templates, which translate both ways.

A library's table has a row for each kind of tensor, our template -> theirs. A field such as {n} stands for the same
thing on both sides, in the words of each. Ours are stem.{path}.{kind}.{leaf}, lateral.{k}.{kind}.{leaf},
res{n}.{path}.{i}.{layer}.{kind}.{leaf} and head.proj.{param}.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PATHS = ("slow", "fast")

_FIELDS = {
    "path": "slow|fast",
    "n": "[2-5]",
    "k": "[0-3]",
    "i": r"\d+",
    "layer": "[abc]",
    "kind": "conv|bn",
    "leaf": r"\w+",
    "param": "weight|bias",
    "any": r"\d+",  # a number that ours leave out; it is written as *
}
Words = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Layout:
    """What the names of a file depend on beside the tensor.

    two: two pathways; where there is one it is read as "slow" (see `Names.called`). detects: detection head.
    pool: pytorchvideo's one-pathway networks count a max-pool after res2 as a block, which moves all later numbers.
    prefix: before the blocks, "model." in pytorchvideo's detection networks and PySlowFast's wrappers.
    """

    two: bool
    detects: bool = False
    pool: bool = False
    prefix: str = ""


class Table:
    """A library's names. words: what it calls the values of a field; of those that share a word the first is read."""

    def __init__(self, rows: Mapping[str, str], **words: Mapping[str, str]) -> None:
        back = {field: {theirs: ours for ours, theirs in [*w.items()][::-1]} for field, w in words.items()}
        self._there = [(_pattern(ours, words), theirs) for ours, theirs in rows.items()]
        self._back = [(_pattern(theirs, back), ours) for ours, theirs in rows.items()]
        self._words, self._back_words = words, back

    def theirs(self, ours: str) -> str | None:
        """The library's name for our key, or None."""
        return _translate(ours, self._there, self._words)

    def ours(self, theirs: str) -> str | None:
        """Our key for the library's name, or None."""
        return _translate(theirs, self._back, self._back_words)


def _pattern(template: str, words: Words) -> re.Pattern[str]:
    def group(match: re.Match[str]) -> str:
        field = match[1]
        return f"(?P<{field}>{'|'.join(map(re.escape, words[field])) if field in words else _FIELDS[field]})"

    return re.compile(re.sub(r"\\\{(\w+)\\\}", group, re.escape(template)))


def _translate(name: str, rules: Iterable[tuple[re.Pattern[str], str]], words: Words) -> str | None:
    for pattern, template in rules:
        if match := pattern.fullmatch(name):
            found = {f: words.get(f, {}).get(value, value) for f, value in match.groupdict().items()}
            return template.format_map(defaultdict(lambda: "*", found))
    return None


def paths(layout: Layout, slow: str, fast: str, alone: str = "") -> dict[str, str]:
    """What a library calls the pathways, and one on its own, whichever it is."""
    return {"slow": slow, "fast": fast} if layout.two else dict.fromkeys(PATHS, alone)
