"""What the documentation says holds: its commands and blocks run, its tables are those of the code, its links lead
somewhere.

README.md and the hand-written pages of docs/ are read for fenced blocks. Python blocks run one after the other in the
names of `preamble`; commands run in a folder with stand-ins for the files they name. What is not run stands in
`NOT_RUN`, with the reason; what is run on less than it says stands in `CHEAPER`.
"""

import importlib.util
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

import slowfast_kernels as sf
from slowfast_kernels import cli, models
from slowfast_kernels.testing import provider_missing

sys.path.insert(0, str(Path(__file__).parent / "models"))
import live  # noqa: E402

ROOT = Path(__file__).parents[1]
WRITTEN = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ALL = [*WRITTEN, *sorted((ROOT / "docs/api").glob("*.md")), ROOT / "CONTRIBUTING.md"]

#: What a command of the docs is run with instead, so that it takes seconds: written, run.
CHEAPER = (
    ("--views 10x3", "--views 1x1"),
    ("run examples/demo.mp4", "run examples/demo.mp4 --model slow_8x8_r18 --set crop=64"),
    ("bench models", "bench models --model slowfast_8x8_r18 --crop 32 --peers none --runs 1 --quiet"),
    ("bench scaling", "bench scaling --model slow_8x8_r18 --crop 32 --dtype fp32 --runs 1 --quiet"),
    ("bench ops --op bottleneck3d", "bench ops --op bottleneck3d --case res5.fast.0 --peers none --runs 1"),
)

#: Commands that are not run, by how they begin.
NOT_RUN = {
    "pip install": "it would change this environment; tests/test_packaging.py builds and installs",
    "make": "each sets up an environment and builds; that there is such a target is checked",
    "python examples/": "tests/test_examples.py runs every one",
    "bench/gpu.sh": "it is for a machine with a GPU; tests/bench/test_bench_gpu.py tries it without",
}


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


# --- blocks ------------------------------------------------------------------------------------------------


def preamble() -> dict:
    """The names that the pages' Python blocks take for granted."""
    slowfast, _, _ = live.pytorchvideo()
    network = slowfast.create_slowfast(model_depth=18, head_pool_kernel_sizes=((2, 1, 1), (8, 1, 1)))

    def weight(*shape):
        return torch.randn(shape) / shape[1]

    def vector(size):
        return torch.rand(size) + 0.5

    return {
        "my_pytorchvideo_model": live.randomise(network),
        "slow_clip": torch.randn(1, 3, 2, 32, 32),
        "fast_clip": torch.randn(1, 3, 8, 32, 32),
        "x": torch.randn(1, 16, 4, 7, 7),
        "a": (weight(8, 16, 3, 1, 1), vector(8), vector(8)),
        "b": (weight(8, 8, 1, 3, 3), vector(8), vector(8)),
        "c": (weight(16, 8, 1, 1, 1), vector(16), vector(16)),
        "slow": torch.randn(1, 32, 2, 6, 8),
        "fast": torch.randn(1, 4, 8, 6, 8),
        "rois": torch.tensor([[0.0, 10, 20, 70, 90]]),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files that the pages name: a clip, a checkpoint of PySlowFast, labels, the examples."""
    where = tmp_path_factory.mktemp("docs")
    (where / "examples").symlink_to(ROOT / "examples")
    (where / "video.mp4").symlink_to(ROOT / "examples/demo.mp4")
    torch.manual_seed(0)  # a deep network, since PySlowFast's files are, on small clips
    model = models.create("slowfast_8x8_r50", frames=8, crop=32, test_crop=32, classes=400)
    models.save_checkpoint(live.randomise(model), where / "ours.pth")
    models.checkpoint.convert(where / "ours.pth", where / "SLOWFAST_8x8_R50.pyth", to="pyslowfast")
    (where / "kinetics.txt").write_text("".join(f"action {n}\n" for n in range(400)))
    return where


@pytest.fixture
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    threads = torch.get_num_threads()
    yield folder
    torch.set_num_threads(threads)


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_every_block_is_of_a_kind_that_is_tried(page):
    kinds = {language for language, _ in blocks(page)}
    assert kinds <= {"python", "sh", "text"}, "text is for what a program prints"


@pytest.mark.parametrize(
    "page", [p for p in WRITTEN if any(k == "python" for k, _ in blocks(p))], ids=name_of
)
def test_python_blocks_run(page, inside, capsys):
    names = preamble()
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, name_of(page), "exec"), names)
    if page.name == "limits.md":
        assert (names["alone"], names["handed"]) == ("auto", "reference")
    if page.name == "README.md":
        torch.testing.assert_close(names["y"], names["expected"], rtol=1e-4, atol=1e-4)
        assert names["features"].shape == (1, 36)
        model, clips = names["my_pytorchvideo_model"], [names["slow_clip"], names["fast_clip"]]
        torch.testing.assert_close(names["fast_model"](clips), model(list(clips)), rtol=1e-4, atol=1e-4)
        assert names["frozen"].dtype == torch.bfloat16 and names["scores"].shape == (1, 400)
        assert "50.3 GMAC" in capsys.readouterr().out


def commands(page: Path) -> list[str]:
    """Command lines of the page's sh blocks, comments left out."""
    text = "".join(text for language, text in blocks(page) if language == "sh").replace("\\\n", " ")
    lines = [shlex.join(shlex.split(line, comments=True)) for line in text.splitlines()]
    return [line for line in lines if line]


COMMANDS = sorted({line for page in WRITTEN for line in commands(page)})


@pytest.mark.parametrize("line", [c for c in COMMANDS if c.startswith("slowfast-kernels ")])
def test_commands_run(line, inside, capsys):
    for written, run in CHEAPER:
        line = line.replace(written, run)
    status = cli.main(shlex.split(line)[1:])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert printed.out


@pytest.mark.parametrize("line", [c for c in COMMANDS if not c.startswith("slowfast-kernels ")])
def test_other_commands_are_there(line):
    assert any(line.startswith(beginning) for beginning in NOT_RUN), "neither run nor listed as not run"
    words = shlex.split(line)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] != "pip":
        script = ROOT / words[words[0] == "python"]
        assert script.is_file()
        assert words[0] == "python" or os.access(script, os.X_OK)


def test_nothing_is_listed_in_vain():
    text = "\n".join(COMMANDS)
    assert all(written in text for written, _ in CHEAPER)
    assert all(any(line.startswith(beginning) for line in COMMANDS) for beginning in NOT_RUN)


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_commands_in_the_prose_exist(page):
    for name in re.findall(r"`slowfast-kernels (\w+)", page.read_text()):
        assert name in cli.COMMANDS
    for target in re.findall(r"`make (\w+)", page.read_text()):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


# --- links and generated pages -----------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """What headings are called in links: lower case, spaces as hyphens, punctuation left out."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(([^)\s]*)\)", text)
    for link in links:
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.fixture(scope="module")
def generated():
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pages()


def test_generated_pages_are_those_of_the_code(generated):
    old = [name_of(page) for page, text in generated.items() if not page.exists() or page.read_text() != text]
    assert not old, f"run make docs: {', '.join(old)} are not what the code says"


def test_no_page_is_left_over(generated):
    assert set((ROOT / "docs/api").iterdir()) <= set(generated)


def test_every_public_name_is_described(generated):
    for module in (sf.ops, sf.nn, sf.models):
        page = generated[ROOT / f"docs/api/{module.__name__.rpartition('.')[2]}.md"]
        assert all(f"\n## {name}\n" in page for name in module.__all__)
    assert all(f"[`{name}`](" in generated[ROOT / "docs/api/slowfast_kernels.md"] for name in sf.__all__)


def test_every_page_is_reached_from_the_readme():
    text = (ROOT / "README.md").read_text()
    assert all(name_of(page) in text for page in ALL if page.name != "README.md")


# --- environment variables ---------------------------------------------------------------------------------


def read_by_the_code() -> set[str]:
    """SLOWFAST_* names that Python code holds as strings, C++ asks getenv for, and scripts use."""
    found: set[str] = set()
    for where in ("slowfast_kernels", "models", "bench", "csrc", "setup.py"):
        paths = [ROOT / where] if where.endswith(".py") else (ROOT / where).rglob("*")
        for path in paths:
            pattern = {
                ".py": r"""["'](SLOWFAST_\w+)["']""",
                ".cpp": r'getenv\("(SLOWFAST_\w+)"\)',
                ".h": r'getenv\("(SLOWFAST_\w+)"\)',
                ".sh": r"\$\{?(SLOWFAST_\w+)|(?<![\w$])(SLOWFAST_\w+)=",
            }.get(path.suffix)
            if pattern:
                found |= {
                    name
                    for match in re.finditer(pattern, path.read_text())
                    for name in match.groups()
                    if name
                }
    return found


def test_environment_variables_are_those_of_the_code():
    text = (ROOT / "docs/environment.md").read_text()
    described = set(re.findall(r"SLOWFAST_[A-Z0-9_]+", text))
    options = set(
        re.findall(r"^(?:option|set)\((SLOWFAST_\w+) .*", (ROOT / "CMakeLists.txt").read_text(), re.MULTILINE)
    )
    code = read_by_the_code()
    assert len(code) > 10
    assert code <= described, "docs/environment.md leaves some out"
    assert described <= code | options, "docs/environment.md has some that nothing reads"


# --- limits ------------------------------------------------------------------------------------------------

needs_kernels = pytest.mark.skipif(
    bool(provider_missing("cpu")), reason=f"provider cpu: {provider_missing('cpu')}"
)


def test_limit_jit_script_takes_no_op():
    class Stem(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return sf.ops.stem3d(x, torch.ones(2, 1, 1, 3, 3))

    with pytest.raises((RuntimeError, torch.jit.frontend.NotSupportedError)):
        torch.jit.script(Stem())


def test_limit_boxes_and_pixels_have_no_gradient():
    features = torch.randn(1, 4, 2, 6, 6, requires_grad=True)
    rois = torch.tensor([[0.0, 0, 0, 4, 4]], requires_grad=True)
    sf.ops.roi_head_pool(features, None, rois, spatial_scale=1.0).sum().backward()
    assert features.grad is not None and rois.grad is None
    frames = torch.randint(0, 256, (1, 8, 8, 8, 3), dtype=torch.uint8)
    assert not any(clip.requires_grad for clip in sf.ops.pack_pathways(frames, 4))


def test_limit_bins_and_samples():
    features, rois = torch.randn(1, 2, 1, 4, 4), torch.tensor([[0.0, 0, 0, 4, 4]])
    for settings in ({"output_size": 4097}, {"output_size": 2, "sampling_ratio": 4097}):
        with pytest.raises(ValueError, match="4096"):
            sf.ops.roi_align3d(features, rois, **settings)


@needs_kernels
def test_limit_frozen_model_breaks_a_full_graph():
    network = models.create("slow_8x8_r18", blocks=(1, 1, 1, 1), frames=4, crop=32).eval()
    frozen = sf.freeze(network)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(frozen, backend="eager", fullgraph=True)(torch.randn(1, 3, 4, 32, 32))
    torch._dynamo.reset()


@needs_kernels
def test_limit_four_plans_are_kept():
    frozen = sf.freeze(models.create("slow_8x8_r18", blocks=(1, 1, 1, 1), frames=4, crop=32).eval())
    for extra in range(6):
        frozen(torch.randn(1, 3, 4, 32, 32 + 32 * extra))
    assert len(frozen._plans) == 4


def test_limit_backends_by_name_never_fall_back():
    with sf.use_backend("cpu"), pytest.raises(RuntimeError, match="cpu: "):
        sf.ops.stem3d(torch.ones(1, 1, 2, 8, 8).double(), torch.ones(2, 1, 1, 3, 3).double())


def test_limit_unsupported_modules_are_left_as_they_are():
    module = torch.nn.Sequential(torch.nn.Conv3d(3, 4, 3), torch.nn.ReLU())
    with pytest.warns(UserWarning, match="left as it is"):
        assert sf.accelerate(module) is module
    with pytest.raises(ValueError, match="not recognised"):
        models.from_module(module)
