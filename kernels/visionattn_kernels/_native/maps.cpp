// Maps as matrices, row by row: 1x1 convolutions, moments of columns, and columns standardized by them.
//
// A convolution sums over all its maps while the sums of a tile stay in registers, and activates or multiplies them
// there: what it takes and what it makes cross the memory once.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "products.h"
#include "vectors.h"

namespace {

// Mirrored by maps.py.
struct Matrix {
  void* data;
  int64_t pitch, columns;  // in numbers
};

enum Ending : int64_t { kSum, kGelu, kProduct };

struct Convolution {
  int64_t dtype, rows, num_maps, ending, num_threads;
  Matrix out;
  const Matrix *maps, *weights;  // weights have a row per sum: per column of `out`, twice as many with kProduct
  const void* bias;
};

// Sums that have room in registers: rows of a tile, and vectors of columns.
constexpr int kTileRows = kVectorBytes == 64 ? 8 : 4, kTileVectors = 3;
// Rows that a thread takes at a time: beside a panel of weights, they fit in a second-level cache.
constexpr int64_t kBlockRows = 48;

// to[k][l] = from[l][k] for `number` rows, one vector of columns at most; zeros in further lanes.
template <class R>
void pack_weight(const R* from, int64_t from_pitch, int64_t number, int64_t inner, R* to, int64_t to_pitch) {
  constexpr int L = kLanes<R>;
  int64_t k = 0;
  if (number >= L)
    for (; k + L <= inner; k += L) transpose_block(from + k, from_pitch, to + k * to_pitch, to_pitch);
  for (; k < inner; ++k)
    for (int64_t l = 0; l < L; ++l) to[k * to_pitch + l] = l < number ? from[l * from_pitch + k] : R(0);
}

// M rows and N vectors of sums, from row `first`; `columns` of the output.
template <class R, int M, int N>
void convolve_tile(const Convolution& c, int64_t first, const R* panel, R* out, int64_t columns) {
  constexpr int L = kLanes<R>;
  Vec<R> sum[M][N];
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 3
    for (int j = 0; j < N; ++j) {
      __builtin_prefetch(out + i * c.out.pitch + j * L, 1);
      sum[i][j] = load(panel + j * L);
    }
  panel += N * L;
  for (int64_t m = 0; m < c.num_maps; ++m) {
    const Matrix& map = c.maps[m];
    const R* x = static_cast<const R*>(map.data) + first * map.pitch;
    // What comes next: the same rows of the next map, or the next rows of the first.
    bool last = m + 1 == c.num_maps;
    const Matrix& next = c.maps[last ? 0 : m + 1];
    const R* soon = static_cast<const R*>(next.data) + (first + (last ? M : 0)) * next.pitch;
    for (int64_t k = 0; k < map.columns; ++k, panel += N * L) {
      __builtin_prefetch(soon + k * M);
      Vec<R> row[N];
#pragma GCC unroll 3
      for (int j = 0; j < N; ++j) row[j] = load(panel + j * L);
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i)
#pragma GCC unroll 3
        for (int j = 0; j < N; ++j) sum[i][j] += x[i * map.pitch + k] * row[j];
    }
  }
  if (c.ending == kProduct) {
    if constexpr (N == 2)
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i) store_lanes(out + i * c.out.pitch, sum[i][0] * sum[i][1], columns);
    return;
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 3
    for (int j = 0; j < N; ++j)
      store_lanes(out + i * c.out.pitch + j * L, c.ending == kGelu ? gelu(sum[i][j]) : sum[i][j], columns - j * L);
}

template <class R>
void convolve(const Convolution& c) {
  constexpr int64_t L = kLanes<R>;
  // Columns of the output that a panel makes, and from one vector of its sums to the next.
  const int64_t width = c.ending == kProduct ? L : kTileVectors * L, step = c.ending == kProduct ? c.out.columns : L;
  int64_t inner = 0, panels = (c.out.columns + width - 1) / width;
  for (int64_t m = 0; m < c.num_maps; ++m) inner += c.weights[m].columns;
  // A panel is a row of biases above the transposed weights.
  const int64_t size = (inner + 1) * kTileVectors * L;
  Vectors<R> packed(panels * size);
#pragma omp parallel num_threads(c.num_threads)
  {
    // Calls `f(vectors, first column, number of columns, packed)`.
    auto with_panel = [&](int64_t panel, auto f) {
      int64_t column = panel * width, columns = std::min(width, c.out.columns - column);
      with_constant<kTileVectors>(c.ending == kProduct ? 2 : (columns + L - 1) / L,
                                  [&](auto vectors) { f(vectors, column, columns, packed.data() + panel * size); });
    };
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < panels; ++panel)
      with_panel(panel, [&](auto vectors, int64_t column, int64_t columns, R* to) {
        for (int64_t j = 0; j < vectors; ++j) {
          int64_t first = column + j * step, number = c.ending == kProduct ? columns : columns - j * L;
          R* vector = to + j * L;
          store(vector, load_lanes(static_cast<const R*>(c.bias) + first, number));
          vector += vectors * L;
          for (int64_t m = 0; m < c.num_maps; ++m) {
            const Matrix& weight = c.weights[m];
            const R* from = static_cast<const R*>(weight.data) + first * weight.pitch;
            pack_weight(from, weight.pitch, number, weight.columns, vector, vectors * L);
            vector += weight.columns * vectors * L;
          }
        }
      });
#pragma omp for schedule(static)
    for (int64_t block = 0; block < (c.rows + kBlockRows - 1) / kBlockRows; ++block)
      for (int64_t panel = 0; panel < panels; ++panel)
        with_panel(panel, [&](auto vectors, int64_t column, int64_t columns, const R* from) {
          auto tile = [&](auto height, int64_t row) {
            R* out = static_cast<R*>(c.out.data) + row * c.out.pitch + column;
            convolve_tile<R, height.value, vectors.value>(c, row, from, out, columns);
          };
          int64_t row = block * kBlockRows, end = std::min(row + kBlockRows, c.rows);
          for (; row + kTileRows <= end; row += kTileRows) tile(std::integral_constant<int, kTileRows>{}, row);
          for (; row < end; ++row) tile(std::integral_constant<int, 1>{}, row);
        });
  }
}

struct Moments {
  int64_t dtype, rows, num_threads;
  Matrix map, out;  // the rows of `out` are means and variances
};

// Sums of differences from the first row, and of their squares: small numbers, unless that row is an odd one.
template <class R>
void add_differences(const Moments& m, int64_t row, int64_t end, R* __restrict sum, R* __restrict square) {
  const R* first = static_cast<const R*>(m.map.data);
  const int64_t columns = m.map.columns, pitch = m.map.pitch;
  std::fill_n(sum, columns, R(0));
  std::fill_n(square, columns, R(0));
  for (; row + 4 <= end; row += 4) {
    const R* x = first + row * pitch;
    for (int64_t c = 0; c < columns; ++c) {
      R y[4];
      for (int i = 0; i < 4; ++i) y[i] = x[i * pitch + c] - first[c];
      sum[c] += (y[0] + y[1]) + (y[2] + y[3]);
      square[c] += (y[0] * y[0] + y[1] * y[1]) + (y[2] * y[2] + y[3] * y[3]);
    }
  }
  for (; row < end; ++row)
    for (int64_t c = 0; c < columns; ++c) {
      R y = first[row * pitch + c] - first[c];
      sum[c] += y;
      square[c] += y * y;
    }
}

template <class R>
void take_moments(const Moments& m) {
  const int64_t columns = m.map.columns, parts = m.num_threads;
  std::vector<double> total(parts * 2 * columns);
#pragma omp parallel for schedule(static) num_threads(m.num_threads)
  for (int64_t part = 0; part < parts; ++part) {
    // Few rows at a time, so that single precision is enough for their sums.
    Vectors<R> sums(2 * columns);
    int64_t row = m.rows * part / parts, last = m.rows * (part + 1) / parts;
    for (; row < last; row += kBlockRows) {
      add_differences(m, row, std::min(row + kBlockRows, last), sums.data(), sums.data() + columns);
      for (int64_t c = 0; c < 2 * columns; ++c) total[part * 2 * columns + c] += sums[c];
    }
  }
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t c = 0; c < 2 * columns; ++c) total[c] += total[part * 2 * columns + c];
  R *mean = static_cast<R*>(m.out.data), *variance = mean + m.out.pitch;
  for (int64_t c = 0; c < columns; ++c) {
    double shift = total[c] / m.rows;
    mean[c] = static_cast<const R*>(m.map.data)[c] + shift;
    variance[c] = std::max(total[columns + c] / m.rows - shift * shift, 0.0);
  }
}

struct Standardization {
  int64_t dtype, rows, activates, num_threads;
  Matrix map, out;
  const void *mean, *scale, *bias;  // per column, per column and per row; biases may be missing
};

template <class R>
void standardize(const Standardization& s) {
  constexpr int L = kLanes<R>;
  const R *mean = static_cast<const R*>(s.mean), *scale = static_cast<const R*>(s.scale);
#pragma omp parallel for schedule(static) num_threads(s.num_threads)
  for (int64_t row = 0; row < s.rows; ++row) {
    const R* x = static_cast<const R*>(s.map.data) + row * s.map.pitch;
    R* to = static_cast<R*>(s.out.data) + row * s.out.pitch;
    R bias = s.bias ? static_cast<const R*>(s.bias)[row] : R(0);
    auto at = [&](int64_t c, int64_t lanes) {
      Vec<R> y = (load_lanes(x + c, lanes) - load_lanes(mean + c, lanes)) * load_lanes(scale + c, lanes);
      store_lanes(to + c, (s.activates ? gelu(y) : y) + bias, lanes);
    };
    int64_t c = 0;
#pragma GCC unroll 4
    for (; c + L <= s.map.columns; c += L) at(c, L);
    if (c < s.map.columns) at(c, s.map.columns - c);
  }
}

}  // namespace

extern "C" {

void visionattn_convolve_maps(const Convolution* c) { c->dtype ? convolve<double>(*c) : convolve<float>(*c); }

void visionattn_column_moments(const Moments* m) { m->dtype ? take_moments<double>(*m) : take_moments<float>(*m); }

void visionattn_standardize_columns(const Standardization* s) {
  s->dtype ? standardize<double>(*s) : standardize<float>(*s);
}

}  // extern "C"
