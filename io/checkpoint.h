// Checkpoint: everything a training run needs to go on to the same bits. One file, sections with a CRC each; written to a temporary name, synced, renamed.
//
//   "DETENTCK" u32 version u32 sections | per section: u32 name length, name, u64 bytes, payload, u32 masked CRC-32C of name and payload | u32 CRC of all headers
//
// All integers little endian. Readers check every size against the file before they allocate. Thread-safe for different graphs and files.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "detent/nn/graph.h"
#include "detent/nn/optimizer.h"
#include "detent/quant/quantsim.h"

namespace detent::io {

/// Named byte strings, in order of name.
using Sections = std::map<std::string, std::string>;

void write_checkpoint_file(const std::string& path, const Sections& sections);
/// Throws Error naming the file, the section and the offset for anything that is not intact.
Sections read_checkpoint_file(const std::string& path);

/// Where a run stood.
struct Progress {
  int64_t step = 0;         ///< optimizer steps done
  int64_t epoch = 0;        ///< the epoch the next batch belongs to
  int64_t batch = 0;        ///< batches of that epoch already used
  std::string options{};    ///< the program's own: whatever must be equal to go on
  std::string report{};     ///< the program's own: results so far (accuracies of earlier stages), log
};

/// Weights, batch-norm statistics, quantizers (state, ranges, statistics), optimizer and progress. Throws Error naming a parameter that is not finite: a checkpoint is good.
void save_checkpoint(const std::string& path, nn::Graph& graph, quant::QuantSim* sim, const nn::Optimizer& optimizer, const Progress& progress);
/// Only the progress (to see whether options match before anything is touched).
Progress read_progress(const std::string& path);
/// Puts everything back; the Graph must be the same network, its batch norms folded the same way. Throws Error naming what does not fit; then nothing was changed.
Progress load_checkpoint(const std::string& path, nn::Graph& graph, quant::QuantSim* sim, nn::Optimizer& optimizer);

/// "PREFIX.step-N.ckpt".
std::string checkpoint_name(const std::string& prefix, int64_t step);
/// Checkpoints PREFIX.step-N.ckpt of a folder, newest step first.
std::vector<std::string> list_checkpoints(const std::string& folder, const std::string& prefix);
/// The newest checkpoint that reads back intact, or "". Damaged ones are passed over; their messages go to `skipped` when given.
std::string newest_good_checkpoint(const std::string& folder, const std::string& prefix, std::vector<std::string>* skipped = nullptr);
/// Of the checkpoints up to this step removes all but the newest `keep`. Later ones are another run's, or of a run that was continued from before them: they stay.
void prune_checkpoints(const std::string& folder, const std::string& prefix, int keep, int64_t step);

}  // namespace detent::io
