// Scores of a block of queries: the product with its keys, the relative biases, and the window's edges; their gradients.
#pragma once

#include <algorithm>
#include <limits>
#include <utility>

#include "panels.h"

namespace {

template <class R>
class Scores : public Panels<R> {
 protected:
  using P = Panels<R>;
  using Run = typename P::Run;
  using Int = typename P::Int;
  using Ints = typename P::Ints;
  using P::L, P::a, P::rows, P::columns, P::k_dim, P::extra_pitch, P::pitch, P::score_pitch, P::table_rows,
      P::table_size, P::relative_pitch, P::head, P::strip, P::cuts_columns, P::query, P::place_y, P::place_x,
      P::keys, P::keys_t, P::extra_keys_t, P::q, P::scores, P::table, P::grad_table, P::relative_buffer, P::slot_row,
      P::slot_column, P::first_column, P::last_column;

  // For each query column of the strip, what is added to its scores, by table row and column slot: -inf where it does
  // not see the slot, else the relative bias. Rows are those of the relative table; without one they are all the same.
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
