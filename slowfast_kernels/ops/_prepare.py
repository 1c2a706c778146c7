"""Public ``prepare``: an op's weights packed once, for many calls."""

from __future__ import annotations

import torch

from .. import backends
from ._prepared import Prepared
from ._registration import OPS, has_convolutions
from ._spec import Spec


def prepare(
    spec: Spec, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Prepared:
    """An op with its weights as one kernel reads them: pack once, call many times.

    ``prepare(ConvSpec((weight, scale, shift), padding=(0, 1, 1)))(x)`` is ``conv_bn_act3d`` of the same arguments
    without the packing, and takes the form that is fastest for many calls (Winograd's, say). The weights are copied:
    changes of them are not seen. For inference: the result has no gradient.

    Args:
        spec: ``ConvSpec``, ``StemSpec``, ``BlockSpec`` or ``LateralSpec``: the op's parameters and settings.
        dtype: of the maps, and the compute type; None takes the weights'.
        device: of the maps; None takes the weights'.

    Returns:
        A ``Prepared``, called with the op's maps (and ``out=``, where the result goes, of convolutions, stems and
        blocks); ``provider`` says who computes, ``nbytes`` what the weights take.

    Raises:
        TypeError: what is no such value.
        ValueError: parameters that do not fit one another.
        RuntimeError: no kernel can run it (or not the one that ``use_backend`` asks for), with the reasons.
    """
    if not has_convolutions(type(spec)):
        raise TypeError(
            f"prepare: expected a ConvSpec, StemSpec, BlockSpec or LateralSpec, got {type(spec).__name__}"
        )
    spec.check()
    first = next(t for t in spec.tensors if t.dim() == 5)
    dtype = first.dtype if dtype is None else dtype
    place = first.device if device is None else torch.device(device)
    provider = backends.choose_prepared(spec.op, OPS[spec.op].providers, place.type, spec, dtype)
    assert provider.prepare is not None
    with torch.no_grad():
        return provider.prepare(spec.map(lambda t: t.detach().to(place)), dtype, place)
