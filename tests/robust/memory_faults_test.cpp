// Fails the k-th request for memory of one training step, for every k: both tries of the allocator, so that the step cannot go on.
#include <doctest/doctest.h>

#include "detent/core/allocator.h"
#include "detent/tests/io/support.h"
#include "detent/tests/robust/tiny_run.h"

using namespace detent;
using namespace detent::test;

namespace {

// Requests are counted from the moment it is armed; those in [fail_at, fail_at + tries) get nothing.
class FailingMemory final : public RawMemory {
 public:
  std::unique_ptr<RawMemory> below;
  int64_t requests = 0, fail_at = -1, tries = 2;
  void* acquire(size_t bytes) override {
    const int64_t k = requests++;
    return fail_at >= 0 && k >= fail_at && k < fail_at + tries ? nullptr : below->acquire(bytes);
  }
  void release(void* p, size_t bytes) override { below->release(p, bytes); }
};

class UseFailingMemory {
 public:
  UseFailingMemory(int64_t fail_at, int64_t tries) {
    auto memory = std::make_unique<FailingMemory>();
    memory_ = memory.get();
    memory_->fail_at = fail_at;
    memory_->tries = tries;
    // Nothing allocates in between: this thread is alone.
    memory_->below = host_allocator().exchange_raw(std::move(memory));
  }
  ~UseFailingMemory() {
    host_allocator().trim();  // while there is still something below to give back to
    host_allocator().exchange_raw(std::move(memory_->below));
  }
  UseFailingMemory(const UseFailingMemory&) = delete;
  UseFailingMemory& operator=(const UseFailingMemory&) = delete;
  int64_t requests() const { return memory_->requests; }

 private:
  FailingMemory* memory_;
};

struct Data {
  Tensor images = Tensor({kTinyBatch, kTinySize, kTinySize, 3}, DType::f32);
  Tensor labels = Tensor({kTinyBatch}, DType::i64);
  Data() {
    Rng rng(3);
    for (int64_t i = 0; i < images.elements(); ++i) images.data<float>()[i] = rng.uniform(-1.0f, 1.0f);
    for (int64_t i = 0; i < kTinyBatch; ++i) labels.data<int64_t>()[i] = i;
  }
};

struct Trained {
  std::vector<float> parameters;
  float loss = 0.0f;
  friend bool operator==(const Trained&, const Trained&) = default;
};

// A network, its quantizers when it is to have some, and one step on it.
struct Step {
  nn::Graph net = tiny_network();
  std::unique_ptr<quant::QuantSim> sim;
  std::unique_ptr<nn::Optimizer> optimizer;
  std::unique_ptr<nn::Trainer> trainer;
  Step(bool quantized, const Data& data) {
    if (quantized) {
      nn::fold_batch_norms(net);
      sim = std::make_unique<quant::QuantSim>(net);
      sim->compute_encodings([&] { net(data.images); });
    }
    optimizer = std::make_unique<nn::Adam>(nn::Adam::Options{.learning_rate = 0.01f});
    trainer = std::make_unique<nn::Trainer>(net, *optimizer, nn::Schedule{.base = 0.01f});
  }
  Trained run(const Data& data) {
    Trained t;
    t.loss = trainer->step(data.images, data.labels).loss;
    for (nn::Parameter* p : net.parameters()) {
      for (const float v : p->value.to_vector<float>()) t.parameters.push_back(v);
    }
    return t;
  }
};

}  // namespace

TEST_CASE("fault sweep: memory refused anywhere in a training step is a named error, leaks nothing, and the step can be repeated") {
  set_num_threads(1);
  const Data data;
  for (const bool quantized : {false, true}) {
    Trained expected;
    int64_t requests = 0, errors = 0;
    {
      Step step(quantized, data);
      const UseFailingMemory memory(-1, 0);
      expected = step.run(data);
      requests = memory.requests();
    }
    CHECK(requests > 10);
    for (int64_t k = 0; k < requests; ++k) {
      INFO("request ", k, std::string(quantized ? ", quantized" : ""));
      const int64_t live = host_allocator().stats().live_bytes;
      {
        Step step(quantized, data);
        std::string message;
        {
          const UseFailingMemory memory(k, 2);
          message = error_of([&] { step.run(data); });
        }
        CHECK_CONTAINS(message, "out of memory");
        CHECK_CONTAINS(message, "use a smaller batch");
        errors += !message.empty();
        // Batch norms have seen the batch by then; without them nothing was changed, and the same step gives the same bits.
        if (quantized) CHECK(step.run(data) == expected);
        else CHECK_NOTHROW(step.run(data));
      }
      CHECK(host_allocator().stats().live_bytes == live);
    }
    CHECK(errors == requests);
    MESSAGE("memory faults: " << requests << " requests of a " << std::string(quantized ? "quantized" : "float") << " step refused one by one, " << errors << " named errors");
  }
}

TEST_CASE("fault sweep: memory refused once is taken from the cache and makes no difference") {
  set_num_threads(1);
  const Data data;
  Trained expected;
  int64_t requests = 0;
  {
    Step step(true, data);
    const UseFailingMemory memory(-1, 0);
    expected = step.run(data);
    requests = memory.requests();
  }
  for (int64_t k = 0; k < requests; ++k) {
    Step step(true, data);
    const UseFailingMemory memory(k, 1);
    CHECK_MESSAGE(step.run(data) == expected, "request " << k);
  }
}
