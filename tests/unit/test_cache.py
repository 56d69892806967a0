"""The store: what comes back, what is noticed, and what may go wrong without stopping the work."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from helpers.cache import Entry, Store
from helpers.paths import clear_abandoned

ARRAYS = {
    "ids": np.arange(12, dtype=np.uint16).reshape(3, 4),
    "flags": np.array([True, False]),
    "states": torch.linspace(0, 1, 6, dtype=torch.bfloat16).view(2, 3),
    "step": torch.tensor(7),
    "none": np.zeros((0, 3), np.float16),
}
ABOUT = {"texts": ["ü\u2028", "b"], "pair": (1, 2)}


def never():
    raise AssertionError("the entry was made again")


def same(a: Entry, b: Entry) -> bool:
    def equal(x, y):
        x_is, y_is = isinstance(x, torch.Tensor), isinstance(y, torch.Tensor)
        return x_is == y_is and x.dtype == y.dtype and x.shape == y.shape and bool((x == y).all())

    return (
        a.about == b.about
        and a.arrays.keys() == b.arrays.keys()
        and all(equal(a.arrays[n], b.arrays[n]) for n in a.arrays)
    )


def test_an_entry_comes_back_as_it_was_made_whether_kept_or_not(tmp_path):
    made = Store(tmp_path, {"seed": 0}).get("a b/ü", lambda: Entry(ARRAYS, ABOUT))
    kept = Store(tmp_path, {"seed": 0}).get("a b/ü", never)
    assert same(made, kept) and same(kept, Entry(ARRAYS, {"texts": ["ü\u2028", "b"], "pair": [1, 2]}))
    assert Store(tmp_path, {"seed": 0}).get("only arrays", lambda: {"x": np.ones(2)}).about is None


def test_the_file_is_plain_safetensors_with_the_mode_of_the_umask(tmp_path):
    store, old = Store(tmp_path, {}), os.umask(0o002)
    try:
        store.save("x", ARRAYS)
    finally:
        os.umask(old)
    assert store.path("x").stat().st_mode & 0o777 == 0o664
    assert torch.equal(load_file(store.path("x"))["states"], ARRAYS["states"])
    assert [p.name for p in store.folder.iterdir()] == [store.path("x").name]


def test_another_key_or_name_is_another_entry(tmp_path):
    first = Store(tmp_path, {"seed": 0, "model": "m"})
    first.save("x", {"a": np.ones(1)})
    assert Store(tmp_path, {"model": "m", "seed": 0}).load("x") is not None
    assert Store(tmp_path, {"model": "m", "seed": 1}).load("x") is None
    assert first.load("X") is None and first.path("a b") != first.path("a_b")


def test_a_file_of_another_key_in_the_right_place_does_not_count(tmp_path, capsys):
    one, two = Store(tmp_path, {"seed": 1}), Store(tmp_path, {"seed": 2})
    one.save("x", {"a": np.ones(1)})
    two.folder.mkdir()
    two.path("x").write_bytes(one.path("x").read_bytes())
    assert two.load("x") is None
    assert "is damaged and is made again" in capsys.readouterr().err


def test_every_damaged_byte_is_noticed_and_the_entry_made_again(tmp_path, capfd):
    store = Store(tmp_path, {"seed": 0})
    whole = store.save("x", ARRAYS, ABOUT)
    content = store.path("x").read_bytes()
    for place in [*range(0, len(content), 7), len(content) - 1]:
        store.path("x").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        found = store.load("x")
        assert found is None or same(found, whole), place  # a space of the header's padding may differ
    for part in (b"", content[:5], content[: len(content) // 2], content + b"x"):
        store.path("x").write_bytes(part)
        assert store.load("x") is None
    assert same(store.get("x", lambda: Entry(ARRAYS, ABOUT)), whole) and same(store.get("x", never), whole)
    assert all(line.startswith("cache: ") for line in capfd.readouterr().err.splitlines())


def test_arrays_are_mapped_and_writing_to_them_leaves_the_file(tmp_path):
    store = Store(tmp_path, {})
    store.save("x", {"a": np.zeros(1_000_000), "b": torch.zeros(1_000_000)})
    found = store.load("x")
    with open("/proc/self/maps") as maps:
        assert store.path("x").name in maps.read()
    found.arrays["a"] += 1
    found.arrays["b"] += 1
    again = store.load("x").arrays
    assert not again["a"].any() and not again["b"].any()


def test_views_and_shared_and_turned_arrays_are_kept_whole(tmp_path):
    big = torch.arange(12.0).view(3, 4).requires_grad_()
    arrays = {"row": big[1], "turned": big.T, "same": big, "numpy": np.arange(6).reshape(2, 3).T[::-1]}
    store = Store(tmp_path, {})
    store.save("x", arrays)
    found = store.load("x").arrays
    assert all(np.array_equal(found[n], a.detach() if isinstance(a, torch.Tensor) else a) for n, a in arrays.items())
    assert store.path("x").stat().st_size < 2000 and not found["same"].requires_grad


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_line_and_the_work_goes_on(tmp_path, capsys):
    tmp_path.chmod(0o555)
    store = Store(tmp_path, {})
    assert store.get("x", lambda: {"a": np.ones(2)}).arrays["a"].sum() == 2
    assert store.get("y", lambda: {"a": np.ones(3)}).arrays["a"].sum() == 3
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "cannot be written to" in said[0] and "goes on" in said[0]


def test_a_folder_that_is_a_file_is_one_line_and_the_work_goes_on(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file", {})
    for name in "xy":
        assert store.get(name, lambda: {"a": np.ones(2)}).arrays["a"].sum() == 2
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "cannot be written to" in line] and len(said) <= 3


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(tmp_path):
    """A limit on the size of files is the full disk that a test can have without rights."""
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from helpers.cache import Store\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "store = Store(sys.argv[1], {})\n"
        "print([store.get(n, lambda: {'a': np.ones(10_000)}).arrays['a'].sum() for n in 'xy'])\n"
        "print(list(store.folder.iterdir()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == "[]" and len(done.stderr.splitlines()) == 1
    assert "cannot be written to" in done.stderr


def test_two_processes_at_once_leave_a_whole_entry(tmp_path):
    code = (
        "import sys, torch\n"
        "from helpers.cache import Store\n"
        "store = Store(sys.argv[1], {'k': 1})\n"
        "for i in range(30):\n"
        "    store.save('x', {'a': torch.full((50_000,), float(i))}, i)\n"
        "    found = store.load('x')\n"
        "    assert found is not None and (found.arrays['a'] == found.about).all()\n"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.PIPE, text=True) for _ in "ab"
    ]
    assert [(p.communicate()[1], p.returncode) for p in both] == [("", 0)] * 2
    assert len(list(Store(tmp_path, {"k": 1}).folder.iterdir())) == 1


def test_what_a_killed_run_left_goes_and_what_another_is_writing_stays(tmp_path):
    store = Store(tmp_path, {})
    store.folder.mkdir()
    left, busy = (store.path("x").with_name(f".{store.path('x').name}.{n}.part") for n in ("old", "new"))
    for part in (left, busy):
        part.write_bytes(b"half")
    os.utime(left, (time.time() - 7200,) * 2)
    store.save("x", {"a": np.ones(1)})
    assert not left.exists() and busy.exists()


def test_a_damaged_entry_is_read_once_however_often_reading_touches_it(tmp_path, monkeypatch):
    """Reading changes a file's time of access, and that must not look as if the file were another one."""
    store = Store(tmp_path, {})
    store.save("x", {"a": np.ones(4)})
    path, reads = store.path("x"), []
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")

    def touched(*arguments):
        reads.append(1)
        os.utime(path, ns=((2**31 + len(reads)) * 10**9, path.stat().st_mtime_ns))
        return safe_open(*arguments)

    monkeypatch.setattr("helpers.cache.safe_open", touched)
    assert store.load("x") is None and len(reads) == 1


def test_what_still_grows_is_not_abandoned(tmp_path):
    for name in ("left", "busy"):
        (tmp_path / f".download-{name}").mkdir()
        (tmp_path / f".download-{name}" / "part").write_bytes(b"half")
    long_ago = (time.time() - 7 * 3600,) * 2
    for path in (tmp_path / ".download-left" / "part", tmp_path / ".download-left", tmp_path / ".download-busy"):
        os.utime(path, long_ago)
    clear_abandoned(tmp_path, ".download-*")
    assert [path.name for path in tmp_path.iterdir()] == [".download-busy"]


@pytest.mark.parametrize(
    "call",
    [
        lambda folder: Store(folder, {"path": folder}),
        lambda folder: Store(folder, {"x": np.float32(1)}),
        lambda folder: Store(folder, {}).save("x", {"a": np.array(["text"])}),
        lambda folder: Store(folder, {}).save("x", {"a": np.array([{}])}),
        lambda folder: Store(folder, {}).save("x", {"a": np.ones(2, complex)}),
        lambda folder: Store(folder, {}).save("x", {"a": torch.eye(2).to_sparse()}),
        lambda folder: Store(folder, {}).save("x", {"__metadata__": np.ones(2)}),
        lambda folder: Store(folder, {}).save("x", {}, about={1, 2}),
    ],
)
def test_what_is_not_plain_is_refused_in_one_line(call, tmp_path):
    with pytest.raises(ValueError) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)
