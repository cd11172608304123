// Splitting loops over threads. One rule decides how many threads a job is worth: waking a team
// costs some microseconds, so short jobs stay on the caller.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace libai_ext {

// Threads for `work` units when each thread should have at least `grain` of them.
inline int ThreadsFor(double work, double grain) {
  return static_cast<int>(std::min<double>(omp_get_max_threads(), std::max(1., work / grain)));
}

// A function of which there is one copy in machine code, for the caller alone and for a team: GCC
// may vectorise two copies of a loop in different ways, and a sum in another order rounds
// otherwise.
#define LIBAI_EXT_ONE_COPY __attribute__((noipa))

// `body` is a copy, so that GCC can keep what it has captured in registers.
template<typename Body>
LIBAI_EXT_ONE_COPY void RunPiece(Body body, int64_t begin, int64_t end) {
  body(begin, end);
}

// Calls body(begin, end) on disjoint pieces that cover [0, n). Pieces start at multiples of
// `align`: neighbouring threads do not write to the same cache line, and with any number of threads
// the same elements are computed in whole vectors, which may round otherwise than the rest of a
// loop.
template<typename Body>
void ParallelFor(int64_t n, int64_t grain, const Body& body, int64_t align = 16) {
  if (n <= 0) { return; }
  const int threads = ThreadsFor(n, grain);
  if (threads == 1) {
    RunPiece(body, 0, n);
    return;
  }
  const int64_t piece = ((n + threads - 1) / threads + align - 1) / align * align;
#pragma omp parallel num_threads(threads)
  {
    // The runtime may grant fewer threads than asked for, so each takes pieces in turn.
    for (int64_t begin = omp_get_thread_num() * piece; begin < n;
         begin += omp_get_num_threads() * piece) {
      RunPiece(body, begin, std::min(n, begin + piece));
    }
  }
}

// Calls body(row) for each row of a [rows, cols] matrix.
template<typename Body>
void ParallelRows(int64_t rows, int64_t cols, const Body& body) {
  constexpr int64_t kGrain = 8192;  // elements a thread should have
  const int64_t grain_rows = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, cols));
  ParallelFor(
      rows, grain_rows,
      [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) { body(row); }
      },
      /*align=*/1);
}

}  // namespace libai_ext
