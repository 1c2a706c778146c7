"""Other ways to run the same network: torch eager and compiled, ONNX Runtime, OpenVINO.

Each peer turns a plain torch module (``peer_model``) and example inputs into a callable. What it does once
(conversion, folding, compilation, layout of the weights) is not timed; all use the same number of threads,
the same inputs and the same weights, and each runs as its own documentation says it runs fastest.
"""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slowfast_kernels._optional import needs

#: What a peer is made into: a call with the inputs it was built for; returns a tensor or a NumPy array.
Run = Callable[[], Any]


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
    note: str = ""

    def runs(self, op: str) -> bool:
        """Whether a single op has a form for this peer."""
        return (op in ROI_OPS) == self.roi


def channels_last(x: Tensor) -> Tensor:
    """A 5-D tensor in channels_last_3d memory; others as they are."""
    return x.contiguous(memory_format=torch.channels_last_3d) if x.dim() == 5 else x


def channels_last_weights(module: nn.Module) -> nn.Module:
    """The module with its convolutions' weights in channels_last_3d memory."""
    # torch's own annotations of Module.to leave memory_format alone out
    return module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload, no-any-return]


def _eager(module: nn.Module, inputs: Sequence[Tensor]) -> Run:
    def run() -> Any:
        with torch.inference_mode():
            return module(*inputs)

    return run


def _eager_ncdhw(module: nn.Module, inputs: Sequence[Tensor], dtype: str, threads: int) -> Run:
    return _eager(module, [x.contiguous() for x in inputs])


def _eager_channels_last(module: nn.Module, inputs: Sequence[Tensor], dtype: str, threads: int) -> Run:
    return _eager(channels_last_weights(module), [channels_last(x) for x in inputs])


def _torchvision(module: nn.Module, inputs: Sequence[Tensor], dtype: str, threads: int) -> Run:
    from slowfast_kernels.bench import torchvision_ops

    torchvision_ops.load()
    # Torch's mean over frames is ten times faster in this layout.
    return _eager_ncdhw(module, inputs, dtype, threads)


def _autocast(module: nn.Module, inputs: Sequence[Tensor], dtype: str, threads: int) -> Run:
    module = channels_last_weights(module)
    inputs = [channels_last(x) for x in inputs]

    def run() -> Any:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            return module(*inputs)

    return run


def _compiled(module: nn.Module, inputs: Sequence[Tensor], dtype: str, threads: int) -> Run:
    import torch._inductor.config as inductor

    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    module = channels_last_weights(module.to(kind))
    inputs = [channels_last(x.to(kind)) for x in inputs]
    # Freezing folds batch norms and lays the weights out once. It is read when the first call compiles.
    with inductor.patch(freezing=True), torch.no_grad(), _quiet():
        compiled = torch.compile(module)
        try:
            compiled(*inputs)
        except Exception as error:  # no compiler, or a pass that fails on this torch
            raise Unavailable(f"torch.compile: {_first_line(error)}") from error

    def run() -> Any:
        with torch.no_grad():
            return compiled(*inputs)

    return run


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


#: Every peer by name.
PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("eager", ("fp32",), _eager_ncdhw, note="torch eager, NCDHW memory"),
        Peer("eager_cl3d", ("fp32",), _eager_channels_last, note="torch eager, channels_last_3d memory"),
        Peer(
            "eager_cl3d_folded",
            ("fp32",),
            _eager_channels_last,
            folded=True,
            note="torch eager, channels_last_3d memory, batch norms folded",
        ),
        Peer("autocast_cl3d", ("bf16",), _autocast, note="torch autocast to bf16, channels_last_3d memory"),
        Peer(
            "autocast_cl3d_folded",
            ("bf16",),
            _autocast,
            folded=True,
            note="torch autocast to bf16, channels_last_3d memory, batch norms folded",
        ),
        Peer("compile", ("fp32", "bf16"), _compiled, note="torch.compile with freezing, channels_last_3d"),
        Peer("onnxruntime", ("fp32",), _onnxruntime, folded=True, note="ONNX Runtime, CPU provider"),
        Peer("openvino", ("fp32", "bf16"), _openvino, folded=True, note="OpenVINO CPU, latency hint"),
        Peer(
            "torchvision",
            ("fp32", "bf16"),
            _torchvision,
            roi=True,
            note="torch around torchvision's compiled RoIAlign",
        ),
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


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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
