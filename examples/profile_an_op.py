"""Where the time goes: every kernel call of a frozen model, and one op on its own, against the machine.

    python examples/profile_an_op.py
    python examples/profile_an_op.py --model slow_8x8_r50 --op stem3d --dtype bf16

First part: `frozen.profile(clips)` times each kernel call and says how many operations and bytes it is; the
longest are shown with their FLOP/s. Second part: the real calls of one op (its cases) on every provider that
runs here. "of peak" is the share of the arithmetic ceiling that `bench.probe` measures on this machine with
the same number of threads. It can pass 100 %: FLOP are those of direct convolution, and Winograd does with less.
"""

import argparse

import torch

import slowfast_kernels as sf
from slowfast_kernels.bench import harness, probe, registry


def peak_of(dtype: str) -> float | None:
    """FLOP/s that this machine reaches at most, or None where the probe is not built."""
    try:
        return 1e9 * probe.ceilings(torch.get_num_threads())[f"{dtype}_gflops"]
    except RuntimeError as error:
        print(f"no ceilings: {error}")
        return None


def line(name: str, seconds: float, flops: float, peak: float | None) -> str:
    share = f"{100 * flops / seconds / peak:6.0f} % of peak" if peak and flops else ""
    return f"{name:44} {1e3 * seconds:9.3f} ms {1e-9 * flops / seconds:9.1f} GFLOP/s {share}".rstrip()


def main(argv: list[str] | None = None) -> list[dict]:
    """Returns the rows of the model's profile."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="slowfast_8x8_r50", help="preset (default slowfast_8x8_r50)")
    parser.add_argument("--crop", type=int, default=224, help="side of the frames (default 224)")
    parser.add_argument("--op", default="bottleneck3d", help="op of the second part")
    parser.add_argument("--case", help="calls of the op: name or pattern (default: all)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument(
        "--shrink", type=int, default=1, help="divide the op's sizes (default 1: as they are)"
    )
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    peak = peak_of(args.dtype)

    model = sf.models.create(args.model, crop=args.crop).eval()
    config = model.config
    frozen = sf.freeze(model, dtype=registry.DTYPES[args.dtype])
    clips = [
        torch.randn(1, config.pathway(p).in_channels, config.frames_of(p), args.crop, args.crop)
        for p in config.pathways
    ]
    rows = frozen.profile(clips if len(clips) > 1 else clips[0], runs=5)
    print(f"{args.model}, {args.crop}x{args.crop}, {args.dtype}: the longest of {len(rows)} kernel calls")
    for row in sorted(rows, key=lambda row: -row["seconds"])[:8]:
        print(line(f"{row['stage']} {row['op']}", row["seconds"], row["flops"], peak))

    print(f"\n{args.op} on its own")
    for entry in registry.entries(args.op, args.case, args.dtype):
        given, named = entry.arguments(shrink=args.shrink)
        runs = {p: registry.runner(entry, p, given, named) for p in registry.providers(args.op)}
        timings = harness.interleaved(runs, rounds=5, progress=False).timings
        for provider, timing in timings.items():
            print(line(f"{entry.name} {provider}", timing.median, entry.cost(given, named).flops, peak))
    return rows


if __name__ == "__main__":
    main()
