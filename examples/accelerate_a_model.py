"""A model that you have, made faster: the same call, the same answers, measured side by side.

    python examples/accelerate_a_model.py
    python examples/accelerate_a_model.py --dtype bf16 --rounds 21

Builds pytorchvideo's SlowFast-R50 (this library's own network of that form, where pytorchvideo is not
installed) with random weights, hands it to `accelerate`, compares the outputs, and only then times both: one
call of each in turn, medians, on the threads that torch has. In eager mode PyTorch is fastest in
channels_last_3d memory, so that is what it gets.
"""

import argparse
from functools import partial

import torch
from torch import Tensor, nn

import slowfast_kernels as sf
from slowfast_kernels.bench import harness

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FRAMES = {"slow": 8, "fast": 32}


def build(depth: int, crop: int) -> nn.Module:
    """pytorchvideo's network, or ours with its conventions."""
    cells = crop // 32
    try:
        from pytorchvideo.models.slowfast import create_slowfast
    except ImportError:
        return sf.models.create("slowfast_8x8_r50_pytorchvideo", depth=depth, crop=crop)
    return create_slowfast(
        model_depth=depth, head_pool_kernel_sizes=tuple((t, cells, cells) for t in FRAMES.values())
    )


def eager(model: nn.Module, clips: list[Tensor]) -> Tensor:
    """Plain PyTorch, also where the model is ours and would run on the fused ops."""
    with sf.use_backend("reference"):
        return model(list(clips))


def main(argv: list[str] | None = None) -> float:
    """Returns the relative L2 difference of the outputs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--depth", type=int, default=50, help="of the ResNets: 18, 50 or 101 (default 50)")
    parser.add_argument("--crop", type=int, default=224, help="side of the frames (default 224)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32", help="of the fast model")
    parser.add_argument("--rounds", type=int, default=11, help="timed calls of each (default 11)")
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    model = build(args.depth, args.crop).eval()
    fast_model = sf.accelerate(model, dtype=DTYPES[args.dtype])

    model = model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    clips = [torch.randn(1, 3, t, args.crop, args.crop) for t in FRAMES.values()]
    clips = [clip.to(memory_format=torch.channels_last_3d) for clip in clips]
    with torch.inference_mode():
        runs = {"eager": partial(eager, model, clips), "accelerated": lambda: fast_model(clips)}
        error = harness.relative_l2(runs["accelerated"](), runs["eager"]())
        print(
            f"{type(model).__name__} -> {type(fast_model).__name__}: outputs differ by {error:.1e} (relative L2)"
        )
        timings = harness.interleaved(runs, rounds=args.rounds, progress=False)
    for name, timing in timings.timings.items():
        low, high = timing.spread
        print(f"{name:12} {1e3 * timing.median:8.1f} ms  (p20 {1e3 * low:.1f}, p80 {1e3 * high:.1f})")
    threads = torch.get_num_threads()
    print(
        f"{timings.ratio('accelerated', 'eager'):.2f}x on {threads} thread{'s' * (threads > 1)}, {args.dtype}"
    )
    return error


if __name__ == "__main__":
    main()
