// Tasks of a call shared out among threads, each with a worker of its own: a class with the methods of `Worker`.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>

#include "arguments.h"

namespace {

template <class Worker>
Worker& this_thread() {
  static thread_local std::unique_ptr<Worker> worker = std::make_unique<Worker>();
  return *worker;
}

// Whether memory has room for what a thread holds; an exception must not leave a parallel region.
template <class Worker>
bool begin(Worker& worker, const Arguments& a, const Cut& rows, const Cut& columns, bool is_backward) {
  try {
    worker.begin(a, rows, columns, is_backward);
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

// Returns whether there was room.
template <class Worker>
bool forward(const Arguments& a) {
  Cut rows(a.rows), columns(a.columns);
  int64_t strips = columns.tiles.size(), segments = rows.tiles.size();
  std::atomic<bool> has_room{true};
#pragma omp parallel num_threads(a.num_threads)
  {
    Worker& worker = this_thread<Worker>();
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

template <class Worker>
bool backward(const Arguments& a) {
  using R = typename Worker::Real;
  Cut rows(a.rows), columns(a.columns);
  int64_t strips = columns.tiles.size();
  int64_t keys = a.batch * a.keys_h * a.keys_w * a.heads, table = (2 * a.kernel_h - 1) * (2 * a.kernel_w - 1);
  std::atomic<bool> has_room{true};
  // A part is a run of strips of one head; it adds to key gradients of its own.
#pragma omp parallel num_threads(a.num_threads)
  {
    Worker& worker = this_thread<Worker>();
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
