"""Other ways to run the same layers: torch eager, compiled and on cuDNN, ONNX Runtime, OpenVINO, torchvision.

Each peer turns a plain torch module (plain.py) and example inputs into a callable. What it does
once (conversion, folding, compilation, layout of the weights) is not timed; all use the same number of threads, the
same inputs and the same weights, and each runs as its own documentation says it runs fastest. One that cannot run here
raises `Unavailable` when it is built, with the reason.

`PEERS` are a CPU's, by name. A GPU's are the forms of `gpu_forms` (cudnn_forms.py) and torch.compile's `MODES`.
"""

import contextlib
import copy
import functools
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slowfast_kernels._optional import needs
from slowfast_kernels.bench.harness import first_line

#: What a peer is made into: a call with the inputs it was built for; returns a tensor or a NumPy array.
Run = Callable[[], Any]

#: A GPU's peers.
EAGER, VIEWS, FUSED, STREAMS = "eager_cl3d", "views_2d", "fused_cudnn", "fused_streams"


@dataclass(frozen=True)
class Mode:
    """How torch.compile is used. views: on the module's `views_2d` form. patch: settings of Inductor."""

    mode: str = "default"
    views: bool = False
    patch: Mapping[str, Any] = field(default_factory=dict)

    def compiled(
        self, module: nn.Module, inputs: Sequence[Tensor], backend: str = "inductor"
    ) -> Callable[..., Any]:
        """The folded module compiled; another backend generates no code."""
        from slowfast_kernels.bench import cudnn_forms

        form = cudnn_forms.views_2d(module) if self.views else module
        how: dict[str, Any] = {"mode": self.mode} if backend == "inductor" else {"backend": backend}
        return compiled(form, inputs, patch=self.patch, **how)


#: torch.compile by the GPU peer's name. CUDA graphs are captured by the harness for each: the mode "max-autotune" is
#: the same code captured by Inductor, at the price of compiling it all again.
MODES = {
    "compile": Mode(),
    # 1x1x1 convolutions as products of matrices, with what follows them fused
    "compile_views": Mode(views=True, patch={"conv_1x1_as_mm": True}),
    "compile_autotune": Mode("max-autotune-no-cudagraphs"),
}

#: Ops whose torch form needs an operator of torchvision.
ROI_OPS = ("roi_align3d", "roi_head_pool")


class Unavailable(RuntimeError):
    """A peer that cannot run here; the message says what is missing."""


@dataclass(frozen=True)
class Peer:
    """A way to run a module.

    name:    what tables print.
    dtypes:  "fp32", "bf16".
    build:   (module, inputs, dtype, threads) -> callable; raises Unavailable.
    folded:  takes the module with batch norms folded into its convolutions (else as trained).
    roi:     runs RoI ops, which no other peer has a kernel for, and nothing else.
    """

    name: str
    dtypes: tuple[str, ...]
    build: Callable[[nn.Module, Sequence[Tensor], str, int], Run]
    folded: bool = False
    roi: bool = False

    def runs(self, op: str) -> bool:
        """Whether a single op has a form for this peer."""
        return (op in ROI_OPS) == self.roi


def channels_last(inputs: Sequence[Tensor]) -> list[Tensor]:
    """5-D tensors in channels_last_3d memory; others as they are."""
    return [x.contiguous(memory_format=torch.channels_last_3d) if x.dim() == 5 else x for x in inputs]


def channels_last_weights(module: nn.Module) -> nn.Module:
    """The module with its convolutions' weights in channels_last_3d memory."""
    # torch's own annotations of Module.to leave memory_format alone out
    return module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def placed(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A copy in eval mode on the device, weights in ``dtype`` and channels_last_3d memory."""
    return channels_last_weights(copy.deepcopy(module).eval().requires_grad_(False).to(device, dtype))


def module_run(module: Callable[..., Any], inputs: Sequence[Tensor]) -> Run:
    """A module on given inputs as a callable without arguments."""

    def run() -> Any:
        with torch.inference_mode():
            return module(*inputs)

    return run


def together(runs: Sequence[Run]) -> Run:
    """Several callables one after the other."""
    return lambda: [run() for run in runs]


def modules_run(modules: Sequence[Callable[..., Any]], inputs: Sequence[Sequence[Tensor]]) -> Run:
    """Several modules, each on its inputs."""
    return together([module_run(m, x) for m, x in zip(modules, inputs, strict=True)])


def _eager(module: nn.Module, inputs: Sequence[Tensor], dtype: str, threads: int) -> Run:
    return module_run(module, [x.contiguous() for x in inputs])


def _eager_channels_last(module: nn.Module, inputs: Sequence[Tensor], dtype: str, threads: int) -> Run:
    return module_run(channels_last_weights(module), channels_last(inputs))


def _torchvision(module: nn.Module, inputs: Sequence[Tensor], dtype: str, threads: int) -> Run:
    from slowfast_kernels.bench import torchvision_ops

    torchvision_ops.load()
    # Torch's mean over frames is ten times faster in this layout.
    return _eager(module, inputs, dtype, threads)


def _autocast(module: nn.Module, inputs: Sequence[Tensor], dtype: str, threads: int) -> Run:
    run = _eager_channels_last(module, inputs, dtype, threads)
    return torch.autocast("cpu", torch.bfloat16)(run)


def _compiled(module: nn.Module, inputs: Sequence[Tensor], dtype: str, threads: int) -> Run:
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    inputs = channels_last([x.to(kind) for x in inputs])
    call = compiled(channels_last_weights(module.to(kind)), inputs, freezing=True)
    return lambda: call(*inputs)


def compiled(
    module: nn.Module,
    inputs: Sequence[Tensor],
    freezing: bool = False,
    patch: Mapping[str, Any] | None = None,
    **how: Any,
) -> Callable[..., Any]:
    """The module through torch.compile, called with tensors; raises Unavailable.

    freezing: fold batch norms and lay the weights out once. patch: settings of Inductor. how: options of torch.compile.
    """
    settings = {**(patch or {}), **({"freezing": True} if freezing else {})}
    torch._dynamo.reset()
    made = torch.compile(module, dynamic=False, **how)

    def call(*values: Tensor) -> Any:
        with torch.no_grad() if freezing else torch.inference_mode():
            return made(*values)

    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet())
        if settings:  # read when the first call compiles
            import torch._inductor.config as inductor

            stack.enter_context(inductor.patch(settings))
        try:
            for _ in range(2):
                call(*inputs)
        except Exception as error:  # no compiler, or a pass that fails on this torch: of any class
            raise Unavailable(f"torch.compile: {first_line(error)}") from error
    return call


def onnx_bytes(module: nn.Module, inputs: Sequence[Tensor]) -> bytes:
    """The module as an ONNX file with its weights inside."""
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "model.onnx"
        with needs("ONNX export", extra="bench", raising=Unavailable):
            torch.onnx.export(
                module, tuple(x.contiguous() for x in inputs), str(path), dynamo=True, external_data=False
            )
        return path.read_bytes()


def _onnxruntime(module: nn.Module, inputs: Sequence[Tensor], dtype: str, threads: int) -> Run:
    with needs("this peer", extra="bench", raising=Unavailable):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        onnx_bytes(module, inputs), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    feed = {name: x.contiguous().numpy() for name, x in zip(names, inputs, strict=True)}
    return lambda: session.run(None, feed)[0]


def _openvino(module: nn.Module, inputs: Sequence[Tensor], dtype: str, threads: int) -> Run:
    with needs("this peer", extra="bench", raising=Unavailable):
        import openvino
    inputs = [x.contiguous() for x in inputs]
    with _quiet(), torch.no_grad():
        model = openvino.convert_model(module, example_input=tuple(inputs))
        model.reshape({port: list(x.shape) for port, x in zip(model.inputs, inputs, strict=True)})
        properties = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bf16" else "f32",
        }
        compiled = openvino.Core().compile_model(model, "CPU", properties)
    request = compiled.create_infer_request()
    arrays = [x.numpy() for x in inputs]
    for index, array in enumerate(arrays):
        request.set_input_tensor(index, openvino.Tensor(array, shared_memory=True))

    def run() -> Any:
        request.infer()
        # A view of the request's own buffer, copied: the next call writes over it.
        return request.get_output_tensor(0).data.copy()

    run.keep = (arrays, compiled)  # type: ignore[attr-defined]  # the request only borrows the inputs
    return run


#: Every peer of a CPU by name.
PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("eager", ("fp32",), _eager),  # NCDHW memory
        Peer("eager_cl3d", ("fp32",), _eager_channels_last),
        Peer("eager_cl3d_folded", ("fp32",), _eager_channels_last, folded=True),
        Peer("autocast_cl3d", ("bf16",), _autocast),
        Peer("autocast_cl3d_folded", ("bf16",), _autocast, folded=True),
        Peer("compile", ("fp32", "bf16"), _compiled),
        Peer("onnxruntime", ("fp32",), _onnxruntime, folded=True),
        Peer("openvino", ("fp32", "bf16"), _openvino, folded=True),
        Peer("torchvision", ("fp32", "bf16"), _torchvision, roi=True),
    )
}

#: Peers that start in seconds; torch.compile takes minutes for a whole network.
DEFAULT = ("eager", "eager_cl3d", "autocast_cl3d", "onnxruntime", "openvino", "torchvision")


def known(networks: bool) -> list[str]:
    """Names of the peers that run whole networks, or of all, which run single ops."""
    return [n for n, peer in PEERS.items() if not (networks and peer.roi)]


def select(names: str | None, dtype: str, *, networks: bool = True) -> list[Peer]:
    """Peers of a comma-separated list ("all" = every one, None = the default ones) that have this dtype.

    networks: those that run whole networks; False: single ops.
    """
    there = known(networks)
    if names is None:
        wanted = [n for n in DEFAULT if n in there]
    elif names == "all":
        wanted = there
    else:
        wanted = [n.strip() for n in names.split(",") if n.strip()]
    unknown = [n for n in wanted if n not in there]
    if unknown:
        raise ValueError(
            f"peers: expected names among {', '.join(there)}, 'all' or 'none', got {unknown[0]!r}"
        )
    return [PEERS[n] for n in wanted if dtype in PEERS[n].dtypes]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters print and warn at length; keep their talk out of the tables."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# --- a GPU's forms -----------------------------------------------------------------------------------------


def gpu_forms(plain: nn.Module, folded: nn.Module) -> dict[str, Callable[[], nn.Module]]:
    """Peers of a module by name, the strongest last, built on demand: ``plain`` has its batch norms, ``folded`` has
    not."""
    from slowfast_kernels.bench import cudnn_forms
    from slowfast_kernels.bench.plain import SlowFast

    fused = functools.cache(lambda: cudnn_forms.fused(folded))  # what it finds out serves both
    forms: dict[str, Callable[[], nn.Module]] = {
        EAGER: lambda: plain,
        VIEWS: lambda: cudnn_forms.views_2d(plain),
        FUSED: fused,
    }
    if isinstance(folded, SlowFast):
        forms[STREAMS] = lambda: cudnn_forms.TwoStreams(fused())  # type: ignore[arg-type]
    return forms


# --- the clips -----------------------------------------------------------------------------------------------


def torch_pack(
    frames: Tensor, alpha: int, mean: Sequence[float], std: Sequence[float], in_place: bool = False
) -> tuple[Tensor, Tensor]:
    """Normalise and split as SlowFast training code does, step by step; or with the constants put together and no
    temporaries."""
    if in_place:
        scale = 1 / (255 * torch.tensor(std))
        x = frames.to(torch.float32).mul_(scale).sub_(torch.tensor(mean) / torch.tensor(std))
    else:
        x = (frames.float() / 255.0 - torch.tensor(mean)) / torch.tensor(std)
    fast = x.permute(0, 4, 1, 2, 3)
    index = torch.linspace(0, frames.shape[1] - 1, frames.shape[1] // alpha).long()
    return fast.index_select(2, index), fast


class TorchPack:
    """The same on a GPU: constants made once, no temporaries."""

    def __init__(self, frames: Tensor, alpha: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = (torch.tensor(v, device=frames.device) for v in (mean, std))
        t = frames.shape[1]
        self.index = torch.linspace(0, t - 1, t // alpha, device=frames.device).long()

    def __call__(self, frames: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        x = frames.to(torch.float32).div_(255.0).sub_(self.mean).div_(self.std)
        fast = x.permute(0, 4, 1, 2, 3).to(dtype)
        return fast.index_select(2, self.index), fast
