// What is said of a fault: where in the code, and which program, warp and lane.
#include "machine.h"

std::string Machine::place(int at) const { return text(at) + " `" + texts[at] + "`"; }

std::string Machine::who(int lane) const {
  const Cta& cta = *warp->cta;
  const std::string program = "CTA (" + text(cta.x) + "," + text(cta.y) + "," + text(cta.z) + ")";
  const bool one_lane = lane >= 0 && lane < LANES;
  return program + " warp " + text(warp->index) + (one_lane ? " lane " + text(lane) : "");
}

void Machine::fail(const std::string& what, int lane) const {
  throw Failure(what + " at " + place(pc) + ", " + who(lane));
}

// Notes a fault after which the run goes on; the same in the same place is noted once, and counted.
void Machine::report(const std::string& kind, int other_pc, int lane, const std::string& detail) {
  const std::string key = kind + " | " + place(pc) + (other_pc >= 0 ? " | after " + place(other_pc) : "");
  auto& [times, first] = findings[key];
  if (!times++) first = who(lane) + detail;
}
