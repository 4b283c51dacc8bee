// A libFuzzer target over the C interface: bytes say which layer, mask, options, threads and kept rows a call has. On
// memory that is exactly as large as gru.h says, results must be finite and have the same bits as with one thread,
// nothing kept and weights as they lie. fuzz.py builds and runs it; random_bytes.cpp takes libFuzzer's place where
// there is none.
#include <cstdio>

#include "layers.h"

namespace {

// Small numbers from a fuzzer's bytes; 0 after the last one.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}
  int64_t below(int64_t n) { return at_ == end_ ? 0 : *at_++ % n; }
  bool flag() { return below(2); }
  // Some bits of a byte for each number: three in four bits are True where `often`.
  void flags(std::vector<char>& filled, int64_t n, bool often) {
    for (int64_t i = 0, left = 0, bits = 0; i < n; i++, bits >>= 2) {
      if (!left--) left = 3, bits = below(256);
      filled.push_back((bits & 3) == 0 ? !often : often);
    }
  }

 private:
  const uint8_t *at_, *end_;
};

Sizes sizes(Bytes& bytes) {
  constexpr int64_t LARGE[] = {63, 64, 65, 100, 130, 200, 391};
  const int64_t T = 1 + bytes.below(9), B = bytes.below(8) ? 1 + bytes.below(20) : 150 + bytes.below(100);
  const int64_t I = 1 + bytes.below(40), H = B < 100 && !bytes.below(8) ? LARGE[bytes.below(7)] : 1 + bytes.below(50);
  return {T, B, I, H};
}

Options options(const Sizes& c, Bytes& bytes) {
  Options o;
  o.reset_after = bytes.flag(), o.recurrences = 1 + bytes.below(4);
  if (bytes.flag()) {
    bytes.flags(o.real, c.T * c.B, true);
    if (bytes.flag()) bytes.flags(o.start, c.T * c.B, false);
  }
  o.offset = bytes.below(2), o.gap = bytes.below(3);
  o.has_h0 = bytes.flag(), o.has_biases = bytes.flag(), o.has_keep = bytes.flag();
  o.has_dy = bytes.flag(), o.has_dh_n = bytes.flag(), o.has_dx = bytes.flag();
  o.zoneout = bytes.below(3), o.zone_seed = bytes.below(256);
  o.activation = bytes.below(7);
  constexpr int64_t BOUNDED[] = {1, 1, 0, 3, 4, 5};
  o.recurrent_activation = BOUNDED[bytes.below(6)];
  o.is_normalised = o.reset_after && bytes.flag();
  o.largest = bytes.flag() ? 2 : 4;
  return o;
}

template <typename T>
void expect_same(const std::vector<T>& got, const std::vector<T>& want, const char* what, const Sizes& c) {
  const char* const wrong = fault(got, want);
  if (!wrong) return;
  std::fprintf(stderr, "%s, %s: %s\n", what, named(c).c_str(), wrong);
  std::abort();
}

template <typename T>
void run_layer(const Sizes& c, const Options& o, int64_t threads, Bytes& bytes) {
  Layer<T> layer(c, o);
  if (!layer.has_steps()) return;  // of which the library is never asked
  const int64_t kept = c.T * c.B * bytes.below(5) / 4;
  const bool packs_weights = bytes.flag();
  expect_same(layer.run(threads, kept, packs_weights), layer.run(1, 0, false), "a layer", c);
}

void run_quantised(const Sizes& c, const Options& o, int64_t threads, bool is_int8) {
  const Quantised layer(c, o, is_int8);
  if (layer.has_steps()) expect_same(layer.run(threads), layer.run(1), is_int8 ? "int8" : "bf16", c);
}

template <typename T>
void run_step(const Sizes& c, const Options& o, int64_t threads) {
  expect_same(step<T>(c, o, threads, false), step<T>(c, o, 1, true), "a step", c);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  const int64_t what = bytes.below(8), threads = 1 + bytes.below(5);
  granted = unsigned(1 + bytes.below(4));
  const Sizes c = sizes(bytes);
  const Options o = options(c, bytes);
  if (what < 2) {
    run_layer<float>(c, o, threads, bytes);
  } else if (what < 4) {
    run_layer<double>(c, o, threads, bytes);
  } else if (what < 6) {
    run_quantised(c, o, threads, what == 4);
  } else if (what == 6) {
    run_step<float>(c, o, threads);
  } else {
    run_step<double>(c, o, threads);
  }
  return 0;
}
