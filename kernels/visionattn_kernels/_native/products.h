// Products of small matrices, in blocks of sums that stay in registers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "vectors.h"

namespace {

// Calls `f` with a compile-time integer in [1, Most] equal to `n`.
template <int Most, class F>
INLINE void with_constant(int64_t n, F f) {
  if constexpr (Most > 1) {
    if (n < Most) return with_constant<Most - 1>(n, f);
  }
  f(std::integral_constant<int, Most>{});
}

// c[M, N] = a[M, K] b[K, N]; N in whole vectors; a and c row by row with pitches.
template <class R, int M, int N>
INLINE void product_block(const R* a, int64_t a_pitch, const R* b, int64_t b_pitch, int64_t K, R* c, int64_t c_pitch) {
  constexpr int L = kLanes<R>;
  Vec<R> sum[M][N] = {};
  for (int64_t k = 0; k < K; ++k) {
    Vec<R> row[N];
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) row[j] = load(b + k * b_pitch + j * L);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      R x = a[i * a_pitch + k];
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) sum[i][j] += x * row[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) store(c + i * c_pitch + j * L, sum[i][j]);
}

template <class R>
void product(
    int64_t M, int64_t N, int64_t K, const R* a, int64_t a_pitch, const R* b, int64_t b_pitch, R* c, int64_t c_pitch) {
  constexpr int L = kLanes<R>;
  int64_t vectors = (N + L - 1) / L;
  // Blocks of nearly equal size, at most `tallest` by `widest` vectors.
  auto in_blocks = [&](auto tallest, auto widest) {
    auto even = [](int64_t n, int64_t most) { return (n + (n + most - 1) / most - 1) / ((n + most - 1) / most); };
    int64_t width = even(vectors, widest.value), height = even(M, tallest.value);
    for (int64_t j = 0; j < vectors; j += width)
      with_constant<widest.value>(std::min(width, vectors - j), [&](auto n) {
        for (int64_t i = 0; i < M; i += height)
          with_constant<tallest.value>(std::min(height, M - i), [&](auto m) {
            product_block<R, m.value, n.value>(
                a + i * a_pitch, a_pitch, b + j * L, b_pitch, K, c + i * c_pitch + j * L, c_pitch);
          });
      });
  };
  // 32 (16) vector registers hold 24 (12) sums beside the operands.
  constexpr bool many = kVectorBytes == 64;
  if (vectors <= 3 && M > 4)
    in_blocks(std::integral_constant<int, many ? 8 : 4>{}, std::integral_constant<int, 3>{});
  else
    in_blocks(std::integral_constant<int, many ? 4 : 2>{}, std::integral_constant<int, 6>{});
}

// c[N, C] += a[M, N]^T b[M, C]; C in whole vectors.
template <class R>
void add_outer(
    int64_t M, int64_t N, int64_t C, const R* a, int64_t a_pitch, const R* b, int64_t b_pitch, R* c, int64_t c_pitch) {
  constexpr int L = kLanes<R>, kRows = 4;
  int64_t vectors = C / L;
  for (int64_t j = 0; j < vectors; j += 4)
    with_constant<4>(std::min<int64_t>(4, vectors - j), [&](auto width) {
      constexpr int W = width.value;
      auto block = [&](int64_t n, auto rows) {
        constexpr int Rows = rows.value;
        R* to = c + n * c_pitch + j * L;
        Vec<R> sum[Rows][W];
#pragma GCC unroll 4
        for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
          for (int w = 0; w < W; ++w) sum[i][w] = load(to + i * c_pitch + w * L);
        for (int64_t m = 0; m < M; ++m) {
          Vec<R> row[W];
#pragma GCC unroll 4
          for (int w = 0; w < W; ++w) row[w] = load(b + m * b_pitch + (j + w) * L);
#pragma GCC unroll 4
          for (int i = 0; i < Rows; ++i) {
            R x = a[m * a_pitch + n + i];
#pragma GCC unroll 4
            for (int w = 0; w < W; ++w) sum[i][w] += x * row[w];
          }
        }
#pragma GCC unroll 4
        for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
          for (int w = 0; w < W; ++w) store(to + i * c_pitch + w * L, sum[i][w]);
      };
      int64_t n = 0;
      for (; n + kRows <= N; n += kRows) block(n, std::integral_constant<int, kRows>{});
      for (; n < N; ++n) block(n, std::integral_constant<int, 1>{});
    });
}

}  // namespace
