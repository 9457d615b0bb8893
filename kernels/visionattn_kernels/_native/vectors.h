// Vectors as wide as the machine's, in GCC's and clang's generic form, and arithmetic on them.
#pragma once

#include <cmath>
#include <cstdint>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

#define INLINE inline __attribute__((always_inline))
#define UNLIKELY(x) __builtin_expect(x, 0)

template <class R>
struct VectorOf {
  typedef R type __attribute__((vector_size(kVectorBytes), aligned(alignof(R)), may_alias));
  typedef std::conditional_t<sizeof(R) == 4, int32_t, int64_t> Int;
  typedef Int ints __attribute__((vector_size(kVectorBytes)));
};
template <class R>
using Vec = typename VectorOf<R>::type;
template <class R>
constexpr int kLanes = kVectorBytes / sizeof(R);

template <class R>
INLINE Vec<R> load(const R* p) {
  return *reinterpret_cast<const Vec<R>*>(p);
}
template <class R>
INLINE void store(R* p, Vec<R> x) {
  *reinterpret_cast<Vec<R>*>(p) = x;
}
template <class R>
INLINE Vec<R> fill(R x) {
  return x - Vec<R>{};
}

// Keeps a vector in a register: GCC would load it again for each product.
template <class V>
INLINE void keep(V& x) {
#if defined(__x86_64__)
  asm("" : "+v"(x));
#endif
}

// Memory whose vectors are within cache lines: those across two of them are loaded half as fast.
template <class R>
struct Aligned {
  using value_type = R;
  Aligned() = default;
  template <class S>
  Aligned(const Aligned<S>&) {}
  R* allocate(size_t n) { return static_cast<R*>(::operator new(n * sizeof(R), std::align_val_t(kVectorBytes))); }
  void deallocate(R* p, size_t) { ::operator delete(p, std::align_val_t(kVectorBytes)); }
  bool operator==(const Aligned&) const { return true; }
  bool operator!=(const Aligned&) const { return false; }
};
template <class R>
using Vectors = std::vector<R, Aligned<R>>;

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// exp(x) to within 2 ulp for x <= 0; 0 where it would be denormal. NaN stays NaN.
INLINE Vec<float> exponential(Vec<float> x) {
  using Ints = VectorOf<float>::ints;
  const Vec<float> zero = {};
  auto vanishes = x < -87.0f;
  x = vanishes ? zero : x;
  // x = n ln 2 + r, |r| <= ln 2 / 2; adding 1.5 * 2^23 rounds to an integer, which the low bits then hold.
  Vec<float> shifted = x * 1.44269504f + 12582912.0f;
  Vec<float> n = shifted - 12582912.0f;
  Vec<float> r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vec<float> y = r * (1.0f / 5040) + 1.0f / 720;
  y = y * r + 1.0f / 120;
  y = y * r + 1.0f / 24;
  y = y * r + 1.0f / 6;
  y = y * r + 0.5f;
  y = y * r + 1.0f;
  y = y * r + 1.0f;
  Ints exponent = ((Ints)shifted - 0x4b400000 + 127) << 23;
  return vanishes ? zero : y * (Vec<float>)exponent;
}
INLINE Vec<double> exponential(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

// x times the normal distribution function of x, to within 3e-7 |x| in float32.
INLINE Vec<float> gelu(Vec<float> x) {
  const Vec<float> zero = {}, end = fill(5.75f);  // the distribution is 0 or 1 beyond
  Vec<float> y = x < -end ? -end : x > end ? end : x;
  Vec<float> u = y * y;
  // erf(y / sqrt 2) / 2 is y times a rational function of y * y, here the minimax one.
  Vec<float> p = u * 2.1313781e-8f + 6.3882362e-6f;
  p = p * u + 1.8236038e-4f;
  p = p * u + 4.7589517e-3f;
  p = p * u + 3.5238978e-2f;
  p = p * u + 0.39894220f;
  Vec<float> q = u * 1.1581665e-6f + 7.7681885e-5f;
  q = q * u + 1.9614794e-3f;
  q = q * u + 2.9430756e-2f;
  q = q * u + 0.25499636f;
  q = q * u + 1.0f;
  return x * (x < -end ? zero : y * p / q + 0.5f);
}
INLINE Vec<double> gelu(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] *= 0.5 * std::erfc(-std::sqrt(0.5) * x[i]);
  return x;
}

// The first lanes of a vector, all if it has no more; zeros behind.
template <class R>
INLINE Vec<R> load_lanes(const R* p, int64_t lanes) {
  if (lanes >= kLanes<R>) return load(p);
  Vec<R> x = {};
  for (int64_t l = 0; l < lanes; ++l) x[l] = p[l];
  return x;
}
template <class R>
INLINE void store_lanes(R* to, Vec<R> x, int64_t lanes) {
  if (lanes >= kLanes<R>)
    store(to, x);
  else
    for (int64_t l = 0; l < lanes; ++l) to[l] = x[l];
}

// The lanes I... of a and b side by side.
template <class R, int... I>
INLINE Vec<R> pick(Vec<R> a, Vec<R> b, std::integer_sequence<int, I...>) {
#if __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, typename VectorOf<R>::ints{I...});
#endif
}
template <int S, int L, int... I>
constexpr auto exchanged(std::integer_sequence<int, I...>) {
  return std::integer_sequence<int, (I ^ S)...>{};
}
template <int S, int L, int... I>
constexpr auto low_half(std::integer_sequence<int, I...>) {
  return std::integer_sequence<int, (I & S ? L + I - S : I)...>{};
}
template <int S, int L, int... I>
constexpr auto high_half(std::integer_sequence<int, I...>) {
  return std::integer_sequence<int, (I & S ? L + I : I + S)...>{};
}
template <class R>
using Lanes = std::make_integer_sequence<int, kLanes<R>>;

// Folds the lanes of a vector with `f`, halves upon halves.
template <class R, int S = kLanes<R> / 2, class F>
INLINE R fold(Vec<R> x, F f) {
  x = f(x, pick<R>(x, x, exchanged<S, kLanes<R>>(Lanes<R>{})));
  if constexpr (S > 1)
    return fold<R, S / 2>(x, f);
  else
    return x[0];
}
template <class R>
INLINE Vec<R> larger(Vec<R> x, Vec<R> y) {
  return x > y ? x : y;
}
template <class R>
INLINE R sum_lanes(Vec<R> x) {
  return fold<R>(x, [](Vec<R> a, Vec<R> b) { return a + b; });
}

// Whether there is NaN among n numbers, a multiple of the lanes; infinities of both signs count as such.
template <class R>
INLINE bool has_nan(const R* x, int64_t n) {
  Vec<R> sum = {};
  for (int64_t i = 0; i < n; i += kLanes<R>) sum += load(x + i);
  R total = sum_lanes<R>(sum);
  return total != total;
}

// Exchanges the off-diagonal squares of size S in a square block of lanes, then those of the larger sizes.
template <class R, int S = 1>
INLINE void transpose_lanes(Vec<R>* x) {
  constexpr int L = kLanes<R>;
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) {
    if (i & S) continue;
    Vec<R> a = x[i], b = x[i + S];
    x[i] = pick<R>(a, b, low_half<S, L>(Lanes<R>{}));
    x[i + S] = pick<R>(a, b, high_half<S, L>(Lanes<R>{}));
  }
  if constexpr (2 * S < L) transpose_lanes<R, 2 * S>(x);
}

// to[j][i] = from[i][j] for one square block of lanes.
template <class R>
INLINE void transpose_block(const R* from, int64_t from_pitch, R* to, int64_t to_pitch) {
  constexpr int L = kLanes<R>;
  Vec<R> x[L];
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) x[i] = load(from + i * from_pitch);
  transpose_lanes<R>(x);
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) store(to + i * to_pitch, x[i]);
}

}  // namespace
