// All of Detent's public interface. Programs that care for compile time include the headers they use.
#pragma once

#include "detent/autograd/ops.h"
#include "detent/autograd/tape.h"
#include "detent/autograd/var.h"
#include "detent/core/error.h"
#include "detent/core/parallel.h"
#include "detent/core/rng.h"
#include "detent/core/tensor.h"
#include "detent/io/safetensors.h"
#include "detent/nn/graph.h"
#include "detent/nn/layers.h"
#include "detent/nn/models/models.h"
#include "detent/nn/optimizer.h"
#include "detent/quant/config.h"
#include "detent/quant/scheme.h"
