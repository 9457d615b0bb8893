// Attention over several dilated windows in one softmax, forward and backward: any list of offsets of keys.
//
// A head's maps are packed channel by channel. For a vector of neighbouring queries the keys of one offset are then a
// vector per channel, and scores, softmax and sums need no step across lanes. Offsets that reach no key of the map are
// left out. Backward keeps the weights and the gradients of the scores of a whole head. Key gradients gather both from
// the queries at the opposite offsets. As many heads as there are threads are worked on at a time, row by row: which
// thread takes a row changes no bit of it.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "arguments.h"
#include "shifted.h"
#include "vectors.h"

namespace {

// Mirrored by native.py of multiscale/.
struct Multiscale {
  int64_t dtype, batch, height, width, heads, head_dim, v_dim, num_offsets, num_threads;
  int64_t scratch_size;
  double scale;
  const int64_t *rows, *columns;  // offsets of keys
  Map q, k, v, out, grad_out, grad_q, grad_k, grad_v;
  // Of the accumulation type: bias [heads, offsets], its gradient [batch, heads, height, offsets], and [batch, height,
  // width, heads]; absent ones are null.
  const void* bias;
  void *grad_bias, *lse;
  const void* grad_lse;
  void* scratch;  // `scratch_size` numbers of the accumulation type
};

// What lies at one offset from a vector of places: where its first lane would be, and which lanes are within the map.
struct Neighbour {
  int64_t offset, row, column, first, end;
};

template <class R>
class Worker {
 public:
  static constexpr int64_t L = kLanes<R>;
  using Ints = typename VectorOf<R>::ints;

  // The heads that all threads work on at a time.
  static int64_t group(const Multiscale& m) { return std::min(m.num_threads, m.batch * m.heads); }

  Worker(const Multiscale& m, bool is_backward) : m(m), grid{m.height, m.width} {
    R* end = static_cast<R*>(m.scratch);
    auto take = [&](int64_t lines) {
      Lines<R> taken{grid, lines, end};
      end += group(m) * m.height * taken.row_size();
      return taken;
    };
    q = take(round_up(m.head_dim, L));
    k = take(round_up(m.head_dim, L));
    v = take(round_up(m.v_dim, L));
    if (is_backward) {
      grad_out = take(round_up(m.v_dim, L));
      weights = take(m.num_offsets);
      grad_scores = take(m.num_offsets);
    }
    scratch_size = end - static_cast<R*>(m.scratch);  // also without memory yet
    map_vectors.resize(m.num_offsets);
    score_vectors.resize(m.num_offsets);
    near.reserve(m.num_offsets);
    buffer.resize(m.num_offsets * L);
  }

  // Takes a row of a head, both counted within the group, which begins at head `item` of the batch.
  void begin(int64_t item, int64_t task) {
    y = task % m.height;
    item += task / m.height;
    image = item / m.heads, head = item % m.heads;
    origin = task - y;
  }

  void pack(bool is_backward) {
    take(m.q, m.head_dim, R(m.scale), q);
    take(m.k, m.head_dim, R(1), k);
    take(m.v, m.v_dim, R(1), v);
    if (!is_backward) return;
    take(m.grad_out, m.v_dim, R(1), grad_out);
    weights.clear_margins(origin + y);
    grad_scores.clear_margins(origin + y);
  }

  void forward() {
    for (int64_t x = 0; x < m.width; x += L) {
      find(x, 1);
      attend(x, buffer.data(), L);
      sum(x, buffer.data(), L, v, m.out, m.v_dim, R(1));
    }
  }

  // The weights and the gradients of queries, scores and biases.
  void backward() {
    std::fill(buffer.begin(), buffer.end(), R(0));  // gradients of biases
    const int64_t pitch = grid.pitch(), row = origin + y;
    for (int64_t x = 0; x < m.width; x += L) {
      find(x, 1);
      R *w = weights.at(row) + x, *g = grad_scores.at(row) + x;
      attend(x, w, pitch);
      point(v, [&](const Neighbour& n) { return g + n.offset * pitch; });
      multiply_lines(m.v_dim, grad_out.at(row) + x, map_vectors.data(), pitch, count(), score_vectors.data());
      Vec<R> mean = -read_lse_gradient(x);
      for (auto& n : near) {
        mean += select(n.first, n.end, load(w + n.offset * pitch) * load(g + n.offset * pitch), Vec<R>{});
      }
      for (auto& n : near) {
        R* to = g + n.offset * pitch;
        Vec<R> grad = select(n.first, n.end, load(w + n.offset * pitch) * (load(to) - mean), Vec<R>{});
        store(to, grad);
        R* bias = buffer.data() + n.offset * L;
        store(bias, load(bias) + grad);
      }
      sum(x, g, pitch, k, m.grad_q, m.head_dim, R(m.scale));
    }
    if (!m.grad_bias) return;
    R* to = static_cast<R*>(m.grad_bias) + ((image * m.heads + head) * m.height + y) * m.num_offsets;
    for (int64_t i = 0; i < m.num_offsets; ++i) to[i] = sum_lanes<R>(load(buffer.data() + i * L));
  }

  // The gradients of keys and values, when those of all scores of the head are there.
  void backward_keys() {
    for (int64_t x = 0; x < m.width; x += L) {
      find(x, -1);
      gather(x, grad_scores, q, m.grad_k, m.head_dim);
      gather(x, weights, grad_out, m.grad_v, m.v_dim);
    }
  }

  int64_t scratch_size;

 private:
  int64_t count() const { return near.size(); }
  int64_t lanes(int64_t x) const { return std::min(L, m.width - x); }

  void take(const Map& map, int64_t channels, R factor, const Lines<R>& lines) {
    pack_row(map, m.dtype, element(map, 0), channels, factor, lines, origin + y);
  }

  // The first channel of column x.
  int64_t element(const Map& map, int64_t x) const {
    return image * map.batch + y * map.row + x * map.column + head * map.head;
  }

  // The place of a query in a log-sum-exp or its gradient.
  int64_t query(int64_t x) const { return ((image * m.height + y) * m.width + x) * m.heads + head; }

  // Finds what the map holds at all offsets, or at their opposites.
  void find(int64_t x, int sign) {
    near.clear();
    for (int64_t i = 0; i < m.num_offsets; ++i) {
      int64_t row = y + sign * m.rows[i], column = x + sign * m.columns[i];
      int64_t begin = std::max<int64_t>(0, -column), end = std::min(lanes(x), m.width - column);
      if (row >= 0 && row < m.height && begin < end) near.push_back({i, origin + row, column, begin, end});
    }
  }

  // x in the lanes from `first` up to `end`.
  static INLINE Vec<R> select(int64_t first, int64_t end, Vec<R> x, Vec<R> otherwise) {
    using Int = typename VectorOf<R>::Int;
    if (first == 0 && end == L) return x;
    Ints lane;
    for (int l = 0; l < L; ++l) lane[l] = l;
    return ((lane >= Ints{} + Int(first)) & (lane < Ints{} + Int(end))) ? x : otherwise;
  }

  // Points `map_vectors` to the neighbours in some map, and `score_vectors` to what `f` returns for each.
  template <class F>
  void point(const Lines<R>& map, F f) {
    for (int64_t i = 0; i < count(); ++i) {
      map_vectors[i] = map.at(near[i].row) + near[i].column;
      score_vectors[i] = f(near[i]);
    }
  }

  // Makes the weights of all neighbours of a vector of queries, `pitch` apart by offset, and their log-sum-exp if it is
  // asked for.
  void attend(int64_t x, R* to, int64_t pitch) {
    point(k, [&](const Neighbour& n) { return to + n.offset * pitch; });
    multiply_lines(m.head_dim, q.at(origin + y) + x, map_vectors.data(), grid.pitch(), count(), score_vectors.data());
    const R* bias = m.bias ? static_cast<const R*>(m.bias) + head * m.num_offsets : nullptr;
    const Vec<R> nothing = fill(-std::numeric_limits<R>::infinity());
    Vec<R> top = nothing, total = {};
    for (auto& n : near) {
      R* at = to + n.offset * pitch;
      Vec<R> score = select(n.first, n.end, load(at) + fill(bias ? bias[n.offset] : R(0)), nothing);
      store(at, score);
      top = larger<R>(score, top);
    }
    top = select(0, lanes(x), top, Vec<R>{});  // lanes beyond the map see nothing
    for (auto& n : near) {
      R* at = to + n.offset * pitch;
      Vec<R> weight = exponential(load(at) - top);
      store(at, weight);
      total += weight;
    }
    total = select(0, lanes(x), total, fill(R(1)));
    for (auto& n : near) {
      R* at = to + n.offset * pitch;
      store(at, load(at) / total);
    }
    if (m.lse)
      for (int64_t l = 0; l < lanes(x); ++l) static_cast<R*>(m.lse)[query(x + l)] = top[l] + std::log(total[l]);
  }

  Vec<R> read_lse_gradient(int64_t x) const {
    Vec<R> grad = {};
    if (m.grad_lse)
      for (int64_t l = 0; l < lanes(x); ++l) grad[l] = static_cast<const R*>(m.grad_lse)[query(x + l)];
    return grad;
  }

  // Sums the neighbours in a map with the weights of this vector.
  void sum(int64_t x, R* from, int64_t pitch, const Lines<R>& map, const Map& to, int64_t channels, R factor) {
    point(map, [&](const Neighbour& n) { return from + n.offset * pitch; });
    write(x, to, channels, factor);
  }

  // Sums the neighbours in a map with the weights that they give to this vector.
  void gather(int64_t x, const Lines<R>& given, const Lines<R>& map, const Map& to, int64_t channels) {
    point(map, [&](const Neighbour& n) { return given.at(n.row) + n.offset * grid.pitch() + n.column; });
    write(x, to, channels, R(1));
  }

  void write(int64_t x, const Map& to, int64_t channels, R factor) {
    write_sums(count(), score_vectors.data(), map_vectors.data(), grid.pitch(), channels, factor, to, m.dtype,
               element(to, x), lanes(x));
  }

  const Multiscale& m;
  const Grid<R> grid;
  Lines<R> q, k, v, grad_out, weights, grad_scores;
  int64_t image, head, y, origin;
  std::vector<Neighbour> near;
  std::vector<const R*> map_vectors;
  std::vector<R*> score_vectors;
  Vectors<R> buffer;
};

// Calls `f` with the worker at each row of a group of heads, on all threads; returns when all is done.
template <class R, class F>
void in_rows(Worker<R>& worker, const Multiscale& m, int64_t item, int64_t heads, F f) {
#pragma omp for schedule(static)
  for (int64_t task = 0; task < heads * m.height; ++task) {
    worker.begin(item, task);
    f();
  }
}

template <class R>
void run(const Multiscale& m, bool is_backward) {
#pragma omp parallel num_threads(m.num_threads)
  {
    Worker<R> worker(m, is_backward);
    const int64_t group = Worker<R>::group(m);
    for (int64_t item = 0; item < m.batch * m.heads; item += group) {
      int64_t heads = std::min(group, m.batch * m.heads - item);
      in_rows(worker, m, item, heads, [&] { worker.pack(is_backward); });
      if (is_backward) {
        in_rows(worker, m, item, heads, [&] { worker.backward(); });
        in_rows(worker, m, item, heads, [&] { worker.backward_keys(); });
      } else {
        in_rows(worker, m, item, heads, [&] { worker.forward(); });
      }
    }
  }
}

}  // namespace

extern "C" {

// Sets `scratch_size`.
void visionattn_multiscale_scratch(Multiscale* m, int is_backward) {
  m->scratch_size = m->dtype == kFloat64 ? Worker<double>(*m, is_backward).scratch_size
                                         : Worker<float>(*m, is_backward).scratch_size;
}

void visionattn_multiscale(const Multiscale* m, int is_backward) {
  m->dtype == kFloat64 ? run<double>(*m, is_backward) : run<float>(*m, is_backward);
}

}  // extern "C"
