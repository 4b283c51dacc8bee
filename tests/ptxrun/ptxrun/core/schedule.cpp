// Which warp runs when. All of it is drawn from the seed: how many instructions a warp has at once, how fast each
// program and warp is for a while (by up to 300 times), how long stores stay hidden, and how many programs are there at
// once, where they need not all be.
#include <algorithm>

#include "machine.h"

std::unique_ptr<Cta> Machine::begin(u32 number) {
  auto cta = std::make_unique<Cta>();
  cta->x = number % grid[0];
  cta->y = number / grid[0] % grid[1];
  cta->z = number / grid[0] / grid[1];
  cta->shared.resize(shared_bytes + 2);
  cta->cells.resize(shared_bytes / 2 + 1);
  for (u8& byte : cta->shared) byte = u8(random.next());
  const int n = threads / LANES;
  cta->live = n;
  cta->warps.resize(n);
  for (int i = 0; i < n; i++) {
    Warp& warp = cta->warps[i];
    warp.cta = cta.get();
    warp.index = i;
    warp.id = int(number) * n + i;
    warp.stack.push_back({0, -1, ALL_LANES});
    warp.registers.resize(size_t(n_registers) * LANES);
    for (u64& value : warp.registers) value = random.next();  // a register that nobody wrote holds anything
    warp.clock.assign(n_warps, 0);
    warp.clock[warp.id] = 1;
  }
  return cta;
}

void Machine::draw_speeds() {
  for (const auto& cta : resident) {
    const double speed = random.below(3) ? 1 : 0.03;
    for (Warp& warp : cta->warps) warp.speed = speed * (random.below(4) ? 1 : 0.1);
  }
}

Warp* Machine::choose() {
  const auto can_run = [](const Warp& warp) { return !warp.done && warp.barrier < 0; };
  for (int tries = 0; tries < 64; tries++) {
    Cta& cta = *resident[random.below(u32(resident.size()))];
    Warp& warp = cta.warps[random.below(u32(cta.warps.size()))];
    if (can_run(warp) && random.unit() < warp.speed) return &warp;
  }
  std::vector<Warp*> runnable;
  for (const auto& cta : resident)
    for (Warp& warp : cta->warps)
      if (can_run(warp)) runnable.push_back(&warp);
  if (runnable.empty()) throw Failure("deadlock: every warp waits at a barrier");
  return runnable[random.below(u32(runnable.size()))];
}

// So many lines, a fraction by chance, of programs that have any hidden.
void Machine::show_some(double lines) {
  std::vector<Cta*> hiding;
  for (; lines > 0; lines -= 1) {
    if (lines < 1 && random.unit() >= lines) return;
    hiding.clear();
    for (const auto& cta : resident)
      if (!cta->lines.empty()) hiding.push_back(cta.get());
    if (hiding.empty()) return;
    Cta& cta = *hiding[random.below(u32(hiding.size()))];
    show(cta, int(random.below(u32(cta.lines.size()))), false);
    polls = 0;
  }
}

void Machine::run() {
  const u32 total = grid[0] * grid[1] * grid[2];
  n_warps = int(total) * threads / LANES;
  if (n_warps > MOST_WARPS) throw Failure("more warps than the race detector can count");
  if (code.size() > UINT16_MAX) throw Failure("more instructions than the race detector can number");
  const u32 wanted = settings.resident > 0 ? settings.resident : 1 + random.below(total);
  const u32 at_once = settings.cooperative ? total : std::min(total, wanted);
  const int quanta[] = {1, 4, 32, 400};
  const double rates[] = {0.005, 0.05, 0.5};  // parts of lines shown for each instruction
  const int quantum = quanta[random.below(4)];
  const double rate = settings.delay_stores ? rates[random.below(3)] : 0;
  late_products = random.below(2);
  u32 begun = 0;
  i64 until_drawn = 0;
  const auto admit = [&] {
    while (resident.size() < at_once && begun < total) resident.push_back(begin(begun++));
  };
  admit();
  while (!resident.empty()) {
    if (until_drawn <= 0) {
      draw_speeds();
      until_drawn = 20'000 + 50 * n_warps;
    }
    warp = choose();
    land_some();
    int steps = 0;
    const int most = 1 + int(random.below(quantum));
    for (; steps < most && !warp->done && warp->barrier < 0; steps++) step();
    until_drawn -= steps;
    show_some(rate * steps);
    if (polls > u64(settings.most_polls) * u64(n_warps))
      fail("deadlock: " + text(polls) + " backward branches and no store");
    if (warp->done && warp->cta->live == 0) {
      show_all(*warp->cta);
      std::erase_if(resident, [&](const auto& cta) { return cta.get() == warp->cta; });
      admit();
    }
  }
}
