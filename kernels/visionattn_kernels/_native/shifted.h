// Maps packed line by line, channel by channel in each row, and sums of products of such maps, one of them shifted.
#pragma once

#include <algorithm>
#include <cstdint>

#include "arguments.h"
#include "products.h"
#include "vectors.h"

namespace {

// The places of a map, vector by vector within a row.
template <class R>
struct Grid {
  static constexpr int64_t L = kLanes<R>;
  int64_t height, width;

  int64_t vectors() const { return (width + L - 1) / L; }
  // Zeros end a line, and precede the next one: a vector may reach beyond the map on either side.
  int64_t pitch() const { return (vectors() + 1) * L; }
};

// Some lines for each row of a map.
template <class R>
struct Lines {
  static constexpr int64_t L = kLanes<R>;
  Grid<R> grid;
  int64_t number;
  R* data;

  int64_t row_size() const { return number * grid.pitch() + L; }
  R* at(int64_t row) const { return data + row * row_size() + L; }

  void clear_margins(int64_t row) const {
    for (int64_t i = 0; i <= number; ++i) store(at(row) + i * grid.pitch() - L, Vec<R>{});
  }
};

template <class R>
constexpr Dtype kPlain = sizeof(R) == 4 ? kFloat32 : kFloat64;

// A vector of `n` numbers of a tensor of type `dtype` times `factor`, and the way back.
template <class R>
INLINE Vec<R> read_vector(const void* data, int64_t dtype, int64_t offset, int64_t n, R factor) {
  constexpr int64_t L = kLanes<R>;
  if (dtype == kPlain<R> && n >= L) return load(static_cast<const R*>(data) + offset) * factor;
  alignas(kVectorBytes) R numbers[L];
  read(data, dtype, offset, std::min(n, L), L, numbers, factor);
  return load(numbers);
}
template <class R>
INLINE void write_vector(void* data, int64_t dtype, int64_t offset, int64_t n, Vec<R> x, R factor) {
  constexpr int64_t L = kLanes<R>;
  if (dtype == kPlain<R> && n >= L) return store(static_cast<R*>(data) + offset, x * factor);
  alignas(kVectorBytes) R numbers[L];
  store(numbers, x);
  write(data, dtype, offset, std::min(n, L), numbers, factor);
}

// Packs the channels of one row of a heads-last map, from element `offset`, times `factor`.
template <class R>
void pack_row(const Map& map, int64_t dtype, int64_t offset, int64_t channels, R factor, const Lines<R>& lines,
              int64_t row) {
  constexpr int64_t L = kLanes<R>;
  const Grid<R>& grid = lines.grid;
  lines.clear_margins(row);
  for (int64_t x = 0; x < grid.width; x += L)
    for (int64_t c = 0; c < channels; c += L) {
      Vec<R> block[L] = {};
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l)
        if (x + l < grid.width)
          block[l] = read_vector(map.data, dtype, offset + (x + l) * map.column + c, channels - c, factor);
      transpose_lanes<R>(block);
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) store(lines.at(row) + (c + l) * grid.pitch() + x, block[l]);
    }
}

// to[i] = sum over channels of a[c] * b[i][c]; each of these is a vector.
template <class R, int N>
INLINE void multiply_lines(int64_t channels, const R* a, const R* const* b, int64_t pitch, R* const* to) {
  const R* p[N];
  Vec<R> sum[N] = {};
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) p[i] = b[i];
  for (int64_t c = 0; c < channels * pitch; c += pitch) {
    Vec<R> x = load(a + c);
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) sum[i] += x * load(p[i] + c);
  }
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) store(to[i], sum[i]);
}

template <class R>
void multiply_lines(int64_t channels, const R* a, const R* const* b, int64_t pitch, int64_t number, R* const* to) {
  constexpr int kMost = kVectorBytes == 64 ? 12 : 8;
  int64_t parts = (number + kMost - 1) / kMost;
  for (int64_t part = 0; part < parts; ++part) {
    int64_t first = number * part / parts;
    with_constant<kMost>(number * (part + 1) / parts - first, [&](auto n) {
      multiply_lines<R, n.value>(channels, a, b + first, pitch, to + first);
    });
  }
}

// Sums maps weighted by a vector each, and writes the channels of the first `lanes` places to a heads-last map.
template <class R>
void write_sums(int64_t number, const R* const* weights, const R* const* maps, int64_t pitch, int64_t channels,
                R factor, const Map& to, int64_t dtype, int64_t offset, int64_t lanes) {
  constexpr int64_t L = kLanes<R>;
  for (int64_t c = 0; c < channels; c += L) {
    Vec<R> sum[L] = {};
    for (int64_t i = 0; i < number; ++i) {
      Vec<R> weight = load(weights[i]);
      const R* map = maps[i] + c * pitch;
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) sum[l] += weight * load(map + l * pitch);
    }
    transpose_lanes<R>(sum);
    for (int64_t l = 0; l < lanes; ++l)
      write_vector(to.data, dtype, offset + l * to.column + c, channels - c, sum[l], factor);
  }
}

}  // namespace
