// Instructions that are not of control: what each does with memory, and the rest sent where it belongs.
#include <cstring>

#include "operands.h"

void Machine::load() {
  const Opcode& opcode = instruction->opcode;
  const int width = bytes_of(opcode.type);
  u64 from[LANES];
  address(opcode.count, from, opcode.op == LOAD_SHARED);
  each_lane([&](int lane) {
    u8 data[16];
    if (opcode.op == LOAD_SHARED)
      read_shared(from[lane], opcode.count * width, data, lane);
    else
      read_global(from[lane], opcode.count * width, data, Order(opcode.detail), lane);
    for (int i = 0; i < opcode.count; i++) {
      u64 value = 0;
      memcpy(&value, data + i * width, width);
      destination(i)[lane] = value;
    }
  });
}

void Machine::store() {
  const Opcode& opcode = instruction->opcode;
  const int width = bytes_of(opcode.type);
  u64 to[LANES];
  u8 data[LANES][16];
  address(0, to, opcode.op == STORE_SHARED);
  for (int i = 0; i < opcode.count; i++) {
    const Source from(*this, 2 + i);
    each_lane([&](int lane) { memcpy(data[lane] + i * width, &from.values[lane], width); });
  }
  each_lane([&](int lane) {
    if (opcode.op == STORE_SHARED)
      write_shared(to[lane], opcode.count * width, data[lane], lane);
    else
      write_global(to[lane], opcode.count * width, data[lane], Order(opcode.detail), lane);
  });
}

void Machine::shuffle() {
  need_all_lanes("shfl.sync");
  const Source from(*this, 1), by(*this, 2), bounds(*this, 3);
  const bool by_index = instruction->opcode.detail;
  u64 values[LANES];
  memcpy(values, from.values, sizeof values);
  u64* out = destination(0);
  each_lane([&](int lane) {
    const u32 b = by[lane] & 31, clamp = bounds[lane] & 31, segment = bounds[lane] >> 8 & 31;
    const u32 last = (lane & segment) | (clamp & ~segment);
    const u32 other = by_index ? (lane & segment) | (b & ~segment) : u32(lane) ^ b;
    out[lane] = values[other <= last ? other : lane];
  });
}

void Machine::redux() {
  need_all_lanes("redux.sync");
  const Type type = instruction->opcode.type;
  const Source from(*this, 1);
  u64 best = from[0];
  for (int lane = 1; lane < LANES; lane++)
    if (is_less(best & ones(type), from[lane] & ones(type), type)) best = from[lane];
  u64* out = destination(0);
  each_lane([&](int lane) { out[lane] = best; });
}

void Machine::execute() {
  const Opcode& opcode = instruction->opcode;
  switch (opcode.op) {
    case LOAD_PARAM: {
      const u64 value = params.at(size_t(operand(1).value)) & ones(opcode.type);
      u64* out = destination(0);
      each_lane([&](int lane) { out[lane] = value; });
      break;
    }
    case LOAD_GLOBAL:
    case LOAD_SHARED:
      load();
      break;
    case STORE_GLOBAL:
    case STORE_SHARED:
      store();
      break;
    case ATOMIC_ADD: {
      u64 at[LANES];
      address(1, at, false);
      const Source by(*this, 3);
      u64* old = destination(0);
      each_lane([&](int lane) { atomic_add(at[lane], opcode.type, by[lane], Order(opcode.detail), lane, old[lane]); });
      break;
    }
    case COPY:
      issue_copies();
      break;
    case COPY_COMMIT:
      warp->copies.push_back(std::move(warp->open_copies));
      warp->open_copies.clear();
      break;
    case COPY_WAIT:
      wait_for_copies(size_t(operand(0).value));
      break;
    case LDMATRIX:
      ldmatrix();
      break;
    case STMATRIX:
      stmatrix();
      break;
    case MMA:
      mma();
      break;
    case WGMMA:
      wgmma();
      break;
    case WGMMA_FENCE:
      warp->fenced = true;
      break;
    case WGMMA_COMMIT:
      warp->products.push_back(std::move(warp->open_products));
      warp->open_products = {};
      break;
    case WGMMA_WAIT:
      wait_for_products(size_t(operand(0).value));
      break;
    case PROXY_FENCE:
      warp->proxy_fences.push_back(warp->cta->epoch);
      break;
    case WARP_BARRIER:
      need_all_lanes("bar.warp.sync");
      warp->epoch++;
      break;
    case SHUFFLE:
      shuffle();
      break;
    case REDUX:
      redux();
      break;
    default:
      arithmetic();
  }
}
