"""The CUDA provider: one kernel from the Fast clip to the lateral's channels of the fused buffer.

Without a buffer to write into there is one more kernel, which brings the Slow channels there. float32 is multiplied
as ``precision.fp32_mode()`` says: on the matrix units for "tf32", exactly for every other mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ... import autotune, precision
from .._device import limits
from .._dtypes import FLOATS, refused
from .._memory import pixel_rows
from .._registration import define_native, float32
from .._spec import ConvAffine
from ..conv_bn_act3d.spec import beyond_kernels
from .joined import Lateral
from .spec import LateralSpec

define_native(
    "_lateral_cuda(Tensor fast, Tensor weight, Tensor? scale, Tensor? shift, int alpha, bool relu, bool tf32,"
    " int columns, int walkers, Tensor(a!) out) -> ()"
)
define_native("_lateral_gather_cuda(Tensor x, Tensor? base, int alpha, int groups, Tensor(a!) out) -> ()")


def pack(weight: torch.Tensor, scale: torch.Tensor | None = None, *, dtype: torch.dtype) -> torch.Tensor:
    """Weights [Cl, Cf, kt, 1, 1], times scale [Cl], as the kernel reads them: [Cl, kt, Cf] in the compute type."""
    w = weight.detach() if scale is None else ConvAffine(weight, scale).folded()
    return w.flatten(2).transpose(1, 2).to(dtype).contiguous()


TUNER = autotune.Tuner("lateral_fusion", cuda=("lateral",))

#: Pixels of a tile; bytes of a row of a stage in shared memory.
ROWS, STAGE_ROW = 128, 64

#: Multiplications of a multiprocessor in a cycle (Hopper's: bfloat16 and float16, tf32, float32), and bytes that come
#: to it from the second-level cache. Reckoned, not measured.
PRODUCTS, L2_BYTES = {"half": 1280, "tf32": 640, "ieee": 128}, 22


@dataclass(frozen=True)
class Tiles:
    """What a block of threads computes.

    columns:  output channels, of 128 pixels at a time: 16, 64 or 128.
    resident: the weights of these channels stay in shared memory while the block walks over pixels; else they come
              along with the pixels of the one tile that it computes.
    """

    columns: int
    resident: bool


@dataclass(frozen=True)
class Product:
    """The lateral as a product of matrices: ``pixels`` x ``k_size`` times ``k_size`` x ``outputs``.

    itemsize: bytes of a value. kind: a key of `PRODUCTS`.
    """

    pixels: int
    k_size: int
    outputs: int
    itemsize: int
    kind: str

    def shared_bytes(self, tiles: Tiles) -> int:
        """Shared memory of a block of threads; as Lateral::shared_bytes of lateral.cuh counts it."""
        weights = tiles.columns * STAGE_ROW
        steps = -(-self.k_size * self.itemsize // STAGE_ROW)
        ring = 4 * ROWS * STAGE_ROW if tiles.resident else 3 * (ROWS * STAGE_ROW + weights)
        return ring + tiles.resident * steps * weights + 8 * tiles.columns

    def across(self, tiles: Tiles) -> int:
        """Sets of columns."""
        return -(-self.outputs // tiles.columns)

    def together(self, tiles: Tiles, shared: int) -> int:
        """Blocks of threads on a multiprocessor, by registers and shared memory."""
        most = {16: 4, 64: 3}.get(tiles.columns, 4 // self.itemsize)
        return max(1, min(most, shared // self.shared_bytes(tiles)))

    def walkers(self, tiles: Tiles, processors: int, shared: int) -> int:
        """Blocks of threads that share the pixels of one set of columns; 0: one for every tile, which keep nothing."""
        if not tiles.resident:
            return 0
        return max(1, processors * self.together(tiles, shared) // self.across(tiles))

    def candidates(self, shared: int) -> list[Tiles]:
        """Tiles worth measuring."""
        columns = (16, 64) if self.outputs <= 16 else (64, 128) if self.outputs > 64 else (64,)
        every = [Tiles(n, resident) for n in columns for resident in (True, False) if n > 16 or resident]
        return [tiles for tiles in every if self.shared_bytes(tiles) <= shared]

    def heuristic(self, processors: int, shared: int) -> Tiles:
        """Tiles of a call, unmeasured: products against what comes from the second-level cache.

        Whichever takes longer counts. Fewer than two warps to a scheduler wait for their own results.
        """
        rows = max(1, -(-self.pixels // ROWS))

        def time(tiles: Tiles) -> float:
            together = self.together(tiles, shared)
            work = rows * self.across(tiles)
            each = -(-work // processors)  # tiles of the multiprocessor that has most
            if tiles.resident and each > together:
                each = -(-work // (processors * together)) * together
            busy = min(1.0, min(together, each) * max(1, tiles.columns // 64) / 2)
            products = ROWS * tiles.columns * self.k_size / PRODUCTS[self.kind] / busy
            weights = tiles.columns * self.k_size
            moved = ROWS * (self.k_size + tiles.columns) + (0 if tiles.resident else weights)
            once = weights * min(together, each) if tiles.resident else 0
            return each * max(products, moved * self.itemsize / L2_BYTES) + once * self.itemsize / L2_BYTES

        return min(self.candidates(shared), key=time)


class CudaLateral(Lateral):
    """A convolution, or one kernel that gathers frames."""

    provider = "cuda"

    def __init__(
        self, spec: LateralSpec, dtype: torch.dtype, device: torch.device, fold: bool = True
    ) -> None:
        super().__init__(spec, dtype, device)
        self.packed = self.scale = self.shift = None
        if spec.conv is not None:
            weight, scale, shift = spec.conv
            self.packed = pack(weight, scale if fold else None, dtype=dtype)
            self.scale, self.shift = None if fold else float32(scale), float32(shift)

    def bring(self, slow: torch.Tensor, out: torch.Tensor) -> None:
        torch.ops.slowfast._lateral_gather_cuda(pixel_rows(slow)[0], None, 1, 1, out)

    def into(self, out: torch.Tensor, *args: Any) -> Any:
        fast, slow = args
        if self.packed is None:
            torch.ops.slowfast._lateral_gather_cuda(fast, slow, self.spec.alpha, self.spec.groups, out)
            return
        fp32 = "tf32" if precision.fp32_mode() == "tf32" else "ieee"
        kind = fp32 if self.dtype == torch.float32 else "half"
        outputs, taps, channels = self.packed.shape
        n, _, t, h, w = out.shape
        product = Product(n * t * h * w, taps * channels, outputs, fast.element_size(), kind)
        processors, shared = limits(fast.device)

        def run(tiles: Tiles) -> None:
            walkers = product.walkers(tiles, processors, shared)
            torch.ops.slowfast._lateral_cuda(
                fast, self.packed, self.scale, self.shift, self.spec.alpha, self.spec.activation == "relu",
                kind == "tf32", tiles.columns, walkers, out,
            )  # fmt: skip

        run(
            TUNER.pick(
                ("cuda", taps, channels, outputs, self.spec.alpha, *out.shape, fast.dtype, kind),
                fast.device,
                lambda: product.heuristic(processors, shared),
                lambda: product.candidates(shared),
                run,
            )
        )


def cannot(spec: LateralSpec, dtype: torch.dtype) -> str | None:
    """Why the CUDA kernels cannot run this lateral, or None."""
    reason = refused(dtype, FLOATS, "CUDA")
    return reason if spec.conv is None else reason or beyond_kernels(spec.full, "CUDA")


def prepare(spec: LateralSpec, dtype: torch.dtype, device: torch.device, once: bool = False) -> Lateral:
    return CudaLateral(spec, dtype, device, fold=not once)
