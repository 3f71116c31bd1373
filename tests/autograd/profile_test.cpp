// The Profile of a small training step: every layer has its row, the rows add up to what was measured around them.
#include <chrono>
#include <thread>

#include "detent/autograd/ops.h"
#include "detent/autograd/profile.h"
#include "detent/autograd/tape.h"
#include "detent/core/error.h"
#include <doctest/doctest.h>

using namespace detent;

namespace {

void pause(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

// An op that takes its time: `forward` and `backward` milliseconds.
Var slow(const Var& x, int forward, int backward) {
  pause(forward);
  return Tape::record("slow", {x}, Var(x.dense()), [backward](const Tensor& dy, GradSink& sink) {
    pause(backward);
    sink.add(0, dy);
  });
}

}  // namespace

TEST_CASE("a profile gives forward and backward time to the layer that recorded them") {
  Profile profile;
  Tape tape;
  Var x = tape.watch(Tensor::full({1}, 1.0f)), y;
  {
    const Profile::Section section("one");
    y = slow(x, 20, 40);
    const Profile::Section inner("inner");
    pause(10);
  }
  y = slow(y, 0, 5);
  {
    const Profile::Section section("two");
    y = slow(y, 5, 5);
  }
  tape.backward(y);
  REQUIRE(profile.rows().size() == 4);
  CHECK(profile.rows()[0].name == "one");
  CHECK(profile.rows()[1].name == "inner");
  CHECK(profile.rows()[2].name == "two");
  CHECK(profile.rows()[3].name == "slow");
  // Sleeping takes at least its time; that of a section within is not counted twice.
  CHECK(profile.rows()[0].forward >= 0.019);
  CHECK(profile.rows()[0].backward >= 0.039);
  CHECK(profile.rows()[1].forward >= 0.009);
  CHECK(profile.rows()[1].backward == 0.0);
  CHECK(profile.rows()[2].forward >= 0.004);
  CHECK(profile.rows()[2].backward >= 0.004);
  CHECK(profile.rows()[3].forward == 0.0);
  CHECK(profile.rows()[3].backward >= 0.004);
  double sum = 0.0;
  for (const Profile::Row& r : profile.rows()) sum += r.forward + r.backward;
  CHECK(profile.seconds() == sum);
}

TEST_CASE("one profile a thread, none for others") {
  CHECK(Profile::active() == nullptr);
  Tape tape;
  Var y = tape.watch(Tensor::full({1}, 1.0f));
  {
    Profile profile;
    CHECK_THROWS_AS(Profile(), Error);
    std::thread([] {
      CHECK(Profile::active() == nullptr);
      const Profile::Section section("elsewhere");
    }).join();
    for (const char* name : {"a", "b"}) {
      const Profile::Section section(name);
      y = slow(y, 0, 0);
    }
    CHECK(profile.rows().size() == 2);
  }
  // Rows of a profile that has ended are not those of another.
  Profile later;
  tape.backward(y);
  REQUIRE(later.rows().size() == 1);
  CHECK(later.rows()[0].name == "slow");
}
