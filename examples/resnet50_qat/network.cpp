// Where a Flow's networks come from: an architecture or an ONNX file, and float weights.
#include <cmath>
#include <utility>

#include "built_in.h"
#include "detent/core/file.h"
#include "detent/io/onnx/import.h"
#include "detent/io/weights.h"
#include "detent/nn/layers.h"
#include "detent/nn/models/models.h"
#include "detent/nn/passes/fold_batch_norm.h"
#include "detent/nn/train.h"
#include "flow.h"
#include "progress.h"

namespace qat {

using namespace detent;

namespace {

constexpr float kFloatLearningRate = 1e-3f;
constexpr int64_t kSmallImage = 64;  // an imported network says nothing of how its images were prepared

io::Preprocess default_preprocess(const std::string& arch) {
  if (arch == "resnet50-v1") return io::Preprocess::keras;
  return arch.ends_with("-cifar10") ? io::Preprocess::cifar : io::Preprocess::torchvision;
}

}  // namespace

void Flow::import_network() {
  io::OnnxNetwork imported = io::load_onnx(o_.arch, {.image_size = o_.image_size});
  net_ = std::move(imported.graph);
  encodings_ = std::move(imported.encodings);
  DETENT_CHECK(o_.equalize == "no" || (encodings_.params.empty() && encodings_.activations.empty()), "--equalize ", o_.equalize, ": ", o_.arch,
               " has grids of the network as it is; leave one of them out");
  DETENT_CHECK(net_.inputs().size() == 1, "--arch ", o_.arch, ": it has ", net_.inputs().size(), " inputs, one image is given");
  const Shape in = net_.value(net_.inputs()[0]).shape, out = net_.value(net_.scores()).shape;
  DETENT_CHECK(in.rank() == 4 && in[1] == in[2] && in[3] == 3, "--arch ", o_.arch, ": its input is ", in, "; square images of three channels are given");
  DETENT_CHECK(o_.image_size == 0 || o_.image_size == in[1], "--image-size ", o_.image_size, ": the network in ", o_.arch, " takes images of ", in[1]);
  DETENT_CHECK(out.rank() == 2, "--arch ", o_.arch, ": its output is ", out, "; scores [n,classes] are needed");
  DETENT_CHECK(o_.classes == 0 || o_.classes == out[1], "--classes ", o_.classes, ": the network in ", o_.arch, " has ", out[1]);
  shape_ = {out[1], in[1]};
  preprocess_ = o_.preprocess.value_or(in[1] <= kSmallImage ? io::Preprocess::cifar : io::Preprocess::torchvision);
  if (!o_.preprocess) say(o_.quiet, text("images are prepared as for ", io::to_string(preprocess_), ", by the input's size; --preprocess names another way"));
}

void Flow::build_network() {
  if (o_.imported()) return import_network();
  shape_ = nn::models::published(o_.arch);
  if (o_.built_in()) shape_ = {kBuiltInClasses, kBuiltInImageSize};
  if (o_.classes) shape_.classes = o_.classes;
  if (o_.image_size) shape_.image_size = o_.image_size;
  preprocess_ = o_.preprocess.value_or(o_.built_in() ? io::Preprocess::cifar : default_preprocess(o_.arch));
  net_ = nn::models::make(o_.arch, shape_);
}

// Few steps fit a first run: AdamW with warm-up and a cosine, residual branches silent at first.
void Flow::train_built_in(nn::Graph& net) {
  // Whatever the weights depend on.
  const std::string special = text(preprocess_ == io::Preprocess::cifar ? "" : text("-", io::to_string(preprocess_)), shape_.classes == kBuiltInClasses ? "" : text("-classes", shape_.classes),
                                   shape_.image_size == kBuiltInImageSize ? "" : text("-size", shape_.image_size), o_.label_offset == 1 ? "" : text("-offset", o_.label_offset),
                                   device_.type == DeviceType::cpu ? "" : text("-cuda-", o_.precision), o_.precision == "bf16" ? "-bf16" : "");
  const std::string cached = join_path(cache_folder(), text("float-", o_.arch, "-", o_.float_steps, "-", o_.seed, "-", o_.batch, special, ".safetensors"));
  if (file_exists(cached)) {
    say(o_.quiet, "float weights from " + cached);
    return io::load_weights(net, cached);
  }
  nn::initialize(net, {.seed = o_.seed, .zero_last_norm_scale = true});
  net.to(device_);
  nn::Adam adam({.learning_rate = kFloatLearningRate, .weight_decay = 0.05f, .decoupled = true});
  nn::Trainer trainer(net, adam, {.kind = nn::Schedule::Kind::cosine, .base = kFloatLearningRate, .warmup_steps = o_.float_steps / 10, .total_steps = o_.float_steps});
  trainer.record = true;
  io::LoaderOptions options = loader_options(true);
  options.drop_last = true;
  io::Loader loader(train_set_, options);
  Progress bar("train float", o_.float_steps * o_.batch, o_.quiet);
  for (int64_t step = 0; step < o_.float_steps;) {
    for (const io::Batch& b : loader) {
      const nn::StepInfo info = trainer.step(b.images, b.labels);
      step = info.step;
      bar.update(step * o_.batch, text("loss ", std::round(info.loss * 1e4f) / 1e4f));
      stop_if_asked();
      if (step == o_.float_steps) break;
    }
  }
  report_.images["train"] = loader.images();
  report_.images_per_second["train_float"] = rate(o_.float_steps * o_.batch, bar.seconds());
  make_folders(cache_folder());
  io::save_weights(net, cached);
}

// An imported network has its weights already.
void Flow::load_float_weights(nn::Graph& net) {
  if (o_.built_in()) return train_built_in(net);
  if (!o_.weights.empty()) io::load_weights(net, o_.weights);
}

// Made from the same files again: the network itself has been folded, equalized and quantized.
void Flow::make_teacher() {
  if (o_.distill == 0.0f) return;
  teacher_ = o_.imported() ? io::load_onnx(o_.arch, {.image_size = o_.image_size}).graph : nn::models::make(o_.arch, shape_);
  load_float_weights(teacher_);
  nn::fold_batch_norms(teacher_);
  teacher_.to(device_);
}

}  // namespace qat
