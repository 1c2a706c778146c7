"""From a video file to the scores of its classes, without the command line: the ten lines of `scores_of`.

    python examples/video_to_scores.py examples/demo.mp4
    python examples/video_to_scores.py clip.mp4 --checkpoint SLOWFAST_8x8_R50.pkl --views 10x3

Without a checkpoint the weights are random and the scores mean nothing; docs/weights.md says where trained
ones are. `slowfast-kernels run` does the same with labels, several videos and progress.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

import slowfast_kernels as sf
from slowfast_kernels import video

DEMO = Path(__file__).with_name("demo.mp4")


def scores_of(path: Path, model: sf.models.SlowFast, views: tuple[int, int]) -> Tensor:
    """Scores [classes]: the mean over clips in time and crops in space."""
    spec = model.config.input
    usual = "mmaction2" if model.config.source == "mmaction2" else "pyslowfast"
    rule = "segments" if spec.sampling == "segments" else usual
    frozen = sf.freeze(model)
    reader = video.VideoReader(path)
    crop = spec.crop if views[1] == 1 else spec.test_crop
    sampled = video.sample_views(reader, frames=spec.frames, tau=spec.tau, crop=crop, views=views, rule=rule)
    return torch.stack([frozen(video.pack_view(view, spec))[0] for view in sampled]).mean(dim=0)


def main(argv: list[str] | None = None) -> Tensor:
    """Returns the scores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("video", type=Path, nargs="?", default=DEMO, help="default: the demo's clip")
    parser.add_argument("--checkpoint", type=Path, help="trained weights (default: random ones)")
    parser.add_argument("--model", default="slowfast_8x8_r50", help="preset, without a checkpoint")
    parser.add_argument("--crop", type=int, default=224, help="side of the frames, without a checkpoint")
    parser.add_argument("--views", default="1x1", help="clips in time x crops in space (default 1x1)")
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    if args.checkpoint:
        model = sf.load_checkpoint(args.checkpoint)
    else:
        model = sf.models.create(args.model, crop=args.crop).eval()
    scores = scores_of(args.video, model, video.parse_views(args.views))
    best = scores.topk(5)
    for number, score in zip(best.indices.tolist(), best.values.tolist(), strict=True):
        print(f"class {number:3}  {score:.4f}")
    return scores


if __name__ == "__main__":
    main()
