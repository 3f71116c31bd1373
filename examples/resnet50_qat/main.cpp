// resnet50_qat: quantization-aware training with range learning as one command. See --help and README.md.
#include <csignal>
#include <cstdio>
#include <exception>

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
  std::string line = what;
  while (!line.empty() && line.back() == '\n') line.pop_back();
  for (size_t at = 0; (at = line.find('\n', at)) != std::string::npos;) line.replace(at, 1, ";");
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
