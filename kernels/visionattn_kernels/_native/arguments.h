// The arguments of a call, which the ctypes structures of arguments.py mirror; tiles of an axis; access to maps.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "vectors.h"

namespace {

enum Dtype : int64_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

struct Axis {
  int64_t num_groups, query_step, tile;
  const int32_t *keys, *queries, *first_query, *index, *start, *stop;
};

// Neighbouring queries of one dilation group on one axis, and the keys that any of them sees.
struct Tile {
  int64_t group, first, count, key, num_keys;
};

struct Cut {
  const Axis& axis;
  std::vector<Tile> tiles;

  explicit Cut(const Axis& axis) : axis(axis) {
    for (int64_t g = 0; g < axis.num_groups; ++g)
      for (int64_t n = 0; n < axis.queries[g]; n += axis.tile) {
        int64_t count = std::min<int64_t>(axis.tile, axis.queries[g] - n);
        int64_t first = axis.first_query[g] + n * axis.query_step, last = first + (count - 1) * axis.query_step;
        tiles.push_back({g, first, count, axis.start[first], axis.stop[last] - axis.start[first]});
      }
  }
};

// A heads-last map; strides in elements, the last dimension contiguous.
struct Map {
  void* data;
  int64_t batch, row, column, head;
};

// Plain tensors below are contiguous and of the accumulation type; absent ones are null.
struct Arguments {
  int64_t dtype, batch, heads, head_dim, v_dim, num_extra, num_parts, num_threads;
  int64_t queries_h, queries_w, keys_h, keys_w, kernel_h, kernel_w;
  double scale;
  Axis rows, columns;
  Map q, k, v, extra_k, extra_v, out, grad_out, r;
  const void *rpb, *rel_h, *rel_w;
  void* lse;
  const void* grad_lse;
  void *grad_q, *grad_k, *grad_v, *grad_rpb, *grad_rel_h, *grad_rel_w, *grad_extra_k, *grad_extra_v, *grad_r;
};

INLINE float widen_bfloat16(uint16_t x) {
  uint32_t bits = uint32_t(x) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
INLINE uint16_t narrow_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return x == x ? uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) : uint16_t(0x7fc0);
}

// `n` values at element `offset` of a tensor of type `dtype`, times `factor`; zeros up to `padded`.
template <class R>
void read(const void* data, int64_t dtype, int64_t offset, int64_t n, int64_t padded, R* to, R factor = 1) {
  if (dtype == kBFloat16) {
    auto* from = static_cast<const uint16_t*>(data) + offset;
    for (int64_t i = 0; i < n; ++i) to[i] = R(widen_bfloat16(from[i])) * factor;
#ifdef __FLT16_MAX__
  } else if (dtype == kFloat16) {
    auto* from = static_cast<const _Float16*>(data) + offset;
    for (int64_t i = 0; i < n; ++i) to[i] = R(from[i]) * factor;
#endif
  } else {
    auto* from = static_cast<const R*>(data) + offset;
    for (int64_t i = 0; i < n; ++i) to[i] = from[i] * factor;
  }
  for (int64_t i = n; i < padded; ++i) to[i] = 0;
}

// Asks for what `read` will want; a wrong address does no harm. Rows of a head lie too far apart for the hardware to guess.
template <int kForWriting = 0>
INLINE void prefetch(const void* data, int64_t dtype, int64_t offset, int64_t n) {
  int64_t size = dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2;
  auto* from = static_cast<const char*>(data) + offset * size;
  for (int64_t i = 0; i < n * size; i += 64) __builtin_prefetch(from + i, kForWriting);
}

template <class R>
void write(void* data, int64_t dtype, int64_t offset, int64_t n, const R* from, R factor) {
  if (dtype == kBFloat16) {
    auto* to = static_cast<uint16_t*>(data) + offset;
    for (int64_t i = 0; i < n; ++i) to[i] = narrow_bfloat16(float(from[i] * factor));
#ifdef __FLT16_MAX__
  } else if (dtype == kFloat16) {
    auto* to = static_cast<_Float16*>(data) + offset;
    for (int64_t i = 0; i < n; ++i) to[i] = _Float16(from[i] * factor);
#endif
  } else {
    auto* to = static_cast<R*>(data) + offset;
    for (int64_t i = 0; i < n; ++i) to[i] = from[i] * factor;
  }
}

}  // namespace

extern "C" {

// The version of the interface and the bytes of its structure, which arguments.py compares with its own.
void visionattn_abi(int64_t* abi) { abi[0] = 1, abi[1] = sizeof(Arguments); }

int visionattn_has_float16() {
#ifdef __FLT16_MAX__
  return 1;
#else
  return 0;
#endif
}

}  // extern "C"
