import functools
import operator
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from vadexport.backends.child import Child
from vadexport.detectors.coreset import coreset_indices
from vadexport.errors import BackendError, InputError, MissingPackageError
from vadexport.targets import Target

# Functions travel by name, and the child cannot import this file: they are Python's own.


@pytest.fixture(autouse=True)
def logs(tmp_path, monkeypatch):
    """Logs go to a folder of the test's own."""
    folder = tmp_path / "logs"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    return folder


@pytest.fixture
def child():
    with Child("backend:fp32", timeout_s=30) as child:
        yield child


def log_of(error):
    return Path(re.search(r"\(log: (.*)\)$", str(error)).group(1))


def is_running(process_id):
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


class TestResults:
    def test_a_function_runs_in_another_process(self, child):
        assert child.run(divmod, 17, 5) == (3, 2)
        process_id = child.run(os.getpid)
        assert process_id != os.getpid()
        assert child.run(os.getpid) == process_id

    def test_an_object_stays_in_the_child(self, child):
        child.open(dict, {"a": 1})
        child.apply(operator.setitem, "b", 2)
        assert child.apply(dict) == {"a": 1, "b": 2}

    def test_open_returns_nothing_even_where_the_object_cannot_travel(self, child):
        assert child.open(open, os.devnull) is None
        assert child.apply(operator.methodcaller("readable")) is True

    def test_another_open_takes_its_place(self, child):
        child.open(list, "ab")
        child.open(list, "c")
        assert child.apply(list) == ["c"]

    @pytest.mark.parametrize("dtype", [np.uint8, np.float32, bool])
    def test_big_arrays_travel_both_ways(self, child, dtype):
        array = np.random.default_rng(0).integers(0, 2, (5, 2000, 2000)).astype(dtype)
        returned = child.run(np.copy, array)
        assert returned.dtype == dtype
        np.testing.assert_array_equal(returned, array)

    def test_paths_and_targets_travel(self, child):
        assert child.run(Path, "a", "b") == Path("a/b")
        assert child.run(Target, "openvino", "int8") == Target("openvino", "int8")

    def test_two_children_do_not_meet(self):
        with Child("one") as one, Child("two") as two:
            one.open(list, "1")
            two.open(list, "2")
            assert one.apply(list) == ["1"]
            one.close()
            assert two.apply(list) == ["2"]

    def test_progress_is_told_while_it_runs(self, child):
        told = []
        points = np.random.default_rng(0).normal(size=(3000, 3)).astype(np.float32)
        tensor = child.run(
            coreset_indices, _tensor(points), 1500, progress=lambda *t: told.append(t)
        )
        assert len(tensor) == 1500
        assert len(told) > 1
        assert told[-1] == (1500, 1500)
        assert told == sorted(told)

    def test_a_progress_that_raises_reaches_the_caller(self, child):
        def interrupt(*_):
            raise KeyboardInterrupt

        points = np.zeros((10, 3), np.float32)
        with pytest.raises(KeyboardInterrupt):
            child.run(coreset_indices, _tensor(points), 5, progress=interrupt)


def _tensor(array):
    import torch

    return torch.from_numpy(array)


class TestErrors:
    def test_a_user_error_keeps_class_and_text(self, child):
        with pytest.raises(InputError) as expected:
            Target.parse("nonsense")
        with pytest.raises(InputError) as caught:
            child.run(Target.parse, "nonsense")
        assert type(caught.value) is InputError
        assert str(caught.value) == str(expected.value)

    def test_a_user_error_that_takes_other_arguments_does_so_too(self, child):
        code = "from vadexport.errors import *; raise MissingPackageError('openvino', 'openvino')"
        with pytest.raises(MissingPackageError) as caught:
            child.run(exec, code)
        assert type(caught.value) is MissingPackageError
        assert str(caught.value) == str(MissingPackageError("openvino", "openvino"))
        assert caught.value.exit_status == 3

    def test_a_user_error_of_a_module_of_its_own_is_caught_as_its_base(self, child):
        code = (
            "from vadexport.images import UnreadableImageError as E; "
            "e = E.__new__(E); Exception.__init__(e, 'x.png cannot be read'); raise e"
        )
        with pytest.raises(InputError, match=r"^x\.png cannot be read$"):
            child.run(exec, code)

    def test_the_child_lives_on_after_a_user_error(self, child, logs):
        with pytest.raises(InputError):
            child.run(Target.parse, "nonsense")
        assert child.run(abs, -3) == 3
        child.close()
        assert list(logs.iterdir()) == []

    @pytest.mark.parametrize(
        ("code", "words"),
        [
            ("1 / 0", "failed: ZeroDivisionError: division by zero"),
            ("raise RuntimeError('first\\nsecond')", "failed: RuntimeError: first"),
            ("raise RuntimeError", "failed: RuntimeError: "),
            ("raise SystemExit(3)", "failed: SystemExit: 3"),
            ("raise KeyboardInterrupt", "failed: KeyboardInterrupt: "),
            ("raise MemoryError", "failed: MemoryError: "),
        ],
    )
    def test_any_other_error_is_the_backends(self, child, code, words):
        with pytest.raises(BackendError, match=f"^backend:fp32 {re.escape(words)}") as caught:
            child.run(exec, code)
        assert len(str(caught.value).splitlines()) == 1
        assert "Traceback" in log_of(caught.value).read_text()

    def test_a_result_that_cannot_travel(self, child):
        with pytest.raises(BackendError, match="failed: TypeError: cannot pickle"):
            child.run(open, os.devnull)
        assert child.run(abs, -3) == 3

    def test_a_function_that_the_child_cannot_find(self, child, monkeypatch):
        module = type(sys)("only_here")
        exec("def double(x): return 2 * x", module.__dict__)  # noqa: S102
        monkeypatch.setitem(sys.modules, "only_here", module)
        with pytest.raises(BackendError, match=r"failed: ModuleNotFoundError: .*only_here"):
            child.run(module.double, 3)


class TestCrashes:
    @pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGKILL", "SIGILL", "SIGTERM"])
    def test_a_crash_is_named_by_its_signal(self, child, name):
        with pytest.raises(BackendError, match=rf"backend:fp32 crashed \({name}\)"):
            child.run(signal.raise_signal, getattr(signal, name))

    def test_a_signal_without_a_name(self, child):
        number = signal.SIGRTMIN + 3
        with pytest.raises(BackendError, match=rf"crashed \(signal {number}\)"):
            child.run(signal.raise_signal, number)

    @pytest.mark.parametrize("status", [0, 1, 77])
    def test_an_exit_is_named_by_its_status(self, child, status):
        with pytest.raises(BackendError, match=rf"ended unexpectedly \(exit status {status}\)"):
            child.run(os._exit, status)

    def test_calls_after_a_crash_fail_at_once(self, child):
        for _ in range(3):
            with pytest.raises(BackendError, match="backend:fp32 "):
                child.run(os._exit, 5)

    def test_a_crash_between_calls_is_told_by_the_next(self, child):
        process_id = child.run(os.getpid)
        os.kill(process_id, signal.SIGKILL)
        wait_until(lambda: not is_running(process_id))
        with pytest.raises(BackendError, match=r"backend:fp32 (crashed|ended)"):
            child.run(abs, 1)

    def test_a_hang_ends_at_the_time_limit(self):
        with Child("backend:fp32", timeout_s=0.5) as child:
            process_id = child.run(os.getpid)
            start = time.monotonic()
            with pytest.raises(BackendError, match=r"did not answer within 0\.5 s"):
                child.run(time.sleep, 60)
            assert time.monotonic() - start < 10
            wait_until(lambda: not is_running(process_id))

    def test_a_hang_takes_its_own_children_along(self):
        with Child("backend:fp32", timeout_s=1) as child:
            grandchild = child.run(eval, "__import__('subprocess').Popen(['sleep', '60']).pid")
            assert is_running(grandchild)
            with pytest.raises(BackendError):
                child.run(time.sleep, 60)
        wait_until(lambda: not is_running(grandchild))

    def test_leaving_the_block_ends_the_child(self):
        with Child("backend:fp32") as child:
            process_id = child.run(os.getpid)
        assert not is_running(process_id)

    def test_an_exception_in_the_block_ends_the_child(self):
        with pytest.raises(ValueError, match="ours"), Child("backend:fp32") as child:  # noqa: PT012
            process_id = child.run(os.getpid)
            raise ValueError("ours")
        assert not is_running(process_id)

    @pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
    def test_the_child_ends_when_its_parent_is_killed(self, busy):
        code = (
            "import os, time; from vadexport.backends.child import Child; "
            "child = Child('orphan'); print(child.run(os.getpid), flush=True); "
            + ("child.run(time.sleep, 60)" if busy else "time.sleep(60)")
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment
        ) as parent:
            process_id = int(parent.stdout.readline())
            assert is_running(process_id)
            time.sleep(0.2)
            parent.kill()
        wait_until(lambda: not is_running(process_id))


class TestOutput:
    @pytest.mark.parametrize(
        "call",
        [
            (print, "noise", "x" * 100_000),
            (os.write, 1, b"noise" * 1000),
            (os.write, 2, b"noise" * 1000),
            (os.system, "echo noise; echo noise >&2"),
            (exec, "import sys; sys.stdout.write('noise'); sys.stderr.write('noise')"),
        ],
        ids=lambda call: call[0].__name__,
    )
    def test_what_is_printed_does_not_reach_the_channel(self, child, call, capfd):
        function, *arguments = call
        child.run(function, *arguments)
        assert child.run(abs, -3) == 3
        assert capfd.readouterr() == ("", "")

    def test_what_is_printed_is_in_the_log_of_a_failure(self, child):
        child.run(print, "printed by a library")
        child.run(os.write, 1, b"written by native code\n")
        with pytest.raises(BackendError) as caught:
            child.run(exec, "import sys; sys.stdout.flush(); 1 / 0")
        text = log_of(caught.value).read_text()
        assert "printed by a library" in text
        assert "written by native code" in text
        assert "ZeroDivisionError" in text

    def test_what_was_printed_before_a_crash_is_in_the_log(self, child):
        child.run(print, "printed by a library")
        with pytest.raises(BackendError) as caught:
            child.run(signal.raise_signal, signal.SIGKILL)
        assert "printed by a library" in log_of(caught.value).read_text()

    def test_where_in_python_it_crashed_is_in_the_log(self, child):
        with pytest.raises(BackendError) as caught:
            child.run(exec, "import signal\ndef inner(): signal.raise_signal(11)\ninner()")
        text = log_of(caught.value).read_text()
        assert "Segmentation fault" in text
        assert "in inner" in text

    def test_standard_input_of_the_child_is_empty(self, child):
        assert child.run(eval, "__import__('sys').stdin.read()") == ""
        assert child.run(os.system, "read line") != 0
        assert child.run(abs, -3) == 3

    def test_the_log_goes_on_success(self, logs):
        with Child("backend:fp32") as child:
            child.run(print, "noise")
            assert len(list(logs.iterdir())) == 1
        assert list(logs.iterdir()) == []

    def test_the_log_stays_on_failure(self, logs):
        with (
            pytest.raises(BackendError) as caught,
            Child("backend:fp32") as child,
        ):
            child.run(os._exit, 3)
        assert list(logs.iterdir()) == [log_of(caught.value)]

    def test_closing_twice_is_harmless(self, logs):
        child = Child("backend:fp32")
        child.close()
        child.close()
        assert list(logs.iterdir()) == []


def test_usage_is_never_reported(child):
    # An entry of None makes the import fail: OpenVINO then reports nothing.
    absent = "__import__('sys').modules.get('openvino_telemetry', 'free to import') is None"
    assert child.run(eval, absent) is True
    with pytest.raises(BackendError, match="failed: ModuleNotFoundError"):
        child.run(exec, "import openvino_telemetry")


def test_the_child_imports_nothing_heavy_by_itself(child):
    loaded = set(child.run(eval, "list(__import__('sys').modules)"))
    assert not loaded & {"torch", "onnx", "openvino", "matplotlib"}


def test_functions_with_arguments_bound_travel(child):
    bound = functools.partial(int, base=2)
    assert pickle.loads(pickle.dumps(bound))("101") == 5
    child.open(bound, "101")
    assert child.apply(abs) == 5


def test_what_lies_in_the_working_folder_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise SystemExit('not the real one')")
    monkeypatch.chdir(tmp_path)
    with Child("backend:fp32", timeout_s=30) as child:
        assert child.run(eval, "__import__('numpy').__version__") == np.__version__


def test_a_log_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"cannot write a log in .*none: No such file"):
        Child("backend:fp32")
