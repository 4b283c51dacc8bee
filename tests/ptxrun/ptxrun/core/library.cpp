// The one function that machine.py calls.
#include <cstring>

#include "machine.h"

// A launch, as machine.py describes it.
struct Launch {
  const char* names;  // of the instructions' opcodes, each ended by a zero
  const char* texts;  // same
  const i32* fields;  // those of Instruction, for each
  const Operand* operands;
  const u64* params;
  const Buffer* buffers;
  Settings settings;
  u64 shared_bytes;
  u32 grid[3];
  i32 n_instructions, n_operands, n_registers, n_params, n_buffers, threads;
};

// Runs a launch to its end, or to what ends it before. `found` gets what was wrong, a line each. Returns how many
// instructions all warps executed.
extern "C" u64 ptx_run(const Launch* launch, char* found, u64 room) {
  static const auto table = opcodes();
  Machine machine{};
  std::string lines;
  try {
    const char *name = launch->names, *line = launch->texts;
    for (int i = 0; i < launch->n_instructions; i++) {
      const auto at = table.find(name);
      if (at == table.end()) throw Failure(std::string("opcode not implemented: ") + name);
      const i32* f = launch->fields + 6 * i;
      machine.code.push_back({at->second, f[0], f[1], f[2], f[3], f[4], f[5]});
      machine.texts.push_back(line);
      name += strlen(name) + 1;
      line += strlen(line) + 1;
    }
    machine.operands.assign(launch->operands, launch->operands + launch->n_operands);
    machine.params.assign(launch->params, launch->params + launch->n_params);
    machine.buffers.assign(launch->buffers, launch->buffers + launch->n_buffers);
    machine.cells.resize(launch->n_buffers);
    machine.n_registers = launch->n_registers;
    machine.threads = launch->threads;
    machine.shared_bytes = launch->shared_bytes;
    memcpy(machine.grid, launch->grid, sizeof machine.grid);
    machine.settings = launch->settings;
    machine.random = {launch->settings.seed * 1000003};
    machine.run();
  } catch (const std::exception& error) {
    lines = std::string(error.what()) + "\n";
  }
  for (const auto& [key, finding] : machine.findings)
    lines += key + " | " + finding.second + " | " + text(finding.first) + " times\n";
  strncpy(found, lines.c_str(), room - 1);
  return machine.executed;
}
