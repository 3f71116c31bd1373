#include "progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace qat {
namespace {

std::string clock_text(double seconds) {
  char buf[32];
  const auto s = static_cast<long long>(seconds + 0.5);
  if (s >= 3600) std::snprintf(buf, sizeof buf, "%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
  else std::snprintf(buf, sizeof buf, "%lld:%02lld", s / 60, s % 60);
  return buf;
}

constexpr double kPlainInterval = 15.0, kTerminalInterval = 0.1;

}  // namespace

Progress::Progress(std::string label, int64_t total, bool quiet, int64_t done)
    : label_(std::move(label)),
      total_(std::max<int64_t>(total, 1)),
      before_(done),
      quiet_(quiet),
      terminal_(isatty(2) != 0),
      start_(std::chrono::steady_clock::now()),
      drawn_(start_) {}

Progress::~Progress() { finish(); }

void Progress::finish() {
  if (!quiet_ && done_ > 0) draw(done_, note_, true);
  done_ = 0;
}

double Progress::seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

void Progress::update(int64_t done, const std::string& note) {
  done_ = done;
  note_ = note;
  if (quiet_) return;
  const auto now = std::chrono::steady_clock::now();
  if (std::chrono::duration<double>(now - drawn_).count() < (terminal_ ? kTerminalInterval : kPlainInterval)) return;
  drawn_ = now;
  draw(done, note, false);
}

void Progress::draw(int64_t done, const std::string& note, bool last) {
  const double s = seconds(), rate = s > 0 ? static_cast<double>(done - before_) / s : 0.0;
  const double left = rate > 0 ? static_cast<double>(total_ - done) / rate : 0.0;
  char line[256];
  const std::string time = last ? clock_text(s) : clock_text(left) + " left";
  if (terminal_) {
    constexpr int kWidth = 28;
    const int full = static_cast<int>(std::min<int64_t>(kWidth, done * kWidth / total_));
    std::string bar(static_cast<size_t>(full), '#');
    bar.resize(kWidth, '.');
    std::snprintf(line, sizeof line, "\r%-10s [%s] %lld/%lld  %.1f/s  %s  %s\033[K%s", label_.c_str(), bar.c_str(), static_cast<long long>(done), static_cast<long long>(total_),
                  rate, time.c_str(), note.c_str(), last ? "\n" : "");
  } else {
    std::snprintf(line, sizeof line, "%s: %lld of %lld images, %.1f images/s, %s%s%s\n", label_.c_str(), static_cast<long long>(done), static_cast<long long>(total_), rate,
                  time.c_str(), note.empty() ? "" : ", ", note.c_str());
  }
  std::fputs(line, stderr);
  std::fflush(stderr);
}

void say(bool quiet, const std::string& line) {
  if (!quiet) std::fprintf(stderr, "%s\n", line.c_str());
}

}  // namespace qat
