#include "detent/quant/given_grids.h"

#include <limits>

#include "detent/core/error.h"

namespace detent::quant {
namespace {

std::string shown(const Grid& g) { return text("scale ", g.scale, ", zero point ", g.zero_point, ", codes ", g.qmin, "..", g.qmax); }

}  // namespace

std::string misfit(const std::vector<Grid>& grids, size_t wanted, int bits) {
  if (grids.empty() || grids.size() != wanted) return text(grids.size(), " grids where there are ", wanted);
  for (const Grid& g : grids) {
    if (!is_valid(g)) return text(shown(g), ": no grid; its scale is a positive number, and zero lies on it");
    const int64_t codes = int64_t{g.qmax} - g.qmin + 1, all = int64_t{1} << bits;
    if (codes != all && codes != all - 1) return text(shown(g), ": ", codes, " codes, where ", bits, " bits have ", all);
  }
  return {};
}

std::optional<Grid> grid_under(const Grid& given, const GridSpec& spec) {
  GridSpec any_step = spec;
  any_step.least_scale = std::numeric_limits<double>::min();
  const int32_t top = signed_qmax(spec.bits), below = given.zero_point - given.qmin;
  const bool middle = given.qmax - given.zero_point == top && (below == top || below == top + 1);
  const Grid from_zero{given.scale, below, 0, given.qmax - given.qmin}, signed_one{given.scale, 0, signed_qmin(spec.bits, spec.strict), top};
  for (const Grid& g : {middle ? signed_one : from_zero, from_zero}) {
    if (grid_from_range(range_of(g), any_step) == g) return g;
  }
  return std::nullopt;
}

std::string of_another_kind(const std::vector<Grid>& grids, const GridSpec& spec) {
  for (const Grid& g : grids) {
    if (!grid_under(g, spec)) return text(shown(g), ": no ", spec.symmetric ? "symmetric" : "asymmetric", " grid of ", spec.bits, " bits, as they are here");
  }
  return {};
}

}  // namespace detent::quant
