// Fused Parallax attention on CPUs, forward and backward: softmax attention whose weights a second score corrects.
//
// With p = softmax(q.k + bias), s = r.k and d = sum p s, a query sums its values with weights p (1 + d - s). The scores
// of a block are all there before its values are summed, so forward has one product more than attention has, r.k.
//
// Backward, with a = grad_out.v, A = sum p a and B = sum p s a:
//     gradient of the scores: p ((a - A) (1 + d - s) + B - A d)
//     gradient of s:          p (A - a)
// and of the values, as in attention, the weights times grad_out. All sums are recomputed from the log-sum-exp.

#include "tasks.h"
#include "worker.h"

namespace {

template <class R>
class ParallaxWorker : public Worker<R> {
 public:
  void begin(const Arguments& arguments, const Cut& row_cut, const Cut& column_cut, bool backward) {
    W::begin(arguments, row_cut, column_cut, backward);
    r = r_buffer.reserve(kBlock * k_dim);
    slopes = slopes_buffer.reserve(kBlock * score_pitch);
  }

  void forward(const Tile& segment) {
    pack(segment);
    for_each_block([&](int64_t M, const Run& run) {
      load_both(M);
      attend<false>(M, run);
      if (UNLIKELY(has_nan(out, M * v_dim))) attend<true>(M, run);
      for (int64_t m = 0; m < M; ++m)
        write(a->out.data, a->dtype, query[m] * a->v_dim, a->v_dim, out + m * v_dim, 1 / total[m]);
    });
  }

  void backward(const Tile& segment, R* to_keys, R* to_values) {
    pack(segment);
    std::fill_n(grad_keys, num_slots * k_dim, R(0));
    std::fill_n(grad_values, num_slots * v_dim, R(0));
    for_each_block([&](int64_t M, const Run& run) {
      load_both(M);
      for (int64_t m = 0; m < M; ++m) {
        int64_t offset = map_offset(a->grad_out, m);
        prefetch(a->grad_out.data, a->dtype, offset + rows->query_step * a->grad_out.row, a->v_dim);
        read(a->grad_out.data, a->dtype, offset, a->v_dim, v_dim, grad_out + m * v_dim);
      }
      differentiate<false>(M, run);
      // Whatever reaches a key has also reached the gradient of its query.
      bool selects = UNLIKELY(has_nan(out, M * k_dim));
      if (selects) differentiate<true>(M, run);
      for (int64_t m = 0; m < M; ++m) add_bias_gradients(m, run, grads + m * score_pitch);
      write_queries(M, a->grad_q, R(a->scale));
      if (selects)
        this->template sum_slots<true>(M, run, slopes, keys, extra_keys, k_dim);
      else
        this->template sum_slots<false>(M, run, slopes, keys, extra_keys, k_dim);
      write_queries(M, a->grad_r, R(1));
      add_to_keys(M, run, grads, q, k_dim, grad_keys, selects);
      add_to_keys(M, run, slopes, r, k_dim, grad_keys, selects);
      add_to_keys(M, run, scores, grad_out, v_dim, grad_values, selects);
    });
    this->add_to_maps(to_keys, to_values);
  }

 private:
  using W = Worker<R>;
  using P = Panels<R>;
  using S = Scores<R>;
  using Run = typename P::Run;
  using P::L, P::a, P::rows, P::k_dim, P::v_dim, P::pitch, P::score_pitch, P::num_slots, P::query, P::total, P::keys,
      P::keys_t, P::values, P::values_t, P::extra_keys, P::extra_values, P::q, P::out, P::scores, P::grads, P::grad_out,
      P::grad_keys, P::grad_values, P::pack, P::for_each_block, P::map_offset, P::load_queries, S::hide,
      S::add_bias_gradients, W::add_to_keys;

  R *r, *slopes;  // of a block: the vectors r, and s = r.k of each slot, which backward replaces by its gradient
  Buffer<R> r_buffer, slopes_buffer;

  void load_both(int64_t M) {
    load_queries(M);
    for (int64_t m = 0; m < M; ++m) {
      int64_t offset = map_offset(a->r, m);
      prefetch(a->r.data, a->dtype, offset + rows->query_step * a->r.row, a->head_dim);
      read(a->r.data, a->dtype, offset, a->head_dim, k_dim, r + m * k_dim);
    }
  }

  void write_queries(int64_t M, void* to, R factor) {
    for (int64_t m = 0; m < M; ++m)
      for (int64_t i = 0; i < a->head_dim; ++i)
        static_cast<R*>(to)[query[m] * a->head_dim + i] = out[m * k_dim + i] * factor;
  }

  // to[M, slots] = rows[M, C] times columns of the slots; zero beyond the run and, where `kSelects`, where not seen.
  template <bool kSelects>
  void multiply(int64_t M, const Run& run, const R* rows, int64_t real, int64_t C, const R* columns, R* to) {
    product(M, run.count, real, rows, C, columns + run.first, pitch, to, score_pitch);
    for (int64_t m = 0; m < M; ++m) {
      std::fill(to + m * score_pitch + run.count, to + m * score_pitch + run.padded, R(0));
      if constexpr (kSelects) hide(m, run, to + m * score_pitch, R(0));
    }
  }

  // Sums of values, times the totals of the probabilities, in `out`; the totals and the log-sum-exp.
  template <bool kSelects>
  void attend(int64_t M, const Run& run) {
    this->template score<kSelects>(M, run);
    multiply<kSelects>(M, run, r, a->head_dim, k_dim, keys_t, slopes);
    for (int64_t m = 0; m < M; ++m) {
      R *p = scores + m * score_pitch, *s = slopes + m * score_pitch;
      Vec<R> most = load(p);
      for (int64_t i = L; i < run.padded; i += L) most = larger<R>(most, load(p + i));
      R top = fold<R>(most, larger<R>);
      Vec<R> sum = {}, slope = {};
      for (int64_t i = 0; i < run.padded; i += L) {
        Vec<R> e = exponential(load(p + i) - top);
        sum += e, slope += e * load(s + i);
        store(p + i, e);
      }
      total[m] = sum_lanes<R>(sum);
      static_cast<R*>(a->lse)[query[m]] = top + std::log(total[m]);
      R level = 1 + sum_lanes<R>(slope) / total[m];
      for (int64_t i = 0; i < run.padded; i += L) store(p + i, load(p + i) * (level - load(s + i)));
    }
    this->template sum_slots<kSelects>(M, run, scores, values, extra_values, v_dim);
  }

  // Weights of a block in `scores`, gradients of its scores in `grads` and of s in `slopes`, and of its queries,
  // unscaled, in `out`.
  template <bool kSelects>
  void differentiate(int64_t M, const Run& run) {
    this->template score<kSelects>(M, run);
    multiply<kSelects>(M, run, r, a->head_dim, k_dim, keys_t, slopes);
    multiply<kSelects>(M, run, grad_out, a->v_dim, v_dim, values_t, grads);
    for (int64_t m = 0; m < M; ++m) {
      R *p = scores + m * score_pitch, *s = slopes + m * score_pitch, *g = grads + m * score_pitch;
      R lse = static_cast<const R*>(a->lse)[query[m]];
      Vec<R> slope = {}, first = {}, second = {};
      for (int64_t i = 0; i < run.padded; i += L) {
        Vec<R> e = exponential(load(p + i) - lse), es = e * load(s + i);
        slope += es, first += e * load(g + i), second += es * load(g + i);
        store(p + i, e);
      }
      R d = sum_lanes<R>(slope), mean = sum_lanes<R>(first), rest = sum_lanes<R>(second) - mean * d;
      for (int64_t i = 0; i < run.padded; i += L) {
        Vec<R> e = load(p + i), level = 1 + d - load(s + i), from_mean = load(g + i) - mean;
        store(p + i, e * level);
        store(g + i, e * (from_mean * level + rest));
        store(s + i, -e * from_mean);
      }
    }
    this->template sum_slots<kSelects>(M, run, grads, keys, extra_keys, k_dim);
  }
};

}  // namespace

extern "C" {

// As visionattn_forward and visionattn_backward.
int visionattn_parallax_forward(const Arguments* a) {
  return a->dtype == kFloat64 ? forward<ParallaxWorker<double>>(*a) : forward<ParallaxWorker<float>>(*a);
}

int visionattn_parallax_backward(const Arguments* a) {
  return a->dtype == kFloat64 ? backward<ParallaxWorker<double>>(*a) : backward<ParallaxWorker<float>>(*a);
}

}  // extern "C"
