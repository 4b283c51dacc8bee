// What instructions compute, lane by lane, from registers to registers.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "operands.h"

namespace {

float smaller(float a, float b) {  // if one is NaN, the other is taken
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) ? b : a;
  return a < b || (a == b && std::signbit(a)) ? a : b;
}

float larger(float a, float b) { return -smaller(-a, -b); }

u64 shifted_right(u64 a, u64 by, Type type) {
  const u64 width = 8 * bytes_of(type), x = a & ones(type);
  if (is_signed(type)) return u64(extended(x, type) >> std::min(by, width - 1)) & ones(type);
  return by >= width ? 0 : x >> by;
}

u64 bit_field(u32 a, u32 first, u32 length, Type type) {
  const u32 last = std::min(first + length - 1, 31u);
  const u32 beyond = type == S32 && length ? a >> last & 1 : 0;
  u32 field = 0;
  for (u32 i = 0; i < 32; i++) field |= (i < length && first + i < 32 ? a >> (first + i) & 1 : beyond) << i;
  return field;
}

u64 permuted(u64 a, u64 b, u64 selection) {
  const u64 bytes = u32(a) | b << 32;
  u64 result = 0;
  for (int i = 0; i < 4; i++) {
    const u64 chosen = selection >> (4 * i);
    u64 byte = bytes >> (8 * (chosen & 7)) & 255;
    if (chosen & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << (8 * i);
  }
  return result;
}

bool holds(Comparison comparison, float a, float b) {
  switch (comparison) {
    case EQ:
      return a == b;
    case NE:
      return a < b || a > b;
    case LT:
      return a < b;
    case LE:
      return a <= b;
    case GT:
      return a > b;
    case GE:
      return a >= b;
    case NUM:
      return !std::isnan(a) && !std::isnan(b);
    default:
      return std::isnan(a) || std::isnan(b);
  }
}

bool holds(Comparison comparison, u64 a, u64 b, Type type) {
  switch (comparison) {
    case EQ:
      return a == b;
    case NE:
      return a != b;
    case LT:
      return is_less(a, b, type);
    case LE:
      return !is_less(b, a, type);
    case GT:
      return is_less(b, a, type);
    default:
      return !is_less(a, b, type);
  }
}

u64 converted(u64 a, Type from, Type to) {
  if (to == F32) return as_bits(from_half(a, from));
  if (from == F32) return to_half(as_float(a), to);
  return u64(extended(a & ones(from), from));
}

// What the hardware may be off by: a function of the arguments, in [-1, 1].
double noise(u64 seed, u64 x, u64 y = 0) { return double(i64(mixed(mixed(seed ^ x) ^ y))) * 0x1p-63; }

float within_two_ulp(double exact, double noise) {
  const float rounded = float(exact);
  if (!std::isfinite(rounded) || rounded == 0) return rounded;
  return std::bit_cast<float>(std::bit_cast<u32>(rounded) + int(std::lround(2 * noise)));
}

u64 quotient(u64 a, u64 b, Type type) {  // toward zero; by zero, PTX leaves it open
  if (b == 0) return ~0ull;
  if (is_signed(type)) return extended(b, type) == -1 ? 0 - a : u64(extended(a, type) / extended(b, type));
  return a / b;
}

float tanh_approx(float x, double noise) {
  const double exact = std::tanh(double(x));
  if (!std::isnormal(x)) return float(exact);
  return float(std::clamp(exact * (1 + 0x1p-11 * noise), -1.0, 1.0));
}

}  // namespace

void Machine::arithmetic() {
  const Opcode& opcode = instruction->opcode;
  const Type type = opcode.type;
  const u64 all = ones(type);
  const auto unary = [&](auto f) {
    const Source a(*this, 1);
    u64* out = destination(0);
    each_lane([&](int lane) { out[lane] = f(a[lane]) & all; });
  };
  const auto binary = [&](auto f) {
    const Source a(*this, 1), b(*this, 2);
    u64* out = destination(0);
    each_lane([&](int lane) { out[lane] = f(a[lane], b[lane]) & all; });
  };
  const auto ternary = [&](auto f) {
    const Source a(*this, 1), b(*this, 2), c(*this, 3);
    u64* out = destination(0);
    each_lane([&](int lane) { out[lane] = f(a[lane], b[lane], c[lane]) & all; });
  };
  const auto wide = [&](auto f) {  // the result has twice the bits
    const Source a(*this, 1), b(*this, 2);
    u64* out = destination(0);
    const u64 kept = bytes_of(type) == 2 ? 0xffffffff : ~0ull;
    each_lane([&](int lane) {
      out[lane] = f(u64(extended(a[lane] & all, type) * extended(b[lane] & all, type)), lane) & kept;
    });
  };
  const auto halves = [&](auto f) {  // of one 16-bit number, or of both in a word
    u64 result = 0;
    for (int i = 0; i < opcode.count; i++) result |= f(16 * i) << (16 * i);
    return result;
  };
  const auto error = [&](u64 x, u64 y = 0) { return settings.exact ? 0 : noise(settings.seed, x, y); };

  switch (opcode.op) {
    case ADD:
      if (type == F32)
        binary([](u64 a, u64 b) { return as_bits(as_float(a) + as_float(b)); });
      else
        binary([](u64 a, u64 b) { return a + b; });
      break;
    case SUB:
      if (type == F32)
        binary([](u64 a, u64 b) { return as_bits(as_float(a) - as_float(b)); });
      else
        binary([](u64 a, u64 b) { return a - b; });
      break;
    case MUL:
      if (type == F32)
        binary([](u64 a, u64 b) { return as_bits(as_float(a) * as_float(b)); });
      else
        binary([](u64 a, u64 b) { return a * b; });
      break;
    case MUL_HIGH:
      binary([&](u64 a, u64 b) { return u64(extended(a & all, type) * extended(b & all, type)) >> 32; });
      break;
    case MUL_WIDE:
      wide([](u64 product, int) { return product; });
      break;
    case MAD_WIDE: {
      const Source c(*this, 3);
      wide([&](u64 product, int lane) { return product + c[lane]; });
      break;
    }
    case MAD:
      ternary([](u64 a, u64 b, u64 c) { return a * b + c; });
      break;
    case DIV:
      binary([&](u64 a, u64 b) { return quotient(a & all, b & all, type); });
      break;
    case REMAINDER:
      binary([&](u64 a, u64 b) { return a - quotient(a & all, b & all, type) * b; });
      break;
    case FMA:
      ternary([](u64 a, u64 b, u64 c) { return as_bits(std::fma(as_float(a), as_float(b), as_float(c))); });
      break;
    case NEG:
      if (type == F32)
        unary([](u64 a) { return a ^ 0x80000000u; });
      else
        unary([](u64 a) { return 0 - a; });
      break;
    case ABS:
      unary([](u64 a) { return a & 0x7fffffffu; });
      break;
    case NOT:
      unary([](u64 a) { return ~a; });
      break;
    case AND:
      binary([](u64 a, u64 b) { return a & b; });
      break;
    case OR:
      binary([](u64 a, u64 b) { return a | b; });
      break;
    case XOR:
      binary([](u64 a, u64 b) { return a ^ b; });
      break;
    case SHL:
      binary([&](u64 a, u64 b) { return u32(b) >= u32(8 * bytes_of(type)) ? 0 : a << u32(b); });
      break;
    case SHR:
      binary([&](u64 a, u64 b) { return shifted_right(a, u32(b), type); });
      break;
    case BFE:
      ternary([&](u64 a, u64 b, u64 c) { return bit_field(u32(a), b & 255, c & 255, type); });
      break;
    case PERMUTE:
      ternary(permuted);
      break;
    case MIN:
      if (type == F32)
        binary([](u64 a, u64 b) { return as_bits(smaller(as_float(a), as_float(b))); });
      else
        binary([&](u64 a, u64 b) { return is_less(a & all, b & all, type) ? a : b; });
      break;
    case MAX:
      if (type == F32)
        binary([](u64 a, u64 b) { return as_bits(larger(as_float(a), as_float(b))); });
      else
        binary([&](u64 a, u64 b) { return is_less(a & all, b & all, type) ? b : a; });
      break;
    case MAX_PAIR:
      binary([](u64 a, u64 b) {
        const u64 high = std::max(u16(a >> 16), u16(b >> 16));
        return high << 16 | std::max(u16(a), u16(b));
      });
      break;
    case MUL_HALF: {
      const Source a(*this, 1), b(*this, 2);
      u64* out = destination(0);
      constexpr u64 NEGATIVE_ZERO = 0x8000;  // added to a product, it changes nothing
      each_lane([&](int lane) {
        out[lane] = halves([&](int at) { return half_fma(a[lane] >> at, b[lane] >> at, NEGATIVE_ZERO, type); });
      });
      break;
    }
    case FMA_HALF: {
      const Source a(*this, 1), b(*this, 2), c(*this, 3);
      u64* out = destination(0);
      each_lane([&](int lane) {
        out[lane] = halves([&](int at) { return half_fma(a[lane] >> at, b[lane] >> at, c[lane] >> at, type); });
      });
      break;
    }
    case DIV_FULL:
      binary([&](u64 a, u64 b) {
        return as_bits(within_two_ulp(double(as_float(a)) / double(as_float(b)), error(a, b)));
      });
      break;
    case EX2:
      unary([&](u64 a) { return as_bits(within_two_ulp(std::exp2(double(as_float(a))), error(a))); });
      break;
    case TANH:
      unary([&](u64 a) { return as_bits(tanh_approx(as_float(a), error(a))); });
      break;
    case SELECT:
      ternary([](u64 a, u64 b, u64 c) { return c & 1 ? a : b; });
      break;
    case SET_PREDICATE: {
      const Source a(*this, 1), b(*this, 2);
      u64* out = destination(0);
      const auto comparison = Comparison(opcode.detail);
      each_lane([&](int lane) {
        out[lane] = type == F32 ? holds(comparison, as_float(a[lane]), as_float(b[lane]))
                                : holds(comparison, a[lane] & all, b[lane] & all, type);
      });
      break;
    }
    case CVT:
      unary([&](u64 a) { return converted(a, opcode.from, type); });
      break;
    case CVT_PAIR: {
      const Source a(*this, 1), b(*this, 2);
      u64* out = destination(0);
      each_lane(
          [&](int lane) { out[lane] = to_half(as_float(a[lane]), type) << 16 | to_half(as_float(b[lane]), type); });
      break;
    }
    case MOV:
      unary([](u64 a) { return a; });
      break;
    case PACK: {
      const int width = 8 * bytes_of(opcode.from);
      binary([&](u64 a, u64 b) { return (a & ones(opcode.from)) | b << width; });
      break;
    }
    case UNPACK: {
      const Source from(*this, 2);
      const int width = 8 * bytes_of(opcode.from);
      u64 values[LANES];
      memcpy(values, from.values, sizeof values);  // a part may go where the whole is
      for (int i = 0; i < 2; i++) {
        u64* out = destination(i);
        each_lane([&](int lane) { out[lane] = values[lane] >> (i * width) & ones(opcode.from); });
      }
      break;
    }
    default:
      fail("not implemented");
  }
}
