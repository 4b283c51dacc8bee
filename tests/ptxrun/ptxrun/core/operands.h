// How instructions reach their operands.
#pragma once
#include "machine.h"

template <class F>
void Machine::each_lane(F f) const {
  for (int lane = 0; lane < LANES; lane++)
    if (mask >> lane & 1) f(lane);
}

// The values of an operand, a lane each.
struct Machine::Source {
  const u64* values;
  u64 room[LANES];

  Source(Machine& machine, int i) : values(room) {
    const Operand& operand = machine.operand(i);
    const Warp& warp = *machine.warp;
    if (operand.kind == REGISTER) {
      if (!warp.summed.empty() && warp.summed[operand.value]) machine.fail("sum of an unfinished wgmma read");
      values = machine.values_of(int(operand.value));
    } else if (operand.kind == IMMEDIATE) {
      fill(u64(operand.value), 0);
    } else if (operand.kind == SPECIAL) {
      const Cta& cta = *warp.cta;
      const u32* grid = machine.grid;
      const u64 table[] = {
          u64(LANES * warp.index), cta.x, cta.y, cta.z, u64(machine.threads), grid[0], grid[1], grid[2], 0};
      fill(table[operand.value], operand.value == TID_X || operand.value == LANEID);
    } else {
      machine.fail("bad operand");
    }
  }
  Source(const Source&) = delete;

  void fill(u64 first, u64 step) {
    for (int lane = 0; lane < LANES; lane++) room[lane] = first + step * lane;
  }
  u64 operator[](int lane) const { return values[lane]; }
};

inline u64* Machine::destination(int i) {
  static u64 nowhere[LANES];
  const Operand& to = operand(i);
  if (to.kind == SINK) return nowhere;
  if (to.kind != REGISTER) fail("destination is not a register");
  if (!warp->summed.empty()) {
    if (warp->summed[to.value]) fail("sum of an unfinished wgmma written");
    if (warp->multiplied[to.value]) report("operand of an unfinished wgmma written", -1, -1);
  }
  return values_of(int(to.value));
}

// A base and the offset behind it; addresses of shared memory have 32 bits.
inline void Machine::address(int i, u64* out, bool narrow) {
  const Source base(*this, i);
  const u64 offset = u64(operand(i + 1).value);
  for (int lane = 0; lane < LANES; lane++) out[lane] = narrow ? u32(base[lane] + offset) : base[lane] + offset;
}

inline void Machine::need_all_lanes(const char* what) const {
  if (mask != ALL_LANES) fail(std::string(what) + " without all lanes of the warp");
}
