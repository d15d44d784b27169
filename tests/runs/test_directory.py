"""The directory of a run: its name, and the user's files in it."""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path

import pytest

from trueode.errors import RunDamagedError, RunExistsError, RunNotFoundError
from trueode.runs import RunDirectory


def taken(root: Path, *names: str) -> None:
    """Make directories that contain a run."""
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "config.yaml").write_text(f"name: {name}\n")


def content(root: Path) -> dict[str, bytes | None]:
    """All files and folders below a folder."""
    return {
        str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in root.rglob("*")
    }


def create(
    root: Path, name: str = "run", explicit: bool = False, overwrite: bool = False
) -> RunDirectory:
    return RunDirectory.create(str(root), name, explicit=explicit, overwrite=overwrite)


@pytest.mark.parametrize("explicit", [False, True])
def test_a_free_name_is_taken_as_it_is(tmp_path: Path, explicit: bool) -> None:
    directory = create(tmp_path / "not" / "there", explicit=explicit)
    assert directory.path == tmp_path / "not" / "there" / "run"
    assert directory.path.is_dir()
    assert directory.name == "run"


def test_names_that_nobody_gave_are_numbered(tmp_path: Path) -> None:
    for expected in ("run", "run-2", "run-3", "run-4"):
        directory = create(tmp_path)
        assert directory.name == directory.path.name == expected
        directory.config.write_text("")
        directory.release()
    (tmp_path / "run-3" / "config.yaml").unlink()  # the first free one, not the one after the last
    assert create(tmp_path).name == "run-3"


def test_two_runs_at_once_do_not_share_a_directory(tmp_path: Path) -> None:
    """Even before either of them has written a file."""
    first = create(tmp_path)
    assert create(tmp_path).name == "run-2"
    with pytest.raises(RunExistsError):
        create(tmp_path, explicit=True)
    for overwrite in (False, True):
        with pytest.raises(RunExistsError):
            create(tmp_path, explicit=True, overwrite=overwrite)
    first.config.write_text("")
    resumed = RunDirectory.open(str(tmp_path), "run")
    with pytest.raises(RunExistsError, match="another process"):
        resumed.lock()
    first.release()
    resumed.lock()
    resumed.release()


def test_a_directory_in_which_nothing_was_written_is_removed(tmp_path: Path) -> None:
    create(tmp_path).release()
    assert not (tmp_path / "run").exists()
    directory = create(tmp_path)
    directory.config.write_text("")
    directory.release()
    assert directory.config.exists()


def test_a_name_that_was_given_and_is_taken(tmp_path: Path) -> None:
    taken(tmp_path, "run", "run-2", "run-3", "run-5")
    before = content(tmp_path)
    with pytest.raises(RunExistsError) as failure:
        create(tmp_path, explicit=True)
    message = str(failure.value)
    assert failure.value.exit_code == 2
    assert str(tmp_path / "run") in message
    assert "--resume true" in message
    assert "--overwrite true" in message
    found = re.search(r"--name (\S+?)\.$", message)
    assert found
    assert content(tmp_path) == before
    assert create(tmp_path, found[1], explicit=True).name == found[1]


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("left", [(), ("config.yaml.part",), ("config.yaml.part", "run.json.part")])
def test_a_directory_without_whole_files_is_free(
    tmp_path: Path, left: tuple[str, ...], explicit: bool
) -> None:
    (tmp_path / "run").mkdir()
    for name in left:
        (tmp_path / "run" / name).write_text("torn")
    assert create(tmp_path, explicit=explicit).name == "run"


@pytest.mark.parametrize("mine", ["notes.txt", "config.yaml", "history.csv", "part"])
def test_a_directory_with_a_whole_file_is_not_free(tmp_path: Path, mine: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / mine).write_text("mine")
    (tmp_path / "run" / "config.yaml.part").write_text("torn")
    before = content(tmp_path)
    assert create(tmp_path).name == "run-2"
    with pytest.raises(RunExistsError):
        create(tmp_path, explicit=True)
    after = content(tmp_path)
    assert {name: after[name] for name in before} == before


def test_a_file_of_that_name_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    assert create(tmp_path).name == "run-2"
    for overwrite in (False, True):
        with pytest.raises(RunExistsError):
            create(tmp_path, explicit=True, overwrite=overwrite)
    assert (tmp_path / "run").read_text() == "mine"


def a_whole_run(root: Path) -> set[str]:
    """A directory with all files of a run, and files of the user."""
    written = {
        *(
            "config.yaml",
            "history.csv",
            "run.json",
            "audit.json",
            "solver_swap.json",
            "solver_swap.csv",
        ),
        *("evaluation_train.json", "evaluation_test.json", "config.yaml.part", "run.json.part"),
        *("checkpoints/iteration_00000500.pt", "checkpoints/iteration_00001000.pt.part"),
        *("figures/loss.png", "tensorboard_logs/events.out.tfevents.1"),
    }
    own = {
        "notes.txt",
        "config.yaml.orig",
        "my figures/a.png",
        "checkpoint/iteration_00000500.pt",
        "data.csv",
    }
    for name in written | own:
        path = root / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return own


def test_overwrite_removes_what_a_run_writes_and_nothing_else(tmp_path: Path) -> None:
    own = a_whole_run(tmp_path)
    taken(tmp_path, "run-2", "other")
    before = content(tmp_path / "run")
    directory = create(tmp_path, explicit=True, overwrite=True)
    assert directory.path == tmp_path / "run"
    assert (
        content(directory.path) == before
    )  # nothing is lost before the new run is known to be possible
    directory.clear()
    left = {name for name, text in content(directory.path).items() if text is not None}
    assert left == own
    assert all((directory.path / name).read_text() == name for name in own)
    assert (tmp_path / "run-2" / "config.yaml").exists()
    assert (tmp_path / "other" / "config.yaml").exists()


@pytest.mark.parametrize("place", ["figures/mine.txt", "checkpoints/best.pt"])
def test_overwrite_keeps_a_file_of_the_user_in_a_folder_of_the_run(
    tmp_path: Path, place: str
) -> None:
    a_whole_run(tmp_path)
    (tmp_path / "run" / place).write_text("mine")
    create(tmp_path, explicit=True, overwrite=True).clear()
    assert (tmp_path / "run" / place).read_text() == "mine"


def test_overwrite_of_nothing_is_a_new_run(tmp_path: Path) -> None:
    assert create(tmp_path / "new", overwrite=True).path == tmp_path / "new" / "run"
    assert (tmp_path / "new" / "run").is_dir()


def test_nothing_is_deleted_unless_asked_for(tmp_path: Path) -> None:
    a_whole_run(tmp_path)
    before = content(tmp_path / "run")
    assert create(tmp_path).name == "run-2"
    with pytest.raises(RunExistsError):
        create(tmp_path, explicit=True)
    RunDirectory.open(str(tmp_path), "run")
    assert content(tmp_path / "run") == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_place_that_is_no_folder(tmp_path: Path, below: str, overwrite: bool) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunExistsError, match="--output_dir") as failure:
        create(tmp_path / "file" / below, overwrite=overwrite)
    assert str(tmp_path / "file") in str(failure.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_place_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunExistsError, match=r"Permission denied.*--output_dir"):
        create(tmp_path / "locked")


def test_open(tmp_path: Path) -> None:
    taken(tmp_path, "spheres", "pendulum")
    directory = RunDirectory.open(str(tmp_path), "pendulum")
    assert directory.config == tmp_path / "pendulum" / "config.yaml"


def test_open_names_what_is_near(tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError, match="no runs in"):
        RunDirectory.open(str(tmp_path / "missing"), "run")
    taken(tmp_path, "spheres", "pendulum")
    (tmp_path / "pendulun").mkdir()  # no run
    with pytest.raises(RunNotFoundError) as failure:
        RunDirectory.open(str(tmp_path), "pendulun")
    message = str(failure.value)
    assert failure.value.exit_code == 2
    assert str(tmp_path / "pendulun") in message
    assert "There are: pendulum, spheres." in message
    assert "Did you mean 'pendulum'?" in message


@pytest.mark.parametrize(
    "damaged",
    [None, b"", b"{", b'{"a": 1', b"[1, 2]", b"3", b"null", b"\xff\xfe\x00", b"\x00" * 40],
)
def test_facts_of_a_damaged_file_are_none(tmp_path: Path, damaged: bytes | None) -> None:
    directory = create(tmp_path)
    if damaged is not None:
        directory.info.write_bytes(damaged)
    assert directory.read_info() == {}
    directory.update(status="running")
    assert directory.read_info() == {"status": "running"}


def test_facts_are_added(tmp_path: Path) -> None:
    directory = create(tmp_path)
    directory.start({"status": "running", "seed": 3})
    started = directory.read_info()
    assert {"python", "torch", "numpy", "trueode"} <= started["versions"].keys()
    assert started["started"]
    directory.update(status="finished", loss=float("nan"))
    info = json.loads(directory.info.read_text())
    assert info == directory.read_info() == {**started, "status": "finished", "loss": None}
    directory.start({"status": "resumed"})  # facts of the earlier part stay
    assert directory.read_info() == {
        **info,
        "started": directory.read_info()["started"],
        "status": "resumed",
    }


@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
def test_a_directory_that_is_no_longer_the_runs_is_not_written(tmp_path: Path, how: str) -> None:
    directory = create(tmp_path)
    directory.start({"status": "running"})
    directory.path.rename(tmp_path / "elsewhere")
    if how == "removed":
        shutil.rmtree(tmp_path / "elsewhere")
    if how == "replaced":
        create(tmp_path)  # of another run, in which nothing is written yet
    before = content(tmp_path)
    for write in (
        directory.check,
        lambda: directory.update(a=1),
        lambda: directory.place("figures"),
        directory.prepare,
    ):
        with pytest.raises(RunDamagedError, match=r"removed, moved or replaced") as failure:
            write()
        assert failure.value.exit_code == 1
    directory.release()
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    "name", ["figures", "checkpoints", "history.csv", "audit.json", "figures/loss.png"]
)
def test_links_out_of_the_directory_are_not_followed(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "mine"
    outside.mkdir()
    for file in ("loss.png", "iteration_00000500.pt", "history.csv", "audit.json"):
        (outside / file).write_text("mine")
    before = content(outside)
    a_whole_run(tmp_path)
    link = tmp_path / "run" / name
    shutil.rmtree(link) if link.is_dir() else link.unlink(missing_ok=True)
    link.symlink_to(outside if "." not in name else outside / link.name)
    directory = RunDirectory.open(str(tmp_path), "run")
    directory.lock()
    with pytest.raises(RunDamagedError, match="symbolic link"):
        directory.prepare()
    with pytest.raises(RunDamagedError, match="symbolic link"):
        directory.place(name)
    directory.clear()  # as --overwrite true does
    assert not link.is_symlink()
    directory.prepare()
    assert content(outside) == before


def test_a_link_in_place_of_a_file_that_is_being_written(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    directory = create(tmp_path)
    (directory.path / "run.json.part").symlink_to(tmp_path / "mine")
    directory.update(a=1)
    assert (tmp_path / "mine").read_text() == "mine"
    assert directory.read_info() == {"a": 1}


def test_what_killed_writes_have_left_is_removed_at_the_next_start_and_nothing_else(
    tmp_path: Path,
) -> None:
    a_whole_run(tmp_path)
    mine = ("mine.part", "checkpoints/best.pt.part", "figures/mine.png", "figures/mine.png.part")
    left = (
        "history.csv.part",
        "figures/loss.png.part",
        "audit/audit.json.part",
        "audit/audit_swap.png.part",
    )
    for name in (*mine, *left):
        path = tmp_path / "run" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("torn")
    before = content(tmp_path / "run")
    directory = RunDirectory.open(str(tmp_path), "run")
    directory.prepare()
    gone = before.keys() - content(directory.path).keys()
    torn = {"config.yaml.part", "run.json.part", "checkpoints/iteration_00001000.pt.part"}
    assert gone == {*left, *torn, "audit"}, "the folder is empty now"
    directory.clear()
    assert all((directory.path / name).exists() for name in mine)


def test_checkpoints_that_a_killed_run_had_yet_to_remove_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for number in (0, 8, 16, 24, 30):
        (folder / f"iteration_{number:08d}.pt").write_bytes(b"")
    (folder / "best.pt").write_bytes(b"")
    (tmp_path / "run" / "config.yaml").write_text("")
    RunDirectory.open(str(tmp_path), "run").prepare()
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.pt",
        *(f"iteration_{number:08d}.pt" for number in (16, 24, 30)),
    ]


def test_folders_that_were_made_for_a_run_that_did_not_begin_are_removed(tmp_path: Path) -> None:
    for overwrite in (False, True):
        create(tmp_path / "a" / "b", overwrite=overwrite).release()
        assert not list(tmp_path.iterdir())
    (tmp_path / "a").mkdir()
    create(tmp_path / "a" / "b").release()
    assert list(tmp_path.iterdir()) == [tmp_path / "a"], "that one was there before"
