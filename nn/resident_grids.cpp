#include "detent/nn/resident_grids.h"

#include <string_view>
#include <unordered_map>

#include "detent/nn/host_reads.h"

namespace detent::nn {
namespace {

std::string_view bytes_of(const std::vector<Grid>& grids) { return {reinterpret_cast<const char*>(grids.data()), grids.size() * sizeof(Grid)}; }

}  // namespace

std::string ResidentGrids::update(std::span<Transform* const> transforms, Device device) {
  if (device.type == DeviceType::cpu) return {};
  const HostReads reads(transforms, device);
  std::vector<Grid> grids;
  std::vector<std::pair<Transform*, int64_t>> owners;
  std::unordered_map<std::string_view, size_t> first;
  std::string key;
  for (Transform* t : transforms) {
    const std::vector<Grid>* own = t->step_grids();
    if (!own || own->empty()) continue;
    const auto [same, is_new] = first.emplace(bytes_of(*own), owners.size());
    key += is_new ? text(' ', own->size()) : text(" =", same->second);
    grids.insert(grids.end(), own->begin(), own->end());
    owners.emplace_back(t, std::ssize(*own));
  }
  const Shape shape{std::ssize(grids), static_cast<int64_t>(sizeof(Grid))};
  const bool moved = !memory_.defined() || memory_.shape() != shape || memory_.device() != device;
  if (moved) {
    memory_ = Tensor(shape, DType::u8, device);
    ++moves_;
  }
  if (moved || grids != grids_) backend(device).copy(memory_.raw(), device, grids.data(), Device{}, grids.size() * sizeof(Grid));
  grids_ = std::move(grids);
  int64_t at = 0;
  for (const auto& [transform, n] : owners) {
    transform->set_resident_grids(memory_.rows(at, at + n));
    at += n;
  }
  return text(" grids ", moves_, key);
}

}  // namespace detent::nn
