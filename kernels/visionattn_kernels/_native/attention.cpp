// Fused windowed attention on CPUs, forward and backward, for every window and bias of the package.
//
// A task is one head of one image and a tile of queries: some neighbouring columns ("strip") by some rows. The keys
// and values that any query of the tile sees are packed once as panels of slots, row by row. A query row sees whole rows
// of slots, hence one contiguous run of them: its scores are one small matrix product, its columns are cut by a table
// that also holds the relative bias, and its softmax is plain, with no running rescaling. Backward recomputes the
// probabilities from the log-sum-exp; each task sums key gradients in its own panel and adds them to the map in a fixed
// order, so results do not depend on the scheduling of threads.
//
// All integer tables come from window.py. Compiled on first use, with no header beyond the standard library's; vectors
// are GCC's and clang's generic ones, as wide as the machine's.

#include "tasks.h"
#include "worker.h"

extern "C" {

// 1, or 0 where memory has no room for the keys of a tile.
int visionattn_forward(const Arguments* a) {
  return a->dtype == kFloat64 ? forward<Worker<double>>(*a) : forward<Worker<float>>(*a);
}

int visionattn_backward(const Arguments* a) {
  return a->dtype == kFloat64 ? backward<Worker<double>>(*a) : backward<Worker<float>>(*a);
}

}  // extern "C"
