// Lengths, masks and resets as an index: the segments of a batch, longest first, and where their steps lie.
//
// A row whose padding is skipped and whose resets are cuts is a set of segments, each with a state to begin from. Step
// k of the packed sequence is the k-th step of every segment that is still active.
#include <algorithm>
#include <memory>
#include <new>

#include "gru.h"

namespace {

struct Flags {
  const bool *real, *start;  // (T, B), or null: all steps are real, nothing is cut
  int64_t T, B;
  bool reverse;

  // Calls visit(t, b, begins) for every non-padding step in the order of travel; `begins` is 2 where a segment begins
  // after a reset, 1 where one begins otherwise.
  template <typename Visit>
  void walk(char* state, const Visit& visit) const {  // state: (B,), of each row
    constexpr char ENTERED = 1, CUT = 2;
    std::fill_n(state, B, char(0));
    for (int64_t k = 0; k < T; k++) {
      const int64_t t = reverse ? T - 1 - k : k, first = t * B;
      const bool* const cuts_before = start && !reverse ? start + first : nullptr;
      const bool* const cuts_after = start && reverse ? start + first : nullptr;
      for (int64_t b = 0; b < B; b++) {
        if (cuts_before && cuts_before[b]) state[b] |= CUT;
        if (!real || real[first + b]) {
          visit(t, b, state[b] & CUT ? 2 : state[b] & ENTERED ? 0 : 1);
          state[b] = ENTERED;
        }
        if (cuts_after && cuts_after[b]) state[b] |= CUT;
      }
    }
  }
};

}  // namespace

extern "C" int64_t gru_segments(const GruSegments* arguments) {
  const GruSegments& a = *arguments;
  const Flags flags{a.real, a.start, a.T, a.B, a.reverse != 0};
  std::unique_ptr<int64_t[]> numbers(new (std::nothrow) int64_t[2 * a.most + a.B + a.T + 1]);
  std::unique_ptr<char[]> state(new (std::nothrow) char[a.B + 1]);
  if (!numbers || !state) return -1;
  int64_t *const length = numbers.get(), *const place = length + a.most, *const current = place + a.most,
                 *const next = current + a.B;

  // Each segment's length, and how many have each length.
  int64_t segments = 0;
  std::fill_n(a.last, a.B, int64_t{-1});
  flags.walk(state.get(), [&](int64_t, int64_t b, int begins) {
    if (begins) a.last[b] = segments, length[segments++] = 0;
    length[a.last[b]]++;
  });
  std::fill_n(a.sizes, a.T, int64_t{0});
  for (int64_t s = 0; s < segments; s++) a.sizes[length[s] - 1]++;
  for (int64_t k = a.T - 1; k > 0; k--) a.sizes[k - 1] += a.sizes[k];  // now those longer than k

  // Longest first, equal ones in the order in which they begin.
  for (int64_t k = 0; k < a.T; k++) next[k] = k + 1 < a.T ? a.sizes[k + 1] : 0;
  for (int64_t s = 0; s < segments; s++) place[s] = next[length[s] - 1]++;
  for (int64_t b = 0; b < a.B; b++)
    if (a.last[b] >= 0) a.last[b] = place[a.last[b]];

  // `next` is where the rest of each packed step goes; `length` counts how far a segment is.
  int64_t offset = 0;
  for (int64_t k = 0; k < a.T; offset += a.sizes[k++]) next[k] = offset;
  int64_t begun = 0;
  flags.walk(state.get(), [&](int64_t t, int64_t b, int begins) {
    if (begins) {
      const int64_t s = current[b] = begun++;
      a.row[place[s]] = b, length[s] = 0;
      if (a.after_reset) a.after_reset[place[s]] = begins == 2;
    }
    const int64_t s = current[b];
    a.position[next[length[s]++] + place[s]] = t * a.B + b;
  });
  return std::count_if(a.sizes, a.sizes + a.T, [](int64_t size) { return size > 0; });
}
