"""Measure efficient probing beside the order of its equations: values of all tokens first, then their sums.

    python -m kernels.bench.probing_heads --device cpu

Both are the same function of the same parameters; logits and all gradients must agree in float64 before anything is
timed. Training is forward, backward and an AdamW step on tokens that need no gradient, as those of a frozen backbone.
"""

from __future__ import annotations

import copy
import sys

import torch
from torch import Tensor, nn

from kernels.bench.gathered import inference_step, training_step
from kernels.bench.measure import largest_error, time_in_turn
from kernels.bench.peers import OURS
from kernels.bench.report import Report, package_version
from kernels.bench.script import DTYPES, choose, new_parser, prepare, run
from visionattn.probing.heads import create_head

COLUMNS = (
    *("dtype", "head", "batch", "tokens", "dim", "classes", "direction"),
    *("contender", "version", "median_ms", "ratio_to_ours"),
)
HEADS = ("ep_8", "ep_16", "ep_32", "ep_64", "ep_128")
PLAIN = "project-first"
TOLERANCE = 1e-10


class ProjectFirst(nn.Module):
    """A head of efficient probing that makes the values of all tokens."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [B, num_classes] of tokens [B, N, dim]."""
        pool = self.head.pool
        weights = (pool.queries * pool.scale @ tokens.mT).softmax(-1)  # [B, M, N]
        values = pool.v(tokens).unflatten(-1, (pool.num_queries, -1)).transpose(1, 2)  # [B, M, N, channels]
        features = (weights[:, :, None] @ values).flatten(1)
        return self.head.classifier(self.head.norm(features))


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return exit status 0 if all results agree."""
    parser = new_parser(__doc__, "float32")
    parser.add_argument("--heads", default="ep_32", help=f"of {', '.join(HEADS)}, separated by commas (default: ep_32)")
    parser.add_argument("--batch", type=int, default=64, help="images per step (default: 64)")
    args = parser.parse_args(argv)
    device = prepare(args, "probing-heads")
    dtypes = choose("--dtype", args.dtype or "float32", DTYPES)
    batch, num_tokens, dim, classes = (4, 9, 64, 10) if args.quick else (args.batch, 196, 768, 1000)
    report = Report(args.output, device, COLUMNS)
    wrong = False
    for name in choose("--heads", args.heads, HEADS):
        head = create_head(name, dim, classes).to(device)
        tokens = torch.randn(batch, num_tokens, dim, device=device)
        error = disagreement(head, tokens)
        if not error <= TOLERANCE:
            print(f"error: {name} differs by {error:.2g} (bound {TOLERANCE}): not timed", file=sys.stderr)
            wrong = True
            continue
        for dtype in dtypes:
            for direction, make_step in (("inference", inference_step), ("training", training_step)):
                contenders = {OURS: copy.deepcopy(head), PLAIN: ProjectFirst(copy.deepcopy(head))}
                steps = {key: make_step(net, tokens, DTYPES[dtype], False) for key, net in contenders.items()}
                medians = time_in_turn(steps, device, args.repeats)
                problem = {"head": name, "batch": batch, "tokens": num_tokens, "dim": dim, "classes": classes}
                report.add(
                    {
                        **problem,
                        "dtype": dtype,
                        "direction": direction,
                        "contender": key,
                        "version": package_version("visionattn") if key == OURS else torch.__version__,
                        "median_ms": median,
                        "ratio_to_ours": median / medians[OURS],
                    }
                    for key, median in medians.items()
                )
                ours, plain = medians[OURS], medians[PLAIN]
                what = f"{name} B{batch} N{num_tokens} D{dim}, {dtype}, {direction}"
                print(f"{what}: {ours:.2f} ms, {PLAIN} {plain:.2f} ms ({plain / ours:.2f}x)", flush=True)
    if args.output:
        print(f"wrote {args.output}")
    return int(wrong)


def disagreement(head: nn.Module, tokens: Tensor) -> float:
    """Return the largest difference of logits and gradients of four images in float64, each over the largest entry."""
    results = []
    for make in (lambda net: net, ProjectFirst):
        net, x = make(copy.deepcopy(head).double().train()), tokens[:4].double().requires_grad_()
        logits = net(x)
        upstream = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype, device=logits.device).view(logits.shape)
        results.append([logits, *torch.autograd.grad(logits, [x, *net.parameters()], upstream)])
    return largest_error(*results)


if __name__ == "__main__":
    sys.exit(run(main))
