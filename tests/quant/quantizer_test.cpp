// Quantizer: its states, the grids it keeps, and that no gradient and no learning rate breaks it.
#include "detent/quant/quantizer.h"
#include "detent/tests/nn/support.h"

using namespace detent;
using namespace detent::quant;
using namespace detent::test;

namespace {

QuantizerSpec spec_of(Scheme scheme = Scheme::range_learning_tf) {
  QuantizerSpec s;
  s.scheme = scheme;
  return s;
}

void feed(Quantizer& q, float lo, float hi) { q.apply({}, Var(Tensor::from(Shape{4}, {lo, 0.0f, 0.5f * hi, hi}))); }

void calibrate(Quantizer& q, float lo = -1.0f, float hi = 2.0f) {
  q.observe();
  feed(q, lo, hi);
  REQUIRE(q.finish_observing());
}

struct Bounds {
  nn::Parameter* min = nullptr;
  nn::Parameter* max = nullptr;
};
Bounds bounds_of(Quantizer& q) {
  Bounds b;
  nn::Visitor v;
  v.parameter = [&](nn::Parameter& p) { (p.name.ends_with(".min") ? b.min : b.max) = &p; };
  q.visit("", v);
  return b;
}

using Action = std::pair<const char*, std::function<void(Quantizer&)>>;

}  // namespace

TEST_CASE("quantizer_states") {
  const std::vector<Action> actions = {
      {"observe", [](Quantizer& q) { q.observe(); }}, {"finish", [](Quantizer& q) { q.finish_observing(); }}, {"abandon", [](Quantizer& q) { q.abandon(); }},
      {"freeze", [](Quantizer& q) { q.freeze(); }},   {"learn", [](Quantizer& q) { q.learn(); }},             {"disable", [](Quantizer& q) { q.disable(); }},
      {"enable", [](Quantizer& q) { q.enable(); }},   {"set_ranges", [](Quantizer& q) { q.set_ranges({{-1.0, 1.0}}); }}};
  // State reached by preparation -> what each action leads to; "-" is an error.
  struct Row {
    const char* from;
    std::function<void(Quantizer&)> prepare;
    std::map<std::string, std::string> to;
  };
  const std::vector<Row> table = {
      {"fresh", [](Quantizer&) {}, {{"observe", "observing"}, {"finish", "-"}, {"abandon", "-"}, {"freeze", "-"}, {"learn", "-"}, {"disable", "off"}, {"enable", "-"}, {"set_ranges", "frozen"}}},
      {"observing, no data", [](Quantizer& q) { q.observe(); },
       {{"observe", "-"}, {"finish", "off"}, {"abandon", "off"}, {"freeze", "-"}, {"learn", "-"}, {"disable", "-"}, {"enable", "-"}, {"set_ranges", "-"}}},
      {"observing, data", [](Quantizer& q) { q.observe(), feed(q, -1, 1); },
       {{"observe", "-"}, {"finish", "learning"}, {"abandon", "off"}, {"freeze", "-"}, {"learn", "-"}, {"disable", "-"}, {"enable", "-"}, {"set_ranges", "-"}}},
      {"learning", [](Quantizer& q) { calibrate(q); },
       {{"observe", "-"}, {"finish", "-"}, {"abandon", "-"}, {"freeze", "frozen"}, {"learn", "learning"}, {"disable", "off"}, {"enable", "-"}, {"set_ranges", "learning"}}},
      {"frozen", [](Quantizer& q) { calibrate(q), q.freeze(); },
       {{"observe", "observing"}, {"finish", "-"}, {"abandon", "-"}, {"freeze", "frozen"}, {"learn", "learning"}, {"disable", "off"}, {"enable", "-"}, {"set_ranges", "frozen"}}},
      {"disabled", [](Quantizer& q) { calibrate(q), q.disable(); },
       {{"observe", "observing"}, {"finish", "-"}, {"abandon", "-"}, {"freeze", "-"}, {"learn", "-"}, {"disable", "off"}, {"enable", "frozen"}, {"set_ranges", "frozen"}}},
  };
  for (const Row& row : table) {
    for (const Action& a : actions) {
      INFO(row.from << " -> " << a.first);
      Quantizer q("layer.relu", spec_of());
      row.prepare(q);
      const QuantizerState before = q.state();
      const std::string error = message_of([&] { a.second(q); }), &wanted = row.to.at(a.first);
      if (wanted == "-") {
        CHECK_MENTIONS(error, "\"layer.relu\"");
        CHECK_MENTIONS(error, std::string(to_string(before)));
        CHECK(q.state() == before);
      } else {
        CHECK(error == "");
        CHECK(to_string(q.state()) == wanted);
      }
    }
  }
  Quantizer again("layer.relu", spec_of());
  calibrate(again);
  CHECK_MENTIONS(message_of([&] { again.observe(); }), "freeze() it first");
  again.freeze();
  again.observe();
  CHECK_MENTIONS(message_of([&] { again.grids(); }), "while observing");
  CHECK_MENTIONS(message_of([&] {
                   Tape tape;
                   feed(again, -1, 1);
                 }),
                 "training is refused");
  feed(again, -1, 1);
  CHECK(again.finish_observing());
  Quantizer post("a", spec_of(Scheme::tf));
  calibrate(post);
  CHECK(post.state() == QuantizerState::frozen);
  QuantizerSpec weight = spec_of();
  weight.parameter = true;
  Quantizer w("conv.weight", weight);
  CHECK_MENTIONS(message_of([&] { w.observe(); }), "conv.weight");
  CHECK_MENTIONS(message_of([&] { post.encode(Tensor::zeros(Shape{2})); }), "\"a\"");
  CHECK_MENTIONS(message_of([&] { w.grids(); }), "conv.weight");
}

TEST_CASE("quantizer_off_and_observing_change_nothing") {
  Quantizer q("v", spec_of());
  const Tensor x = random_tensor({100}, 1);
  CHECK(q.apply({}, Var(x)).dense().shares_buffer(x));
  q.observe();
  CHECK(q.apply({}, Var(x)).dense().shares_buffer(x));
  q.finish_observing();
  CHECK_FALSE(same_bits(q.apply({}, Var(x)).dense(), x));
}

TEST_CASE("weights_on_a_symmetric_grid_keep_it") {
  Rng rng(6);
  for (const int bits : {2, 3, 4, 8}) {
    for (const bool strict : {false, true}) {
      for (int trial = 0; trial < 100; ++trial) {
        QuantizerSpec s = spec_of(trial % 2 ? Scheme::range_learning_tf_enhanced : Scheme::range_learning_tf);
        s.parameter = true;
        s.grid = {.bits = bits, .symmetric = true, .strict = strict};
        const int qmax = (1 << (bits - 1)) - 1, qmin = strict ? -qmax : -qmax - 1;
        const Grid grid{std::exp(20.0f * rng.uniform() - 10.0f), 0, qmin, qmax};
        std::vector<float> w;
        for (int i = 0; i < 60; ++i) w.push_back(dequantize(static_cast<int32_t>(qmin + rng.below(qmax - qmin + 1)), grid));
        w.push_back(dequantize(trial % 3 ? qmax : qmin, grid));
        w.push_back(dequantize(1, grid));
        const Tensor value = Tensor::from<float>(Shape{static_cast<int64_t>(w.size())}, w);
        Quantizer q("w", s);
        q.encode(value);
        INFO("bits " << bits << " strict " << strict << " scale " << grid.scale << " found " << q.grids()[0].scale);
        CHECK(q.grids()[0] == grid);
        CHECK(same_bits(q.apply({}, Var(value)).dense(), Tensor::from<float>(value.shape(), w)));
      }
    }
  }
}

TEST_CASE("weights_on_no_grid_get_min_and_max") {
  QuantizerSpec s = spec_of();
  s.parameter = true;
  s.grid.symmetric = true;
  Quantizer q("w", s);
  const Tensor w = random_tensor({1000}, 3);
  q.encode(w);
  float largest = 0.0f;
  for (const float v : w.to_vector<float>()) largest = std::max(largest, std::abs(v));
  CHECK(q.grids()[0].scale == doctest::Approx(static_cast<double>(largest) / 127.0));
  s.channel_axis = 0;
  Quantizer each("w", s);
  std::vector<float> rows = random_tensor({33}, 4, 0.1f).to_vector<float>();
  for (size_t c = 0; c < 3; ++c) rows[11 * c + 4] = -0.5f * static_cast<float>(c + 1);
  each.encode(Tensor::from<float>(Shape{3, 11}, rows));
  REQUIRE(each.grids().size() == 3);
  for (int c = 0; c < 3; ++c) CHECK(each.grids()[static_cast<size_t>(c)].scale == doctest::Approx(0.5 * (c + 1) / 127.0));
}

TEST_CASE("no_gradient_breaks_a_quantizer") {
  for (const RangeRule rule : {RangeRule::gated, RangeRule::lsq, RangeRule::aimet}) {
    for (const bool symmetric : {false, true}) {
      for (const bool behind_relu : {false, true}) {
        if (symmetric && behind_relu) continue;
        INFO(to_string(rule) << " symmetric " << symmetric << " relu " << behind_relu);
        QuantizerSpec s = spec_of();
        s.rule = rule;
        s.grid.symmetric = symmetric;
        if (behind_relu) s.min_bound = 0.0;
        Quantizer q("layer", s);
        calibrate(q, behind_relu ? 0.0f : -1.0f, 2.0f);
        const Bounds b = bounds_of(q);
        REQUIRE(b.min);
        nn::Sgd sgd({.learning_rate = 1.0f, .momentum = 0.0f});
        Rng rng(17);
        int bad = 0, negative_min = 0, jumps = 0;
        Range before = q.ranges()[0];
        for (int step = 0; step < 10000; ++step) {
          const auto draw = [&] {
            const float magnitude = std::pow(10.0f, rng.uniform(-12.0f, 37.0f));
            return (rng.below(20) == 0 ? INFINITY : magnitude) * (rng.below(2) ? 1.0f : -1.0f);
          };
          sgd.learning_rate = std::pow(10.0f, rng.uniform(-8.0f, 8.0f));
          b.min->grad = Tensor::from(Shape{1}, {draw()});
          b.max->grad = Tensor::from(Shape{1}, {draw()});
          sgd.step(std::vector<nn::Parameter*>{b.min, b.max});
          const Grid g = q.grids()[0];
          const Range now = q.ranges()[0];
          // Under AIMET's rule the bounds may lie anywhere; the grid made of them is valid all the same.
          const bool ordered = rule == RangeRule::aimet ? !std::isnan(now.min) && !std::isnan(now.max) : now.min <= 0.0 && now.max >= 0.0 && now.max > now.min;
          bad += !is_valid(g) || g.qmax - g.qmin > 255 || !ordered || !std::isfinite(dequantize(g.qmax, g)) || !std::isfinite(dequantize(g.qmin, g));
          negative_min += now.min < 0.0 || q.apply({}, Var(Tensor::from(Shape{1}, {-1.0f}))).dense().item() < 0.0f;
          // Half the width a step, and rounding; below the smallest width the range is set anew.
          const double half = 0.5 * (before.max - before.min);
          if (rule != RangeRule::aimet && now.max - now.min > 0.01) jumps += now.max > before.max + 1.001 * half + 1e-6 || now.min < before.min - 1.001 * half - (symmetric ? half : 0.0) - 1e-6;
          before = now;
        }
        CHECK(bad == 0);
        CHECK(jumps == 0);
        if (behind_relu && rule != RangeRule::aimet) CHECK(negative_min == 0);
        CHECK(b.min->value.item() == static_cast<float>(q.ranges()[0].min));
      }
    }
  }
}

TEST_CASE("clip_bounds_hold") {
  QuantizerSpec s = spec_of();
  s.min_bound = 0.0;
  s.max_bound = 6.0;
  Quantizer q("relu6", s);
  calibrate(q, -3.0f, 40.0f);
  CHECK(q.ranges()[0].min == 0.0);
  CHECK(q.ranges()[0].max == doctest::Approx(6.0));
  const Bounds b = bounds_of(q);
  b.max->value.fill(100.0f);
  b.min->value.fill(-100.0f);
  CHECK(q.grids()[0].zero_point == 0);
  CHECK(q.ranges()[0].max <= 6.0 + 1e-6);
  b.max->value.fill(5.0f);
  q.grids();
  CHECK(q.ranges()[0].max == doctest::Approx(5.0));
}

TEST_CASE("ranges_and_grids_that_are_none_are_refused_by_name") {
  Quantizer q("layer.relu", spec_of());
  calibrate(q);
  q.freeze();
  const std::vector<Grid> before = q.grids();
  const std::vector<std::pair<std::vector<Range>, const char*>> ranges = {
      {{}, "0 ranges are given where there are 1"}, {{{-1, 1}, {-1, 1}, {-1, 1}}, "3 ranges are given where there are 1"}, {{{1, -1}}, "[1, -1] is no range"},
      {{{-1, -2}}, "[-1, -2] is no range"},         {{{-1, INFINITY}}, "is no range"},                                   {{{NAN, 1}}, "is no range"}};
  const auto check_refused = [](const auto& rows, const auto& set) {
    for (const auto& row : rows) {
      const std::string m = message_of([&] { set(row.first); });
      CHECK_MENTIONS(m, row.second);
      CHECK_MENTIONS(m, "\"layer.relu\"");
    }
  };
  check_refused(ranges, [&](const std::vector<Range>& given) { q.set_ranges(given); });
  const std::vector<std::pair<std::vector<Grid>, const char*>> grids = {{{}, "0 grids where there are 1"},
                                                                        {{{0.1f, 0, 0, 255}, {0.1f, 0, 0, 255}}, "2 grids where there are 1"},
                                                                        {{{-1.0f, 0, 0, 255}}, "scale -1"},
                                                                        {{{0.0f, 0, 0, 255}}, "no grid"},
                                                                        {{{NAN, 0, 0, 255}}, "no grid"},
                                                                        {{{0.1f, 300, 0, 255}}, "zero point 300"},
                                                                        {{{0.1f, 3, 0, 15}}, "16 codes, where 8 bits have 256"}};
  check_refused(grids, [&](const std::vector<Grid>& given) { q.set_grids(given); });
  CHECK(q.grids() == before);
  QuantizerSpec s = spec_of();
  s.parameter = true;
  s.channel_axis = 0;
  Quantizer each("conv.weight", s);
  each.encode(random_tensor({3, 5}, 1));
  CHECK_MENTIONS(message_of([&] { each.set_ranges({{-1, 1}}); }), "1 ranges are given where there are 3");
  CHECK_MENTIONS(message_of([&] { each.set_grids({{0.1f, 0, 0, 255}}); }), "1 grids where there are 3");
}

TEST_CASE("what_a_given_grid_learns_from_is_that_grid") {
  struct Row {
    bool symmetric, strict;
    Grid given, learned;
  };
  const Row rows[] = {
      {false, false, {0.02f, 40, 0, 255}, {0.02f, 40, 0, 255}},
      {false, false, {0.02f, 3, -128, 127}, {0.02f, 131, 0, 255}},  // int8 codes of asymmetric values
      {false, false, {0.02f, 0, -128, 127}, {0.02f, 128, 0, 255}},
      {true, false, {0.02f, 128, 0, 255}, {0.02f, 0, -128, 127}},
      {true, false, {0.02f, 0, -127, 127}, {0.02f, 0, -128, 127}},
      {true, true, {0.02f, 0, -128, 127}, {0.02f, 0, -127, 127}},
      {true, false, {1e-9f, 0, -128, 127}, {1e-9f, 0, -128, 127}},  // narrower than the least scale
  };
  for (const Row& r : rows) {
    QuantizerSpec s = spec_of();
    s.grid = {.symmetric = r.symmetric, .strict = r.strict, .least_scale = kLeastScale};
    Quantizer q("v", s);
    q.set_grids({r.given});
    CHECK(q.grids()[0] == r.given);
    const Tensor x = random_tensor({200}, 3, 1.2f);
    const Tensor before = q.apply({}, Var(x)).dense();
    q.learn();
    CHECK(q.grids()[0] == r.learned);
    if (r.given.scale > 1e-6f) CHECK(q.ranges()[0].max == doctest::Approx(range_of(r.learned).max));
    if (r.given.qmax - r.given.qmin == r.learned.qmax - r.learned.qmin) CHECK(same_bits(q.apply({}, Var(x)).dense(), before));
  }
  for (const auto& row : {std::pair{true, Grid{0.004f, 40, 0, 255}}, {false, Grid{0.004f, 0, -127, 127}}}) {
    const auto& symmetric = row.first;
    const auto& given = row.second;
    QuantizerSpec s = spec_of();
    s.grid.symmetric = symmetric;
    Quantizer q("v", s);
    q.set_grids({given});
    CHECK_MENTIONS(message_of([&] { q.learn(); }), symmetric ? "no symmetric grid of 8 bits" : "no asymmetric grid of 8 bits");
    CHECK(q.state() == QuantizerState::frozen);
    CHECK(q.grids()[0] == given);
  }
}

TEST_CASE("disabling_a_learning_quantizer_takes_over_what_the_optimizer_wrote") {
  Quantizer a("v", spec_of()), b("v", spec_of());
  for (Quantizer* q : {&a, &b}) {
    calibrate(*q);
    bounds_of(*q).max->value.fill(1.5f);
  }
  a.freeze();
  b.disable();
  b.enable();
  CHECK(b.grids() == a.grids());
  CHECK(b.ranges()[0].max == 1.5);
}

TEST_CASE("a_weight_that_became_nan_stops_every_pass_until_it_is_a_number_again") {
  QuantizerSpec s = spec_of(Scheme::tf);
  s.parameter = true;
  Quantizer w("conv.weight", s);
  w.encode(Tensor::from(Shape{2}, {-1.0f, 1.0f}));
  const std::vector<Grid> before = w.grids();
  for (int i = 0; i < 3; ++i) CHECK_MENTIONS(message_of([&] { w.apply({}, Var(Tensor::from(Shape{2}, {0.5f, NAN}))); }), "\"conv.weight\"");
  CHECK(w.grids() == before);
  CHECK(message_of([&] { w.apply({}, Var(Tensor::from(Shape{2}, {0.5f, 3.0f}))); }).empty());
  CHECK_FALSE(w.grids() == before);
}

TEST_CASE("a_range_is_never_made_of_infinities") {
  for (const Scheme scheme : {Scheme::tf, Scheme::tf_enhanced, Scheme::percentile, Scheme::mse, Scheme::moving_average, Scheme::entropy}) {
    for (const float infinite : {INFINITY, -INFINITY}) {
      Quantizer q("layer3.div", spec_of(scheme));
      q.observe();
      const std::string m = message_of([&] { q.apply({}, Var(Tensor::from(Shape{3}, {0.0f, 1.0f, infinite}))); });
      CHECK_MENTIONS(m, "calibration of \"layer3.div\"");
      CHECK_MENTIONS(m, "inf");
      QuantizerSpec s = spec_of(scheme);
      s.parameter = true;
      Quantizer w("conv.weight", s);
      CHECK_MENTIONS(message_of([&] { w.encode(Tensor::from(Shape{3}, {0.0f, 1.0f, infinite})); }), "\"conv.weight\"");
    }
  }
}

TEST_CASE("nan_stops_with_the_quantizers_name") {
  for (const RangeRule rule : {RangeRule::gated, RangeRule::lsq, RangeRule::aimet}) {
    QuantizerSpec s = spec_of();
    s.rule = rule;
    Quantizer q("layer3.add", s);
    calibrate(q);
    bounds_of(q).max->value.fill(NAN);
    CHECK_MENTIONS(message_of([&] { q.apply({}, Var(Tensor::zeros(Shape{3}))); }), "\"layer3.add\"");
  }
  Quantizer q("layer3.add", spec_of());
  q.observe();
  CHECK_MENTIONS(message_of([&] { q.apply({}, Var(Tensor::from(Shape{2}, {0.0f, NAN}))); }), "\"layer3.add\"");
  QuantizerSpec s = spec_of();
  s.parameter = true;
  Quantizer w("conv.weight", s);
  CHECK_MENTIONS(message_of([&] { w.encode(Tensor::from(Shape{2}, {0.0f, NAN})); }), "\"conv.weight\"");
}

TEST_CASE("quantizer_bytes_bring_back_the_state") {
  Quantizer a("v", spec_of()), b("v", spec_of());
  calibrate(a, -0.7f, 1.3f);
  bounds_of(a).max->value.fill(1.1f);
  a.grids();
  b.restore(a.save());
  CHECK(b.state() == QuantizerState::learning);
  CHECK(b.grids() == a.grids());
  CHECK(b.save() == a.save());
  const std::string bytes = a.save();
  for (size_t n = 0; n < bytes.size(); ++n) {
    Quantizer c("v", spec_of());
    CHECK_MESSAGE(!message_of([&] { c.restore(std::string_view(bytes).substr(0, n)); }).empty(), n << " bytes");
    CHECK_FALSE(c.calibrated());
  }
  CHECK_FALSE(message_of([&] { b.restore(bytes + "x"); }).empty());
}
