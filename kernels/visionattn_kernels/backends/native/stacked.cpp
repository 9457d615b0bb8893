// Products and correlations of matrices that lie side by side in memory: the index of the matrix is the last one.
//
// A task is as many matrices as a vector has lanes. What it takes is packed, since in the maps each entry is a page
// apart from the next; sums stay in registers. Nothing is ever transposed: strides do that.

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

// to[i][j] = lanes `first`... of from's entry (i, j); `lanes` of them, zeros behind.
template <class R>
void pack(const Stack& from, int64_t rows, int64_t columns, int64_t first, int64_t lanes, R* to) {
  const R* data = static_cast<const R*>(from.data) + first;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j, to += kLanes<R>) {
      const R* x = data + i * from.row + j * from.column;
      if (lanes == kLanes<R>)
        store(to, load(x));
      else
        for (int64_t l = 0; l < kLanes<R>; ++l) to[l] = l < lanes ? x[l] : 0;
    }
}

template <class R>
INLINE void unpack(R* to, Vec<R> x, int64_t lanes) {
  if (lanes == kLanes<R>)
    store(to, x);
  else
    for (int64_t l = 0; l < lanes; ++l) to[l] = x[l];
}

// M rows and N columns of the product of packed factors.
template <class R, int M, int N>
INLINE void multiply_block(const Product& p, const R* a, const R* b, R* out, int64_t lanes) {
  constexpr int L = kLanes<R>;
  Vec<R> sum[M][N] = {};
  for (int64_t k = 0; k < p.inner; ++k) {
    Vec<R> row[N];
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) row[j] = load(b + (k * p.columns + j) * L);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      Vec<R> x = load(a + (i * p.inner + k) * L);
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) sum[i][j] += x * row[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) unpack(out + i * p.out.row + j * p.out.column, sum[i][j], lanes);
}

// Calls `f(rows, columns, i, j)` for blocks of a map whose sums have room in registers.
template <class R, class F>
INLINE void in_blocks(int64_t rows, int64_t columns, F f) {
  constexpr int kRows = 4, kColumns = kVectorBytes == 64 ? 6 : 2;
  for (int64_t j = 0; j < columns; j += kColumns)
    with_constant<kColumns>(std::min<int64_t>(kColumns, columns - j), [&](auto width) {
      for (int64_t i = 0; i < rows; i += kRows)
        with_constant<kRows>(std::min<int64_t>(kRows, rows - i), [&](auto height) { f(height, width, i, j); });
    });
}

template <class R>
void multiply(const Product& p) {
  constexpr int L = kLanes<R>;
#pragma omp parallel num_threads(p.num_threads)
  {
    std::vector<R> a(p.rows * p.inner * L), b(p.inner * p.columns * L);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < (p.count + L - 1) / L; ++task) {
      int64_t first = task * L, lanes = std::min<int64_t>(L, p.count - first);
      pack(p.a, p.rows, p.inner, first, lanes, a.data());
      pack(p.b, p.inner, p.columns, first, lanes, b.data());
      R* out = static_cast<R*>(p.out.data) + first;
      in_blocks<R>(p.rows, p.columns, [&](auto height, auto width, int64_t i, int64_t j) {
        multiply_block<R, height.value, width.value>(p, a.data() + i * p.inner * L, b.data() + j * L,
                                                     out + i * p.out.row + j * p.out.column, lanes);
      });
    }
  }
}

// Correlation of maps with kernels, both stacked, zeros beyond the border.
struct Correlation {
  int64_t dtype, count, height, width, taps_h, taps_w, top, left, num_threads;
  Stack maps, kernels, out;
};

// A map amid the zeros that the kernel meets beyond its border.
template <class R>
void pack_padded(const Correlation& c, int64_t first, int64_t lanes, R* to) {
  constexpr int L = kLanes<R>;
  int64_t pitch = c.width + c.taps_w - 1;
  for (int64_t i = 0; i < c.height; ++i) {
    Stack row = c.maps;
    row.data = static_cast<R*>(row.data) + i * row.row;
    pack(row, 1, c.width, first, lanes, to + ((i + c.top) * pitch + c.left) * L);
  }
}

// M rows and N columns of a correlation: each number of the padded map meets the taps of all rows that see it.
template <class R, int M, int N>
INLINE void correlate_block(const Correlation& c, const R* map, const R* kernel, R* out, int64_t lanes) {
  constexpr int L = kLanes<R>;
  int64_t pitch = (c.width + c.taps_w - 1) * L;
  Vec<R> sum[M][N] = {};
  for (int64_t i = 0; i < c.taps_h + M - 1; ++i)
    for (int64_t j = 0; j < c.taps_w; ++j) {
      Vec<R> row[N];
#pragma GCC unroll 8
      for (int x = 0; x < N; ++x) row[x] = load(map + i * pitch + (j + x) * L);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        if (i < m || i - m >= c.taps_h) continue;
        Vec<R> tap = load(kernel + ((i - m) * c.taps_w + j) * L);
#pragma GCC unroll 8
        for (int x = 0; x < N; ++x) sum[m][x] += tap * row[x];
      }
    }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int x = 0; x < N; ++x) unpack(out + m * c.out.row + x * c.out.column, sum[m][x], lanes);
}

template <class R>
void correlate(const Correlation& c) {
  constexpr int L = kLanes<R>;
#pragma omp parallel num_threads(c.num_threads)
  {
    int64_t pitch = c.width + c.taps_w - 1;
    std::vector<R> map((c.height + c.taps_h - 1) * pitch * L), kernel(c.taps_h * c.taps_w * L);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < (c.count + L - 1) / L; ++task) {
      int64_t first = task * L, lanes = std::min<int64_t>(L, c.count - first);
      pack_padded(c, first, lanes, map.data());
      pack(c.kernels, c.taps_h, c.taps_w, first, lanes, kernel.data());
      R* out = static_cast<R*>(c.out.data) + first;
      in_blocks<R>(c.height, c.width, [&](auto height, auto width, int64_t i, int64_t j) {
        correlate_block<R, height.value, width.value>(c, map.data() + (i * pitch + j) * L, kernel.data(),
                                                      out + i * c.out.row + j * c.out.column, lanes);
      });
    }
  }
}

// One row of N taps: out[j] = sum over positions of the map, moved by the tap, times that of `kernels`.
template <class R, int N>
INLINE void tap_row(const Correlation& c, const R* map, const R* other, R* out, int64_t lanes) {
  constexpr int L = kLanes<R>;
  Vec<R> sum[N] = {};
  for (int64_t h = 0; h < c.height; ++h, map += (c.width + c.taps_w - 1) * L, other += c.width * L)
    for (int64_t w = 0; w < c.width; ++w) {
      Vec<R> y = load(other + w * L);
#pragma GCC unroll 16
      for (int j = 0; j < N; ++j) sum[j] += y * load(map + (w + j) * L);
    }
#pragma GCC unroll 16
  for (int j = 0; j < N; ++j) unpack(out + j * c.out.column, sum[j], lanes);
}

// The gradient of a correlation with respect to its kernels: `kernels` holds maps here, and `out` taps.
template <class R>
void correlate_taps(const Correlation& c) {
  constexpr int L = kLanes<R>, kColumns = 10;
#pragma omp parallel num_threads(c.num_threads)
  {
    int64_t pitch = c.width + c.taps_w - 1;
    std::vector<R> map((c.height + c.taps_h - 1) * pitch * L), other(c.height * c.width * L);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < (c.count + L - 1) / L; ++task) {
      int64_t first = task * L, lanes = std::min<int64_t>(L, c.count - first);
      pack_padded(c, first, lanes, map.data());
      pack(c.kernels, c.height, c.width, first, lanes, other.data());
      R* out = static_cast<R*>(c.out.data) + first;
      for (int64_t i = 0; i < c.taps_h; ++i)
        for (int64_t j = 0; j < c.taps_w; j += kColumns)
          with_constant<kColumns>(std::min<int64_t>(kColumns, c.taps_w - j), [&](auto width) {
            tap_row<R, width.value>(c, map.data() + (i * pitch + j) * L, other.data(),
                                    out + i * c.out.row + j * c.out.column, lanes);
          });
    }
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
