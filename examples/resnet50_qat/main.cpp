// resnet50_qat: quantization-aware training with range learning as one command. See --help and README.md.
#include <csignal>
#include <cstdio>
#include <exception>
#include <sstream>

#include "detent/core/error.h"
#include "flow.h"

namespace {

// The first request stops in order; a second one ends the process at once, as without a handler.
void on_signal(int signal) {
  if (qat::stop_requested.exchange(true)) {
    std::signal(signal, SIG_DFL);
    std::raise(signal);
  }
}

// One line: what, where, what to do.
int complain(const char* what) {
  std::string line;
  std::istringstream lines(what);
  for (std::string next; std::getline(lines, next);) {
    next.erase(0, next.find_first_not_of(' '));
    if (next.empty()) continue;
    line += (line.empty() ? "" : line.ends_with(':') || line.ends_with(';') ? " " : "; ") + next;
  }
  std::fprintf(stderr, "error: %s\n", line.c_str());
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGINT, on_signal);
  std::signal(SIGTERM, on_signal);
  try {
    qat::Options options;
    std::string text;
    if (!qat::parse(argc, argv, options, text)) {
      std::fputs(text.c_str(), stdout);
      return 0;
    }
    return qat::Flow(std::move(options)).run();
  } catch (const detent::Error& e) {
    return complain(e.what());
  } catch (const std::exception& e) {
    return complain((std::string(e.what()) + " (unexpected; please report it)").c_str());
  }
}
