"""Every SIMD target that the machine can run: the core of the suite on each, the choice, effects of the import."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import fastsoftmax as fs
import numpy as np
import pytest
from fastsoftmax import _core

CORE = _core.describe()
TARGETS = CORE["targets_usable"]
TESTS = Path(__file__).parent


def run(arguments, environment, **variables):
    return subprocess.run(
        [sys.executable, *arguments], env=environment | variables, capture_output=True, text=True, timeout=1800
    )


@pytest.mark.parametrize("target", TARGETS)
def test_the_core_of_the_suite_passes_on_every_target(target, environment):
    if target == CORE["target"]:
        pytest.skip(f"{target} is the target in use here: the suite itself runs on it")
    done = run(
        ["-m", "pytest", "-m", "core", "-p", "no:cacheprovider", "--no-showlocals", str(TESTS)],
        environment,
        FASTSOFTMAX_TARGET=target,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    assert f"fastsoftmax target {target} " in done.stdout
    assert re.search(r"\d+ passed", done.stdout)


@pytest.mark.parametrize(("cpu", "target"), [("Nehalem", "baseline"), ("Haswell", "avx2")])
def test_an_older_cpu_gets_the_best_target_that_it_has_and_the_golden_bits(cpu, target, environment):
    """Nehalem has no AVX: an AVX instruction, when the module is loaded or called, would end the process."""
    emulator = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
    if not emulator or platform.machine() != "x86_64" or sys.platform != "linux" or "LD_PRELOAD" in environment:
        pytest.skip("needs qemu-user, on Linux on x86_64, and nothing preloaded, like a sanitizer")
    chosen = "test_every_call or (last and (float32 or float64))"
    emulated = [emulator, "-cpu", cpu, "-0", sys.executable, Path(sys.executable).resolve()]
    done = subprocess.run(
        [*emulated, "-m", "pytest", "-k", chosen, "-p", "no:cacheprovider", TESTS / "test_golden_bits.py"],
        env=unforced(environment),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    assert f"fastsoftmax target {target} " in done.stdout
    assert re.search(r"\b3 passed", done.stdout)


# Choice


def test_the_best_usable_target_is_in_use(environment):
    done = run(["-c", "from fastsoftmax import _core; print(_core.describe()['target'])"], unforced(environment))
    assert done.stdout.split() == [TARGETS[-1]]


def unforced(environment):
    return {k: v for k, v in environment.items() if k != "FASTSOFTMAX_TARGET"}


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_can_be_forced(target, environment):
    code = "import fastsoftmax; print(fastsoftmax.show_config(mode='dicts')['targets']['in use'])"
    assert run(["-c", code], environment, FASTSOFTMAX_TARGET=target).stdout.split() == [target]


@pytest.mark.parametrize("target", ["sse9", "AVX2 ", "baseline,avx2"])
def test_an_unknown_target_fails_the_import_with_the_usable_names(target, environment):
    done = run(["-c", "import fastsoftmax"], environment, FASTSOFTMAX_TARGET=target)
    assert done.returncode != 0
    assert "ImportError" in done.stderr
    assert target in done.stderr
    for usable in TARGETS:
        assert usable in done.stderr


def test_a_target_that_the_machine_lacks_fails_the_import_with_the_usable_names(environment):
    lacking = set(CORE["targets_built"]) - set(TARGETS)
    if not lacking:
        pytest.skip("the machine has every target that was built")
    for target in lacking:
        done = run(["-c", "import fastsoftmax"], environment, FASTSOFTMAX_TARGET=target)
        assert done.returncode != 0
        assert "ImportError" in done.stderr
        for usable in TARGETS:
            assert usable in done.stderr


def test_usable_targets_are_built_and_baseline_is_among_them():
    assert set(TARGETS) <= set(CORE["targets_built"])
    assert CORE["target"] in TARGETS
    assert TARGETS[0] in ("baseline", "neon")


def test_targets_agree_to_a_few_ulp(environment, tmp_path):
    """Their bits may differ, because the x86 baseline has no fused multiply-add."""
    x = np.random.default_rng(0).normal(0, 10, (50, 333)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    code = "import sys, numpy as np, fastsoftmax as fs; np.save(sys.argv[2], fs.softmax(np.load(sys.argv[1])))"
    for target in TARGETS:
        done = run(["-c", code, tmp_path / "x.npy", tmp_path / "y.npy"], environment, FASTSOFTMAX_TARGET=target)
        assert done.returncode == 0, done.stderr
        np.testing.assert_array_max_ulp(np.load(tmp_path / "y.npy"), fs.softmax(x), 4)


# Configuration


def test_python_m_prints_the_configuration(environment, capsys):
    fs.show_config()
    printed = capsys.readouterr().out
    done = run(["-m", "fastsoftmax"], environment)
    assert done.stdout == printed
    for word in (fs.__version__, np.__version__, CORE["compiler"], *CORE["targets_built"], CORE["target"]):
        assert word in printed


def test_show_config_as_dicts_prints_nothing(capsys):
    config = fs.show_config(mode="dicts")
    assert capsys.readouterr().out == ""
    assert config["fastsoftmax"] == fs.__version__
    assert config["targets"]["in use"] == CORE["target"]
    assert config["openmp"] == CORE["openmp"]
    assert config["threads"] == fs.get_num_threads()


# Effects of the import


@pytest.mark.parametrize("target", TARGETS)
def test_subnormal_numbers_survive_the_import_and_a_call(target, environment):
    code = (
        "import numpy as np, fastsoftmax as fs\n"
        "def alive():\n"
        "    tiny = np.finfo(np.float64).smallest_normal, np.finfo(np.float32).smallest_normal\n"
        "    halves = [np.full(99, t) * t.dtype.type(0.5) for t in tiny]\n"
        "    return all((h > 0).all() and (h + h == t).all() for h, t in zip(halves, tiny))\n"
        "before = alive()\n"
        "fs.softmax(np.ones((2000, 1000)))\n"
        "print(before, alive())"
    )
    done = run(["-c", code], environment, FASTSOFTMAX_TARGET=target)
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_the_import_loads_only_numpy(environment):
    code = "import sys, fastsoftmax; print(*sorted({m.split('.')[0] for m in sys.modules} - sys.stdlib_module_names))"
    modules = set(run(["-c", code], environment).stdout.split())
    assert {"fastsoftmax", "numpy"} <= modules
    assert not modules & {"ml_dtypes", "scipy", "torch", "threadpoolctl", "sklearn"}


# A function that one compiler inlines another may emit.
COMPILERS = list(dict.fromkeys([os.environ.get("CXX", "c++"), "clang++"]))


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("target", CORE["targets_built"])
def test_a_kernel_object_exports_only_its_table_and_needs_nothing_of_libm(target, compiler, tmp_path):
    """If several targets define a function, the linker keeps one, perhaps with instructions that the machine lacks. A
    function of libm is compiled for another machine, and each call may cost a change of the vector unit's state.

    The object is compiled without optimisation, so that nothing is inlined that need not be.
    """
    compiler, nm = shutil.which(compiler), shutil.which("nm")
    source, lists = TESTS.parent / "cpp" / "kernels" / "target.cpp", TESTS.parent / "CMakeLists.txt"
    if not (compiler and nm and source.exists() and lists.exists()):
        pytest.skip("needs the sources, a compiler and nm")
    (flags,) = re.findall(rf"add_target\({target}\b([^)]*)\)", lists.read_text())
    compiled = tmp_path / "target.o"
    table = f"{target}_kernels"
    names = [f'-DFASTSOFTMAX_TARGET_NAME="{target}"', f"-DFASTSOFTMAX_TARGET_FUNCTION={table}"]
    options = ["-std=c++20", "-O0", "-fPIC", *flags.split(), *names]
    subprocess.run([compiler, *options, "-c", source, "-o", compiled], check=True)
    exported = symbols(nm, compiled, "--defined-only", "--extern-only")
    exported = [s for s in exported if not s.startswith("DW.ref.")]  # references for exceptions
    assert len(exported) == 1, exported
    assert table in exported[0]
    underscore = sys.platform == "darwin"  # Mach-O's names begin with one more
    needed = {s[underscore:] for s in symbols(nm, compiled, "--undefined-only")}
    assert {s for s in needed if not s.startswith("_")} <= {"memcpy", "memmove", "memset"}


# Flags that set flush-to-zero for the process that loads the module, or let the compiler change the arithmetic.
UNSAFE = ("-Ofast", "-ffast-math", "-funsafe-math-optimizations", "-ffinite-math-only", "-fassociative-math")


def test_no_flag_lets_the_compiler_change_the_arithmetic():
    root = TESTS.parent
    lists = root / "CMakeLists.txt"
    if not lists.exists():
        pytest.skip("needs the sources")
    for file in (lists, root / "CMakePresets.json", root / "pyproject.toml"):
        if file.exists():
            assert not [flag for flag in UNSAFE if flag in file.read_text()], file
    # For clang-cl, and for all others; every file gets this option, and none undoes it.
    assert re.findall(r"set\(options .*?(\S*-ffp-contract\S*)", lists.read_text()) == [
        "/clang:-ffp-contract=off",
        "-ffp-contract=off",
    ]
    assert lists.read_text().count("-ffp-contract") == 2
    body = re.search(r"function\(add_target name\)(.*?)endfunction", lists.read_text(), re.DOTALL)[1]
    assert "target_compile_options(${name} PRIVATE ${options} ${ARGN})" in body
    assert lists.read_text().count("kernels/target.cpp") == 2  # in the comment and in the function
    assert "target_compile_options(_core PRIVATE ${options})" in lists.read_text()


def test_the_extension_exports_only_the_entry_among_its_own_names():
    """It also exports weak functions of the standard library, but none of a kernel, as the test of objects shows."""
    nm = shutil.which("nm")
    if nm is None or sys.platform != "linux":
        pytest.skip("needs nm, for ELF files")
    exported = symbols(nm, _core.__file__, "--defined-only", "--dynamic")
    assert [s for s in exported if "fastsoftmax" in s or s.startswith("PyInit")] == ["PyInit__core"]


def symbols(nm, file, *which):
    listed = subprocess.run([nm, *which, file], capture_output=True, text=True, check=True)
    return [line.split()[-1] for line in listed.stdout.splitlines()]
