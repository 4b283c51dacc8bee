// cp.async: a copy happens at any time until it is waited for, and nobody may touch what it writes before.
#include <cstring>

#include "operands.h"

void Machine::issue_copies() {
  u64 to[LANES], from[LANES];
  address(0, to, true);
  address(2, from, false);
  const Source size(*this, 4), given(*this, 5);
  each_lane([&](int lane) {
    const int bytes = int(size[lane]), taken = int(given[lane]);
    if (bytes != 4 && bytes != 8 && bytes != 16) fail("cp.async of a bad size", lane);
    if (taken && taken != bytes) fail("cp.async of a part: not implemented", lane);
    const u64 offset = shared_offset(to[lane], bytes, lane, "cp.async write");
    u8 data[16];
    if (taken) read_global(from[lane], bytes, data, WEAK, lane);
    for (u64 i = offset / 2; i < (offset + bytes) / 2; i++) {
      SharedCell& cell = warp->cta->cells[i];
      if (cell.copies) report("write of shared bytes that a cp.async is to write", cell.write_pc, lane);
      if (cell.products) report("write of shared bytes that an unfinished wgmma reads", cell.read_pc, lane);
      check_against_read(cell, i, lane);
      if (cell.write_epoch == warp->cta->epoch && cell.writer != warp->index)
        report("shared race: write after write", cell.write_pc, lane);
      cell.copies++;
      cell.write_pc = u16(pc);
    }
    warp->open_copies.push_back({to[lane], from[lane], bytes, taken, lane, u32(pc), false});
  });
}

void Machine::land(Copy& copy) {
  u8 data[16] = {};
  if (copy.given) {
    const Buffer& buffer = buffers[(copy.from >> BUFFER_SHIFT) - 1];
    look(buffer, copy.from, copy.bytes, data);
    check_initialised(buffer, copy.from, copy.bytes, data, int(copy.pc), copy.lane);
  }
  memcpy(&warp->cta->shared[copy.to - SHARED_BASE], data, copy.bytes);
  copy.landed = true;
}

void Machine::land_some() {
  for (auto& group : warp->copies)
    for (Copy& copy : group)
      if (!copy.landed && !random.below(8)) land(copy);
}

void Machine::finish(const std::vector<Copy>& group) {
  for (Copy copy : group) {
    if (!copy.landed) land(copy);
    const u64 offset = copy.to - SHARED_BASE;
    for (u64 i = offset / 2; i < (offset + copy.bytes) / 2; i++) {
      SharedCell& cell = warp->cta->cells[i];
      cell.copies--;
      note_shared_write(cell, copy.pc, copy.lane);
    }
  }
}

void Machine::wait_for_copies(size_t left) {
  while (warp->copies.size() > left) {
    finish(warp->copies.front());
    warp->copies.erase(warp->copies.begin());
  }
}
