"""Measure an evaluation as large as MSMT17's beside its matrix products alone: seconds and memory above the features.

    python -m kernels.bench.retrieval
    python -m kernels.bench.retrieval --rerank --queries 3000 --gallery 17000

Features are random; what is measured does not depend on them, but for re-ranking, whose lists are longest then.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import torch
import torch.nn.functional as F

from kernels.bench.script import run
from visionattn.metrics.reranking import rerank
from visionattn.metrics.retrieval import CHUNK_BYTES, evaluate_distances, evaluate_retrieval


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=11659)
    parser.add_argument("--gallery", type=int, default=82161)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--identities", type=int, default=3060)
    parser.add_argument("--cameras", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rerank", action="store_true", help="also re-rank")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    query, gallery = (torch.randn(n, args.dim) for n in (args.queries, args.gallery))
    labels = [
        torch.randint(high, (n,)) for high in (args.identities, args.cameras) for n in (args.queries, args.gallery)
    ]
    start = peak_gb()
    print(f"features: {(query.nbytes + gallery.nbytes) / 1e9:.2f} GB, process {start:.2f} GB")
    clock = time.perf_counter()
    unit = F.normalize(gallery, dim=1)
    for part in query.split(max(1, CHUNK_BYTES // (8 * len(gallery)))):
        F.normalize(part, dim=1) @ unit.T
    products = time.perf_counter() - clock
    del unit
    print(f"matrix products alone: {products:.1f} s, peak {peak_gb() - start:.2f} GB above")
    clock = time.perf_counter()
    found = evaluate_retrieval(query, gallery, *labels)
    seconds = time.perf_counter() - clock
    print(f"mAP, mINP and CMC: {seconds:.1f} s, {seconds / products:.2f}x, peak {peak_gb() - start:.2f} GB above")
    print(f"mAP {found['mAP']:.5f}, mINP {found['mINP']:.5f}, rank 1 {found['cmc'][0]:.5f}")
    if args.rerank:
        clock = time.perf_counter()
        found = evaluate_distances(rerank(query, gallery), *labels)
        seconds = time.perf_counter() - clock
        print(f"re-ranked: {seconds:.1f} s, peak {peak_gb() - start:.2f} GB above; mAP {found['mAP']:.5f}")
    return 0


def peak_gb() -> float:
    """Return the most memory that the process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    sys.exit(run(main))
