// The arithmetic without OneFlow, to run under the address and undefined-behaviour sanitizers:
// every array is exactly as large as it must be, so that one element too far is found. They do not
// see AMX, which GCC has as assembly, nor all instructions of AVX-512: products are also written
// between two margins. Results are compared with plain loops only to see
// that the work is done; tests/kernels tests the numbers.
#include <cstdio>
#include <cstdlib>
#include <limits>

#include "../arithmetic/adam.h"
#include "../arithmetic/attention.h"
#include "../arithmetic/copy.h"
#include "../arithmetic/elementwise.h"
#include "../arithmetic/gelu.h"
#include "../arithmetic/layer_norm.h"
#include "../arithmetic/linear.h"
#include "../arithmetic/reduce.h"
#include "../arithmetic/resample.h"

namespace libai_ext {
namespace {

using Array = std::vector<float>;

Array Random(int64_t size) {
  static uint32_t state = 1;
  Array result(size);
  for (float& value : result) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(state >> 8) / (1 << 23) - 1;
  }
  return result;
}

void Expect(bool holds, const char* what) {
  if (holds) { return; }
  std::fprintf(stderr, "wrong result: %s\n", what);
  std::exit(1);
}

bool Near(double actual, double expected, double tolerance = 1e-3) {
  return std::fabs(actual - expected) <= tolerance * (1 + std::fabs(expected));
}

float AsBfloat16(float value) { return bf16::Widen(bf16::Round(value)); }
float AsIs(float value) { return value; }

void CheckProduct(bool bfloat16, const int64_t* shape, int mode) {
  const auto rounded = bfloat16 ? AsBfloat16 : AsIs;
  const int64_t batch = shape[0], m = shape[1], n = shape[2], k = shape[3];
  const Array a = Random(batch * m * k), b = Random(batch * k * n), start = Random(batch * m * n);
  Array c = start;
  constexpr int64_t kMargin = 4096;
  constexpr float kUntouched = 12345.f;
  Array around(kMargin, kUntouched);  // the second result, between margins
  around.insert(around.end(), start.begin(), start.end());
  around.resize(around.size() + kMargin, kUntouched);
  const MatrixBatch left = MatrixBatch::Make(a.data(), mode & 1, m, k, m * k);
  const MatrixBatch right = MatrixBatch::Make(b.data(), mode & 2, k, n, k * n);
  for (float* out : {c.data(), around.data() + kMargin}) {
    GemmAs(bfloat16, batch, m, n, k, 0.5f, left, right, out, Addend{mode & 4 ? out : nullptr, n},
           m * n);
  }
  Expect(std::equal(c.begin(), c.end(), around.begin() + kMargin), "a second product");
  for (int64_t i = 0; i < kMargin; ++i) {
    Expect(around[i] == kUntouched && around.end()[-1 - i] == kUntouched, "beside a product");
  }
  for (int64_t q = 0; q < batch; ++q) {
    for (int64_t i = 0; i < m; i += 7) {
      for (int64_t j = 0; j < n; j += 5) {
        const int64_t at = q * m * n + i * n + j;
        double sum = mode & 4 ? start[at] : 0;
        for (int64_t x = 0; x < k; ++x) {
          sum += 0.5 * rounded(*left[q].At(i, x)) * rounded(*right[q].At(x, j));
        }
        Expect(Near(c[at], sum, 1e-5), "a product");
      }
    }
  }
}

void CheckProducts() {
  const int64_t shapes[][4] = {{1, 1, 1, 1},    {1, 13, 33, 385}, {1, 481, 1025, 17},
                               {3, 50, 50, 64}, {5, 197, 37, 9},  {1, 400, 96, 400},
                               {2, 0, 3, 4},    {2, 3, 4, 0},     {1, 34, 18, 1030}};
  for (const auto& shape : shapes) {
    for (int mode = 0; mode < 8; ++mode) {
      for (const bool bfloat16 : {false, true}) { CheckProduct(bfloat16, shape, mode); }
    }
  }
}

void CheckLinear(const LinearShape& s) {
  const Array x = Random(s.rows * s.in), weight = Random(s.in * s.out), bias = Random(s.out);
  Array y(s.rows * s.out), x_grad(x.size()), weight_grad(weight.size()), bias_grad(s.out);
  Linear(s, x.data(), weight.data(), bias.data(), y.data());
  LinearInputGrad(s, y.data(), weight.data(), x_grad.data());
  LinearParameterGrads(s, x.data(), y.data(), weight_grad.data(), bias_grad.data());
  const auto rounded = s.bfloat16 ? AsBfloat16 : AsIs;
  for (int64_t j = 0; j < s.out; j += 5) {
    double column = 0;
    for (int64_t i = 0; i < s.rows; ++i) {
      double sum = bias[j];
      for (int64_t k = 0; k < s.in; ++k) {
        sum += static_cast<double>(rounded(x[i * s.in + k])) * rounded(weight[k * s.out + j]);
      }
      Expect(Near(y[i * s.out + j], sum, 1e-5), "Linear");
      column += y[i * s.out + j];
    }
    Expect(Near(bias_grad[j], column, 1e-4), "LinearParameterGrads");
  }
}

void CheckLinears() {
  const int64_t shapes[][3] = {{1, 1, 1}, {33, 17, 47}, {13, 385, 33}, {241, 17, 1025},
                               {7, 0, 9}, {0, 5, 3},    {100, 96, 400}};
  for (const auto& s : shapes) {
    for (const bool bfloat16 : {false, true}) { CheckLinear({s[0], s[1], s[2], bfloat16}); }
  }
}

// With values of 1, the output is 1 and the scores do not matter; the gradient of the values is a
// share of the output's.
void CheckAttention(const AttentionShape& x) {
  const int64_t row = x.heads * x.width, size = x.batch * x.tokens * row;
  Array packed = Random(3 * size), out(size), packed_grad(3 * size);
  const auto is_value = [&](int64_t i) { return i / x.width % 3 == 2; };
  for (int64_t i = 0; i < 3 * size; ++i) {
    if (is_value(i)) { packed[i] = 1; }
  }
  const Array out_grad(size, 0.5f);
  Attention(x, packed.data(), out.data());
  AttentionGrad(x, packed.data(), out_grad.data(), packed_grad.data());
  for (const float value : out) { Expect(Near(value, 1, 1e-2), "Attention"); }
  double sum = 0;
  for (int64_t i = 0; i < 3 * size; ++i) {
    if (is_value(i)) { sum += packed_grad[i]; }
    if (!is_value(i)) { Expect(Near(packed_grad[i], 0, 1e-2), "AttentionGrad"); }
  }
  Expect(Near(sum, 0.5 * size, 1e-2), "AttentionGrad");
}

void CheckAttentions() {
  const int64_t shapes[][4] = {{2, 1, 3, 16}, {3, 17, 2, 32},  {1, 65, 2, 48}, {1, 197, 1, 80},
                               {1, 33, 1, 5}, {1, 301, 1, 64}, {0, 3, 2, 16},  {2, 0, 2, 16}};
  for (const auto& s : shapes) {
    for (const bool bfloat16 : {false, true}) {
      CheckAttention({s[0], s[1], s[2], s[3], 0.25f, bfloat16});
    }
  }
}

void CheckLayerNorm(int64_t rows, int64_t cols) {
  const Array x = Random(rows * cols), dy = Random(rows * cols), g = Random(cols), b = Random(cols);
  Array y(rows * cols), dx = Random(rows * cols), mean(rows), inv_std(rows), dg(cols), db(cols);
  const float* const none = nullptr;
  for (const float* gamma : {g.data(), none}) {
    for (const float* beta : {b.data(), none}) {
      LayerNorm(rows, cols, 1e-6, x.data(), gamma, beta, y.data(), mean.data(), inv_std.data());
    }
    for (const float* addend : {static_cast<const float*>(dx.data()), none}) {
      LayerNormGrad(rows, cols, dy.data(), x.data(), mean.data(), inv_std.data(), gamma, addend,
                    dx.data());
    }
  }
  LayerNormParamGrad(rows, cols, dy.data(), x.data(), mean.data(), inv_std.data(), dg.data(),
                     db.data());
  double sum = 0;
  for (int64_t i = 0; i < rows; ++i) { sum += dy[i * cols]; }
  Expect(Near(db[0], sum), "LayerNormParamGrad");
}

void CheckGelu() {
  Array x = Random(70001);
  const float limits[] = {0.f,
                          1e38f,
                          -1e38f,
                          std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN()};
  std::copy(std::begin(limits), std::end(limits), x.begin());
  const Array dy = Random(x.size());
  Array y(x.size()), dx(x.size());
  Gelu(x.size(), x.data(), y.data());
  GeluGrad(x.size(), x.data(), dy.data(), dx.data());
  Expect(std::isnan(y[5]) && std::isnan(dx[5]) && y[0] == 0.f, "Gelu");
}

void CheckSum(const std::vector<int64_t>& dims) {
  int64_t size = 1;
  for (const int64_t dim : dims) { size *= dim; }
  const Array x = Random(size);
  double all = 0;
  for (const float value : x) { all += value; }
  for (unsigned mask = 0; mask < 1u << dims.size(); ++mask) {
    std::vector<bool> reduced;
    int64_t kept = 1;
    for (size_t axis = 0; axis < dims.size(); ++axis) {
      reduced.push_back(mask >> axis & 1);
      if (!reduced.back()) { kept *= dims[axis]; }
    }
    Array y(kept);
    SumAxes(dims, reduced, x.data(), y.data());
    double total = 0;
    for (const float value : y) { total += value; }
    Expect(Near(total, all), "SumAxes");
  }
}

void CheckElementwise() {
  const std::vector<int64_t> z{8, 33, 70};
  for (unsigned mask = 0; mask < 8; ++mask) {
    std::vector<int64_t> shape;
    int64_t size = 1;
    for (size_t axis = 0; axis < 3; ++axis) {
      shape.push_back(mask >> axis & 1 ? z[axis] : 1);
      size *= shape.back();
    }
    const Array x = Random(8 * 33 * 70), y = Random(size);
    Array out(x.size());
    const auto minus = [](float a, float b) { return a - b; };
    Broadcast(PlanBroadcast(z, shape, z), x.data(), y.data(), out.data(), minus);
    Expect(out.back() == x.back() - y.back(), "Broadcast");
    Broadcast(PlanBroadcast(shape, z, z), y.data(), x.data(), out.data(), minus);
    Expect(out.back() == y.back() - x.back(), "Broadcast");
    const auto first = [](float a, float) { return a; };
    Broadcast(PlanBroadcast(shape, z, z), y.data(), out.data(), out.data(), first);
    Expect(out.back() == y.back(), "Broadcast");
  }
  const Array a = Random(70001), b = Random(70001), c = Random(70001);
  Array sum(70001);
  AddAll(sum.size(), {a.data(), b.data()}, sum.data());
  AddAll(sum.size(), {a.data(), b.data(), c.data()}, sum.data());
  Expect(sum[7] == a[7] + b[7] + c[7], "AddAll");
  Square(sum.size(), a.data(), sum.data());
  Expect(sum.back() == a.back() * a.back(), "Square");
}

void CheckCopies() {
  const std::vector<int64_t> dims{3, 50, 7, 40};
  const Array x = Random(3 * 50 * 7 * 40);
  std::vector<int32_t> perm{0, 1, 2, 3};
  do {
    Array out(x.size());
    Permute(dims, perm, x.data(), out.data());
    Expect(out.back() == x.back() && out[0] == x[0], "Permute");
  } while (std::next_permutation(perm.begin(), perm.end()));
  const int64_t rows = 3 * 50 * 7, cols = 40;
  for (const int64_t start : {0, 13, 39}) {
    const int64_t length = std::min<int64_t>(20, cols - start);
    Array part(rows * length), whole(x.size(), 1.f);
    Narrow(rows, cols, start, length, x.data(), part.data());
    NarrowGrad(rows, cols, start, length, part.data(), whole.data());
    for (int64_t i = 0; i < rows * cols; ++i) {
      const bool inside = i % cols >= start && i % cols < start + length;
      Expect(whole[i] == (inside ? x[i] : 0.f), "Narrow, NarrowGrad");
    }
  }
  const std::vector<int32_t> ids{0, 6, 2, 2, 1, 0};  // 3 of each of 2 matrices of 7 rows
  const Array matrices = Random(2 * 7 * 19);
  Array picked(6 * 19), sums(2 * 7 * 19, 1.f);
  GatherRows(2, 7, 3, 19, matrices.data(), ids.data(), picked.data());
  ScatterAddRows(2, 3, 7, 19, picked.data(), ids.data(), sums.data());
  Expect(picked.back() == matrices[8 * 19 - 1], "GatherRows");
  Expect(sums[7 * 19 - 1] == matrices[7 * 19 - 1] && sums.back() == 0, "ScatterAddRows");
}

void CheckAdam() {
  const Array gradient = Random(70001);
  Array weight = Random(70001), m(70001), v(70001);
  const Array before = weight;
  AdamUpdate(weight.size(), {1e-2f, 0.1f, 0.05f, 1.f, 0.f, 0.9f, 0.95f, 1e-8f, 0.05f},
             gradient.data(), weight.data(), m.data(), v.data());
  const double sign = gradient[9] > 0 ? 1 : -1;
  Expect(Near(weight[9], before[9] * (1 - 1e-2 * 0.05) - 1e-2 * sign), "AdamUpdate");
}

// Each row is an array of its own, and the region ends where the rows do.
template<int bytes>
void CheckResize(int64_t height, int64_t width, int64_t out_height, int64_t out_width) {
  const int64_t left = width / 3, top = height / 4;
  std::vector<std::vector<uint8_t>> image(height), resized(out_height);
  std::vector<const uint8_t*> rows;
  std::vector<uint8_t*> out_rows;
  for (auto& row : image) {
    for (int64_t x = 0; x < width * bytes; ++x) { row.push_back(x * 37 + rows.size() * 101); }
    rows.push_back(row.data());
  }
  for (auto& row : resized) {
    row.resize(out_width * bytes);
    out_rows.push_back(row.data());
  }
  const Region region{rows.data(), left, top, width - left, height - top};
  ResizeToRows<bytes>(region, out_height, out_width, out_rows.data());
  const int64_t channels = bytes == 4 ? 3 : 1;
  const Array scale{1.f, 2.f, 3.f}, shift{0.f, 5.f, -1.f};
  for (const bool mirrored : {false, true}) {
    Array floats(channels * out_height * out_width);
    ResizeToFloats<bytes>(region, out_height, out_width, mirrored, scale.data(), shift.data(),
                          floats.data());
    size_t at = 0;
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t y = 0; y < out_height; ++y) {
        for (int64_t x = 0; x < out_width; ++x) {
          const int64_t from = mirrored ? out_width - 1 - x : x;
          Expect(floats[at++] == resized[y][from * bytes + c] * scale[c] + shift[c], "Resize");
        }
      }
    }
  }
  if (height - top != out_height || width - left != out_width) { return; }
  for (int64_t y = 0; y < out_height; ++y) {
    Expect(std::equal(resized[y].begin(), resized[y].end(), rows[top + y] + left * bytes),
           "a resize to the same size");
  }
}

void CheckResizes() {
  const int64_t sizes[][4] = {{1, 1, 1, 1},    {1, 1, 9, 7},     {90, 70, 1, 1},   {8, 9, 6, 6},
                              {40, 3, 17, 64}, {33, 61, 70, 16}, {120, 90, 13, 65}};
  for (const auto& s : sizes) {
    CheckResize<1>(s[0], s[1], s[2], s[3]);
    CheckResize<4>(s[0], s[1], s[2], s[3]);
  }
}

}  // namespace
}  // namespace libai_ext

int main() {
  using namespace libai_ext;
  for (const int threads : {1, 2, 3, 4}) {
    omp_set_num_threads(threads);
    CheckProducts();
    CheckLinears();
    CheckAttentions();
    for (const int64_t cols : {1, 33, 768, 5000}) { CheckLayerNorm(37, cols); }
    CheckGelu();
    for (const auto& dims : {std::vector<int64_t>{6, 70, 5, 9}, {1, 1}, {300, 65}, {200000}, {}}) {
      CheckSum(dims);
    }
    CheckElementwise();
    CheckCopies();
    CheckAdam();
  }
  CheckResizes();
  std::puts("no error found");
}
