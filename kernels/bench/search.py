"""Measure the exact search of `visionattn search` beside faiss: query time, and memory beyond the vectors.

    python -m kernels.bench.search
    python -m kernels.bench.search --vectors 1000000 --dim 768 --hnsw

Vectors are random. Each contender has a process of its own, so that none inherits another's memory. Those of faiss need
faiss-cpu and are left out without it. `same` is the share of results that equal ours, rank by rank; HNSW, which is not
exact, is measured if --hnsw asks for it.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.bench.report import Report, package_version
from kernels.bench.script import new_parser, prepare, run
from visionattn.embedding.nearest import nearest

COLUMNS = ("vectors", "dim", "queries", "topk", "contender", "version", "build_s", "median_ms", "peak_mb", "same")
TOPK = 10
QUERIES = (1, 1000)
QUICK = {"vectors": 2000, "dim": 16}

Search = Callable[[Tensor], Tensor]


def search_ours(gallery: Tensor, backend: Any) -> Search:
    """Return the search of this library, which builds nothing."""
    return lambda query: nearest(query, gallery, TOPK, backend=backend)[1]


def search_faiss(gallery: Tensor, kind: str) -> Search:
    """Build an index of faiss."""
    import faiss

    inner = faiss.METRIC_INNER_PRODUCT
    index = faiss.IndexFlatIP(gallery.shape[1]) if kind == "flat" else faiss.IndexHNSWFlat(gallery.shape[1], 32, inner)
    if kind == "hnsw":
        index.hnsw.efSearch = 64
    index.add(gallery.numpy())
    return lambda query: torch.from_numpy(index.search(query.numpy(), TOPK)[1])


CONTENDERS: dict[str, Callable[[Tensor], Search]] = {
    "visionattn, torch": lambda gallery: search_ours(gallery, "torch"),
    "visionattn, faiss": lambda gallery: search_ours(gallery, "faiss"),
    "faiss IndexFlatIP": lambda gallery: search_faiss(gallery, "flat"),
    "faiss IndexHNSWFlat": lambda gallery: search_faiss(gallery, "hnsw"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the measurement."""
    parser = new_parser(__doc__, "float32")
    parser.add_argument("--vectors", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--hnsw", action="store_true", help="also faiss's HNSW, which is not exact")
    parser.add_argument("--contender", choices=list(CONTENDERS), help="measure this one here and print JSON")
    args = parser.parse_args(argv)
    if args.quick:
        vars(args).update(QUICK)
    if args.contender:
        torch.set_num_threads(args.threads)
        print(json.dumps(measure(args)))
        return 0
    device = prepare(args, "search")
    report = Report(args.output, device, COLUMNS)
    names = [name for name in CONTENDERS if find_spec("faiss") or "faiss" not in name]
    expected: dict[str, list[list[int]]] = {}
    for name in names if args.hnsw else [name for name in names if "HNSW" not in name]:
        found = measure_alone(args, name)
        version = package_version("faiss-cpu" if name.startswith("faiss") else "visionattn")
        common = {"vectors": args.vectors, "dim": args.dim, "topk": TOPK, "contender": name, "version": version}
        for queries, (median_ms, places) in found["searches"].items():
            ours = expected.setdefault(queries, places)
            same = (torch.tensor(ours) == torch.tensor(places)).double().mean().item()
            row = {**common, "queries": queries, "build_s": found["build_s"], "median_ms": median_ms}
            report.add([{**row, "peak_mb": found["peak_mb"], "same": same}])
            print(f"{name:20} {queries:>5} queries: {median_ms:.1f} ms, {same:.2%} the same as ours", flush=True)
        print(f"{name:20} built in {found['build_s']:.1f} s, {found['peak_mb']:.0f} MiB beyond the vectors", flush=True)
    if args.output:
        print(f"wrote {args.output}")
    return 0


def measure_alone(args: Any, name: str) -> dict[str, Any]:
    """Measure a contender in a process of its own."""
    numbers = ("vectors", "dim", "threads", "repeats")
    words = [word for option in numbers for word in (f"--{option}", str(getattr(args, option)))]
    command = [sys.executable, "-m", "kernels.bench.search", "--contender", name, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{name}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(args: Any) -> dict[str, Any]:
    """Return seconds to build, MiB beyond the vectors, and for each number of queries ms and the places found."""
    if "faiss" in args.contender:
        import faiss

        faiss.omp_set_num_threads(args.threads)
    gallery = random_vectors(args.vectors, args.dim, seed=0)
    query = random_vectors(max(QUERIES), args.dim, seed=1)
    before = peak_mb()
    start = time.perf_counter()
    search = CONTENDERS[args.contender](gallery)
    build_s = time.perf_counter() - start
    searches = {}
    for count in QUERIES:
        search(query[:count])
        times = [timed(search, query[:count]) for _ in range(args.repeats)]
        searches[count] = (statistics.median(times), search(query[:count]).tolist())
    return {"build_s": build_s, "peak_mb": peak_mb() - before, "searches": searches}


def random_vectors(count: int, dim: int, seed: int) -> Tensor:
    """Return random directions, made in place so that they set no peak of memory."""
    vectors = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    for part in vectors.split(4096):
        part.copy_(F.normalize(part, dim=1))
    return vectors


def timed(search: Search, query: Tensor) -> float:
    """Return the milliseconds of a search."""
    start = time.perf_counter()
    search(query)
    return (time.perf_counter() - start) * 1e3


def peak_mb() -> float:
    """Return the most MiB that the process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(run(main))
