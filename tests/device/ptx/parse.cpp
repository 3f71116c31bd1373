// nvcc writes a statement a line: the text is read by lines.
#include <algorithm>
#include <cstring>
#include <set>
#include <sstream>

#include "program.h"

namespace ptx {
namespace {

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

bool starts(const std::string& s, const char* with) { return s.rfind(with, 0) == 0; }

std::string trimmed(const std::string& s) {
  const size_t from = s.find_first_not_of(" \t"), to = s.find_last_not_of(" \t");
  return from == std::string::npos ? "" : s.substr(from, to - from + 1);
}

std::vector<std::string> words(const std::string& s, const char* between = " \t,") {
  std::vector<std::string> out;
  for (size_t from = 0; (from = s.find_first_not_of(between, from)) != std::string::npos;) {
    const size_t to = std::min(s.find_first_of(between, from), s.size());
    out.push_back(s.substr(from, to - from));
    from = to;
  }
  return out;
}

size_t width_of(const std::string& type) {
  if (type == ".pred") return 1;
  return type.find("64") != std::string::npos ? 8 : type.find("32") != std::string::npos ? 4 : type.find("16") != std::string::npos ? 2 : 1;
}

struct Register {
  uint32_t row = 0;
  uint8_t width = 0;
};

class Reader {
 public:
  explicit Reader(const std::string& text) {
    std::istringstream in(text);
    for (std::string line; std::getline(in, line);) {
      const size_t comment = line.find("//");
      // Paths have double slashes, too.
      lines_.push_back(trimmed(comment == std::string::npos || line.find(".file") != std::string::npos ? line : line.substr(0, comment)));
      if (starts(lines_.back(), ".file")) file(lines_.back());
    }
  }

  std::map<std::string, Kernel> read() {
    std::map<std::string, Kernel> out;
    for (at_ = 0; at_ < lines_.size(); ++at_) {
      const std::string& line = lines_[at_];
      if (starts(line, ".extern .shared")) {
        dynamic_.insert(name_of_array(line).first);
      } else if (line.find(".entry") != std::string::npos) {
        Kernel k = kernel();
        out.emplace(k.name, std::move(k));
      } else if (starts(line, ".section")) {
        skip_block();
      } else if (!line.empty() && !starts(line, ".version") && !starts(line, ".target") && !starts(line, ".address_size") && !starts(line, ".file")) {
        fail("what is this?");
      }
    }
    return out;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const { throw Fault("PTX line " + std::to_string(at_ + 1) + ": " + what + ": " + lines_[std::min(at_, lines_.size() - 1)]); }

  void file(const std::string& line) {
    const std::vector<std::string> w = words(line, " \t,\"");
    files_[std::stoi(w.at(1))] = w.at(2).substr(w[2].rfind('/') + 1);
  }

  const std::string& next() {
    if (++at_ >= lines_.size()) fail("the text ends here");
    return lines_[at_];
  }

  void skip_block() {
    while (lines_[at_].find('{') == std::string::npos) next();
    while (lines_[at_].find('}') == std::string::npos) next();
  }

  // ".shared .align 8 .b8 name[16]" -> name and bytes.
  std::pair<std::string, size_t> name_of_array(const std::string& line) const {
    const size_t bracket = line.find('['), space = line.find_last_of(" \t", bracket);
    if (bracket == std::string::npos) fail("not an array");
    return {line.substr(space + 1, bracket - space - 1), static_cast<size_t>(std::strtoull(line.c_str() + bracket + 1, nullptr, 10))};
  }
  size_t alignment_of(const std::string& line) const {
    const size_t at = line.find(".align");
    return at == std::string::npos ? 1 : static_cast<size_t>(std::strtoull(line.c_str() + at + 6, nullptr, 10));
  }

  // ---- kernels -------------------------------------------------------------------------------------------------------------------------------------------

  Kernel kernel() {
    k_ = {};
    scopes_.assign(1, {});
    symbols_.clear();
    labels_.clear();
    branches_.clear();
    constants_.clear();
    register_rows_.clear();
    location_ = -1;
    k_.registers.resize(row_bytes(1));  // so that no row is at 0
    std::string head = lines_[at_];
    const size_t open = head.find('(');
    const size_t from = head.find(".entry") + 6;
    k_.name = trimmed(head.substr(from, open == std::string::npos ? open : open - from));
    if (open == std::string::npos || head.find(')') == std::string::npos) {
      while (!starts(next(), ")")) {
        if (starts(lines_[at_], ".param")) parameter(lines_[at_]);
      }
    }
    while (next() != "{") {
      if (starts(lines_[at_], ".maxntid")) k_.threads_at_most = static_cast<uint32_t>(std::stoul(words(lines_[at_]).at(1)));
    }
    body();
    for (const auto& [instruction, label] : branches_) {
      const auto found = labels_.find(label);
      if (found == labels_.end()) fail("no label " + label);
      k_.code[instruction].target = found->second;
    }
    share_rows(k_, register_rows_);
    k_.lines = lines_;
    return std::move(k_);
  }

  void parameter(const std::string& line) {
    size_t size = 0, align = 1;
    std::string name;
    if (line.find('[') != std::string::npos) {
      std::tie(name, size) = name_of_array(line);
      align = alignment_of(line);
    } else {
      const std::vector<std::string> w = words(line);
      name = w.at(2);
      size = align = width_of(w.at(1));
    }
    const size_t offset = round_up(k_.parameter_bytes, align);
    k_.parameters.push_back({offset, size});
    k_.parameter_bytes = offset + size;
    symbols_[name] = offset;
  }

  void body() {
    for (int depth = 1; depth > 0;) {
      const std::string& line = next();
      if (line.empty() || starts(line, ".pragma")) continue;
      if (line == "{") {
        ++depth;
        scopes_.emplace_back();
      } else if (line == "}") {
        --depth;
        scopes_.pop_back();
      } else if (starts(line, ".reg")) {
        registers(line);
      } else if (starts(line, ".shared") || starts(line, ".local")) {
        const auto [name, bytes] = name_of_array(line);
        size_t& all = starts(line, ".shared") ? k_.shared_bytes : k_.local_bytes;
        symbols_[name] = round_up(all, alignment_of(line));
        all = symbols_[name] + bytes;
      } else if (starts(line, ".loc")) {
        location(line);
      } else if (line.back() == ':') {
        labels_[line.substr(0, line.size() - 1)] = static_cast<int32_t>(k_.code.size());
      } else if (line.back() == ';') {
        statement(line.substr(0, line.size() - 1));
      } else {
        fail("not a statement");
      }
    }
    if (k_.code.empty() || k_.code.back().control != Control::exit) fail("the kernel does not end in ret");
  }

  void location(const std::string& line) {
    const std::vector<std::string> w = words(line);
    const std::string text = files_[std::stoi(w.at(1))] + ":" + w.at(2);
    const auto found = std::find(k_.sources.begin(), k_.sources.end(), text);
    location_ = static_cast<int32_t>(found - k_.sources.begin());
    if (found == k_.sources.end()) k_.sources.push_back(text);
  }

  // ---- registers and constants -----------------------------------------------------------------------------------------------------------------------------

  uint32_t new_row(size_t width) {
    const size_t row = k_.registers.size();
    k_.registers.resize(row + row_bytes(width));
    return static_cast<uint32_t>(row);
  }

  // ".reg .f32 %f<45>;" or ".reg .b32 %temp;"
  void registers(const std::string& line) {
    const std::vector<std::string> w = words(line, " \t;");
    const size_t width = width_of(w.at(1));
    const std::string& name = w.at(2);
    const size_t bracket = name.find('<');
    const int count = bracket == std::string::npos ? -1 : std::stoi(name.substr(bracket + 1));
    for (int i = 0; i < std::max(count, 1); ++i) {
      const std::string one = count < 0 ? name : name.substr(0, bracket) + std::to_string(i);
      const uint32_t row = new_row(width);
      scopes_.back()[one] = {row, static_cast<uint8_t>(width)};
      register_rows_[row] = width;
    }
  }

  const Register* find_register(const std::string& name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      if (const auto found = scope->find(name); found != scope->end()) return &found->second;
    }
    return nullptr;
  }

  uint32_t special(uint32_t& row) {
    if (row == 0) {
      row = new_row(4);
      k_.kept_rows[row] = 4;
    }
    return row;
  }

  uint64_t constant_bits(const std::string& text) const {
    if (const auto found = symbols_.find(text); found != symbols_.end()) return found->second;
    if (starts(text, "0f") || starts(text, "0F") || starts(text, "0d") || starts(text, "0D")) return std::strtoull(text.c_str() + 2, nullptr, 16);
    char* end = nullptr;
    const uint64_t v = text[0] == '-' ? static_cast<uint64_t>(std::strtoll(text.c_str(), &end, 0)) : std::strtoull(text.c_str(), &end, 0);
    if (text.empty() || *end != '\0') fail("not a register, a number or a symbol: " + text);
    return v;
  }

  // A row that holds a constant in all lanes.
  Register constant(const std::string& text, size_t width) {
    const bool dynamic = dynamic_.count(text) != 0;
    k_.dynamic_shared |= dynamic;
    uint64_t bits = dynamic ? round_up(k_.shared_bytes, 16) : constant_bits(text);
    if (width == 1) bits = bits != 0;
    const auto [found, is_new] = constants_.try_emplace({bits, width}, 0u);
    if (is_new) {
      found->second = new_row(width);
      k_.kept_rows[found->second] = width;
      for (size_t l = 0; l < 32; ++l) std::memcpy(k_.registers.data() + found->second + l * width, &bits, width);
    }
    return {found->second, static_cast<uint8_t>(width)};
  }

  Register operand(const std::string& text, size_t width) {
    if (const Register* r = find_register(text)) return *r;
    if (text == "%tid.x") return {special(k_.thread_row), 4};
    if (text == "%ctaid.x") return {special(k_.block_row), 4};
    if (text == "%ntid.x") return {special(k_.threads_row), 4};
    if (text == "%nctaid.x") return {special(k_.blocks_row), 4};
    if (starts(text, "%") && text != "%SP" && text != "%SPL") fail("unknown register " + text);
    return constant(text, width);
  }

  // ---- statements ------------------------------------------------------------------------------------------------------------------------------------------

  // "a, {b, c}, [d+4]" -> a b c d, and 4 as the offset of the first address (of the second one, if there is one).
  std::vector<std::string> operands(const std::string& text, Instruction& i) const {
    std::vector<std::string> out;
    int addresses = 0;
    for (std::string w : words(text, " \t,{}")) {
      if (w.front() == '[') {
        w = w.substr(1, w.size() - 2);
        if (const size_t plus = w.find('+'); plus != std::string::npos) {
          (addresses == 0 ? i.offset : i.second_offset) = std::stoll(w.substr(plus + 1));
          w = w.substr(0, plus);
        }
        ++addresses;
      }
      out.push_back(w);
    }
    return out;
  }

  void statement(std::string text) {
    Instruction i;
    i.line = static_cast<int32_t>(at_ + 1);
    i.source = location_;
    if (text[0] == '@') {
      const size_t space = text.find_first_of(" \t");
      i.guarded = true;
      i.guard_negated = text[1] == '!';
      i.guard = operand(text.substr(i.guard_negated ? 2 : 1, space - (i.guard_negated ? 2 : 1)), 1).row;
      text = trimmed(text.substr(space));
    }
    const size_t space = std::min(text.find_first_of(" \t"), text.size());
    const std::string name = text.substr(0, space);
    const std::vector<std::string> names = operands(text.substr(space), i);
    if (name == "bra" || name == "bra.uni") {
      i.control = Control::branch;
      branches_.emplace_back(k_.code.size(), names.at(0));
    } else if (name == "ret" || name == "exit") {
      i.control = Control::exit;
    } else if (name == "bar.sync") {
      if (names != std::vector<std::string>{"0"}) fail("only barrier 0 of all threads is known");
      i.control = Control::barrier;
    } else {
      fill(i, name, names);
    }
    k_.code.push_back(i);
  }

  void fill(Instruction& i, const std::string& name, const std::vector<std::string>& names) {
    Form form;
    for (const auto& of : {arithmetic_form, float_form, conversion_form, memory_form, matrix_form}) {
      if (!form.run) form = of(name);
    }
    if (!form.run) fail("unknown instruction");
    i.run = form.run;
    i.kind = form.kind;
    const std::string letters = form.operands;
    const bool vector = letters.find('*') != std::string::npos;  // the letter before it stands for as many as there are
    if (vector ? names.size() + 1 < letters.size() - 1 : names.size() != letters.size()) fail("not the operands it should have");
    if (names.size() > kMostOperands) fail("too many operands");
    i.operands = static_cast<uint8_t>(names.size());
    for (size_t n = 0; n < names.size(); ++n) {
      const char letter = vector ? vector_letter(letters, names.size(), n) : letters[n];
      const size_t width = letter == 'p' ? 1 : letter == 'h' ? 2 : letter == 'w' ? 4 : letter == 'd' ? 8 : 0;
      const Register r = operand(names[n], width ? width : 8);
      if (width && r.width != width) fail("operand " + names[n] + " has another width");
      i.row[n] = r.row;
      i.width[n] = r.width;
      i.constant_address = symbols_.count(names[n]) != 0;  // of a load: it comes last
    }
    i.results = results(i, name);
    i.whole_warp = starts(name, "mma.") || starts(name, "ldmatrix.");
    if (starts(name, "ld.shared") || starts(name, "st.shared")) k_.small_shared |= small(name);
    if (starts(name, "ld.") || starts(name, "st.")) k_.small_global |= name.find(".shared") == std::string::npos && name.find(".param") == std::string::npos && small(name);
  }

  // How many of the first operands are written.
  static uint8_t results(const Instruction& i, const std::string& name) {
    if (starts(name, "st.") || starts(name, "cp.")) return 0;
    if (starts(name, "ld.")) return static_cast<uint8_t>(i.operands - 1);
    if (starts(name, "mma.") || starts(name, "ldmatrix.")) return 4;
    return i.operands == 3 && starts(name, "mov.b") && i.width[0] < i.width[2] ? 2 : 1;
  }

  static bool small(const std::string& name) { return name.find("8", name.size() - 1) != std::string::npos || name.find("16", name.size() - 2) != std::string::npos; }

  static char vector_letter(const std::string& letters, size_t count, size_t n) {
    const size_t star = letters.find('*'), repeats = count - (letters.size() - 2);
    return n < star - 1 ? letters[n] : n < star - 1 + repeats ? letters[star - 1] : letters[n - repeats + 2];
  }

  std::vector<std::string> lines_;
  size_t at_ = 0;
  std::map<int, std::string> files_;
  std::set<std::string> dynamic_;
  Kernel k_;
  std::vector<std::map<std::string, Register>> scopes_;
  std::map<std::string, uint64_t> symbols_;
  std::map<std::string, int32_t> labels_;
  std::vector<std::pair<size_t, std::string>> branches_;
  std::map<std::pair<uint64_t, size_t>, uint32_t> constants_;
  std::map<uint32_t, size_t> register_rows_;
  int32_t location_ = -1;
};

}  // namespace

std::map<std::string, Kernel> read_program(const std::string& text) { return Reader(text).read(); }

}  // namespace ptx
