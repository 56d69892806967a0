"""The store: what comes back, what is noticed, and what may go wrong without stopping the work."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from helpers.cache import Store
from helpers.paths import clear_abandoned

ARRAYS = {
    "ids": np.arange(12, dtype=np.uint16).reshape(3, 4),
    "flags": np.array([True, False]),
    "states": torch.linspace(0, 1, 6, dtype=torch.bfloat16).view(2, 3),
    "step": torch.tensor(7),
    "none": np.zeros((0, 3), np.float16),
}


def never():
    raise AssertionError("the entry was made again")


def keep(store: Store, name: str, **arrays):
    return store.get(name, lambda: arrays)


def same(found: dict, made: dict) -> bool:
    def equal(x, y):
        y = torch.as_tensor(y)
        return x.dtype == y.dtype and x.shape == y.shape and bool((x == y).all())

    return found.keys() == made.keys() and all(equal(found[n], made[n]) for n in made)


def test_an_entry_comes_back_as_it_was_made_whether_kept_or_not(tmp_path):
    made = keep(Store(tmp_path, {"seed": 0}), "a b/ü", **ARRAYS)
    kept = Store(tmp_path, {"seed": 0}).get("a b/ü", never)
    assert same(made, ARRAYS) and same(kept, ARRAYS)


def test_the_file_has_the_mode_of_the_umask(tmp_path):
    store, old = Store(tmp_path, {}), os.umask(0o002)
    try:
        keep(store, "x", **ARRAYS)
    finally:
        os.umask(old)
    assert store.path("x").stat().st_mode & 0o777 == 0o664
    assert [p.name for p in store.folder.iterdir()] == [store.path("x").name]


def test_another_key_or_name_is_another_entry(tmp_path):
    first = Store(tmp_path, {"seed": 0, "model": "m"})
    keep(first, "x", a=np.ones(1))
    assert Store(tmp_path, {"model": "m", "seed": 0}).get("x", never)["a"] == 1
    assert keep(Store(tmp_path, {"model": "m", "seed": 1}), "x", a=np.zeros(1))["a"] == 0
    assert keep(first, "X", a=np.zeros(1))["a"] == 0 and first.path("a b") != first.path("a_b")


def test_a_file_of_another_key_or_name_in_the_right_place_does_not_count(tmp_path, capsys):
    one, two = Store(tmp_path, {"seed": 1}), Store(tmp_path, {"seed": 2})
    keep(one, "x", a=np.ones(1))
    two.folder.mkdir()
    for store, name in ((two, "x"), (one, "y")):
        store.path(name).write_bytes(one.path("x").read_bytes())
        assert keep(store, name, a=np.zeros(1))["a"] == 0
        assert "is damaged and is made again" in capsys.readouterr().err


def test_every_damaged_byte_is_noticed_and_the_entry_made_again(tmp_path, capfd):
    store = Store(tmp_path, {"seed": 0})
    keep(store, "x", **ARRAYS)
    content = store.path("x").read_bytes()
    flipped = [content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :] for i in range(len(content))]
    for damaged in [*flipped, b"", content[:5], content[: len(content) // 2], content + b"x"]:
        store.path("x").write_bytes(damaged)
        assert keep(store, "x", new=np.ones(1)).keys() == {"new"}
    assert store.get("x", never).keys() == {"new"}
    assert all(line.startswith("cache: ") for line in capfd.readouterr().err.splitlines())


def test_views_and_shared_and_turned_arrays_are_kept_whole(tmp_path):
    big = torch.arange(12.0).view(3, 4).requires_grad_()
    arrays = {"row": big[1], "turned": big.T, "same": big, "numpy": np.arange(6).reshape(2, 3).T[::-1].copy("K")}
    store = Store(tmp_path, {})
    keep(store, "x", **arrays)
    found = store.get("x", never)
    assert all(torch.equal(found[n], torch.as_tensor(a).detach()) for n, a in arrays.items())
    assert store.path("x").stat().st_size < 2000 and not found["same"].requires_grad


def test_what_comes_back_may_be_written_to_and_the_file_stays(tmp_path):
    store = Store(tmp_path, {})
    for _ in range(2):
        found = keep(store, "x", a=np.zeros(3))
        assert not found["a"].any()
        found["a"] += 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_line_and_the_work_goes_on(tmp_path, capsys):
    tmp_path.chmod(0o555)
    store = Store(tmp_path, {})
    assert store.get("x", lambda: {"a": np.ones(2)})["a"].sum() == 2
    assert store.get("y", lambda: {"a": np.ones(3)})["a"].sum() == 3
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "cannot be written to" in said[0] and "goes on" in said[0]


def test_a_folder_that_is_a_file_is_one_line_and_the_work_goes_on(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file", {})
    for name in "xy":
        assert store.get(name, lambda: {"a": np.ones(2)})["a"].sum() == 2
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
        "print([float(store.get(n, lambda: {'a': np.ones(10_000)})['a'].sum()) for n in 'xy'])\n"
        "print(list(store.folder.iterdir()))\n"
    )
    # -B: under the limit Python would cut the bytecode of what it imports, and leave it in the environment
    done = subprocess.run([sys.executable, "-B", "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == "[]" and len(done.stderr.splitlines()) == 1
    assert "cannot be written to" in done.stderr


def test_two_processes_at_once_leave_a_whole_entry(tmp_path):
    """Each writes whenever the entry is gone, and takes it away now and then: what is read is always whole."""
    code = (
        "import sys, torch\n"
        "from helpers.cache import Store\n"
        "store, own = Store(sys.argv[1], {'k': 1}), float(sys.argv[2])\n"
        "for i in range(30):\n"
        "    found = store.get('x', lambda: {'a': torch.full((50_000,), own)})['a']\n"
        "    assert (found == found[0]).all()\n"
        "    if i % 3 == own: store.path('x').unlink(missing_ok=True)\n"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), n], stderr=subprocess.PIPE, text=True)
        for n in "12"
    ]
    assert [(p.communicate()[1], p.returncode) for p in both] == [("", 0)] * 2
    assert len(list(Store(tmp_path, {"k": 1}).folder.iterdir())) <= 1


def test_what_a_killed_run_left_goes_and_what_another_is_writing_stays(tmp_path):
    store = Store(tmp_path, {})
    store.folder.mkdir()
    left, busy = (store.path("x").with_name(f".{store.path('x').name}.{n}.part") for n in ("old", "new"))
    for part in (left, busy):
        part.write_bytes(b"half")
    os.utime(left, (time.time() - 7200,) * 2)
    keep(store, "x", a=np.ones(1))
    assert not left.exists() and busy.exists()


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
        lambda folder: keep(Store(folder, {}), "x", a=np.array(["text"])),
        lambda folder: keep(Store(folder, {}), "x", a=np.array([{}])),
        lambda folder: keep(Store(folder, {}), "x", a=np.ones(2, complex)),
        lambda folder: keep(Store(folder, {}), "x", a=torch.eye(2).to_sparse()),
        lambda folder: keep(Store(folder, {}), "x", __metadata__=np.ones(2)),
        lambda folder: Store(folder, {}).get("x", lambda: {1: np.ones(2)}),
    ],
)
def test_what_is_not_plain_is_refused_in_one_line(call, tmp_path):
    with pytest.raises(ValueError) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)
