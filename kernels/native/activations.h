// The activations that a layer can have, by their place in ACTIVATIONS of regularised.py.
#pragma once
#include "vector.h"

namespace {

enum Activation : int64_t { TANH, SIGMOID, RELU, HARD_SIGMOID, HARD_TANH, SOFTSIGN, LINEAR };

// f(x), 1 - f(x) and f'(x).
template <typename T>
struct Activated {
  Vector<T> value, rest, derivative;

  ALWAYS_INLINE Vector<T> slope() const { return derivative; }
};

// The same for sigmoid only, without a choice.
template <typename T>
struct Sigmoid {
  Vector<T> rest, value;

  ALWAYS_INLINE explicit Sigmoid(Vector<T> x) : value(sigmoid<T>(x, rest)) {}
  ALWAYS_INLINE Vector<T> slope() const { return value * rest; }
};

// x between two bounds, a NaN as it is, with the slope of what is clamped; it is `slope` at the bounds too, as in
// PyTorch.
template <typename T>
ALWAYS_INLINE Activated<T> clamped(Vector<T> x, T least, T most, T slope) {
  const Vector<T> value = x < least ? broadcast(least) : x > most ? broadcast(most) : x;
  return {value, T(1) - value, x < least ? Vector<T>{} : x > most ? Vector<T>{} : broadcast(slope)};
}

template <typename T>
ALWAYS_INLINE Activated<T> activated(int64_t activation, Vector<T> x) {
  switch (activation) {
    case TANH: {
      const Tanh<T> result = tanh<T>(x);
      return {result.value, T(1) - result.value, result.slope()};
    }
    case SIGMOID: {
      const Sigmoid<T> result(x);
      return {result.value, result.rest, result.slope()};
    }
    case RELU: {
      const Vector<T> value = x <= T(0) ? Vector<T>{} : x;
      return {value, T(1) - value, x <= T(0) ? Vector<T>{} : broadcast(T(1))};
    }
    case HARD_SIGMOID:
      return clamped<T>(x / T(6) + T(0.5), T(0), T(1), T(1) / T(6));
    case HARD_TANH:
      return clamped<T>(x, T(-1), T(1), T(1));
    case SOFTSIGN: {
      const Vector<T> divisor = T(1) + magnitude<T>(x), value = x / divisor;
      return {value, T(1) - value, T(1) / (divisor * divisor)};
    }
    default:
      return {x, T(1) - x, broadcast(T(1))};
  }
}

}  // namespace
