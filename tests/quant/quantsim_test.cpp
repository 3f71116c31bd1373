// QuantSim: calibration, freezing, encodings out and in.
#include "detent/io/encodings.h"
#include "detent/nn/passes/fold_batch_norm.h"
#include "detent/quant/quantsim.h"
#include "detent/tests/nn/support.h"

using namespace detent;
using namespace detent::nn;
using namespace detent::quant;
using namespace detent::test;

TEST_CASE("calibration_errors") {
  Graph g = folded_small_network();
  QuantSim sim(g);
  CHECK_MENTIONS(message_of([&] { sim.compute_encodings([] {}); }), "calibration");
  for (const Placement& p : sim.placements()) CHECK((p.parameter || p.quantizer->state() == QuantizerState::off));
  Tensor bad = small_images().clone();
  bad.data<float>()[7] = NAN;
  CHECK_MENTIONS(message_of([&] { sim.compute_encodings([&] { g(bad); }); }), "\"input\"");
  static_cast<Conv2d&>(*g.find("conv2")->module).bias.value.data<float>()[1] = NAN;
  CHECK_MENTIONS(message_of([&] { sim.compute_encodings([&] { g(small_images()); }); }), "\"conv2\"");
  static_cast<Conv2d&>(*g.find("conv2")->module).bias.value.data<float>()[1] = 0.0f;
  static_cast<Conv2d&>(*g.find("conv1")->module).weight.value.data<float>()[1] = NAN;
  CHECK_MENTIONS(message_of([&] { sim.compute_encodings([&] { g(small_images()); }); }), "\"conv1.weight\"");
  static_cast<Conv2d&>(*g.find("conv1")->module).weight.value.data<float>()[1] = 0.0f;
  // An error of the callback's own leaves nothing observing; the next calibration works.
  CHECK_THROWS_AS(sim.compute_encodings([&] { g(small_images()), throw std::runtime_error("disk"); }), std::runtime_error);
  for (const Placement& p : sim.placements()) CHECK(p.quantizer->state() != QuantizerState::observing);
  CHECK(message_of([&] { sim.compute_encodings([&] { g(small_images()); }); }).empty());
}

TEST_CASE("learned_ranges_start_where_the_scheme_of_the_same_name_ends") {
  for (const char* name : {"tf", "tf-enhanced", "percentile", "mse", "moving-average", "entropy"}) {
    INFO(name);
    Graph g = folded_small_network(), h = folded_small_network();
    QuantSim learned(g, {.scheme = parse_scheme(std::string("range-learning-") + name), .estimator = {.percentile = 99.0}}), fixed(h, {.scheme = parse_scheme(name), .estimator = {.percentile = 99.0}});
    learned.compute_encodings([&] { g(small_images()); });
    fixed.compute_encodings([&] { h(small_images()); });
    for (const Placement& p : learned.placements()) {
      CHECK(p.quantizer->state() == QuantizerState::learning);
      CHECK(p.quantizer->grids() == fixed.find(p.name)->grids());
    }
    Sgd sgd({.learning_rate = 0.05f});
    Trainer trainer(g, sgd, {.base = 0.05f});
    const std::vector<Grid> before = learned.find("fc")->grids();
    trainer.step(small_images(), class_labels(4, 4));
    CHECK_FALSE(learned.find("fc")->grids() == before);
    CHECK(learned.encodings().args.quant_scheme.starts_with("training_range_learning_with_"));
  }
}

TEST_CASE("a network has one sim at a time, and a sim may outlive its network's place") {
  Graph g = folded_small_network();
  auto sim = std::make_unique<QuantSim>(g);
  CHECK_MENTIONS(message_of([&] { QuantSim second(g); }), "has a quantizer of another QuantSim");
  CHECK(g.value(Value{0}).transform);  // the refused one took nothing out
  sim.reset();
  sim = std::make_unique<QuantSim>(g);
  const Graph elsewhere = std::move(g);
  sim.reset();  // must not throw
}

TEST_CASE("a trainer trains what the network has at each step, made before folding and calibration or after") {
  const auto trained = [](bool early) {
    Graph g = small_network();
    randomize(g, 1);
    Sgd sgd({.learning_rate = 0.05f});
    std::unique_ptr<Trainer> trainer;
    const auto make = [&] { trainer = std::make_unique<Trainer>(g, sgd, Schedule{.base = 0.05f}); };
    if (early) make();
    fold_batch_norms(g);
    QuantSim sim(g, {.scheme = Scheme::range_learning_tf});
    sim.compute_encodings([&] { g(small_images()); });
    if (!early) make();
    for (int i = 0; i < 3; ++i) trainer->step(small_images(), class_labels(4, 4));
    return sim.find("fc")->grids()[0].scale;
  };
  Graph g = folded_small_network();
  QuantSim sim(g, {.scheme = Scheme::range_learning_tf});
  sim.compute_encodings([&] { g(small_images()); });
  CHECK(trained(true) == trained(false));
  CHECK(trained(true) != sim.find("fc")->grids()[0].scale);
}

TEST_CASE("calibrating_training_and_evaluating_do_not_mix") {
  struct Labelled {
    Tensor images, labels;
  };
  const std::vector<Labelled> batches{{small_images(), class_labels(4, 4)}};
  Graph g = folded_small_network();
  QuantSim sim(g, {.scheme = Scheme::range_learning_tf});
  Sgd sgd({.learning_rate = 0.01f});
  Trainer trainer(g, sgd, {.base = 0.01f});
  const auto during = [&](const std::function<void()>& action) { return message_of([&] { sim.compute_encodings([&] { g(small_images()), action(); }); }); };
  CHECK_MENTIONS(during([&] { nn::evaluate(g, batches); }), "evaluation is refused: quantizer \"input\" is observing");
  for (const Placement& p : sim.placements()) CHECK(p.quantizer->state() == QuantizerState::off);  // a calibration that fails leaves nothing half done
  CHECK_MENTIONS(during([&] { trainer.step(small_images(), class_labels(4, 4)); }), "training is refused");
  CHECK_MENTIONS(during([&] { sim.encodings(); }), "observing");
  CHECK_MENTIONS(during([&] { sim.compute_encodings([] {}); }), "under way already");
  CHECK(during([&] { CHECK_MENTIONS(sim.table(), "observing"); }).empty());
  const std::vector<Grid> learned = sim.find("fc")->grids();
  CHECK_MENTIONS(message_of([&] { sim.compute_encodings([&] { g(random_tensor({2, 8, 8, 3}, 77, 3.0f)); }); }), "learning: calibrating again would throw its range away");
  CHECK(sim.find("fc")->grids() == learned);
  sim.freeze();
  CHECK(message_of([&] { sim.compute_encodings([&] { g(random_tensor({2, 8, 8, 3}, 77, 3.0f)); }); }).empty());
  CHECK_FALSE(sim.find("fc")->grids() == learned);
  CHECK(sim.find("fc")->state() == QuantizerState::learning);
}

TEST_CASE("tied_values_share_a_grid_while_they_learn") {
  Graph g = folded_small_network();
  QuantSim sim(g, {.scheme = Scheme::range_learning_tf});
  const size_t quantizers = sim.placements().size();
  sim.tie("relu1", "fc");
  CHECK(sim.find("relu1") == sim.find("fc"));
  CHECK(sim.placements().size() == quantizers);
  CHECK_FALSE(sim.find("fc")->spec().min_bound.has_value());  // scores are negative too: what only the ReLU had is gone
  sim.compute_encodings([&] { g(small_images()); });
  Range seen{0.0, 0.0};
  for (const char* name : {"relu1", "fc"}) {
    Graph h = folded_small_network();
    QuantSim other(h, {.scheme = Scheme::range_learning_tf});
    other.compute_encodings([&] { h(small_images()); });
    const Range r = other.find(name)->ranges()[0];
    seen = {std::min(seen.min, r.min), std::max(seen.max, r.max)};
  }
  CHECK(sim.find("fc")->ranges()[0].max - sim.find("fc")->ranges()[0].min == doctest::Approx(seen.max - seen.min).epsilon(0.01));
  Sgd sgd({.learning_rate = 0.05f});
  Trainer trainer(g, sgd, {.base = 0.05f});
  const std::vector<Grid> before = sim.find("fc")->grids();
  for (int i = 0; i < 3; ++i) trainer.step(small_images(), class_labels(4, 4));
  CHECK_FALSE(sim.find("fc")->grids() == before);
  const EncodingMap map = sim.encodings();
  CHECK(map.find("relu1")->grids == map.find("fc")->grids);
  sim.load_encodings(map);
  CHECK_MENTIONS(message_of([&] { sim.tie("input", "fc"); }), "range already");
  Graph h = folded_small_network();
  QuantSim other(h);
  CHECK_MENTIONS(message_of([&] { other.tie("relu1", "conv1.weight"); }), "parameter");
  CHECK_MENTIONS(message_of([&] { other.tie("relu1", "nowhere"); }), "\"nowhere\"");
}

TEST_CASE("calibration_sees_quantized_weights_and_float_activations") {
  Graph g = folded_small_network(), reference = folded_small_network();
  QuantSim sim(g, {.scheme = Scheme::tf, .param_bits = 3});
  Tensor seen;
  sim.compute_encodings([&] { seen = g(small_images()).dense(); });
  for (const char* name : {"conv1", "conv2"}) {
    auto& conv = static_cast<Conv2d&>(*reference.find(name)->module);
    conv.weight.value = sim.find(std::string(name) + ".weight")->apply({}, Var(conv.weight.value)).dense().clone();
  }
  auto& fc = static_cast<Dense&>(*reference.find("fc")->module);
  fc.weight.value = sim.find("fc.weight")->apply({}, Var(fc.weight.value)).dense().clone();
  CHECK(same_bits(seen, infer(reference, small_images())));
  CHECK_FALSE(same_bits(seen, infer(g, small_images())));
  // Min and max of what was seen.
  Tensor scores = seen;
  float lo = 0.0f, hi = 0.0f;
  for (const float v : scores.to_vector<float>()) lo = std::min(lo, v), hi = std::max(hi, v);
  const Range r = sim.find("fc")->ranges()[0];
  CHECK(r.max - r.min == doctest::Approx(static_cast<double>(hi - lo)).epsilon(1e-5));
}

TEST_CASE("calibration_lists_what_it_never_reached") {
  Graph g;
  const Value a = g.input("a", {4}), b = g.input("b", {4});
  const Value unread = g.add<Dense>("unread", {b}, Dense::Options{.in = 4, .out = 2});
  static_cast<void>(unread);
  g.output(g.add<Dense>("read", {a}, Dense::Options{.in = 4, .out = 2}));
  initialize(g, {});
  QuantSim sim(g);
  const Var in[] = {Var(random_tensor({2, 4}, 1)), Var(random_tensor({2, 4}, 2))};
  sim.compute_encodings([&] { g.forward({}, in); });
  CHECK(sim.unseen() == std::vector<std::string>{"unread"});
  CHECK(sim.find("unread")->state() == QuantizerState::off);
  CHECK(sim.encodings().find("unread") == nullptr);
}

TEST_CASE("own_encodings_read_back_to_the_same_bits") {
  for (const char* shipped : {"tensorflow_default", "per_channel_default", "integer"}) {
    for (const std::string& version : io::encodings_versions()) {
      INFO(shipped << " " << version);
      Graph g = folded_small_network();
      QuantSim sim(g, {.scheme = Scheme::range_learning_tf, .config = default_config(shipped)});
      sim.compute_encodings([&] { g(small_images()); });
      Sgd sgd({.learning_rate = 0.01f});
      Trainer trainer(g, sgd, {.base = 0.01f});
      for (int i = 0; i < 3; ++i) trainer.step(small_images(), class_labels(4, 4));
      const Tensor before = infer(g, small_images());
      const EncodingMap read = io::read_encodings(io::write_encodings(sim.encodings(), version), "test");
      sim.freeze();
      sim.compute_encodings([&] { g(random_tensor({2, 8, 8, 3}, 77, 3.0f)); });
      CHECK_FALSE(same_bits(infer(g, small_images()), before));
      sim.load_encodings(read);
      CHECK(same_bits(infer(g, small_images()), before));
      for (const Placement& p : sim.placements()) CHECK(p.quantizer->state() == QuantizerState::frozen);
    }
  }
}

TEST_CASE("load_encodings_strict_and_partial") {
  Graph g = folded_small_network();
  QuantSim sim(g, {.scheme = Scheme::tf});
  sim.compute_encodings([&] { g(small_images()); });
  const EncodingMap own = sim.encodings();
  const std::vector<Grid> conv1 = sim.find("conv1.weight")->grids();

  EncodingMap other = own;
  other.activations[0].name = "elsewhere";
  other.params[0].grids[0].scale *= 2.0f;
  const std::string m = message_of([&] { sim.load_encodings(other); });
  CHECK_MENTIONS(m, "elsewhere: no such quantizer");
  CHECK_MENTIONS(m, own.activations[0].name + ": no entry");
  CHECK(sim.find("conv1.weight")->grids() == conv1);  // nothing was changed
  sim.load_encodings(other, QuantSim::Load::partial);
  CHECK(sim.find(other.params[0].name)->grids() == other.params[0].grids);

  EncodingMap narrow = own;
  narrow.params[0].bits = 4;
  CHECK_MENTIONS(message_of([&] { sim.load_encodings(narrow); }), "4 bits");
  EncodingMap channels = own;
  channels.params[0].grids.assign(8, channels.params[0].grids[0]);
  CHECK_MENTIONS(message_of([&] { sim.load_encodings(channels, QuantSim::Load::partial); }), "8 grids");

  Graph resnet = models::resnet20_cifar10({.classes = 10, .image_size = 16});
  QuantSim big(resnet);
  CHECK_MENTIONS(message_of([&] { big.load_encodings(own); }), "another network");
}

TEST_CASE("a_file_of_another_symmetry_is_refused_or_used_as_it_is_and_never_learned") {
  Graph g = folded_small_network();
  QuantSim sim(g, {.scheme = Scheme::range_learning_tf});
  sim.compute_encodings([&] { g(small_images()); });
  sim.freeze();
  EncodingMap map = sim.encodings();
  CHECK(map.find("conv1.weight")->symmetric);
  for (Encoding& e : map.params) {
    if (e.name != "conv1.weight") continue;
    e.symmetric = false;
    e.grids[0] = {0.004f, 40, 0, 255};
  }
  CHECK_MENTIONS(message_of([&] { sim.load_encodings(map); }), "conv1.weight: scale 0.004, zero point 40, codes 0..255: no symmetric grid of 8 bits");
  sim.load_encodings(map, QuantSim::Load::partial);
  CHECK(sim.find("conv1.weight")->grids()[0] == Grid{0.004f, 40, 0, 255});
  CHECK_FALSE(sim.encodings().find("conv1.weight")->symmetric);
  CHECK_MENTIONS(message_of([&] { sim.learn(); }), "conv1.weight: scale 0.004");
  for (const Placement& p : sim.placements()) CHECK(p.quantizer->state() == QuantizerState::frozen);
  for (Encoding& e : map.params) e.grids[0].zero_point = 300;
  CHECK_MENTIONS(message_of([&] { sim.load_encodings(map, QuantSim::Load::partial); }), "zero point 300");
}

TEST_CASE("freeze_learn_disable_enable") {
  Graph g = folded_small_network();
  const Tensor plain = infer(g, small_images());
  QuantSim sim(g, {.scheme = Scheme::range_learning_tf, .param_bits = 4, .output_bits = 4});
  sim.compute_encodings([&] { g(small_images()); });
  const Tensor quantized = infer(g, small_images());
  const size_t learned = g.parameters().size();
  sim.freeze();
  CHECK(g.parameters().size() == 6);  // three layers' weights and biases
  CHECK(learned == 6 + 2 * sim.placements().size());
  CHECK(same_bits(infer(g, small_images()), quantized));
  sim.learn();
  CHECK(g.parameters().size() == learned);
  sim.disable();
  CHECK(same_bits(infer(g, small_images()), plain));
  CHECK_FALSE(message_of([&] { sim.disable(); }).empty());
  sim.enable();
  CHECK(same_bits(infer(g, small_images()), quantized));
  CHECK(g.parameters().size() == learned);
  CHECK_FALSE(message_of([&] { sim.enable(); }).empty());
}

TEST_CASE("a_failed_calibration_leaves_a_way_back_to_the_one_before") {
  Graph g = folded_small_network();
  QuantSim sim(g, {.scheme = Scheme::tf});
  sim.compute_encodings([&] { g(small_images()); });
  const Tensor quantized = infer(g, small_images());
  CHECK_THROWS_AS(sim.compute_encodings([&] { throw Error("no more data"); }), Error);
  CHECK_FALSE(sim.has_ranges());
  CHECK_MENTIONS(message_of([&] { sim.learn(); }), "enable() them first");
  CHECK_MENTIONS(message_of([&] { sim.export_to("/nowhere", "m"); }), "nothing would be quantized");
  sim.enable();
  CHECK(sim.has_ranges());
  CHECK(same_bits(infer(g, small_images()), quantized));
}

TEST_CASE("a_failed_calibration_takes_no_learned_or_loaded_range_away") {
  for (const Scheme scheme : {Scheme::range_learning_tf, Scheme::tf}) {
    for (const bool loaded : {false, true}) {
      INFO(to_string(scheme) << (loaded ? " loaded" : " learned"));
      Graph g = folded_small_network();
      QuantSim sim(g, {.scheme = scheme});
      sim.compute_encodings([&] { g(small_images()); });
      if (loaded) {
        EncodingMap map = sim.encodings();
        for (auto* list : {&map.params, &map.activations}) {
          for (Encoding& e : *list) e.grids[0].scale *= 0.75f;
        }
        sim.load_encodings(map);
      } else {
        sim.learn();
        Sgd sgd({.learning_rate = 0.05f});
        Trainer trainer(g, sgd, {.base = 0.05f});
        for (int i = 0; i < 3; ++i) trainer.step(small_images(), class_labels(4, 4));
        sim.freeze();
      }
      const EncodingMap before = sim.encodings();
      const Tensor quantized = infer(g, small_images());
      for (const bool observed : {false, true}) {
        CHECK_THROWS_AS(sim.compute_encodings([&] {
          if (observed) g(random_tensor({2, 8, 8, 3}, 77, 3.0f));
          throw Error("no more data");
        }),
                        Error);
        sim.enable();
        for (const Placement& p : sim.placements()) CHECK(p.quantizer->grids() == before.find(p.name)->grids);
        CHECK(same_bits(infer(g, small_images()), quantized));
      }
    }
  }
}

TEST_CASE("a_scheme_that_does_not_learn_keeps_what_learn_made_of_a_weights_range") {
  Graph g = folded_small_network();
  QuantSim sim(g, {.scheme = Scheme::tf});
  sim.compute_encodings([&] { g(small_images()); });
  sim.learn();
  Sgd sgd({.learning_rate = 0.05f});
  Trainer trainer(g, sgd, {.base = 0.05f});
  for (int i = 0; i < 5; ++i) trainer.step(small_images(), class_labels(4, 4));
  const std::vector<Grid> learned = sim.find("conv1.weight")->grids();
  { const FloatScope full_precision(sim); }
  CHECK(sim.find("conv1.weight")->state() == QuantizerState::learning);
  CHECK(sim.find("conv1.weight")->grids() == learned);
  sim.freeze();
  CHECK(sim.find("conv1.weight")->grids() == learned);
  infer(g, small_images());
  CHECK(sim.find("conv1.weight")->grids() == learned);
  // Calibration makes a new range, which follows the weights again.
  sim.compute_encodings([&] { g(small_images()); });
  const std::vector<Grid> calibrated = sim.find("conv1.weight")->grids();
  CHECK_FALSE(calibrated == learned);
  static_cast<Conv2d&>(*g.find("conv1")->module).weight.value = random_tensor({8, 3, 3, 3}, 6, 3.0f);
  CHECK_FALSE(sim.find("conv1.weight")->grids() == calibrated);
}

TEST_CASE("what_gets_ranges_while_it_is_disabled_acts_and_can_be_disabled_again") {
  Graph g = folded_small_network();
  const Tensor plain = infer(g, small_images());
  QuantSim sim(g, {.scheme = Scheme::tf});
  sim.compute_encodings([&] { g(small_images()); });
  const Tensor quantized = infer(g, small_images());
  sim.disable();
  CHECK_FALSE(sim.has_ranges());
  CHECK_MENTIONS(message_of([&] { sim.export_to("/nowhere", "m"); }), "nothing would be quantized");
  sim.compute_encodings([&] { g(small_images()); });
  CHECK(same_bits(infer(g, small_images()), quantized));
  {
    const FloatScope full_precision(sim);
    CHECK(same_bits(infer(g, small_images()), plain));
  }
  CHECK(same_bits(infer(g, small_images()), quantized));
  // Some of them only: the others come back with enable().
  const EncodingMap all = sim.encodings();
  EncodingMap one;
  one.activations.push_back(*all.find("relu1"));
  sim.disable();
  sim.load_encodings(one, QuantSim::Load::partial);
  CHECK(sim.find("relu1")->state() == QuantizerState::frozen);
  sim.disable();
  CHECK(same_bits(infer(g, small_images()), plain));
  sim.enable();
  CHECK(same_bits(infer(g, small_images()), quantized));
}

TEST_CASE("nan_and_infinity_in_images_are_not_quantized_away") {
  Graph g = folded_small_network();
  for (const float value : {NAN, INFINITY, -INFINITY}) {
    CAPTURE(value);
    QuantSim sim(g, {.scheme = Scheme::range_learning_tf});
    sim.compute_encodings([&] { g(small_images()); });
    Tensor bad = small_images().clone();
    bad.data<float>()[5] = value;
    Sgd sgd({.learning_rate = 0.01f});
    Trainer trainer(g, sgd, {.base = 0.01f});
    CHECK_MENTIONS(message_of([&] { infer(g, bad); }), "input \"input\" [4,8,8,3] holds 1 values that are NaN or infinite");
    CHECK_MENTIONS(message_of([&] { trainer.step(bad, class_labels(4, 4)); }), "input \"input\"");
    CHECK(message_of([&] { trainer.step(small_images(), class_labels(4, 4)); }).empty());
    g.set_execution(Graph::Execution::integer);
    CHECK_MENTIONS(message_of([&] { infer(g, bad); }), "input \"input\"");
    g.set_execution(Graph::Execution::planned);
  }
}

TEST_CASE("a_branch_that_no_output_reads_is_in_nobodys_way") {
  Graph g = folded_small_network();
  g.add<Activation>("aux", {g.find_value("conv1")}, Pointwise{PointwiseKind::sigmoid});
  QuantSim sim(g, {.scheme = Scheme::tf, .config = default_config("integer")});
  sim.compute_encodings([&] { g(small_images()); });
  CHECK(sim.unseen() == std::vector<std::string>{"aux"});
  const Tensor simulated = infer(g, small_images());
  g.set_execution(Graph::Execution::integer);
  CHECK(same_bits(infer(g, small_images()), simulated));
  g.set_execution(Graph::Execution::planned);
  CHECK_NOTHROW(sim.load_encodings(sim.encodings()));
}

TEST_CASE("the_table_has_a_line_per_quantizer") {
  Graph g = folded_small_network();
  QuantSim sim(g);
  const auto lines = [](const std::string& t) { return static_cast<size_t>(std::count(t.begin(), t.end(), '\n')); };
  CHECK(lines(sim.table()) == sim.placements().size() + 1);
  sim.compute_encodings([&] { g(small_images()); });
  const std::string t = sim.table();
  CHECK(lines(t) == sim.placements().size() + 1);
  for (const char* part : {"relu1", "conv1.weight", "conv2,add", "learning", "-128..127", "0..255"}) CHECK_MENTIONS(t, part);
}
