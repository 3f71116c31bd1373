// Runs a file of AIMET conformance cases through the library: build/tests/conformance FILE.json
// One line per failing case, a table per op, then "N passed, N failed, N skipped". Exit 0 when none failed, 1 when some did, 2 on bad usage.
#include <cstdio>
#include <fstream>
#include <iterator>

#include "conformance/cases.h"
#include "detent/core/error.h"

using namespace detent::conformance;

namespace {

struct Count {
  int passed = 0, failed = 0, skipped = 0;
};

// "" when the case passes.
std::string run_case(const Runners& runners, const Case& c) {
  const auto runner = runners.find(c.op());
  if (runner == runners.end()) return "no runner for op " + c.op();
  try {
    const std::vector<std::string> failures = compare(c, runner->second(c));
    if (failures.empty()) return "";
    return failures.size() == 1 ? failures[0] : failures[0] + " (and " + std::to_string(failures.size() - 1) + " more)";
  } catch (const std::exception& e) {
    return std::string("threw: ") + e.what();
  }
}

int run(const Json& document) {
  Runners runners;
  add_encoding_runners(runners);
  add_quantize_runners(runners);
  add_learning_runners(runners);
  add_torch_runners(runners);
  add_tool_runners(runners);
  add_export_runners(runners);

  std::map<std::string, Count> by_op;
  std::map<std::string, int> reasons;
  Count total;
  const Json none = Json::object();
  const Json& datasets = document.contains("datasets") ? document.at("datasets") : none;
  for (const Json& j : document.at("cases")) {
    const Case c{j, datasets};
    Count& count = by_op[c.op()];
    if (const char* reason = skip_reason(c)) {
      ++count.skipped, ++total.skipped, ++reasons[reason];
      continue;
    }
    const std::string failure = run_case(runners, c);
    if (failure.empty()) {
      ++count.passed, ++total.passed;
    } else {
      ++count.failed, ++total.failed;
      std::printf("FAILED %s (%s): %s\n", j.value("id", "?").c_str(), c.op().c_str(), failure.c_str());
    }
  }
  std::printf("%-38s %8s %8s %8s\n", "op", "passed", "failed", "skipped");
  for (const auto& [op, n] : by_op) std::printf("%-38s %8d %8d %8d\n", op.c_str(), n.passed, n.failed, n.skipped);
  for (const auto& [reason, n] : reasons) std::printf("skipped %d: %s\n", n, reason.c_str());
  std::printf("%d passed, %d failed, %d skipped\n", total.passed, total.failed, total.skipped);
  return total.failed == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "error: usage: conformance FILE.json\n");
    return 2;
  }
  std::ifstream file(argv[1], std::ios::binary);
  if (!file) {
    std::fprintf(stderr, "error: cannot read %s\n", argv[1]);
    return 2;
  }
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  try {
    return run(Json::parse(text));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "error: %s: %s\n", argv[1], e.what());
    return 2;
  }
}
