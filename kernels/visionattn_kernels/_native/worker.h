// What one thread does with a tile of queries: score its keys, take the softmax, and differentiate it.
#pragma once

#include <algorithm>
#include <cmath>

#include "scores.h"

namespace {

template <class R>
class Worker : public Scores<R> {
 public:
  using Real = R;

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
      // Whatever reaches a key has also reached the gradient of its query.
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
    add_to_maps(to_keys, to_values);
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

 protected:
  using P = Panels<R>;
  using S = Scores<R>;
  using Run = typename P::Run;
  using P::L, P::a, P::rows, P::columns, P::is_backward, P::k_dim, P::v_dim, P::extra_pitch, P::most_slots, P::pitch,
      P::score_pitch, P::table_rows, P::table_size, P::batch, P::head, P::strip, P::segment, P::num_slots, P::width,
      P::query, P::total, P::keys, P::values, P::values_t, P::extra_keys, P::extra_values, P::extra_values_t, P::q,
      P::out, P::scores, P::table, P::grads, P::grad_out, P::grad_keys, P::grad_values, P::grad_extra_keys,
      P::grad_extra_values, P::grad_table, P::extra_out, P::slot_row, P::slot_column, P::for_each_key, P::pack,
      P::for_each_block, P::map_offset, P::load_queries, S::build_table, S::for_each_seen, S::hide,
      S::add_bias_gradients;

  // Adds the key gradients of a tile to those of the map.
  void add_to_maps(R* to_keys, R* to_values) {
    for_each_key([&](int64_t slot, int64_t y, int64_t x) {
      int64_t key = ((batch * a->keys_h + y) * a->keys_w + x) * a->heads + head;
      for (int64_t i = 0; i < a->head_dim; ++i) to_keys[key * a->head_dim + i] += grad_keys[slot * k_dim + i];
      for (int64_t i = 0; i < a->v_dim; ++i) to_values[key * a->v_dim + i] += grad_values[slot * v_dim + i];
    });
  }

  // Probabilities of a block, not normalised, in `scores`; their totals, log-sum-exp, and the sums of values in `out`.
  template <bool kSelects>
  void attend(int64_t M, const Run& run) {
    this->template score<kSelects>(M, run);
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
    this->template score<kSelects>(M, run);
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
};

}  // namespace
