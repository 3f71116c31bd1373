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

// A terminal that closes tells its processes, and so does its shell: a second one is no second thought.
void on_hang_up(int) { qat::stop_requested.store(true); }

void handle_signals() {
  std::signal(SIGINT, on_signal);
  std::signal(SIGTERM, on_signal);
  if (std::signal(SIGHUP, on_hang_up) == SIG_IGN) std::signal(SIGHUP, SIG_IGN);  // nohup
  // Who reads the output may end before this process does (`2>&1 | tee`, Ctrl-C), and a limit on files be reached: writing then fails, which is told.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
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
  handle_signals();
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
