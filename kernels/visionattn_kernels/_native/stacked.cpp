// Products and correlations of matrices that lie side by side in memory: the index of the matrix is the last one.
//
// A task is as many matrices as a few vectors have lanes. What it takes and makes is packed, vector by vector, since in
// the maps each entry is a page apart from the next; sums stay in registers. Nothing is ever transposed: strides do that.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "products.h"
#include "vectors.h"

namespace {

// Mirrored by stacked.py.
struct Stack {
  void* data;
  int64_t row, column;  // steps, in numbers
};

struct Product {
  int64_t dtype, count, rows, inner, columns, num_threads;
  Stack a, b, out;
};

// Vectors of matrices in a task, at most: neighbours in memory, for which a page is looked up once.
constexpr int64_t kVectors = 4;

// The number of vectors of `entries` each that fit in a second-level cache.
int64_t vectors_of(int64_t entries) { return std::clamp<int64_t>((1 << 18) / (entries * kVectorBytes), 1, kVectors); }

// Calls `f(first, count)` for the matrices of each task of this thread. All threads have equally many.
template <class R, class F>
void in_tasks(int64_t count, int64_t vectors, int64_t num_threads, F f) {
  constexpr int64_t L = kLanes<R>;
  int64_t all = (count + L - 1) / L, tasks = round_up((all + vectors - 1) / vectors, num_threads);
#pragma omp for schedule(static)
  for (int64_t task = 0; task < tasks; ++task) {
    int64_t first = all * task / tasks * L, end = std::min(count, all * (task + 1) / tasks * L);
    if (first < end) f(first, end - first);
  }
}

// Matrices of a task, vector by vector.
template <class R>
class Packed {
 public:
  Packed(int64_t rows, int64_t columns, int64_t vectors)
      : pitch((columns | 1) * kLanes<R>), size(rows * pitch), data(vectors * size) {}

  R* at(int64_t vector, int64_t i, int64_t j) { return data.data() + vector * size + i * pitch + j * kLanes<R>; }

  // Copies matrices `first`... of a stack, `count` of them, to row `top` and column `left`, with zeros for missing lanes.
  void take(const Stack& from, int64_t rows, int64_t columns, int64_t first, int64_t count, int64_t top = 0,
            int64_t left = 0) {
    for_each_entry<0>(from, rows, columns, first, count, at(0, top, left),
                      [](const R* x, R* y, int64_t lanes) { store(y, load_lanes(x, lanes)); });
  }

  // The way back.
  void give(const Stack& to, int64_t rows, int64_t columns, int64_t first, int64_t count) {
    for_each_entry<1>(to, rows, columns, first, count, at(0, 0, 0),
                      [](R* x, const R* y, int64_t lanes) { store_lanes(x, load(y), lanes); });
  }

  const int64_t pitch;  // an odd number of vectors: columns go through all sets of a cache

 private:
  // Calls `f(entry of the stack, packed entry, lanes)` for each vector of each entry, which is fetched well before.
  template <int Writes, class F>
  INLINE void for_each_entry(Stack s, int64_t rows, int64_t columns, int64_t first, int64_t count, R* packed, F f) {
    constexpr int64_t L = kLanes<R>, kAhead = 8;
    const int64_t size = this->size, pitch = this->pitch;
    auto copy = [&](int64_t vectors, auto lanes) {
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) {
          R* x = static_cast<R*>(s.data) + i * s.row + j * s.column + first;
          R* y = packed + i * pitch + j * L;
#pragma GCC unroll 4
          for (int64_t v = 0; v < vectors; ++v) __builtin_prefetch(x + kAhead * s.column + v * L, Writes);
#pragma GCC unroll 4
          for (int64_t v = 0; v < vectors; ++v) f(x + v * L, y + v * size, lanes(v));
        }
    };
    if (count == kVectors * L)  // the usual case, without tests
      copy(kVectors, [](int64_t) { return L; });
    else
      copy((count + L - 1) / L, [&](int64_t v) { return count - v * L; });
  }

  const int64_t size;
  Vectors<R> data;
};

// M rows and N columns of the product of packed factors.
template <class R, int M, int N>
INLINE void multiply_block(int64_t inner, const R* a, int64_t a_pitch, const R* b, int64_t b_pitch, R* out,
                           int64_t out_pitch) {
  constexpr int L = kLanes<R>;
  Vec<R> sum[M][N] = {};
  for (int64_t k = 0; k < inner; ++k) {
    Vec<R> row[N];
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) keep(row[j] = load(b + k * b_pitch + j * L));
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      Vec<R> x = load(a + i * a_pitch + k * L);
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) sum[i][j] += x * row[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) store(out + i * out_pitch + j * L, sum[i][j]);
}

// Calls `f(rows, columns, i, j)` for blocks of a map whose sums have room in registers, of nearly equal width.
template <class R, class F>
INLINE void in_blocks(int64_t rows, int64_t columns, F f) {
  constexpr int kRows = 4, kColumns = kVectorBytes == 64 ? 6 : 2;
  int64_t parts = (columns + kColumns - 1) / kColumns;
  for (int64_t part = 0; part < parts; ++part) {
    int64_t j = columns * part / parts;
    with_constant<kColumns>(columns * (part + 1) / parts - j, [&](auto width) {
      for (int64_t i = 0; i < rows; i += kRows)
        with_constant<kRows>(std::min<int64_t>(kRows, rows - i), [&](auto height) { f(height, width, i, j); });
    });
  }
}

template <class R>
void multiply(const Product& p) {
#pragma omp parallel num_threads(p.num_threads)
  {
    int64_t vectors = vectors_of(p.rows * p.columns);
    Packed<R> a(p.rows, p.inner, vectors), b(p.inner, p.columns, vectors), out(p.rows, p.columns, vectors);
    in_tasks<R>(p.count, vectors, p.num_threads, [&](int64_t first, int64_t count) {
      a.take(p.a, p.rows, p.inner, first, count);
      b.take(p.b, p.inner, p.columns, first, count);
      for (int64_t v = 0; v * kLanes<R> < count; ++v)
        in_blocks<R>(p.rows, p.columns, [&](auto height, auto width, int64_t i, int64_t j) {
          multiply_block<R, height.value, width.value>(p.inner, a.at(v, i, 0), a.pitch, b.at(v, 0, j), b.pitch,
                                                       out.at(v, i, j), out.pitch);
        });
      out.give(p.out, p.rows, p.columns, first, count);
    });
  }
}

// Correlation of maps with kernels, both stacked, zeros beyond the border.
struct Correlation {
  int64_t dtype, count, height, width, taps_h, taps_w, top, left, num_threads;
  Stack maps, kernels, out;
};

// M rows and N columns of a correlation: each number of the padded map meets the taps of all rows that see it.
template <class R, int M, int N>
INLINE void correlate_block(const Correlation& c, const R* map, int64_t map_pitch, const R* kernel,
                            int64_t kernel_pitch, R* out, int64_t out_pitch) {
  constexpr int L = kLanes<R>;
  Vec<R> sum[M][N] = {};
  for (int64_t i = 0; i < c.taps_h + M - 1; ++i)
    for (int64_t j = 0; j < c.taps_w; ++j) {
      Vec<R> row[N];
#pragma GCC unroll 8
      for (int x = 0; x < N; ++x) row[x] = load(map + i * map_pitch + (j + x) * L);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        if (i < m || i - m >= c.taps_h) continue;
        Vec<R> tap = load(kernel + (i - m) * kernel_pitch + j * L);
#pragma GCC unroll 8
        for (int x = 0; x < N; ++x) sum[m][x] += tap * row[x];
      }
    }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int x = 0; x < N; ++x) store(out + m * out_pitch + x * L, sum[m][x]);
}

template <class R>
void correlate(const Correlation& c) {
#pragma omp parallel num_threads(c.num_threads)
  {
    int64_t vectors = vectors_of(c.height * c.width);
    // A map amid the zeros that the kernel meets beyond its border.
    Packed<R> map(c.height + c.taps_h - 1, c.width + c.taps_w - 1, vectors);
    Packed<R> kernel(c.taps_h, c.taps_w, vectors), out(c.height, c.width, vectors);
    in_tasks<R>(c.count, vectors, c.num_threads, [&](int64_t first, int64_t count) {
      map.take(c.maps, c.height, c.width, first, count, c.top, c.left);
      kernel.take(c.kernels, c.taps_h, c.taps_w, first, count);
      for (int64_t v = 0; v * kLanes<R> < count; ++v)
        in_blocks<R>(c.height, c.width, [&](auto height, auto width, int64_t i, int64_t j) {
          correlate_block<R, height.value, width.value>(c, map.at(v, i, j), map.pitch, kernel.at(v, 0, 0), kernel.pitch,
                                                        out.at(v, i, j), out.pitch);
        });
      out.give(c.out, c.height, c.width, first, count);
    });
  }
}

// One row of N taps: out[j] = sum over positions of the map, moved by the tap, times that of `other`.
template <class R, int N>
INLINE void tap_row(const Correlation& c, const R* map, int64_t map_pitch, const R* other, int64_t other_pitch, R* out) {
  constexpr int L = kLanes<R>;
  Vec<R> sum[N] = {};
  for (int64_t h = 0; h < c.height; ++h, map += map_pitch, other += other_pitch)
    for (int64_t w = 0; w < c.width; ++w) {
      Vec<R> y = load(other + w * L);
#pragma GCC unroll 16
      for (int j = 0; j < N; ++j) sum[j] += y * load(map + (w + j) * L);
    }
#pragma GCC unroll 16
  for (int j = 0; j < N; ++j) store(out + j * L, sum[j]);
}

// The gradient of a correlation with respect to its kernels: `kernels` holds maps here, and `out` taps.
template <class R>
void correlate_taps(const Correlation& c) {
  constexpr int kColumns = 10;
#pragma omp parallel num_threads(c.num_threads)
  {
    int64_t vectors = vectors_of(c.height * c.width);
    Packed<R> map(c.height + c.taps_h - 1, c.width + c.taps_w - 1, vectors);
    Packed<R> other(c.height, c.width, vectors), out(c.taps_h, c.taps_w, vectors);
    in_tasks<R>(c.count, vectors, c.num_threads, [&](int64_t first, int64_t count) {
      map.take(c.maps, c.height, c.width, first, count, c.top, c.left);
      other.take(c.kernels, c.height, c.width, first, count);
      for (int64_t v = 0; v * kLanes<R> < count; ++v)
        for (int64_t i = 0; i < c.taps_h; ++i)
          for (int64_t j = 0; j < c.taps_w; j += kColumns)
            with_constant<kColumns>(std::min<int64_t>(kColumns, c.taps_w - j), [&](auto width) {
              tap_row<R, width.value>(c, map.at(v, i, j), map.pitch, other.at(v, 0, 0), other.pitch, out.at(v, i, j));
            });
      out.give(c.out, c.taps_h, c.taps_w, first, count);
    });
  }
}

}  // namespace

extern "C" {

void visionattn_multiply_stacked(const Product* p) { p->dtype ? multiply<double>(*p) : multiply<float>(*p); }

void visionattn_correlate_stacked(const Correlation* c) { c->dtype ? correlate<double>(*c) : correlate<float>(*c); }

void visionattn_correlate_taps(const Correlation* c) {
  c->dtype ? correlate_taps<double>(*c) : correlate_taps<float>(*c);
}

}  // extern "C"
