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

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>

#include "worker.h"

namespace {

template <class R>
Worker<R>& this_thread() {
  static thread_local std::unique_ptr<Worker<R>> worker = std::make_unique<Worker<R>>();
  return *worker;
}

// Whether memory has room for what a thread holds; an exception must not leave a parallel region.
template <class R>
bool begin(Worker<R>& worker, const Arguments& a, const Cut& rows, const Cut& columns, bool is_backward) {
  try {
    worker.begin(a, rows, columns, is_backward);
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

// Returns whether there was room.
template <class R>
bool forward(const Arguments& a) {
  Cut rows(a.rows), columns(a.columns);
  int64_t strips = columns.tiles.size(), segments = rows.tiles.size();
  std::atomic<bool> has_room{true};
#pragma omp parallel num_threads(a.num_threads)
  {
    Worker<R>& worker = this_thread<R>();
    if (!begin(worker, a, rows, columns, false)) has_room = false;
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < a.batch * a.heads * strips * segments; ++task) {
      if (!has_room) continue;
      int64_t item = task / (strips * segments);
      worker.begin_head(item / a.heads, item % a.heads);
      worker.begin_strip(columns.tiles[task / segments % strips]);
      worker.forward(rows.tiles[task % segments]);
    }
  }
  return has_room;
}

template <class R>
bool backward(const Arguments& a) {
  Cut rows(a.rows), columns(a.columns);
  int64_t strips = columns.tiles.size();
  int64_t keys = a.batch * a.keys_h * a.keys_w * a.heads, table = (2 * a.kernel_h - 1) * (2 * a.kernel_w - 1);
  std::atomic<bool> has_room{true};
  // A part is a run of strips of one head; it adds to key gradients of its own.
#pragma omp parallel num_threads(a.num_threads)
  {
    Worker<R>& worker = this_thread<R>();
    if (!begin(worker, a, rows, columns, true)) has_room = false;
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < a.batch * a.heads * a.num_parts; ++task) {
      if (!has_room) continue;
      int64_t item = task / a.num_parts, part = task % a.num_parts;
      worker.begin_head(item / a.heads, item % a.heads);
      R* grad_keys = static_cast<R*>(a.grad_k) + part * keys * a.head_dim;
      R* grad_values = static_cast<R*>(a.grad_v) + part * keys * a.v_dim;
      for (int64_t s = strips * part / a.num_parts; s < strips * (part + 1) / a.num_parts; ++s) {
        worker.begin_strip(columns.tiles[s]);
        for (auto& segment : rows.tiles) worker.backward(segment, grad_keys, grad_values);
        worker.end_strip(static_cast<R*>(a.grad_rpb) + task * table);
      }
      worker.end_head(static_cast<R*>(a.grad_extra_k) + task * a.num_extra * a.head_dim,
                      static_cast<R*>(a.grad_extra_v) + task * a.num_extra * a.v_dim);
    }
  }
  return has_room;
}

}  // namespace

extern "C" {

// The version of the interface and the bytes of its structure, which arguments.py compares with its own.
void visionattn_abi(int64_t* abi) { abi[0] = 1, abi[1] = sizeof(Arguments); }

int visionattn_has_float16() {
#ifdef __FLT16_MAX__
  return 1;
#else
  return 0;
#endif
}

// 1, or 0 where memory has no room for the keys of a tile.
int visionattn_forward(const Arguments* a) { return a->dtype == kFloat64 ? forward<double>(*a) : forward<float>(*a); }

int visionattn_backward(const Arguments* a) { return a->dtype == kFloat64 ? backward<double>(*a) : backward<float>(*a); }

}  // extern "C"
