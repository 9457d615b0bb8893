// The keys and values that any query of a tile sees, packed as panels of slots, and the blocks of queries that share them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "arguments.h"
#include "products.h"

namespace {

constexpr int64_t kBlock = 8;  // queries that share one pass over their keys

template <class R>
struct Buffer {
  std::vector<R> values;
  R* reserve(int64_t n) {
    if (int64_t(values.size()) < n) values.resize(n);
    return values.data();
  }
};

// What one thread holds while it works on one tile.
template <class R>
class Panels {
 public:
  static constexpr int L = kLanes<R>;

  // `shared` arguments outlive the worker; `backward` decides which panels are packed.
  void begin(const Arguments& arguments, const Cut& row_cut, const Cut& column_cut, bool backward) {
    a = &arguments, rows = &row_cut.axis, columns = &column_cut.axis, is_backward = backward;
    k_dim = round_up(a->head_dim, L), v_dim = round_up(a->v_dim, L);
    extra_pitch = round_up(a->num_extra, L);
    most_slots = 0;
    int64_t most_h = 0, most_w = 0;
    for (auto& t : row_cut.tiles) most_h = std::max(most_h, t.num_keys);
    for (auto& t : column_cut.tiles) most_w = std::max(most_w, t.num_keys);
    most_slots = most_h * most_w;
    // An odd number of vectors, lest the lines of a panel fall on the same cache sets.
    pitch = (round_up(most_slots, L) / L | 1) * L + L;
    score_pitch = round_up(most_slots, L) + extra_pitch + L;
    int64_t rounded = round_up(most_slots, L);
    keys = keys_buffer.reserve(rounded * k_dim), values = values_buffer.reserve(rounded * v_dim);
    keys_t = keys_t_buffer.reserve(k_dim * pitch), values_t = values_t_buffer.reserve(backward ? v_dim * pitch : 0);
    extra_keys = extra_keys_buffer.reserve(extra_pitch * k_dim);
    extra_values = extra_values_buffer.reserve(extra_pitch * v_dim);
    extra_keys_t = extra_keys_t_buffer.reserve(k_dim * extra_pitch);
    extra_values_t = extra_values_t_buffer.reserve(backward ? v_dim * extra_pitch : 0);
    q = q_buffer.reserve(kBlock * k_dim), out = out_buffer.reserve(kBlock * std::max(k_dim, v_dim));
    scores = scores_buffer.reserve(kBlock * score_pitch);
    relative_pitch = round_up(std::max(most_h, most_w), L);
    slot_row = slot_row_buffer.reserve(score_pitch), slot_column = slot_column_buffer.reserve(score_pitch);
    table_rows = a->rpb ? 2 * a->kernel_h - 1 : most_h;
    table_size = table_rows * most_w + L;
    table = table_buffer.reserve(columns->tile * table_size);
    if (backward) {
      grads = grads_buffer.reserve(kBlock * score_pitch), grad_out = grad_out_buffer.reserve(kBlock * v_dim);
      grad_keys = grad_keys_buffer.reserve(rounded * k_dim), grad_values = grad_values_buffer.reserve(rounded * v_dim);
      grad_extra_keys = grad_extra_keys_buffer.reserve(extra_pitch * k_dim);
      grad_extra_values = grad_extra_values_buffer.reserve(extra_pitch * v_dim);
      grad_table = grad_table_buffer.reserve(a->rpb ? columns->tile * table_size : 0);
    }
  }

  void begin_head(int64_t b, int64_t h) {
    batch = b, head = h;
    if (!a->num_extra) return;
    for (int64_t m = 0; m < extra_pitch; ++m) {
      bool real = m < a->num_extra;
      read(a->extra_k.data, a->dtype, b * a->extra_k.batch + m * a->extra_k.column + h * a->extra_k.head,
           real ? a->head_dim : 0, k_dim, extra_keys + m * k_dim);
      read(a->extra_v.data, a->dtype, b * a->extra_v.batch + m * a->extra_v.column + h * a->extra_v.head,
           real ? a->v_dim : 0, v_dim, extra_values + m * v_dim);
    }
    transpose(extra_keys, extra_pitch, k_dim, extra_keys_t, extra_pitch);
    if (is_backward) {
      transpose(extra_values, extra_pitch, v_dim, extra_values_t, extra_pitch);
      std::fill_n(grad_extra_keys, extra_pitch * k_dim, R(0));
      std::fill_n(grad_extra_values, extra_pitch * v_dim, R(0));
    }
  }

 protected:
  // The slots that the queries of one block see: whole rows of them.
  struct Run {
    int64_t first, count, padded, row, num_rows;
  };

  using Int = typename VectorOf<R>::Int;
  using Ints = typename VectorOf<R>::ints;

  const Arguments* a;
  const Axis *rows, *columns;
  bool is_backward;
  int64_t k_dim, v_dim, extra_pitch, most_slots, pitch, score_pitch, table_rows, table_size, relative_pitch;
  int64_t batch, head;
  Tile strip, segment;
  int64_t num_slots, width;
  bool cuts_columns;
  int64_t query[kBlock], place_y[kBlock], place_x[kBlock];
  R total[kBlock];
  R *keys, *values, *keys_t, *values_t, *extra_keys, *extra_values, *extra_keys_t, *extra_values_t;
  R *q, *out, *scores, *table;
  R *grads, *grad_out, *grad_keys, *grad_values, *grad_extra_keys, *grad_extra_values, *grad_table;
  Buffer<R> keys_buffer, values_buffer, keys_t_buffer, values_t_buffer, extra_keys_buffer, extra_values_buffer,
      extra_keys_t_buffer, extra_values_t_buffer, q_buffer, out_buffer, scores_buffer, table_buffer,
      grads_buffer, grad_out_buffer, grad_keys_buffer, grad_values_buffer, grad_extra_keys_buffer,
      grad_extra_values_buffer, grad_table_buffer, relative_buffer, extra_out;
  Buffer<Int> slot_row_buffer, slot_column_buffer;
  Int *slot_row, *slot_column;  // of each slot, counted from the first of a run

  template <class F>
  void for_each_key(F f) {
    for (int64_t i = 0; i < segment.num_keys; ++i) {
      int64_t m = segment.key + i;
      if (m < 0 || m >= rows->keys[segment.group]) continue;
      for (int64_t j = 0; j < strip.num_keys; ++j) {
        int64_t n = strip.key + j;
        if (n < 0 || n >= columns->keys[strip.group]) continue;
        f(i * strip.num_keys + j, segment.group + m * rows->num_groups, strip.group + n * columns->num_groups);
      }
    }
  }

  void pack(const Tile& tile) {
    segment = tile;
    num_slots = segment.num_keys * strip.num_keys;
    int64_t rounded = round_up(num_slots, L);
    auto copy = [&](int64_t slot, int64_t y, int64_t x) {
      int64_t k = batch * a->k.batch + y * a->k.row + x * a->k.column + head * a->k.head;
      int64_t v = batch * a->v.batch + y * a->v.row + x * a->v.column + head * a->v.head;
      prefetch(a->k.data, a->dtype, k + rows->num_groups * a->k.row, a->head_dim);
      prefetch(a->v.data, a->dtype, v + rows->num_groups * a->v.row, a->v_dim);
      read(a->k.data, a->dtype, k, a->head_dim, k_dim, keys + slot * k_dim);
      read(a->v.data, a->dtype, v, a->v_dim, v_dim, values + slot * v_dim);
    };
    if (segment.key < 0 || strip.key < 0 || segment.key + segment.num_keys > rows->keys[segment.group] ||
        strip.key + strip.num_keys > columns->keys[strip.group]) {
      std::fill_n(keys, num_slots * k_dim, R(0));
      std::fill_n(values, num_slots * v_dim, R(0));
    }
    for_each_key(copy);
    std::fill_n(keys + num_slots * k_dim, (rounded - num_slots) * k_dim, R(0));
    std::fill_n(values + num_slots * v_dim, (rounded - num_slots) * v_dim, R(0));
    transpose(keys, rounded, k_dim, keys_t, pitch);
    if (is_backward) transpose(values, rounded, v_dim, values_t, pitch);
    // A run may read one vector past the last slot.
    for (int64_t c = 0; c < k_dim; ++c) store(keys_t + c * pitch + rounded, Vec<R>{});
    if (is_backward)
      for (int64_t c = 0; c < v_dim; ++c) store(values_t + c * pitch + rounded, Vec<R>{});
  }

  static void transpose(const R* from, int64_t num_rows, int64_t num_columns, R* to, int64_t to_pitch) {
    for (int64_t i = 0; i < num_rows; i += L)
      for (int64_t j = 0; j < num_columns; j += L)
        transpose_block(from + i * num_columns + j, num_columns, to + j * to_pitch + i, to_pitch);
  }

  // Calls `f` for the queries of the tile, in blocks of those whose rows see the same keys.
  template <class F>
  void for_each_block(F f) {
    int64_t y = 0;
    while (y < segment.count) {
      int64_t i = segment.first + y * rows->query_step, end = y + 1;
      auto same = [&](int64_t j) { return rows->start[j] == rows->start[i] && rows->stop[j] == rows->stop[i]; };
      while (end < segment.count && same(segment.first + end * rows->query_step)) ++end;
      Run run;
      run.row = rows->start[i], run.num_rows = rows->stop[i] - rows->start[i];
      run.first = (run.row - segment.key) * strip.num_keys, run.count = run.num_rows * strip.num_keys;
      run.padded = round_up(run.count, L);
      width = run.padded + extra_pitch;
      int64_t number = (end - y) * strip.count, blocks = (number + kBlock - 1) / kBlock;
      // Blocks of nearly equal size, each at most kBlock.
      for (int64_t block = 0, n = 0; block < blocks; ++block) {
        int64_t M = 0;
        for (int64_t last = std::min(number, round_up(number * (block + 1) / blocks, blocks > 1 ? 4 : 1)); n < last; ++n, ++M) {
          place_y[M] = segment.first + (y + n / strip.count) * rows->query_step, place_x[M] = n % strip.count;
          int64_t x = strip.first + place_x[M] * columns->query_step;
          query[M] = ((batch * a->queries_h + place_y[M]) * a->queries_w + x) * a->heads + head;
        }
        if (M) f(M, run);
      }
      y = end;
    }
  }

  int64_t map_offset(const Map& map, int64_t m) const {
    int64_t x = strip.first + place_x[m] * columns->query_step;
    return batch * map.batch + place_y[m] * map.row + x * map.column + head * map.head;
  }

  void load_queries(int64_t M) {
    for (int64_t m = 0; m < M; ++m) {
      int64_t offset = map_offset(a->q, m);
      prefetch(a->q.data, a->dtype, offset + rows->query_step * a->q.row, a->head_dim);
      read(a->q.data, a->dtype, offset, a->head_dim, k_dim, q + m * k_dim, R(a->scale));
    }
  }

  // The columns of the strip that a query sees: entries of its logits outside them do not exist.
  int64_t first_column(int64_t m) const {
    return columns->start[strip.first + place_x[m] * columns->query_step] - strip.key;
  }
  int64_t last_column(int64_t m) const {
    return columns->stop[strip.first + place_x[m] * columns->query_step] - strip.key;
  }
};

}  // namespace
