// What one thread does with a tile of queries: pack its keys, score, take the softmax, and differentiate it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
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

// Everything that one thread holds while it works on one tile.
template <class R>
class Worker {
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

  void begin_strip(const Tile& tile) {
    strip = tile;
    build_table();
    for (int64_t i = 0; i < most_slots && (a->rel_h || a->rel_w); ++i)
      slot_row[i] = i / strip.num_keys, slot_column[i] = i % strip.num_keys;
    if (is_backward && a->rpb) std::fill_n(grad_table, columns->tile * table_size, R(0));
  }

  void forward(const Tile& segment) {
    pack(segment);
    for_each_block([&](int64_t M, const Run& run) {
      load_queries(M);
      for (int64_t m = 0; m < M; ++m) prefetch<1>(a->out.data, a->dtype, query[m] * a->v_dim, a->v_dim);
      attend<false>(M, run);
      if (UNLIKELY(has_nan(out, M * v_dim))) attend<true>(M, run);
      for (int64_t m = 0; m < M; ++m) write(a->out.data, a->dtype, query[m] * a->v_dim, a->v_dim, out + m * v_dim, 1 / total[m]);
    });
  }

  void backward(const Tile& segment, R* to_keys, R* to_values) {
    pack(segment);
    std::fill_n(grad_keys, num_slots * k_dim, R(0));
    std::fill_n(grad_values, num_slots * v_dim, R(0));
    for_each_block([&](int64_t M, const Run& run) {
      load_queries(M);
      R delta[kBlock];
      for (int64_t m = 0; m < M; ++m) {
        R* g = grad_out + m * v_dim;
        int64_t from_grad = map_offset(a->grad_out, m), from_out = map_offset(a->out, m);
        prefetch(a->grad_out.data, a->dtype, from_grad + rows->query_step * a->grad_out.row, a->v_dim);
        prefetch(a->out.data, a->dtype, from_out + rows->query_step * a->out.row, a->v_dim);
        read(a->grad_out.data, a->dtype, from_grad, a->v_dim, v_dim, g);
        read(a->out.data, a->dtype, from_out, a->v_dim, v_dim, out);
        Vec<R> sum = {};
        for (int64_t i = 0; i < v_dim; i += L) sum += load(g + i) * load(out + i);
        delta[m] = sum_lanes<R>(sum) - (a->grad_lse ? static_cast<const R*>(a->grad_lse)[query[m]] : 0);
      }
      differentiate<false>(M, run, delta);
      // Whatever gets through to a key has got through to the gradient of its query, too.
      bool selects = UNLIKELY(has_nan(out, M * k_dim));
      if (selects) differentiate<true>(M, run, delta);
      for (int64_t m = 0; m < M; ++m) {
        add_bias_gradients(m, run, grads + m * score_pitch);
        R* to = static_cast<R*>(a->grad_q) + query[m] * a->head_dim;
        for (int64_t i = 0; i < a->head_dim; ++i) to[i] = out[m * k_dim + i] * R(a->scale);
      }
      if (a->num_extra) {
        add_outer(M, a->num_extra, k_dim, grads + run.padded, score_pitch, q, k_dim, grad_extra_keys, k_dim);
        add_outer(M, a->num_extra, v_dim, scores + run.padded, score_pitch, grad_out, v_dim, grad_extra_values, v_dim);
      }
      add_to_keys(M, run, grads, q, k_dim, grad_keys, selects);
      add_to_keys(M, run, scores, grad_out, v_dim, grad_values, selects);
    });
    for_each_key([&](int64_t slot, int64_t y, int64_t x) {
      int64_t key = ((batch * a->keys_h + y) * a->keys_w + x) * a->heads + head;
      for (int64_t i = 0; i < a->head_dim; ++i) to_keys[key * a->head_dim + i] += grad_keys[slot * k_dim + i];
      for (int64_t i = 0; i < a->v_dim; ++i) to_values[key * a->v_dim + i] += grad_values[slot * v_dim + i];
    });
  }

  // Adds what the strip found to the gradient of the relative table.
  void end_strip(R* to_rpb) {
    if (!a->rpb) return;
    int64_t kernel_w = 2 * a->kernel_w - 1;
    for (int64_t x = 0; x < strip.count; ++x) {
      int64_t i = strip.first + x * columns->query_step;
      for (int64_t r = 0; r < table_rows; ++r)
        for (int64_t c = columns->start[i]; c < columns->stop[i]; ++c)
          to_rpb[r * kernel_w + c - columns->index[i] + a->kernel_w - 1] +=
              grad_table[x * table_size + r * strip.num_keys + c - strip.key];
    }
  }

  void end_head(R* to_keys, R* to_values) {
    for (int64_t m = 0; m < a->num_extra; ++m) {
      for (int64_t i = 0; i < a->head_dim; ++i) to_keys[m * a->head_dim + i] += grad_extra_keys[m * k_dim + i];
      for (int64_t i = 0; i < a->v_dim; ++i) to_values[m * a->v_dim + i] += grad_extra_values[m * v_dim + i];
    }
  }

 private:
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

  // Probabilities of a block, not normalised, in `scores`; their totals, log-sum-exp, and the sums of values in `out`.
  template <bool kSelects>
  void attend(int64_t M, const Run& run) {
    score<kSelects>(M, run);
    for (int64_t m = 0; m < M; ++m) {
      R* s = scores + m * score_pitch;
      Vec<R> most = load(s);
      for (int64_t i = L; i < width; i += L)
        most = larger<R>(most, load(s + i));
      R top = fold<R>(most, larger<R>);
      Vec<R> sum = {};
      for (int64_t i = 0; i < width; i += L) {
        Vec<R> p = exponential(load(s + i) - top);
        sum += p;
        store(s + i, p);
      }
      total[m] = sum_lanes<R>(sum);
      static_cast<R*>(a->lse)[query[m]] = top + std::log(total[m]);
    }
    sum_slots<kSelects>(M, run, scores, values, extra_values, v_dim);
  }

  // Probabilities of a block in `scores`, gradients of its scores in `grads`, and of its queries, unscaled, in `out`.
  template <bool kSelects>
  void differentiate(int64_t M, const Run& run, const R* delta) {
    score<kSelects>(M, run);
    product(M, run.count, a->v_dim, grad_out, v_dim, values_t + run.first, pitch, grads, score_pitch);
    if (a->num_extra)
      product(M, a->num_extra, a->v_dim, grad_out, v_dim, extra_values_t, extra_pitch, grads + run.padded, score_pitch);
    for (int64_t m = 0; m < M; ++m) {
      R *s = scores + m * score_pitch, *g = grads + m * score_pitch;
      R lse = static_cast<const R*>(a->lse)[query[m]];
      for (int64_t i = 0; i < width; i += L) {
        Vec<R> p = exponential(load(s + i) - lse);
        store(s + i, p);
        store(g + i, p * (load(g + i) - delta[m]));
      }
      if constexpr (kSelects) hide(m, run, g, R(0));
    }
    sum_slots<kSelects>(M, run, grads, keys, extra_keys, k_dim);
  }

  // out[M, C] = weights[M, slots] times rows of the slots and of the extra keys. A weight of zero leaves NaN out only
  // where `kSelects`: it then takes what each query sees, one number at a time.
  template <bool kSelects>
  void sum_slots(int64_t M, const Run& run, const R* weights, const R* rows, const R* extra, int64_t C) {
    rows += run.first * C;
    if constexpr (kSelects) {
      std::fill_n(out, M * C, R(0));
      for_each_seen(M, run, [&](int64_t m, int64_t i) {
        for (int64_t c = 0; c < C; ++c) out[m * C + c] += weights[m * score_pitch + i] * rows[i * C + c];
      });
    } else {
      product(M, C, run.count, weights, score_pitch, rows, C, out, C);
    }
    if (!a->num_extra) return;
    R* more = extra_out.reserve(kBlock * C);
    product(M, C, a->num_extra, weights + run.padded, score_pitch, extra, C, more, C);
    for (int64_t i = 0; i < M * C; ++i) out[i] += more[i];
  }

  // Adds weights[M, slots] times rows[M, C] of the queries to the slots; see `sum_slots`.
  void add_to_keys(int64_t M, const Run& run, const R* weights, const R* rows, int64_t C, R* to, bool selects) {
    to += run.first * C;
    if (!selects) return add_outer(M, run.count, C, weights, score_pitch, rows, C, to, C);
    for_each_seen(M, run, [&](int64_t m, int64_t i) {
      for (int64_t c = 0; c < C; ++c) to[i * C + c] += weights[m * score_pitch + i] * rows[m * C + c];
    });
  }

  // Calls `f` for each query of a block and each slot of the run that it sees.
  template <class F>
  void for_each_seen(int64_t M, const Run& run, F f) {
    for (int64_t m = 0; m < M; ++m)
      for (int64_t first = 0; first < run.count; first += strip.num_keys)
        for (int64_t c = first_column(m); c < last_column(m); ++c) f(m, first + c);
  }

  // Replaces what belongs to slots of the run that a query does not see.
  void hide(int64_t m, const Run& run, R* row, R value) {
    for (int64_t first = 0; first < run.count; first += strip.num_keys) {
      std::fill_n(row + first, first_column(m), value);
      std::fill_n(row + first + last_column(m), strip.num_keys - last_column(m), value);
    }
  }

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

  // For each query column of the strip, what is added to its scores, by table row and column slot: -inf where it does
  // not see the slot, else the relative bias. Rows are those of the relative table; without one they are all alike.
  void build_table() {
    const R* rpb = static_cast<const R*>(a->rpb);
    int64_t kernel_w = 2 * a->kernel_w - 1;
    cuts_columns = false;
    for (int64_t x = 0; x < strip.count; ++x) {
      int64_t i = strip.first + x * columns->query_step;
      int64_t from = columns->start[i] - strip.key, to = columns->stop[i] - strip.key;
      int64_t shift = strip.key - columns->index[i] + a->kernel_w - 1;
      cuts_columns |= from > 0 || to < strip.num_keys;
      for (int64_t r = 0; r < table_rows; ++r) {
        R* row = table + x * table_size + r * strip.num_keys;
        std::fill_n(row, strip.num_keys, -std::numeric_limits<R>::infinity());
        if (rpb) {
          const R* bias = rpb + (head * table_rows + r) * kernel_w + shift;
          for (int64_t c = from; c < to; ++c) row[c] = bias[c];
        } else {
          std::fill(row + from, row + to, R(0));
        }
      }
    }
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

  // Scores of a block with every bias: [M, padded slots, padded extra keys]; -inf where a query sees no key, which the
  // sum with a table makes of numbers, and `kSelects` of NaN as well.
  template <bool kSelects>
  void score(int64_t M, const Run& run) {
    product(M, run.count, a->head_dim, q, k_dim, keys_t + run.first, pitch, scores, score_pitch);
    if (a->num_extra)
      product(M, a->num_extra, a->head_dim, q, k_dim, extra_keys_t, extra_pitch, scores + run.padded, score_pitch);
    for (int64_t m = 0; m < M; ++m) {
      R* s = scores + m * score_pitch;
      if (a->rpb || cuts_columns) {
        const R* bias = table + place_x[m] * table_size + table_row(m, run) * strip.num_keys;
        for (int64_t i = 0; i < run.count; i += L) store(s + i, load(s + i) + load(bias + i));
      }
      if (a->rel_h || a->rel_w) add_relative(m, run, s);
      if constexpr (kSelects) hide(m, run, s, -std::numeric_limits<R>::infinity());
      for (int64_t i = run.count; i < run.padded; ++i) s[i] = -std::numeric_limits<R>::infinity();
      for (int64_t i = a->num_extra; i < extra_pitch; ++i) s[run.padded + i] = -std::numeric_limits<R>::infinity();
    }
  }

  int64_t table_row(int64_t m, const Run& run) const {
    return a->rpb ? run.row - rows->index[place_y[m]] + a->kernel_h - 1 : 0;
  }
  // First entries of a query's relative logits, or of their gradients.
  int64_t rel_h_offset(int64_t m, const Run& run) const {
    return query[m] * (2 * a->kernel_h - 1) + run.row - rows->index[place_y[m]] + a->kernel_h - 1;
  }
  int64_t rel_w_offset(int64_t m) const {
    int64_t x = strip.first + place_x[m] * columns->query_step;
    return query[m] * (2 * a->kernel_w - 1) + strip.key - columns->index[x] + a->kernel_w - 1;
  }
  // The columns of the strip that a query sees: entries of its logits outside them do not exist.
  int64_t first_column(int64_t m) const {
    return columns->start[strip.first + place_x[m] * columns->query_step] - strip.key;
  }
  int64_t last_column(int64_t m) const {
    return columns->stop[strip.first + place_x[m] * columns->query_step] - strip.key;
  }

  // Adds by_row[row of the slot] + by_column[column of the slot].
  void add_relative(int64_t m, const Run& run, R* s) {
    R *by_row = relative_buffer.reserve(2 * relative_pitch), *by_column = by_row + relative_pitch;
    std::fill_n(by_row, round_up(run.num_rows, L), R(0));
    std::fill_n(by_column, round_up(strip.num_keys, L), R(0));
    if (a->rel_h) std::copy_n(static_cast<const R*>(a->rel_h) + rel_h_offset(m, run), run.num_rows, by_row);
    if (a->rel_w) {
      const R* from = static_cast<const R*>(a->rel_w) + rel_w_offset(m);
      for (int64_t c = first_column(m); c < last_column(m); ++c) by_column[c] = from[c];
    }
#if defined(__GNUC__) && !defined(__clang__)
    if (run.num_rows <= L && strip.num_keys <= L) {  // each fits in a vector: look up all lanes at once
      Vec<R> rows_all = load(by_row), columns_all = load(by_column);
      for (int64_t i = 0; i < run.count; i += L)
        store(s + i, load(s + i) + __builtin_shuffle(rows_all, load_ints(slot_row + i)) +
                         __builtin_shuffle(columns_all, load_ints(slot_column + i)));
      return;
    }
#endif
    for (int64_t i = 0; i < run.count; ++i) s[i] += by_row[slot_row[i]] + by_column[slot_column[i]];
  }

  static Ints load_ints(const Int* p) {
    Ints x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }

  void add_bias_gradients(int64_t m, const Run& run, const R* g) {
    if (a->rpb) {
      R* to = grad_table + place_x[m] * table_size + table_row(m, run) * strip.num_keys;
      int64_t i = 0;
      for (; i + L <= run.count; i += L) store(to + i, load(to + i) + load(g + i));
      for (; i < run.count; ++i) to[i] += g[i];
    }
    if (!a->rel_h && !a->rel_w) return;
    R *by_row = relative_buffer.reserve(2 * relative_pitch), *by_column = by_row + relative_pitch;
    std::fill_n(by_row, run.num_rows, R(0));
    for (int64_t c = 0; c < strip.num_keys; c += L) {
      Vec<R> column = {};
      const Ints inside = numbered(Lanes<R>{}) < Int(strip.num_keys - c);
      for (int64_t r = 0; r < run.num_rows; ++r) {
        Vec<R> x = inside ? load(g + r * strip.num_keys + c) : Vec<R>{};
        column += x;
        by_row[r] += sum_lanes<R>(x);
      }
      store(by_column + c, column);
    }
    if (a->rel_h) std::copy_n(by_row, run.num_rows, static_cast<R*>(a->grad_rel_h) + rel_h_offset(m, run));
    if (a->rel_w) {
      R* to = static_cast<R*>(a->grad_rel_w) + rel_w_offset(m);
      for (int64_t c = first_column(m); c < last_column(m); ++c) to[c] = by_column[c];
    }
  }

  template <int... I>
  static constexpr Ints numbered(std::integer_sequence<int, I...>) {
    return Ints{I...};
  }

};

}  // namespace
