"""Runs every check on the build in build/ and sums up: scripts/test calls this after scripts/setup."""
import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
INSTALLED = BUILD / "installed"
# The test cases that start threads, for TSan.
THREADED = "*thread*,*parallel*,*loader*,*allocator*,*concurrent*,*prefetch*"
SANITIZER_ENV = {"ASAN_OPTIONS": "detect_leaks=1:allocator_may_return_null=1", "UBSAN_OPTIONS": "print_stacktrace=1", "TSAN_OPTIONS": "halt_on_error=1"}

DOCTEST = re.compile(r"\[doctest\] test cases:\s*\d+ \|\s*(\d+) passed \|\s*(\d+) failed \|\s*(\d+) skipped")
PLAIN = re.compile(r"^(\d+) passed, (\d+) failed(?:, (\d+) skipped)?$", re.M)
SKIPPED = re.compile(r"\bSKIPPED: (.*)")


class Tally:
    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def add(self, label, passed, failed, skipped, seconds, output=""):
        self.passed += passed
        self.failed += failed
        self.skipped += skipped
        print(f"{label:32} {passed:6} passed {failed:4} failed {skipped:4} skipped {seconds:7.1f} s", flush=True)
        if failed and output:
            print(output[-8000:])

    def test_program(self, label, output, code, seconds, count_unselected=True):
        """Counts what a doctest binary or any program ending in a plain closing line reports."""
        passed, failed, skipped = 0, 0, 0
        if found := DOCTEST.findall(output):
            passed, failed, skipped = map(int, found[-1])
            if not count_unselected:
                skipped = 0
            # A case that returns early for want of data says so, and counts as skipped, not as passed.
            reasons = SKIPPED.findall(output)
            passed, skipped = passed - len(reasons), skipped + len(reasons)
            for reason in sorted(set(reasons)):
                print(f"  {label}: skipped: {reason}")
        elif found := PLAIN.findall(output):
            passed, failed, skipped = (int(n or 0) for n in found[-1])
        elif code == 77:
            skipped = 1
            for reason in SKIPPED.findall(output):
                print(f"  {label}: skipped: {reason}")
        elif code == 0:
            passed = 1
        if code not in (0, 77) and failed == 0:  # crashed, timed out, or a sanitizer's report
            failed = 1
        if passed + failed + skipped == 0:
            failed = 1
            output += "\nno test ran"
        self.add(label, passed, failed, skipped, seconds, output)

    def close(self):
        print(f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped")
        return 1 if self.failed else 0

    def command(self, label, run, start=None):
        """run() returns (ok, output); ok None means skipped. start: when the work began, if that was before."""
        start = start or time.monotonic()
        try:
            ok, output = run()
        except subprocess.TimeoutExpired as e:
            ok, output = False, str(e)
        if ok is None:
            print(f"  {label}: skipped: {output}")
        self.add(label, int(ok is True), int(ok is False), int(ok is None), time.monotonic() - start, output)
        if ok:
            print("  " + output.strip().replace("\n", "\n  "), flush=True)


def run(*command, cwd=ROOT, env=None, timeout=1800):
    done = subprocess.run([str(c) for c in command], cwd=cwd, env={**os.environ, **(env or {})}, timeout=timeout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, errors="replace")
    return done.returncode, done.stdout


def succeeds(*command, env=None):
    """What Tally.command takes."""
    code, output = run(*command, env=env)
    return code == 0, output


def run_suite(tally, build, label, env=None, multiplier=1, suite="fast"):
    log = build / "meson-logs" / "testlog.json"
    log.unlink(missing_ok=True)
    # Meson ends each program at its own limit; the suite as a whole has none.
    run("meson", "test", "-C", build, "--no-rebuild", "--suite", suite, "--timeout-multiplier", multiplier, env=env, timeout=None)
    entries = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for e in entries:
        output = (e.get("stdout") or "") + (e.get("stderr") or "")
        tally.test_program(f"{label} {e['name'].split(' / ')[-1]}", output, e.get("returncode", 1), e["duration"])
    if not entries:
        tally.add(label, 0, 1, 0, 0, f"no tests ran in {build}")


def other_processors(tally):
    """The kernels and networks on the instruction sets that this processor is not the only one to have, and on products of bf16 where it has them but would not use them."""
    runs = [("scalar", "test_kernels", "*"), ("avx2", "test_kernels", "*"), ("avx2", "test_nn", "*"), ("avx2", "device/test_device", "*bf16*")]
    if "avx512_bf16" in Path("/proc/cpuinfo").read_text():
        runs += [("avx512_bf16", program, "*bf16*") for program in ("test_kernels", "test_nn", "device/test_device")]
    host = {"DETENT_CUDA_MODULE": str(BUILD / "tests/device/libdetent_cuda_host.so")}
    for isa, program, cases in runs:
        start = time.monotonic()
        code, output = run(BUILD / "tests" / program, f"--test-case={cases}", env={"DETENT_ISA": isa, **(host if "device" in program else {})})
        tally.test_program(f"{isa} {program.split('test_')[-1]}", output, code, time.monotonic() - start, count_unselected=False)


def cuda_module():
    """The CUDA module is part of the build wherever nvcc is; no GPU is needed for that."""
    nvcc = shutil.which("nvcc") or next((p for p in ("/usr/local/cuda/bin/nvcc", "/opt/cuda/bin/nvcc") if os.access(p, os.X_OK)), None)
    if not nvcc:
        return None, "nvcc is not installed: the CUDA module was not compiled"
    module = BUILD / "libdetent_cuda.so"
    if not module.exists():
        return False, f"{nvcc} is there, but {module.relative_to(ROOT)} was not built"
    return True, f"compiled and linked by {nvcc}: {module.stat().st_size / 1e6:.1f} MB"


def gpu_check():
    """The bundle for a machine with a GPU, tried on the module that runs kernels on the host: what it measures means nothing here."""
    folder, report = BUILD / "gpu-check", BUILD / "gpu-report"
    code, output = run("scripts/gpu_check", "bundle", folder)
    if code:
        return False, output
    code, small = run(folder / "gpu_check", "run", "--small", "--only", "speed", "--precisions", "tf32", "--out", report, env={"DETENT_CUDA_MODULE": str(BUILD / "tests/device/libdetent_cuda_host.so")})
    lines = json.loads((report / "report.json").read_text()) if (report / "report.json").exists() else []
    ran = code == 0 and any(line["what"].startswith("  QAT step") for line in lines)
    return ran, output.strip() if ran else small


def install():
    shutil.rmtree(INSTALLED, ignore_errors=True)
    code, output = run("meson", "install", "-C", BUILD, "--no-rebuild", "--quiet", "--destdir", INSTALLED)
    configs = list(INSTALLED.rglob("detent.pc"))
    return (True, f"to {INSTALLED.relative_to(ROOT)}") if code == 0 and configs else (False, output)


def header(path):
    """Compiles one installed header alone; returns (seconds, output of a failure)."""
    include = next(INSTALLED.rglob("detent.h")).parent.parent
    name = path.relative_to(include)
    start = time.monotonic()
    done = subprocess.run(["g++", "-std=c++20", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{include}", "-x", "c++", "-"], input=f"#include <{name}>\n", text=True,
                          capture_output=True)
    return time.monotonic() - start, name, done.stderr if done.returncode else ""


def headers():
    folder = next(INSTALLED.rglob("detent.h")).parent
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = sorted(pool.map(header, folder.rglob("*.h")), reverse=True)
    broken = [f"{name}\n{output}" for _, name, output in results if output]
    if broken:
        return False, "\n".join(broken)
    return True, f"{len(results)} headers compile alone; slowest {results[0][1]} {results[0][0]:.1f} s"


def embed(build_commands, program="embed"):
    """Copies examples/embed outside the source tree, builds it against the installed library and runs it."""

    def work():
        folder = BUILD / "embed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(ROOT / "examples" / "embed", folder)
        pc = next(INSTALLED.rglob("detent.pc"))
        libdir = pc.parent.parent
        env = {"PKG_CONFIG_PATH": str(pc.parent), "CMAKE_PREFIX_PATH": str(INSTALLED / "usr" / "local"), "detent_DIR": str(libdir / "cmake" / "detent")}
        for command in build_commands:
            if not shutil.which(command[0]):
                return None, f"{command[0]} is not installed"
            code, output = run(*command, cwd=folder, env=env)
            if code:
                return False, output
        static = "static" in program or any("static" in part.lower() for c in build_commands for part in c)
        code, output = run(folder / program, env={} if static else {"LD_LIBRARY_PATH": str(libdir)})
        return code == 0, output

    return work


def sanitizer_compiler():
    """clang compiles sanitized code in half of g++'s time, and is a second compiler for the tests; g++ where it is missing."""
    return {"CXX": "clang++"} if shutil.which("clang++") else {}


def sanitized_build(name, kind, sanitize, targets):
    """The tests with a sanitizer, all of it made as a subproject of the embedder's Meson project: nothing installed, the library shared or static."""
    build, folder = ROOT / name, BUILD / f"embed-{name}"
    if not (build / "build.ninja").exists():
        for stale in (build, folder):
            shutil.rmtree(stale, ignore_errors=True)
        shutil.copytree(ROOT / "examples" / "embed", folder)
        (folder / "subprojects").mkdir()
        (folder / "subprojects" / "detent").symlink_to(ROOT)
        code, output = run("meson", "setup", build, folder, "-Ddebug=false", "-Doptimization=1", f"-Db_sanitize={sanitize}", "-Db_lundef=false", "-Ddetent:tests=enabled",
                           "-Dcpp_args=-g1 -fno-sanitize-recover=all", f"-Ddetent:default_library={kind}", "--force-fallback-for=detent", env=sanitizer_compiler())
        if code:
            return build, (False, output)
    code, output = run("ninja", "-C", build, *targets, timeout=3600)
    return build, (code == 0, f"built {name}" if code == 0 else output)


def embedded(tally, build, kind):
    tally.command(f"embed: Meson, subproject, {kind}", lambda: succeeds(build / "embed", env=SANITIZER_ENV))


def aarch64(tally):
    """The fast suite on 64-bit ARM: the scalar kernels, another float unit, other types of char."""
    build = ROOT / "build-aarch64"

    def compile():
        code, output = 0, ""
        if not (build / "build.ninja").exists():
            shutil.rmtree(build, ignore_errors=True)
            code, output = run("meson", "setup", build, "--cross-file", "scripts/aarch64.ini", "--buildtype=release", "-Dbench=disabled", "-Dcuda=disabled", "-Ddefault_library=shared")
        if code == 0:
            code, output = run("ninja", "-C", build, timeout=7200)
        return code == 0, "built build-aarch64" if code == 0 else output

    tally.command("aarch64: build", compile)
    if not tally.failed:
        run_suite(tally, build, "aarch64", {"DETENT_EXE_WRAPPER": shutil.which("qemu-aarch64-static")}, multiplier=20)


def threaded_cases(program):
    found = re.search(r"passing the current filters: (\d+)", run(program, "--list-test-cases", f"--test-case={THREADED}")[1])
    return int(found[1]) if found else 0


def sanitizers(tally):
    """The fast suite under ASan and UBSan."""
    start = time.monotonic()
    build, result = sanitized_build("build-asan", "shared", "address,undefined", [])
    tally.command("asan, ubsan: build", lambda: result, start)
    if result[0]:
        embedded(tally, build, "shared")
        run_suite(tally, build, "asan", SANITIZER_ENV, multiplier=10)


def thread_sanitizer(tally):
    """The cases that start threads under TSan."""
    start = time.monotonic()
    programs = [p.name for p in sorted((BUILD / "tests").glob("test_*")) if p.is_file() and threaded_cases(p)]
    build, result = sanitized_build("build-tsan", "static", "thread", ["embed", *(f"subprojects/detent/tests/{p}" for p in programs)])
    tally.command("tsan: build", lambda: result, start)
    if not result[0]:
        return
    embedded(tally, build, "static")
    for program in programs:
        start = time.monotonic()
        code, output = run(build / "subprojects/detent/tests" / program, f"--test-case={THREADED}", env=SANITIZER_ENV)
        tally.test_program(f"tsan {program[5:]}", output, code, time.monotonic() - start, count_unselected=False)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sanitizers", action="store_true", help="the fast suite again under ASan and UBSan, the library as a shared subproject")
    parser.add_argument("--thread-sanitizer", action="store_true", help="the threaded cases under TSan, the library as a static subproject")
    parser.add_argument("--ptx", action="store_true", help="where nvcc is: the CUDA module with its kernels run from their PTX, by a machine that finds races")
    parser.add_argument("--aarch64", action="store_true", help="nothing but the fast suite cross-built for 64-bit ARM, under qemu (scripts/test_aarch64)")
    options = parser.parse_args()
    tally = Tally()
    if options.aarch64:
        aarch64(tally)
        return tally.close()
    run_suite(tally, BUILD, "test")
    if options.sanitizers and platform.machine() == "x86_64":
        other_processors(tally)
    tally.command("layers", lambda: succeeds("scripts/check_layers"))
    tally.command("cuda module", cuda_module)
    if options.ptx and (BUILD / "libdetent_cuda.so").exists():
        run_suite(tally, BUILD, "ptx", suite="ptx")
        tally.command("gpu_check", gpu_check)
    tally.command("install", install)
    if any(INSTALLED.rglob("detent.pc")):
        tally.command("headers", headers)
        tally.command("embed: pkg-config, shared", embed([("make",)]))
        tally.command("embed: pkg-config, static", embed([("make", "STATIC=1")]))
        cmake = [("cmake", "-S", ".", "-B", "out"), ("cmake", "--build", "out")]
        tally.command("embed: CMake, shared", embed(cmake, "out/embed"))
        tally.command("embed: CMake, static", embed(cmake, "out/embed-static"))
        for kind in ("shared", "static"):
            setup = ("meson", "setup", "out") + (("-Dprefer_static=true",) if kind == "static" else ())
            tally.command(f"embed: Meson, {kind}", embed([setup, ("ninja", "-C", "out")], "out/embed"))
    if options.sanitizers:
        sanitizers(tally)
    if options.thread_sanitizer:
        thread_sanitizer(tally)
    return tally.close()


if __name__ == "__main__":
    sys.exit(main())
