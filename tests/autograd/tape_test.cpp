// The tape: accumulation, freeing, scopes, threads.
#include "detent/autograd/tape.h"

#include <doctest/doctest.h>

#include <memory>
#include <thread>

#include "detent/autograd/ops.h"

using namespace detent;

namespace {

using Values = std::vector<float>;

Leaf leaf_of(std::initializer_list<float> v) {
  Leaf l;
  l.value = Tensor::from(Shape{static_cast<int64_t>(v.size())}, v);
  return l;
}

// Identity that reports on a counter how many of its closures are alive, and the counter's value when its backward runs.
Var probe(const Var& x, const std::shared_ptr<int>& token, std::vector<long>* alive_at_backward) {
  return Tape::record("probe", {x}, Var(x.dense()), [token, alive_at_backward](const Tensor& dy, GradSink& sink) {
    alive_at_backward->push_back(token.use_count());
    sink.add(0, dy);
  });
}

}  // namespace

TEST_CASE("gradients_of_a_reused_value_add_up") {
  Leaf x = leaf_of({1, 2, 3});
  Tape tape;
  const Var v = Tape::leaf(x);
  const Var y = add(mul(v, v), add(v, Tape::leaf(x)));  // x^2 + 2x, the leaf taken twice
  tape.backward(sum(y));
  CHECK(x.grad.to_vector<float>() == Values{4, 6, 8});
  CHECK(tape.size() == 0);
}

TEST_CASE("accumulation_does_not_change_a_shared_buffer") {
  Leaf a = leaf_of({1, 2}), b = leaf_of({3, 4});
  Tape tape;
  const Var va = Tape::leaf(a), vb = Tape::leaf(b);
  const Var both = add(va, vb);  // dy goes to both as one buffer
  tape.backward(sum(add(both, va)));
  CHECK(a.grad.to_vector<float>() == Values{2, 2});
  CHECK(b.grad.to_vector<float>() == Values{1, 1});
}

TEST_CASE("leaves_never_share_a_gradient_buffer") {
  Leaf a = leaf_of({1, 2}), b = leaf_of({3, 4});
  const Tensor dy = Tensor::full(Shape{2}, 1.0f);
  Tape tape;
  tape.backward(add(Tape::leaf(a), Tape::leaf(b)), dy);
  CHECK_FALSE(a.grad.shares_buffer(b.grad));
  a.grad.fill(9.0f);
  CHECK(b.grad.to_vector<float>() == Values{1, 1});
  CHECK(dy.to_vector<float>() == Values{1, 1});
}

TEST_CASE("backward_overwrites_the_gradient_of_the_step_before") {
  Leaf x = leaf_of({2});
  for (int step = 0; step < 2; ++step) {
    Tape tape;
    tape.backward(mul(Tape::leaf(x), Tape::leaf(x)));
    CHECK(x.grad.to_vector<float>() == Values{4});
  }
}

TEST_CASE("backward_frees_what_it_walked") {
  Leaf x = leaf_of({1});
  const auto token = std::make_shared<int>();
  std::vector<long> alive;
  Tape tape;
  Var y = Tape::leaf(x);
  for (int i = 0; i < 3; ++i) y = probe(y, token, &alive);
  CHECK(token.use_count() == 4);
  tape.backward(y);
  CHECK(alive == std::vector<long>{4, 3, 2});  // each closure is gone when the next one runs
  CHECK(token.use_count() == 1);
}

TEST_CASE("without_a_tape_nothing_is_kept") {
  Leaf x = leaf_of({1, -2});
  const auto token = std::make_shared<int>();
  std::vector<long> alive;
  const Var y = relu(probe(Tape::leaf(x), token, &alive));
  CHECK(token.use_count() == 1);
  CHECK_FALSE(y.tracked());
  CHECK(y.dense().to_vector<float>() == Values{1, 0});
  CHECK_FALSE(grad_enabled());
}

TEST_CASE("constants_and_frozen_leaves_record_nothing") {
  Leaf frozen = leaf_of({1, 2});
  frozen.trainable = false;
  Tape tape;
  const Var y = add(Tape::leaf(frozen), Var(Tensor::full(Shape{2}, 1.0f)));
  CHECK(tape.size() == 0);
  CHECK_FALSE(y.tracked());
  CHECK_THROWS_WITH_AS(tape.backward(y, Tensor::full(Shape{2}, 1.0f)), doctest::Contains("was not recorded on this tape"), Error);
}

TEST_CASE("no_grad_suspends_the_tape") {
  Leaf x = leaf_of({3});
  Tape tape;
  const Var v = Tape::leaf(x);
  const Var before = mul(v, v);
  Var inside;
  {
    const NoGrad guard;
    CHECK_FALSE(grad_enabled());
    CHECK_FALSE(v.tracked());
    inside = mul(before, v);
    {
      Tape inner;
      CHECK(Tape::active() == &inner);
    }
    CHECK_FALSE(grad_enabled());
  }
  CHECK(Tape::active() == &tape);
  CHECK(tape.size() == 1);
  tape.backward(mul(before, inside));  // inside = 27 is a constant
  CHECK(x.grad.to_vector<float>() == Values{27 * 6});
}

TEST_CASE("watched_values_keep_their_gradient") {
  Tape tape;
  const Var x = tape.watch(Tensor::from(Shape{2}, {1, 2})), unused = tape.watch(Tensor::from(Shape{1}, {1}));
  tape.backward(affine(x, 3.0f, 1.0f), Tensor::from(Shape{2}, {1, 10}));
  CHECK(tape.grad(x).to_vector<float>() == Values{3, 30});
  CHECK_FALSE(tape.grad(unused).defined());
}

TEST_CASE("a_nested_tape_sees_outer_values_as_constants") {
  Leaf x = leaf_of({2}), y = leaf_of({5});
  Tape outer;
  const Var vx = Tape::leaf(x);
  {
    Tape inner;
    CHECK_FALSE(vx.tracked());
    inner.backward(mul(vx, Tape::leaf(y)));
    CHECK(outer.size() == 0);
  }
  CHECK(y.grad.to_vector<float>() == Values{2});
  CHECK_FALSE(x.grad.defined());
  CHECK(vx.tracked());
  outer.backward(mul(vx, vx));
  CHECK(x.grad.to_vector<float>() == Values{4});
}

TEST_CASE("each_thread_has_its_own_tape") {
  Values grads[2];
  const auto work = [&](int id) {
    for (int i = 0; i < 50; ++i) {
      Leaf x = leaf_of({1.0f + static_cast<float>(id), 2});
      Tape tape;
      const Var v = Tape::leaf(x);
      tape.backward(sum(mul(v, v)));
      grads[id] = x.grad.to_vector<float>();
    }
  };
  Tape here;
  std::thread other([&] {
    CHECK(Tape::active() == nullptr);
    work(1);
  });
  work(0);
  other.join();
  CHECK(grads[0] == Values{2, 4});
  CHECK(grads[1] == Values{4, 4});
  CHECK(here.size() == 0);
}

TEST_CASE("backward_states_what_it_needs") {
  Tape tape;
  const Var x = tape.watch(Tensor::zeros(Shape{2, 3}));
  const Var y = relu(x);
  CHECK_THROWS_WITH_AS(tape.backward(y), doctest::Contains("the loss has shape [2,3], not one element"), Error);
  CHECK_THROWS_WITH_AS(tape.backward(y, Tensor::zeros(Shape{3, 2})), doctest::Contains("upstream gradient [3,2] for a value of shape [2,3]"), Error);
}

TEST_CASE("a_tape_is_walked_once") {
  Tape tape;
  const Var x = tape.watch(Tensor::full(Shape{1}, 2.0f));
  const Var first = relu(x), second = affine(x, 3.0f, 0.0f);
  tape.backward(first);
  CHECK_THROWS_WITH_AS(tape.backward(second), doctest::Contains("walked already"), Error);
  CHECK(tape.grad(x).item() == 1.0f);
  Tape both;
  const Var y = both.watch(Tensor::full(Shape{1}, 2.0f));
  both.backward(add(relu(y), affine(y, 3.0f, 0.0f)));
  CHECK(both.grad(y).item() == 4.0f);
}

TEST_CASE("a_gradient_of_another_shape_or_input_is_named_by_its_op") {
  const auto broken = [](int input, const Shape& shape) {
    Tape tape;
    const Var x = tape.watch(Tensor::zeros(Shape{2, 3}));
    const Var y = Tape::record("halve", {x}, Var(Tensor::zeros(Shape{2, 3})), [&](const Tensor&, GradSink& sink) { sink.add(input, Tensor::zeros(shape)); });
    tape.backward(sum(y));
  };
  CHECK_NOTHROW(broken(0, {2, 3}));
  CHECK_THROWS_WITH_AS(broken(0, {3}), doctest::Contains("backward of halve: the gradient of input 0 is [3], the input [2,3]"), Error);
  CHECK_THROWS_WITH_AS(broken(1, {2, 3}), doctest::Contains("backward of halve: a gradient for input 1, it has 1"), Error);
  CHECK_THROWS_WITH_AS(broken(-1, {2, 3}), doctest::Contains("input -1"), Error);
}
