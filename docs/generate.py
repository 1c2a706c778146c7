"""Write the pages of docs/ that follow from the code: `make docs`, or python docs/generate.py.

docs/api/*.md     the public names of every module: signatures as they are written, docstrings
docs/models.md    what is supported of which library, the presets
docs/gpu-predicted.md  GPU times of a static model
README.md         the same in short, and the figures, out of the saved results of `slowfast-kernels bench targets`

`pages()` gives every file's text, which tests/test_docs.py compares with what is there.
"""

import ast
import importlib
import importlib.util
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "bench/results/cpu-amd-epyc-2-cores-avx512-bf16/targets.json"
BY = "written by `make docs` from {}; change it there"

# --- API ---------------------------------------------------------------------------------------------------

#: Modules of the reference. Names that a module hands out without listing them in __all__ stand beside it.
MODULES: dict[str, tuple[str, ...]] = {
    "slowfast_kernels": ("freeze.Frozen",),
    "slowfast_kernels.ops": (),
    "slowfast_kernels.nn": (),
    "slowfast_kernels.models": (),
    "slowfast_kernels.backends": (),
    "slowfast_kernels.precision": (),
    "slowfast_kernels.video": (),
    "slowfast_kernels.testing": (),
}


def public(module: ModuleType) -> list[str]:
    """Names of a module's reference: __all__, or without one what it defines itself."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
    return [*names, *MODULES[module.__name__]]


def find(module: ModuleType, name: str) -> Any:
    """The object of a name; "file.Name" is looked up in the file, which a function may hide."""
    file, _, last = name.rpartition(".")
    owner = importlib.import_module(f"{module.__name__}.{file}") if file else module
    return getattr(owner, last)


def home(value: Any, module: str, name: str) -> str:
    """The page that describes an object: of the modules which list it, the one it lies in."""
    listed = [
        m
        for m in MODULES
        if m == module or getattr(sys.modules.get(m), name, None) is value and name in public(sys.modules[m])
    ]
    defined = getattr(value, "__module__", module)
    return max(listed, key=lambda m: len(m) if f"{defined}.".startswith(f"{m}.") else 0)


def page_of(module: str) -> str:
    return module.rpartition(".")[2] + ".md"


def segment(source: str, node: ast.AST) -> str:
    """A piece of code as it is written, on one line."""
    return re.sub(r"\s+", " ", ast.get_source_segment(source, node) or "")


def parse(value: Any) -> tuple[str, Any]:
    """Source of a function or class, and its node."""
    source = textwrap.dedent(inspect.getsource(value))
    return source, ast.parse(source).body[0]


def parameters(source: str, arguments: ast.arguments) -> list[str]:
    """A function's parameters without self, as they are written."""

    def one(arg: ast.arg, default: ast.expr | None = None, stars: str = "") -> str:
        text = stars + segment(source, arg)
        equals = " = " if arg.annotation else "="
        return text if default is None else text + equals + segment(source, default)

    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    found = [one(arg, default) for arg, default in zip(plain, defaults, strict=True)]
    if arguments.vararg:
        found.append(one(arguments.vararg, stars="*"))
    elif arguments.kwonlyargs:
        found.append("*")
    found += [one(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    if arguments.kwarg:
        found.append(one(arguments.kwarg, stars="**"))
    return [text for text in found if text not in ("self", "cls")]


def signature(name: str, value: Any) -> str:
    """The call, one parameter a line where it is long."""
    source, node = parse(value)
    returns, decorators = "", ""
    if isinstance(node, ast.ClassDef):
        made = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        if made is not None:
            given = parameters(source, made.args)
        else:  # a dataclass, or an exception with its base's
            fields = [segment(source, n) for n in node.body if isinstance(n, ast.AnnAssign)]
            given = fields or [segment(source, base) for base in node.bases]
    else:
        decorators = "".join(f"@{segment(source, one)}\n" for one in node.decorator_list)
        given = parameters(source, node.args)
        returns = f" -> {segment(source, node.returns)}" if node.returns else ""
    line = f"{name}({', '.join(given)}){returns}"
    if len(line) <= 100:
        return decorators + line
    return f"{decorators}{name}(\n" + "".join(f"    {text},\n" for text in given) + f"){returns}"


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that a class, or one of ours below it, defines and describes."""
    ours = [c for c in reversed(cls.__mro__) if c.__module__.startswith("slowfast_kernels")]
    found = {name: member for c in ours for name, member in vars(c).items()}
    for name, member in found.items():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if not name.startswith("_") and inspect.isfunction(function) and function.__doc__:
            yield name, member


def entry(name: str, value: Any) -> list[str]:
    """Heading, signature and docstring of one name."""
    short = name.rpartition(".")[2]
    lines = [f"## {short}", ""]
    if not (inspect.isfunction(value) or inspect.isclass(value)):
        return [*lines, f"`{short} = {value!r}`", ""]
    doc = inspect.getdoc(value)
    if doc is None or (inspect.isclass(value) and not value.__doc__):
        raise SystemExit(f"{value.__module__}.{short}: a public name without a docstring")
    kind = "class " if inspect.isclass(value) else ""
    lines += ["```python", kind + signature(short, inspect.unwrap(value)), "```", "", *markdown(doc), ""]
    if inspect.isclass(value):
        for member_name, member in members(value):
            lines += [f"### {short}.{member_name}", ""]
            if isinstance(member, property):
                lines += [f"Property. {' '.join(markdown(inspect.getdoc(member) or ''))}", ""]
            else:
                function = inspect.unwrap(getattr(member, "__func__", member))
                lines += ["```python", signature(member_name, function), "```", ""]
                lines += [*markdown(inspect.getdoc(member) or ""), ""]
    return lines


def api_page(name: str) -> str:
    """The reference of one module."""
    module = importlib.import_module(name)
    lines = [
        f"# {name}",
        "",
        f"<!-- {BY.format('the docstrings')} -->",
        "",
        *markdown(inspect.getdoc(module) or ""),
        "",
    ]
    entries, links = [], []
    for item in public(module):
        value = find(module, item)
        short = item.rpartition(".")[2]
        if inspect.ismodule(value):
            links.append(f"[`{short}`]({page_of(value.__name__)})")
            continue
        where = home(value, name, short)
        links.append(f"[`{short}`]({'' if where == name else page_of(where)}#{short.lower()})")
        if where == name:
            entries += entry(item, value)
    text = "\n".join([*lines, " · ".join(links), "", *entries]).rstrip() + "\n"
    return re.sub(r"\n{3,}", "\n\n", text)


# --- docstrings as Markdown --------------------------------------------------------------------------------

SECTION = re.compile(r"^(Args|Returns|Yields|Raises):$")
ITEM = re.compile(r"^(\*{0,2}\w+(?:, (?:\*{0,2}\w+|\.\.\.))*): +(.*)$")
ALIGNED = re.compile(r"^\S.*?\S? {2,}\S|^=+ ")


def indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def paragraphs(lines: Iterable[str]) -> Iterator[list[str]]:
    """Runs of lines between blank ones; a section's heading begins a paragraph of its own."""
    run: list[str] = []
    for line in [*lines, ""]:
        if line.strip() and not (SECTION.match(line) and run):
            run.append(line)
            continue
        if run:
            yield run
        run = [line] if line.strip() else []


def escaped(text: str) -> str:
    """Prose with what Markdown would take for markup escaped, code left as it is."""
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text)
    parts = re.split(r"(``.*?``|`[^`]*`)", text)
    parts[::2] = [re.sub(r"(\*(?=\*)|(?<=\*)\*|<)", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def markdown(doc: str) -> list[str]:
    """Lines of Markdown of a docstring: Args, Returns and Raises as lists, tables and code as they stand."""
    out: list[str] = []
    section = ""
    for i, run in enumerate(paragraphs(doc.splitlines())):
        if i == 0:  # the summary, whatever it looks like
            out += [*map(escaped, run), ""]
            continue
        heading = SECTION.match(run[0])
        if heading:
            section = heading[1]
            out += [f"**{section}**", ""]
            run = run[1:]
        elif indent(run[0]) == 0:
            section = ""
        if run:
            out += [*body(run, section), ""]
    return out[:-1]


def body(run: list[str], section: str) -> list[str]:
    least = min(map(indent, run))
    run = [line[least:] for line in run]
    if section in ("Args", "Raises") or ITEM.match(run[0]) and all(ITEM.match(x) or indent(x) for x in run):
        return items(run)
    if any(ALIGNED.match(line.strip()) and "  " in line.strip() for line in run if not line.startswith("- ")):
        text = [line for line in run if not indent(line) and not ALIGNED.match(line)]
        if text and text == run[: len(text)] and text[-1].endswith(":"):
            return [*map(escaped, text), "", *fenced(run[len(text) :])]
        return fenced(run)
    if any(line.startswith("- ") for line in run):
        return ["- " + escaped(line[2:]) if line.startswith("- ") else escaped(line) for line in run]
    if indent(run[-1]) and not indent(run[0]):
        at = next(i for i, line in enumerate(run) if indent(line))
        if run[at - 1].endswith(":"):
            return [*map(escaped, run[:at]), "", *fenced(run[at:])]
    return [escaped(line.strip()) for line in run]


def fenced(lines: list[str]) -> list[str]:
    return ["```text", *textwrap.dedent("\n".join(lines)).splitlines(), "```"]


def items(run: list[str]) -> list[str]:
    """ "name: text" with its continuation lines, as a list."""
    out: list[str] = []
    for line in run:
        found = ITEM.match(line)
        if found and not indent(line):
            names = ", ".join(f"`{name}`" for name in found[1].split(", "))
            out.append(f"- {names}: {escaped(found[2])}")
        else:
            out.append("  " + escaped(line.strip()) if out else escaped(line.strip()))
    return out


# --- models ------------------------------------------------------------------------------------------------


def models_page() -> str:
    """What is supported of which library, and the presets."""
    from slowfast_kernels.models import support
    from slowfast_kernels.models.presets import ALIASES

    return "\n".join(
        [
            "# Models",
            "",
            f"<!-- {BY.format('models/support.py and models/presets.py')} -->",
            "",
            f"Supported are {support.SUPPORTED}. *accelerate*: live modules, with `accelerate` and `from_module`. "
            "*load*: files, with `load_checkpoint` and `run --checkpoint` (which has no boxes). *convert*: files for "
            "that library, with `slowfast-kernels convert`. [weights.md](weights.md) says where trained weights are.",
            "",
            support.models_table(),
            "## Presets",
            "",
            "`models.create(name)` builds any of these with random weights, `models.macs` counts its work; "
            "`load_checkpoint(path)` chooses one by the file's content. Frames and stride are the Slow pathway's.",
            "",
            support.presets_table(),
            f"Other names: {', '.join(f'`{a}` = `{b}`' for a, b in ALIASES.items())}.",
            "",
        ]
    )


# --- predictions -------------------------------------------------------------------------------------------


def predicted_page() -> str | None:
    """GPU times of a static model; None where the CUDA kernels are not built, whose registers it counts with."""
    from slowfast_kernels.bench.gpu.predict import command, cuda

    return command.page() if cuda.compiled() else None


# --- figures -----------------------------------------------------------------------------------------------


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def mebibytes(size: float) -> str:
    return f"{size / 2**20:.0f} MiB"


#: Rows of README's table: key of the target, what it says there. A row that was not measured stays out.
ROWS = (
    ("fp32", "fp32, against PyTorch eager, channels_last_3d"),
    ("openvino", "fp32, against OpenVINO"),
    ("bf16", "bf16, against PyTorch autocast, channels_last_3d"),
    ("fast stages", "Fast pathway, res2 and res3, fp32, against eager, channels_last_3d"),
    (
        "roi torchvision",
        "`roi_head_pool`, AVA shapes, against mean, torchvision's compiled RoIAlign, max (worst of 1, 8, 64 boxes)",
    ),
    (
        "memory",
        "peak memory above the weights as each side holds them, fp32, against eager, channels_last_3d",
    ),
    ("memory strict", "the same above the weights in their plain size: packed copies count"),
)


def figures() -> str:
    """README's table of the saved targets."""
    found = json.loads(FIGURES.read_text())
    rows = {row["key"]: row for row in found["rows"]}
    stamp = found["environment"]
    lines = [
        f"| SlowFast-R50 8x8, 224x224, batch 1, {stamp['threads']} threads of an {stamp['processor']} "
        f"({stamp['isa'].replace('_', '-').upper()}) | this library | peer | ratio | outputs differ by |",
        "|---|---:|---:|---:|---:|",
    ]
    for key, what in ROWS:
        row = rows.get(key)
        if row is None or row["ratio"] is None:
            continue
        show: Callable[[float], str] = milliseconds if row["unit"] == "s" else mebibytes
        ours, peer = ("" if row[side] is None else show(row[side]) for side in ("ours", "peer"))
        error = "" if row["error"] is None else f"{row['error']:.1e}"
        lines.append(f"| {what} | {ours} | {peer} | **{row['ratio']:.1f}x** | {error} |")
    where = FIGURES.parent.relative_to(ROOT)
    return "\n".join(
        [
            *lines,
            "",
            f"Medians of interleaved runs at revision {stamp['revision'][:7]}; outputs are compared before anything is "
            "timed (relative L2; that of bf16 is its distance from fp32, at most twice the peer's own). "
            f"[All rows]({where}/targets.md), [how they are measured](docs/benchmarks.md).",
        ]
    )


def readme() -> str:
    """README.md with its generated blocks as they should be."""
    text = (ROOT / "README.md").read_text()
    from slowfast_kernels.models import support

    blocks = {
        "figures": (str(FIGURES.relative_to(ROOT)), figures()),
        "supported": ("models/support.py", support.models_table().rstrip()),
    }
    for name, (source, block) in blocks.items():
        end = f"<!-- end of {name} -->"
        written = f"<!-- {name}: {BY.format(source)} -->\n\n{block}\n\n{end}"
        literally = written.replace("\\", r"\\")
        text, found = re.subn(f"<!-- {name}: .*?{end}", literally, text, flags=re.DOTALL)
        if found != 1:
            raise SystemExit(
                f"README.md: expected one block from '<!-- {name}: ... -->' to '{end}', got {found}"
            )
    return text


def pages() -> dict[Path, str]:
    """Every generated file and its text."""
    for name in MODULES:
        importlib.import_module(name)
    found = {ROOT / "docs/api" / page_of(name): api_page(name) for name in MODULES}
    found[ROOT / "README.md"] = readme()
    found[ROOT / "docs/models.md"] = models_page()
    if (page := predicted_page()) is not None:
        found[ROOT / "docs/gpu-predicted.md"] = page
    return found


if __name__ == "__main__":
    for path, text in pages().items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"wrote {path.relative_to(ROOT)}")
