#include "detent/nn/host_reads.h"

#include <algorithm>

#include "detent/core/backend.h"

namespace detent::nn {

HostReads::HostReads(std::span<Transform* const> transforms, Device device) {
  if (device.type == DeviceType::cpu || backend(device).recording()) return;
  std::vector<Tensor> tensors;
  std::vector<FloatSpan> spans;
  std::vector<int64_t> sizes;
  int64_t total = 0;
  for (Transform* t : transforms) {
    int64_t size = 0;
    const std::vector<Tensor> reads = t->host_reads();
    // Those that are not there yet are read on their own.
    if (!std::all_of(reads.begin(), reads.end(), [&](const Tensor& x) { return x.device() == device; })) continue;
    for (const Tensor& x : reads) {
      spans.push_back({x.data<float>(), x.elements()});
      size += x.elements();
      tensors.push_back(x);
    }
    total += size;
    if (size == 0) continue;
    served_.push_back(t);
    sizes.push_back(size);
  }
  if (served_.empty()) return;
  Tensor joined({total}, DType::f32, device);
  backend(device).kernels().gather(spans.data(), static_cast<int64_t>(spans.size()), joined.data<float>());
  const std::vector<float> values = joined.to_vector<float>();
  const float* at = values.data();
  for (size_t i = 0; i < served_.size(); ++i) {
    served_[i]->deliver({at, static_cast<size_t>(sizes[i])});
    at += sizes[i];
  }
}

HostReads::~HostReads() {
  for (Transform* t : served_) t->deliver({});
}

}  // namespace detent::nn
