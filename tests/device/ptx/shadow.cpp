#include "shadow.h"

namespace ptx {
namespace {

// Whether the touch happened before what `who` does now, or was its own.
bool ordered(const Touch& t, const Who& who) {
  if (t.tag < who.first_tag) return true;  // an earlier launch
  if (t.tag != who.tag || t.epoch == kManyBlocks) return false;
  return t.epoch < who.epoch || t.thread == who.thread;
}

// Touches of one kind become one that stands for all.
Touch merged(const Touch& t, const Who& who) {
  const Touch mine = {who.tag, who.thread, who.epoch};
  if (t.tag < who.first_tag) return mine;
  if (t.tag != who.tag || t.epoch == kManyBlocks) return {who.tag, kManyThreads, kManyBlocks};
  return t.epoch < who.epoch || t.thread == who.thread ? mine : Touch{who.tag, kManyThreads, who.epoch};
}

}  // namespace

Conflict touch(Cell& cell, const Who& who, Use use) {
  if (cell.on_its_way && cell.write.tag == who.tag) return {Conflict::with_copy, cell.write};
  if (!ordered(cell.write, who)) return {Conflict::with_write, cell.write};
  if (use != Use::atomic && !ordered(cell.atomic, who)) return {Conflict::with_atomic, cell.atomic};
  if (use != Use::read && !ordered(cell.read, who)) return {Conflict::with_read, cell.read};
  switch (use) {
    case Use::read:
      cell.read = merged(cell.read, who);
      break;
    case Use::atomic:
      cell.atomic = merged(cell.atomic, who);
      break;
    case Use::write:
    case Use::copy:
      cell.write = {who.tag, who.thread, who.epoch};
      break;
  }
  cell.on_its_way = use == Use::copy;
  return {};
}

void GlobalShadow::find_page(uint64_t page) {
  std::unique_ptr<Cell[]>& cells = (small_ ? bytes_ : words_)[page];
  if (!cells) cells = std::make_unique<Cell[]>(kPage);
  last_page_ = page;
  last_ = cells.get();
}

}  // namespace ptx
