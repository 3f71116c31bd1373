// What a Flow keeps of its work: checkpoints, the log, and what earlier runs left in the folder.
#include <signal.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "detent/core/file.h"
#include "flow.h"
#include "progress.h"

namespace qat {

using namespace detent;
using Json = nlohmann::json;

namespace {

constexpr auto kAbandoned = std::chrono::minutes(10);  // no file takes longer to be written

// Of a temporary file's name: PREFIX.onnx.tmp-PID-N, where PID is of this machine.
bool writer_lives(const std::string& name) {
  const size_t at = name.rfind(".tmp-") + 5;
  int pid = 0;
  std::from_chars(name.data() + at, name.data() + name.size(), pid);
  return pid > 0 && pid != ::getpid() && (::kill(pid, 0) == 0 || errno == EPERM);
}

bool abandoned(const std::string& path) {
  std::error_code gone;
  const auto written = std::filesystem::last_write_time(path, gone);
  return !gone && written < std::filesystem::file_time_type::clock::now() - kAbandoned;
}

// A file of this prefix, not of one that begins with it and a dot.
bool is_result_of(const std::string& prefix, std::string name) {
  if (!name.starts_with(prefix + ".")) return false;
  name = name.substr(prefix.size() + 1, name.rfind(".tmp-") - prefix.size() - 1);
  if (name.starts_with("step-") && name.ends_with(".ckpt")) return std::all_of(name.begin() + 5, name.end() - 5, [](unsigned char c) { return std::isdigit(c); });
  constexpr std::string_view kResults[] = {"onnx", "qdq.onnx", "safetensors", "encodings", "log.jsonl", "summary.json"};
  return std::find(std::begin(kResults), std::end(kResults), name) != std::end(kResults);
}

std::string shown(const Json& value) { return value.is_number_float() ? text(value.get<float>()) : value.dump(); }

// What a checkpoint is not compared by: files are told by their contents; how many records may be broken changes no step (older checkpoints name it).
bool is_compared(const std::string& key) { return key != "files" && key != "skip-bad-records"; }

// Older checkpoints do not say, whatever it was.
bool may_lack(const std::string& key) { return key == "float-steps" || key == "reestimate-bn"; }

// Why a run cannot go on from a checkpoint that was written with other options, or "".
std::string difference(const Json& then, const Json& now) {
  for (const auto& [key, value] : now.items()) {
    if (!is_compared(key) || (then.contains(key) ? then[key] == value : may_lack(key))) continue;
    return text("it was written ", then.contains(key) ? text("with --", key, " ", shown(then[key])) : text("without --", key), ", this run has ", shown(value), "; give the same options");
  }
  for (const auto& [key, value] : then.items()) {
    if (is_compared(key) && !now.contains(key)) return text("it was written with --", key, " ", shown(value), ", this run is without; give the same options");
  }
  const Json files = then.value("files", Json::object());
  for (const auto& [key, value] : now.at("files").items()) {
    if (files.contains(key) && files[key] != value) return text("the file of its --", key, " had another content; give the same one");
  }
  return {};
}

// The lines of the first `steps` steps, each once.
void trim(const std::string& path, int64_t steps) {
  std::string kept;
  if (steps > 0 && file_exists(path)) {
    SequentialFile file(path);
    int64_t last = 0;
    for (std::string line; file.read_line(line);) {
      const Json j = Json::parse(line, nullptr, false);
      const int64_t step = j.is_object() ? j.value("step", int64_t{0}) : 0;
      if (step <= last || step > steps) break;
      last = step;
      kept += line + "\n";
    }
  }
  write_file_atomically(path, std::string_view(kept));
}

}  // namespace

TrainingLog::TrainingLog(std::string path, int64_t steps) : path_(std::move(path)), kept_(steps > 0) {
  trim(path_, steps);
  file_ = std::make_unique<OutputFile>(path_, FileSystem::Open::append);
}

TrainingLog::~TrainingLog() {
  if (kept_) return;
  try {
    if (file_exists(path_)) remove_file(path_);
  } catch (const Error&) {
  }
}

template <class Fn>
void TrainingLog::guarded(Fn&& fn) {
  if (!file_) return;
  const int64_t whole = file_->offset();
  try {
    fn();
  } catch (const Error& e) {
    failure_ = e.what();
    try {
      file_->truncate(whole);  // without the half of a line
    } catch (const Error&) {
    }
    file_.reset();
    say(false, text("warning: training goes on without its log: ", failure_));
  }
}

void TrainingLog::add(const nn::StepInfo& step) {
  guarded([&] {
    file_->write(nlohmann::ordered_json{{"step", step.step}, {"loss", step.loss}, {"lr", step.learning_rate}}.dump() + "\n");
    const auto now = std::chrono::steady_clock::now();
    if (now - flushed_ < std::chrono::seconds(1)) return;
    file_->flush();
    flushed_ = now;
  });
}

void TrainingLog::sync() {
  guarded([&] { file_->sync(); });
}

void TrainingLog::close() {
  guarded([&] {
    file_->sync();
    file_->close();
  });
  kept_ = true;
}

std::string Flow::options_key() const {
  Json key = Json::parse(resume_key(o_));
  key["files"] = contents_of_files(o_);
  return key.dump();
}

std::string Flow::checkpoint_path() const { return join_path(o_.output, io::checkpoint_name(o_.prefix, progress_.step)); }

void Flow::save(Prune prune) {
  report_.bad_records = train_set_->bad_places();
  progress_.report = report_.to_json();
  const std::string file = checkpoint_path();
  naming_last_checkpoint([&] { io::save_checkpoint(file, net_, sim_.get(), *sgd_, progress_); });
  last_checkpoint_ = file;
  checkpoint_step_ = progress_.step;
  if (prune == Prune::yes) io::prune_checkpoints(o_.output, o_.prefix, o_.keep_checkpoints, progress_.step);
}

// What comes behind training changes the network: an end before the results are written goes on from this checkpoint, which is then removed.
void Flow::save_trained() {
  trained_ = true;
  if (checkpoint_step_ == progress_.step) return;
  try {
    const bool there = file_exists(checkpoint_path());
    save(Prune::no);
    if (!there) trained_checkpoint_ = last_checkpoint_;
  } catch (const Error& e) {
    if (o_.checkpoint_every) throw;
    say(false, text("warning: the trained network has no checkpoint until it is exported: ", e.what()));
  }
}

// Throws the error again, with where the work of the steps before it is.
void Flow::save_failing(const Error& why) {
  if (checkpoint_step_ != progress_.step) {
    try {
      save(Prune::yes);
    } catch (const Error& e) {
      fail(why.what(), "; what was trained could not be saved: ", e.what());
    }
  }
  fail(why.what(), "; what was trained is saved: mend it and go on with --resume ", last_checkpoint_);
}

// A stop that loses nothing: what was trained is in a checkpoint, which need not lie in the output folder.
void Flow::say_stopped() const {
  say(false, text("stopped after step ", progress_.step, "; continue with --resume ", last_checkpoint_, last_checkpoint_ == checkpoint_path() ? " (or --resume auto)" : ""));
}

// A run that was killed leaves the file it was writing under a temporary name; nobody reads those. Without a lock a run of another machine may be writing it.
void Flow::remove_left_overs() const {
  for (const std::string& name : list_folder(o_.output)) {
    if (!is_temporary_name(name) || !(is_result_of(o_.prefix, name) || name.starts_with(".writable.tmp-")) || writer_lives(name)) continue;
    const std::string path = join_path(o_.output, name);
    if (!lock_->held() && !abandoned(path)) continue;
    try {
      remove_file(path);
    } catch (const Error&) {
      if (file_exists(path)) throw;
      continue;  // another run was faster
    }
    say(o_.quiet, "removed " + name + ", which an interrupted run left behind");
  }
}

// Why this run cannot go on from where a checkpoint stood, or "".
std::string Flow::obstacle(const io::Progress& then, const Json& now) const {
  const Json options = Json::parse(then.options, nullptr, false);
  if (!options.is_object()) return "its options cannot be read";
  if (std::string other = difference(options, now); !other.empty()) return other;
  Report report;
  try {
    report = Report::from_json(then.report);
  } catch (const Error& e) {
    return e.what();
  }
  const int64_t images = train_set_->size(), files = train_set_->files();
  const auto trained_on = report.images.find("train");
  // Older checkpoints do not know of files.
  if (trained_on != report.images.end() && (trained_on->second != images || (report.train_files && report.train_files != files)))
    return text("it was trained on ", trained_on->second, " images", report.train_files ? text(" in ", report.train_files, " files") : "", ", --data ", o_.data, " now has ",
                images, " in ", files, "; give the same data");
  if (const auto bad = static_cast<int64_t>(report.bad_records.size()); bad > o_.skip_bad_records)
    return text(bad, bad == 1 ? " broken record was" : " broken records were", " left out before it, --skip-bad-records ", o_.skip_bad_records, " allows fewer; give at least ",
                bad);
  if (o_.epochs == 0) return text("it holds ", then.step, " steps of training, which --epochs 0 would export as they are; --max-steps ", then.step, " ends there in order");
  if (then.step > total_steps())
    return text("it holds ", then.step, " steps, --epochs ", o_.epochs, o_.max_steps ? text(" and --max-steps ", o_.max_steps) : "", " ask for ", total_steps(), "; give at least ",
                then.step, " or an earlier checkpoint");
  return {};
}

// Of the newest checkpoints the first that is intact and that this run can go on from.
std::string Flow::checkpoint_to_resume(const Json& now) const {
  std::string refused;
  bool damaged = false;
  for (const std::string& path : io::list_checkpoints(o_.output, o_.prefix)) {
    try {
      const std::string other = obstacle(io::read_progress(path), now);
      if (other.empty()) {
        if (!refused.empty()) say(false, text("warning: passed over ", refused));
        if (damaged || !refused.empty()) say(false, text("warning: going on from the one before, ", path));
        return path;
      }
      if (refused.empty()) refused = text(path, ": ", other);
    } catch (const std::exception& e) {
      damaged = true;
      say(false, text("warning: ", e.what()));
    }
  }
  DETENT_CHECK(refused.empty(), "--resume ", refused);
  if (damaged) say(false, "warning: no good checkpoint is left: starting anew");
  else say(o_.quiet, "no checkpoint to resume from: starting anew");
  return {};
}

void Flow::resume() {
  if (o_.resume.empty()) return;
  const Json now = Json::parse(progress_.options);
  if (o_.resume == "auto") {
    resume_from_ = checkpoint_to_resume(now);
    return;
  }
  resume_from_ = o_.resume;
  const std::string other = obstacle(io::read_progress(resume_from_), now);
  DETENT_CHECK(other.empty(), "--resume ", resume_from_, ": ", other);
}

}  // namespace qat
