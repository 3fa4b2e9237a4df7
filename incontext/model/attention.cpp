// Attention for prediction on a CPU with AVX-512, with or without the decomposed relative position bias.
//
// A block of queries of one head at a time: scores by oneDNN's small products, then bias and softmax in float32 while
// they are in cache, then the product with the values. Nothing of the size (queries, keys) is ever in memory.
// Compiled and loaded by compiled.py; attention.py has what it must agree with.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

namespace {

using at::BFloat16;
using at::Tensor;
using at::native::cpublas::brgemm;

constexpr int64_t kLanes = 16;  // numbers that one instruction computes
constexpr int64_t kPanel = 64;  // keys that are multiplied at once
constexpr int64_t kBlock = 56;  // queries whose scores are in cache at once: 360 KB beside 1568 keys

template <typename T>
constexpr int64_t kPair = std::is_same_v<T, float> ? 1 : 2;  // rows that oneDNN wants side by side in a right matrix

inline int64_t round_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

template <typename To, typename From>
inline To bits_of(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To bits;
  std::memcpy(&bits, &value, sizeof(To));
  return bits;
}

// e^x for x <= 0, within a few units in the last place; e^-87 below that. By Cody and Waite's reduction and the
// coefficients of Cephes' expf.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23, beside which only whole numbers have room
  const float power = shifted - 12582912.0f;
  const float rest = (x - power * 0.693359375f) + power * 2.12194440e-4f;
  float sum = 1.9875691500e-4f;
  sum = sum * rest + 1.3981999507e-3f;
  sum = sum * rest + 8.3334519073e-3f;
  sum = sum * rest + 4.1665795894e-2f;
  sum = sum * rest + 1.6666665459e-1f;
  sum = sum * rest + 5.0000001201e-1f;
  sum = sum * rest * rest + rest + 1.0f;
  return bits_of<float>(bits_of<int32_t>(sum) + static_cast<int32_t>(bits_of<uint32_t>(shifted) << 23));
}

inline void store(float value, float* to) { *to = value; }

inline void store(float value, BFloat16* to) {  // to the nearest, ties to even; never given NaN or infinity
  const uint32_t bits = bits_of<uint32_t>(value);
  const uint16_t rounded = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  std::memcpy(to, &rounded, sizeof(rounded));
}

// (length, width) to panels (width, kPanel), the last one filled up with zeros.
template <typename T>
void pack_keys(const T* key, int64_t stride, int64_t length, int64_t width, T* packed) {
  for (int64_t start = 0; start < length; start += kPanel, packed += width * kPanel) {
    const int64_t count = std::min(kPanel, length - start);
    if (count < kPanel) std::fill_n(packed, width * kPanel, T(0));
    for (int64_t k = 0; k < count; ++k) {
      const T* from = key + (start + k) * stride;
      for (int64_t d = 0; d < width; d += kPair<T>)
        std::memcpy(packed + d * kPanel + k * kPair<T>, from + d, kPair<T> * sizeof(T));
    }
  }
}

// (length, width) to one panel (length, width), filled up to whole pairs of rows.
template <typename T>
void pack_values(const T* value, int64_t stride, int64_t length, int64_t width, T* packed) {
  for (int64_t k = 0; k < length; k += kPair<T>, packed += kPair<T> * width) {
    const T* even = value + k * stride;
    if constexpr (kPair<T> == 1) {
      std::copy_n(even, width, packed);
    } else {
      const T* odd = even + stride;
      const bool paired = k + 1 < length;
#pragma omp simd
      for (int64_t d = 0; d < width; ++d) {
        packed[2 * d] = even[d];
        packed[2 * d + 1] = paired ? odd[d] : T(0);
      }
    }
  }
}

// q . R[i - j] for keys j and a query i is a stretch of q's products with the rows of R in reverse.
struct Table {
  const float* reversed = nullptr;  // (width, size), the middle one for i = j
  int64_t size = 0;
};

struct Positions {
  Table rows, columns;
  int64_t key_rows = 0, key_columns = 0;     // the keys' grid; the queries have as many columns
  int64_t query_start = 0, key_start = 0;  // the first row of either on the canvas
};

template <typename T>
struct Buffers {
  std::vector<T> keys, values, shares;
  std::vector<float> scores, biased, mixed, queries, by_row, by_column, columns;
};

template <typename T>
class Head {
 public:
  Head(int64_t keys, int64_t width, const Positions& at, Buffers<T>& own)
      : keys_(keys), width_(width), line_(round_up(keys, kPanel)), at_(at), own_(own) {
    own.keys.resize(line_ * width);
    own.values.resize(line_ * width);
    own.shares.resize(kBlock * line_);
    own.scores.resize(kBlock * line_ + kLanes);
    own.biased.resize(line_ + kLanes);
    own.mixed.resize(kBlock * width);
    if (!biased()) return;
    own.queries.resize(kBlock * width);
    own.by_row.resize(kBlock * at.rows.size);
    own.by_column.resize(kBlock * at.columns.size);
    own.columns.resize(at.key_columns + kLanes);
  }

  void take(const T* key, int64_t key_stride, const T* value, int64_t value_stride) {
    pack_keys(key, key_stride, keys_, width_, own_.keys.data());
    pack_values(value, value_stride, keys_, width_, own_.values.data());
  }

  // Queries start .. start + count of the head; the sums of their scores' exponentials as logarithms.
  void attend(const T* query, int64_t stride, int64_t start, int64_t count, T* output, int64_t output_stride,
              float* logsumexp) {
    query += start * stride;
    for (int64_t panel = 0; panel < line_; panel += kPanel)
      brgemm(count, kPanel, width_, stride, kPanel, line_, false, query, own_.keys.data() + panel * width_,
             own_.scores.data() + panel, kPair<T> > 1);
    const int64_t last_row = biased() ? place(query, stride, start, count) : 0;
    float inverse[kBlock];
    for (int64_t q = 0; q < count; ++q) {
      add_bias(q, start + q, last_row);
      inverse[q] = 1.0f / soften(q, logsumexp + start + q);
    }
    brgemm(count, width_, round_up(keys_, kPair<T>), line_, width_, width_, false, own_.shares.data(),
           own_.values.data(), own_.mixed.data(), kPair<T> > 1);
    for (int64_t q = 0; q < count; ++q) {
      T* out = output + (start + q) * output_stride;
      const float* mixed = own_.mixed.data() + q * width_;
#pragma omp simd
      for (int64_t d = 0; d < width_; ++d) store(mixed[d] * inverse[q], out + d);
    }
  }

 private:
  bool biased() const { return at_.rows.reversed != nullptr; }

  // Multiplies a block of queries with what their positions call for; returns the last row of the grid among them.
  int64_t place(const T* query, int64_t stride, int64_t start, int64_t count) {
    float* plain = own_.queries.data();
    for (int64_t q = 0; q < count; ++q)
#pragma omp simd
      for (int64_t d = 0; d < width_; ++d) plain[q * width_ + d] = static_cast<float>(query[q * stride + d]);
    const int64_t first = start / at_.key_columns, last = (start + count - 1) / at_.key_columns;
    const int64_t offset = at_.rows.size / 2 - (at_.query_start + last) + at_.key_start;
    brgemm(count, at_.key_rows + last - first, width_, width_, at_.rows.size, at_.rows.size, false, plain,
           at_.rows.reversed + offset, own_.by_row.data(), false);
    brgemm(count, at_.columns.size, width_, width_, at_.columns.size, at_.columns.size, false, plain,
           at_.columns.reversed, own_.by_column.data(), false);
    return last;
  }

  // From the scores of query q of the block, which is token `token` of its half, to biased ones.
  void add_bias(int64_t q, int64_t token, int64_t last_row) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(width_));
    const float* score = own_.scores.data() + q * line_;
    float* biased_score = own_.biased.data();
    if (!biased()) {
#pragma omp simd
      for (int64_t k = 0; k < keys_; ++k) biased_score[k] = score[k] * scale;
      return;
    }
    const int64_t width = at_.key_columns;
    const float* row = own_.by_row.data() + q * at_.rows.size + last_row - token / width;
    float* column = own_.columns.data();
    std::copy_n(own_.by_column.data() + q * at_.columns.size + at_.columns.size / 2 - token % width, width, column);
    // Whole instructions throughout: what they compute past the end of a row, the next row overwrites.
    for (int64_t i = 0; i < at_.key_rows; ++i)
      for (int64_t j = 0; j < width; j += kLanes)
#pragma omp simd
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          const int64_t k = i * width + j + lane;
          biased_score[k] = score[k] * scale + (row[i] + column[j + lane]);
        }
  }

  // From biased scores to shares before they are divided by their sum, which is returned.
  float soften(int64_t q, float* logsumexp) {
    const float* score = own_.biased.data();
    T* share = own_.shares.data() + q * line_;
    float peak = -std::numeric_limits<float>::infinity(), sum = 0.0f;
#pragma omp simd reduction(max : peak)
    for (int64_t k = 0; k < keys_; ++k) peak = score[k] > peak ? score[k] : peak;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < keys_; ++k) {
      const float each = exponential(score[k] - peak);
      sum += each;
      store(each, share + k);
    }
    if (keys_ % kPair<T>) share[keys_] = T(0);
    *logsumexp = peak + std::log(sum);
    return sum;
  }

  const int64_t keys_, width_, line_;
  const Positions& at_;
  Buffers<T>& own_;
};

template <typename T>
void attend_all(const Tensor& query, const Tensor& key, const Tensor& value, const Positions& at, T* output,
                float* logsumexp) {
  const int64_t heads = query.size(1), length = query.size(2), width = query.size(3);
  const int64_t sets = key.size(0) / query.size(0), whole = key.size(0) * heads;
  const T *queries = query.const_data_ptr<T>(), *keys = key.const_data_ptr<T>(), *values = value.const_data_ptr<T>();
  // Each part of a head packs its keys, so heads are parted only as far as it takes to keep the threads at work.
  const int64_t blocks = (length + kBlock - 1) / kBlock;
  const int64_t parts = std::clamp<int64_t>((4 * at::get_num_threads() + whole - 1) / whole, 1, blocks);
  at::parallel_for(0, whole * parts, 1, [&](int64_t begin, int64_t end) {
    thread_local Buffers<T> buffers;
    Head<T> head(key.size(2), width, at, buffers);
    int64_t taken = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t index = task / parts, part = task % parts, b = index / heads, a = index % heads;
      if (taken != index)
        head.take(keys + b * key.stride(0) + a * key.stride(1), key.stride(2),
                  values + b * value.stride(0) + a * value.stride(1), value.stride(2));
      taken = index;
      for (int64_t block = blocks * part / parts; block < blocks * (part + 1) / parts; ++block) {
        const int64_t start = block * kBlock;
        head.attend(queries + b / sets * query.stride(0) + a * query.stride(1), query.stride(2), start,
                    std::min(kBlock, length - start), output + (b * length * heads + a) * width, heads * width,
                    logsumexp + index * length);
      }
    }
    at::native::cpublas::brgemm_release(kPair<T> > 1);
  });
}

// query (b, a, lq, d), key and value (b n, a, lk, d), float32 or bfloat16, each row contiguous; the tables (d, 4h - 1)
// and (d, 2w - 1) of the relative positions in reverse, float32 and contiguous, or none; the first rows of queries and
// keys on the canvas. Returns (b n, a, lq, d), whose heads join without a copy, and the scores' log-sum-exp
// (b n, a, lq) in float32.
std::tuple<Tensor, Tensor> attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                     const std::optional<Tensor>& rows, const std::optional<Tensor>& columns,
                                     int64_t query_start, int64_t key_start) {
  const auto type = query.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16, "expected float32 or bfloat16, got ", type);
  TORCH_CHECK(query.dim() == 4 && key.dim() == 4 && key.sizes() == value.sizes(), "expected (b, a, l, d) three times");
  TORCH_CHECK(key.scalar_type() == type && value.scalar_type() == type, "expected query, key and value of one type");
  TORCH_CHECK(query.stride(3) == 1 && key.stride(3) == 1 && value.stride(3) == 1, "expected contiguous rows");
  const int64_t batch = query.size(0), heads = query.size(1), length = query.size(2), width = query.size(3);
  TORCH_CHECK(batch > 0 && key.size(0) % batch == 0 && key.size(1) == heads && key.size(3) == width && key.size(2) > 0,
              "keys ", key.sizes(), " do not fit queries ", query.sizes());
  TORCH_CHECK(type == at::kFloat || width % 2 == 0, "expected an even width in bfloat16, got ", width);
  TORCH_CHECK(rows.has_value() == columns.has_value(), "expected both tables or none");
  Positions at;
  if (rows.has_value()) {
    for (const Tensor* table : {&*rows, &*columns})
      TORCH_CHECK(table->scalar_type() == at::kFloat && table->dim() == 2 && table->is_contiguous() &&
                      table->size(0) == width && table->size(1) % 2 == 1, "expected a contiguous table (d, odd)");
    at.rows = {rows->const_data_ptr<float>(), rows->size(1)};
    at.columns = {columns->const_data_ptr<float>(), columns->size(1)};
    at.key_columns = (columns->size(1) + 1) / 2;
    at.key_rows = key.size(2) / at.key_columns;
    at.query_start = query_start, at.key_start = key_start;
    const int64_t canvas = (rows->size(1) + 1) / 2, query_rows = length / at.key_columns;
    TORCH_CHECK(at.key_rows * at.key_columns == key.size(2) && query_rows * at.key_columns == length &&
                    std::min(query_start, key_start) >= 0 && query_start + query_rows <= canvas &&
                    key_start + at.key_rows <= canvas, "expected whole rows within a canvas of ", canvas);
  }
  Tensor output = at::empty({key.size(0), length, heads, width}, query.options());
  Tensor logsumexp = at::empty({key.size(0), heads, length}, query.options().dtype(at::kFloat));
  float* sums = logsumexp.mutable_data_ptr<float>();
  if (type == at::kFloat)
    attend_all<float>(query, key, value, at, output.mutable_data_ptr<float>(), sums);
  else
    attend_all<BFloat16>(query, key, value, at, output.mutable_data_ptr<BFloat16>(), sums);
  return {output.transpose(1, 2), logsumexp};
}

}  // namespace

TORCH_LIBRARY(incontext, library) {
  library.def(
      "attention(Tensor query, Tensor key, Tensor value, Tensor? rows, Tensor? columns, int query_start, "
      "int key_start) -> (Tensor, Tensor)");
  library.impl("attention", c10::DispatchKey::CPU, &attention);
}
